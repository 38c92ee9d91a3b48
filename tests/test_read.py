"""The book: links that lead to lines and back, a checker that finds dead ones, and the whole in a browser.

python -m pytest tests/test_read.py -m "not real"
python -m pytest tests/test_read.py -m real              # builds it (a minute) and reads it in headless Chromium
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from scripts.read.__main__ import build, navigation, repository_files
from scripts.read.docstrings import markdown
from scripts.read.links import broken_links
from scripts.read.listing import EXCERPT, extent, listing
from scripts.read.pages import all_pages, is_lesson, lesson_page
from shared.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CODE = '"""Adds. See [it](x.md), 2**3 and <b>."""\n\nimport os\n\n\ndef add(a, b):\n    """Add."""\n    return a + b\n'
LESSON = """# Step 1: adding

Read [`add`](add.py#L6), [all of it](add.py) and `[not](a link)`, not [the web](https://example.org/x#L1).

## Broken *over* lines

Here is [a label that goes on
in the next line](add.py#L6-L8), [the data](data/) and [the other](../README.md#what).

![curve](curve.png)

```
[no](link.py#L1)
# no heading
```

<!-- results: step1_x/data/rows.json -->
| a |
| --- |
| 1 |
<!-- /results -->
"""


def book(lesson: str = LESSON, **more: str) -> dict[str, str]:
    """The pages of a small repository."""
    texts = {"README.md": "# All\n\n## What\n", "step1_x/README.md": lesson, "step1_x/add.py": CODE} | more
    texts |= {"step1_x/data/rows.json": "{}\n", "step1_x/prompts/p.md": "Be [nice](nowhere.md).\n"}
    return all_pages(texts, {*texts, "step1_x/curve.png"}, {"step1_x"})


# -- pages -------------------------------------------------------------------------------------------------------------


def test_links_to_files_lead_to_their_pages() -> None:
    page = book()["step1_x/README.md"]
    assert "[`add`](../code/step1_x/add.py.md#L6){#from-1}" in page
    assert "[all of it](../code/step1_x/add.py.md){#from-2}" in page
    assert "in the next line](../code/step1_x/add.py.md#L6){#from-3}" in page
    assert "[the data](../code/step1_x/data/index.md){#from-4}" in page
    for kept in (
        "`[not](a link)`",
        "(https://example.org/x#L1)",
        "(../README.md#what)",
        "(curve.png)",
        "[no](link.py#L1)",
    ):
        assert kept in page
    assert "[step1_x/data/rows.json](../code/step1_x/data/rows.json.md)" in page  # a table's numbers, beside it


def test_a_page_leads_back_to_the_very_places() -> None:
    page = book()["code/step1_x/add.py.md"]
    about = page.split("**Read about it in**")[1].split("## Source")[0]
    assert "- [Step 1: adding](../../step1_x/README.md#from-1) ([line 6](#L6))" in about
    assert "- [Step 1: adding › Broken over lines](../../step1_x/README.md#from-3) ([line 6](#L6))" in about
    line = re.search(r'<span class="line" id="L6">.*', page)
    assert line is not None
    assert 'class="back" href="../../step1_x/index.html#from-1" title="Step 1: adding"' in line[0]
    assert page.count('class="back"') == 1
    assert "from-4" in book()["code/step1_x/data/index.md"]  # folders, too


def test_a_page_begins_with_what_the_file_is_and_ends_with_its_reference() -> None:
    page = book()["code/step1_x/add.py.md"]
    order = [
        "# add.py",
        r"Adds. See \[it](x.md), 2\*\*3 and &lt;b>.",
        "Read about it",
        "## Source",
        "::: step1_x.add.add",
    ]
    assert [page.index(part) for part in order] == sorted(page.index(part) for part in order)
    assert ":::" not in book(**{"tests/test_add.py": CODE})["code/tests/test_add.py.md"]  # nobody imports a test


def test_the_code_of_a_section_follows_it() -> None:
    first, second = book()["step1_x/README.md"].split("## Broken *over* lines")
    for section in (first, second):
        assert section.count("<details") == 1
        assert "<code>add</code> in step1_x/add.py, lines 6 to 8" in section
        assert 'href="../code/step1_x/add.py.html#L8"' in section


def test_every_file_and_folder_has_a_page() -> None:
    pages = book()
    assert "code/step1_x/prompts/p.md.md" in pages  # a prompt is a file, not a lesson
    assert "- [`add.py`](add.py.md): Adds." in pages["code/step1_x/index.md"]
    assert "- [`step1_x/`](step1_x/index.md)" in pages["code/index.md"]
    contents = navigation(pages)
    assert contents[1] == {"Lessons": ["step1_x/README.md"]}
    assert contents[3] == {"Code": ["code/index.md", {"step1_x": "code/step1_x/index.md"}]}


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("gone.py", "step1_x/gone.py is not in"),
        ("add.py#L9", "a line that"),
        ("data#L1", "a line that"),
        ("../../up.md", "is not in"),
    ],
)
def test_a_link_that_leads_nowhere_is_named(link: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        book(f"# A\n\n[it]({link})\n")


def test_a_listing_is_the_file() -> None:
    text = 'x = "<b>&amp;"\n\n\n    # `_a_` *b*\n'
    page = listing("a.py", text, back={1: ('a"b', "A › <b>")})
    shown = re.sub(r"<[^>]+>", "", page.replace(">↩<", "><"))
    assert shown.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&") == text + "\n"
    assert re.findall(r' id="(L\d+)"', page) == ["L1", "L2", "L3", "L4"]
    assert "\n\n" not in page  # Markdown would end the block there
    assert 'href="a&quot;b"' in page


def test_how_far_an_excerpt_goes() -> None:
    lines = ["@decorator", "def f():", "    a = 1", "    return a", "", "B = [", "  1,", "]", *["pass"] * 100]
    assert extent("a.py", lines, 2) == 4
    assert extent("a.py", lines, 6) == 8
    assert extent("a.py", lines, 5) == 9  # nothing begins there
    assert extent("a.toml", lines, 106) == 108
    assert extent("a.py", ["class A:", *["    a = 1"] * 200], 1) == EXCERPT


def test_docstrings_are_text() -> None:
    text = "Shapes [a][b], `[c]`.\n\n    python -m x <y>\n\nrankings: ids,\nbest first.\nk, j: rank.\nOther: text."
    shown = markdown(text, ["rankings", "k", "j"])
    assert r"\[a]\[b], `[c]`" in shown
    assert "    python -m x <y>" in shown
    assert "- `rankings`: ids,\nbest first.\n- `k, j`: rank.\nOther: text." in shown


def test_this_repository_makes_a_book() -> None:
    texts, files = repository_files(ROOT)
    assert {"shared/engine.py", "Makefile", ".ci/run"} <= texts.keys()
    mentions = [mention for path in filter(is_lesson, texts) for mention in lesson_page(path, texts, files)[1]]
    assert len(mentions) > 100
    assert not [path for path in files if path.endswith(".safetensors")]


# -- links -------------------------------------------------------------------------------------------------------------


def test_dead_links_and_outside_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">A</h1> <a href="#top">a</a> <a href="sub/b.html#caf%C3%A9" title="x > y">b</a> <img src="c.png">'
        '<a href="https://example.org">web</a> <code>&lt;a href="no.html"&gt;</code><script>"<a href=js.html>"</script>'
        '<link href="https://example.org/a.css"> <a href="#gone">c</a> <a href="sub/">d</a> <a href="/b.html">e</a>'
    )
    (tmp_path / "sub" / "b.html").write_text(
        '<a name="café"></a> <a href="../index.html#top">up</a><a href=x.html>f</a>'
    )
    wrong, count = broken_links(tmp_path)
    assert sorted(wrong) == [
        "index.html: #gone: no such anchor",
        "index.html: /b.html: no such file",
        "index.html: c.png: no such file",
        "index.html: loads https://example.org/a.css from outside",
        "index.html: sub/: no such file",
        "sub/b.html: x.html: no such file",
    ]
    assert count == 8


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is no book"):
        build(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


# -- in the browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole book, built as `make read` does."""
    folder = tmp_path_factory.mktemp("read") / "book"
    command = [sys.executable, "-m", "scripts.read", "--output", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == (folder / "index.html").as_uri()
    return folder


@pytest.fixture(params=[1280, 390])
def show(request: pytest.FixtureRequest, browser: Browser, site: Path) -> Iterator[Callable[[str], Page]]:
    """Open a page of the book on a desktop or a phone; nothing may complain or load anything but files."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": request.param, "height": 800}, color_scheme="light")
    page = context.new_page()
    page.on("console", lambda m: complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    # What is aborted was still on its way when the page was left.
    page.on("requestfailed", lambda r: None if r.failure == "net::ERR_ABORTED" else complaints.append(r.url))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url))

    def open_page(name: str) -> Page:
        page.goto((site / name).as_uri())
        return page

    yield open_page
    context.close()
    assert complaints == []


@pytest.mark.real
@pytest.mark.timeout(600)
def test_no_page_scrolls_sideways(show: Callable[[str], Page], site: Path) -> None:
    pages = [path.relative_to(site).as_posix() for path in site.rglob("*.html")]
    lessons = [name for name in pages if not name.startswith("code/")]
    assert len(lessons) > 8
    for name in [
        *lessons,
        "code/index.html",
        "code/shared/index.html",
        "code/shared/openai_app.py.html",
        "code/Makefile.html",
    ]:
        page = show(name)
        width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1], name


@pytest.mark.real
@pytest.mark.timeout(600)
def test_search_finds_a_concept(show: Callable[[str], Page]) -> None:
    page = show("index.html")
    if page.viewport_size and page.viewport_size["width"] < 900:
        page.click("label.md-header__button[for=__search]")
    page.locator(".md-search__input").press_sequentially("KV cache")
    expect(page.locator(".md-search-result__meta")).to_contain_text("matching documents")
    found = page.locator(".md-search-result__link", has_text=re.compile("KV cache")).first
    found.click()
    expect(page.locator("article")).to_contain_text("KV cache")
    assert not page.url.endswith("/index.html")


@pytest.mark.real
@pytest.mark.timeout(600)
def test_from_a_concept_to_its_line_and_back(show: Callable[[str], Page]) -> None:
    page = show("step5_serving/index.html")
    link = page.locator("article a[id^=from-][href*='#L']").first
    place, text = link.get_attribute("id"), link.inner_text()
    link.click()
    line = page.locator(".line:target")
    expect(line).to_be_in_viewport()
    expect(line).to_contain_text(text)
    line.locator(".back").click()
    expect(page.locator("a:target")).to_be_in_viewport()
    assert page.url.endswith(f"step5_serving/index.html#{place}")
    excerpt = page.locator("details.excerpt").first  # the same code, in the lesson
    excerpt.locator("summary").click()
    expect(excerpt.locator(".line").first).to_contain_text(text)


@pytest.mark.real
@pytest.mark.timeout(600)
def test_the_lines_shown_are_the_file(show: Callable[[str], Page]) -> None:
    page = show("code/shared/engine.py.html")
    shown = page.eval_on_selector_all(".line", "all => all.map(l => l.textContent.replace('↩', '')).join('')")
    assert shown == (ROOT / "shared/engine.py").read_text()
    signature = page.locator(".doc-signature").first
    expect(signature).to_be_attached()


@pytest.mark.real
@pytest.mark.timeout(600)
def test_dark_and_light(show: Callable[[str], Page]) -> None:
    page = show("step1_foundations/index.html")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("label.md-header__button[title=Dark]:visible")
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "slate")
    assert page.evaluate(background) != light
    page = show("code/shared/engine.py.html")  # the choice stays
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "slate")
