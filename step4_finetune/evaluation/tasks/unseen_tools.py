"""Function calling with tools that training never showed: the generator's held-out domains and functions.

The leaderboard says how good a model is; this split says whether the training taught calling or a set of tools. The
same checker judges both: an example becomes a question in the leaderboard's form.
"""

from typing import Any

from shared import bfcl
from step4_finetune.evaluation.task import Task, spread
from step4_finetune.evaluation.tasks.bfcl import of_items
from step4_finetune.examples import Example

SEED = 0  # of the split; training data of any seed never has its tools
LEADERBOARD_TYPES = {"number": "float", "object": "dict"}  # where its names differ from JSON Schema's


def task(limit: int | None = None) -> Task:
    """The held-out split, at most `limit` items of each kind. Raises what data_build.held_out raises."""
    from dataclasses import replace

    from step4_finetune.data_build import held_out

    whole = of_items("unseen_tools", [as_question(example) for example in held_out(SEED)])
    # The kind is the group; the category only tells the checker whether calls are expected.
    return replace(whole, items=spread(whole.items, limit))


def as_question(example: Example) -> bfcl.Item:
    """Turn a generated example into a question in the leaderboard's form.

    An argument that the answer leaves out may also be given with the default that its schema states.
    """
    functions = [
        tool["function"] | {"parameters": _description(tool["function"]["parameters"])} for tool in example.tools
    ]
    by_name = {function["name"]: function["parameters"] for function in functions}
    gold = [{name: _acceptable(by_name[name], arguments)} for name, arguments in example.calls()]
    return bfcl.Item(
        id=example.id,
        category=example.kind if gold else "irrelevance",
        messages=example.messages[:-1],
        tools=example.tools,
        functions=functions,
        gold=gold or None,
    )


def _description(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with the leaderboard's type names, at every depth."""
    described = schema | {"type": LEADERBOARD_TYPES.get(schema["type"], schema["type"])}
    if "properties" in schema:
        described["properties"] = {name: _description(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        described["items"] = _description(schema["items"])
    return described


def _acceptable(parameters: dict[str, Any], arguments: dict[str, Any]) -> dict[str, list[Any]]:
    """The acceptable values of each parameter: the answer's, or nothing ("") and the default."""
    values = {name: [_listed(value)] for name, value in arguments.items()}
    for name, described in parameters["properties"].items():
        if name not in arguments and "default" in described:
            values[name] = ["", described["default"]]
    return values


def _listed(value: Any) -> Any:
    """The leaderboard writes a list of acceptable values for each key of an object, but not of one inside it."""
    if isinstance(value, dict):
        return {key: [inner] for key, inner in value.items()}
    if isinstance(value, list):
        return [{key: [inner] for key, inner in v.items()} if isinstance(v, dict) else v for v in value]
    return value
