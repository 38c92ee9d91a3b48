"""Files from the browser: clean names, copied into the collection, indexed, and every problem said.

    python -m pytest tests/step3/test_uploads.py

Real collections on disk; the embedder is a fake.
"""

from pathlib import Path

import pytest
from fake_encoder import FakeEncoder
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UserError
from step3_rag.documents import MAX_BYTES
from step3_rag.store import Store
from step3_rag.uploads import LONGEST_NAME, add_files, clean_name, collections


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\notes.md", "notes.md"),
        (".hidden.md", "hidden.md"),
        ("a<b>:c?.txt", "a-b--c-.txt"),
        ("evil\u202efdp.exe", "evil-fdp.exe"),
        ("nul\0l\nine.md", "nul-l-ine.md"),
        ("übergrößen 你好.md", "übergrößen 你好.md"),
        ("..", "unnamed.txt"),
        ("", "unnamed.txt"),
    ],
)
def test_names_are_cleaned(name: str, clean: str) -> None:
    assert clean_name(name) == clean


@given(st.text())
def test_any_name_becomes_one_plain_name(name: str) -> None:
    clean = clean_name(name)
    assert Path(clean).name == clean
    assert clean not in ("", ".", "..")
    assert not clean.startswith(".")
    assert len(clean.encode()) <= LONGEST_NAME
    assert clean_name(clean) == clean


def upload(folder: Path, files: dict[str, bytes], collection: Path) -> tuple[list[str], list[str]]:
    """Add files; return (the collection's sources, the remarks as "name problem")."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    report = add_files([folder / name for name in files], collection, FakeEncoder(), lambda *_: None)
    store = Store(collection)
    sources = sorted(store.digests())
    store.close()
    return sources, [f"{Path(remark.path).name} {remark.problem}" for remark in report.remarks]


def test_files_are_copied_into_the_collection_and_indexed(tmp_path: Path) -> None:
    collection = tmp_path / "c"
    files = {"a.md": b"# A\n\nAmber.\n", "b.txt": b"Basalt.\n", "empty.md": b"", "picture.png": b"\x89PNG\0\0"}
    sources, remarks = upload(tmp_path / "in", files, collection)
    assert sources == [str(collection / "uploads" / name) for name in ("a.md", "b.txt")]
    assert remarks == ["empty.md is empty", "picture.png is binary"]
    assert sorted(path.name for path in (collection / "uploads").iterdir()) == ["a.md", "b.txt"]


def test_a_file_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    collection = tmp_path / "c"
    upload(tmp_path / "in", {"a.md": b"Amber.\n"}, collection)
    sources, _ = upload(tmp_path / "in", {"a.md": b"Basalt.\n"}, collection)
    store = Store(collection)
    assert [store.source_text(path) for path in sources] == ["Basalt.\n"]
    store.close()


def test_names_that_are_cleaned_to_the_same_do_not_collide(tmp_path: Path) -> None:
    sources, _ = upload(tmp_path / "in", {"a?.md": b"Amber.\n", "a*.md": b"Basalt.\n"}, tmp_path / "c")
    assert [Path(path).name for path in sources] == ["a--2.md", "a-.md"]


def test_a_file_that_is_too_large_does_not_stop_the_rest(tmp_path: Path) -> None:
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    (tmp_path / "a.md").write_bytes(b"Amber.\n")
    report = add_files([tmp_path / "huge.txt", tmp_path / "a.md"], tmp_path / "c", FakeEncoder(), lambda *_: None)
    assert report.added == 1
    assert [remark.problem for remark in report.remarks] == ["is larger than 32 MB; split it"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"Amber.\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "uploads").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be copied"):
        add_files([tmp_path / "a.md"], tmp_path / "c", FakeEncoder(), lambda *_: None)


def test_collections_are_the_folders_that_hold_one(tmp_path: Path) -> None:
    upload(tmp_path / "in", {"a.md": b"Amber.\n"}, tmp_path / "root" / "notes")
    (tmp_path / "root" / "other").mkdir()
    assert collections(tmp_path / "root", "default") == ["default", "notes"]
    assert collections(tmp_path / "nowhere", "default") == ["default"]


def test_a_relative_folder_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources, _ = upload(tmp_path / "in", {"a.md": b"Amber.\n"}, Path("c"))
    assert sources == [str(tmp_path / "c" / "uploads" / "a.md")]
    assert Path(sources[0]).exists()
