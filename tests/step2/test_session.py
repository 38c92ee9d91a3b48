"""What a session decides before it asks: strategy, sandbox, price, tools of one name. Approval: test_approval.py.

python -m pytest tests/step2/test_session.py
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.endpoint import Endpoint
from shared.errors import UserError
from step2_tool_calling.prices import load_prices
from step2_tool_calling.prompts import load_prompt
from step2_tool_calling.session import choose_strategy, choose_threshold
from step2_tool_calling.tool import Tool
from tests.shared.fake_endpoint import say

SERVER = f"{sys.executable} {Path(__file__).parent / 'data' / 'quickstart_server.py'}"

# -- strategy ----------------------------------------------------------------------------------------------------------

ENGINE: Any = SimpleNamespace(model=SimpleNamespace(name="smollm2-135m"))
EMBEDDED = Endpoint("http://127.0.0.1:9/v1", "unused", "smollm2-135m", "", ENGINE, "smollm2-135m")
TUNED = Endpoint("http://127.0.0.1:9/v1", "unused", "tools", "", ENGINE, "smollm2-135m")
SERVED = Endpoint("http://127.0.0.1:8000/v1", "unused", "smollm2-135m", "", base="smollm2-135m")
SERVED_TUNED = Endpoint("http://127.0.0.1:8000/v1", "unused", "tools", "", base="smollm2-135m")
LOCAL = Endpoint("http://127.0.0.1:8000/v1", "unused", "qwen", "", base="qwen")
HOSTED = Endpoint("https://api.openai.com/v1", "unused", "gpt-4o-mini", "")


def test_auto_forces_calls_only_where_it_knows_their_form() -> None:
    plain = load_prompt("plain")
    assert choose_strategy("auto", EMBEDDED, plain)[0] == "constrained"
    assert choose_strategy("auto", LOCAL, plain)[0] == "native"
    assert choose_strategy("auto", HOSTED, plain)[0] == "native"
    assert choose_strategy("constrained", HOSTED, plain) == ("constrained", "--strategy")
    for endpoint in (TUNED, SERVED, SERVED_TUNED):
        assert choose_strategy("auto", endpoint, plain)[0] == "constrained"
    assert [choose_threshold(None, endpoint) for endpoint in (EMBEDDED, SERVED)] == [0, 0]
    assert {choose_threshold(None, endpoint) for endpoint in (TUNED, SERVED_TUNED, LOCAL, HOSTED)} == {0.5}


def test_a_prompt_that_writes_the_tools_itself_needs_text() -> None:
    schema = load_prompt("schema")
    for endpoint in (EMBEDDED, LOCAL):
        assert choose_strategy("auto", endpoint, schema) == ("text", "auto: the prompt schema writes the tools itself")
    assert choose_strategy("text", LOCAL, schema) == ("text", "--strategy")
    for strategy in ("native", "constrained"):
        with pytest.raises(
            UserError, match=r"--prompt schema writes the tools itself \({tools}\): use --strategy text"
        ):
            choose_strategy(strategy, LOCAL, schema)


def test_schema_and_auto_send_the_tools(ask: Any, endpoint: Any) -> None:
    fake = endpoint([say("Hello.")])
    done = ask("--prompt", "schema", "-s", "auto")
    assert "strategy text  (auto: the prompt schema writes the tools itself)" in done.err
    system = fake.messages[0][0]["content"]
    assert '"name": "get_weather"' in system
    assert "{tools}" not in system


# -- sandbox -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The live APIs do not answer; each probe is noted."""
    probes: list[str] = []

    async def answer() -> bool:
        probes.append("probe")
        return False

    monkeypatch.setattr("step2_tool_calling.session.live_apis_answer", answer)
    return probes


def test_json_says_whether_the_data_is_made_up(step2: Any, endpoint: Any, offline: list[str]) -> None:
    for options, sandbox, words in [
        ([], True, "sandbox data, not live  (the network does not answer; --live insists)"),
        (["--sandbox"], True, ""),
        (["--live"], False, ""),
        (["--no-builtin", "--mcp", SERVER], False, ""),
    ]:
        endpoint([say("Hello.")])
        done = step2("ask", "Hi", "--json", *options)
        assert json.loads(done.out)["sandbox"] is sandbox
        assert words in done.err if words else done.err == ""
    assert offline == ["probe"]


def test_serve_mcp_never_falls_back(step2: Any, offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[set[str]] = []

    async def serve(tools: list[Tool], *_: Any, **__: Any) -> None:
        served.append({tool.name for tool in tools})

    monkeypatch.setattr("step2_tool_calling.mcp_server.serve_mcp", serve)
    done = step2("serve-mcp")
    assert (done.code, done.out, served) == (1, "", [])
    assert done.err.startswith("error: the network does not answer: --sandbox offers bundled data")
    for options in (["--sandbox"], ["--live"], ["--no-builtin", "--tools", "my_tools.py"]):
        Path("my_tools.py").write_text('def wait() -> str:\n    """Wait."""\n    return ""\n')
        assert step2("serve-mcp", *options).code == 0
    assert ["get_weather" in names for names in served] == [True, True, False]
    assert offline == ["probe"]


# -- money -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Path]:
    """Endpoints count as hosted; returns where the user's own prices lie."""
    monkeypatch.setattr("step2_tool_calling.session.is_local", lambda _: False)
    load_prices.cache_clear()
    home.mkdir(exist_ok=True)
    yield home / "prices.toml"
    load_prices.cache_clear()


def test_a_broken_price_list_is_found_before_anything_is_paid_for(
    ask: Any, step2: Any, endpoint: Any, hosted: Path
) -> None:
    hosted.write_text("not toml [")
    fake = endpoint([say("Hello.")])
    for done in (ask(), ask("--json")):
        assert (done.code, done.out) == (2, "")
        assert "prices.toml is not readable as TOML" in done.err
    assert fake.requests == []


def test_eval_finds_a_broken_price_list_first(
    step2: Any, endpoint: Any, hosted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.bfcl.load", lambda *_: [])
    monkeypatch.setattr("step2_tool_calling.cli_eval._measure", lambda *_, **__: pytest.fail("paid for"))
    endpoint([])
    hosted.write_text("not toml [")
    done = step2("eval", "-s", "native", "--json")
    assert (done.code, done.out) == (2, "")
    assert "prices.toml is not readable as TOML" in done.err


def test_a_limit_that_cannot_be_enforced_is_said(ask: Any, endpoint: Any, hosted: Path) -> None:
    words = "no price is known for fake-model: --max-cost cannot be enforced"
    endpoint([say("Hello.")] * 5)
    assert words in ask("--max-cost", 0.5).err
    assert words in ask("--max-cost", 0.5, "--json").err
    assert words not in ask().err
    hosted.write_text('[mine.models]\n"fake-model" = { input = 1, output = 1 }\n')
    load_prices.cache_clear()
    assert words not in ask("--max-cost", 0.5).err


# -- tools -------------------------------------------------------------------------------------------------------------


def test_two_tools_of_one_name(step2: Any, ask: Any, endpoint: Any) -> None:
    fake = endpoint([])
    done = step2("ask", "Hi", "--sandbox", "--tools", "my_tools.py", "--only", "get_weather")
    assert (done.code, done.out) == (2, "")
    assert (
        "two tools are called 'get_weather' (built-in and my_tools.py), and --only cannot tell them apart: "
        "leave one source out (--no-builtin, or no --tools my_tools.py)"
    ) in done.err
    done = step2("ask", "Hi", "--no-builtin", "--mcp", SERVER, "--mcp", f"{SERVER} ")
    assert done.code == 2
    assert f"no --mcp {SERVER}, or no --mcp {SERVER} )" in done.err
    assert fake.requests == []


def test_only_may_name_a_tool_twice(ask: Any, endpoint: Any) -> None:
    fake = endpoint([say("Hi.")])
    assert ask("--only", "sleep,get_weather, sleep").code == 0
    assert [tool["function"]["name"] for tool in fake.requests[0]["tools"]] == ["sleep", "get_weather"]
