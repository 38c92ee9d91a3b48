"""Ingests that are killed, that meet each other, and that use a Chroma server: what is left is always whole.

python -m pytest tests/step3/test_ingest_interrupted.py
python -m pytest tests/step3/test_ingest_interrupted.py -m real     # ten kills in 5,000 passages, a Chroma server
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collections_on_disk import contents, run, use_server, write_files
from fake_encoder import FakeEncoder

from shared.config import settings
from shared.errors import UserError
from step3_rag.index import Index, latest_generation
from step3_rag.retrieval import search
from step3_rag.store import Store

CHILD = [sys.executable, str(Path(__file__).with_name("ingest_child.py"))]


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


@pytest.mark.parametrize(
    ("what", "nth"), [("commit", 40), ("embedding", 30), ("vector index", 2), ("word index", 1), ("word index", 2)]
)
def test_kill_9_then_a_clean_run_equals_an_undisturbed_one(docs: Path, folder: Path, what: str, nth: int) -> None:
    """Killed in the middle of a commit, between commits, while Chroma is written, before and after BM25 is."""
    write_files(docs, 40, sections=2)
    victim = subprocess.run([*CHILD, folder, docs, what, str(nth)], capture_output=True, text=True)
    assert victim.returncode == -signal.SIGKILL, victim.stderr
    assert latest_generation(folder) is None
    committed = Store(folder).count()
    assert (committed > 0) == (what != "embedding" or nth > 32)
    report = run(folder, docs)
    assert report.embedded == 80 - committed  # nothing that was committed is embedded again
    assert not list(folder.glob(".generation*"))
    run(folder.with_name("anew"), docs)
    assert contents(folder) == contents(folder.with_name("anew"))


def test_an_update_killed_leaves_the_old_indexes_in_service(docs: Path, folder: Path) -> None:
    run(folder, docs)
    (docs / "f001.md").write_text("# Changed\n\nzircon")
    victim = subprocess.run([*CHILD, folder, docs, "vector index", "2"], capture_output=True, text=True)
    assert victim.returncode == -signal.SIGKILL, victim.stderr
    index = Index(folder)
    assert index.behind()
    assert len(search("amber number3", 5, index, FakeEncoder())) == 5
    assert search("zircon", 5, index, FakeEncoder(), retrievers=["lexical"]) == []
    assert run(folder, docs).embedded == 0
    (hit,) = search("zircon", 5, index, FakeEncoder(), retrievers=["lexical"])
    assert hit.passage.heading_path == ("Changed",)
    index.close()


def test_two_ingesters_at_once(docs: Path, folder: Path) -> None:
    write_files(docs, 40, sections=2)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pair = [subprocess.Popen([*CHILD, folder, docs], **pipes) for _ in range(2)]
    for child in pair:
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        assert out.split() == ["ready", "80"]
    run(folder.with_name("anew"), docs)
    assert contents(folder) == contents(folder.with_name("anew"))


@pytest.mark.real
def test_ten_random_kills_in_5000_passages(tmp_path: Path) -> None:
    docs, folder, anew = tmp_path / "docs", tmp_path / "collection", tmp_path / "anew"
    write_files(docs, 250, sections=20)
    started = 0.0
    with subprocess.Popen([*CHILD, anew, docs], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        started = time.perf_counter()
        assert child.stdout.readline().strip() == "5000"
    whole = time.perf_counter() - started
    chance, kills, stages = random.Random(4), 0, set()
    while kills < 10:
        # An eighth of the whole on average: the first kills hit the embedding, the last ones the indexes.
        with subprocess.Popen([*CHILD, folder, docs], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0, whole / 4))
            child.kill()
        store = Store(folder)
        stages.add("indexing" if store.count() >= 5000 else "embedding")
        store.close()
        if child.returncode == -signal.SIGKILL:
            kills += 1
        else:  # it was done before: there must be something to kill
            assert child.returncode == 0
            (docs / f"more{len(list(docs.iterdir()))}.md").write_text("# More\n\nto do")
    assert stages == {"embedding", "indexing"}
    run(folder, docs)
    run(anew, docs)
    assert contents(folder) == contents(anew)


@pytest.fixture
def chroma_server(tmp_path: Path) -> Iterator[Any]:
    """A function that starts a Chroma server on a path of its own and returns (URL, process)."""
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, port: int = 0) -> tuple[str, subprocess.Popen[bytes]]:
        if not port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        command = [Path(sys.executable).with_name("chroma"), "run", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen([*command, "--path", tmp_path / name], stdout=subprocess.DEVNULL)
        running.append(process)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}", process
            time.sleep(0.1)
        raise AssertionError("the Chroma server did not start")

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.real
def test_a_chroma_server_gives_the_same_answers(
    docs: Path,
    folder: Path,
    chroma_server: Any,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    request.addfinalizer(settings.cache_clear)  # or the next test would look for the server
    write_files(docs, 40, sections=2)
    run(folder, docs)
    expected = contents(folder)
    url, server = chroma_server("one")
    use_server(monkeypatch, url)
    assert run(folder, docs).embedded == 0  # moved to the server
    assert contents(folder) == expected
    latest = latest_generation(folder)
    assert latest is not None
    assert not (latest[1] / "chroma").exists()

    (docs / "f001.md").write_text("# Changed\n\nzircon")
    pair = [subprocess.Popen([*CHILD, folder, docs], env=os.environ | {"CHROMA_URL": url}) for _ in range(2)]
    assert [child.wait(120) for child in pair] == [0, 0]
    local = folder.with_name("local")
    with monkeypatch.context() as patch:
        use_server(patch, None)
        run(local, docs)
        expected = contents(local)
    settings.cache_clear()
    assert contents(folder) == expected

    index = Index(folder)
    server.kill()
    server.wait()
    with pytest.raises(UserError, match="is the server running"):
        search("amber", 5, index, FakeEncoder())
    with pytest.raises(UserError, match="is the server running"):
        run(folder, docs)
    index.close()
    chroma_server("two", port=int(url.rsplit(":", 1)[1]))  # an empty one in its place: vectors are sent again
    assert run(folder, docs).embedded == 0
    assert contents(folder) == expected
