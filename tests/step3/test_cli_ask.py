"""`step3 ask` and `step3 chat`: what goes where, the trace, JSON, the history, Ctrl-C, and a real way over HTTP.

python -m pytest tests/step3/test_cli_ask.py
"""

import contextlib
import io
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_chat_model import FakeChat
from fake_encoder import FakeEncoder
from fake_index import FakeIndex, passage
from reflection_world import ANSWER, LIMITS, PASSAGES, QUESTION, asked, grader, resources, settle
from typer.testing import CliRunner, Result

from shared import config
from shared.errors import UserError
from step3_rag import graders
from step3_rag import resources as resources_module
from step3_rag.answers import Answer, Citation, Event, Sentence, Step, Token
from step3_rag.cli import app
from step3_rag.ingest import collection_folder, ingest
from step3_rag.resources import Resources
from step3_rag.trace import Trace, document, step_line, with_markers
from tests.shared.terminal_screen import Terminal

HOSTILE = "Salmon\x1b]0;owned\x07 live in the Amber river.\x9b31m"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put fakes where the collection and the models would be opened; what was asked for is kept."""
    calls: list[dict[str, Any]] = []

    def say(prompt: str) -> str:
        return "Do salmon live in the Amber river?" if prompt.startswith("Earlier question") else ANSWER

    @contextlib.contextmanager
    def fakes(folder: Path, **arguments: Any) -> Iterator[Resources]:
        calls.append({"folder": folder, **arguments})
        yield Resources(**(vars(resources(say=say)) | {"graders": dict.fromkeys(graders.GRADERS, grader())}))

    monkeypatch.setattr(resources_module, "open_resources", fakes)
    monkeypatch.setattr("step3_rag.reflection.load_thresholds", lambda name: LIMITS)
    return calls


def step3(*words: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, list(words), input=typed)


# -- ask -----------------------------------------------------------------------------------------------------------


def test_the_answer_goes_to_stdout_and_where_it_stands_to_stderr(opened: list[dict[str, Any]]) -> None:
    done = step3("ask", QUESTION)
    assert done.exit_code == 0, done.exception
    assert done.stdout == "Salmon live in the Amber river. [1][2] Cats do too. [1][2]\n" or done.stdout.startswith(
        "Salmon"
    )
    assert "[1] /docs/notes.md > Animals" in done.stderr
    assert "“Salmon live in the Amber river.”" in done.stderr
    assert "retrieve" not in done.stderr
    default = resources_module.default_grader()
    assert opened == [{"folder": collection_folder("default"), "model": None, "graders": [default], "quiet": False}]


def test_trace_shows_every_decision_and_explain_is_the_same(opened: list[dict[str, Any]]) -> None:
    for flag in ("--trace", "--explain"):
        done = step3("ask", QUESTION, flag, "--grader", "overlap", "-k", "2", "--collection", "work", "-m", "big")
        for node in ("route", "retrieve", "grade", "generate", "cite", "check", "answer"):
            assert f" {node} " in done.stderr
        assert max(map(len, done.stderr.splitlines())) <= 80
    assert opened[0] == {"folder": collection_folder("work"), "model": "big", "graders": ["overlap"], "quiet": False}


def test_json_is_one_document_with_quotes_and_steps(opened: list[dict[str, Any]]) -> None:
    done = step3("ask", QUESTION, "--json")
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert found["question"] == QUESTION
    assert found["abstained"] is False
    citation = found["sentences"][0]["citations"][0]
    assert citation["quote"] == "Salmon live in the Amber river."
    source = next(p for p in PASSAGES if p.id == citation["passage"])
    assert source.text[citation["start"] - source.start : citation["end"] - source.start] == citation["quote"]
    assert [step["node"] for step in found["steps"]][-1] == "answer"


def test_an_empty_question_and_a_wrong_grader_are_usage_errors(opened: list[dict[str, Any]]) -> None:
    assert isinstance(step3("ask", " ").exception, UserError)
    wrong = step3("ask", QUESTION, "--grader", "nice").exception
    assert isinstance(wrong, UserError)
    assert wrong.exit_code == 2


def test_help_names_the_graders_and_an_example() -> None:
    for verb in ("ask", "chat"):
        text = " ".join(step3(verb, "--help").stdout.split())
        assert "llm, adapter, embedding or overlap" in text
        assert f"step3 {verb}" in text


# -- chat ----------------------------------------------------------------------------------------------------------


def test_a_follow_up_is_made_stand_alone_and_undone(opened: list[dict[str, Any]]) -> None:
    done = step3("chat", typed=f"{QUESTION}\nDo they?\n/undo\n/undo\n/undo\nDo they?\n/quit\nnot asked\n")
    assert done.exit_code == 0, done.exception
    assert done.stderr.count("understood as: Do salmon live in the Amber river?") == 1  # not after it was forgotten
    assert done.stderr.count("forgotten") == 2
    assert "there is no question to forget" in done.stderr
    assert done.stdout.count("Salmon live in the Amber river.") == 3
    assert "not asked" not in done.stderr


def test_sources_and_trace_of_the_last_answer(opened: list[dict[str, Any]]) -> None:
    done = step3("chat", typed=f"/sources\n/trace\n{QUESTION}\n/sources\n/trace\n/nonsense\x1b[2J\n/help\n")
    assert "nothing was asked yet" in done.stderr
    assert "Salmon live in the Amber river. Trolls do not." in done.stderr  # the passage, whole
    assert "✓ retrieve  found" in done.stderr
    assert "no command /nonsense" in done.stderr
    assert "\x1b" not in done.stderr
    assert "/undo" in done.stderr


def test_chat_as_json_is_a_list_of_answers(opened: list[dict[str, Any]]) -> None:
    done = step3("chat", "--json", typed=f"{QUESTION}\nhello there\n")
    first, second = json.loads(done.stdout)
    assert (first["route"], second["route"]) == ("collection", "small_talk")


def test_a_failure_and_ctrl_c_end_the_question_and_not_the_conversation(
    opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from step3_rag import chat

    real, told = chat.run, iter([UserError("the endpoint is gone", exit_code=1), KeyboardInterrupt(), None])

    def run(question: str, *rest: Any) -> Iterator[Event]:
        events = real(question, *rest)
        trouble = next(told)
        for event in events:
            if isinstance(event, Token) and trouble:
                raise trouble
            yield event

    monkeypatch.setattr(chat, "run", run)
    done = step3("chat", "--json", typed=f"{QUESTION}\n{QUESTION}\n{QUESTION}\n")
    assert done.exit_code == 0, done.exception
    assert "error: the endpoint is gone" in done.stderr
    assert "(stopped)" in done.stderr
    assert len(json.loads(done.stdout)) == 1  # what failed or was stopped is not in the history


# -- on a terminal -------------------------------------------------------------------------------------------------


def shown(events: list[Event], screen: Terminal, *, steps: bool) -> list[str]:
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        trace = Trace(steps=steps)
        trace.begin()
        for event in events:
            trace(event)
    return screen.screen()


def test_what_streamed_is_replaced_by_the_answer_as_it_stands(terminal: Terminal) -> None:
    poor = lambda task, cases: [0.1 if case.answer.startswith("Cats") else 0.9 for case in cases]  # noqa: E731
    events, answer = asked(resources(poor))
    assert "Cats" in "".join(event.text for event in events if isinstance(event, Token))
    lines = shown(events, terminal, steps=False)
    assert lines[0].startswith("Salmon live in the Amber river. [1]")
    assert not any("Cats" in line or "…" in line for line in lines)
    assert any("1 citation dropped" in line for line in lines)
    assert answer.text == "Salmon live in the Amber river."


def test_two_attempts_leave_one_declined_answer(terminal: Terminal) -> None:
    events, _ = asked(resources(grader(grounded=0.0)))
    lines = shown(events, terminal, steps=True)
    assert sum("generate" in line for line in lines) == 2
    assert any(line.startswith("I don't know: nothing that was written") for line in lines)
    assert not any(line.startswith("Salmon") for line in lines)


def test_a_document_cannot_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    p = passage("x", HOSTILE, source="a\x1b[2J.md", titles=["T\x07itle\nforged line"])
    citation = Citation(p, 0, len(HOSTILE), 0.9)
    answer = Answer("?", HOSTILE, (Sentence(HOSTILE, (citation,)),), False, "", (), 0, "collection", (), 3, 0.1)
    trace = Trace(steps=True)
    trace(Step("rewrite", "new query", {"query": HOSTILE, "deep": {"list": [HOSTILE]}}, 0.1))
    trace(answer)
    written = capsys.readouterr()
    assert not set(written.out + written.err) & {"\x1b", "\x07", "\x9b"}
    assert not any(line.startswith("forged") for line in written.err.splitlines())


def test_markers_stand_after_their_sentences() -> None:
    first, second = (Citation(p, p.start, p.end, 0.9) for p in PASSAGES[:2])
    answer = Answer(
        "?", "One.\n- Two. Two.", (Sentence("One.", (second,)), Sentence("Two.", (first, second))), False, "", (), 0,
        "collection", (), 1, 0.1,
    )  # fmt: skip
    assert with_markers(answer, {PASSAGES[1].id: 1, PASSAGES[0].id: 2}) == "One. [1]\n- Two. [1][2] Two."


def test_lines_of_the_trace_and_the_document_hold_for_every_step() -> None:
    events, answer = asked(resources(grader(relevant=0.1)), settle())
    steps = [event for event in events if isinstance(event, Step)]
    for step in steps:
        assert step.node in "".join(text for text, _ in step_line(step))
    found = json.loads(json.dumps(document(answer, steps), allow_nan=False))
    assert found["nearest"][0]["source"].startswith("/docs/")
    assert found["reason"] == answer.reason


# -- all of it over HTTP ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fake_openai(say: str, yes: float) -> Iterator[str]:
    """A fake OpenAI-compatible server on the loopback: lists one model, always says and grades the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"object": "list", "data": [{"id": "fake-model", "max_model_len": 2048}]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if request.get("stream"):
                chunks = [{"content": word + " "} for word in say.split()] + [{}]
                events = [self.chunk({"index": 0, "delta": delta, "finish_reason": None}) for delta in chunks]
                return self.send("text/event-stream", "".join([*events, "data: [DONE]\n\n"]))
            top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in (("yes", yes), ("no", 1 - yes))]
            choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
            logprobs = {"content": [top[0] | {"top_logprobs": top}]}
            return self.reply({"id": "c", "object": "chat.completion", "created": 1, "model": "fake-model",
                               "choices": [choice | {"logprobs": logprobs}]})  # fmt: skip

        def chunk(self, choice: dict[str, Any]) -> str:
            head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake-model"}
            return f"data: {json.dumps(head | {'choices': [choice]})}\n\n"

        def reply(self, body: dict[str, Any]) -> None:
            self.send("application/json", json.dumps(body))

        def send(self, kind: str, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["llm", "adapter"])
def test_ask_works_with_another_endpoint_and_a_real_collection(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("step3_rag.encoder.Encoder", lambda name: FakeEncoder())
    (tmp_path / "rivers.md").write_text("# Rivers\n\nSalmon live in the Amber river. Trolls do not.\n")
    config.settings.cache_clear()
    ingest([tmp_path / "rivers.md"], collection_folder(), FakeEncoder())
    with fake_openai("Salmon live in the Amber.", 0.9) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        config.settings.cache_clear()
        done = step3("ask", "Which fish live in the Amber river?", "--grader", name, "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert found["answer"] == "Salmon live in the Amber."
    [citation] = found["sentences"][0]["citations"]
    assert citation["support"] == pytest.approx(0.9)
    text = (tmp_path / "rivers.md").read_text()
    assert text[citation["start"] : citation["end"]] == citation["quote"] == "Salmon live in the Amber river."


def test_a_missing_collection_or_adapter_is_said_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="there is no collection in"), resources_module.open_resources(tmp_path):
        pass
    with (
        pytest.raises(UserError, match="--grader 'x': use one of"),
        resources_module.open_resources(tmp_path, graders=["x"]),
    ):
        pass
    (tmp_path / "a.md").write_text("Salmon.")
    ingest([tmp_path / "a.md"], tmp_path, FakeEncoder())
    monkeypatch.setattr("shared.endpoint.PUBLISHED", tmp_path)
    with (
        pytest.raises(UserError, match="has no grader for smollm2-135m; train it"),
        resources_module.open_resources(tmp_path, graders=["adapter"]),
    ):
        pass


def test_lines_from_a_pipe_are_echoed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from step3_rag.chat import read_lines

    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo"))
    assert list(read_lines("you> ")) == ["one", "two"]
    assert capsys.readouterr().err == "you> one\nyou> two\n"


def test_the_fakes_are_fakes() -> None:
    assert FakeChat()._llm_type.startswith("fake")
    assert FakeIndex([]).encoder.startswith("fake")
