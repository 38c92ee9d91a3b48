"""Take the README's two pictures of the page: the real page, model and demo collection, in headless Chromium.

    python -m step3_rag demo && python tests/step3/take_pictures.py        # docs/step3-ui.png, docs/step3-phone.png

The pictures say how long an answer took, so take them on an idle machine.
"""

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from page_world import free_port
from playwright.sync_api import Browser, sync_playwright

from step3_rag.demo import QUESTIONS
from step3_rag.demo_collection import COLLECTION
from step3_rag.ingest import collection_folder
from step3_rag.page import Library, serving

DOCS = Path(__file__).parents[2] / "docs"
PATIENCE = 600_000  # ms; the first question also loads the graph and warms the model
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def take(browser: Browser, address: str, ending: str, path: Path, **screen: Any) -> None:
    """Ask the demo's questions for this ending until one is answered with a citation, and take its picture."""
    for question in QUESTIONS[ending]:
        context = browser.new_context(color_scheme="light", reduced_motion="reduce", **screen)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(address)
        page.fill("#question textarea", question)
        page.press("#question textarea", "Enter")
        page.wait_for_selector("#sources li")
        shown = page.locator("#current a.cite").count() and (
            ending != "rewritten" or "also searched" in page.inner_text("#current .facts")
        )
        if shown:
            page.evaluate("document.querySelector('#current').scrollIntoView({block: 'start'})")
            page.wait_for_timeout(1000)
            page.screenshot(path=path)
        context.close()
        if shown:
            print(f"{path.name}: {question} ({path.stat().st_size / 1000:.0f} kB)")
            return
    sys.exit(f"no question ended as {ending}")


def main() -> None:
    """Serve the page, open it twice."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with ExitStack() as stack:
        library = Library(stack)
        folder = collection_folder(COLLECTION)
        library.resources(folder)
        address = stack.enter_context(serving(folder, library.ask, library.encoder, "127.0.0.1", free_port()))
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=chromium, args=FLAGS)
        take(browser, address, "answered", DOCS / "step3-ui.png", viewport={"width": 1200, "height": 900})
        phone = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True}
        take(browser, address, "rewritten", DOCS / "step3-phone.png", **phone)
        browser.close()


if __name__ == "__main__":
    main()
