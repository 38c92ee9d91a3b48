"""The report page: whole, small, safe with any text, and right in the browser.

python -m pytest tests/step1/test_report.py -m "not real"     # the page as a file
python -m pytest tests/step1/test_report.py -m real           # in headless Chromium, and with the real model
"""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page

from shared.errors import UserError
from shared.models import LoadedModel, load
from shared.sampling import filtered_probabilities
from step1_foundations import report
from step1_foundations.attention import attention
from step1_foundations.next_token import entropy, logits_of
from step1_foundations.report import MAX_TOKENS, build_report, collect, render, write_report
from step1_foundations.tokens import prompt_ids

ROOT = Path(__file__).resolve().parents[2]
NASTY = "</script><img src=x onerror=alert(1)> \"'`{{script}} <!-- \u2028 &lt; 🙂"
SETTINGS = [(1, 0, 1, 0), (0.7, 0, 1, 0), (2, 0, 1, 0), (0.05, 0, 1, 0), (0, 0, 1, 0), (1, 5, 1, 0), (1.5, 200, 1, 0),
            (1, 0, 0.9, 0), (1.3, 0, 0.6, 0), (2, 0, 0.99, 0), (1, 0, 1, 0.1), (1.4, 40, 0.85, 0.05)]  # fmt: skip


@pytest.fixture
def model(tiny_llama: Path) -> LoadedModel:
    return load(str(tiny_llama), dtype="float32", quiet=True)


def embedded(page: str) -> dict[str, Any]:
    """The data of a page, read as a browser does: up to the first </script>."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_holds_every_part(model: LoadedModel) -> None:
    page = build_report(model, "The capital of France")
    data = embedded(page)
    size, config = len(data["tokens"]["list"]), model.config
    assert [t["id"] for t in data["tokens"]["list"]] == prompt_ids(model.tokenizer, "The capital of France")
    assert len(base64.b64decode(data["attention"]["maps"])) == config.layers * config.heads * size * (size + 1) // 2
    assert len(data["attention"]["labels"]) == config.layers * config.heads
    assert len(data["lens"]["cells"]) == config.layers + 1
    assert len(data["ablation"]["change"]) == config.layers
    assert len(data["ablation"]["change"][0]) == config.heads + 1
    assert data["continuation"]["tokens"]
    assert data["load"]["kv"] == config.kv_bytes_per_token(4)
    assert data["next"]["entropy"] == pytest.approx(
        entropy(logits_of(model, [t["id"] for t in data["tokens"]["list"]])[-1].softmax(-1))
    )


def test_attention_survives_the_rounding(model: LoadedModel) -> None:
    ids = prompt_ids(model.tokenizer, "The cat sat on the mat")
    result = attention(model, ids)
    weights = base64.b64decode(report.attention_data(result)["maps"])
    flat = [w for layer in result.maps for head in layer for row in head for w in row]
    assert [b / 255 for b in weights] == pytest.approx(flat, abs=0.5 / 255 + 1e-6)


def test_works_with_every_kind_of_model(tiny_model: Path) -> None:
    model = load(str(tiny_model), dtype="float32", quiet=True)
    assert embedded(build_report(model, "the cat", target="cat"))["ablation"]["target"].strip() == "cat"


def test_a_chat_turn(model: LoadedModel) -> None:
    data = collect(model, "hello", chat=True)
    assert {t["source"] for t in data["tokens"]["list"]} == {"template", "text"}
    assert "--chat" in data["commands"]["report"]
    assert "<|im_start|>" in data["commands"]["lens"]  # lens has no --chat: the rendered prompt is its TEXT


def test_text_is_escaped(model: LoadedModel) -> None:
    page = render(collect(model, NASTY))
    assert embedded(page)["text"] == NASTY
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert "\u2028" not in page.split("<script", 1)[1]
    assert "{{script}}" in page  # it was a text, and is one still


def test_the_page_names_nothing_outside_and_no_path(model: LoadedModel) -> None:
    data = collect(model, "The cat")
    page = render(data)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address that is fetched
    assert "default-src 'none'" in page
    commands = json.dumps(data.pop("commands"))  # there --model DIR is what the user typed
    assert str(model.directory) in commands
    assert str(model.directory) not in json.dumps(data)


def test_limits(model: LoadedModel) -> None:
    with pytest.raises(UserError, match=f"limit here is {MAX_TOKENS}"):
        build_report(model, "cat " * 100)
    with pytest.raises(UserError, match="empty"):
        build_report(model, "")


def test_unwritable_places_are_refused_before_the_work(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "build_report", lambda *a, **k: pytest.fail("worked first"))
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "report.html"):
        with pytest.raises(UserError, match="choose another file"):
            write_report(path, model, "The cat")


# --- in the browser ---


@pytest.fixture
def show(open_page: Callable[..., Page]) -> Callable[..., Page]:
    """Open a report and wait until its script has drawn it."""

    def show(html: str, **options: Any) -> Page:
        page = open_page(html, **options)
        page.wait_for_selector("html[data-ready=true]", timeout=10_000, state="attached")
        return page

    return show


def move_sliders(page: Page, values: tuple[float, int, float, float]) -> None:
    """Set temperature, top-k, top-p and min-p."""
    stops = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 0]
    temperature, top_k, top_p, min_p = values
    places = {"temperature": temperature, "top-k": stops.index(top_k), "top-p": top_p, "min-p": min_p}
    for name, value in places.items():
        page.evaluate(
            "([e, v]) => { e.value = v; e.dispatchEvent(new Event('input')); }",
            [page.query_selector(f"#{name}"), value],
        )


@pytest.mark.real
def test_nasty_text_stays_text(model: LoadedModel, show: Callable[..., Page]) -> None:
    page = show(build_report(model, NASTY))
    assert page.locator("h1").text_content() == NASTY
    assert page.locator("img").count() == 0


def check_sliders(page: Page, logits: torch.Tensor) -> None:
    """Bars, entropy and count equal shared/sampling.py's at every setting."""
    best = logits.topk(12).indices
    for values in SETTINGS:
        move_sliders(page, values)
        expected = filtered_probabilities(logits, *values)
        shown = page.eval_on_selector_all("#bars li:not(.rest)", "rows => rows.map(r => Number(r.dataset.p))")
        assert shown == pytest.approx(expected[best].tolist(), abs=1e-3), values
        statistics = page.locator("#next-statistics")
        assert float(statistics.get_attribute("data-entropy") or "nan") == pytest.approx(entropy(expected), abs=0.02)
        kept = int((expected > 0).sum())
        assert int(statistics.get_attribute("data-kept") or -1) == pytest.approx(kept, rel=0.02, abs=1), values


@pytest.mark.real
def test_sliders_compute_what_the_sampler_draws_from(model: LoadedModel, show: Callable[..., Page]) -> None:
    logits = logits_of(model, prompt_ids(model.tokenizer, "The capital of France"))[-1]
    page = show(build_report(model, "The capital of France"))
    check_sliders(page, logits)
    command = page.locator("#next-command").text_content() or ""
    assert command.endswith("--temperature 1.4 --top-k 40 --top-p 0.85 --min-p 0.05")
    page.click("#reset")
    assert float(page.locator("#temperature").input_value()) == 1


@pytest.mark.real
def test_choosing_heads_and_cells(model: LoadedModel, show: Callable[..., Page]) -> None:
    page = show(build_report(model, "The cat sat on the mat"))
    maps = attention(model, prompt_ids(model.tokenizer, "The cat sat on the mat")).maps

    def status() -> str:
        return page.locator("#head-status").text_content() or ""

    def cells() -> list[str]:
        found: list[str] = page.eval_on_selector_all("#map .cell", "all => all.map(c => c.getAttribute('class'))")
        return found

    page.select_option("#layer", "0")
    page.select_option("#head", "1")
    before = cells()
    expected = [f"cell v{int(round(w * 255) / 255 * 32 + 0.5)}" for row in maps[0][1] for w in row]
    assert before == expected
    page.focus("#sheet")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert status().startswith("Layer 1, head 2:")
    assert cells() != before
    assert (page.locator("#attention-command").text_content() or "").endswith("--layer 1 --head 2")
    page.click("#sheet", position={"x": 24 + 15, "y": 24 + 15})
    assert status().startswith("Layer 0, head 0:")

    page.hover("#map rect[data-i='2'][data-j='1']")
    assert f"{maps[0][0][2][1] * 100:.0f}"[:1] in (page.locator("#map-readout").text_content() or "")
    page.focus("#map")
    page.keyboard.press("ArrowLeft")
    assert "token 2 to token 0" in (page.locator("#map-readout").text_content() or "")

    page.click("#ablation-map rect[data-i='3'][data-j='2']")  # rows: heads, columns: layers
    assert status().startswith("Layer 2, head 3:")
    page.focus("#lens-box")
    page.keyboard.press("ArrowUp")
    assert "Layer 1, after" in (page.locator("#lens-readout").text_content() or "")


@pytest.mark.real
def test_a_token_is_followed_everywhere(model: LoadedModel, show: Callable[..., Page]) -> None:
    page = show(build_report(model, "The cat sat"))
    page.hover("#chips [data-t='1']")
    for place in ("#chips", "#next-context", "#map", "#strip", "#lens-box"):
        assert page.locator(f"{place} .hot").first.get_attribute("data-t") == "1", place
    page.mouse.move(0, 0)
    last = str(len(prompt_ids(model.tokenizer, "The cat sat")) - 1)
    assert page.locator("#chips .hot").get_attribute("data-t") == last  # only pointed at, not kept
    page.focus("#chips [data-t='0']")
    page.keyboard.press("ArrowRight")
    assert page.locator("#chips .hot").get_attribute("data-t") == "1"
    page.keyboard.press("Enter")
    assert page.locator("#chips [aria-pressed=true]").get_attribute("data-t") == "1"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.real
@pytest.mark.parametrize("width", [320, 390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_sideways_scrolling(model: LoadedModel, show: Callable[..., Page], width: int, scheme: str) -> None:
    text = "x" * 40 + " The cat sat on the mat because it was warm"
    page = show(build_report(model, text), viewport={"width": width, "height": 700}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.real
def test_the_real_model_through_the_command_line(show: Callable[..., Page], tmp_path: Path) -> None:
    path, text = tmp_path / "report.html", "The capital of Italy is Rome, and of Spain Madrid. The capital of France is"
    command = [sys.executable, "-m", "step1_foundations", "report", text, "-m", "smollm2-135m", "-o", str(path)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == path.stat().st_size < 3_000_000
    page = path.read_text()
    data = embedded(page)
    assert len(data["tokens"]["list"]) >= 16  # 3 MB is the promise for 16 tokens; this page takes a tenth of it
    assert data["next"]["pieces"][0] == data["ablation"]["target"] == " Paris"
    assert data["continuation"]["tokens"][0]["piece"] == " Paris"
    model = load("smollm2-135m", quiet=True)
    check_sliders(show(page), logits_of(model, prompt_ids(model.tokenizer, text))[-1])
