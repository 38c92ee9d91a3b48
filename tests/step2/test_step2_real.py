"""The embedded model itself: the demo's answer holds the tools' figures, and forced calls always fit their schemas.

python -m pytest -m real tests/step2/test_step2_real.py
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.config import settings

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def borrowed_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's artifacts and models, but a log of our own."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    settings.cache_clear()
    for name in ("artifacts", "models", "native"):
        real = settings().llm_roadmap_home / name
        real.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(real)
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def test_the_demo_answers_with_the_tools_figures(borrowed_home: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "step2_tool_calling", "demo", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    calls = [one for one in document["calls"] if one["status"] == "ok"]
    weather = {
        json.loads(one["call"]["text"])["city"].lower(): one["output"]
        for one in calls
        if one["call"]["name"] == "get_weather"
    }
    assert {"lisbon", "oslo"} <= weather.keys(), document
    money = [json.loads(one["call"]["text"]) for one in calls if one["call"]["name"] == "convert_currency"]
    assert {"amount": 80, "from": "EUR", "to": "USD"} in money, document
    assert (document["ending"], document["cost"]) == ("answer", 0)
    for city in ("lisbon", "oslo"):
        degrees = re.search(r"-?\d+(\.\d+)?", weather[city].split(":", 1)[1])  # "Lisbon, Portugal: 18.3 °C (feels …"
        assert degrees is not None, weather[city]
        assert degrees[0] in document["answer"], document
    assert "86.4" in document["answer"], document  # 80 EUR in USD at the sandbox's rate


def test_forced_calls_fit_their_schema(borrowed_home: Path, tmp_path: Path) -> None:
    """20 items here; `eval` over all 600 is in step2_tool_calling/results/bfcl.json."""
    from openai import AsyncOpenAI

    from shared.bfcl import Item, load
    from shared.endpoint import connect
    from step2_tool_calling.evaluate import Outcome, as_tools, evaluate, schema_valid, with_prompt
    from step2_tool_calling.prompts import load_prompt
    from step2_tool_calling.strategies import Model, take_turn

    items = [item for category in ("simple_python", "multiple") for item in load(category, 10)]

    async def measure() -> list[Outcome]:
        async with AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, timeout=600) as client:
            model = Model(client, endpoint.model, max_tokens=256, call_threshold=0.0)

            async def answer(item: Item) -> Outcome:
                messages = with_prompt(load_prompt("plain"), item.messages)
                turn = await take_turn("constrained", model, messages, as_tools(item), lambda _: None)
                calls = [{"name": call.name, "arguments": call.text} for call in turn.calls]
                return Outcome(item.id, item.category, calls, turn.content, turn.usage, turn.seconds)

            return await evaluate(items, answer, tmp_path / "run.jsonl", header={"label": "real"}, concurrency=4)

    with connect(quiet=True) as endpoint:
        outcomes = asyncio.run(measure())
    valid = {item.id: schema_valid(item, outcome) for item, outcome in zip(items, outcomes, strict=True)}
    assert False not in valid.values(), [outcome for outcome in outcomes if valid[outcome.id] is False]
    # No schema keeps a small model from filling a list until its tokens are spent: then there is no call at all.
    endless = [outcome for outcome in outcomes if not outcome.calls]
    assert all(outcome.usage.completion == 256 for outcome in endless), endless
    assert len(endless) <= 2
