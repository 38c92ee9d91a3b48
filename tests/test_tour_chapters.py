"""The tour's chapters without a model: what they ask of the steps, and that they claim no more than happened.

python -m pytest tests/test_tour_chapters.py
"""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.tour import documents, look, service, tools, training
from scripts.tour.findings import Stage, Table, Text, Verdict
from scripts.tour.spans import collecting
from scripts.tour.steps import ask_step
from shared.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def a_stage(tmp_path: Path, remarks: list[str]) -> Stage:
    return Stage(tmp_path, "x", "tiny", lambda block: None, remarks.append)


def test_asking_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that prints JSON, one that fails, one that prints something else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "echo.py").write_text(
        "import json, os, sys\nprint('half way\\x1b[2J', file=sys.stderr)\n"
        "if 'fail' in sys.argv: sys.exit('error: no model')\n"
        "print('hello' if 'text' in sys.argv else json.dumps([sys.argv[1:], os.environ.get('SET')]))\n"
    )
    remarks: list[str] = []
    stage = a_stage(tmp_path, remarks)
    assert ask_step(stage, "echo", "a b", env={"SET": "yes"}) == [["a b", "--json"], "yes"]
    assert remarks == ["half way␛[2J"]
    with pytest.raises(UserError, match="`python -m echo fail` failed: no model"):
        ask_step(stage, "echo", "fail")
    with pytest.raises(UserError, match="printed no JSON: 'hello"):
        ask_step(stage, "echo", "text")


def test_ctrl_c_lets_a_step_end_in_its_own_way(tmp_path: Path) -> None:
    """As training does, which writes a checkpoint first."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, sys, time\n"
        "try:\n    print('begun', file=sys.stderr, flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5); pathlib.Path('saved').touch(); sys.exit(130)\n"
    )
    (tmp_path / "parent.py").write_text(
        "import pathlib\nfrom scripts.tour.findings import Stage\nfrom scripts.tour.steps import ask_step\n"
        "from shared.terminal import run\n"
        "said = lambda words: print(words, flush=True)\n"
        "run(lambda: ask_step(Stage(pathlib.Path('.'), 'x', 'tiny', lambda block: None, said), 'slow'))\n"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    parent = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout
    assert parent.stdout.readline() == "begun\n"
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to everybody
    assert parent.wait(30) == 130
    assert (tmp_path / "saved").exists()
    parent.stdout.close()


def test_the_next_tokens_share_of_all() -> None:
    logits = [0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    total = sum(map(math.exp, logits))
    mean = math.log(sum(map(math.exp, logits[3:5])) / 2)
    data = {"logits": logits[:3], "rest": [mean, math.log(sum(map(math.exp, logits[5:])) / 2)], "group": 2, "last": 2}
    assert look.probabilities(data) == pytest.approx([math.exp(x) / total for x in logits[:3]])


def test_the_tours_questions_are_its_own_and_their_gold_answers_are_right() -> None:
    from shared.bfcl import gold_calls, score

    made = tools.items()
    assert all(score(item, gold_calls(item)).correct for item in made)
    assert {item.gold is None for item in made} == {True, False}


def a_document(question: str, shows: str | None) -> dict[str, Any]:
    """What step 3 prints about a question."""
    declined = shows == "declined"
    where = {"passage": "p", "source": "/somewhere/articles/snow.md", "heading_path": [] if declined else ["Snow"]}
    citation = where | {"start": 0, "end": 4, "quote": "Snow.", "support": 0.9}
    return {
        "question": question, "answer": "I don't know: nothing" if declined else "Snow.", "abstained": declined,
        "reason": "nothing" if declined else "", "shows": shows, "nearest": [where], "seconds": 0.5,
        "sentences": [] if declined else [{"text": "Snow.", "citations": [citation]}],
        "steps": [{"node": "route", "outcome": "collection", "seconds": 0.5}],
    }  # fmt: skip


def test_documents_says_which_ending_did_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [a_document("a", "answered"), a_document("b", None), a_document("c", "declined")]
    monkeypatch.setattr(documents, "ask_step", lambda *a, **k: answers)
    kept: list[Any] = []
    documents.perform(Stage(tmp_path, "documents", "tiny", kept.append, lambda words: None))
    verdicts = [(block.good, block.words) for block in kept if isinstance(block, Verdict)]
    assert [good for good, _ in verdicts] == [True, False, True, False]
    assert verdicts[-1][1] == "No question was rewritten in this run."
    assert Table("Cited", ["source", "support", "span"], [["Snow", "0.90", "“Snow.”"]]) in kept
    assert Text("What came nearest: snow.md.") in kept  # the file, without this machine's folders


@pytest.mark.parametrize(
    ("before", "after", "good", "words"),
    [
        ([False] * 20, [True] * 12 + [False] * 8, True, "more than chance"),
        ([False] * 20, [True] * 2 + [False] * 18, False, "cannot tell it from chance"),
        ([True] * 20, [True] * 19 + [False], False, "no better in this run"),
    ],
)
def test_training_claims_no_more_than_the_numbers_do(
    before: list[bool], after: list[bool], good: bool, words: str
) -> None:
    from shared.stats import mcnemar_exact
    from step4_finetune.evaluation.comparison import Change, Comparison

    a, b = 100 * sum(before) / 20, 100 * sum(after) / 20
    change = Change("all", 20, a, b, b - a, (b - a - 1, b - a + 1), mcnemar_exact(before, after))
    verdict = training._verdict(Comparison([change], None, [], []))
    assert verdict.good is good
    assert words in verdict.words
    assert "n = 20" in verdict.words


def test_one_steps_failure_on_the_service_leaves_the_other_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step5_serving.load import Target

    asked: list[dict[str, str]] = []

    def ask(stage: Stage, package: str, *arguments: str, env: dict[str, str]) -> Any:
        asked.append(env)
        if package == "step2_tool_calling":
            raise UserError("no tools today")
        return a_document("what is snow", "answered")

    monkeypatch.setattr(service, "ask_step", ask)
    kept: list[Any] = []
    stage = Stage(tmp_path, "service", "tiny", kept.append, lambda words: None)
    problems = service._steps(stage, Target("gateway", "http://127.0.0.1:1/v1", "tiny", "sk-1"), ["tools", "grader"])
    assert problems == ["step 2 on the service, tools: no tools today"]
    assert asked == [{"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "sk-1"}] * 2
    assert any(isinstance(block, Verdict) and block.good and "Step 3" in block.words for block in kept)


def test_a_collector_receives_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    with collecting() as collector:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
        tracer = provider.get_tracer("test")
        with tracer.start_as_current_span("POST /v1/chat/completions") as outer, tracer.start_as_current_span("chat"):
            identity = trace.format_trace_id(outer.get_span_context().trace_id)
        with tracer.start_as_current_span("another"):
            pass
        spans = collector.trace(identity, 2)
        provider.shutdown()
    assert [(span.label, span.depth) for span in spans] == [("POST /v1/chat/completions", 0), ("chat", 1)]
    assert spans[0].start == 0 <= spans[1].start <= spans[1].end <= spans[0].end
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" not in os.environ


def test_a_loads_picture_leaves_out_what_was_not_answered() -> None:
    from step5_serving.load import Sample

    samples = [Sample(10, 10, "ok", first=10.5, end=12, tokens=20), Sample(10, 10, "refused", end=10.1)]
    picture = service.load_picture(samples, continuous=True)
    assert picture.title == "1 requests, 8 at a time"
    assert "first token after 0.500 s" in picture.svg
