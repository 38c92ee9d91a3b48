"""The page in headless Chromium: the chat, its tools, the charts; by keyboard, on a phone, in the dark.

    python -m pytest tests/step5/test_step5_page.py -m real

What every visit is held to besides: step5_page_world.py.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import ADAPTER, MODEL
from playwright.sync_api import Page, expect
from step5_page_world import ANSWER, Site, ask, ask_and_wait, site, visit

pytestmark = pytest.mark.real
__all__ = ["site", "visit"]  # fixtures

NASTY = '<img src=x onerror=alert(1)> <script>alert(1)</script> &amp; <b>bold</b> "quoted" \u202ebackwards'
WRONG_KEY = "sk-00000000-" + "x" * 43
Visit = Callable[..., Page]


def facts(page: Page) -> dict[str, str]:
    """What stands under the last answer."""
    pairs = page.locator("#log .facts").last.locator("div").all()
    return {pair.locator("dt").inner_text(): pair.locator("dd").inner_text() for pair in pairs}


def reading(page: Page, title: str) -> str:
    """What the legend of a chart says now."""
    return page.locator(".tile", has_text=title).locator(".legend").inner_text()


# -- chat --------------------------------------------------------------------------------------------------------------


def test_an_answer_streams_and_ends_with_its_accounts(visit: Visit, site: Site) -> None:
    site.engine.seconds_per_token = 0.1
    page = visit()
    ask(page)
    text = page.locator("#log .text")
    expect(text).to_contain_text("Lisbon")
    assert text.inner_text() != ANSWER
    assert page.locator("#stop").is_visible()
    assert not page.locator("#send").is_visible()
    assert page.get_attribute("#log", "aria-busy") == "true"
    expect(page.locator("#log .facts")).to_have_count(1)
    assert text.inner_text() == ANSWER
    assert page.get_attribute("#log", "aria-busy") == "false"
    assert page.locator("#send").is_visible()
    expect(page.locator("#state")).to_have_text("The answer is complete.")
    shown = facts(page)
    assert (shown["Prompt"], shown["Answer"]) == ("12 tokens, 8 cached", "8 tokens")
    assert re.fullmatch(r"\d[\d.]* m?s", shown["First token"])
    assert 2 < float(shown["Speed"].removesuffix(" tokens/s")) <= 10  # one per 0.1 s, less where the machine is busy
    row = site.parts.ledger._database.execute("SELECT outcome FROM requests WHERE id = ?", [shown["Request"]])
    assert row.fetchall() == [("ok",)]


def test_the_settings_reach_the_engine(visit: Visit, site: Site) -> None:
    page = visit()
    assert page.locator("#model option").all_inner_texts() == [MODEL]  # neither the adapter nor the embedding model
    page.select_option("#adapter", ADAPTER)
    page.fill("#system", "Be brief.")
    page.fill("#temperature", "0")
    page.fill("#most", "3")
    ask_and_wait(page)
    body = site.engine.last
    assert body["model"] == ADAPTER
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Lisbon?"}
    ]  # fmt: skip
    assert (body["temperature"], body["max_tokens"]) == (0, 3)
    assert "tools" not in body
    assert page.locator("#log .text").inner_text().strip() == "Lisbon lies on"
    page.fill("#temperature", "7")
    ask(page)
    expect(page.locator("#log .bad")).to_contain_text("temperature")
    assert len(site.engine.seen) == 1


def test_stop_ends_the_answer_and_the_conversation_goes_on(visit: Visit, site: Site) -> None:
    site.engine.seconds_per_token, site.engine.text = 0.05, "word " * 200
    page = visit(tolerated="404")  # asked for before it was settled
    ask(page)
    expect(page.locator("#log .text")).to_contain_text("word word")
    page.click("#stop")
    expect(page.locator("#log .note")).to_have_text("Stopped.")
    expect(page.locator("#log .facts")).to_have_count(1)
    said = page.locator("#log .text").inner_text()
    assert site.engine.running == 0
    assert 2 <= int(facts(page)["Answer"].split()[0]) < 200
    site.engine.seconds_per_token, site.engine.text = 0.0, ANSWER
    ask_and_wait(page, "And now?")
    roles = [(message["role"], message["content"].strip()) for message in site.engine.last["messages"]]
    assert roles == [("user", "Where is Lisbon?"), ("assistant", said.strip()), ("user", "And now?")]
    page.click("#fresh")
    assert page.locator("#log > *").count() == 0
    ask_and_wait(page, "Who are you?")
    assert len(site.engine.last["messages"]) == 1


def test_what_a_model_writes_stays_text(visit: Visit, site: Site) -> None:
    site.engine.text = NASTY
    page = visit(tolerated="TrustedHTML")  # the refusal at the end
    ask_and_wait(page, NASTY)
    assert page.locator("#log .text").text_content() == NASTY
    assert NASTY in (page.locator("#log .asked").text_content() or "")
    assert page.locator("#log").locator("img, script, b").count() == 0
    refused = page.evaluate("() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } }")
    assert refused == "TypeError"  # trusted types


def test_a_wrong_key_is_refused_in_words_and_the_message_comes_back(visit: Visit) -> None:
    page = visit(key=WRONG_KEY, tolerated="401")
    expect(page.locator("#key-note")).to_have_text(
        "401 invalid_api_key: Incorrect API key provided, or it was revoked."
    )
    assert page.get_attribute("#key", "aria-invalid") == "true"
    ask(page, "Hello?")
    expect(page.locator("#log .bad")).to_have_text("There is no model to talk to.")
    expect(page.locator("#message")).to_have_value("Hello?")


def test_an_engines_refusal_is_shown_and_the_message_can_be_sent_again(visit: Visit, site: Site) -> None:
    page = visit(tolerated="400")
    site.engine.failures.append(400)
    ask(page, "Hello?")
    expect(page.locator("#log .bad")).to_have_text("400 fake_no: the fake says no")
    expect(page.locator("#message")).to_have_value("Hello?")
    page.press("#message", "Enter")
    expect(page.locator("#log .text").last).to_have_text(ANSWER)
    assert site.engine.last["messages"] == [{"role": "user", "content": "Hello?"}]


def test_the_key_stays_in_its_tab(visit: Visit, site: Site) -> None:
    page = visit()
    page.reload()
    expect(page.locator("#model")).to_have_value(MODEL)
    assert page.input_value("#key") == site.key
    stored = page.evaluate("() => [localStorage.length, document.cookie, location.href, {...sessionStorage}]")
    assert stored == [0, "", f"{site.url}/", {"api-key": site.key}]
    other = page.context.new_page()
    other.goto(site.url)
    assert other.input_value("#key") == ""


# -- tools -------------------------------------------------------------------------------------------------------------


def test_a_tool_call_is_a_card_and_its_result_goes_back(visit: Visit, site: Site) -> None:
    page = visit()
    page.click("#tools-part summary")
    page.click("#example")
    assert page.input_value("#message") == "What will the weather in Lisbon be like tomorrow?"
    page.press("#message", "Enter")
    expect(page.locator("#log .facts")).to_have_count(1)
    assert site.engine.last["tools"] == json.loads(page.input_value("#tools"))
    card = page.locator(".call")
    assert card.locator("p b").inner_text() == "get_weather"
    names, values = card.locator("dt").all_inner_texts(), card.locator("dd").all_inner_texts()
    assert dict(zip(names, values, strict=True)) == {
        "city": "Lisbon", "days_ahead": "1", "units": '["°C","m/s"]'
    }  # fmt: skip
    card.locator("input").fill("sunny, 24 °C")
    card.locator("input").press("Enter")
    expect(page.locator("#log .text").last).to_have_text(ANSWER)
    asked, called, result = site.engine.last["messages"]
    assert asked["role"] == "user"
    arguments = json.loads(called["tool_calls"][0]["function"]["arguments"])
    assert arguments == {"city": "Lisbon", "days_ahead": 1, "units": ["°C", "m/s"]}
    assert result == {"role": "tool", "tool_call_id": "call_7", "content": "sunny, 24 °C"}
    assert card.locator("input").is_disabled()


def test_tools_that_are_not_json_are_refused_beside_their_field(visit: Visit, site: Site) -> None:
    page = visit()
    page.click("#tools-part summary")
    page.fill("#tools", "[{]")
    ask(page)
    expect(page.locator("#tools-error")).to_contain_text("Not usable")
    assert page.evaluate("document.activeElement.id") == "tools"
    assert site.engine.seen == []


# -- operation ---------------------------------------------------------------------------------------------------------


def test_the_charts_move(visit: Visit, site: Site) -> None:
    page = visit()
    site.engine.failures.append(503)
    with_errors = page.request.post(
        f"{site.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {site.key}"},
        data={"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
    )
    assert with_errors.status == 503
    expect(page.locator(".tile", has_text="Errors").locator(".legend")).to_contain_text("engine_error")
    site.engine.seconds_per_token, site.engine.text = 0.02, "word " * 60
    ask(page)
    throughput = page.locator(".tile", has_text="Throughput")
    expect(throughput.locator(".legend")).to_have_text(re.compile(r"generated [1-9][\d.]* tokens/s"))
    expect(page.locator(".tile", has_text="Requests").locator(".legend")).to_contain_text("in flight 1")
    expect(page.locator(".tile", has_text="first token").locator(".legend")).to_have_text(
        re.compile(r"p50 \d.*p95 \d.*s")
    )
    before = throughput.locator("[data-line]").get_attribute("d")
    expect(throughput.locator("[data-line]")).not_to_have_attribute("d", before or "")
    expect(page.locator("#engines li")).to_contain_text(f"{site.engine.url}, 1 of 32 slots in use")
    expect(page.locator("#log .facts")).to_have_count(1)
    assert reading(page, "Cost").startswith("spent in this time $")


def test_a_moment_is_read_in_all_charts_at_once(visit: Visit) -> None:
    page = visit()
    expect(page.locator(".tile path[data-line]").first).to_have_attribute("d", re.compile("L.*L.*L"))
    chart = page.locator(".tile svg").first
    chart.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("svg .cursor")).to_have_count(5)
    assert re.fullmatch(r"Throughput, \d+ s ago: generated .* tokens/s", chart.get_attribute("aria-label") or "")
    page.keyboard.press("Tab")
    expect(page.locator(".tile").nth(2).locator(".cursor")).to_have_count(0)
    box = chart.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 40)
    expect(page.locator("svg .cursor")).to_have_count(5)
    page.mouse.move(0, 0)
    expect(page.locator("svg .cursor")).to_have_count(0)


# -- everybody ---------------------------------------------------------------------------------------------------------


def test_everything_can_be_done_with_the_keyboard(visit: Visit, site: Site) -> None:
    site.engine.seconds_per_token = 0.02
    page = visit(key="")
    reached: list[str] = []

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
            if reached[-1] == name:
                return
        pytest.fail(f"{name} is not reached: {reached}")

    tab_to("key")
    page.keyboard.insert_text(site.key)
    expect(page.locator("#model")).to_be_enabled()
    tab_to("adapter")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#adapter") == ADAPTER
    tab_to("SUMMARY")
    page.keyboard.press("Enter")
    tab_to("example")
    page.keyboard.press("Enter")
    tab_to("message")
    page.keyboard.press("Enter")
    expect(page.locator("#log .facts")).to_have_count(1)
    page.keyboard.press("Shift+Tab")  # into the card, from behind
    assert page.evaluate("document.activeElement.textContent") == "Send result"
    page.keyboard.press("Enter")
    expect(page.locator("#log .facts")).to_have_count(2)
    site.engine.text = "word " * 200
    page.focus("#message")
    page.keyboard.type("More")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("please")
    page.keyboard.press("Enter")
    expect(page.locator("#log .text").last).to_contain_text("word")
    page.keyboard.press("Escape")
    expect(page.locator("#log .note")).to_have_text("Stopped.")
    assert site.engine.last["messages"][-1]["content"] == "More\nplease"


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_no_sideways_scrolling(visit: Visit, site: Site, width: int) -> None:
    site.engine.text = "x" * 500 + " " + NASTY
    page = visit(viewport={"width": width, "height": 700}, color_scheme="dark" if width == 390 else "light")
    ask_and_wait(page, "y" * 300)
    page.click("#tools-part summary")
    page.click("#example")
    ask_and_wait(page)
    expect(page.locator("#engines li")).to_have_count(1)
    expect(page.locator(".tile path[data-line]").first).to_have_attribute("d", re.compile("L"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide: list[Any] = page.evaluate(
        "[...document.querySelectorAll('#log *, input, textarea, select, button, svg')]"
        f".filter((e) => e.getBoundingClientRect().right > {width} && !e.closest('.hidden')).map((e) => e.outerHTML)"
    )
    assert wide == []


def test_light_and_dark_differ_and_both_can_be_read(visit: Visit) -> None:
    """Text against its ground, by WCAG's contrast; 4.5 is what it asks of small text, 3 of lines."""
    contrast = """([selectors, property]) => {
      const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const light = (c) => { const [r, g, b] = c.match(/\\d+/g).map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ground = (e) => { const c = getComputedStyle(e).backgroundColor;
        return c === 'rgba(0, 0, 0, 0)' && e.parentElement ? ground(e.parentElement) : light(c); };
      return selectors.map((s) => { const e = document.querySelector(s), paper = ground(e);
        const ink = light(getComputedStyle(e)[property]);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); });
    }"""
    grounds = set()
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        ask_and_wait(page)
        expect(page.locator("#engines li")).to_have_count(1)
        texts = ["body", ".note", ".overline", ".good", ".asked", ".facts dt", "#send", "#fresh", "nav a", ".legend li"]
        assert min(page.evaluate(contrast, [texts, "color"])) >= 4.5
        assert min(page.evaluate(contrast, [[".line.l0", ".line.l1", ".line.l2"], "stroke"])) >= 3
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
