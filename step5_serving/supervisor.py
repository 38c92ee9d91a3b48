"""An engine process, kept alive: started, watched, started again with growing pauses, stopped with its children.

    starting ──ready──► running ──exit, or no answer for 30 s──► pause 1, 2, 4 … 30 s ──► starting
                                  or it says that it is well, and computes nothing

While it is not ready the gateway answers 503 with Retry-After; requests that were running are tried again elsewhere or
end with an error, by gateway.py. The engine's output goes to log/engine.log; the run before is kept as engine.log.1.

The engine must not outlive us: an orphan would hold gigabytes. On Linux the kernel sends it SIGTERM when we die, also
by kill -9 (PR_SET_PDEATHSIG). Elsewhere only an orderly end stops it.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step5_serving.engines import Engine
from step5_serving.launch import Launch

if TYPE_CHECKING:
    from step5_serving.metrics import Metrics

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a restart, doubling
HEALTHY = 60.0  # seconds of running after which a crash is a first one again
STUCK = 30.0  # seconds without an answer after which a running engine is killed
# Seconds for one token after STUCK seconds in which requests got nothing. One step of a large model on a CPU, over a
# long prompt, takes tens of them.
HANGS = 60.0
START = 900.0  # seconds that starting may take: a large model is read from disk, compiled, profiled
GRACE = 20.0  # seconds between SIGTERM and SIGKILL
# Run in the child before the engine: asks the kernel for the signal, then becomes the engine, with the same pid.
TETHER = (
    "import ctypes, os, sys; parent = int(sys.argv[1]); ctypes.CDLL(None).prctl(1, 15); "
    "os.getppid() == parent or sys.exit('the gateway has died'); os.execv(sys.argv[2], sys.argv[2:])"
)


class Supervisor:
    """Keeps one Launch running. on_lost: told when the process has ended. tell: for the log."""

    def __init__(
        self,
        launch: Launch,
        log: Path,
        on_lost: Callable[[Engine], None],
        tell: Callable[..., None],
        metrics: "Metrics | None" = None,
    ) -> None:
        self.engine = Engine(launch.url, launch.slots, launch.name, ready_in=self.ready_in)
        self.restarts = 0
        self.ended = False  # whether it has ever ended by itself
        self._launch, self._log, self._on_lost, self._tell, self._metrics = launch, log, on_lost, tell, metrics
        self._start_seconds = launch.start_seconds
        self._begun = time.monotonic()
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def ready_in(self) -> float:
        """Seconds until it is likely to be ready, by how long it took the last time."""
        return max(1.0, self._begun + self._start_seconds - time.monotonic())

    def start(self) -> None:
        """Begin supervising."""
        self._task = asyncio.create_task(self._supervise(), name=f"supervise {self._launch.name}")

    async def stop(self) -> None:
        """End the engine: SIGTERM, and SIGKILL to whatever is left of its process group after the grace time."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._end()

    async def _supervise(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = self._begun = time.monotonic()
            try:
                await self._run_once()
            except OSError as error:  # no memory for a process, no disk for its log: as good as a crash
                self._tell("engine_not_started", error=str(error))
            self._on_lost(self.engine)
            if time.monotonic() - began > HEALTHY:
                pause = FIRST_PAUSE
            self.ended = True
            code = self._process.returncode if self._process else None
            self._tell("engine_ended", code=code, restart_in=pause, engine_log=str(self._log))
            self._begun = time.monotonic() + pause  # what ready_in reckons with
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            self.restarts += 1
            if self._metrics is not None:
                self._metrics.restarts.labels(self.engine.url).inc()

    async def _run_once(self) -> None:
        """Start the process; return when it has ended, by itself or because it was stuck."""
        command = list(self._launch.command)
        if sys.platform == "linux":
            command = [sys.executable, "-c", TETHER, str(os.getpid()), *command]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.exists():
            self._log.replace(self._log.with_name(self._log.name + ".1"))
        with self._log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | dict(self._launch.env),
                start_new_session=True,  # a group of its own: Ctrl-C is ours to handle, and its children are found
            )
        self._tell("engine_started", pid=self._process.pid, url=self._launch.url)
        ended, hangs = asyncio.create_task(self._process.wait()), asyncio.create_task(self._until_it_hangs())
        was_ready = False
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=0.2)
                if self.engine.ready and not was_ready:
                    was_ready, self._start_seconds = True, time.monotonic() - self._begun
                    self._tell("engine_ready", seconds=round(self._start_seconds, 1))
                heard = self.engine.heard_at if hangs.done() else self.engine.answered_at
                silent = time.monotonic() - max(self._begun, heard)
                if hangs.done() or silent > (STUCK if was_ready else START):
                    self._tell("engine_stuck", seconds=round(silent))
                    break
        finally:
            ended.cancel()
            hangs.cancel()
        await self._end(gently=False)

    async def _until_it_hangs(self) -> None:
        """Return when requests get nothing, although the engine answers probes: nothing computes behind its server."""
        engine = self.engine
        while True:
            await asyncio.sleep(min(1.0, STUCK))
            if engine.ready and engine.in_flight and time.monotonic() - engine.heard_at > STUCK:
                if not await engine.computes(HANGS):
                    return
                engine.heard_at = time.monotonic()

    async def _end(self, gently: bool = True) -> None:
        """Make sure that nothing of the process is left."""
        process = self._process
        if process is None:
            return
        if process.returncode is None and gently:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GRACE)
        # Also after an orderly end: workers of an engine that was killed live on.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill_group(process)
        await process.wait()


def kill_group(process: Any) -> None:
    """SIGKILL to a process and all that it started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    elif process.returncode is None:
        process.kill()
