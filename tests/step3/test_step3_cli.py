"""The program `step3`: the verbs that read and look, as a person uses them, and what it says about mistakes.

python -m pytest tests/step3/test_step3_cli.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from collections_on_disk import write_files
from fake_encoder import FakeEncoder

from shared.config import settings
from step3_rag import cli, demo, demo_collection
from step3_rag.answers import Answer, Step
from step3_rag.index import Index
from step3_rag.ingest import collection_folder
from step3_rag.store import Store

ROOT = Path(__file__).parents[2]
VERBS = ["ingest", "sources", "search", "route", "ask", "chat", "ui", "demo", "calibrate"]


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def step3(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Call the program in this process, in an empty directory and home, with the fake encoder; never a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    monkeypatch.setattr("step3_rag.encoder.Encoder", lambda *_: FakeEncoder())

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["step3", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        done = Done(code, *capsys.readouterr())
        assert "Traceback" not in done.err
        return done

    return call


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    write_files(tmp_path / "docs", 6, sections=2)
    return tmp_path / "docs"


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(step3: Any, verb: str) -> None:
    done = step3(verb, "--help")
    assert done.code == 0
    assert f"Example: step3 {verb}" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert verb in step3("--help").out


def test_eval_has_its_own_list_of_verbs(step3: Any) -> None:
    done = step3("eval", "--help")
    assert done.code == 0
    assert {"retrieval", "answers", "abstention", "routing", "all"} <= set(done.out.split())


def test_help_loads_nothing_heavy() -> None:
    """What makes it answer at once: 0.1 s, start of Python included, on two laptop-class cores."""
    code = "import sys; from step3_rag import cli; print(' '.join(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    heavy = {
        "torch",
        "chromadb",
        "bm25s",
        "langgraph",
        "langchain_core",
        "openai",
        "gradio",
        "numpy",
        "sqlite3",
        "pypdf",
    }
    assert heavy & set(loaded.stdout.split()) == set()


# -- ingest and sources ------------------------------------------------------------------------------------------------


def test_ingest_reports_and_is_incremental(step3: Any, docs: Path) -> None:
    (docs / "scan.pdf").write_bytes(b"%PDF-1.4 cut off")
    done = step3("ingest", docs)
    assert done.code == 0
    assert "scan.pdf: is not a readable PDF" in done.err
    assert "6 added; 12 passages, 12 of them embedded now" in done.err
    (docs / "f000.md").unlink()
    (docs / "f001.md").write_text("# New\n\ntext")
    assert "1 changed, 4 unchanged, 1 removed; 9 passages, 1 of them embedded now" in step3("ingest", docs).err
    report = json.loads(step3("ingest", docs, "--json").out)
    assert (report["unchanged"], report["embedded"], report["passages"]) == (5, 0, 9)
    assert [Path(remark["path"]).name for remark in report["remarks"]] == ["scan.pdf"]


def test_ingest_of_nothing_readable_fails(step3: Any, docs: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\0\1\2")
    done = step3("ingest", bad)
    assert done.code == 1
    assert "bad.txt: is binary" in done.err
    assert done.err.endswith("error: none of the files could be read\n")
    missing = step3("ingest", tmp_path / "missing")
    assert missing.code == 2
    assert "does not exist; give files or folders to read" in missing.err


def test_sources_are_listed_by_collection(step3: Any, docs: Path) -> None:
    step3("ingest", docs, "-c", "work")
    done = step3("sources", "-c", "work")
    assert [line.split() for line in done.out.splitlines()] == [["2", str(docs / f"f{n:03}.md")] for n in range(6)]
    assert "6 sources, 12 passages, embedded with fake-hashing-encoder" in done.err
    document = json.loads(step3("sources", "-c", "work", "--json").out)
    assert document["indexed"] is True
    assert document["sources"][0] == {"path": str(docs / "f000.md"), "passages": 2}
    # Another collection is named where the one that was meant does not exist.
    done = step3("sources")
    assert (done.code, done.out) == (2, "")
    assert "there is no collection in" in done.err
    assert "use --collection work" in done.err


def test_an_ingest_that_was_cut_short_is_said(step3: Any, docs: Path) -> None:
    step3("ingest", docs)
    store = Store(collection_folder())
    store.write(removed=[str(docs / "f000.md")])  # as a kill between the commit and the indexes leaves it
    store.close()
    assert "run it again" in step3("sources").err
    assert json.loads(step3("sources", "--json").out)["indexed"] is False
    done = step3("search", "amber")
    assert (done.code, done.out[:2]) == (0, "1.")
    assert "an ingest was cut short" in done.err


# -- search ------------------------------------------------------------------------------------------------------------


def test_search_shows_where_and_what(step3: Any, docs: Path) -> None:
    (docs / "evil.md").write_text("# Zircon\x1b]0;owned\x07\n\nzircon \x1b[2J\x9b31m and " + "considerably " * 200)
    step3("ingest", docs)
    done = step3("search", "zircon", "-k", 2)
    assert done.code == 0
    first, text = done.out.splitlines()[:2]
    assert first.startswith("1. docs/evil.md > Zircon")
    assert ", 0–" in first
    assert text.strip().startswith("# Zircon")
    assert text.endswith("…")
    assert not set(done.out) & {"\x1b", "\x9b", "\x07"}
    assert done.out.count("\n2. ") == 1
    assert "\n3. " not in done.out


def test_explain_shows_each_list_and_how_they_fused(step3: Any, docs: Path) -> None:
    step3("ingest", docs)
    query = "number3 piece1 amber"
    done = step3("search", query, "--explain", "-k", 3, "--rerank", "late", "--mmr", 0.7)
    sections = [line.split()[0] for line in done.out.splitlines() if line and line[0].isalpha()]
    assert sections == ["dense", "lexical", "fused", "reranked", "diverse"]
    hits = json.loads(step3("search", query, "-k", 3, "--json").out)["hits"]
    ranks, best = hits[0]["ranks"], hits[0]["passage"]
    terms = f"= 1/(60+{ranks['dense']}) dense + 1/(60+{ranks['lexical']}) lexical"
    (line,) = (line for line in done.out.splitlines() if terms in line and Path(best["source"]).name in line)
    assert f"{1 / (60 + ranks['dense']) + 1 / (60 + ranks['lexical']):.4f}" in line

    document = json.loads(step3("search", query, "-k", 3, "--json", "--explain").out)
    assert set(document["lists"]) == {"dense", "lexical"}
    for name, found in document["lists"].items():
        assert [hit["ranks"] for hit in found] == [{name: rank} for rank in range(1, len(found) + 1)]
        for hit in document["hits"]:
            if hit["ranks"].get(name, 99) <= len(found):
                assert found[hit["ranks"][name] - 1]["passage"] == hit["passage"]
    text = Path(best["source"]).read_text()
    assert text[best["start"] : best["end"]] == best["text"]


def test_late_interaction_looks_twice_unless_it_is_left_out(step3: Any, docs: Path) -> None:
    step3("ingest", docs)
    for arguments, stage in (((), "reranked"), (("--rerank", "none"), "fused")):
        hits = json.loads(step3("search", "number3 amber", "--json", *arguments).out)["hits"]
        assert [hit["ranks"][stage] for hit in hits] == [1, 2, 3, 4, 5]
        assert all(("reranked" in hit["ranks"]) == (stage == "reranked") for hit in hits)
        explained = step3("search", "number3 amber", "--explain", *arguments).out
        assert ("\nreranked  " in explained) == (stage == "reranked")


def test_search_with_one_retriever_and_without_hits(step3: Any, docs: Path) -> None:
    step3("ingest", docs)
    done = step3("search", "number3", "--retrievers", "lexical", "--explain")
    assert "fused" not in done.out
    assert step3("search", "zzz", "--retrievers", "lexical").out == "nothing was found\n"
    assert json.loads(step3("search", "zzz", "--retrievers", "lexical", "--json").out) == {"query": "zzz", "hits": []}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["search", " "], "the query is empty"),
        (["search", "x", "--retrievers", "dense,sparse"], "use dense, lexical or both"),
        (["search", "x", "--retrievers", ","], "use dense, lexical or both"),
        (["search", "x", "-k", "0"], "greater than or equal to 1"),
        (["search", "x", "--mmr", "2"], "less than or equal to 1"),
        (["search", "x", "-c", "../up"], "--collection '../up'"),
        (["sources", "-c", ""], "--collection ''"),
        (["ingest"], "Missing argument"),
        (["route"], "give one question, or --calibrate"),
        (["route", " "], "give one question, or --calibrate"),
        (["route", "x", "--calibrate"], "give one question, or --calibrate"),
    ],
)
def test_mistakes_are_one_line_and_code_2(step3: Any, docs: Path, arguments: list[str], problem: str) -> None:
    step3("ingest", docs)
    done = step3(*arguments)
    assert (done.code, done.out) == (2, "")
    assert problem in " ".join(done.err.replace("│", " ").split())


def test_the_chat_model_can_rerank(step3: Any, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step3("ingest", docs)
    asked: list[tuple[Path, list[str]]] = []

    @contextmanager
    def open_resources(folder: Path, *, graders: list[str], quiet: bool) -> Iterator[Any]:
        asked.append((folder, graders))
        index = Index(folder)
        yield SimpleNamespace(index=index, encoder=FakeEncoder(), graders={"llm": fake_grader})
        index.close()

    def fake_grader(task: str, cases: list[Any]) -> list[float]:
        return [float("number5 piece1" in case.passage) for case in cases]

    monkeypatch.setattr("step3_rag.resources.open_resources", open_resources)
    hits = json.loads(step3("search", "amber", "--rerank", "llm", "--json").out)["hits"]
    assert asked == [(collection_folder(), ["llm"])]
    assert "number5 piece1" in hits[0]["passage"]["text"]
    assert [hit["scores"]["reranked"] for hit in hits] == [1.0, 0.0, 0.0, 0.0, 0.0]


# -- route -------------------------------------------------------------------------------------------------------------


def test_route_names_the_way_and_its_neighbours(step3: Any) -> None:
    done = step3("route", "hi there, how are you today", "--explain")
    assert done.code == 0
    name = done.out.split()[0]
    assert name in ("collection", "small_talk", "out_of_scope")
    assert "must be nearer by more than 0.07" in done.out
    assert done.out.count("small_talk: ") + done.out.count("collection: ") + done.out.count("out_of_scope: ") == 8
    document = json.loads(step3("route", "hi there, how are you today", "--json").out)
    assert document["name"] == name
    assert document["similarity"] == document["similarities"][name]
    assert len(document["nearest"]) == 8


def test_calibrate_prints_a_threshold(step3: Any) -> None:
    threshold = json.loads(step3("route", "--calibrate", "--json").out)["threshold"]
    assert 0 <= threshold < 1
    assert step3("route", "--calibrate").out == f"threshold = {threshold}\n"


# -- ui and demo -------------------------------------------------------------------------------------------------------


def test_ui_opens_the_page_on_the_chosen_collection(step3: Any, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Path, str, int]] = []
    page = type(sys)("step3_rag.page")  # the real one imports Gradio, and is tested by its own tests
    page.launch = lambda folder, host, port: opened.append((folder, host, port))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "step3_rag.page", page)
    assert step3("ui", "-c", "work", "--port", 7999).code == 0
    assert opened == [(collection_folder("work"), "127.0.0.1", 7999)]
    # None named: `default`, unless there are others only.
    step3("ui")
    step3("ingest", docs, "-c", "zebra")
    step3("ingest", docs, "-c", "work")
    step3("ui")
    step3("ingest", docs)
    step3("ui")
    assert [folder.name for folder, _, _ in opened[1:]] == ["default", "work", "default"]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A small encyclopaedia, and a fake in the place of the model that answers; the folders that were opened."""
    opened: list[Path] = []
    (tmp_path / "boolq").mkdir()
    record = {"title": "Sea shell", "passage": "The sound is that of the surroundings.", "question": "x", "answer": "x"}
    (tmp_path / "boolq" / "dev.jsonl").write_text(json.dumps(record))
    monkeypatch.setattr("shared.artifacts.fetch", lambda name: tmp_path / "boolq")

    def open_resources(folder: Path, **_: Any) -> Any:
        opened.append(folder)
        return nullcontext(SimpleNamespace(graders={"overlap": None}))

    def run(question: str, resources: Any, settings: Any) -> Iterator[Step | Answer]:
        yield Step("route", "collection", {"similarity": 0.5})
        yield Answer(question, f"answer to {question}", (), True, "a fake", (), 0, "collection", (), 1, 0.1)

    monkeypatch.setattr("step3_rag.resources.open_resources", open_resources)
    monkeypatch.setattr("step3_rag.demo.run", run)
    return opened


def test_demo_indexes_asks_and_names_the_page(step3: Any, scripted: list[Path]) -> None:
    done = step3("demo")
    assert done.code == 0
    assert scripted == [collection_folder(demo_collection.COLLECTION)]
    assert Store(scripted[0]).count() == 1
    assert "1 added; 1 passages" in done.err
    for question in demo.QUESTIONS["declined"][:1]:
        assert f"you> {question}" in done.err
        assert f"answer to {question}" in done.out
    page, here = done.err.rstrip().splitlines()[-2:]
    assert page.endswith("make step3-ui")
    assert here.endswith('.venv/bin/python -m step3_rag ask "…" --collection encyclopaedia')
    assert json.loads(step3("demo", "--json").out)[-1]["shows"] == "declined"
