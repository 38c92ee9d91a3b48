"""Run commands one after the other, each as `python -m …` would, in one process that imports torch once.

    python child.py COMMANDS.json OUTCOMES.jsonl      # started by test_readme_commands.py, in the folder to run in

A command that is no Python module (make) gets a process, and so does a server, which is interrupted when it says that
it is up. Nothing but loopback is reached. An outcome is written before the next command begins.
"""

import json
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.conftest import is_local

PATIENCE = 60  # seconds for a server to come up, and for a program to end


def main(commands: Path, outcomes: Path) -> None:
    """commands: a list of {"command", "typed", "until"}; a line of outcomes: {"command", "code", "seconds", "said"}."""
    only_loopback()
    with outcomes.open("w", encoding="utf-8") as lines:
        for command in json.loads(commands.read_text("utf-8")):
            begun, log = time.monotonic(), Path("said.txt")
            with log.open("wb") as said:
                code = run(**command, said=said)
            outcome = {
                "command": command["command"],
                "code": code,
                "seconds": round(time.monotonic() - begun, 1),
                "said": log.read_text("utf-8", errors="replace"),
            }
            lines.write(json.dumps(outcome) + "\n")
            lines.flush()


def run(command: str, typed: str, until: str, said: Any) -> int:
    """Run one command with its output in `said`; return its exit code."""
    words = shlex.split(command)
    variables = {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    if os.path.basename(words[0]) != "python":
        done = subprocess.run(words, env=os.environ | variables, stdout=said, stderr=said, timeout=PATIENCE)
        return done.returncode
    arguments = [os.path.expanduser(word) for word in words[2:]]
    return serve(arguments, variables, until, said) if until else in_process(arguments, variables, typed, said)


def in_process(arguments: list[str], variables: dict[str, str], typed: str, said: Any) -> int:
    """`python -m ARGUMENTS`, with everything put back afterwards: variables, arguments, standard streams, settings."""
    from shared.config import settings

    before, kept = dict(os.environ), [os.dup(number) for number in range(3)]
    os.environ.update(variables)
    settings.cache_clear()
    Path("typed.txt").write_text(typed, "utf-8")
    sys.argv = arguments
    with open("typed.txt", encoding="utf-8") as sys.stdin:
        for number, file in enumerate((sys.stdin, said, said)):
            os.dup2(file.fileno(), number)
        try:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    for number, copy in enumerate(kept):
        os.dup2(copy, number)
        os.close(copy)
    os.environ.clear()
    os.environ.update(before)
    settings.cache_clear()
    return code


def serve(arguments: list[str], variables: dict[str, str], until: str, said: Any) -> int:
    """Start a server, wait until it says that it is up, end it as Ctrl-C does; 0 if that was an orderly end."""
    started = subprocess.Popen([sys.executable, "-m", *arguments], env=os.environ | variables, stdout=said, stderr=said)
    deadline = time.monotonic() + PATIENCE
    try:
        while not re.search(until, Path(said.name).read_text("utf-8", errors="replace")):
            if started.poll() is not None or time.monotonic() > deadline:
                return started.returncode or 1
            time.sleep(0.1)
        started.send_signal(signal.SIGINT)
        code = started.wait(PATIENCE)
        return 0 if code in (0, 130, -signal.SIGINT) else code
    finally:
        started.kill()
        started.wait()


def only_loopback() -> None:
    """Make every look-up of, and connection to, another machine fail as it does without a network."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def checked_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            raise OSError(f"a README's command tried to reach {address[0]}")
        connect(self, address)

    def checked_lookup(host: Any, *arguments: Any, **options: Any) -> Any:
        if not is_local(host):
            raise socket.gaierror(f"a README's command tried to reach {host}")
        return lookup(host, *arguments, **options)

    socket.socket.connect = checked_connect  # type: ignore[method-assign]
    socket.getaddrinfo = checked_lookup


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
