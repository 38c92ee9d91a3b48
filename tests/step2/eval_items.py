"""Hand-made BFCL items, and outcomes of them, for the tests of `eval`."""

import asyncio
from pathlib import Path
from typing import Any

from shared.bfcl import Item, make_item
from step2_tool_calling.conversation import Usage
from step2_tool_calling.evaluate import Outcome, evaluate
from tests.shared.fake_endpoint import MODEL

HEADER: dict[str, Any] = {"label": "fake native plain", "model": MODEL, "seed": None}


def item(number: int, category: str = "simple_python", city: str = "Oslo") -> Item:
    """A BFCL item that wants weather.now(city), or nothing."""
    properties = {
        "city": {"type": "string", "description": "The city."},
        "days": {"type": "integer", "description": "How many."},
    }
    function = {
        "name": "weather.now",
        "description": "The weather.",
        "parameters": {"type": "dict", "properties": properties, "required": ["city"]},
    }
    question = {
        "id": f"{category}_{number}",
        "question": [[{"role": "user", "content": f"Is it cold in {city}?"}]],
        "function": [function],
    }
    gold = {"ground_truth": [{"weather.now": {"city": [city], "days": ["", 1]}}]}
    return make_item(category, question, None if category == "irrelevance" else gold)


def outcome(of: Item, *calls: tuple[str, str], probability: float | None = None, seconds: float = 1.0) -> Outcome:
    made = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return Outcome(of.id, of.category, made, "", Usage(100, 0, 10, 1), seconds, probability)


RIGHT = ("weather_now", '{"city": "Oslo"}')
WRONG = ("weather_now", '{"city": "Rome"}')


class Counting:
    """Answers items, and notes which; can fail at one."""

    def __init__(self, fail_at: str = "", error: BaseException | None = None) -> None:
        self.asked: list[str] = []
        self.fail_at, self.error = fail_at, error

    async def __call__(self, of: Item) -> Outcome:
        await asyncio.sleep(0)
        self.asked.append(of.id)
        if of.id == self.fail_at and self.error:
            raise self.error
        return outcome(of, RIGHT)


def measure(items: list[Item], answer: Any, path: Path, header: dict[str, Any] = HEADER) -> list[Outcome]:
    return asyncio.run(evaluate(items, answer, path, header=header, concurrency=2))


ITEMS = [item(number) for number in range(6)]
