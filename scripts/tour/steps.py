"""Run a step's program the way a person does, and read the one JSON document that it prints.

    ask_step(stage, "step3_rag", "demo")                         # python -m step3_rag demo --json

What the step says on stderr is passed on line by line; its last line is the reason when it fails.
"""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from scripts.tour.findings import Stage
from shared.errors import UserError
from shared.foreign_text import printable

GRACE = 60.0  # seconds that a child may take after Ctrl-C: training writes a checkpoint first


def ask_step(stage: Stage, package: str, *arguments: str, env: Mapping[str, str] | None = None) -> Any:
    """Return what `python -m package arguments --json` prints. env: on top of ours.

    Raises UserError (exit code 1) when it fails, with the last thing that it said. Ctrl-C goes to the child as well,
    which is given time to end in its own way.
    """
    command = [sys.executable, "-m", package, *arguments, "--json"]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding="utf-8", errors="replace", env=os.environ | dict(env or {}),
    )  # fmt: skip
    last: deque[str] = deque(maxlen=3)

    def pass_on() -> None:
        assert child.stderr
        for line in child.stderr:
            if words := printable(line).strip():
                last.append(words)
                stage.remark(words)

    reader = threading.Thread(target=pass_on, daemon=True)  # or a full pipe would stop the child
    reader.start()
    try:
        assert child.stdout
        output = child.stdout.read()
        code = child.wait()
    except KeyboardInterrupt:
        try:
            child.wait(GRACE)
        finally:
            child.kill()
        raise
    reader.join(5)
    shown = " ".join(["python -m", package, *arguments])
    if code != 0:
        reason = last[-1].removeprefix("error: ") if last else f"exit code {code}"
        raise UserError(f"`{shown}` failed: {reason}", exit_code=1)
    try:
        return json.loads(output)
    except ValueError:
        raise UserError(f"`{shown}` printed no JSON: {printable(output[:200])!r}", exit_code=1) from None
