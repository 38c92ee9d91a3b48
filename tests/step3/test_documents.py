"""step3_rag/formats.py and documents.py: what is read from each format, and what is said about the rest.

python -m pytest tests/step3/test_documents.py
"""

import os
import sys
import time
from pathlib import Path

import pytest
from collections_on_disk import make_pdf

from shared.errors import UserError
from step3_rag import documents
from step3_rag.documents import decode, find_files, parse, read_bytes, require_some
from step3_rag.formats import Document, UnreadableError, html, markdown, restructured_text, source_code


def titles(document: Document) -> list[tuple[int, str]]:
    return [(heading.level, heading.title) for heading in document.headings]


def spans(document: Document) -> list[str]:
    return [document.text[heading.start : heading.end] for heading in document.headings]


def test_markdown_headings_are_those_of_commonmark() -> None:
    text = (
        "---\r\ntitle: x\r\n---\r\n# One *two* `three` [four](u) #\r\ntext\r\n\r\nUnder\nlined\n---\n\n"
        "```\n# code\n```\n\n> # quoted\n\n- # listed\n\n    # indented code\n\n#hashtag\n\n### Deep\n"
    )
    document = markdown(text)
    assert document.text == text
    assert titles(document) == [(1, "One two three four"), (2, "Under lined"), (3, "Deep")]
    assert spans(document) == ["# One *two* `three` [four](u) #\r\n", "Under\nlined\n---\n", "### Deep\n"]


def test_markdown_with_unclosed_front_matter_is_quick() -> None:
    started = time.perf_counter()
    assert titles(markdown("---\r\n" + "a: b\r\n" * 5_000)) == []
    assert time.perf_counter() - started < 5


def test_restructured_text_titles() -> None:
    text = (
        "=====\nTitle\n=====\n\nIntro.\n\nSection\n-------\nBody.\n\nSub\n~~~\n\n----\n\nx\n\n"
        "Too long a title\n---\n\n    Indented\n    --------\n\nAnother\n-------\n\n"
        "=====  =====\nA      B\n=====  =====\n"
    )
    document = restructured_text(text)
    assert document.text == text
    assert titles(document) == [(1, "Title"), (2, "Section"), (3, "Sub"), (2, "Another")]
    assert spans(document)[0] == "=====\nTitle\n=====\n"


def test_restructured_text_agrees_with_docutils() -> None:
    docutils = pytest.importorskip("docutils.core", reason="docutils is not installed; it is only the reference here")
    from docutils import nodes

    text = "Top\n===\n\nA\n-\n\ntext\n\nBb\n--\n\nCc\n..\n\nmore\n\nDd\n--\n\nlast::\n\n    Ee\n    --\n"
    text = text.replace("A\n-\n", "Aa\n--\n")
    tree = docutils.publish_doctree(text, settings_overrides={"doctitle_xform": False})

    def depth(node: nodes.Node) -> int:
        return 0 if node.parent is None else depth(node.parent) + isinstance(node, nodes.section)

    expected = [(depth(section), section[0].astext()) for section in tree.findall(nodes.section)]
    assert titles(restructured_text(text)) == expected


def test_source_code_definitions() -> None:
    python = (
        "import os\n\n\nasync def fetch(url):\n    pass\n\n\n"
        "@dataclass\n@total\nclass A(B):\n    @property\n    def go(self):\n        definitely = 1\n"
    )
    document = source_code(python)
    assert titles(document) == [(1, "def fetch"), (1, "class A"), (2, "def go")]
    # The method names what follows, it does not divide.
    assert spans(document) == ["async def fetch(url):", "@dataclass\n@total\nclass A(B):", ""]
    rust = "pub(crate) fn main() {\n}\n\nimpl Display for X {\n    fn fmt(&self) {}\n}\n"
    assert titles(source_code(rust)) == [(1, "fn main"), (1, "impl Display for X"), (2, "fn fmt")]
    script = "export default async function load(a) {\n}\nexport class Page extends Base {\n"
    assert [title for _, title in titles(source_code(script))] == [
        "function load",
        "class Page extends Base",
    ]


def test_html_gives_the_visible_text_with_headings() -> None:
    page = (
        "<!doctype html><html><head><title>The  page</title><style>p{}</style><script>if (a<b) x()</script></head>"
        "<body><nav><h2>Menu</h2><a>Home</a></nav><h1>Fish &amp; <em>chips</em></h1><p>One\n  two<br>three</p>"
        "<ul><li>a<li>b</ul><table><tr><td>1<td>2</tr></table><pre>x\n  y</pre><h2></h2><h2>Last</h2>end&#0;"
    )
    document = html(page)
    assert document.text == "Fish & chips\n\nOne two\nthree\n\na\nb\n\n 1 2\n\nx\n  y\n\nLast\n\nend\ufffd"
    assert titles(document) == [(1, "Fish & chips"), (2, "Last")]
    assert spans(document) == ["Fish & chips", "Last"]


def test_html_without_h1_takes_the_title() -> None:
    document = html("<title> My &amp; page </title><h2>Part</h2><p>text")
    assert document.text == "My & page\n\nPart\n\ntext"
    assert titles(document) == [(1, "My & page"), (2, "Part")]
    assert spans(document) == ["My & page", "Part"]


def test_pdf_pages_and_bookmarks(tmp_path: Path) -> None:
    data = make_pdf(["First page\nIntro text", "Methods\nWe did things.", "More of it."], [("Methods", 1), ("Gone", 2)])
    document = parse(tmp_path / "a.pdf", data)
    assert document.text == "First page\nIntro text\n\nMethods\nWe did things.\n\nMore of it."
    assert [h.title for h in document.headings if h.page] == ["page 1", "page 2", "page 3"]
    methods, gone = [h for h in document.headings if not h.page]
    assert document.text[methods.start : methods.end] == "Methods"
    assert gone.start == gone.end == document.text.index("More")  # not on its page: it names, but does not divide
    assert parse(tmp_path / "misnamed.txt", data).text == document.text


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.md", b" \n\t", "is empty"),
        ("a.txt", b"GIF89a\0\0\1", "is binary"),
        ("a.txt", bytes(range(1, 256)) * 4, "is binary"),
        ("a.md", "naïve café".encode("cp1252"), "is not UTF-8 (byte 2 is 0xEF); convert it"),
        ("a.txt", "text".encode("utf-16") + b"\x00", "is not UTF-16 (byte "),
        ("a.html", b"<script>var x</script>", "has no visible text"),
        ("a.pdf", b"%PDF-1.7 broken", "is not a readable PDF"),
        ("a.pdf", b"no pdf at all", "is not a readable PDF"),
    ],
)
def test_files_without_usable_text_say_why(name: str, data: bytes, problem: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        parse(Path(name), data)
    assert str(caught.value).startswith(problem)


def test_pdfs_that_cannot_be_read_say_why() -> None:
    with pytest.raises(UnreadableError, match="is encrypted; save a copy"):
        parse(Path("a.pdf"), make_pdf(["secret"], password="x"))
    with pytest.raises(UnreadableError, match="run an OCR program"):
        parse(Path("a.pdf"), make_pdf(["", ""]))
    whole = make_pdf(["some text"] * 3)
    for cut in range(0, len(whole), 97):  # a download that broke off: any error is fine, a traceback is not
        try:
            parse(Path("a.pdf"), whole[:cut])
        except UnreadableError:
            continue


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_tell_the_encoding_and_are_no_text(encoding: str) -> None:
    assert decode("naïve\r\n日本".encode(encoding)) == "naïve\r\n日本"


def test_html_may_declare_its_encoding() -> None:
    page = '<meta charset="ISO-8859-1"><p>café</p>'
    assert parse(Path("a.html"), page.encode("latin-1")).text == "café\n\n"
    for nonsense in ("hex", "no-such", "utf-16"):
        assert "ok" in parse(Path("a.html"), f'<meta charset="{nonsense}"><p>ok'.encode()).text


def test_huge_files_are_refused_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 1_000_000)
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(3_000_000)
    with pytest.raises(UnreadableError, match="is 3 MB, more than the limit of 1 MB"):
        read_bytes(path)


def test_find_files_takes_known_types_and_counts_the_rest(tmp_path: Path) -> None:
    for name in ("b.md", "a/x.PY", "a/y.png", "a/z.png", "noext", ".hidden.md", ".git/c.md", "node_modules/d.js",
                 "env/pyvenv.cfg", "env/e.py", "__pycache__/f.py"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    os.symlink(tmp_path / "b.md", tmp_path / "link.md")
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    found = find_files([tmp_path, tmp_path / "noext", tmp_path / "b.md"])
    assert [str(path.relative_to(tmp_path)) for path in found.files] == ["a/x.PY", "b.md", "noext"]
    (remark,) = found.remarks
    assert remark.problem == "4 files of other types were left out: .png (2), link or device (1), no suffix (1)"
    assert found.covers(str(tmp_path / "gone" / "away.md"))
    assert not found.covers("/elsewhere/a.md")


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="this file system takes only Unicode names")
def test_names_that_are_no_text_are_reported(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    os.mkdir(folder + b"/d\xff")
    for name in (b"caf\xe9.md", b"d\xff/x.md", b"fine.md"):
        Path(os.fsdecode(folder + b"/" + name)).write_text("text")
    found = find_files([tmp_path, Path(os.fsdecode(folder + b"/caf\xe9.md"))])
    assert found.files == [tmp_path / "fine.md"]
    assert [(Path(r.path).name, r.problem) for r in found.remarks] == [
        ("caf?.md", "has a name that is not UTF-8; rename it"),
        ("x.md", "has a name that is not UTF-8; rename it"),
    ]


def test_a_closed_folder_is_reported_and_its_sources_are_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:  # not by its mode: root may open everything
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(closed))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find_files([tmp_path])
    assert found.remarks[0].path == str(closed)
    assert found.remarks[0].problem == "cannot be opened (Permission denied); what was indexed stays"
    assert not found.covers(str(closed / "a.md"))


def test_a_path_that_never_was_is_a_mistake_one_that_was_indexed_is_not(tmp_path: Path) -> None:
    found = find_files([tmp_path / "gone"])
    require_some(found, [str(tmp_path / "gone" / "a.md")])
    with pytest.raises(UserError, match="gone does not exist; give files or folders"):
        require_some(found, [str(tmp_path / "gone-too" / "a.md")])
