"""Would a command be taken by the program that it names? Asked of the program's own parser; nothing is run.

problem("make step9")        "make: *** No rule to make target 'step9'.  Stop."
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from itertools import dropwhile

import yaml

from shared.config import Settings
from tests.readme_commands.pages import ROOT, split

# What other programs read: OpenTelemetry's specification names them.
VARIABLES = {*(name.upper() for name in Settings.model_fields), "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"}
# Not this project's: whether they take a command is shown by the test, or not shown, that the table names.
OTHERS = {"accelerate", "cd", "chroma", "curl", "head", "helm", "promtool", "serve", "vllm"}
DEPLOY = ROOT / "step5_serving" / "deploy"
# How to name a stamp that counts as fresh, so that make sets nothing up: what is installed is not under test.
STAMPS = [word for name in ("dev", "step1", "step2", "step3", "step4", "step5") for word in ("-o", f".venv/.{name}")]


def problem(command: str) -> str:
    """What is wrong with a command: an unknown verb, option, value, target, variable or file; "" when nothing is."""
    variables, words = split(command)
    if unknown := sorted(variables.keys() - VARIABLES):
        return f"no setting is called {', '.join(unknown)}"
    if not words:
        return ""
    paths = [word.rpartition("=")[2] for word in words]
    if missing := [path for path in paths if _is_ours(path) and not (ROOT / path).exists()]:
        return f"{', '.join(missing)} is not there"
    program, rest = os.path.basename(words[0]), words[1:]
    if program == "make":
        done = subprocess.run(["make", "-n", *STAMPS, *rest], cwd=ROOT, capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stderr.strip()
    if program == "python" and rest[0] == "-m":
        return _module_problem(rest[1], rest[2:])
    if program == "uv":
        return _extra_problem(rest)
    if program == "docker":
        return _compose_problem(rest)
    if program == "kubectl":
        return problem(shlex.join(rest[rest.index("--") + 1 :])) if "--" in rest else ""
    return "" if program in OTHERS else f"{program} is a program that {__name__} does not know"


def recipe(command: str) -> str:
    """The shell commands behind a make command; any other command is its own."""
    words = split(command)[1]
    if words[0] != "make":
        return command
    done = subprocess.run(["make", "-n", *STAMPS, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    return done.stdout


def _is_ours(path: str) -> bool:
    """Whether a word is a path into a folder of this repository."""
    top = path.partition("/")[0]
    return "/" in path and top not in ("", ".", "..", ".venv", "out") and (ROOT / top).is_dir()


def _module_problem(module: str, rest: list[str]) -> str:
    """`python -m MODULE REST`: a step's verb is parsed; of a module that is one verb, `--help` names the options."""
    if module.partition(".")[0] in OTHERS:
        return ""
    if not (ROOT / module.replace(".", "/") / "cli.py").exists():
        shown = _help(module)
        if shown.returncode != 0:
            return shown.stderr.strip()
        options = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        missing = sorted(option for option in options if not re.search(rf"(?<![\w-]){option}\b", shown.stdout))
        return f"{module} has no {', '.join(missing)}" if missing else ""
    from typer.main import get_command

    command = get_command(importlib.import_module(f"{module}.cli").app)
    while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return f"{module} has no verb {rest[0]}; it has {', '.join(command.commands)}"
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        command.make_context(module, list(rest))
    except Exception as refused:  # typer carries a click of its own, whose exceptions have no public name
        if getattr(refused, "exit_code", 1) != 0:  # --help leaves with 0
            return str(refused)
    return ""


@cache
def _help(module: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)


def _extra_problem(rest: list[str]) -> str:
    """`uv pip install -e FOLDER[EXTRA]`: the folder has that extra."""
    for folder, extra in re.findall(r"(\S+)\[(\w+)\]", " ".join(rest)):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text("utf-8"))["project"]
        if extra not in project.get("optional-dependencies", {}):
            return f"{folder} has no extra {extra}"
    return ""


def _compose_problem(rest: list[str]) -> str:
    """`docker compose run OPTIONS SERVICE VERB…`: the file has the service, and step 5, its program, the verb."""
    if rest[:2] != ["compose", "run"]:
        return "" if rest in (["compose", "build"], ["compose", "up"]) else f"docker {' '.join(rest)}: not known here"
    service, *verb = dropwhile(lambda word: word.startswith("-"), rest[2:])
    if ">" in verb:
        verb = verb[: verb.index(">")]
    if service not in yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]:
        return f"compose.yaml has no service {service}"
    return _module_problem("step5_serving", verb)
