"""generate, chat and demo: what is printed, what Ctrl-C does, and that every tiny model can do it.

python -m pytest tests/step1/test_generate.py
"""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.engine import Engine
from shared.errors import UserError
from shared.generation import Event
from shared.models import load
from shared.sampling import Sampling
from step1_foundations import bench
from step1_foundations.generate import Session, answer, chat, read_lines, sureness


@pytest.fixture
def session(tiny_llama: Path) -> Session:
    return Session(Engine(load(str(tiny_llama), dtype="float32", quiet=True)), Sampling(seed=1), 12)


def test_generate_prints_text_and_figures(step1: Any, tiny_model: Path) -> None:
    code, out, err = step1("generate", "the cat", "--raw", "-n", 8, "-m", tiny_model, "--explain")
    assert code == 0, err
    assert "answer tokens" in out
    assert "where it hesitated most" in out
    assert max(map(len, out.splitlines())) <= 80 or "(" in out


def test_generate_json_is_repeatable_with_a_seed(step1: Any, tiny_model: Path) -> None:
    arguments = ("generate", "the cat", "--raw", "-n", 8, "-t", 5, "--seed", 7, "-m", tiny_model, "--json")
    first, second = (json.loads(step1(*arguments)[1]) for _ in range(2))
    assert first["tokens"] == second["tokens"]
    assert all(0 <= token["probability"] <= 1 for token in first["tokens"])
    other = json.loads(step1(*[*arguments[:-4], 8, *arguments[-3:]])[1])
    assert other["text"] != first["text"]


def test_generate_uses_the_template_or_says_why_not(step1: Any, tiny_qwen3: Path, tiny_qwen2: Path) -> None:
    templated = json.loads(step1("generate", "hello", "-n", 2, "-m", tiny_qwen3, "--json")[1])
    plain = json.loads(step1("generate", "hello", "-n", 2, "-m", tiny_qwen3, "--json", "--raw")[1])
    assert templated["prompt_tokens"] > plain["prompt_tokens"]
    code, out, err = step1("generate", "hello", "-m", tiny_qwen2, "--json")
    assert (code, out) == (2, "")
    assert "no chat template" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["-t", "-1"], "--temperature must be 0 or more"), (["--top-p", "0"], "--top-p must be above 0")],
)
def test_bad_sampling_is_one_line(step1: Any, tiny_llama: Path, arguments: list[str], message: str) -> None:
    code, _, err = step1("generate", "x", "-m", tiny_llama, "--json", *arguments)
    assert code == 2
    assert err.strip() == f"error: {message}"


def test_a_conversation_through_a_pipe(step1: Any, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "/system be brief\nhello\n/nonsense\n/save talk.json\n/reset\nhi\n/save\n/quit\nnever reached\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, out, err = step1("chat", "-m", tiny_llama, "-n", 6, "--seed", 3)
    assert code == 0
    assert "system message set" in out
    assert "unknown command /nonsense" in out
    assert "never reached" not in out
    assert "/save needs a file name" in err
    saved = json.loads(Path("talk.json").read_text())["messages"]
    assert [m["role"] for m in saved] == ["system", "user", "assistant"]


def test_ctrl_c_ends_the_answer_and_keeps_the_session(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Event) -> None:
        raise KeyboardInterrupt

    result = answer(session.engine, [5, 6, 7], session.sampling, 20, interrupt)
    assert result.finish == "interrupted"
    assert len(result.tokens) == 1
    assert not session.engine.step()  # nothing is left running
    session.max_tokens = 4
    assert session.reply("hello").finish in ("length", "stop")


def test_a_message_that_is_too_long_is_forgotten(session: Session) -> None:
    with pytest.raises(UserError, match="too many"):
        session.reply("the cat sat " * 100)
    assert session.messages == []
    session.set_system("x")
    session.reply("hello")
    session.reset()
    assert session.messages == [{"role": "system", "content": "x"}]


def test_errors_in_a_chat_do_not_end_it(session: Session, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    def lines() -> Iterator[str]:
        yield "the cat sat " * 100
        yield f"/save {tmp_path}/file/talk.json"
        yield "hello"

    chat(session, lines())
    printed = capsys.readouterr()
    assert printed.err.count("error:") == 2
    assert "answer tokens" in printed.out


def test_lines_from_a_pipe_are_echoed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb"))
    assert list(read_lines("you> ")) == ["a\n", "b"]
    assert capsys.readouterr().out == "you> a\nyou> b\n"


def test_colours_follow_probability() -> None:
    assert sureness(0.95) == "default"
    assert len({sureness(p) for p in (0.95, 0.6, 0.3, 0.01)}) == 4


def test_demo_runs_on_another_model(step1: Any, tiny_llama: Path) -> None:
    code, out, err = step1("demo", "-m", tiny_llama, "-o", "r.html")
    assert code == 0, err
    assert "report: r.html" in out
    assert "<html" in Path("r.html").read_text()[:500]


@pytest.mark.real
def test_bench_runs_on_another_model(
    step1: Any, tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rung of each kind, a process each, with a context of 128 tokens."""
    every = bench.ladder(str(tiny_qwen3))
    kinds = ("transformers float32", bench.BASELINE, bench.REFERENCE, "int4 PyTorch", "int4", "int4 HTTP")
    monkeypatch.setattr(bench, "ladder", lambda model: [rung for rung in every if rung[0] in kinds])
    code, out, err = step1("bench", "-m", tiny_qwen3, "-o", tmp_path / "bench.json")
    assert code == 0, err
    rows = {row["name"]: row["metrics"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    assert rows["transformers bfloat16"]["× transformers"]["value"] == 1
    assert rows["float32 loop"]["greedy agreement %"]["value"] == 100
    # The same computation by other hands: transformers in float32 must choose as we do.
    assert rows["transformers float32"]["greedy agreement %"]["value"] > 99
    assert rows["transformers float32"]["perplexity"]["value"] == pytest.approx(
        rows["float32 loop"]["perplexity"]["value"], rel=1e-3
    )
    assert (tmp_path / "bench.png").stat().st_size > 5000
    assert "int4 HTTP" in out
