"""`eval` and `calibrate` from the command line to the tables, with fake models and small data sets."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import facts, fake_resources, gaps
from fake_chat_model import FakeChat
from fake_encoder import FakeEncoder
from test_evaluation_calibration import DATASET as CALIBRATION
from typer.testing import CliRunner, Result

from shared.config import settings
from shared.errors import UserError
from shared.results import read_results
from step3_rag import encoder
from step3_rag.cli_eval import measuring
from step3_rag.evaluation import datasets, suite
from step3_rag.evaluation.abstention_eval import NO_GRADER
from step3_rag.evaluation.answering_eval import BASELINE, FULL, ablation
from step3_rag.evaluation.datasets import Dataset, Question
from step3_rag.evaluation.routing_eval import routing_rows
from step3_rag.graders import WITHOUT_ADAPTER, load_thresholds
from step3_rag.index import Index
from step3_rag.resources import Resources
from step3_rag.routing import ROUTES, load_labelled

STORY = Dataset(
    "narrativeqa",
    {"story-000.txt": "Ann found the lamp in the harbour.\n", "story-001.txt": "Bodo lost a wheel on the road.\n"},
    (
        Question("n0", "Who found the lamp?", ("Ann",), "story-000.txt"),
        Question("n1", "Whose lamp is it?", ("Ann",), "story-000.txt"),
        Question("n2", "Who sank?", ("nobody knows",), "story-001.txt"),
    ),
)


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeChat:
    """The evaluation with small data and fakes for both models; returns the chat model, which counts requests."""
    chat = FakeChat(say=lambda prompt: "Yes, it was Ann.", yes=lambda prompt: 0.9 if "eat" in prompt else 0.1)
    small = {dataset.name: dataset for dataset in (facts(), STORY, gaps(), CALIBRATION)}
    parts: dict[str, Callable[[], datasets.Parts]] = {
        name: lambda d=dataset: (dict(d.documents), list(d.questions))  # type: ignore[misc]
        for name, dataset in small.items()
    }

    @contextmanager
    def opened(folder: Path, *, graders: Sequence[str], **_: Any) -> Iterator[Resources]:
        index = Index(folder)
        everything = fake_resources(index, chat)
        yield fake_resources(index, chat, {name: everything.graders[name] for name in graders})
        index.close()

    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    monkeypatch.setattr(datasets, "DATASETS", parts)
    monkeypatch.setattr(suite, "open_resources", opened)
    monkeypatch.setattr(suite, "ADAPTER_FOLDER", Path("no such folder"))
    monkeypatch.setattr(suite, "default_grader", lambda model=None: WITHOUT_ADAPTER)
    for module in (suite, encoder):
        monkeypatch.setattr(module, "Encoder", lambda: FakeEncoder(max_tokens=256))
    return chat


@pytest.fixture
def call(tmp_path: Path, chat: FakeChat) -> Callable[..., Result]:
    def call(*arguments: str, kept: bool = True) -> Result:
        where = ["--output", str(tmp_path / "out")] if kept else []
        return CliRunner().invoke(measuring, [*arguments, *where, "--results", str(tmp_path / "tables")])

    return call


def test_everything_is_measured_written_and_not_measured_again(
    call: Callable[..., Result], chat: FakeChat, tmp_path: Path
) -> None:
    first = call("eval", "all", "--limit", "4", "--json")
    assert first.exit_code == 0, first.stderr
    tables = {table["name"]: table for table in json.loads(first.stdout)}
    assert list(tables) == [
        "routing", "retrieval_boolq", "retrieval_narrativeqa", "abstention",
        "answers_boolq", "answers_narrativeqa", "answers_unsolvable",
    ]  # fmt: skip
    assert "minutes on two idle cores" in first.stderr
    for name, table in tables.items():
        written = read_results(tmp_path / "tables" / f"{name}.json")
        assert written["rows"] == table["rows"]
        assert written["command"].split()[0] == "step3"
    graders = ["llm", "embedding", "overlap"]
    assert [row["name"] for row in tables["answers_boolq"]["rows"]] == list(ablation(graders))
    assert [row["name"] for row in tables["abstention"]["rows"]] == [NO_GRADER, *graders]
    assert tables["answers_boolq"]["n"] == 4
    assert tables["retrieval_narrativeqa"]["n"] == 2  # the third has no passage that states its answer
    asked = len(chat.requests)
    again = call("eval", "all", "--limit", "4", "--json")
    assert len(chat.requests) == asked
    assert json.loads(again.stdout) == json.loads(first.stdout)


def test_a_larger_limit_asks_only_what_is_new(call: Callable[..., Result], chat: FakeChat) -> None:
    call("eval", "abstention", "--limit", "4", "--graders", "llm")
    assert len(chat.requests) == 4
    result = call("eval", "abstention", "--limit", "6", "--graders", "llm")
    assert result.exit_code == 0, result.stderr
    assert len(chat.requests) == 6


def test_tables_for_people(call: Callable[..., Result]) -> None:
    result = call("eval", "retrieval")
    assert result.exit_code == 0, result.stderr
    assert "retrieval_boolq, n = 11" in result.stdout
    assert "fused" in result.stdout
    assert "nDCG" in result.stdout


def test_routing_counts_every_question_once(call: Callable[..., Result], chat: FakeChat) -> None:
    rows = {
        row["name"]: row["metrics"]
        for row in json.loads(call("eval", "routing", "--json", kept=False).stdout)[0]["rows"]
    }
    assert list(rows) == [f"{route}, written" for route in ROUTES] + [
        f"collection, {name}" for name in ("boolq", "narrativeqa", "unsolvable")
    ]
    for route in ROUTES:
        taken = rows[f"{route}, written"]
        assert sum(taken[f"→ {other}"]["value"] for other in ROUTES) == taken["questions"]["value"]
        assert taken["questions"]["value"] == sum(wanted == route for _, wanted in load_labelled())
        assert taken["right %"]["value"] == pytest.approx(
            100 * taken[f"→ {route}"]["value"] / taken["questions"]["value"]
        )


def test_a_router_that_is_wrong_is_shown_to_be() -> None:
    class Everywhere:
        """A fake router: whatever is asked is small talk."""

        def measure(self, labelled: Sequence[tuple[str, str]], encoder: Any) -> dict[str, dict[str, int]]:
            counts = {wanted: sum(1 for _, route in labelled if route == wanted) for wanted in ROUTES}
            return {wanted: dict.fromkeys(ROUTES, 0) | {"small_talk": count} for wanted, count in counts.items()}

    rows = routing_rows(Everywhere(), FakeEncoder(), {"boolq": facts().questions})  # type: ignore[arg-type]
    right = {row["name"]: row["metrics"]["right %"]["value"] for row in rows}
    assert right == {
        "collection, written": 0, "small_talk, written": 100, "out_of_scope, written": 0, "collection, boolq": 0
    }  # fmt: skip


def test_calibrate_writes_what_is_loaded_afterwards(
    call: Callable[..., Result], chat: FakeChat, tmp_path: Path
) -> None:
    path = tmp_path / "thresholds.toml"
    result = call("calibrate", "--graders", "overlap,llm", "--output", str(path), kept=False)
    assert result.exit_code == 0, result.stderr
    for name in ("overlap", "llm", "embedding"):  # the shipped one is always calibrated too
        load_thresholds(name, path)
    rows = read_results(tmp_path / "tables" / "calibration.json")["rows"]
    assert len(rows) == 3 * 4
    assert any(arguments.get("logprobs") for _, arguments in chat.requests)


def test_usage_is_checked(call: Callable[..., Result]) -> None:
    assert call("eval", "answers", "--limit", "1").exit_code == 2
    with pytest.raises(UserError, match="--graders ',' names nothing: use llm, adapter, embedding, overlap"):
        suite._graders(",")


def test_an_adapter_that_is_not_there_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "ADAPTER_FOLDER", tmp_path)
    assert suite._graders(None) == ["llm", "embedding", "overlap"]
    assert "`adapter` is left out: there is none in" in capsys.readouterr().err
    (tmp_path / "adapter_config.json").write_text("{}")
    assert suite._graders(None) == ["llm", "adapter", "embedding", "overlap"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    settings.cache_clear()
    assert suite._graders(None) == ["llm", "embedding", "overlap"]
    assert "name it in --graders" in capsys.readouterr().err
    assert suite._graders("adapter") == ["adapter", "embedding"]


@pytest.mark.parametrize("arguments", [["eval"], ["calibrate"], ["eval", "answers"], ["eval", "all"]])
def test_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(measuring, [*arguments, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_sizes_hold_both_kinds_and_all_data_sets_have_one() -> None:
    assert suite.SIZES["unsolvable"] % 2 == 0
    assert set(suite.SIZES) | {"calibration"} == set(datasets.DATASETS)
    assert {BASELINE, FULL} <= set(ablation(["overlap"]))
