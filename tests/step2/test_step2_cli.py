"""The program `step2`: every verb as a person uses it, and what it says about mistakes.

python -m pytest tests/step2/test_step2_cli.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from step2_tool_calling.tool import Tool
from tests.shared.fake_endpoint import MODEL, call, refuse, say

ROOT = Path(__file__).parents[2]
VERBS = ["ask", "chat", "tools", "serve-mcp", "demo", "log", "replay", "prompts", "eval", "calibrate", "compare"]
LISBON, OSLO = ("get_weather", {"city": "Lisbon"}), ("get_weather", {"city": "Oslo"})
WARMER = say("Lisbon: 18.5 °C, Oslo: 4.5 °C.")


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(step2: Any, verb: str) -> None:
    done = step2(verb, "--help")
    assert done.code == 0
    if verb != "serve-mcp":
        assert f"Example: step2 {verb}" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert verb in step2("--help").out


def test_help_loads_nothing_heavy() -> None:
    """What makes `--help` answer at once; the time itself is measured by step2_tool_calling/bench.py."""
    code = "import sys; from step2_tool_calling import cli; print(' '.join(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    heavy = {"openai", "torch", "mcp", "pint", "httpx", "httpx2", "sqlite3", "jsonschema", "transformers", "numpy"}
    assert heavy & set(loaded.stdout.split()) == set()


def test_help_says_what_limits_do(step2: Any) -> None:
    text = " ".join(step2("ask", "--help").out.split())
    assert "the last gets no tools, so 1 means none" in text
    assert "Longest silence of the endpoint, in each attempt: ask makes 3, eval 5" in text
    assert "an endpoint on this machine is local and costs 0" in text
    assert "auto: constrained for the embedded engine, else native" in text


def test_attempts_are_as_many_as_the_help_says(ask: Any, endpoint: Any) -> None:
    fake = endpoint([refuse(500)] * 9)
    assert ask().code == 1
    assert len(fake.requests) == 3


# -- ask ---------------------------------------------------------------------------------------------------------------


def test_a_question_that_needs_three_calls_in_the_sandbox(step2: Any, endpoint: Any) -> None:
    """`make step2` with a fake in the model's place: the real tools, over HTTP, with the sandbox's data."""
    question = "Is it warmer in Lisbon or Oslo right now, and what is 80 EUR in NOK?"
    money = ("convert_currency", {"amount": 80, "from": "EUR", "to": "NOK"})
    fake = endpoint([call(LISBON, OSLO, money), say("Lisbon is warmer.")])
    done = step2("ask", question, "--sandbox", "-s", "native")
    assert (done.code, done.out) == (0, "Lisbon is warmer.\n")
    assert "sandbox data, not live  (--sandbox)" in done.err
    results = fake.results()
    assert len(results) == 3
    assert all("sandbox" in result for result in results)  # the model is told, too
    assert "Lisbon" in results[0]
    assert "NOK" in results[2]


def test_json_is_one_document_and_silence(ask: Any, endpoint: Any) -> None:
    endpoint([call(LISBON, ("get_weather", {"town": "Oslo"})), WARMER])
    done = ask("--json")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    assert (document["answer"], document["ending"], document["steps"]) == (WARMER.text, "answer", 2)
    assert sorted(one["status"] for one in document["calls"]) == ["invalid", "ok"]
    assert document["usage"] == {"prompt": 200, "cached": 0, "completion": 20, "requests": 2}


def test_json_of_a_conversation_that_a_limit_ended(ask: Any, endpoint: Any) -> None:
    endpoint([call(OSLO)])
    done = ask("--json", "--max-total-tokens", 10)
    assert done.code == 1
    assert json.loads(done.out)["ending"] == "token limit"
    assert done.err.startswith("error: stopped by the token limit")


@pytest.mark.parametrize("strategy", ["text", "auto"])
def test_other_strategies(ask: Any, endpoint: Any, strategy: str) -> None:
    written = say('{"name": "get_weather", "arguments": {"city": "Oslo"}}')
    endpoint({"text": [written, WARMER], "auto": [call(OSLO), WARMER]}[strategy])
    done = ask("-s", strategy)
    assert (done.code, done.out) == (0, WARMER.text + "\n")
    assert '→ get_weather(city="Oslo")' in done.err
    assert ("strategy native  (auto: an endpoint is taken to know tools" in done.err) == (strategy == "auto")


def test_only_some_tools_are_offered(ask: Any, endpoint: Any) -> None:
    fake = endpoint([say("Hi.")])
    ask("--only", "send_mail, get_weather")
    assert [tool["function"]["name"] for tool in fake.requests[0]["tools"]] == ["send_mail", "get_weather"]


def test_tools_of_an_mcp_server(step2: Any, endpoint: Any) -> None:
    fake = endpoint([call(("add", {"a": 2, "b": 3}), ("text_greet", {"name": "Ada"})), say("5.")])
    server = f"{sys.executable} {Path(__file__).parent / 'data' / 'quickstart_server.py'}"
    done = step2("ask", "What is 2 + 3?", "--no-builtin", "--mcp", server, "-s", "native", "--approve", "never")
    assert (done.code, done.out) == (0, "5.\n"), done.err
    assert [json.loads(result)["result"] for result in fake.results()] == [5, "Hello, Ada!"]


def test_a_document_on_a_private_address_is_refused(step2: Any, endpoint: Any) -> None:
    fake = endpoint([])
    done = step2("ask", "What?", "--no-builtin", "--openapi", fake.base_url + "/openapi.json")
    assert done.code == 1
    assert "127.0.0.1 has no public address" in done.err
    assert fake.requests == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "get_wether"], "no tool called 'get_wether'; there are get_weather, sleep"),
        (["--strategy", "magic"], "--strategy 'magic': use auto, native, constrained or text"),
        (["--approve", "perhaps"], "--approve 'perhaps': use always, unsafe or never"),
        (["--prompt", "nonsense"], "no prompt 'nonsense'"),
        (["--tools", "missing.py"], "missing.py"),
        (["--tools", "my_tools.py"], "two tools are called 'get_weather'"),
        (["--model", "gpt-5"], "does not serve 'gpt-5'; it lists fake-model"),
        (["--openapi", "missing.yaml"], "missing.yaml"),
        (["--max-steps", "0"], "Invalid value for '--max-steps'"),
    ],
)
def test_mistakes_are_named_before_anybody_is_asked(ask: Any, endpoint: Any, options: list[str], words: str) -> None:
    fake = endpoint([])
    done = ask(*options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert fake.requests == []


def test_an_empty_question(step2: Any) -> None:
    assert step2("ask", "  ")[::2] == (2, "error: the question is empty\n")


# -- looking -----------------------------------------------------------------------------------------------------------


def test_tools_lists_them_and_shows_one(step2: Any, ask: Any) -> None:
    listed = step2("tools", "--tools", "my_tools.py")
    assert "get_weather" not in step2("tools", "--no-builtin").out
    done = step2("tools", "--no-builtin", "--tools", "my_tools.py")
    assert "get_weather  my_tools.py\n  The temperature in a city, in degrees Celsius.\n" in done.out
    assert "send_mail  my_tools.py, asks first" in done.out
    assert listed.code == 2  # the built-in get_weather is there already
    schema = json.loads(step2("tools", "send_mail", "--schema", "--no-builtin", "--tools", "my_tools.py").out)
    assert schema["function"]["parameters"]["required"] == ["to"]
    assert len(json.loads(step2("tools", "--json").out)) >= 7
    missing = step2("tools", "nothing", "--no-builtin")
    assert (missing.code, missing.err) == (2, "error: no tool called 'nothing'; `tools` lists them\n")


def test_foreign_names_and_descriptions_are_shown_not_obeyed(step2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: dict[str, Any]) -> None: ...

    async def collect(*_: Any) -> list[Tool]:
        return [Tool("x\x1b[2J", "\x9b2Ja\u202e [bold]b[/b]", {"type": "object"}, never, source="a[/b]\x07/t.py")]

    monkeypatch.setattr("step2_tool_calling.session.collect_tools", collect)
    for done in (step2("tools"), step2("tools", "x\x1b[2J")):
        assert done.out == "x␛[2J  a[/b]␇/t.py\n  �2Ja� [bold]b[/b]\n"


def test_a_tools_file_in_a_folder_that_looks_like_markup(step2: Any, tmp_path: Path) -> None:
    (tmp_path / "a[/b]").mkdir(parents=True)
    (tmp_path / "a[/b]" / "t.py").write_text('def wait() -> str:\n    """Wait."""\n    return ""\n')
    done = step2("tools", "--no-builtin", "--tools", "a[/b]/t.py")
    assert (done.code, done.out) == (0, "wait  a[/b]/t.py\n  Wait.\n")


@pytest.mark.parametrize("verb", ["log", "replay"])
def test_numbers_that_sqlite_has_not(step2: Any, verb: str) -> None:
    for number in (2**63, 10**20, -(10**20)):
        done = step2(verb, "--", number)
        assert done.code == 2
        assert f"no conversation {number}" in done.err
    assert step2("log", "-n", 10**20).code == 0


def test_log_lists_and_shows(step2: Any, ask: Any, endpoint: Any) -> None:
    assert step2("log").code == 0
    endpoint([call(LISBON, OSLO), WARMER])
    ask()
    listed = step2("log")
    assert "Is it warmer in Lisbon or Oslo?" in listed.out
    shown = step2("log", 1)
    assert WARMER.text in shown.out
    assert '→ get_weather(city="Lisbon")' in shown.out
    (entry,) = json.loads(step2("log", "--json").out)
    assert (entry["id"], entry["calls"], entry["usage"]["prompt"]) == (1, 2, 200)
    document = json.loads(step2("log", 1, "--json").out)
    assert [turn["step"] for turn in document["turns"]] == [1, 2]
    assert (document["model"], document["strategy"], document["cost"]) == (MODEL, "native", 0)
    missing = step2("log", 9)
    assert (missing.code, missing.out) == (2, "")
    assert "no conversation 9" in missing.err


def test_prompts_lists_what_each_tries(step2: Any) -> None:
    assert "plain" in step2("prompts").out
    prompts = json.loads(step2("prompts", "--json").out)
    assert {"plain", "examples", "schema", "assistant"} <= {prompt["name"] for prompt in prompts}


def test_no_arguments_is_help(step2: Any) -> None:
    done = step2()
    assert done.code == 2
    assert "Commands:" in done.out + done.err


def test_python_m_is_the_same_program() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, "-m", "step2_tool_calling", "ask", " "]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: the question is empty\n")
