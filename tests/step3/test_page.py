"""Asking on the page, in headless Chromium: the answer, its citations, the graph; by keyboard, on a phone, in the dark.

    python -m pytest tests/step3/test_page.py -m real

What every visit is held to besides: page_world.py.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_ask import SUPPORT
from page_world import QUESTION, SEASHELL, Site, node_kinds, put, put_and_wait, site, visit
from playwright.sync_api import FileChooser, Page, expect

from step3_rag.store import Store

pytestmark = pytest.mark.real
__all__ = ["site", "visit"]  # fixtures


# --- asking ---


def test_an_answer_streams_and_ends_with_its_citations(visit: Callable[..., Page], site: Site) -> None:
    site.ask.pause = 0.05
    page = visit()
    put(page, QUESTION)
    page.wait_for_selector("#trace .node.now")
    page.wait_for_selector("#current .writing")
    assert page.locator("#send").count() == 0
    page.wait_for_selector("#current .facts")
    assert page.locator("#current .writing").count() == 0
    assert (page.locator("#current .said").text_content() or "").startswith(SEASHELL)
    assert "withdrawn" not in (page.locator("#current").text_content() or "")
    assert page.locator("#send").is_visible()
    assert page.locator("#question textarea").input_value() == ""
    expect(page.locator("#status")).to_have_text("The answer is complete.")


def test_the_cited_span_is_marked_in_its_passage_and_in_its_source(visit: Callable[..., Page], site: Site) -> None:
    page = visit()
    put_and_wait(page, QUESTION)
    card = page.locator("#turn1-source1")
    assert card.locator("blockquote mark").text_content() == SEASHELL
    assert "Seashells" in (card.locator(".path").text_content() or "")
    assert f"{SUPPORT:.2f}" in (card.locator(".support").text_content() or "")
    assert not card.locator(".source").is_visible()
    card.locator("summary").click()
    assert card.locator(".source mark").text_content() == SEASHELL
    store = Store(site.root / "encyclopaedia")
    path = next(path for path in store.digests() if path.endswith("seashells.md"))
    assert card.locator(".source").text_content() == store.source_text(path)
    store.close()


def test_the_graph_shows_the_way_that_was_taken(visit: Callable[..., Page]) -> None:
    page = visit()
    put_and_wait(page, QUESTION)
    idle = {node for node, kind in node_kinds(page).items() if kind == "idle"}
    assert idle == {"small_talk", "abstain"}
    assert "✓ retrieve ×2" in (page.locator("#trace svg").text_content() or "")
    assert page.locator("#trace .steps > li").count() == 10
    assert "→ rewrite → retrieve → grade → generate" in (page.locator("#trace svg").get_attribute("aria-label") or "")


def test_an_abstention_has_its_reason_and_the_nearest_passages(visit: Callable[..., Page]) -> None:
    page = visit()
    put_and_wait(page, "what does nothing here say")
    assert (page.locator("#current .abstained").text_content() or "").startswith("I don't know")
    assert "no passage is relevant" in (page.locator("#current .abstained").text_content() or "").lower()
    expect(page.locator("#sources h3")).to_have_text("Nearest passages, not cited")
    assert page.locator("#sources .card").count() == 3
    assert node_kinds(page)["abstain"] == "done"


@pytest.mark.parametrize(("word", "message"), [("broken", "is it running?"), ("bug", "RuntimeError: a bug")])
def test_a_failure_is_a_message_and_the_next_question_works(
    visit: Callable[..., Page], capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    page = visit()
    put(page, f"something {word}")
    expect(page.locator("#current .failure")).to_contain_text(message)
    put_and_wait(page, QUESTION)
    assert page.locator("#current .cite").count() == 2
    assert ("Traceback" in capsys.readouterr().err) == (word == "bug")  # the terminal gets the details of a bug


def test_stop_ends_the_answer_and_the_work(visit: Callable[..., Page], site: Site) -> None:
    site.ask.pause = 0.05
    page = visit()
    closed = site.ask.closed
    put(page, "go on slowly please")
    page.wait_for_selector("#current .writing")
    page.click("#stop")
    expect(page.locator("#current .failure")).to_contain_text("Stopped.")
    assert "and on" in (page.locator("#current .said").text_content() or "")
    assert site.ask.closed == closed + 1
    site.ask.pause = 0.0
    put_and_wait(page, QUESTION)
    assert page.locator("#earlier .failure").count() == 1


def test_leaving_the_page_ends_the_work(visit: Callable[..., Page], site: Site) -> None:
    site.ask.pause = 0.05
    page = visit()
    closed = site.ask.closed
    put(page, "go on slowly please")
    page.wait_for_selector("#current .writing")
    page.close()
    for _ in range(300):
        time.sleep(0.1)
        if site.ask.closed > closed:
            return
    pytest.fail("the answer goes on for nobody")


def test_a_conversation_keeps_its_earlier_turns(visit: Callable[..., Page], site: Site) -> None:
    page = visit()
    put_and_wait(page, QUESTION)
    put_and_wait(page, "what does nothing here say")
    put_and_wait(page, "and the lighthouse on rocks")
    answer = page.locator("#earlier #turn1 .said").text_content() or ""
    assert site.ask.histories[-1] == (
        (QUESTION, re.sub(r"(?<=[.])[12]", "", answer)),
    )  # the declined one is not leant on
    assert page.locator("#earlier article").count() == 2
    assert not page.locator("#turn1-source1").is_visible()
    page.locator("#earlier #turn1 .cite").first.click()  # opens what the card is folded in
    expect(page.locator("#turn1-source1")).to_be_focused()
    assert page.url == site.address


def test_nasty_text_stays_text(visit: Callable[..., Page]) -> None:
    page = visit()
    nasty = "<img src=http://192.0.2.1/x onerror=alert(1)> ![p](http://192.0.2.1/y) ${alert(1)} {{x}}"
    put_and_wait(page, nasty)
    assert nasty in (page.locator("#current .question").text_content() or "")
    put_and_wait(page, "again")  # the turn before is now among the earlier ones
    assert page.locator("#board img").count() == 0


# --- who may use it, and on what ---


def test_keyboard_only(visit: Callable[..., Page], tmp_path: Path) -> None:
    (tmp_path / "kelp.md").write_text("# Kelp\n\nKelp grows fast.\n")
    page = visit()
    expect(page.locator("#question textarea")).to_be_focused()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector("#current .facts")

    def tab_to(selector: str, key: str = "Shift+Tab") -> None:
        for _ in range(40):
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none" or selector.startswith("#picker"), f"{selector} does not show its focus"
                return
            page.keyboard.press(key)
        pytest.fail(f"{selector} is not reached by {key}")

    tab_to("#turn1-source1 summary")
    page.keyboard.press("Enter")
    expect(page.locator("#turn1-source1 .source")).to_be_visible()
    tab_to("#current .cite")
    page.keyboard.press("Enter")
    expect(page.locator("#sources .card:focus")).to_have_count(1)
    tab_to("#files button, #add button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#files button")
    tab_to("#files button", "Tab")
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(5):  # Chromium forgets a key press after 5 s, which a busy machine can take to act on it
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        if choosers:
            break
    choosers[0].set_files(tmp_path / "kelp.md")
    expect(page.locator("#report")).to_contain_text("1 of 1 file indexed")
    tab_to("#picker input")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text("1 passage from 1 file")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_scrolls_sideways_and_the_question_box_stays_in_sight(
    visit: Callable[..., Page], scheme: str, width: int
) -> None:
    page = visit(viewport={"width": width, "height": 800}, color_scheme=scheme, has_touch=width < 500)
    for question in (QUESTION, "x" * 200, "what does nothing here say"):
        put_and_wait(page, question)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("scrollTo(0, 0)")
        expect(page.locator("#question textarea")).to_be_in_viewport()
        expect(page.locator("#send")).to_be_in_viewport()


# WCAG 2.1's contrast of the text of each element against the nearest background behind it.
CONTRAST = """selectors => {
  const rgb = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => rgb(color).slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (rgb(c)[3] !== 0) return c; } };
  return Object.fromEntries(selectors.map(selector => {
    const e = document.querySelector(selector), svg = e instanceof SVGElement, style = getComputedStyle(e);
    const back = svg ? getComputedStyle(e.parentElement.querySelector('rect')).fill : behind(e);
    const [a, b] = [luminance(svg ? style.fill : style.color), luminance(back)];
    return [selector, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
  }));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit: Callable[..., Page], scheme: str) -> None:
    page = visit(color_scheme=scheme)
    put_and_wait(page, QUESTION)
    wait_for_colours = "#send, #about p, #current .said, #current .cite, #current .facts li, .card .path, .card mark"
    selectors = [*wait_for_colours.split(", "), "summary", "#trace .done text", "#trace .idle text", ".steps .outcome"]
    put(page, "something broken")
    expect(page.locator("#current .failure")).to_be_visible()
    found = page.evaluate(CONTRAST, ["#current .failure"])
    put_and_wait(page, QUESTION)
    page.wait_for_timeout(500)  # the boxes' colours fade in
    found |= page.evaluate(CONTRAST, selectors)
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
    # Not by colour alone: what is cited is underlined too, what has run is ticked.
    underline = "getComputedStyle(document.querySelector('.card mark')).borderBottom"
    assert page.evaluate(underline).startswith("2px solid")
    assert "✓" in (page.locator("#trace .done text").first.text_content() or "")
