"""Constrained decoding: at every step, only tokens that can still lead to a valid output keep their logits.

xgrammar compiles a JSON schema (or the tool-call format below) to an automaton over the tokenizer's vocabulary and
answers, token by token, which ids may come next. Importing it takes about 3 s, so it is imported on first use.
Source: Dong et al., "XGrammar: Flexible and Efficient Structured Generation Engine", 2024.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from shared.errors import UserError
from shared.tokenizer import ChatTokenizer

TOOL_CALL_BEGIN = "<tool_call>\n"
TOOL_CALL_END = "\n</tool_call>"


class Matcher:
    """The state of one constrained generation."""

    def __init__(self, compiled: Any, vocabulary: int) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._bitmask = xgrammar.allocate_token_bitmask(1, vocabulary)
        self._apply = xgrammar.apply_token_bitmask_inplace

    def mask(self, logits: Tensor) -> Tensor:
        """Return logits [vocabulary] with every token that cannot come next at -inf."""
        self._matcher.fill_next_token_bitmask(self._bitmask)
        masked = logits.clone()[None]
        self._apply(masked, self._bitmask.to(masked.device))
        return masked[0]

    def accept(self, token: int) -> bool:
        """Advance by one sampled token; return True when the output is complete."""
        if not self._matcher.accept_token(token):
            raise AssertionError(f"token {token} was sampled against the grammar's mask")
        return bool(self._matcher.is_terminated())


class GrammarCompiler:
    """Compiles schemas for one tokenizer; compiled grammars are cached, because requests repeat them."""

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: int, eos: Sequence[int]) -> None:
        import xgrammar

        # Special tokens get no bytes: a constrained text must never contain an end-of-turn token spelt out.
        table = [b"" if tokenizer.is_special(i) else piece for i, piece in enumerate(tokenizer.token_bytes)]
        info = xgrammar.TokenizerInfo(table, vocab_size=vocabulary, stop_token_ids=list(eos))
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self._vocabulary = vocabulary
        self.compile = lru_cache(maxsize=256)(self._compile)

    def json_schema(self, schema: Mapping[str, Any]) -> Matcher:
        """Output is one JSON value valid under `schema`. Raises UserError when the schema cannot be compiled."""
        return Matcher(self.compile(_schema_grammar(schema)), self._vocabulary)

    def json_object(self) -> Matcher:
        """Output is any JSON object."""
        return self.json_schema({"type": "object"})

    def tool_calls(self, tools: Sequence[Mapping[str, Any]], *, required: bool, parallel: bool) -> Matcher:
        """Output is text with the tool calls of `tool_call_format`. Raises UserError as `json_schema` does."""
        layout = tool_call_format(tools, required=required, parallel=parallel)
        return Matcher(self.compile(json.dumps({"type": "structural_tag", "format": layout})), self._vocabulary)

    def _compile(self, source: str) -> Any:
        """source: EBNF, or a structural tag as JSON."""
        try:
            if source.startswith('{"type": "structural_tag"'):
                return self._compiler.compile_structural_tag(source)
            return self._compiler.compile_grammar(source)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the schema cannot be compiled to a grammar: {str(error).splitlines()[0]}") from None


def tool_call_format(tools: Sequence[Mapping[str, Any]], *, required: bool, parallel: bool) -> dict[str, Any]:
    """xgrammar's description of tool calls with valid arguments, each on lines of its own as the chat template writes
    them: one (or more, if parallel) when required; else free text may come first, and a call is held to its schema from
    the moment it begins.

    tools: OpenAI tool objects, {"type": "function", "function": {"name", "parameters"}}. Raises UserError for a schema
    that is none or cannot be a grammar.
    """
    tags = [
        {
            "type": "tag",
            "begin": f'{TOOL_CALL_BEGIN}{{"name": {json.dumps(tool["function"]["name"])}, "arguments": ',
            "content": {"type": "grammar", "grammar": _schema_grammar(parameters_of(tool))},
            "end": "}" + TOOL_CALL_END,
        }
        for tool in tools
    ]
    if required:
        layout = {"type": "tags_with_separator", "tags": tags, "separator": "\n", "at_least_one": True}
    else:
        layout = {"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": tags}
    return layout | {"stop_after_first": not parallel}


def parameters_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of a tool's arguments; a tool without one takes no arguments."""
    parameters: Mapping[str, Any] = tool["function"].get("parameters") or {"type": "object", "properties": {}}
    return parameters


@lru_cache(maxsize=256)
def _grammar_of(schema: str) -> str:
    import xgrammar

    # One fixed layout (", " and ": ", as json.dumps writes): small models left free can emit whitespace for ever.
    try:
        grammar = str(xgrammar.Grammar.from_json_schema(schema, any_whitespace=False, separators=(", ", ": ")))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the JSON schema is not supported: {str(error).splitlines()[0]}") from None
    # xgrammar 0.2.8 lets raw control characters into strings with minLength or maxLength, which JSON forbids.
    return grammar.replace(r"[^\"\\\r\n]", r"[^\0-\x1f\"\\\r\n]")


def _schema_grammar(schema: Mapping[str, Any]) -> str:
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UserError(f"not a valid JSON schema: {error.message}") from None
    return _grammar_of(json.dumps(_naming_required(schema)))


def _naming_required(schema: Any) -> Any:
    """The schema with every required property also described: xgrammar leaves out those that `properties` lacks.

    One of BFCL's 1,000 calling items is such a schema; its forced call was {} where three properties are required.
    """
    if isinstance(schema, list):
        return [_naming_required(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _naming_required(value) for key, value in schema.items()}
    required, properties = schema.get("required"), schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    if isinstance(required, list) and isinstance(properties, dict) and others is not False:
        missing = {name: others for name in required if name not in properties}
        return schema | {"properties": properties | missing} if missing else schema
    return schema
