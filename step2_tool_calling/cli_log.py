"""The verbs that look back: log and replay."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import UserError
from shared.terminal import console, print_json, say
from step2_tool_calling.options import Files, Json, Model, Strategy, Threshold, wishes_of

if TYPE_CHECKING:
    from step2_tool_calling.log import Conversation
    from step2_tool_calling.replay import Replay
    from step2_tool_calling.session import Wishes

looking_back = typer.Typer()


@looking_back.command("log")
def log_verb(
    number: Annotated[int | None, typer.Argument(metavar="ID", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Newest conversations to list.")] = 20,
    json: Json = False,
) -> None:
    """List the logged conversations, or show one with every call.

    Example: step2 log 7
    """
    from step2_tool_calling.log import Log
    from step2_tool_calling.trace import print_conversation, print_list

    with Log() as log:
        if number is None:
            summaries = log.list(limit)
            return print_json([asdict(entry) for entry in summaries]) if json else print_list(console(), summaries)
        conversation = log.read(number)
        return print_json(asdict(conversation)) if json else print_conversation(console(), conversation)


@looking_back.command("replay")
def replay_verb(
    number: Annotated[int, typer.Argument(metavar="ID", show_default=False)],
    ask_again: Annotated[
        bool, typer.Option("--ask-again", help="Ask the model anew; tools answer from the log.")
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="NAME", show_default="the logged one", help="Another prompt."),
    ] = None,
    strategy: Strategy = "auto",
    tools: Files = None,
    call_threshold: Threshold = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Run a logged conversation again, offline, and show what differs.

    Exit code 1 when something does. Tools never run: they answer from the log. The options below that name a model,
    how to ask it or its tools need --ask-again.

    Example: step2 replay 7 --ask-again --prompt careful
    """
    from step2_tool_calling.log import Log

    given = {
        "--prompt": prompt is not None,
        "--strategy": strategy != "auto",
        "--tools": bool(tools),
        "--call-threshold": call_threshold is not None,
        "--model": model is not None,
    }
    if not ask_again and True in given.values():
        option = next(name for name in given if given[name])
        raise UserError(f"{option} changes nothing in an offline replay: add --ask-again")
    with Log() as log:
        logged = log.read(number)
    if ask_again:
        from step2_tool_calling.prompts import writes_tools

        if strategy == "auto" and prompt is None and writes_tools(logged.messages):
            strategy = "text"
        wishes = wishes_of(
            prompt=prompt or "assistant", strategy=strategy, files=tools, sandbox=True, threshold=call_threshold
        )
        result = _ask_again(logged, wishes, model, new_prompt=prompt is not None, quiet=json)
    else:
        from step2_tool_calling.replay import replay

        result = asyncio.run(replay(logged, []))
    if json:
        print_json(asdict(result))
    else:
        _print(logged, result)
    raise typer.Exit(1 if result.differences else 0)


def _ask_again(
    logged: "Conversation", wishes: "Wishes", model: str | None, *, new_prompt: bool, quiet: bool
) -> "Replay":
    from functools import partial

    from shared.endpoint import connect
    from step2_tool_calling.replay import replay
    from step2_tool_calling.session import open_session
    from step2_tool_calling.strategies import take_turn

    async def again() -> "Replay":
        async with open_session(endpoint, wishes, quiet=quiet) as session:
            question = next(m["content"] for m in reversed(logged.messages) if m["role"] == "user")
            opening = session.opening(question) if new_prompt else None
            return await replay(logged, session.tools, partial(take_turn, session.strategy, session.model), opening)

    with connect(model, quiet=quiet) as endpoint:
        return asyncio.run(again())


def _print(logged: "Conversation", result: "Replay") -> None:
    from step2_tool_calling.trace import printable

    out = console()
    for difference in result.differences:
        out.print("the end" if difference.step is None else f"step {difference.step}", style="bold")
        for sign, text, style in (("-", difference.logged, "red"), ("+", difference.replayed, "green")):
            for line in (text or "(nothing)").splitlines():
                out.print(f"  {sign} {printable(line)}", style=style, markup=False, soft_wrap=True)
    turns = f"{result.steps} turn{'s' * (result.steps != 1)}"
    if any(difference.step is None for difference in result.differences):
        out.print(f"{turns}: the same, but it ends differently")
    elif result.differences:
        out.print(f"{len(result.differences)} of {turns} came out differently")
    elif result.ending is None:
        say(f"the log of {logged.id} stops there: {logged.ending or 'it was cut off, or is still running'}")
        out.print(f"{turns}: the same up to the last complete step")
    else:
        out.print(f"{turns}: the same")
