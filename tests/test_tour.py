"""`make tour`: the page is whole and safe with any text, the terminal stays within 80 columns, failures are findings.

python -m pytest tests/test_tour.py -m "not real"     # findings made by hand, chapters made up
python -m pytest tests/test_tour.py -m real           # the page in headless Chromium
"""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from scripts.tour import __main__ as program
from scripts.tour.__main__ import CHAPTERS, read_findings, tour
from scripts.tour.findings import Chapter, Facts, Found, Picture, Stage, Table, Talk, Text, Verdict
from scripts.tour.narrator import Narrator
from scripts.tour.pictures import Span, bars, heat, roles, timeline
from scripts.tour.report import render
from shared.errors import UserError
from shared.terminal import run

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[1]
NASTY = "</title></style><script>alert(1)</script> {{style}} & <img src=x onerror=alert(1)> \x1b[2J 你好世界🙂"
LONG = "x" * 300


def blocks() -> list[Any]:
    """One of every kind, with texts that would break a careless page or terminal."""
    picture = bars([(NASTY, 0.8, "80 %"), ("b", 0.0, "0 %")], NASTY)
    return [
        Text(NASTY),
        Text(f"{LONG} and words, and words"),
        Verdict(True, "It worked."),
        Verdict(False, NASTY),
        Talk([("you", NASTY), (NASTY, f"{NASTY} {LONG}")]),
        Facts([("speed", "185 tok/s", NASTY), (LONG, LONG, "")]),
        Table(NASTY, ["", "one", NASTY, "two", "three", "four"], [[NASTY, LONG, "✓", "1", "2", "3"], ["a"] * 6]),
        Picture(NASTY, picture, NASTY, legend=[(NASTY, 1)]),
        Picture(
            "A map",
            heat([[0.5, -2.0], [0.0, 1.0]], "map", x=["a", NASTY], y=["c", "d"], above=2, below=5),
            "w",
        ),
        Picture("Heads", roles([[0, 1], [2, 0]] * 15, ["mixed", "sink", NASTY], "heads"), "words"),
        Picture("Load", timeline([Span(NASTY, 0, 2, 0.5), Span("b", 1, 3, 1.1), Span("c", 2.5, 4)], "load"), "words"),
        Picture(
            "Trace", timeline([Span("POST /v1", 0, 0.2), Span(NASTY, 0.1, 0.2, depth=1)], "t", waterfall=True), "words"
        ),
    ]


def found(name: str, error: str = "") -> Found:
    made = {"date": "2026-11-26 18:00", "revision": "abc1234", "machine": NASTY}
    return Found(name, "tiny", made, 12.3, error, blocks())


@pytest.fixture
def page() -> str:
    """All chapters but the last; one of them failed."""
    return render(CHAPTERS, {c.name: found(c.name, NASTY if c is CHAPTERS[2] else "") for c in CHAPTERS[:-1]})


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_has_every_chapter_and_says_what_failed_and_what_is_missing(page: str) -> None:
    for chapter in CHAPTERS:
        assert f'<section id="{chapter.name}"' in page
        assert f'<a href="#{chapter.name}">' in page
    assert "<b>3 of 5</b>" in page
    assert f"Failed: {escape(CHAPTERS[2].title)}. Not run yet: {CHAPTERS[4].title}." in page
    assert page.count("This chapter failed") == 1
    assert page.count("<svg") == 5 * 4


def test_the_page_is_self_contained(page: str) -> None:
    assert re.findall(r"https?://[^\s\"'<]+", re.sub(r"<code>.*?</code>", "", page)) == []  # commands may name one
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", page) == []
    assert not re.search(r"@import|url\(", page)
    assert "default-src 'none'" in page
    assert str(ROOT) not in page


def test_text_stays_text(page: str) -> None:
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("</style>") == 1
    assert "{{style}}" in page  # it was a text, and is one still


def test_findings_survive_the_file(tmp_path: Path) -> None:
    before = found("look", "why")
    path = tmp_path / "tour.json"
    path.write_text(json.dumps([before.as_json()]))
    after = read_findings(path)["look"]
    assert after.as_json() == json.loads(json.dumps(before.as_json()))
    assert render(CHAPTERS, {"look": after}) == render(CHAPTERS, {"look": before})
    for damaged in ("", "[", "{}", '[{"name": "look"}]', '[{"name": "look", "blocks": [{"kind": "Page"}]}]', "[1]"):
        path.write_text(damaged)
        assert read_findings(path) == {}


# -- the terminal ------------------------------------------------------------------------------------------------------


def narrator(out: io.StringIO, errors: io.StringIO | None = None, width: int = 200) -> Narrator:
    return Narrator(Console(file=out, width=width), Console(file=errors or io.StringIO(), width=width))


@pytest.mark.parametrize("width", [200, 80, 60])
def test_the_narrator_stays_within_80_columns(width: int) -> None:
    out, errors = io.StringIO(), io.StringIO()
    speaker = narrator(out, errors, width)
    for number, chapter in enumerate(CHAPTERS, 1):
        speaker.begin(chapter, number, len(CHAPTERS))
    for block in blocks():
        speaker.block(block)
    speaker.remark(f"{NASTY} {LONG}")
    speaker.end(found("look", NASTY))
    for text in (out.getvalue(), errors.getvalue()):
        assert "\x1b" not in text
        assert max(cell_len(line) for line in text.splitlines()) <= min(80, width)
    for words in ("It worked.", "185 tok/s", "see the page", "This chapter failed"):
        assert words in out.getvalue()


def test_on_a_terminal_it_has_colours(terminal: Any) -> None:
    Narrator(Console(file=terminal), Console(file=terminal)).block(Verdict(True, "It worked."))
    assert "\x1b[1;38;" in terminal.getvalue()
    assert terminal.screen()[1] == "✓ It worked."


# -- the run -----------------------------------------------------------------------------------------------------------


def chapter(name: str, perform: Callable[[Stage], None]) -> Chapter:
    return Chapter(name, f"About {name}", ["Prose."], ["true"], perform)


class Made:
    """Three chapters that count their runs; `broken` fails while `error` is set."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.error: BaseException | None = None
        self.chapters = [chapter("one", self._run), chapter("broken", self._break), chapter("three", self._run)]

    def _run(self, stage: Stage) -> None:
        self.ran.append(stage.name)
        stage.show(Text(f"run {len(self.ran)}"))

    def _break(self, stage: Stage) -> None:
        self._run(stage)
        stage.folder.mkdir(parents=True, exist_ok=True)
        (stage.folder / "half").touch()
        if self.error:
            raise self.error

    def tour(self, folder: Path, only: str | None = None, model: str = "tiny") -> list[str]:
        """Go; return the chapters that were run."""
        self.ran.clear()
        tour(self.chapters, folder, narrator(io.StringIO()), model, only)
        return self.ran


def test_a_failed_chapter_is_reported_and_the_tour_goes_on(tmp_path: Path) -> None:
    made = Made()
    made.error = UserError("no disk", exit_code=1)
    assert made.tour(tmp_path) == ["one", "broken", "three"]
    page = (tmp_path / "report.html").read_text()
    assert "This chapter failed: no disk" in page
    assert page.index("run 2") < page.index("no disk")  # what it found before is kept
    assert not (tmp_path / "broken/error.txt").exists()
    made.error = ZeroDivisionError("a bug")
    assert made.tour(tmp_path) == ["broken"]  # the same command tries again what failed
    assert "ZeroDivisionError: a bug" in (tmp_path / "report.html").read_text()
    assert "Traceback" in (tmp_path / "broken/error.txt").read_text()


def test_ctrl_c_loses_no_finished_chapter(tmp_path: Path) -> None:
    made = Made()
    made.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        made.tour(tmp_path)
    assert list(read_findings(tmp_path / "tour.json")) == ["one"]
    assert "Not run yet: About broken, About three." in (tmp_path / "report.html").read_text()
    made.error = None
    assert made.tour(tmp_path) == ["broken", "three"]
    assert (tmp_path / "broken/half").exists()  # an interrupted chapter finds what it had
    assert made.tour(tmp_path) == ["one", "broken", "three"]  # complete: once more from the beginning
    assert made.tour(tmp_path, model="another") == ["one", "broken", "three"]


def test_one_chapter_again_keeps_the_others(tmp_path: Path) -> None:
    made = Made()
    made.tour(tmp_path)
    before = read_findings(tmp_path / "tour.json")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "old").touch()
    assert made.tour(tmp_path, only="three") == ["three"]
    assert not (tmp_path / "three" / "old").exists()  # repeated, not continued
    after = read_findings(tmp_path / "tour.json")
    assert list(after) == ["one", "broken", "three"]
    assert after["one"] == before["one"]
    with pytest.raises(UserError, match="--only 'two': use one of one, broken, three"):
        made.tour(tmp_path, only="two")


def test_exit_codes_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made()
    monkeypatch.setattr(program, "CHAPTERS", made.chapters)
    program.main(None, tmp_path, True)
    assert [document["name"] for document in json.loads(capsys.readouterr().out)] == ["one", "broken", "three"]
    made.error = UserError("no disk")
    with pytest.raises(SystemExit) as ended:
        run(lambda: program.main(None, tmp_path, False))
    assert ended.value.code == 1
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    from shared.config import settings

    settings.cache_clear()
    with pytest.raises(UserError, match="unset OPENAI_BASE_URL"):
        program.main(None, tmp_path, False)


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder with --output"):
        Made().tour(tmp_path / "file")


def test_help_has_examples() -> None:
    done = subprocess.run([sys.executable, "-m", "scripts.tour", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert "Example: python -m scripts.tour --only training" in done.stdout
    for made in CHAPTERS:
        assert made.name in done.stdout


# -- in the browser ----------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_chromium(page: str, open_page: "Callable[..., Page]", width: int, scheme: str) -> None:
    """No sideways scrolling, nothing cut off, text readable against its ground, nasty text still text."""
    opened = open_page(page, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.locator("section").count() == len(CHAPTERS)
    assert opened.locator("script, img").count() == 0
    assert NASTY.replace("\x1b", "") in (opened.locator("#look .show p").first.text_content() or "").replace("\x1b", "")
    colours = opened.evaluate("""() => {
        const of = (node) => getComputedStyle(node), body = of(document.body);
        return [body.backgroundColor, body.color, of(document.querySelector('.note')).color];
    }""")
    ground, ink, muted = (luminance(colour) for colour in colours)
    assert (ground > 0.5) == (scheme == "light")
    assert contrast(ground, ink) > 7
    assert contrast(ground, muted) > 4.5
    for picture in opened.locator("svg").all():
        box = picture.bounding_box()
        assert box is not None
        assert box["width"] > 20
        assert box["height"] > 10
    opened.click('nav a[href="#training"]')
    assert opened.evaluate("location.hash") == "#training"


@pytest.mark.real
def test_the_first_chapter_with_the_real_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.tour", "--only", "look", "--output", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (document,) = json.loads(done.stdout)
    pictures = [block for block in document["blocks"] if block["kind"] == "Picture"]
    assert len(pictures) == 4
    assert "Paris" in pictures[0]["words"]
    assert f'<section id="{document["name"]}"' in (tmp_path / "report.html").read_text()


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(1, 2, 3)" (WCAG 2)."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [n / 12.92 if n <= 0.04045 else ((n + 0.055) / 1.055) ** 2.4 for n in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
