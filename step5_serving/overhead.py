"""What the gateway itself costs: in front of a fake engine on the loopback that answers at once (overhead_engine.py).

    python -m step5_serving.overhead                                      # about 6 minutes, 5 of them the open streams
    python -m step5_serving.overhead --streams 100 --hold 10              # a quick look
    python -m step5_serving.overhead --litellm /path/to/venv/bin/python   # the same requests to a LiteLLM proxy

Load generator, gateway and fake are three processes. Where there are fewer idle cores than that they slow each other,
so requests are also counted per second of the proxy's own CPU time: what one core that it has for itself would carry.

Memory and CPU time are read from /proc: on other systems than Linux those figures are left out.
"""

import asyncio
import contextlib
import math
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import aiohttp
import typer

from shared.errors import UserError
from shared.results import Row, format_metric, metric, write_results
from shared.terminal import console, print_json, say
from shared.terminal import run as run_program
from step5_serving.bench_targets import process, running_gateway, wait_ready
from step5_serving.launch import free_port
from step5_serving.load import Target, closed_loop
from step5_serving.load_report import percentile
from step5_serving.overhead_engine import MODEL

SLOTS = 100_000  # of the fake: admission is not what is measured here
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
Process = subprocess.Popen[bytes]


def cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used, in user and kernel mode; None where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int | None:
    """Memory of a process (RSS); None where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _post(session: aiohttp.ClientSession, target: Target) -> float:
    """Seconds of one request that is not streamed. Raises UserError (exit code 1) unless it is answered with 200."""
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    began = time.perf_counter()
    async with session.post(f"{target.url}/chat/completions", json=BODY, headers=headers) as reply:
        text = await reply.text()
        if reply.status != 200:
            raise UserError(f"{target.name} answered {reply.status}: {text[:200]}", exit_code=1)
    return time.perf_counter() - began


async def requests_in(target: Target, seconds: float, connections: int) -> int:
    """How many requests so many connections get answered in so many seconds."""
    end, count = time.perf_counter() + seconds, 0

    async def connection(session: aiohttp.ClientSession) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await _post(session, target)
            count += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(connection(session))
    return count


async def pairs_of(direct: Target, proxy: Target, pairs: int) -> list[float]:
    """Seconds that the proxy adds to one request at a time; who is asked first alternates."""
    added = []
    async with aiohttp.ClientSession() as session:
        for index in range(-20, pairs):  # the first 20 are the warm-up
            taken = {target: await _post(session, target) for target in ((direct, proxy), (proxy, direct))[index % 2]}
            if index >= 0:
                added.append(taken[proxy] - taken[direct])
    return added


async def memory_during(target: Target, pid: int, streams: int, hold: int) -> tuple[list[int], int]:
    """RSS once a second while so many streams are open for `hold` seconds, and how many were not answered."""
    run = closed_loop(target, ["Hello"], streams=streams, requests=streams, max_tokens=hold, timeout=hold + 120.0)
    task, seen = asyncio.create_task(run), []
    while not task.done():
        await asyncio.wait({task}, timeout=1.0)
        if not task.done() and (found := resident_bytes(pid)) is not None:
            seen.append(found)
    return seen, sum(sample.outcome != "ok" for sample in task.result())


def proxy_rows(direct: Target, proxy: Target, child: Process, *, seconds: float, connections: int, pairs: int) -> Row:
    """Throughput without streaming and added latency."""
    say(f"{proxy.name}: {connections} connections, {seconds:g} s")
    asyncio.run(requests_in(proxy, min(1.0, seconds), connections))  # warm-up
    before, began = cpu_seconds(child.pid), time.perf_counter()
    count = asyncio.run(requests_in(proxy, seconds, connections))
    elapsed, after = time.perf_counter() - began, cpu_seconds(child.pid)
    used = None if before is None or after is None else after - before
    say(f"{proxy.name}: added latency, {pairs} pairs")
    added = asyncio.run(pairs_of(direct, proxy, pairs))
    return {
        "name": proxy.name,
        "metrics": {
            "requests/s": metric(count / elapsed, unit="/s"),
            "cores used": metric(None if used is None else used / elapsed),
            "requests per CPU second": metric(count / used if used else None, unit="/s"),
            "added p50": metric(1000 * statistics.median(added), unit="ms"),
            "added p99": metric(1000 * percentile(added, 99), unit="ms"),
        },
    }


def stream_row(target: Target, child: Process, streams: int, hold: int) -> Row:
    """Memory with open streams: medians of the second and the last quarter of the time, the first opens them."""
    say(f"{target.name}: {streams} open streams for {hold} s")
    idle = resident_bytes(child.pid)
    seen, failed = asyncio.run(memory_during(target, child.pid, streams, hold))
    quarter = math.ceil(len(seen) / 4)

    def megabytes(values: Sequence[int]) -> float | None:
        return statistics.median(values) / 1e6 if values else None

    return {
        "name": f"{target.name}, {streams} open streams",
        "metrics": {
            "seconds": metric(hold),
            "RSS idle": metric(megabytes([] if idle is None else [idle]), unit="MB"),
            "RSS second quarter": metric(megabytes(seen[quarter : 2 * quarter]), unit="MB"),
            "RSS last quarter": metric(megabytes(seen[-quarter:] if quarter else []), unit="MB"),
            "not answered": metric(failed),
        },
    }


@contextlib.contextmanager
def running_litellm(python: Path, engine: Target, folder: Path) -> Iterator[tuple[Target, Process]]:
    """LiteLLM's proxy, one worker, from the environment of this Python, in front of the same engine."""
    port, config, log = free_port(), folder / "litellm.yaml", folder / "litellm.log"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n"
        f"      api_base: {engine.url}\n      api_key: none\n",
        encoding="utf-8",
    )
    key = f"sk-{secrets.token_urlsafe(32)}"  # it refuses to start without one; ours checks a key as well
    code = "from litellm import run_server; run_server()"
    command = [str(python), "-c", code, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with process([*command, "--num_workers", "1"], {"LITELLM_MASTER_KEY": key}, log) as child:
        target = Target("LiteLLM proxy", f"http://127.0.0.1:{port}/v1", MODEL, key)
        wait_ready(target, child, log)
        yield target, child


def allow_files(count: int) -> None:
    """Raise the limit on open files, ours and our children's. Raises UserError when the system's is lower."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise UserError(f"{count} open files are needed and {hard} allowed (ulimit -Hn); use fewer --streams")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def measure(
    *, seconds: float, connections: int, pairs: int, streams: int, hold: int, litellm: Path | None
) -> list[Row]:
    """Everything, as rows. Raises UserError when a process does not start or does not answer."""
    allow_files(4 * streams + 200)  # the gateway has two for each
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        port, log = free_port(), folder / "fake.log"
        command = [sys.executable, "-m", "step5_serving.overhead_engine", "--port", str(port)]
        fake = stack.enter_context(process(command, {}, log))
        engine = Target("fake engine", f"http://127.0.0.1:{port}/v1", MODEL)
        wait_ready(engine, fake, log)
        target, child = stack.enter_context(running_gateway(engine, SLOTS, folder))
        gateway = Target("gateway", target.url, MODEL, target.key)
        rows = [proxy_rows(engine, gateway, child, seconds=seconds, connections=connections, pairs=pairs)]
        rows.append(stream_row(gateway, child, streams, hold))
        if litellm is not None:
            target, child = stack.enter_context(running_litellm(litellm, engine, folder))
            rows.append(proxy_rows(engine, target, child, seconds=seconds, connections=connections, pairs=pairs))
        return rows


def main(
    seconds: Annotated[float, typer.Option(min=0.1, help="Of the throughput run.")] = 10.0,
    connections: Annotated[int, typer.Option(min=1, help="Of the throughput run.")] = 32,
    pairs: Annotated[int, typer.Option(min=1, help="Requests to both, for the added latency.")] = 1000,
    streams: Annotated[int, typer.Option(min=1, help="Streams that are open at once.")] = 1000,
    hold: Annotated[int, typer.Option(min=2, help="Seconds for which they stay open.")] = 300,
    litellm: Annotated[
        Path | None, typer.Option(metavar="PYTHON", help="Of an environment with litellm[proxy].")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write results JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")] = False,
) -> None:
    """Measure the gateway alone: requests a second, added latency, memory with open streams."""
    if litellm is not None and not litellm.is_file():
        raise UserError(f"--litellm {litellm}: no such program")
    rows = measure(seconds=seconds, connections=connections, pairs=pairs, streams=streams, hold=hold, litellm=litellm)
    if output is not None:
        notes = f"{connections} connections for {seconds:g} s, {pairs} pairs one at a time; RSS is the gateway's"
        command = f"python -m step5_serving.overhead -o {output}{' --litellm PYTHON' if litellm else ''}"
        write_results(output, command=command, rows=rows, notes=notes, packages=("aiohttp", "uvicorn", "uvloop"))
    if json:
        print_json({"rows": rows})
        return
    for row in rows:
        cells = ", ".join(f"{name} {format_metric(value)}" for name, value in row["metrics"].items())
        console().print(f"{row['name']}: {cells}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run_program(app)
