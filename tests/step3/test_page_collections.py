"""Collections and files on the page, in headless Chromium, and the command that serves it.

python -m pytest tests/step3/test_page_collections.py -m real
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fake_encoder import FakeEncoder
from page_world import LIGHTHOUSE, QUESTION, Site, free_port, put_and_wait, site, visit
from playwright.sync_api import Page, expect

from shared.errors import UserError
from step3_rag.page import serving

pytestmark = pytest.mark.real
__all__ = ["site", "visit"]  # fixtures
ROOT = Path(__file__).resolve().parents[2]


# --- collections and files ---


def test_another_collection_begins_another_conversation(visit: Callable[..., Page]) -> None:
    page = visit()
    expect(page.locator("#about")).to_contain_text("from 2 files")
    put_and_wait(page, QUESTION)
    page.get_by_label("Collection").click()
    page.get_by_role("option", name="notes").click()
    expect(page.locator("#about")).to_contain_text("1 passage from 1 file")
    expect(page.locator("#current .question")).to_have_count(0)
    put_and_wait(page, "where is the lighthouse")
    assert page.locator("#sources .card").count() == 1
    assert LIGHTHOUSE in (page.locator("#current .said").text_content() or "")


def choose_files(page: Page, *paths: Path) -> None:
    """Open the folded part and hand files to its file chooser."""
    if not page.locator("#files").is_visible():
        page.get_by_role("button", name="Add files").click()
    with page.expect_file_chooser() as chooser:
        page.locator("#files button").first.click()
    chooser.value.set_files(list(paths))


def test_uploaded_files_are_indexed_and_cited(visit: Callable[..., Page], site: Site, tmp_path: Path) -> None:
    (tmp_path / "moor hens.md").write_text("# Moorhens\n\nThe moorhen nods while swimming. It is shy.\n")
    (tmp_path / "scan.txt").write_bytes(b"\x00\x01\x02" * 100)
    page = visit()
    choose_files(page, tmp_path / "moor hens.md", tmp_path / "scan.txt")
    expect(page.locator("#report")).to_contain_text("1 of 2 files indexed")
    expect(page.locator("#report")).to_contain_text("scan.txt is binary")
    expect(page.locator("#about")).to_contain_text("from 3 files")
    folder = site.root / "encyclopaedia" / "uploads"
    assert [path.name for path in folder.iterdir()] == ["moor hens.md"]
    put_and_wait(page, "the moorhen nods while swimming")
    assert page.locator("#turn1-source1 mark").first.text_content() == "The moorhen nods while swimming."
    assert "moor hens.md" in (page.locator("#turn1-source1 .where").text_content() or "")


def test_indexing_shows_its_progress(visit: Callable[..., Page], site: Site, tmp_path: Path) -> None:
    text = "".join(f"# Part {n}\n\nOnyx number {n}.\n\n" for n in range(20))
    (tmp_path / "onyx.md").write_text(text)
    site.encoder.pause = 0.1
    page = visit()
    choose_files(page, tmp_path / "onyx.md")
    bar = page.locator("#report [role=progressbar]")
    expect(bar).to_be_visible()
    expect(bar).to_have_attribute("aria-valuetext", re.compile(r"embedding: [1-9]\d?%"))
    expect(page.locator("#report")).to_contain_text("1 of 1 file indexed")
    expect(bar).to_have_count(0)
    page.set_input_files("#files input[type=file]", tmp_path / "onyx.md")  # the same once more
    expect(page.locator("#report")).to_contain_text("1 unchanged.")


def test_a_file_that_is_too_large_is_refused(visit: Callable[..., Page], site: Site, tmp_path: Path) -> None:
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(33_000_000)
    # Gradio asks for the progress of an upload that it did not begin.
    page = visit(tolerated="404|^Response$")
    choose_files(page, tmp_path / "huge.txt")
    expect(page.get_by_text("exceed the maximum allowed size")).to_be_visible()
    assert not (site.root / "encyclopaedia" / "uploads" / "huge.txt").exists()
    put_and_wait(page, QUESTION)


# --- serving ---


def test_a_port_that_is_taken_is_said(site: Site) -> None:
    port = urlsplit(site.address).port or 0
    with (
        pytest.raises(UserError, match=f"port {port} is taken"),
        serving(site.root / "notes", site.ask, lambda _: FakeEncoder(), "127.0.0.1", port),
    ):
        pass


def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    """An empty home: the page opens all the same, to be filled, and loads no model for that."""
    port = free_port()
    command = [sys.executable, "-m", "step3_rag", "ui", "--port", str(port)]
    env = {**os.environ, "LLM_ROADMAP_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline()
        assert line.startswith(f"http://127.0.0.1:{port}"), process.stderr.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
