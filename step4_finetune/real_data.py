"""Real conversations for the mixture: the leaderboard's live categories, and 300 conversations of Glaive's data set.

The live questions were sent by users, their tools written by developers: rougher than ours, and longer. The longest
are left out, since training time goes with tokens. The leaderboard's other categories are the evaluation and stay out.
"""

import json
from collections.abc import Iterator
from typing import Any

from shared import bfcl
from shared.artifacts import fetch
from shared.errors import UserError
from step4_finetune.examples import Example, answer_with_calls, problem
from step4_finetune.paraphrases import refusal, seeded

# Category -> (kind of its examples, characters of tools and messages at most; about 3.5 make a token).
LIVE = {
    "live_simple": ("single", 2400),
    "live_multiple": ("multiple", 2700),
    "live_parallel": ("parallel", 3200),
    "live_parallel_multiple": ("parallel_multiple", 3500),
    "live_irrelevance": ("no_tool", 2100),
}
GLAIVE_LIMIT = 1500
REPLY_WORDS = 40


def bfcl_live() -> Iterator[Example]:
    """Yield the short English items of the live categories with their first gold answer.

    Items whose gold answer does not fit its own schema are left out (BFCL has a few). Raises what bfcl.load raises.
    """
    for category, (kind, limit) in LIVE.items():
        for item in bfcl.load(category):
            messages = list(item.messages)
            if [m["role"] for m in messages] != ["user"] or not _ordinary(messages[0]["content"]):
                continue
            if kind == "no_tool":
                answer: dict[str, Any] = {"role": "assistant", "content": refusal(len(item.tools), seeded(item.id))}
            else:
                calls = bfcl.gold_calls(item)
                answer = answer_with_calls(_in_schema_order(item.tools, call) for call in calls)
            example = Example(f"bfcl-{item.id}", "bfcl-live", kind, [*messages, answer], item.tools)
            if _characters(example) <= limit and problem(example) is None:
                yield example


def _in_schema_order(tools: list[dict[str, Any]], call: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Sort a call's arguments as its schema lists them: constrained decoding writes them in that order."""
    name, arguments = call
    schema = next(tool["function"]["parameters"] for tool in tools if tool["function"]["name"] == name)
    order = list(schema.get("properties", {}))
    return name, dict(sorted(arguments.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else 99))


def glaive() -> Iterator[Example]:
    """Yield the first turn of each conversation that has tools, when its answer is a call or a short text.

    Raises what fetch raises, and UserError for a file of another shape.
    """
    conversations = json.loads(fetch("glaive-toolcall").read_text(encoding="utf-8"))
    try:
        for number, conversation in enumerate(conversations):
            example = _glaive_example(number, conversation)
            if example and _characters(example) <= GLAIVE_LIMIT and problem(example) is None:
                yield example
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"glaive-toolcall is not in the form this step knows: {error!r}") from None


def _glaive_example(number: int, conversation: dict[str, Any]) -> Example | None:
    functions = json.loads(conversation["tools"] or "[]")
    user, reply = conversation["conversations"][:2]
    tools = [{"type": "function", "function": _described(function)} for function in functions]
    if not tools or user["from"] != "human" or not _ordinary(user["value"]):
        return None
    if reply["from"] == "function_call":
        call = json.loads(reply["value"])
        kind = "single" if len(tools) == 1 else "multiple"
        answer = answer_with_calls([_in_schema_order(tools, (call["name"], call["arguments"]))])
    elif len(reply["value"].split()) <= REPLY_WORDS:
        # Either the assistant asks for a value, or it says that it cannot do that.
        kind = "missing" if "?" in reply["value"] or "please" in reply["value"].lower() else "no_tool"
        answer = {"role": "assistant", "content": reply["value"].strip()}
    else:
        return None
    messages = [{"role": "user", "content": user["value"].strip()}, answer]
    return Example(f"glaive-{number}", "glaive", kind, messages, tools)


def _described(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters") or {}
    schema = {
        "type": "object",
        "properties": parameters.get("properties", {}),
        "required": parameters.get("required", []),
    }
    return {"name": function["name"], "description": function.get("description", ""), "parameters": schema}


def _ordinary(text: str) -> bool:
    """English, by its letters, and neither empty nor a document."""
    return text.isascii() and 2 <= len(text.split()) <= 70


def _characters(example: Example) -> int:
    return len(json.dumps([example.tools, example.messages]))
