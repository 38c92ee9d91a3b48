"""Two tools of a city, and examples whose answers call them."""

from typing import Any

from step4_finetune.examples import Example, answer_with_calls

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["city"],
            },
        },
    }
    for name in ("weather", "traffic")
]
TEXT = {"role": "assistant", "content": "I cannot do that."}


def example(name: str, *calls: tuple[str, dict[str, Any]], kind: str = "single") -> Example:
    answer = answer_with_calls(calls) if calls else TEXT
    question = {"role": "user", "content": f"Question {name}: the weather in Oslo?"}
    return Example(name, "synthetic", kind if calls else "no_tool", [question, answer], TOOLS)


OSLO = ("weather", {"city": "Oslo"})
BERGEN = ("weather", {"city": "Bergen", "days": 3})
