"""What the program itself costs in time: a step of the loop, parallel calls, and `--help`.

    python -m step2_tool_calling.bench
    python -m step2_tool_calling.bench -o step2_tool_calling/results/speed.json

No model takes part: its turns are ready-made, so that what is measured is ours. Run it on an idle machine.
"""

import asyncio
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.results import Row, format_metric, metric, write_results
from shared.terminal import console
from shared.terminal import run as run_program
from step2_tool_calling.conversation import Call, Event, Message, Started, Turn, Usage
from step2_tool_calling.http_client import HttpClient
from step2_tool_calling.log import Log
from step2_tool_calling.loop import run
from step2_tool_calling.tool import Tool
from step2_tool_calling.trace import Trace

STEPS = 4  # of a conversation: three with two calls each, then the answer
SECONDS = 0.2  # that the slow API takes; the promise is 8 calls in 1.3 times that


async def converse(turns: Sequence[Turn], tool: Tool, observers: Sequence[Callable[[Event], None]]) -> float:
    """Seconds that the loop takes for these turns, the log and the trace included."""
    remaining = iter(turns)
    messages: list[Message] = [{"role": "user", "content": "How many degrees are there in these cities?"}]

    async def ask(*_: Any) -> Turn:
        return next(remaining)

    async def allow(*_: Any) -> bool:
        return True

    def observe(event: Event) -> None:
        for observer in observers:
            observer(event)

    observe(Started(list(messages), "ready-made", "none", "native", "none", [tool.name]))
    begun = time.perf_counter()
    await run(ask, messages, [tool], approve=allow, observe=observe)
    return time.perf_counter() - begun


def city_tool(work: Callable[[dict[str, Any]], Any]) -> Tool:
    """A tool whose arguments are validated like any other's."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return Tool("get_weather", "The weather in a city.", schema, work)


def calls(step: int, count: int) -> Turn:
    """A turn with so many different calls."""
    made = (Call(f"call_{n}", "get_weather", json.dumps({"city": f"Oslo {step}-{n}"})) for n in range(count))
    return Turn("", tuple(made), Usage(900, 512, 40, 1))


def step_seconds(repetitions: int = 100) -> list[float]:
    """Seconds of the loop's own work per step, log and trace at their usual work."""

    async def instant(_: dict[str, Any]) -> dict[str, Any]:
        return {"temperature": 4.5, "unit": "°C", "conditions": "light rain, wind from the west " * 10}

    turns = [*(calls(step, 2) for step in range(STEPS - 1)), Turn("It is 4.5 °C.", (), Usage(1200, 900, 8, 1))]
    silence = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, Log(Path(folder) / "log.db") as log, silence[0], silence[1]:
        taken = [
            asyncio.run(converse(turns, city_tool(instant), [log.conversation(), Trace()]))
            for _ in range(repetitions + 1)
        ]
    return [seconds / STEPS for seconds in taken[1:]]  # the first one imports


def parallel_seconds(count: int = 8, repetitions: int = 10) -> list[float]:
    """Seconds for one turn of `count` calls of an HTTP API on the loopback that takes SECONDS for each."""

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(SECONDS)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"temperature": 4.5}')

        def log_message(self, *_: Any) -> None: ...

    async def measure(url: str) -> float:
        async with HttpClient(allow_private=True) as client:

            async def fetch(arguments: dict[str, Any]) -> str:
                return (await client.request("GET", url, params=arguments)).text

            return await converse([calls(0, count), Turn("Done.")], city_tool(fetch), [])

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.socket.listen(count)  # the default, 5, would let three calls wait for a second attempt
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        taken = [asyncio.run(measure(f"http://127.0.0.1:{server.server_port}/")) for _ in range(repetitions + 1)]
        server.shutdown()
    return taken[1:]


def help_seconds(repetitions: int = 5) -> list[float]:
    """Seconds that `--help` takes, start of Python included; the first run fills the disk cache and does not count."""
    taken = []
    for _ in range(repetitions + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "step2_tool_calling", "--help"], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - begun)
    return taken[1:]


def measure() -> list[Row]:
    """Everything, as rows: the median and the worst beside what was promised."""

    def line(name: str, values: Sequence[float], promise: float, unit: str) -> Row:
        columns = {"median": statistics.median(values), "worst": max(values), "at most": promise}
        return {"name": name, "metrics": {key: metric(value, unit=unit) for key, value in columns.items()}}

    steps = [1000 * seconds for seconds in step_seconds()]
    ratios = [seconds / SECONDS for seconds in parallel_seconds()]
    starts = help_seconds()
    return [
        line("a step of the loop, log and trace (2 calls)", steps, 5.0, "ms"),
        line("8 parallel calls of a 200 ms API, against one", ratios, 1.3, "×"),
        line("`--help`, a new process", starts, 0.5, "s"),
    ]


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write results JSON.")] = None,
) -> None:
    """Measure the program's own speed: median and worst of 100 conversations, 10 turns and 5 processes."""
    rows = measure()
    for row in rows:
        cells = (f"{name} {format_metric(value)}" for name, value in row["metrics"].items())
        console().print(f"{row['name']:46} {', '.join(cells)}", markup=False, soft_wrap=True)
    if output is not None:
        command = f"python -m step2_tool_calling.bench -o {output}"
        notes = "median and worst of 100 conversations of 4 steps, 10 turns, 5 processes"
        write_results(output, command=command, rows=rows, notes=notes, packages=("openai", "rich", "httpx"))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run_program(app)
