"""vLLM's Hermes tool parser with this project's grammar for forced calls: a plugin that vLLM loads (launch.py).

    --tool-parser-plugin step5_serving/tool_parser.py --tool-call-parser hermes-lines

The grammar that vLLM 0.32 has for Hermes puts call behind call without the line break that the chat template writes.
After its first call SmolLM2-135M wants that line break, may not have it, and ends: one call where the embedded engine
forces three. And it lets JSON be laid out in any way, which small models use to write spaces for ever. So both engines
are held to the same form (shared/grammar.py), and the same request gets the same calls from either.
"""

from typing import Any

from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser
from vllm.tool_parsers.structural_tag_registry import register_vllm_structural_tag
from xgrammar import StructuralTag

from shared.errors import UserError
from shared.grammar import tool_call_format

NAME = "hermes-lines"


@register_vllm_structural_tag(NAME)
def structural_tag(
    tools: list[Any], builtin_tools: list[Any], tool_choice: str, reasoning: bool, token_suffix: str = ""
) -> StructuralTag:
    """The grammar of a request. tools: xgrammar's tool objects. tool_choice: auto (vLLM asks only where a tool is
    strict), required, or forced, which is one call of the one tool given.

    Raises ValueError, which vLLM answers with 400, for a schema that cannot be a grammar.
    """
    del builtin_tools, reasoning, token_suffix  # of other model families
    functions = [{"function": {"name": t.function.name, "parameters": t.function.parameters}} for t in tools]
    try:
        layout = tool_call_format(functions, required=tool_choice != "auto", parallel=tool_choice != "forced")
    except UserError as error:
        raise ValueError(str(error)) from None
    return StructuralTag.model_validate({"type": "structural_tag", "format": layout})


@ToolParserManager.register_module(NAME)  # type: ignore[arg-type]  # its annotation: class or decorator
class LinesToolParser(Hermes2ProToolParser):
    """Reads calls as its parent does; forces them by the grammar above."""

    structural_tag_model = NAME
