"""The report page: whole, self-contained, safe with any text, and right in the browser.

python -m pytest tests/step4/test_step4_report.py -m "not real"     # the page as a file
python -m pytest tests/step4/test_step4_report.py -m real           # in headless Chromium
"""

import functools
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness_world import KNOWS, install, served_models, write_training
from playwright.sync_api import Page

from shared.errors import UserError
from step4_finetune.columns import adapter_column, base_columns, measure
from step4_finetune.record import read_record, record, record_regressions
from step4_finetune.report import colours, parts_of, render, write_report

NASTY = "</title></style><script>alert(1)</script> {{style}} & <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two tasks, four columns, the training runs behind two of them, and general ability."""
    from step4_finetune.evaluation.regressions import Change

    folder = tmp_path_factory.mktemp("out")
    for name in ("sft", "pairs"):
        (folder / "data").mkdir(exist_ok=True)
        (folder / f"data/{name}.jsonl").write_text(f"{name}\n")
    sft = write_training(folder / "tools_sft", folder / "data/sft.jsonl")
    dpo = write_training(folder / "tools_dpo", folder / "data/pairs.jsonl", sft)
    with pytest.MonkeyPatch.context() as patch, served_models() as served:
        import shared.endpoint

        install(patch, served, folder)
        with shared.endpoint.connect() as endpoint:
            tuned = [adapter_column(endpoint, sft, "SFT"), adapter_column(endpoint, dpo, "SFT + DPO")]
            for task in ("bfcl", "relevant"):
                columns = [*base_columns(endpoint, task, ["none", "best"], "base"), *tuned]
                record(folder / "eval", task, [measure(endpoint, c, task, folder / "eval") for c in columns])
        lost = Change("piqa", 100, 60.0, 55.0, -5.0, (-9.0, -1.0), 0.02)
        prose = Change("perplexity", 100, 30.0, 31.0, 3.3, (1.0, 5.0), 0.01)
        record_regressions(folder / "eval", "SFT", str(sft), "w", [lost, prose])
        yield folder / "eval"


@pytest.fixture(scope="module")
def page(evaluation: Path) -> str:
    write_report(evaluation, evaluation / "report.html")
    return (evaluation / "report.html").read_text()


def pictures(page: str) -> list[ET.Element]:
    """Every SVG of the page, parsed: what is not well-formed fails here."""
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def words(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.split("</style>")[1]).split())


def test_the_page_has_every_part(page: str) -> None:
    text = words(page)
    for title in ("Before and after", "General ability", "Training", "Is a probability worth its name?", "Fixed and"):
        assert title in text
    # 2 tasks × (bars, AUROC) + 2 runs × (loss, gradient) + rewards of DPO + 2 reliability plots
    assert len(pictures(page)) == 4 + 4 + 1 + 2
    assert "SFT + DPO has 87.5 % of simple_python right, base, best prompt 25.0 %: +62.5 points" in text
    assert "7 pairs, 30 steps, 1.5 minutes" in text
    assert "-5.0 [-9.0, -1.0]" in text
    assert 'class="bad">-5.0' in page


def test_bars_and_whiskers_say_what_was_measured(page: str, evaluation: Path) -> None:
    entry = read_record(evaluation)["tasks"]["bfcl"][2]
    low, high = entry["row"]["simple_python"]["ci95"]
    assert entry["row"]["simple_python"]["value"] == 100 * KNOWS["SFT"][0] / 8
    assert f"<title>SFT, simple_python: 75.0 [{low:.1f}, {high:.1f}] %</title>" in page


def test_fixed_items_stand_side_by_side_and_escaped(page: str) -> None:
    assert page.count("<details>") == page.count('<div class="sides">') > 10
    assert "How is the weather in Rome &lt;/script&gt;&lt;img src=x&gt; today?" in page
    assert "<img" not in page
    assert "<script" not in page
    assert "wrong value" in page
    assert "Fixed: 12" in page


def test_any_text_stays_text(evaluation: Path) -> None:
    document = read_record(evaluation)
    document["regressions"] = {NASTY: document["regressions"]["SFT"]}
    document["made"]["git_revision"] = NASTY
    shown = render(document, parts_of(evaluation))
    assert "<script" not in shown
    assert "<img" not in shown
    assert shown.count("{{style}}") == 2  # not filled in


def test_the_page_names_nothing_outside_and_no_path(page: str, evaluation: Path) -> None:
    assert re.findall(r"https?://", page) == []
    assert "default-src 'none'" in page
    assert str(evaluation.parent) not in page
    assert len(page) < 200_000


def test_only_a_base_model_is_a_page_too(evaluation: Path) -> None:
    document = read_record(evaluation)
    document["regressions"] = {}
    parts = [type(part)(part.name, part.task, part.entries[:1], part.judged[:1], []) for part in parts_of(evaluation)]
    shown = render(document, parts)
    assert "no adapter stands against it yet" in shown
    assert 'id="training"' not in shown
    assert 'href="#training"' not in shown


def test_a_column_that_only_ranks_hides_no_other_and_every_column_has_its_colour(evaluation: Path) -> None:
    document, part = read_record(evaluation), parts_of(evaluation)[1]
    (group,) = [name for name, cell in part.entries[0].row.items() if cell.get("unit") == "%"]
    similarity = replace(part.entries[0], label="similarity", row={"AUROC": part.entries[0].row["AUROC"]})
    more = replace(part, entries=[similarity, *part.entries], judged=[part.judged[0], *part.judged])
    shown = render(document, [more])
    for entry in part.entries:
        assert f"<title>{entry.label}, {group}: " in shown
    assert f"<title>similarity, {group}: " not in shown
    assert len(set(colours([more]).values())) == len(more.entries) == 5


def test_training_that_is_gone_is_said(evaluation: Path, tmp_path: Path) -> None:
    shutil.copytree(evaluation, tmp_path / "eval")
    path = tmp_path / "eval/evaluation.json"
    path.write_text(path.read_text().replace("tools_sft/adapter", "gone/adapter"))
    with pytest.MonkeyPatch.context() as patch:
        from harness_world import use_tasks

        use_tasks(patch)
        write_report(tmp_path / "eval", tmp_path / "r.html")
    assert "SFT: the figures of its training are not on this disk" in (tmp_path / "r.html").read_text()


def test_missing_answers_and_unwritable_places_are_named(evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no evaluation"):
        write_report(tmp_path, tmp_path / "r.html")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(evaluation, Path("/dev/null/r.html"))
    shutil.copytree(evaluation, tmp_path / "eval")
    (tmp_path / "eval/evaluation.json").write_text("{}")
    with pytest.raises(UserError, match="is not the record of an evaluation"):
        write_report(tmp_path / "eval", tmp_path / "r.html")


# -- in the browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def show(page: str, open_page: Callable[..., Page]) -> Callable[..., Page]:
    """Open the page. `page` comes first: Playwright keeps an event loop in this thread, and measuring starts one."""
    return functools.partial(open_page, page)


@pytest.mark.real
@pytest.mark.parametrize("width", [320, 390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_sideways_scrolling(show: Callable[..., Page], width: int, scheme: str) -> None:
    page = show(viewport={"width": width, "height": 700}, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.real
def test_light_and_dark_differ_and_both_can_be_read(show: Callable[..., Page]) -> None:
    """Text against its ground, by WCAG's contrast; 4.5 is what it asks of small text."""
    contrast = """() => {
      const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const light = (c) => { const [r, g, b] = c.match(/\\d+/g).map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ground = light(getComputedStyle(document.body).backgroundColor);
      return ['body', '.note', '.overline', '.good', '.bad', 'a'].map((s) => {
        const ink = light(getComputedStyle(document.querySelector(s)).color);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05); });
    }"""
    grounds = set()
    for scheme in ("light", "dark"):
        page = show(color_scheme=scheme)
        assert min(page.evaluate(contrast)) >= 4.5
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


@pytest.mark.real
def test_items_open_with_the_keyboard_and_links_lead_to_their_sections(show: Callable[..., Page]) -> None:
    page = show()
    first = page.locator("details").first
    assert not first.locator(".sides").is_visible()
    first.locator("summary").focus()
    page.keyboard.press("Enter")
    assert first.locator(".side").count() == 2
    assert first.locator(".sides").is_visible()
    assert "right" in (first.locator(".side").nth(1).text_content() or "")
    for link in page.locator("nav a").all():
        target = link.get_attribute("href") or ""
        assert page.locator(target).count() == 1


@pytest.mark.real
def test_a_bar_is_as_long_as_its_value(show: Callable[..., Page], evaluation: Path) -> None:
    page = show()
    lengths = page.eval_on_selector_all("#results svg:first-of-type .bar", "all => all.map(b => b.getBBox().width)")
    entries = read_record(evaluation)["tasks"]["bfcl"]
    values = [entry["row"]["simple_python"]["value"] for entry in entries]
    assert [length / max(lengths) * 100 for length in lengths[:4]] == pytest.approx(values, abs=0.1)
    assert json.dumps(values) == "[12.5, 25.0, 75.0, 87.5]"
