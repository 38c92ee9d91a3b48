"""`demo`: the whole service started, asked by the official client, and stopped; its engine process is a fake."""

import sys
from contextlib import closing
from pathlib import Path

import pytest

from shared.errors import UserError
from step5_serving import keys
from step5_serving.database import connect
from step5_serving.demo import demo
from step5_serving.launch import Launch, free_port
from step5_serving.usage import usage_rows


def launch(*arguments: str) -> Launch:
    port = free_port()
    program = [str(Path(__file__).with_name("fake_engine.py")), "--port", str(port), *arguments]
    return Launch("fake", "base", [sys.executable, *program], {}, f"http://127.0.0.1:{port}", 4, 2.0)


def test_it_chats_calls_a_tool_and_says_what_that_cost(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = demo(launch("--models", "base,tools"))
    out, err = capsys.readouterr()
    chat, tool_call = found["chat"], found["tool_call"]
    assert chat["answer"].startswith("w0 w1 ")
    assert out.splitlines()[0] == chat["answer"]
    assert out.splitlines()[1] == 'get_weather({"x": 1})'
    assert tool_call["calls"] == [{"name": "get_weather", "arguments": '{"x": 1}'}]
    for answer in (chat, tool_call):
        assert answer["completion"] == 80
        assert answer["cost"] > 0
        assert answer["trace"] in err
    assert "stopped" in err
    with closing(connect()) as database:
        assert usage_rows(database, [])[0]["completion"] == 160  # the accounts stay
        assert not keys.usable(database)  # its key does not


def test_without_the_adapter_it_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = demo(launch("--models", "base"), quiet=True)
    assert found["tool_call"] is None
    out, err = capsys.readouterr()
    assert out == ""
    assert "no adapter 'tools'" in err


def test_an_engine_that_does_not_start_is_a_failure_not_a_wait(home: Path) -> None:
    broken = launch()
    broken = Launch("fake", "base", [sys.executable, "-S", "-c", "exit(3)"], {}, broken.url, 4, 2.0)
    with pytest.raises(UserError, match="engine.log") as failed:
        demo(broken)
    assert failed.value.exit_code == 1
