"""The loop with plain functions as model and tools, and what one run of it leaves behind."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from step2_tool_calling.conversation import Call, CallDone, Event, Finished, Message, Turn, Usage
from step2_tool_calling.loop import run
from step2_tool_calling.tool import Tool

QUESTION: list[Message] = [{"role": "user", "content": "Which city is warmer?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Recorded:
    """One run of the loop: the messages, the events, the tools offered at each turn, and how it ended."""

    def __init__(self) -> None:
        self.messages = [dict(message) for message in QUESTION]
        self.events: list[Event] = []
        self.offered: list[list[str]] = []
        self.finished: Finished | None = None

    def done(self) -> list[tuple[str, str]]:
        """(tool, status) of the calls, in the order they were settled."""
        return [(e.result.call.name, e.result.status) for e in self.events if isinstance(e, CallDone)]

    def outputs(self) -> list[str]:
        return [message["content"] for message in self.messages if message["role"] == "tool"]


def tool(name: str, work: Callable[[dict[str, Any]], Awaitable[Any]], timeout: float = 5.0, **more: Any) -> Tool:
    return Tool(name, f"{name}.", more.pop("parameters", CITY), work, timeout=timeout, **more)


async def weather(arguments: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"city": arguments["city"], "temperature": 4.5}


WEATHER = tool("weather", weather)


def turn(*calls: tuple[str, str], text: str = "", tokens: int = 10) -> Turn:
    made = tuple(Call(f"id_{index}", name, arguments) for index, (name, arguments) in enumerate(calls))
    return Turn(text, made, Usage(tokens, 0, 0, 1))


OSLO, LISBON = ("weather", '{"city": "Oslo"}'), ("weather", '{"city": "Lisbon"}')


async def allow(_: Tool, __: dict[str, Any]) -> bool:
    return True


def conversation(
    turns: Sequence[Turn] | Callable[[int], Turn],
    tools: list[Tool],
    *,
    approve: Callable[[Tool, dict[str, Any]], Awaitable[bool]] = allow,
    observer: Callable[[Event], None] = lambda _: None,
    cancel_at: Callable[[Event], bool] = lambda _: False,
    **more: Any,
) -> Recorded:
    """Run the loop on a model that says these turns. cancel_at: the event after which Ctrl-C comes."""
    recorded = Recorded()

    async def ask(_: Sequence[Message], offered: Sequence[Tool], __: Any) -> Turn:
        recorded.offered.append([one.name for one in offered])
        number = len(recorded.offered) - 1
        return turns(number) if callable(turns) else turns[number]

    async def whole() -> None:
        task = asyncio.current_task()
        assert task is not None

        def observe(event: Event) -> None:
            recorded.events.append(event)
            observer(event)
            if cancel_at(event):
                asyncio.get_running_loop().call_later(0.01, task.cancel)

        recorded.finished = await run(ask, recorded.messages, tools, approve=approve, observe=observe, **more)

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(whole())
    return recorded
