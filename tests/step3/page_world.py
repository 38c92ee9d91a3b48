"""A running page for the browser tests: real collections, a fake answerer, a fake embedder, and a browser to visit it.

The fixtures are imported by name (test_page.py, test_page_collections.py). Every visit also holds the page to this: no
console error, no request that leaves this machine, from the browser or from the server.
"""

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fake_ask import FakeAsk
from fake_encoder import FakeEncoder
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from step3_rag.ingest import ingest
from step3_rag.page import serving

PATIENCE = 60_000  # milliseconds: a machine that also trains a model is slow, not wrong
expect.set_options(timeout=PATIENCE)
SEASHELL = "The rushing sound that one hears in a seashell is the noise of the surrounding environment."
LIGHTHOUSE = "The Eddystone Lighthouse stands on rocks south of Rame Head."
QUESTION = "what is the rushing sound in a seashell"


class PausedEncoder(FakeEncoder):
    """A fake embedder that takes its time. pause: seconds for each text of an ingest."""

    pause = 0.0

    def encode(self, texts: Any, on_progress: Callable[[int, int], None] | None = None) -> Any:
        def slowly(done: int, total: int) -> None:
            time.sleep(self.pause)
            if on_progress:
                on_progress(done, total)

        return super().encode(texts, slowly)


@dataclass
class Site:
    """A running page. root: the folder of its collections. outside: hosts that the server tried to reach."""

    address: str
    root: Path
    ask: FakeAsk
    encoder: PausedEncoder
    outside: list[str]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root, documents = tmp_path_factory.mktemp("step3"), tmp_path_factory.mktemp("documents")
    (documents / "seashells.md").write_text(
        f"# Seashells\n\n{SEASHELL} It is not the ocean.\n\n## Myth\n\nFolk say so.\n"
    )
    (documents / "lighthouses.md").write_text(f"# Lighthouses\n\n## Eddystone\n\n{LIGHTHOUSE}\n")
    ingest([documents], root / "encyclopaedia", FakeEncoder())
    ingest([documents / "lighthouses.md"], root / "notes", FakeEncoder())
    ask, encoder = FakeAsk(), PausedEncoder()
    outside: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", watched(socket.getaddrinfo, outside))
        port = free_port()
        with serving(root / "encyclopaedia", ask, lambda _: encoder, "127.0.0.1", port) as address:
            yield Site(address, root, ask, encoder, outside)


def watched(lookup: Callable[..., Any], outside: list[str]) -> Callable[..., Any]:
    """A name lookup that remembers every machine but this one."""

    def look(host: Any, *args: Any, **options: Any) -> Any:
        if not is_local(str(host or "localhost")):
            outside.append(str(host))
        return lookup(host, *args, **options)

    return look


def is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass
class Opened:
    """A visitor's page, and everything it complained about or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Callable[..., Page]]:
    """Open the page; at the end nothing may have complained, or asked for anything from elsewhere."""
    opened: list[Opened] = []
    site.ask.pause = site.encoder.pause = 0.0

    def visit(*, tolerated: str = "$^", **options: Any) -> Page:
        """tolerated: a pattern for the complaints that are expected."""
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options))
        context.set_default_timeout(PATIENCE)
        result = Opened(context.new_page())
        opened.append(result)
        page = result.page

        def wrong(message: ConsoleMessage) -> bool:
            # Errors only: Gradio warns when it closes the stream of an upload that is complete.
            return message.type == "error" and not re.search(tolerated, message.text)

        page.on("console", lambda m: result.complaints.append(m.text) if wrong(m) else None)
        page.on("pageerror", lambda e: result.complaints.append(str(e)))
        page.on("request", lambda r: result.hosts.add(urlsplit(r.url).hostname or "localhost"))
        page.goto(site.address)
        page.wait_for_selector("#question textarea")
        expect(page.locator("#about")).to_contain_text("from")
        return page

    yield visit
    for result in opened:
        result.page.context.close()
        assert result.complaints == []
        assert {host for host in result.hosts if not is_local(host)} == set()
    assert site.outside == []


def put(page: Page, question: str) -> None:
    """Ask with the keyboard and wait until the question is on the page."""
    page.focus("#question textarea")
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    expect(page.locator("#current .question")).to_contain_text(question)


def put_and_wait(page: Page, question: str) -> None:
    put(page, question)
    page.wait_for_selector("#current .facts")


def node_kinds(page: Page) -> dict[str, str]:
    found: dict[str, str] = page.eval_on_selector_all(
        "#trace .node",
        "all => Object.fromEntries(all.map(n => [n.dataset.node, n.getAttribute('class').split(' ')[1]]))",
    )
    return found
