"""What the benchmark asks, as processes of their own: engines, the gateway, plain `transformers` generation.

A gateway in a thread of the load generator would share its interpreter lock, and each would slow the other. Every
process ends with the block that started it; on Linux also when the benchmark is killed (supervisor.TETHER).
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp

from shared.errors import UserError
from step5_serving import keys
from step5_serving.database import connect
from step5_serving.launch import Launch, fastest_dtype, free_port
from step5_serving.load import Target, ask
from step5_serving.supervisor import GRACE, TETHER, kill_group

READY = 600.0  # seconds that an engine may take to answer its first request


@contextlib.contextmanager
def process(command: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends, then SIGTERM, and SIGKILL for what is left of its group."""
    whole = list(command)
    if sys.platform == "linux":
        whole = [sys.executable, "-c", TETHER, str(os.getpid()), *whole]
    with log.open("wb") as output:
        child = subprocess.Popen(
            whole,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | dict(env),
            start_new_session=True,  # Ctrl-C comes to us alone, and its workers are found by its group
        )
    try:
        yield child
    finally:
        # A second Ctrl-C must not leave it running.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill_group(child)
            child.wait()
        finally:
            signal.signal(signal.SIGINT, before)


def wait_ready(target: Target, child: subprocess.Popen[bytes], log: Path, seconds: float = READY) -> None:
    """Ask for one token until it comes. Raises UserError (exit code 1) when the process ends or the time is over."""

    async def ready() -> str | None:
        end = time.monotonic() + seconds
        async with aiohttp.ClientSession() as session:
            while child.poll() is None and time.monotonic() < end:
                now = time.perf_counter()
                sample = await ask(session, target, "Hello", due=now, max_tokens=1, timeout=seconds)
                if sample.outcome == "ok":
                    return None
                if sample.status in (400, 401, 403, 404):  # asking again will not help
                    return sample.detail
                await asyncio.sleep(0.1)
        return "it ended" if child.poll() is not None else "no answer in time"

    if problem := asyncio.run(ready()):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
        raise UserError("\n".join([f"{target.name} is not ready: {problem}", *lines]), exit_code=1)


@contextlib.contextmanager
def running_engine(launch: Launch, folder: Path) -> Iterator[Target]:
    """The engine of a launch, ready."""
    log = folder / f"{launch.name}.log"
    with process(launch.command, launch.env, log) as child:
        target = Target(launch.name, f"{launch.url}/v1", launch.model)
        wait_ready(target, child, log)
        yield target


@contextlib.contextmanager
def running_gateway(
    engine: Target, slots: int, folder: Path, options: Sequence[str] = ()
) -> Iterator[tuple[Target, subprocess.Popen[bytes]]]:
    """A gateway with an empty database in front of an engine, ready; yield it and its process."""
    home, log, port = folder / f"home {engine.name}", folder / f"gateway {engine.name}.log", free_port()
    with closing(connect(home / "step5" / "gateway.db")) as database:
        key = keys.create(database, "bench")
    command = [sys.executable, "-m", "step5_serving", "serve", "--port", str(port), "--slots", str(slots)]
    command += ["--engine-url", engine.url, *options]
    env = {"LLM_ROADMAP_HOME": str(home), "ENGINE_API_KEY": engine.key or ""}
    with process(command, env, log) as child:
        target = Target(f"{engine.name}+gateway", f"http://127.0.0.1:{port}/v1", engine.model, key)
        wait_ready(target, child, log)
        yield target, child


# Run by `python -c`: a process that has imported transformers and torch would hold the memory that vLLM needs next.
GENERATE = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

plan = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(plan["directory"])
model = AutoModelForCausalLM.from_pretrained(plan["directory"], dtype=getattr(torch, plan["dtype"])).eval()


class Clock:
    def __init__(self):
        self.times = []

    def put(self, _):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def answer(prompt):
    clock, due = Clock(), time.perf_counter()
    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=plan["max_tokens"], do_sample=False, streamer=clock)
    return {"due": due, "times": clock.times[1:]}  # the first call brings the prompt


answer(plan["prompts"][0])
end, done = time.perf_counter() + plan["seconds"], []
for prompt in plan["prompts"]:
    if time.perf_counter() > end:
        break
    done.append(answer(prompt))
json.dump(done, sys.stdout)
"""


def generate_one_by_one(
    directory: Path, prompts: Sequence[str], *, max_tokens: int, seconds: float
) -> list[dict[str, Any]]:
    """Answer prompts with transformers' `generate`, one after the other, in the engine's dtype.

    Return per answer when it began ("due") and when each token came ("times"). The first prompt is also the warm-up.
    Raises UserError (exit code 1) when the process fails, with its last lines.
    """
    plan = {
        "directory": str(directory), "dtype": fastest_dtype(),
        "prompts": list(prompts), "max_tokens": max_tokens, "seconds": seconds,
    }  # fmt: skip
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            [sys.executable, "-c", GENERATE], input=json.dumps(plan).encode(), stdout=subprocess.PIPE, stderr=errors
        )
        if done.returncode != 0:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").splitlines()[-3:]
            raise UserError("\n".join(["transformers' generate failed:", *lines]), exit_code=1)
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers
