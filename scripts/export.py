"""Make a standalone repository of one step: what a portfolio, or another project, starts from.

    make export STEP=3 TO=~/my-rag
    make export STEP=3 TO=~/my-rag NAME=my_rag       # the package, its command and its folders get that name

The step's folder and tests are taken whole; of `shared`, the modules that they import, found by following the imports,
and the data files that those modules name. The rest (Makefile, pyproject.toml, set-up, CI workflow) is cut down to that
one step. What comes out passes its own `make test` where this repository does not exist.
"""

import ast
import keyword
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import UserError
from shared.files import atomic_directory
from shared.terminal import run, say

REPOSITORY = Path(__file__).resolve().parents[1]
SKIPPED = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".json", ".html", ".css", ".js", ".txt", ".ini", ""}
# Rules of the Makefile that are about no step in particular.
COMMON = {"help", "test", "test-real", "lint", "format", "results", "lock", "clean", "distclean", ".venv/.%"}

WORKFLOW = """name: test
on: [push, pull_request]
permissions: { contents: read }
jobs:
  test:
    strategy:
      fail-fast: false
      matrix:
        os: [ubuntu-latest, macos-latest]
        python: ["3.11", "3.12", "3.13"]
    runs-on: ${{ matrix.os }}
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: { python-version: "${{ matrix.python }}" }
      - run: make lint
      - run: make test
"""


@dataclass(frozen=True)
class Step:
    """One step of this repository. number: "3". folder: step3_rag."""

    number: str
    folder: Path

    @property
    def short(self) -> str:
        """The command's name, the tests' folder, the Makefile's target: step3."""
        return f"step{self.number}"


def find_step(number: str) -> Step:
    """Return the step of a number. Raises UserError when there is none."""
    found = sorted(REPOSITORY.glob(f"step{number}_*")) if number.isdigit() else []
    if not found:
        raise UserError(f"STEP={number}: use {', '.join(p.name[4] for p in sorted(REPOSITORY.glob('step[0-9]_*')))}")
    return Step(number, found[0])


# -- what of `shared` is needed ----------------------------------------------------------------------------------------


def shared_parts(sources: Iterable[Path], root: Path = REPOSITORY) -> set[Path]:
    """Return the files and folders of root/shared that these Python files need, directly or through one another.

    A module counts when it is imported or named in a string ("shared.openai_server", as `python -m` takes it); a data
    file or folder when a module that counts says its name.
    """
    shared = root / "shared"
    data = {p.name: p for p in shared.iterdir() if p.suffix != ".py" and p.name not in SKIPPED}
    found = {shared / "__init__.py", shared / "pyproject.toml"}
    waiting = [*sources, shared / "__init__.py"]
    while waiting:
        path = waiting.pop()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        new = {part for name in _names(tree) if (part := _module(name, shared)) is not None}
        if shared in path.parents:
            said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in data}
            new |= {data[str(name)] for name in said}
        for part in new - found:
            found.add(part)
            waiting += [part] if part.suffix == ".py" else sorted(part.rglob("*.py")) if part.is_dir() else []
    return found


def _names(tree: ast.AST) -> Iterator[str]:
    """Every dotted name below `shared` that a module mentions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\bshared(?:\.\w+)+", node.value)


def _module(name: str, shared: Path) -> Path | None:
    """The file (or folder, of a subpackage) in `shared` behind a dotted name; None for anything else."""
    parts = name.split(".")
    if parts[0] != "shared" or len(parts) < 2:
        return None
    folder, file = shared / parts[1], shared / f"{parts[1]}.py"
    return file if file.is_file() else folder if (folder / "__init__.py").is_file() else None


def _borrowed(sources: Iterable[Path]) -> list[Path]:
    """The modules of tests/shared that tests import (fakes, small worlds), directly or through one another."""
    found: dict[Path, None] = {}
    waiting = [path for path in sources if path.suffix == ".py"]
    while waiting:
        for name in _names(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            path = REPOSITORY / f"{name.replace('.', '/')}.py"
            if name.startswith("tests.shared.") and path.is_file() and path not in found:
                found[path] = None
                waiting.append(path)
    return list(found)


# -- the new repository ------------------------------------------------------------------------------------------------


def export(number: str, target: Path, name: str | None = None) -> list[Path]:
    """Write the repository of one step to `target`; return its files, relative.

    name: the new package's name, the step's own if None. Raises UserError for a step or a name that cannot be, and for
    a target that is there and not empty.
    """
    step = find_step(number)
    if name is not None:
        _check_name(name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"TO={target}: is there already and not empty; give another folder")
    tests = REPOSITORY / "tests" / step.short
    # What holds the step's README to this repository's layout stays here: the new README has other links.
    own = [path for path in _files(tests) if not path.name.endswith("_readme.py")]
    sources = [*_files(step.folder), *own, REPOSITORY / "tests/conftest.py"]
    sources += _borrowed(sources)
    parts = shared_parts(path for path in sources if path.suffix == ".py")
    with atomic_directory(target) as folder:
        for path in [*sources, *(f for part in parts for f in ([part] if part.is_file() else _files(part)))]:
            _copy(path, folder)
        for always in ("LICENSE", ".gitignore", "requirements.lock", "tests/test_readme_tables.py", "shared/results.py",
                        "shared/results_pages.py", "shared/stats.py", "shared/provenance.py"):  # fmt: skip
            _copy(REPOSITORY / always, folder)
        (folder / step.folder.name / "README.md").unlink(missing_ok=True)
        _write(folder / "README.md", _readme(step, folder))
        _write(folder / "Makefile", _makefile((REPOSITORY / "Makefile").read_text(encoding="utf-8"), step))
        _write(folder / "pyproject.toml", _pyproject((REPOSITORY / "pyproject.toml").read_text("utf-8"), step))
        setup = _setup((REPOSITORY / "scripts/setup.sh").read_text(encoding="utf-8"), step)
        _write(folder / "scripts/setup.sh", setup, executable=True)
        _write(folder / ".github/workflows/test.yml", WORKFLOW)
        if name is not None:
            _rename(folder, step, name)
        return sorted(path.relative_to(folder) for path in _files(folder))


def _check_name(name: str) -> None:
    taken = {"shared", "tests", "scripts", "docs", "out", "test"} | set(sys.stdlib_module_names)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"NAME={name}: a Python package name has small letters, digits and _, like my_rag")
    if name in taken:
        raise UserError(f"NAME={name} means something else already; choose another, like my_{name}")


def _files(folder: Path) -> list[Path]:
    """The files below a folder that belong to the repository: what git knows or would add, where git is."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode == 0 and REPOSITORY in [folder, *folder.parents]:
        found = [folder / name for name in listed.stdout.split("\0") if name]
        return sorted(path for path in found if path.is_file())
    return sorted(p for p in folder.rglob("*") if p.is_file() and not SKIPPED & set(p.parts))


def _copy(path: Path, folder: Path) -> None:
    target = folder / path.relative_to(REPOSITORY)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def _write(path: Path, text: str, *, executable: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if executable:
        path.chmod(0o755)


def _readme(step: Step, folder: Path) -> str:
    """The step's README, its links made from the top; pictures come along, links to other steps become plain text."""
    text = (step.folder / "README.md").read_text(encoding="utf-8")

    def link(match: re.Match[str]) -> str:
        label, address = match[1], match[2]
        if "://" in address or address.startswith("#"):
            return match[0]
        path = (step.folder / address.split("#")[0]).resolve()
        inside = path.relative_to(REPOSITORY)
        if inside.parts[0] == "docs" and path.is_file():
            _copy(path, folder)
        if not (folder / inside).exists():
            return label.removeprefix("!").strip("[]")
        return f"{label}({inside.as_posix()}{address[len(address.split('#')[0]) :]})"

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", link, text)


def _makefile(text: str, step: Step) -> str:
    """The rules about this step and about none."""
    blocks = re.split(r"\n(?=\S)", text)
    kept = []
    for block in blocks:
        rule = re.match(r"([\w./%-]+):(?!=)", block)
        if rule is None or rule[1] in COMMON or re.fullmatch(rf"{step.short}(-.*)?|bench{step.number}", rule[1]):
            kept.append(block)
    rules = " ".join(m[1] for block in kept if (m := re.match(r"([a-z0-9-]+):(?!=)", block)))
    text = re.sub(r"^\.PHONY:.*$", f".PHONY: {rules}", "\n".join(kept), flags=re.MULTILINE)
    return text.replace("step*/pyproject.toml", f"{step.folder.name}/pyproject.toml")


def _pyproject(text: str, step: Step) -> str:
    """Developers' tools and settings, for one package."""
    mine = step.folder.name
    text = re.sub(r'^name = ".*"$', f'name = "{mine.replace("_", "-")}-workspace"', text, count=1, flags=re.MULTILINE)
    text = re.sub(r'^description = ".*"$', 'description = "A standalone project"', text, count=1, flags=re.MULTILINE)
    text = re.sub(r'(, )?"(step[1-5]_\w+(\.\*)?|scripts)"', lambda m: m[0] if mine in m[0] else "", text)
    text = re.sub(r'^    "mkdocs.*\n', "", text, flags=re.MULTILINE)  # of `make read`
    return text.replace("[, ", "[")


def _setup(text: str, step: Step) -> str:
    """The set-up of one package: the loop over names becomes that package, and the tools where "dev" is asked for."""
    project = tomllib.loads((step.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    engine = "$engine" if "cpu" in project.get("optional-dependencies", {}) else ""  # chosen above that loop
    loop = re.search(r'^packages=""\n.*?^done\n', text, re.MULTILINE | re.DOTALL)
    if loop is None:
        raise ValueError("scripts/setup.sh: the loop that collects the packages is not where it was")
    one = f'packages="-e shared -e ./{step.folder.name}{engine}"\n'
    return text.replace(loop[0], one + '[ "$1" != dev ] || packages="$packages -e .[dev]"\n')


def _rename(folder: Path, step: Step, name: str) -> None:
    """Give package, command and folders another name, in every text."""
    package, dashed = step.folder.name, name.replace("_", "-")
    for path in _files(folder):
        if path.suffix in TEXT and path.name != "requirements.lock" and "adapters" not in path.parts:
            text = path.read_text(encoding="utf-8")
            new = text.replace(package, name).replace(package.replace("_", "-"), dashed)
            new = re.sub(rf"\b{step.short}\b", name if path.suffix == ".py" else dashed, new)
            new = new.replace(f"tests/{dashed}", f"tests/{name}")
            if new != text:
                path.write_text(new, encoding="utf-8")
    (folder / package).rename(folder / name)
    (folder / "tests" / step.short).rename(folder / "tests" / name)


def main(
    number: Annotated[str, typer.Argument(metavar="STEP", help="1 to 5.")],
    to: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet, or empty.")],
    name: Annotated[str | None, typer.Option(help="What the package is to be called.", show_default="as here")] = None,
) -> None:
    """Make a standalone repository of one step.

    Example: python scripts/export.py 3 ~/my-rag --name my_rag
    """
    target = to.expanduser().absolute()
    files = export(number, target, name)
    size = sum((target / file).stat().st_size for file in files)
    say(f"{len(files)} files, {size / 1e6:.1f} MB, in {target}; next: cd {target} && git init && make test")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
