"""`make drift`: do the newest versions still work, and which package is it when they do not?

    python -m scripts.drift
    python -m scripts.drift --only step4          # once more, after a repair
    python -m scripts.drift --beyond              # what the next major versions will break

Resolves the newest versions that the pyproject files allow, installs them into out/drift/newest (never into .venv),
runs the hermetic tests and one real run per step there, and for each failure holds packages back at their locked
versions until it passes again. Writes docs/drift.md and out/drift/report.json; exit code 1 when something broke.
Interrupted, the same command goes on with the same versions. A run that is complete resolves anew, and repeats its
checks when that gives other versions.
"""

import datetime
import hashlib
import json as jsonlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

import typer

from scripts.drift.blame import Blame, search
from scripts.drift.checks import CHECKS, Check, Outcome, named_in, parts, perform
from scripts.drift.report import Failure, Report, Result, duration, load, save, told, write_page
from scripts.drift.versions import LOCK, REPOSITORY, Resolution, Versions, changes, pin_text, pins
from shared.errors import UserError
from shared.files import atomic_write
from shared.provenance import git_revision, hardware
from shared.terminal import console, print_json, run, say

FOLDER = Path("out/drift")
PAGE = Path("docs/drift.md")
TRIES = 14  # of one search (blame.py): enough for any one of 60 packages, and for a suspect together with it
FAILURES = 8  # that are looked into per check: a whole broken library fails in many test files


class Environments(Protocol):
    """What is needed of `Versions`."""

    def resolve(self, constraints: Path | None = None) -> Resolution: ...
    def hold(self, locked: Resolution, names: frozenset[str]) -> Resolution: ...
    def install(self, resolution: Resolution, environment: Path) -> Path: ...


@dataclass
class Drift:
    """One run. perform: runs a check, as checks.perform does."""

    folder: Path
    versions: Environments
    checks: tuple[Check, ...] = CHECKS
    perform: Callable[[Check, Path, Path, Path], Outcome] = perform
    beyond: bool = False

    def run(self, only: str | None = None, again: bool = False) -> Report:
        """Run the checks that are missing, look into what failed, and return the report; saved after every step.

        only: this check, whatever there is of it. again: all of them, with versions resolved anew.
        Raises UserError for an unknown `only`, and what resolving and installing raise.
        """
        names = [check.name for check in self.checks]
        if only is not None and only not in names:
            raise UserError(f"--only {only}: use one of {', '.join(names)}")
        report = self._begin(only, again)
        todo = [only] if only else [name for name in names if name not in report.results]
        if todo:
            self._check(report, todo)
        elif not report.unfinished(self.checks):
            say(f"the same versions as on {report.date}: nothing to repeat (--again repeats all)")
        self._blame(report)
        return report

    @property
    def _memory(self) -> Path:
        return self.folder / "report.json"

    def _pins(self, name: str) -> Resolution:
        return pins((self.folder / f"{name}.lock").read_text(encoding="utf-8"))

    def _begin(self, only: str | None, again: bool) -> Report:
        """Return the report to go on with, or a new one with versions resolved now."""
        last = None if again else load(self._memory)
        if last is not None and (only or last.unfinished(self.checks)):
            say(f"going on with the versions resolved on {last.date}")
            return last
        say("resolving the newest versions and the locked ones")
        newest, locked = self.versions.resolve(), self.versions.resolve(LOCK)
        digest = hashlib.sha256((pin_text(newest) + pin_text(locked)).encode()).hexdigest()[:12]
        if last is not None and last.resolution == digest:
            return last
        machine = hardware()
        report = Report(
            folder=str(self.folder),
            date=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            machine=f"{machine['os']} {platform.machine()}, {machine['cpu']}, {machine['cores']} cores",
            beyond=self.beyond,
            resolution=digest,
            python=platform.python_version(),
            changed=changes(locked, newest),
        )
        say(f"{len(report.changed)} of {len(newest)} packages differ from requirements.lock")
        for name, resolution in (("newest", newest), ("locked", locked)):
            atomic_write(self.folder / f"{name}.lock", pin_text(resolution))
        save(report, self._memory)
        return report

    def _check(self, report: Report, todo: list[str]) -> None:
        say(f"installing the newest versions into {self.folder / 'newest'} (the first time takes a few minutes)")
        python = self.versions.install(self._pins("newest"), self.folder / "newest")
        for number, check in enumerate(self.checks, 1):
            if check.name not in todo:
                continue
            log = self.folder / "logs" / f"{check.name}.log"
            say(f"[{number}/{len(self.checks)}] {check.name}, {check.minutes:g} minutes at most; log: {log}")
            outcome = self.perform(check, python, self.folder, log)
            found = {} if outcome.ok else parts(check, log.read_text("utf-8", "replace"))
            if check.name in found:  # not split: a check that ran out of time knows the reason better than its log
                found = {check.name: (check, outcome.reason)}
            report.results[check.name] = Result(
                outcome.ok, round(outcome.seconds, 1), str(log), git_revision(),
                [Failure(what, reason) for what, (_, reason) in found.items()],
            )  # fmt: skip
            report.results = {c.name: report.results[c.name] for c in self.checks if c.name in report.results}
            save(report, self._memory)
            say(f"  {'ok' if outcome.ok else 'FAILED'} in {duration(outcome.seconds)} {outcome.reason}".rstrip())

    def _blame(self, report: Report) -> None:
        for check in self.checks:
            result = report.results.get(check.name)
            for number, failure in enumerate(result.failures if result else []):
                if result is None or failure.blame is not None:
                    continue
                if number < FAILURES:
                    say(f"looking for the package behind {failure.what}: {failure.reason}")
                    pieces = parts(check, Path(result.log).read_text("utf-8", "replace"))
                    self._search(failure, pieces[failure.what][0], report)
                else:
                    failure.blame = Blame("skipped")
                save(report, self._memory)
                say(f"  {told(failure, report)}")

    def _search(self, failure: Failure, check: Check, report: Report) -> None:
        """Find out which packages a failure goes back to, in an environment of its own."""
        newest, locked = self._pins("newest"), self._pins("locked")
        logs = self.folder / "logs/blame" / re.sub(r"\W+", "-", failure.what)
        shutil.rmtree(logs, ignore_errors=True)
        failure.logs = str(logs)
        taken: dict[frozenset[str], Resolution] = {}
        python = Path()

        def passes(held: frozenset[str]) -> bool:
            nonlocal python
            taken[held] = self.versions.hold(locked, held) if held else newest
            python = self.versions.install(taken[held], self.folder / "held")
            shown = ", ".join(sorted(held)) if len(held) < 4 else f"{len(held)} packages"
            outcome = self.perform(check, python, self.folder, logs / f"{len(taken)}.log")
            verdict = "passes" if outcome.ok else "fails"
            say(f"  held back: {shown or 'nothing'}: {verdict} ({duration(outcome.seconds)})")
            return outcome.ok

        if passes(frozenset()):
            failure.blame = Blame("unsteady", tries=1)
            return
        # The likeliest first: what an earlier failure came from, what the traceback names, what we ask for ourselves.
        likely = [name for other in report.failures() if other.blame for name in other.blame.packages]
        likely += named_in((logs / "1.log").read_text("utf-8", "replace"), _modules(python))
        movable = [change.name for change in report.changed if change.locked and change.newest]
        names = list(dict.fromkeys([*(name for name in likely if name in movable), *movable]))
        blame = search(names, passes, TRIES)
        failure.blame = replace(blame, tries=blame.tries + 1)
        if blame.verdict == "found":
            back = taken[frozenset(blame.packages)]
            failure.moved = [n for n in back if n in newest and back[n] != newest[n] and n not in blame.packages]


def _modules(python: Path) -> dict[str, list[str]]:
    """Which packages an environment's modules belong to."""
    code = "import importlib.metadata as m, json; print(json.dumps(m.packages_distributions()))"
    found: dict[str, list[str]] = jsonlib.loads(subprocess.check_output([str(python), "-c", code], text=True))
    return found


def main(
    only: Annotated[
        str | None,
        typer.Option(metavar="CHECK", show_default="all that are missing", help="Repeat one: tests, step1 to step5."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Resolve anew and repeat every check.")] = False,
    beyond: Annotated[
        bool, typer.Option("--beyond", help="Without the upper bounds of the pyproject files; page below out/ only.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead.")] = False,
) -> None:
    """Try the newest versions of all packages; say what breaks, and which package it is.

    Example: python -m scripts.drift

    Example: python -m scripts.drift --only step4

    Example: python -m scripts.drift --beyond
    """
    os.chdir(REPOSITORY)
    folder = FOLDER / "beyond" if beyond else FOLDER
    report = Drift(folder, Versions(folder.absolute(), beyond=beyond), beyond=beyond).run(only, again)
    page = folder / "drift.md" if beyond else PAGE
    write_page(report, CHECKS, page)
    if json:
        print_json(asdict(report))
    else:
        console().print(f"report: {page}", markup=False, soft_wrap=True)
    if broken := report.broken():
        raise UserError(f"broke: {', '.join(broken)}; {page} says what and why", exit_code=1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
