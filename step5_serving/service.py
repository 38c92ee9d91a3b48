"""From options to a running service, and back to nothing: what is made, in which order, and how it ends.

    keys ─┐                                    Ctrl-C or SIGTERM:
    ledger┼─► Parts ─► app ─► uvicorn            no new connections, running answers end (30 s),
    engines┘                                     engines stop, the ledger is written

The gateway listens before its engines are ready: /health answers, everything else says 503 and when to come back.
"""

import asyncio
import contextlib
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from shared.config import settings
from shared.errors import UserError
from shared.openai_server import is_loopback, listen
from shared.terminal import say
from step5_serving import keys
from step5_serving.admission import Admission
from step5_serving.app import create_app
from step5_serving.database import connect, home
from step5_serving.engines import Engine, Engines, open_session
from step5_serving.estimate import Estimates
from step5_serving.launch import Launch
from step5_serving.ledger import Ledger, spent
from step5_serving.logs import Log
from step5_serving.metrics import Metrics
from step5_serving.prices import Price, load_prices
from step5_serving.protocol import Protocol
from step5_serving.supervisor import Supervisor
from step5_serving.tracing import Tracing, open_tracing
from step5_serving.web.live import Live

DRAIN = 30  # seconds for running answers at the end
FIRST_RATE = 300.0  # tokens per second that admission reckons with until it has measured: two cores, a small model
TICK = 1.0  # seconds between looks at the keys, and notes of how far the streams are


@dataclass(frozen=True)
class Timeouts:
    """Seconds. connect: to an engine. first_token: of a stream, from its dispatch. total: of a request, in all."""

    connect: float = 5.0
    first_token: float = 60.0
    total: float = 600.0


@dataclass(frozen=True)
class Options:
    """What `serve` can be told. launches: engines to run; urls: engines that run elsewhere, with `slots` each.

    max_wait: seconds a request may wait for a slot. max_body: bytes. log: a file, or "-" for stderr. port 0: any free.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    launches: Sequence[Launch] = ()
    urls: Sequence[str] = ()
    slots: int = 32
    max_wait: float = 0.5
    max_body: int = 4 << 20
    timeouts: Timeouts = Timeouts()
    log: Path | None = None


@dataclass
class Parts:
    """What requests need. Belongs to one event loop."""

    keys: keys.KeyRing
    admission: Admission
    engines: Engines
    ledger: Ledger
    log: Log
    metrics: Metrics
    tracing: Tracing
    prices: Mapping[str, Price]
    timeouts: Timeouts
    max_body: int
    database_path: Path
    live: Live
    estimates: Estimates = field(default_factory=Estimates)
    supervisors: list[Supervisor] = field(default_factory=list)


def _announce(event: str, **fields: Any) -> None:
    """What somebody in front of the terminal wants to know about the engines."""
    if event == "engine_started":
        say(f"engine starting on {fields['url']}")
    elif event == "engine_ready":
        say(f"engine ready after {fields['seconds']:g} s")
    elif event == "engine_ended":
        say(f"the engine ended (exit code {fields['code']}), again in {fields['restart_in']:g} s; its log: "
            f"{fields['engine_log']}")  # fmt: skip


@contextlib.asynccontextmanager
async def open_parts(options: Options) -> AsyncIterator[Parts]:
    """Make the parts and start the engines; at the end stop them and write everything."""
    folder = home()
    log = Log(options.log or folder / "log" / "gateway.jsonl")
    metrics, tracing, prices = Metrics(), open_tracing(), load_prices()
    ledger = Ledger(folder, on_error=lambda message: log.write("ledger", error=message))
    database = connect(folder / "gateway.db")
    ring = keys.KeyRing(database)
    ring.update(ring.read(), spent(database))

    def tell(event: str, **fields: Any) -> None:
        log.write(event, **fields)
        _announce(event, **fields)

    supervisors = [
        Supervisor(launch, folder / "log" / f"engine{index or ''}.log", lambda e: engines.lost(e), tell, metrics)
        for index, launch in enumerate(options.launches)
    ]
    secret = settings().engine_api_key
    key = secret.get_secret_value() if secret else ""
    outside = [Engine(url.rstrip("/").removesuffix("/v1"), options.slots, "openai", key) for url in options.urls]

    def changed() -> None:
        admission.resize(engines.slots)
        log.write("engines", ready=[engine.url for engine in engines.all if engine.ready], slots=engines.slots)
        if not engines.slots:
            admission.fail(engines.unavailable())

    engines = Engines([*(supervisor.engine for supervisor in supervisors), *outside], changed)
    admission = Admission(0, options.max_wait, FIRST_RATE)
    metrics.watch(admission, engines)
    parts = Parts(
        ring, admission, engines, ledger, log, metrics, tracing, prices, options.timeouts, options.max_body,
        folder / "gateway.db", Live(metrics, admission, engines, ledger), supervisors=supervisors,
    )  # fmt: skip
    async with open_session(options.timeouts.connect) as session:
        for supervisor in supervisors:
            supervisor.start()
        engines.watch(session)
        tasks = [asyncio.create_task(_tick(parts), name="tick"), asyncio.create_task(parts.live.run(), name="live")]
        try:
            yield parts
        finally:
            for task in tasks:
                task.cancel()
            await engines.close()
            await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))
            await asyncio.to_thread(ledger.close)
            await asyncio.to_thread(tracing.close)
            database.close()
            log.write("stopped")
            log.close()


async def _tick(parts: Parts) -> None:
    """Once a second: keys made or revoked on the command line, and how far the open streams are."""
    while True:
        await asyncio.sleep(TICK)
        try:
            parts.keys.update(await asyncio.to_thread(parts.keys.read))
            parts.ledger.progress()
        except (sqlite3.Error, OSError) as error:
            parts.log.write("tick", error=str(error))


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process before the engines and the ledger are closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(options: Options, listener: socket.socket, started: Any = None) -> None:
    async with open_parts(options) as parts:
        config = uvicorn.Config(
            create_app(parts),
            http=Protocol,
            ws="none",
            lifespan="off",
            access_log=False,  # the log has a line per request
            log_level="warning",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=DRAIN,
            backlog=2048,
        )
        server = _Server(config)
        if started is not None:
            started(server, parts)
        if threading.current_thread() is threading.main_thread():
            _stop_on_signals(server)
        await server.serve(sockets=[listener])


def _stop_on_signals(server: uvicorn.Server) -> None:
    """Ctrl-C or SIGTERM: end in order. A second one: do not wait for running answers."""

    def stop(*_: Any) -> None:
        server.force_exit, server.should_exit = server.should_exit, True

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            asyncio.get_running_loop().add_signal_handler(number, stop)
        except NotImplementedError:  # Windows
            signal.signal(number, stop)


def serve(options: Options) -> None:
    """Serve until Ctrl-C. Raises UserError for an address that is taken, or open to others while there is no key."""
    first = _require_keys(options.host)
    listener = listen(options.host, options.port)
    host, port = listener.getsockname()[:2]
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def started(_: uvicorn.Server, parts: Parts) -> None:
        say(f"gateway on {base}/v1, log in {home() / 'log'}")
        if first:
            say(f"a first key, shown only now: {first}")
        else:
            say("keys are shown only once; another one: python -m step5_serving keys create NAME")
        model = next((launch.model for launch in options.launches), "MODEL")
        say(
            f"try: curl {base}/v1/chat/completions -H 'authorization: Bearer {first or '$KEY'}' "
            f"-H 'content-type: application/json' "
            f"""-d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'"""
        )
        parts.log.write("started", url=base)

    _run(_serve(options, listener, started))


def _require_keys(host: str) -> str | None:
    """A first key where there is none yet and only this machine can use it; else None."""
    database = connect()
    try:
        if keys.usable(database):
            return None
        if not is_loopback(host):
            raise UserError(
                f"--host {host} is open to other machines and there is no key: first run `keys create NAME`"
            )
        return keys.create(database, f"first ({time.strftime('%Y-%m-%d %H:%M:%S')})")
    finally:
        database.close()


def _run(main: Any) -> None:
    try:
        import uvloop
    except ImportError:  # Windows
        asyncio.run(main)
    else:
        uvloop.run(main)


@contextlib.contextmanager
def serve_in_thread(options: Options) -> Iterator[tuple[str, Parts]]:
    """Serve from a thread of this process, for benchmarks and tests; yield the base URL without /v1, and the parts."""
    listener = listen(options.host, options.port)
    box: list[Any] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            _run(_serve(options, listener, lambda *made: box.extend(made)))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="gateway", daemon=True)
    thread.start()
    while not (box and box[0].started):
        if failure or not thread.is_alive():
            raise failure[0] if failure else RuntimeError("the gateway ended at once")
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", box[1]
    finally:
        box[0].should_exit = True
        thread.join()
