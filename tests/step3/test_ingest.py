"""step3_rag/ingest.py, store.py and index.py: incremental, and honest about bad files and damage.

python -m pytest tests/step3/test_ingest.py
"""

import shutil
import threading
from pathlib import Path

import pytest
from collections_on_disk import contents, make_pdf, run, use_server, write_files
from fake_encoder import FakeEncoder

from shared.errors import UserError
from step3_rag import index as index_module
from step3_rag.formats import TEXT_FORMATS, html, markdown, plain, restructured_text, source_code
from step3_rag.index import Index, latest_generation
from step3_rag.ingest import collection_folder, ingest, progress_bar
from step3_rag.retrieval import search
from step3_rag.store import Store


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Twelve small Markdown files of two sections each."""
    folder = tmp_path / "docs"
    write_files(folder, 12, sections=2)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the collection goes."""
    return tmp_path / "collection"


def test_first_second_and_third_run(docs: Path, folder: Path) -> None:
    report = run(folder, docs)
    assert (report.added, report.changed, report.unchanged, report.removed) == (12, 0, 0, 0)
    assert report.passages == report.embedded == 24
    assert report.remarks == []
    generation = latest_generation(folder)

    again = run(folder, docs)
    assert (again.added, again.unchanged, again.embedded, again.passages) == (0, 12, 0, 24)
    assert latest_generation(folder) == generation  # nothing to do means nothing is written

    changed = docs / "f001.md"
    changed.write_text("New line on top.\n\n" + changed.read_text().replace("piece1", "pieceX"))
    (docs / "f002.md").unlink()
    (docs / "f099.txt").write_text("an addition")
    report = run(folder, docs)
    assert (report.added, report.changed, report.unchanged, report.removed) == (1, 1, 10, 1)
    assert report.embedded == 3  # the new line, the changed part, the new file; the part that only moved is not
    assert report.passages == 24 + 1 - 2 + 1
    assert len(list(folder.glob("generation-*"))) == 1

    anew = folder.with_name("anew")
    run(anew, docs)
    assert contents(folder) == contents(anew)


PROSE = "Über naïve 🙂 things; a sentence of its own. " * 30
EXAMPLES = {  # how a file of each kind may look, line ends of Windows included
    plain: f"A note.\r\n\r\n{PROSE}",
    markdown: f"---\ntitle: x\n---\n# Top\n\n{PROSE}\n\nUnder\n-----\n\n- 日本\n- {PROSE}\n",
    restructured_text: f"Top\r\n===\r\n\r\n{PROSE}\r\n\r\nSub\r\n---\r\n\r\n日本\r\n",
    source_code: f"import os\n\n\nclass A:\n    def f(self):\n        return '{PROSE}'\n\n\ndef g():\n    pass\n",
    html: f"<title>Top &amp; more</title><h2>Part</h2><p>{PROSE}<h2>日本</h2><ul><li>x<li>{PROSE}</ul>",
}


def test_spans_give_exactly_the_passages_for_every_file_type(docs: Path, folder: Path) -> None:
    for suffix, read in TEXT_FORMATS.items():
        (docs / f"example{suffix}").write_bytes(EXAMPLES[read].encode("utf-8-sig" if read is plain else "utf-8"))
    (docs / "example.pdf").write_bytes(make_pdf(["One page. " * 40, "Methods\nAnother page. " * 12], [("Methods", 1)]))
    report = run(folder, docs)
    assert (report.added, report.remarks) == (12 + len(TEXT_FORMATS) + 1, [])
    store = Store(folder)
    for path in map(Path, store.digests()):
        text, passages = store.source_text(str(path)), store.passages_of(str(path))
        assert len(passages) > 1
        assert all(text[passage.start : passage.end] == passage.text for passage in passages)
        if TEXT_FORMATS.get(path.suffix) not in (None, html):  # then the text is the file, to the character
            assert text == path.read_bytes().decode("utf-8-sig")
        if path.name.startswith("example") and TEXT_FORMATS.get(path.suffix) is not plain:
            assert passages[-1].heading_path
    assert store.passages_of(str(docs / "example.pdf"))[-1].heading_path == ("Methods", "page 2")
    # And in what a search hands on.
    index = Index(folder)
    for hit in search("naïve things", 100, index, FakeEncoder()):
        source = store.source_text(hit.passage.source)
        assert source[hit.passage.start : hit.passage.end] == hit.passage.text
    index.close()
    with pytest.raises(UserError, match="is not in the collection"):
        store.source_text("/nowhere")


def test_only_the_paths_that_are_named_are_looked_at(docs: Path, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_files(other, 2, sections=1)
    run(folder, docs, other)
    shutil.rmtree(other)
    (docs / "f000.md").unlink()
    assert run(folder, docs / "f001.md").removed == 0
    assert run(folder, docs).removed == 1
    report = run(folder, other)  # it does not exist any more, but it did
    assert (report.removed, report.passages) == (2, 22)
    with pytest.raises(UserError, match="does not exist"):
        run(folder, other)


def test_bad_files_are_reported_and_the_rest_goes_on(docs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, docs)
    (docs / "f000.md").write_bytes(b"")  # it had text when it was indexed
    (docs / "binary.txt").write_bytes(b"\0\1\2")
    (docs / "latin.md").write_bytes("café".encode("latin-1"))
    (docs / "scan.pdf").write_bytes(b"%PDF-1.4 cut off")
    (docs / "picture.png").write_bytes(b"x")
    broken = docs / "f001.md"

    def refuse(path: Path) -> bytes:
        if path == broken:
            raise PermissionError(13, "Permission denied")
        return path.read_bytes()

    monkeypatch.setitem(ingest.__globals__, "read_bytes", refuse)
    report = run(folder, docs)
    assert {Path(remark.path).name: remark.problem.split("(")[0] for remark in report.remarks} == {
        "docs": "1 files of other types were left out: .png ",
        "f000.md": "is empty",
        "f001.md": "cannot be read ",
        "binary.txt": "is binary",
        "latin.md": "is not UTF-8 ",
        "scan.pdf": "is not a readable PDF ",
    }
    # What could not be opened stays as it was; what has no text any more is gone.
    assert (report.removed, report.unchanged, report.passages) == (1, 10, 22)


def test_an_empty_collection_is_fine(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(folder, empty).passages == 0
    index = Index(folder)
    assert search("anything", 5, index, FakeEncoder()) == []
    index.close()
    (empty / "a.txt").write_text("!!! ???")  # no word in the whole collection
    assert run(folder, empty).passages == 1
    index = Index(folder)
    assert len(search("anything", 5, index, FakeEncoder())) == 1  # dense finds the nearest, however far
    assert search("anything", 5, index, FakeEncoder(), retrievers=["lexical"]) == []
    index.close()


def test_mistakes_are_named(docs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no collection"):
        Index(folder)
    assert not folder.exists()
    run(folder, docs)
    with pytest.raises(UserError, match=f"or use --collection {folder.name}$"):
        Store(folder.with_name("another"))
    other = FakeEncoder()
    other.name = "another-model"
    with pytest.raises(UserError, match="was embedded with fake-hashing-encoder, not another-model"):
        run(folder, docs, encoder=other)
    use_server(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(UserError, match="are in its own folder, not on CHROMA_URL"):
        Index(folder)
    with pytest.raises(UserError, match="CHROMA_URL=http://127.0.0.1:9"):
        run(folder, docs)
    use_server(monkeypatch, "http://127.0.0.1:port")
    with pytest.raises(UserError, match="CHROMA_URL=http://127.0.0.1:port"):
        run(folder, docs)
    for name in ("", "..", "a/b", ".hidden"):
        with pytest.raises(UserError, match="--collection"):
            collection_folder(name)
    (folder / "collection.db").write_bytes(b"not a database at all, but long enough to be looked at" * 10)
    use_server(monkeypatch, None)
    with pytest.raises(UserError, match="cannot be read .*; delete"):
        Index(folder)


def test_damaged_indexes_are_named_and_made_again_without_embedding(docs: Path, folder: Path) -> None:
    run(folder, docs)
    expected = contents(folder)
    generation = latest_generation(folder)
    assert generation is not None
    for part in ("chroma", "bm25"):
        shutil.rmtree(generation[1] / part)
        with pytest.raises(UserError, match="delete its generation-\\* folders"):
            Index(folder)
        assert not (generation[1] / part).exists()
    shutil.rmtree(generation[1])
    with pytest.raises(UserError, match="are not complete; run the same ingest again"):
        Index(folder)
    assert run(folder, docs).embedded == 0
    assert contents(folder) == expected


def test_a_vector_index_that_chroma_cannot_read_is_built_anew(
    docs: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, docs)
    generation = latest_generation(folder)
    assert generation is not None
    (generation[1] / "chroma" / "chroma.sqlite3").write_bytes(b"rubbish" * 1000)
    (docs / "f000.md").write_text("# Changed\n\nall of it")
    run(folder, docs)
    assert "building it anew" in capsys.readouterr().err
    run(folder.with_name("anew"), docs)
    assert contents(folder) == contents(folder.with_name("anew"))


def test_many_deletions_rebuild_the_graph(docs: Path, folder: Path) -> None:
    run(folder, docs)
    for n in range(6):
        (docs / f"f{n:03}.md").unlink()
        run(folder, docs)
        latest = latest_generation(folder)
        assert latest is not None
        dead = index_module._read(latest[1]).dead
        assert dead <= index_module.MOST_DEAD * (24 - 2 * (n + 1))
    run(folder.with_name("anew"), docs)
    assert contents(folder) == contents(folder.with_name("anew"))


def test_an_open_index_follows_and_never_sees_half(docs: Path, folder: Path) -> None:
    """One thread searches without pause while another ingests; every search is answered in full."""
    run(folder, docs)
    index = Index(folder)
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                assert len(search("amber number3", 5, index, FakeEncoder())) == 5
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(3):
        (docs / "new.md").write_text(f"# Newest\n\nquetzal{n}")
        run(folder, docs)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    (hit,) = search("quetzal2", 1, index, FakeEncoder(), retrievers=["lexical"])
    assert hit.passage.text.endswith("quetzal2")
    assert not index.behind()
    index.close()


def test_progress_counts_up_and_the_bar_is_silent_without_a_terminal(
    docs: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    with progress_bar() as show:

        def note(what: str, done: int, total: int) -> None:
            seen.setdefault(what, []).append((done, total))
            show(what, done, total)

        ingest([docs], folder, FakeEncoder(), note)
    assert list(seen) == ["reading", "embedding", "vector index", "word index"]
    for steps in seen.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
    assert capsys.readouterr() == ("", "")
