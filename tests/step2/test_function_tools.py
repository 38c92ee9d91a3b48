"""Functions as tools: the types the function gets, where it runs, and what becomes of its result and its errors.

python -m pytest tests/step2/test_function_tools.py
"""

import asyncio
import datetime
import functools
import threading
import time
from typing import Any

import pytest
from function_world import Colour, Line, Order, run

from step2_tool_calling.function_tools import from_function, unsafe
from step2_tool_calling.tool import ToolError


def test_the_function_gets_real_types_and_its_result_becomes_json() -> None:
    seen: list[Any] = []

    def take(colour: Colour, order: Order, day: datetime.date, pair: tuple[int, str], tags: set[str]) -> Order:
        seen.extend([colour, order, day, pair, tags])
        return order

    result = run(
        from_function(take),
        colour="blue",
        order={"lines": [{"item": "tea"}]},
        day="2026-02-28",
        pair=[1, "x"],
        tags=["a"],
    )
    assert seen == [Colour.BLUE, Order([Line("tea", 1)]), datetime.date(2026, 2, 28), (1, "x"), {"a"}]
    assert result == {"lines": [{"item": "tea", "count": 1}], "paid": False}


def test_what_json_schema_cannot_say_is_a_tool_error() -> None:
    def book(day: datetime.date) -> str:
        return str(day)

    tool = from_function(book)
    assert tool.problem({"day": "2026-02-30"}) is None  # "format" is a remark in JSON Schema
    with pytest.raises(ToolError, match="invalid arguments for book: day: .*day value is outside"):
        asyncio.run(tool.run({"day": "2026-02-30"}))


def test_sync_functions_run_in_a_thread_async_ones_in_the_loop() -> None:
    def sync() -> str:
        return threading.current_thread().name

    async def in_loop() -> str:
        return threading.current_thread().name

    assert run(from_function(sync)) != threading.main_thread().name
    assert run(from_function(in_loop)) == threading.main_thread().name


def test_a_hung_function_keeps_neither_the_loop_nor_the_program() -> None:
    release = threading.Event()
    ended: list[BaseException] = []

    def hangs() -> str:
        release.wait(20)
        return "too late"

    async def with_timeout() -> None:
        async with asyncio.timeout(0.05):
            await from_function(hangs).run({})

    begun = time.perf_counter()
    with pytest.raises(TimeoutError):
        asyncio.run(with_timeout())  # would wait for threads of its own pool
    assert time.perf_counter() - begun < 5
    (thread,) = [one for one in threading.enumerate() if one.name == "hangs"]
    assert thread.daemon  # the interpreter waits for all others

    threading.excepthook, before = lambda args: ended.append(args.exc_value), threading.excepthook
    release.set()
    thread.join(5)
    threading.excepthook = before
    assert (thread.is_alive(), ended) == (False, [])  # a result that nobody waits for is dropped in silence


def test_a_wrapped_async_function_is_awaited() -> None:
    async def fetch(city: str) -> str:
        await asyncio.sleep(0)
        return f"{city}: 4.5"

    @functools.wraps(fetch)
    def plain(*arguments: Any, **named: Any) -> Any:
        return fetch(*arguments, **named)

    plain.__annotations__ = fetch.__annotations__
    assert run(from_function(plain), city="Oslo") == "Oslo: 4.5"


def test_exceptions_become_tool_errors() -> None:
    def fails(kind: str) -> str:
        if kind == "tool":
            raise ToolError("try another city")
        if kind == "exit":
            raise SystemExit(3)
        raise StopIteration if kind == "stop" else KeyError(kind)

    tool = from_function(fails)
    with pytest.raises(ToolError, match="^try another city$"):
        run(tool, kind="tool")
    with pytest.raises(ToolError, match="^fails failed: KeyError: 'x'$"):
        run(tool, kind="x")
    with pytest.raises(ToolError, match="^fails failed: SystemExit: 3$"):
        run(tool, kind="exit")
    with pytest.raises(ToolError, match="^fails failed: "):  # a future cannot hold this one
        run(tool, kind="stop")


def test_unsafe_marks() -> None:
    @unsafe
    def send() -> None: ...

    def read() -> None: ...

    assert from_function(send).unsafe
    assert from_function(read, unsafe=True).unsafe
    assert not from_function(read).unsafe
