"""What has to work with the newest versions: the hermetic tests, and of each step one real run.

The real runs are the commands that `make step1`, `make step2` and `make step5-demo` start. Those of steps 3 and 4 take
minutes for work that shows nothing more about packages (2,651 articles to embed, 80 training steps), so theirs are the
same verbs on a single page and two training steps.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from scripts.drift.versions import REPOSITORY
from shared.config import Settings, settings
from shared.foreign_text import one_line

GRACE = 15.0  # seconds that a stopped check has to end its servers itself


@dataclass(frozen=True)
class Check:
    """Commands for the environment's Python, run in order. {out}: an empty folder. minutes: what all may take.

    env: on top of ours.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    minutes: float
    env: Mapping[str, str] = field(default_factory=dict)

    def shown(self) -> str:
        """The commands as a person types them."""
        words = [[word.replace("{out}", "out/drift/scratch") for word in command] for command in self.commands]
        return " && ".join(shlex.join(["python", *command]) for command in words)


# Limits are several times what an idle machine with two cores needs, since two of them work at something else too.
TESTS = (
    "-m", "pytest", "-vv", "-o", "verbosity_test_cases=-1", "-n", "2", "-p", "no:cacheprovider", "-m", "not real",
    "--continue-on-collection-errors",
)  # fmt: skip
TUNED = "{out}/run/adapter"
CHECKS = (
    Check("tests", (TESTS,), 30, {"OMP_NUM_THREADS": "1"}),  # as `make test`; -vv: reasons are not cut off
    # Load, answer, look inside, write the page: the engine, transformers' tokenizer and templates, matplotlib.
    Check("step1", (("-m", "step1_foundations", "demo", "--output", "{out}/report.html"),), 15),
    # Three tool calls through the OpenAI client and the embedded server, grammar included.
    Check("step2", (("-m", "step2_tool_calling", "demo"),), 15),
    # Read, cut, embed, store in Chroma, index, find, then the LangGraph flow with a cited answer.
    Check(
        "step3",
        (
            ("-m", "step3_rag", "ingest", "step3_rag/README.md", "--collection", "drift"),
            ("-m", "step3_rag", "ask", "What does the demo collection hold?", "--collection", "drift", "--trace"),
        ),
        15,
    ),
    # Real data, two steps with trl and peft, then the adapter in the engine on five BFCL questions.
    Check(
        "step4",
        (
            ("-m", "step4_finetune", "data", "build", "tools", "--output", "{out}"),
            ("-m", "step4_finetune", "train", "tools_sft_quick", "--set", "max_steps=2",
             "--set", "data={out}/tools/train_quick.jsonl", "--set", "output_dir={out}/run"),
            ("-m", "step4_finetune", "eval", "bfcl", "--limit", "1", "--prompt", "none", "--adapter", TUNED,
             "--output", "{out}/eval"),
        ),
        25,
    ),
    # vLLM (elsewhere the embedded engine) behind the gateway: a streamed chat, and a tool call with the adapter.
    Check("step5", (("-m", "step5_serving", "demo"),), 15),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a check ended. reason: why it failed, in one line, else empty."""

    ok: bool
    seconds: float
    reason: str = ""


def perform(check: Check, python: Path, folder: Path, log: Path) -> Outcome:
    """Run a check with this Python; everything it says goes to `log`.

    folder: for {out} and for a home of its own, both new for each run, so that nothing that other versions have made
    (converted weights, collections) decides, and nothing of the user's is touched. What was downloaded is shared: its
    hashes are pinned. Ctrl-C stops the check and everything it started.
    """
    out, home = folder.absolute() / "scratch", folder.absolute() / "home"
    for path in (out, home):
        shutil.rmtree(path, ignore_errors=True)  # the symbolic link goes, not what it points at
        path.mkdir(parents=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    artifacts = settings().llm_roadmap_home.expanduser() / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    (home / "artifacts").symlink_to(artifacts.resolve())
    begun = time.monotonic()
    with log.open("wb") as file:
        for words in check.commands:
            command = [str(python), *(word.replace("{out}", str(out)) for word in words)]
            file.write(f"$ {shlex.join(['python', *command[1:]])}\n".encode())
            file.flush()
            left = begun + check.minutes * 60 - time.monotonic()
            code = _run(command, _environment(check, python, home), file, left)
            if code != 0:
                seconds = time.monotonic() - begun
                late = f"stopped after {check.minutes:g} minutes" if code is None else ""
                return Outcome(False, seconds, late or reason_in(log.read_text("utf-8", "replace")))
    return Outcome(True, time.monotonic() - begun)


def _environment(check: Check, python: Path, home: Path) -> dict[str, str]:
    """The user's environment without the project's settings: an endpoint or a model of theirs is another system."""
    kept = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    return kept | {
        "LLM_ROADMAP_HOME": str(home),
        "VIRTUAL_ENV": str(python.parents[1]),
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **check.env,
    }


def _run(command: list[str], env: Mapping[str, str], output: IO[bytes], seconds: float) -> int | None:
    """Return the exit code, or None when the time was up. Whatever the command started ends with it."""
    child = subprocess.Popen(
        command, cwd=REPOSITORY, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True,  # a group of its own, so that its servers can be ended with it
    )  # fmt: skip
    try:
        return child.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError, PermissionError):  # all have ended; macOS says the second
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


# -- what a log says ---------------------------------------------------------------------------------------------------


def reason_in(log: str) -> str:
    """Return the line of a log that says why: our own `error:`, else the last exception, else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    exception = r"(error: |([\w.]+\.)?[A-Z]\w*(Error|Exception|Exit|Interrupt)\b(: |$))"
    said = [line for line in lines if re.match(exception, line)] or lines[-1:]
    return tidy(said[-1]) if said else "it said nothing"


def tidy(text: str) -> str:
    """One line of at most 300 characters, without the places of this machine."""
    return one_line(text.replace(f"{REPOSITORY}/", "").replace(str(Path.home()), "~"), 300)


def parts(check: Check, log: str) -> dict[str, tuple[Check, str]]:
    """Split a failed check into what can be repeated by itself: {title: (smaller check, reason)}.

    The tests are split by file, with the reason of its first failure; any other check, and tests that did not get as
    far as their summary, stay whole.
    """
    found: dict[str, tuple[Check, str]] = {}
    for file, reason in re.findall(r"^(?:FAILED|ERROR) (tests/\S+?\.py)\b(?:.*? - (.*))?", log, re.MULTILINE):
        smaller = replace(check, commands=tuple((*words, file) for words in check.commands))
        # A file that cannot be imported has its reason further up only.
        above = re.search(rf"ERROR collecting {re.escape(file)} .*?^E +(\S.*?)$", log, re.MULTILINE | re.DOTALL)
        found.setdefault(file, (smaller, tidy(reason or (above[1] if above else "see the log"))))
    return found if check.name == "tests" and found else {check.name: (check, reason_in(log))}


def named_in(log: str, modules: Mapping[str, list[str]]) -> list[str]:
    """Return the packages that a log's tracebacks and import errors name, the deepest frame's first.

    modules: import name → packages, as importlib.metadata.packages_distributions() says it.
    """
    places = re.findall(r"site-packages/(\w+)(?=[/.])|(?:module named|from) '(\w+)", log)
    names = dict.fromkeys(a or b for a, b in reversed(places))
    return list(dict.fromkeys(p.lower().replace("_", "-") for name in names for p in modules.get(name, ())))
