"""A step taken away is whole: it starts, type-checks its imports and passes its tests where this repository is not.

python -m pytest tests/test_export.py -m "not real"
python -m pytest tests/test_export.py -m real            # the exported repositories' own tests
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts.export import REPOSITORY, export, find_step, shared_parts
from shared.errors import UserError

# The exported repositories repeat `make test`: all of it, in five of them, takes five minutes.
ALL = os.environ.get("EXPORTED_TESTS") == "all"
THREE_OF_EACH_FILE = """
def pytest_collection_modifyitems(items):
    taken = {}
    items[:] = [one for one in items if taken.setdefault(one.path, []).append(one) or len(taken[one.path]) <= 3]
"""
NUMBERS = [path.name[4] for path in sorted(REPOSITORY.glob("step[1-5]_*"))]
TESTED = NUMBERS if ALL else ["2", "3"]


def python(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in an exported repository, which stands before everything that is installed."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def imports_of(folder: Path) -> set[str]:
    """Every module that a Python file of the folder imports."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_an_exported_step_starts_and_is_closed(number: str, tmp_path: Path) -> None:
    folder, step = tmp_path / "away", find_step(number)
    export(number, folder)
    started = python(folder, "-m", step.folder.name, "--help")
    assert started.returncode == 0, started.stderr
    where = python(folder, "-c", "import shared; print(shared.__file__)")
    assert where.stdout.strip() == str(folder / "shared/__init__.py")

    names = imports_of(folder)
    others = {path.name for path in REPOSITORY.glob("step[1-5]_*")} - {step.folder.name}
    assert not [name for name in names if name.split(".")[0] in others]
    missing = {
        name
        for name in names
        if name.startswith("shared.")
        and not (folder / f"{name.replace('.', '/')}.py").exists()
        and not (folder / name.replace(".", "/")).is_dir()
    }
    assert missing == set()
    settings = tomllib.loads((folder / "pyproject.toml").read_text())
    assert settings["tool"]["mypy"]["packages"] == ["shared", step.folder.name]
    rules = re.findall(r"^([a-z0-9-]+):(?!=)", (folder / "Makefile").read_text(), re.MULTILINE)
    assert {"test", "lint", step.short} <= set(rules)
    assert not [rule for rule in rules if re.match(r"(step|bench)\d", rule) and number not in rule]


def test_only_the_modules_that_are_used_come_along(tmp_path: Path) -> None:
    """A module is found through an import, through a string for `python -m`, and through another module."""
    shared = tmp_path / "shared"
    shared.mkdir()
    for name, text in {
        "__init__.py": "",
        "pyproject.toml": "",
        "used.py": "from shared import deeper",
        "deeper.py": 'DATA = "table.toml"',
        "started.py": "",
        "unused.py": 'OTHER = "other.toml"',
        "table.toml": "",
        "other.toml": "",
    }.items():
        (shared / name).write_text(text)
    source = tmp_path / "step.py"
    source.write_text('import shared.used\ncommand = ["-m", "shared.started"]')
    found = {path.name for path in shared_parts([source], tmp_path)}
    assert found == {"__init__.py", "pyproject.toml", "used.py", "deeper.py", "started.py", "table.toml"}


def test_a_new_name_is_used_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    export("1", folder, "look_inside")
    assert python(folder, "-m", "look_inside", "--help").returncode == 0
    assert (folder / "tests/look_inside").is_dir()
    project = tomllib.loads((folder / "look_inside/pyproject.toml").read_text())["project"]
    assert project["name"] == "look-inside"
    assert list(project["scripts"].items()) == [("look-inside", "look_inside.cli:main")]
    left = [path for path in (folder / "look_inside").rglob("*.py") if "step1" in path.read_text()]
    assert left == []


@pytest.mark.parametrize(
    ("number", "name", "message"),
    [("9", None, "use 1, 2"), ("1", "My-Rag", "small letters"), ("1", "json", "my_json"), ("1", "tests", "my_tests")],
)
def test_what_cannot_be_is_said(number: str, name: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export(number, tmp_path / "away", name)
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        export("1", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("number", "name"), [(n, "my_caller" if n == "2" else None) for n in TESTED])  # one renamed
def test_an_exported_step_passes_its_own_tests(number: str, name: str | None, tmp_path: Path) -> None:
    """Two steps, three tests of each file, which need its imports, fixtures and data; EXPORTED_TESTS=all for all."""
    folder = tmp_path / "away"
    export(number, folder, name)
    some = [] if ALL else ["-p", "three_of_each_file"]
    (folder / "three_of_each_file.py").write_text(THREE_OF_EACH_FILE, encoding="utf-8")
    done = python(folder, "-m", "pytest", "-q", "-x", "-n", "2", "-m", "not real", "-p", "no:cacheprovider", *some)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 20
