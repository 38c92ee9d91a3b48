"""The command line of step 2.

    python -m step2_tool_calling --help
    python -m step2_tool_calling ask "Is it warmer in Lisbon or Oslo right now, and what is 80 EUR in NOK?"

Each verb is a few lines; the work is in the module it names. The answer goes to stdout, everything about how it came
to be goes to stderr. Heavy imports stay inside the verbs, so that --help answers at once.
"""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UserError
from shared.terminal import console, print_json, run
from step2_tool_calling.cli_eval import measuring
from step2_tool_calling.cli_log import looking_back
from step2_tool_calling.options import (
    AllowHost,
    Approve,
    Builtin,
    Dollars,
    Files,
    Json,
    Mcp,
    Model,
    Only,
    OpenApi,
    Prompt,
    Sandbox,
    Steps,
    Strategy,
    Threshold,
    Timeout,
    Tokens,
    wishes_of,
)

if TYPE_CHECKING:
    from step2_tool_calling.conversation import Event, Finished
    from step2_tool_calling.session import Wishes
    from step2_tool_calling.tool import Tool

app = typer.Typer(
    help="Answer questions by calling tools: validated, logged, replayable, and measured.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)

DEMO = "Is it warmer in Lisbon or Oslo right now, and what is 80 EUR in USD?"


@app.command()
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", show_default=False)],
    prompt: Prompt = "assistant",
    strategy: Strategy = "auto",
    tools: Files = None,
    openapi: OpenApi = None,
    mcp: Mcp = None,
    only: Only = None,
    sandbox: Sandbox = None,
    builtin: Builtin = True,
    allow_host: AllowHost = None,
    approve: Approve = "unsafe",
    max_steps: Steps = 8,
    max_total_tokens: Tokens = 50_000,
    max_cost: Dollars = 1.0,
    call_threshold: Threshold = None,
    timeout: Timeout = 120.0,
    model: Model = None,
    json: Json = False,
) -> None:
    """Answer QUESTION with the help of tools.

    Example: step2 ask "What is 15% of 80?" --tools my_functions.py
    """
    wishes = wishes_of(
        prompt=prompt, strategy=strategy, files=tools, openapi=openapi, mcp=mcp, only=only, sandbox=sandbox,
        builtin=builtin, allow_host=allow_host, approve=approve, steps=max_steps, tokens=max_total_tokens,
        dollars=max_cost, threshold=call_threshold, timeout=timeout,
    )  # fmt: skip
    _ask(question, wishes, model, json)


def _ask(question: str, wishes: "Wishes", model: str | None, json: bool) -> None:
    from shared.endpoint import connect
    from step2_tool_calling.session import open_session
    from step2_tool_calling.trace import Trace

    if not question.strip():
        raise UserError("the question is empty")
    events: list[Event] = []

    async def answer() -> "tuple[Finished, bool]":
        async with open_session(endpoint, wishes, quiet=json) as session:
            trace = events.append if json else Trace()
            return await session.put(session.opening(question), [trace]), session.sandbox

    with connect(model, quiet=json) as endpoint:
        finished, sandbox = asyncio.run(answer())
    if json:
        print_json(_document(question, finished, events, sandbox))
    if finished.ending != "answer":
        raise UserError(f"stopped by the {finished.ending} (see --help for how to raise it)", exit_code=1)


def _document(question: str, finished: "Finished", events: "list[Event]", sandbox: bool) -> dict[str, Any]:
    """What `ask --json` prints. sandbox: whether the built-in APIs' data was made up."""
    from step2_tool_calling.conversation import CallDone, TurnDone

    calls = [asdict(event.result) | {"step": event.step} for event in events if isinstance(event, CallDone)]
    turns = sum(isinstance(event, TurnDone) for event in events)
    return {"question": question, **asdict(finished), "steps": turns, "sandbox": sandbox, "calls": calls}


@app.command()
def chat(
    prompt: Prompt = "assistant",
    strategy: Strategy = "auto",
    tools: Files = None,
    openapi: OpenApi = None,
    mcp: Mcp = None,
    only: Only = None,
    sandbox: Sandbox = None,
    builtin: Builtin = True,
    allow_host: AllowHost = None,
    approve: Approve = "unsafe",
    max_steps: Steps = 8,
    max_total_tokens: Tokens = 50_000,
    max_cost: Dollars = 1.0,
    call_threshold: Threshold = None,
    timeout: Timeout = 120.0,
    model: Model = None,
    json: Json = False,
) -> None:
    """Talk; /help lists the commands, Ctrl-C stops an answer.

    Example: step2 chat --sandbox --only get_weather,convert_currency
    """
    from shared.endpoint import connect
    from shared.terminal import say
    from step2_tool_calling.chat import converse
    from step2_tool_calling.trace import Trace

    wishes = wishes_of(
        prompt=prompt, strategy=strategy, files=tools, openapi=openapi, mcp=mcp, only=only, sandbox=sandbox,
        builtin=builtin, allow_host=allow_host, approve=approve, steps=max_steps, tokens=max_total_tokens,
        dollars=max_cost, threshold=call_threshold, timeout=timeout,
    )  # fmt: skip
    with connect(model, quiet=json) as endpoint:
        if not json:
            say("/help lists the commands")
        talk = converse(endpoint, wishes, [] if json else [Trace()], quiet=json)
    if json:
        print_json({"model": endpoint.model, "messages": talk.messages, "usage": asdict(talk.used)})


@app.command("tools")
def tools_verb(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False)] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Show the JSON Schema that the model is given.")] = False,
    tools: Files = None,
    openapi: OpenApi = None,
    mcp: Mcp = None,
    builtin: Builtin = True,
    allow_host: AllowHost = None,
    json: Json = False,
) -> None:
    """List the tools a model would be offered, or show one.

    Example: step2 tools get_weather --schema
    """
    from shared.foreign_text import printable

    wishes = wishes_of(files=tools, openapi=openapi, mcp=mcp, builtin=builtin, allow_host=allow_host, sandbox=False)
    found = asyncio.run(_collect(wishes))
    if name is not None:
        found = [tool for tool in found if tool.name == name]
        if not found:
            raise UserError(f"no tool called {name!r}; `tools` lists them")
    if json or schema:
        return print_json([tool.as_openai()["function"] for tool in found] if name is None else found[0].as_openai())
    from rich.text import Text

    out = console()
    for tool in found:
        source = f"{tool.source}{', asks first' if tool.unsafe else ''}"
        out.print(Text.assemble((printable(tool.name), "bold"), "  ", (printable(source), "dim")))
        text = tool.description if name is not None else (tool.description.splitlines() or [""])[0]
        out.print(f"  {printable(text)}", markup=False)
    return None


async def _collect(wishes: "Wishes") -> "list[Tool]":
    from contextlib import AsyncExitStack

    from step2_tool_calling.session import collect_tools

    async with AsyncExitStack() as stack:
        return await collect_tools(stack, wishes)


@app.command("serve-mcp")
def serve_mcp_verb(
    tools: Files = None,
    openapi: OpenApi = None,
    only: Only = None,
    sandbox: Sandbox = None,
    builtin: Builtin = True,
    allow_host: AllowHost = None,
    http: Annotated[
        int | None, typer.Option(metavar="PORT", show_default="stdio", help="Serve over HTTP on this loopback port.")
    ] = None,
) -> None:
    """Offer the tools to other programs as an MCP server, over stdio.

    Sandbox data only with --sandbox: the other program's user does not see our remarks.

    Example: step2 serve-mcp --sandbox
    """
    from contextlib import AsyncExitStack

    from step2_tool_calling.mcp_server import serve_mcp
    from step2_tool_calling.session import collect_tools, live_apis_answer

    wishes = wishes_of(files=tools, openapi=openapi, only=only, sandbox=sandbox, builtin=builtin, allow_host=allow_host)

    async def serve() -> None:
        if builtin and sandbox is None and not await live_apis_answer():
            raise UserError(
                "the network does not answer: --sandbox offers bundled data, --no-builtin leaves the APIs out, --live "
                "insists",
                exit_code=1,
            )
        async with AsyncExitStack() as stack:
            offered = await collect_tools(stack, wishes)
            await serve_mcp(offered, "stdio" if http is None else "http", port=http or 0)

    asyncio.run(serve())


@app.command()
def demo(model: Model = None, json: Json = False) -> None:
    """Ask one question that needs three calls, in the sandbox: what `make step2` runs.

    Example: step2 demo
    """
    if not json:
        console(stderr=True).print(f"[bold]you>[/] {DEMO}")
    _ask(DEMO, wishes_of(sandbox=True), model, json)


app.add_typer(looking_back)
app.add_typer(measuring)


def main() -> None:
    """The program `step2`."""
    run(app)
