"""What every report stands on: the frame keeps texts texts and asks for nothing, charts and files are whole.

python -m pytest tests/shared/test_report_pages.py -m "not real"     # pages as files
python -m pytest tests/shared/test_report_pages.py -m real           # in headless Chromium
"""

import errno
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from shared.errors import UserError
from shared.report.charts import Bar, Dot, Line, bars, curves, reliability
from shared.report.markup import legend, section, table
from shared.report.page import page, save

ROOT = Path(__file__).resolve().parents[2]
NASTY = "</title></style></script><script>alert(1)</script> {{style}} \"' & <img src=x onerror=alert(1)> \u2028 你好🙂"


def a_page(**parts: Any) -> str:
    """A page with everything that the frame and the pieces offer, every text of it nasty."""
    chart = bars([Bar(NASTY, NASTY, number, 50.0, (25.0, 75.0)) for number in range(6)], 100, "%")
    show = legend([(NASTY, 1)]) + table([escape(NASTY)], [[escape(NASTY)]]) + f'<div class="scroll">{chart}</div>'
    show += '<p class="note">n = 4</p><p class="good">better</p><p class="bad">worse</p>'
    given: dict[str, Any] = {
        "title": NASTY,
        "overline": NASTY,
        "summary": "<b>It</b> helped.",
        "facts": [(NASTY, NASTY, NASTY), ("x" * 300, "x" * 300, "")],
        "sections": {"one": NASTY},
        "main": section("one", NASTY, ["<b>Prose.</b>"], show, [NASTY]),
        "footer": "<p>Made here.</p>",
    }
    return page(**given | parts)


def test_texts_stay_texts_and_markup_is_kept() -> None:
    made = a_page()
    assert "<script" not in made
    assert "<img" not in made
    assert made.count("</style>") == 1
    assert "<b>It</b> helped." in made
    assert made.count(escape(NASTY)) > 10
    assert set(re.findall(r"\{\{(\w+)\}\}", made)) == {"style"}  # the text's; all of the frame are filled


def test_a_page_without_a_script_may_run_none() -> None:
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src" in a_page()
    assert "script-src 'unsafe-inline'" in a_page(script="<script>1;</script>")


def test_a_page_names_nothing_outside() -> None:
    made = a_page()
    assert re.findall(r"https?://", made) == []
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", made) == []
    assert not re.search(r"@import|url\(", made)
    assert str(ROOT) not in made


def test_charts_survive_extreme_numbers() -> None:
    one = bars([Bar("a & b", "c<d", 0, 0.0, (0.0, 0.0)), Bar("x", "y", 1, 100.0, (97.0, 100.0))], 100, "%")
    flat = curves([Line("l", 2, [(1, 3.0)])], "Loss")
    wild = curves([Line("l", 2, [(1, 1e-9), (2, float("nan")), (3, 0.0), (4, 1e6)])], "Norm", log=True)
    below = curves([Line("l", 2, [(1, -0.5), (2, 0.25)])], "Rewards", zero=False, level=0.0)
    dot = reliability([Dot("c", 1, 0.0, 1.0, (0.2, 1.0), 1), Dot("c", 1, 1.0, 0.0, (0.0, 0.1), 500)])
    for svg in (one, flat, wild, below, dot):
        assert "nan" not in svg
        assert ET.fromstring(svg).get("aria-label")
    assert curves([Line("l", 2, [])], "Nothing") == ""


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file/report.html"):
        with pytest.raises(UserError, match="cannot be written .*; choose another file with --output"):
            save(path, "page")


def test_a_full_disk_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shared.report.page.atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "report.html", "page")


def test_kill_while_writing_leaves_a_whole_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    writer = (
        "import sys; from pathlib import Path; from shared.report.page import save\n"
        "pages = [c * 20_000_000 for c in 'ab']\n"
        "save(Path(sys.argv[1]), pages[0]); print('go', flush=True)\n"
        "while True:\n    for page in pages: save(Path(sys.argv[1]), page)\n"
    )
    for delay in (0.0, 0.013, 0.04, 0.09):
        with subprocess.Popen([sys.executable, "-c", writer, path], stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        content = path.read_text()
        assert content in ("a" * 20_000_000, "b" * 20_000_000)
    save(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]  # the dead writers' leftovers are gone


# -- in the browser ----------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_can_be_read_at_every_width_and_scheme(open_page: Callable[..., Page], width: int, scheme: str) -> None:
    """No sideways scrolling, and texts against their ground have the contrast that WCAG asks of small ones."""
    opened = open_page(a_page(), viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert opened.locator("h1").text_content() == NASTY
    assert opened.locator("script, img").count() == 0
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = opened.evaluate("""() => {
      const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const light = (c) => { const [r, g, b] = c.match(/\\d+/g).map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ground = light(getComputedStyle(document.body).backgroundColor);
      return ['body', '.note', '.overline', '.good', '.bad', 'a', 'nav a', '.facts dt', '.try b'].map((s) => {
        const ink = light(getComputedStyle(document.querySelector(s)).color);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05); });
    }""")
    assert min(contrasts) >= 4.5
    marks = opened.eval_on_selector_all("svg .bar", "all => all.map(bar => getComputedStyle(bar).fill)")
    assert len(set(marks)) == 6  # c0 to c5
