"""Measure tool calling: BFCL items through a prompt and a strategy, scored, cached, with intervals.

    python -m step2_tool_calling eval --prompts plain,careful --strategy native --limit 50
    python -m step2_tool_calling compare out/step2/a.jsonl out/step2/b.jsonl

Every finished item is one line of a JSONL file, appended when it is done: a run that was killed continues where it
stopped, and two runs over the same items can be compared pair by pair.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shared.bfcl import Item, Verdict, score
from shared.errors import UserError
from step2_tool_calling.conversation import Call, Message, Usage
from step2_tool_calling.prompts import Prompt
from step2_tool_calling.strategies import Model, Name, call_probability, take_turn
from step2_tool_calling.tool import Tool

NON_LIVE = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
REFUSALS = 3  # of the first items, and it is not them that the endpoint refuses: a wrong name, an unknown field


@dataclass(frozen=True)
class Outcome:
    """One item's answer, as it came; it is scored when it is read, so that a better scorer needs no new run.

    calls: names and argument texts. seconds: from the (first) request to the last token, other requests running beside
    it. probability: of beginning a call, where the strategy can know it. error: why the endpoint refuses this item (a
    prompt that is too long, a schema it cannot read); such an answer is wrong, whatever was asked for.
    """

    id: str
    category: str
    calls: list[dict[str, str]]
    content: str
    usage: Usage
    seconds: float
    probability: float | None = None
    error: str = ""


def header_of(model: Model, where: str, strategy: Name, prompt: Prompt) -> dict[str, Any]:
    """What was measured: the first line of its file. where: "embedded" or the endpoint's URL."""
    label = f"{model.name} {strategy} {prompt.name}"
    return {
        "label": label,
        "model": model.name,
        "endpoint": where,
        "strategy": strategy,
        "prompt": prompt.label,
        "max_tokens": model.max_tokens,
        "temperature": model.temperature,
        "seed": model.seed,
    }


async def _never(_: dict[str, Any]) -> Any:
    raise AssertionError("evaluation never runs a tool")


def as_tools(item: Item) -> list[Tool]:
    """The item's functions as tools that cannot be run."""
    return [
        Tool(f["function"]["name"], f["function"].get("description", ""), f["function"]["parameters"], _never)
        for f in item.tools
    ]


def with_prompt(prompt: Prompt, messages: Sequence[Message]) -> list[Message]:
    """The prompt's messages, then the item's. A system message of the item joins the prompt's: templates take one."""
    own = [dict(message) for message in prompt.messages]
    rest = [dict(message) for message in messages]
    while rest and rest[0]["role"] == "system" and own and own[0]["role"] == "system":
        own[0]["content"] += "\n\n" + rest.pop(0)["content"]
    return own + rest


async def answer_item(item: Item, model: Model, strategy: Name, prompt: Prompt) -> Outcome:
    """Ask the model once.

    `constrained` calls always here, and the probability of calling is kept beside it: any threshold can then be
    applied to the same run (`at_threshold`).
    Raises UserError when the endpoint fails; when it refuses this very request, that is the outcome.
    """
    from openai import BadRequestError, UnprocessableEntityError

    tools = as_tools(item)
    messages = with_prompt(prompt, item.messages)
    probability, before, seconds = None, Usage(), 0.0
    try:
        if strategy == "constrained":
            model = replace(model, call_threshold=0.0)
            probability, decision = await call_probability(model, messages, tools)
            before, seconds = decision.usage, decision.seconds
        turn = await take_turn(strategy, model, messages, tools, lambda _: None)
    except UserError as error:
        if not isinstance(error.__cause__, BadRequestError | UnprocessableEntityError):
            raise
        return Outcome(item.id, item.category, [], "", before, seconds, probability, str(error))
    calls = [{"name": call.name, "arguments": call.text} for call in turn.calls]
    usage, seconds = before + turn.usage, seconds + turn.seconds
    return Outcome(item.id, item.category, calls, turn.content[:500], usage, seconds, probability)


def at_threshold(outcome: Outcome, threshold: float) -> Outcome:
    """The outcome of a run that calls only when the model gives at least this probability to calling."""
    if outcome.probability is None or outcome.probability >= threshold:
        return outcome
    return replace(outcome, calls=[])


def verdict(item: Item, outcome: Outcome) -> Verdict:
    """Score one answer."""
    if outcome.error:
        # Not one of BFCL's kinds: its scorer never sees what was not answered.
        return Verdict(False, "refused", outcome.error)
    calls = [(call["name"], Call("", call["name"], call["arguments"]).arguments()) for call in outcome.calls]
    if any(arguments is None for _, arguments in calls):
        return Verdict(False, "invalid JSON", "the arguments are not a JSON object")
    return score(item, [(name, arguments or {}) for name, arguments in calls])


def schema_valid(item: Item, outcome: Outcome) -> bool | None:
    """Whether every call names a tool of the item and fits its schema; None when nothing was called."""
    known = {tool.name: tool for tool in as_tools(item)}
    checks = [
        call["name"] in known
        and (arguments := Call("", call["name"], call["arguments"]).arguments()) is not None
        and known[call["name"]].problem(arguments) is None
        for call in outcome.calls
    ]
    return all(checks) if checks else None


async def evaluate(
    items: Sequence[Item],
    answer: Callable[[Item], Awaitable[Outcome]],
    path: Path,
    *,
    header: dict[str, Any],
    concurrency: int,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Answer all items that `path` does not hold yet; return the outcomes in the items' order.

    header: what was measured (model, prompt, strategy …); the file's first line. A file with another header is
    refused, so that two settings never mix. Ctrl-C leaves a file that the next run continues.
    Raises what `answer` raises, and UserError when the endpoint refuses each of the first items.
    """
    done = read_outcomes(path, header)
    answered = any(not outcome.error for outcome in done.values())
    held: list[Outcome] = []  # refusals, until an answer shows that they are about the items
    if path.exists():
        _cut_last_line(path, header)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if path.stat().st_size == 0:
            file.write(_line(header))
        gate = asyncio.Semaphore(concurrency)

        def keep(outcomes: Sequence[Outcome]) -> None:
            for outcome in outcomes:
                done[outcome.id] = outcome
                file.write(_line(asdict(outcome)))
                file.flush()
                progress(outcome)

        async def one(item: Item) -> None:
            nonlocal answered
            async with gate:
                outcome = await answer(item)
            answered = answered or not outcome.error
            held.append(outcome)
            if answered:
                keep(held)
                held.clear()
            elif len(held) == REFUSALS:
                raise UserError(outcome.error, exit_code=1)

        try:
            async with asyncio.TaskGroup() as group:
                for item in items:
                    if item.id not in done:
                        group.create_task(one(item))
        except* UserError as errors:
            raise errors.exceptions[0] from None
        keep(held)
    return [done[item.id] for item in items]


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _cut_last_line(path: Path, header: dict[str, Any]) -> None:
    """Remove the half line that a kill leaves. Raises UserError when that is all, and not the begin of our header."""
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole == 0 and not _line(header).encode().startswith(raw):
        raise UserError(f"{path} is not a file of `eval`")
    os.truncate(path, whole)


def read_outcomes(path: Path, header: dict[str, Any] | None = None) -> dict[str, Outcome]:
    """The outcomes in a file, by item id; none when there is no such file. A last line that was cut is left out.

    Raises UserError when the file is not one of ours, or (with `header`) was made by another setting.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    whole = raw[: raw.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            return {}
        if header is not None and lines[0] != json.loads(json.dumps(header)):
            raise UserError(f"{path} holds another measurement ({lines[0].get('label')}): remove it, or use --output")
        return {line["id"]: Outcome(**line | {"usage": Usage(**line["usage"])}) for line in lines[1:]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a file of `eval`") from None
