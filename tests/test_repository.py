"""The promises that concern the repository as a whole: who imports whom, and what the documentation points at.

python -m pytest tests/test_repository.py
"""

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = r"([A-Z_]+=\S+ )*(\.venv/bin/)?(python -m )?step[1-5](_\w+)? "
STEPS = sorted(path.name for path in ROOT.glob("step[0-9]_*"))


def tracked(pattern: str) -> list[Path]:
    """The files of a pattern that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else [str(p) for p in ROOT.rglob(pattern)]
    return sorted(path for name in names if name and (path := ROOT / name).is_file() and ".venv" not in path.parts)


# -- imports -----------------------------------------------------------------------------------------------------------


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_step_imports_another_step_and_shared_imports_none() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in tracked("*.py")
        if (package := path.relative_to(ROOT).parts[0]) in {*STEPS, "shared"}
        for name in imported(ast.parse(path.read_text(encoding="utf-8")))
        if (root := name.split(".")[0]) in STEPS and root != package
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["shared", *STEPS])
def test_modules_import_each_other_in_one_direction(package: str) -> None:
    """What runs at import time: imports inside functions and under TYPE_CHECKING may go back."""
    modules = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in tracked(f"{package}/*.py")}
    names = set(modules.values())
    graph = {}
    for path, name in modules.items():
        body = ast.Module(ast.parse(path.read_text(encoding="utf-8")).body, [])
        body.body = [node for node in body.body if isinstance(node, ast.Import | ast.ImportFrom)]
        graph[name] = {found for found in imported(body) if found in names and found != name}
    assert len(graph) > 3
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


# -- documentation -----------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a Markdown page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = [title.strip().lower() for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_every_link_in_the_documentation_resolves() -> None:
    broken, count = [], 0
    for page in tracked("*.md"):
        if "prompts" in page.parts or "adapters" in page.parts:
            continue
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for address in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in address:
                continue
            count += 1
            path, _, anchor = address.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {address}")
    assert count > 20
    assert broken == []


def shown_commands() -> list[tuple[str, str]]:
    """(page, command) of every command of a step's program that a README shows."""
    found = []
    for page in tracked("*.md"):
        for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            shown = [line.split("  #")[0].strip() for line in lines if re.match(PROGRAM, line)]
            found += [(str(page.relative_to(ROOT)), line) for line in shown]
    return found


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_every_command_that_a_page_shows_is_one(page: str, line: str) -> None:
    """The program takes it: verbs, options and values are its own. Nothing is run here; CI runs the main ones."""
    import click
    import typer

    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    if words[0].endswith("python"):
        words = words[2:]
    package = next(name for name in STEPS if name.startswith(words[0].split("_")[0]))
    if "." in words[0]:
        assert importlib.util.find_spec(words[0]) is not None
        return
    command: click.Command = typer.main.get_command(importlib.import_module(f"{package}.cli").app)
    rest = words[1:]
    while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
        assert rest[0] in command.commands, f"{page}: {line}"
        command, rest = command.commands[rest[0]], rest[1:]
    options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    options |= {"-h", "--help"}
    rest = rest[: rest.index("--")] if "--" in rest else rest  # what follows is another program's
    unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word.split("=")[0] not in options]
    assert unknown == [], f"{page}: {line}"
