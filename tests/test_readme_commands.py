"""Every command that a README shows is tested: run here, run by a test that the table names, or at least parsed.

    python -m pytest tests/test_readme_commands.py -m "not real"     # a tiny random model
    README_COMMANDS=1 python -m pytest tests/test_readme_commands.py -m real           # the real model; two minutes

The pages are read by readme_commands/pages.py; readme_commands/table.py has a line for each command. One that is new
or changed has none yet, and that is a failure here, as is a line whose command is gone.
"""

import ast
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.readme_commands.pages import ROOT, Shown, all_shown, shown_in, split
from tests.readme_commands.place import borrowed_home, furnish, run_child, write_articles
from tests.readme_commands.table import CI, TABLE, Parsed, Run, RunBy
from tests.readme_commands.takes import STAMPS, problem, recipe

SHOWN = all_shown()
FIRST: dict[str, Shown] = {}  # where each command stands first, in the order of the pages
for one in SHOWN:
    FIRST.setdefault(one.text, one)
NOT_RUN = [shown for shown in FIRST.values() if not isinstance(TABLE.get(shown.text), Run)]


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_command_has_its_line_and_every_line_its_command() -> None:
    commands = {shown.text for shown in SHOWN if split(shown.text)[1]}  # not the bare `export`s
    new = [f"{FIRST[command].place}: {command}" for command in commands if command not in TABLE]
    gone = sorted(TABLE.keys() - commands)
    assert len(commands) > 90
    assert sorted(new) == [], "add to tests/readme_commands/table.py how each is tested"
    assert gone == [], "no page shows these any more; remove them from tests/readme_commands/table.py"


@pytest.mark.parametrize("shown", NOT_RUN, ids=lambda shown: shown.place)
def test_a_command_that_is_not_run_here_is_one(shown: Shown) -> None:
    """The program takes it; and the test that is said to run it is there and speaks of it."""
    assert problem(shown.text) == "", f"{shown.place}: {shown.text}"
    way = TABLE.get(shown.text, ())
    if isinstance(way, Parsed):
        assert len(way.why.split()) > 3
    else:
        for tested in (way,) if isinstance(way, RunBy) else way:
            assert untested(shown.text, tested) == "", f"{shown.place}: {shown.text}"


def untested(command: str, tested: RunBy) -> str:
    """Why a test does not run a command after all; "" if it does, as far as its text tells."""
    file, _, name = tested.by.partition("::")
    if not (ROOT / file).is_file():
        return f"there is no {file}"
    if tested.by == CI:
        return "" if tested.mentions in (ROOT / file).read_text("utf-8").splitlines() else f"{CI} has no such line"
    source = reached(ROOT / file, name)
    if not source:
        return f"{file} has no {name}"
    missing = [where for where, text in (("the command", f"{command} {recipe(command)}"), (name, source))
               if tested.mentions not in f" {plain(text)} "]  # fmt: skip
    return f"{tested.mentions!r} is not in {' and '.join(missing)}" if missing else ""


def plain(text: str) -> str:
    """A command line as a person types it, out of a list of strings in Python."""
    return " ".join(re.split(r"[\s\"',()\[\]]+", text))


def reached(file: Path, name: str) -> str:
    """The source of a function of a test file with that of all it uses, fixtures too; "" when there is none."""
    parts: dict[str, tuple[str, ast.AST]] = {}
    for path in (file.with_name("conftest.py"), file):
        if path.is_file():
            text = path.read_text("utf-8")
            for node in ast.parse(text).body:
                targets = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
                if isinstance(node, ast.Assign):
                    targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
                parts |= {target: (ast.get_source_segment(text, node) or "", node) for target in targets}
    waiting, found = [name], dict[str, str]()
    while waiting:
        if (part := waiting.pop()) in parts and part not in found:
            found[part], node = parts[part]
            names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
            waiting += [*names, *(n.arg for n in ast.walk(node) if isinstance(n, ast.arg))]
    return "\n".join(found.values())


# -- running -----------------------------------------------------------------------------------------------------------


def group(command: str) -> str:
    """The step that a command belongs to; commands of one step run in one process, in the order of the pages."""
    return next(iter(re.findall(r"\bstep[1-5]_\w+", command)), "the repository")


def groups(*, real: bool) -> list[str]:
    return sorted({group(text) for text, way in TABLE.items() if isinstance(way, Run) and way.real is real})


@pytest.mark.parametrize("name", groups(real=False))
def test_the_commands_run(name: str, roomy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    variables = {"MODEL": str(roomy_model), "LLM_ROADMAP_HOME": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}
    run_group(name, tmp_path, variables, real=False)


@pytest.fixture(scope="module")
def roomy_model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context in which the answers that the pages ask for have room."""
    folder = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("roomy") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    return folder


@pytest.mark.real
@pytest.mark.skipif("README_COMMANDS" not in os.environ, reason="two minutes more: README_COMMANDS=1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", groups(real=True))
def test_the_commands_run_with_the_real_model(name: str, tmp_path: Path) -> None:
    run_group(name, tmp_path, {"LLM_ROADMAP_HOME": str(borrowed_home(tmp_path / "cache"))}, real=True)


def run_group(name: str, folder: Path, variables: dict[str, str], *, real: bool) -> None:
    """Run a group's commands in the order of the pages; tell the place, code and last words of each that failed."""
    furnish(folder)
    commands = []
    if real and name == "step3_rag":
        write_articles(folder / "articles")
        commands.append(command("python -m step3_rag ingest articles --collection encyclopaedia"))
    own, found = len(commands), dict[str, Run]()
    for text in FIRST:
        if isinstance(way := TABLE.get(text), Run) and way.real is real and group(text) == name:
            found[text] = way
            commands.append(command(as_run(text, way), way))
    outcomes = run_child(folder, commands, variables)
    if len(outcomes) < len(commands):
        said = (folder / "said.txt").read_text("utf-8", errors="replace") if (folder / "said.txt").exists() else ""
        pytest.fail(f"this did not end: {commands[len(outcomes)]['command']}\n{said[-2000:]}")
    assert all(outcome["code"] == 0 for outcome in outcomes[:own]), outcomes[:own]
    failures = [failure(text, way, outcome) for (text, way), outcome in zip(found.items(), outcomes[own:], strict=True)]
    assert not any(failures), "\n".join(["", *filter(None, failures)])


def command(text: str, way: Run = Run()) -> dict[str, str]:
    """A command as child.py reads it."""
    return {"command": text, "typed": way.typed, "until": way.until}


def as_run(text: str, way: Run) -> str:
    """What is run for a command: what the table says instead, this Python, and make without its set-up."""
    for shown, ours in way.instead:
        assert shown in text, f"{text}: does not say {shown!r}, which the table has replaced"
        text = text.replace(shown, ours)
    text = text.replace(".venv/bin/python", "python")
    return re.sub(r"(^| )make ", rf"\1make -f {ROOT}/Makefile {' '.join(STAMPS)} PY={sys.executable} ", text)


def failure(text: str, way: Run, outcome: dict[str, Any]) -> str:
    """What a person has to know about a command that failed; "" when it did not."""
    said = outcome["said"]
    wrong = [f"exit code {outcome['code']}"] if outcome["code"] != 0 else []
    wrong += ["a traceback"] if "Traceback (most recent call last)" in said else []
    wrong += [] if re.search(way.shows, said) else [f"nothing like {way.shows!r}"]
    if not wrong:
        return ""
    tail = "\n    ".join(said.splitlines()[-12:])
    return f"{FIRST[text].place}: {text}\n  {', '.join(wrong)}, after {outcome['seconds']} s:\n    {tail}"


# -- the checks themselves ---------------------------------------------------------------------------------------------


def test_a_page_is_read_as_a_reader_reads_it() -> None:
    page = """Type `make help` or `ls`.
```
export MODEL=x
make step1       # a remark
.venv/bin/python -m a b "c # d" \\
    --e f
```
```python
make = 1
```
```
you> make tea
```
"""
    assert [(shown.line, shown.text) for shown in shown_in(page)] == [
        (1, "make help"),
        (3, "export MODEL=x"),
        (4, "make step1"),
        (5, '.venv/bin/python -m a b "c # d" --e f'),
    ]
    assert split("A=1 B='2 3' make x") == ({"A": "1", "B": "2 3"}, ["make", "x"])
    assert split("export A=1 B=2") == ({"A": "1", "B": "2"}, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("make step9", "No rule to make target 'step9'"),
        ("NO_SUCH_SETTING=1 make step1", "no setting is called NO_SUCH_SETTING"),
        ("python -m step1_foundations neXt x", "has no verb neXt"),
        ("python -m step1_foundations next x --nope", "No such option: --nope"),
        ("python -m step1_foundations next", "Missing parameter: text"),
        ("python -m step3_rag search x --mmr 7", "less than or equal to 1"),
        ("python -m step2_tool_calling.bench --fast", "step2_tool_calling.bench has no --fast"),
        ("python -m shared.nothing", "No module named shared.nothing"),
        ("python -m step4_finetune.train step4_finetune/recipes/gone.yaml", "gone.yaml is not there"),
        (".venv/bin/uv pip install -e 'step3_rag[nothing]'", "has no extra nothing"),
        ("docker compose run --rm nobody keys list", "no service nobody"),
        ("docker compose run --rm gateway keys lost", "has no verb lost"),
        ("docker compose run --rm -T gateway keys create me --nope", "No such option: --nope"),
        ("kubectl exec -- python -m step5_serving keys make me", "has no verb make"),
        ("podman up", "podman is a program"),
    ],
)
def test_a_command_that_is_none_is_told(text: str, words: str) -> None:
    assert words in problem(text)


def test_a_test_that_does_not_run_the_command_is_told() -> None:
    here = "tests/test_readme_commands.py"
    assert "there is no tests/gone.py" in untested("make help", RunBy("tests/gone.py::test_x", "help"))
    assert "has no test_gone" in untested("make help", RunBy(f"{here}::test_gone", "help"))
    assert "has no such line" in untested("make help", RunBy(CI, "make help"))
    assert "is not in the command" in untested("make help", RunBy(f"{here}::test_the_commands_run", "tiny_llama"))
    assert "is not in test_the_commands_run" in untested("make lint", RunBy(f"{here}::test_the_commands_run", "ruff"))
    assert untested("promtool check rules", RunBy(f"{here}::test_the_commands_run", "check rules")) != ""


def test_what_failed_is_told_with_its_place() -> None:
    text = "make export STEP=3 TO=~/my-rag NAME=my_rag"
    told = failure(text, Run(shows="12"), {"code": 3, "seconds": 0.5, "said": "a\nb"})
    assert told.startswith(f"{FIRST[text].place}: {text}\n  exit code 3, nothing like '12', after 0.5 s:\n    a")
    assert failure(text, Run(shows="b"), {"code": 0, "seconds": 0.5, "said": "a\nb"}) == ""
