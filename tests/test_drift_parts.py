"""The parts of `make drift`: versions, the search, what a log says, running a check, the page.

python -m pytest tests/test_drift_parts.py             # fakes are called so; nothing is resolved or installed
"""

import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.drift.__main__ import TRIES
from scripts.drift.blame import Blame, search
from scripts.drift.checks import CHECKS, TESTS, Check, named_in, parts, perform, reason_in, tidy
from scripts.drift.report import Failure, Report, Result, duration, load, render, save, told, write_page
from scripts.drift.versions import PROJECTS, REPOSITORY, Change, Versions, changes, lift, pins
from shared.errors import UserError

TWO = (Check("tests", (("-m", "pytest"),), 1), Check("step1", (("-m", "step1_foundations"),), 1))
LOCKED = {"alpha": "1.0", "beta": "1.0", "gamma": "2.0+cpu", "gone": "1.0", "same": "3.1"}
NEWEST = {"alpha": "1.1", "beta": "2.0", "gamma": "2.1", "new": "0.1", "same": "3.1"}
PYTHON = Path(sys.executable)


# -- versions ----------------------------------------------------------------------------------------------------------


def test_pins_are_read_from_a_lock_and_from_what_uv_prints() -> None:
    text = "# a comment==1\n-e ./shared\nabsl-py==2.5.1\ntorch==2.13.0+cpu\nuvloop==0.22 ; sys_platform != 'win32'\n"
    assert pins(text) == {"absl-py": "2.5.1", "torch": "2.13.0+cpu", "uvloop": "0.22"}
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    assert len(pins(lock)) > 300
    assert not [line for line in lock.splitlines() if line[0] != "#" and line.split("==")[0] not in pins(lock)]


def test_changes_name_what_moved_came_and_went_and_who_asked_for_it() -> None:
    assert changes(LOCKED, NEWEST) == [
        Change("alpha", "1.0", "1.1"),
        Change("beta", "1.0", "2.0"),
        Change("gamma", "2.0+cpu", "2.1"),
        Change("gone", "1.0", None),
        Change("new", None, "0.1"),
    ]
    found = changes({"aaa": "1", "openai": "3.54.0"}, {"aaa": "2", "openai": "3.57.0"})
    assert [change.name for change in found] == ["openai", "aaa"], "what we ask for ourselves comes first"
    assert {"step2_tool_calling", "step4_finetune", "dev"} <= set(found[0].asked_by)


def test_lifting_takes_upper_bounds_and_nothing_else() -> None:
    assert lift('"openai>=3.54,<4", "torch==2.13.0", "x>=0.4.2,<0.5", # wants y<2') == (
        '"openai>=3.54", "torch==2.13.0", "x>=0.4.2", # wants y<2'
    )
    for project in [*PROJECTS, Path()]:
        text = (REPOSITORY / project / "pyproject.toml").read_text(encoding="utf-8")
        before, after = tomllib.loads(text), tomllib.loads(lift(text))
        assert after["project"]["requires-python"] == before["project"]["requires-python"]
        assert before.get("tool") == after.get("tool")
        assert not [entry for entry in after["project"]["dependencies"] if "<" in entry]


def test_uv_that_fails_is_said_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'no solution for openai' >&2\nexit 1\n")
    uv.chmod(0o755)
    monkeypatch.setattr("scripts.drift.versions._uv_program", lambda: str(uv))
    monkeypatch.setattr("scripts.drift.versions.uv_settings", dict)
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match="no solution for openai") as failed:
        Versions(tmp_path).resolve()
    assert failed.value.exit_code == 1


# -- the search --------------------------------------------------------------------------------------------------------


@given(st.data())
def test_the_search_finds_exactly_the_packages_that_have_to_be_held(data: st.DataObject) -> None:
    names = [f"p{number}" for number in range(data.draw(st.integers(1, 40)))]
    guilty = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=3))
    asked: list[frozenset[str]] = []

    def fake(held: frozenset[str]) -> bool:
        asked.append(held)
        return guilty <= held

    blame = search(names, fake, 1000)
    assert blame.verdict == "found"
    assert set(blame.packages) == guilty
    assert len(asked) == len(set(asked)) == blame.tries, "nothing is tried twice"
    assert frozenset() not in asked, "the caller has seen that fail"


def test_a_suspect_costs_two_tries_and_anybody_else_stays_within_the_limit() -> None:
    names = [f"p{number}" for number in range(60)]
    tries = [search(names, lambda held, guilty=name: guilty in held, 1000).tries for name in names]  # type: ignore[misc]
    assert tries[0] == 2
    assert max(tries) <= TRIES


def test_the_search_says_what_it_does_not_know() -> None:
    names = [f"p{number}" for number in range(40)]
    assert search(names, lambda held: False, TRIES) == Blame("locked", tries=1)
    assert search([], lambda held: True, TRIES) == Blame("locked")
    stopped = search(names, lambda held: "p30" in held, 4)
    assert (stopped.verdict, stopped.packages, stopped.tries) == ("unfinished", [], 4)
    assert "p30" in stopped.suspects
    assert len(stopped.suspects) < 40
    half = search(names, lambda held: {"p0", "p30"} <= held, 12)
    assert (half.verdict, half.packages) == ("unfinished", ["p30"])
    assert "p0" in half.suspects


# -- what a log says ---------------------------------------------------------------------------------------------------

LOG = f"""$ python -m pytest
_______ test_a _______
{REPOSITORY}/out/drift/newest/lib/python3.11/site-packages/alpha/core.py:10: in call
{REPOSITORY}/out/drift/newest/lib/python3.11/site-packages/beta_lib/x.py:3: in f
E   TypeError: no
FAILED tests/step1/test_x.py::test_a[one two] - TypeError: f() got an {REPOSITORY}/unexpected argument
FAILED tests/step1/test_x.py::test_b - AssertionError
ERROR tests/step2/test_y.py - ImportError: cannot import name 'z' from 'gamma.sub'
2 failed, 700 passed
"""


def test_failed_tests_are_split_by_file_and_keep_their_reasons() -> None:
    tests = next(check for check in CHECKS if check.name == "tests")
    found = parts(tests, LOG)
    assert {what: reason for what, (_, reason) in found.items()} == {
        "tests/step1/test_x.py": "TypeError: f() got an unexpected argument",
        "tests/step2/test_y.py": "ImportError: cannot import name 'z' from 'gamma.sub'",
    }
    assert found["tests/step1/test_x.py"][0].commands == ((*TESTS, "tests/step1/test_x.py"),)
    whole = parts(tests, "INTERNALERROR> KeyError\nSegmentation fault")
    assert whole == {"tests": (tests, "Segmentation fault")}
    step = Check("step9", (("-m", "x"),), 1)
    assert parts(step, LOG)["step9"][0] is step


def test_the_options_of_the_tests_give_the_lines_that_are_read(tmp_path: Path) -> None:
    """pytest itself, as it is installed: long reasons are whole, a broken import is named too."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_text(f"def test_a(): raise TypeError('{'long ' * 40}end')\n")
    (folder / "test_b.py").write_text("import no_such_module\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -ra\nmarkers = real: x\n")
    ran = subprocess.run([sys.executable, *TESTS, "-n", "0"], cwd=tmp_path, capture_output=True, text=True)
    found = parts(CHECKS[0], ran.stdout)
    assert set(found) == {"tests/test_a.py", "tests/test_b.py"}, ran.stdout
    assert found["tests/test_a.py"][1].endswith("long end")
    assert found["tests/test_b.py"][1] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert named_in("ModuleNotFoundError: No module named 'no_such_module'", {"no_such_module": ["N_S"]}) == ["n-s"]


def test_tracebacks_name_packages_the_deepest_first() -> None:
    modules = {"alpha": ["alpha"], "beta_lib": ["Beta_Lib"], "gamma": ["gamma-one", "gamma-two"]}
    assert named_in(LOG, modules) == ["gamma-one", "gamma-two", "beta-lib", "alpha"]
    assert named_in("all is well", modules) == []


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("loading\nerror: the engine does not start\n", "error: the engine does not start"),
        ("Traceback …\n  x\nopenai.BadRequestError: 400 no\nleftover warning\n", "openai.BadRequestError: 400 no"),
        ("KeyError: 'a'\n\nDuring handling …\nValueError: b\n", "ValueError: b"),
        ("Killed\n", "Killed"),
        ("", "it said nothing"),
    ],
)
def test_the_reason_is_the_line_that_says_why(log: str, reason: str) -> None:
    assert reason_in(log) == reason


def test_reasons_hold_no_places_of_this_machine_and_no_escapes() -> None:
    said = tidy(f"error: {REPOSITORY}/shared/x.py and {Path.home()}/y \x1b[2J")
    assert said.startswith("error: shared/x.py and ~/y")
    assert "\x1b" not in said


# -- running a check ---------------------------------------------------------------------------------------------------


def script(*lines: str, minutes: float = 1) -> Check:
    return Check("fake", tuple(("-c", line) for line in lines), minutes)


def test_a_check_gets_an_empty_folder_and_a_home_of_its_own(
    tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    show = "import os, json; print(json.dumps(dict(os.environ) | {'out': os.listdir(r'{out}')}))"
    make = "open(r'{out}/left', 'w'); import os; open(os.environ['LLM_ROADMAP_HOME'] + '/left', 'w'); print('made')"
    log = tmp_path / "logs/fake.log"
    for _ in range(2):
        outcome = perform(script(show, make), PYTHON, tmp_path, log)
        assert (outcome.ok, outcome.reason) == (True, "")
        said = json.loads(next(line for line in log.read_text().splitlines() if line.startswith("{")))
        assert said["out"] == []
        assert "OPENAI_BASE_URL" not in said
        assert said["LLM_ROADMAP_HOME"] == str(tmp_path / "home")
        assert said["PATH"].startswith(str(PYTHON.parent))
        assert (tmp_path / "home/artifacts").resolve() == (isolated_home / "artifacts").resolve()
    assert isolated_home.joinpath("artifacts").is_dir(), "what was downloaded outlives the check"


def test_the_first_command_that_fails_ends_a_check(tmp_path: Path) -> None:
    log = tmp_path / "fake.log"
    outcome = perform(script("raise ValueError('broken')", "print('never')"), PYTHON, tmp_path, log)
    assert (outcome.ok, outcome.reason) == (False, "ValueError: broken")
    assert "never" not in log.read_text().split("ValueError")[-1]


def test_a_check_that_hangs_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    start = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open(r'{out}/pid', 'w').write(str(child.pid))\ntime.sleep(60)"
    )
    outcome = perform(script(start, minutes=3 / 60), PYTHON, tmp_path, tmp_path / "fake.log")
    assert (outcome.ok, outcome.reason) == (False, "stopped after 0.05 minutes")
    pid = int((tmp_path / "scratch/pid").read_text())
    end = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has collected yet does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_every_check_is_a_command_that_its_program_takes() -> None:
    assert [check.name for check in CHECKS] == ["tests", *(f"step{n}" for n in range(1, 6))]
    for check in CHECKS[1:]:
        for command in check.commands:
            package = command[1]
            assert package.startswith(check.name)
            module = __import__(f"{package}.cli", fromlist=["app"])
            import typer

            group: Any = typer.main.get_command(module.app)
            words = list(command[2:])
            while hasattr(group, "commands"):
                group = group.commands[words.pop(0)]
            group.make_context("x", words)  # parses, runs nothing; raises UsageError for what it does not know


# -- the report --------------------------------------------------------------------------------------------------------


def report_of(*failures: Failure) -> Report:
    results = {
        "tests": Result(True, 130.2, "out/drift/logs/tests.log", "abc1234"),
        "step1": Result(not failures, 48, "out/drift/logs/step1.log", "abc1234", list(failures)),
    }
    return Report("out/drift", "2026-11-28 10:00", "Linux", False, "0" * 12, "3.11.2", changes(LOCKED, NEWEST), results)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure("w", "r"), "Not looked into yet."),
        (Failure("w", "r", Blame("skipped")), "too many failures"),
        (Failure("w", "r", Blame("unsteady", tries=1)), "It passed when it was repeated"),
        (Failure("w", "r", Blame("locked", tries=2)), "at its locked version too"),
        (Failure("w", "r", Blame("found", ["beta"], tries=3), ["alpha"], "l"),
         "Blame: **beta** 1.0 → 2.0. With it held at the locked version (which takes back alpha as well) it passes. "
         "3 tries, logs: `l`."),
        (Failure("w", "r", Blame("found", ["beta", "alpha"], tries=9)),
         "Blame: **beta** 1.0 → 2.0 and **alpha** 1.0 → 1.1. With them held"),
        (Failure("w", "r", Blame("unfinished", ["beta"], ["alpha", "gamma"], 13)),
         "Not found. **beta** 1.0 → 2.0 is part of it. Not cleared: alpha, gamma."),
    ],
)  # fmt: skip
def test_every_verdict_has_its_sentence(failure: Failure, words: str) -> None:
    assert words in told(failure, report_of())


def test_the_page_keeps_what_people_wrote(tmp_path: Path) -> None:
    page, failure = tmp_path / "drift.md", Failure("step1", "KeyError: a|b", Blame("found", ["beta"], tries=3))
    write_page(report_of(failure), TWO, page)
    text = page.read_text(encoding="utf-8")
    for words in ("**Failed: step1.**", "| tests | ok | 2 min 10 s | abc1234 | `python -m pytest` |", "### step1",
                  "    KeyError: a|b", "| beta | 1.0 | 2.0 | – |", "| gone | 1.0 | – | – |",
                  "Nothing yet."):  # fmt: skip
        assert words in text, words
    page.write_text(text.replace("Nothing yet.", "beta is held below 2."), encoding="utf-8")
    write_page(report_of(), TWO, page)
    text = page.read_text(encoding="utf-8")
    assert "**Nothing broke.**" in text
    assert "beta is held below 2." in text
    assert text.count("## What was done") == 1
    assert "only 2 of 6 checks were run" in render(report_of(), CHECKS)


def test_a_report_comes_back_as_it_was_and_a_broken_one_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report = report_of(
        Failure("step1", "r", Blame("unfinished", ["beta"], ["alpha"], 13), ["x"], "l"), Failure("w", "r")
    )
    save(report, path)
    assert load(path) == report
    for text in ("", "[]", "{}", '{"changed": 1, "results": {}}', path.read_text().replace('"beyond"', '"other"')):
        path.write_text(text)
        assert load(path) is None
    assert load(tmp_path / "none.json") is None


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 200)] == ["0 s", "59 s", "1 min 0 s", "3 min 20 s"]
