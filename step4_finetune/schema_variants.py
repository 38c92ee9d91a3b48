"""Dress a function specification as a tool: another name, other parameter names, order, optional ones, wording.

The same function never looks the same twice, so that a model has to read the schema it is given. Names follow the
styles found in the wild: snake_case, camelCase, a namespace in front ("finance_loan_payment", what is left of
"finance.loan_payment" where dots are not allowed), the verb behind ("loan_payment_calculate").
"""

from dataclasses import dataclass
from random import Random
from typing import Any

from step4_finetune.function_specs import Argument, Function
from step4_finetune.paraphrases import fuller, reword
from step4_finetune.value_pools import FORMS, Pool, draw

VERBS = {
    "calculate": ("compute", "determine", "estimate", "get"), "get": ("fetch", "retrieve", "lookup"),
    "find": ("search", "locate", "get"), "search": ("find", "lookup"), "create": ("make", "add", "new"),
    "check": ("verify", "inspect"), "book": ("reserve",), "reserve": ("book",), "list": ("show", "get"),
    "convert": ("change",), "make": ("create", "generate"), "plan": ("make",), "set": ("change",),
}  # fmt: skip

# Optional parameters that fit any function and that no question of ours mentions.
SPARE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("verbose", {"type": "boolean", "description": "Return more detail. Default is false."}),
    ("language", {"type": "string", "description": "Language of the answer. Default is 'en'."}),
    ("format", {"type": "string", "enum": ["text", "json"], "description": "Format of the result. Default is 'text'."}),
    ("timeout", {"type": "integer", "description": "Seconds to wait. Default is 30."}),
    ("max_results", {"type": "integer", "description": "How many results at most. Default is 10."}),
    ("precision", {"type": "integer", "description": "Decimals of the result. Default is 2."}),
    ("user_id", {"type": "string", "description": "Who is asking. Optional."}),
    ("include_details", {"type": "boolean", "description": "Whether to add details. Default is false."}),
)


@dataclass(frozen=True)
class Dressed:
    """A function as one example shows it. names: template key -> parameter name. forms, whole: how values are drawn."""

    function: Function
    tool: dict[str, Any]
    names: dict[str, str]
    forms: dict[str, str]
    whole: frozenset[str]
    template: str = ""  # the question template it was dressed for

    @property
    def name(self) -> str:
        """The function's name in the schema."""
        return str(self.tool["function"]["name"])

    @property
    def required(self) -> set[str]:
        """Template keys of the required parameters."""
        wanted = self.tool["function"]["parameters"]["required"]
        return {key for key, name in self.names.items() if name in wanted}


def dress(
    function: Function, rng: Random, given: frozenset[str] = frozenset(), spare: float = 0.15, template: str = ""
) -> Dressed:
    """Dress a function. given: optional arguments that the question, from `template`, speaks of: they must stay."""
    camel = rng.random() < 0.06
    name = _camel(_function_name(function, rng)) if camel else _function_name(function, rng)
    kept = [a for a in function.arguments if not a.optional or a.key in given or rng.random() < 0.5]
    # An optional argument that is said may as well be required; one that is not said must not be.
    required = {a.key for a in kept if not a.optional or (a.key in given and rng.random() < 0.25)}
    names: dict[str, str] = {}
    forms: dict[str, str] = {}
    whole = {
        a.key for a in kept if _deep_kind(a.pool) in ("num", "money") and _can_be_whole(a.pool) and rng.random() < 0.5
    }
    properties: dict[str, Any] = {}
    for argument in _ordered(kept, required, rng):
        key = argument.key
        chosen = rng.choice(argument.names) if rng.random() < 0.6 else key
        if chosen in names.values():
            chosen = key
        names[key] = _camel(chosen) if camel else chosen
        kind = argument.pool.kind
        if kind in FORMS:
            forms[key] = rng.choice(list(FORMS[kind]))
        properties[names[key]] = _schema(argument, rng, forms.get(key, ""), key in whole, key in required)
    if rng.random() < spare:
        extra, schema = rng.choice(SPARE)
        properties.setdefault(extra, schema)
    description = reword(function.does, rng)
    parameters = {
        "type": "object",
        "properties": properties,
        "required": [n for n in properties if n in {names[k] for k in required}],
    }
    tool = {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
    return Dressed(function, tool, names, forms, frozenset(whole), template)


def _function_name(function: Function, rng: Random) -> str:
    base = rng.choice(function.names)
    verb, _, rest = base.partition("_")
    style = rng.random()
    if style < 0.4 or (verb not in VERBS and style < 0.7):
        name = base
    elif verb not in VERBS or style < 0.65:
        prefix = [word for word in function.domain.split("_") if word not in base]
        name = "_".join([*prefix, base])
    elif style < 0.78:
        name = f"{rest}_{verb}"
    elif style < 0.9:
        name = f"{rng.choice(VERBS[verb])}_{rest}"
    else:
        name = rest
    return name[:64]


def _ordered(arguments: list[Argument], required: set[str], rng: Random) -> list[Argument]:
    shuffled = rng.sample(arguments, len(arguments)) if rng.random() < 0.5 else list(arguments)
    return sorted(shuffled, key=lambda a: a.key not in required) if rng.random() < 0.85 else shuffled


def _schema(argument: Argument, rng: Random, form: str, whole: bool, required: bool) -> dict[str, Any]:
    pool = argument.pool
    text = fuller(reword(argument.description, rng), rng)
    if form:
        text += rng.choice(FORMS[pool.kind][form])
    elif pool.kind not in ("enum", "pick") and pool.json_type == "string" and rng.random() < 0.3:
        # A value that stands in the schema is a temptation: what counts is the one in the question.
        text += rng.choice((", e.g. {}", ", e.g. '{}'", ", like {}", " (example: {})")).format(draw(pool, rng).surface)
    schema: dict[str, Any] = pool_schema(pool, whole)
    if pool.kind == "enum":
        values = [value for value, _ in pool.options]
        if rng.random() < 0.4:  # often the choices are only written in the description
            del schema["enum"]
            listed = ", ".join(f"'{value}'" for value in values)
            text += rng.choice([f": {listed}", f". One of {listed}", f", e.g. {listed}"])
    if argument.optional and not required:
        default = _default(argument)
        if default is None:
            text += rng.choice(["", ". Optional", " (optional)"])
        elif rng.random() < 0.15:
            schema["default"] = default
        else:
            shown = f"'{default}'" if isinstance(default, str) else str(default).lower()
            text += rng.choice(
                [
                    f". Default is {shown}",
                    f" (default {shown})",
                    f". Defaults to {shown}",
                    f". Optional, default {shown}",
                ]
            )
    schema["description"] = text + ("." if rng.random() < 0.6 else "")
    return schema


def pool_schema(pool: Pool, whole: bool) -> dict[str, Any]:
    """The JSON Schema of a pool's values."""
    kind = "integer" if whole and pool.json_type == "number" else pool.json_type
    schema: dict[str, Any] = {"type": kind}
    if pool.kind == "enum":
        schema["enum"] = [value for value, _ in pool.options]
    elif pool.kind == "matrix":
        schema["items"] = {"type": "array", "items": {"type": "integer"}}
    elif pool.item:
        schema["items"] = pool_schema(pool.item, whole)
    elif pool.fields:
        schema["properties"] = {name: pool_schema(field, False) for name, field in pool.fields}
    return schema


def _default(argument: Argument) -> Any:
    text, kind = argument.default, argument.pool.json_type
    if text is None or kind in ("array", "object"):
        return None
    if kind == "boolean":
        return text == "true"
    return (float(text) if "." in text else int(text)) if kind in ("integer", "number") else text


def _deep_kind(pool: Pool) -> str:
    return pool.item.kind if pool.item else pool.kind


def _can_be_whole(pool: Pool) -> bool:
    inner = pool.item or pool
    return inner.high - inner.low >= 8 and inner.low > -1000 and inner.decimals == 1


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)
