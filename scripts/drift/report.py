"""What a run of `make drift` found: kept as JSON after every check, told as one Markdown page at the end.

out/drift/report.json is also the memory of a run that was interrupted. docs/drift.md is committed: what stands in it
below "What was done" is written by hand, and a new run keeps it.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.drift.blame import Blame
from scripts.drift.checks import Check
from scripts.drift.versions import Change
from shared.files import atomic_write

BY_HAND = "## What was done\n"
EMPTY = "\nNothing yet. Written by hand: a new run keeps what stands here.\n"
NONE = "–"


@dataclass
class Failure:
    """A check that fails, or one file of the tests. blame: None until it was looked for.

    moved: what else went back to an older version when the packages to blame were held. logs: one per try.
    """

    what: str
    reason: str
    blame: Blame | None = None
    moved: list[str] = field(default_factory=list)
    logs: str = ""


@dataclass
class Result:
    """A check that ran. seconds: wall time. revision: the code's, which may be a later one after a repair."""

    ok: bool
    seconds: float
    log: str
    revision: str
    failures: list[Failure] = field(default_factory=list)


@dataclass
class Report:
    """A run. folder: where it keeps things. date: when the versions were resolved.

    resolution: hash of the newest and the locked versions.
    results: by the check's name.
    """

    folder: str
    date: str
    machine: str
    beyond: bool
    resolution: str
    python: str
    changed: list[Change]
    results: dict[str, Result] = field(default_factory=dict)

    def unfinished(self, checks: tuple[Check, ...]) -> bool:
        """Whether a check has not run, or a failure has not been looked into."""
        waiting = any(failure.blame is None for failure in self.failures())
        return waiting or any(check.name not in self.results for check in checks)

    def failures(self) -> list[Failure]:
        """All failures, in the order of the checks."""
        return [failure for result in self.results.values() for failure in result.failures]

    def broken(self) -> list[str]:
        """The names of the checks that failed."""
        return [name for name, result in self.results.items() if not result.ok]


def save(report: Report, path: Path) -> None:
    """Write the JSON, atomically."""
    atomic_write(path, json.dumps(asdict(report), ensure_ascii=False, indent=1) + "\n")


def load(path: Path) -> Report | None:
    """Read what `save` wrote; None when there is no such file, or it is not one of ours."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        changed = [Change(**entry | {"asked_by": tuple(entry["asked_by"])}) for entry in data.pop("changed")]
        results = {name: _result(entry) for name, entry in data.pop("results").items()}
        return Report(**data, changed=changed, results=results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _result(entry: dict[str, Any]) -> Result:
    failures = [
        Failure(**failure | {"blame": None if failure["blame"] is None else Blame(**failure["blame"])})
        for failure in entry["failures"]
    ]
    return Result(**entry | {"failures": failures})


# -- the page ----------------------------------------------------------------------------------------------------------


def write_page(report: Report, checks: tuple[Check, ...], path: Path) -> None:
    """Write the Markdown page; keep what an earlier one says below "What was done"."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    by_hand = before.partition(BY_HAND)[2] or EMPTY
    atomic_write(path, f"{render(report, checks)}\n{BY_HAND}{by_hand}")


def render(report: Report, checks: tuple[Check, ...]) -> str:
    """Return the page down to where the part written by hand begins."""
    ran = [check for check in checks if check.name in report.results]
    broken = report.broken()
    verdict = f"Failed: {', '.join(broken)}" if broken else "Nothing broke"
    if len(ran) < len(checks):
        verdict += f"; only {len(ran)} of {len(checks)} checks were run"
    ranges = "without their upper bounds (`--beyond`)" if report.beyond else "as they are"
    lines = [
        "# Drift: the newest versions in place of the locked ones",
        "",
        f"**{verdict}.** `make drift` installs the newest versions that the ranges in the `pyproject.toml` files "
        "allow, runs the hermetic tests and one real run per step with them, and looks for the package behind each "
        "failure.",
        "",
        f"{report.date} · Python {report.python} · {report.machine} · ranges {ranges} · resolution {report.resolution}",
        "",
        "## Checks",
        "",
        *_table(["check", "result", "time", "revision", "what was run"], [_row(check, report) for check in ran]),
        "",
    ]
    if failures := report.failures():
        lines += ["## What broke", ""]
        for failure in failures:
            lines += [f"### {failure.what}", "", f"    {failure.reason}", "", told(failure, report), ""]
    lines += [f"## Versions that changed: {len(report.changed)}", ""]
    if report.changed:
        rows = [[c.name, c.locked or NONE, c.newest or NONE, ", ".join(c.asked_by) or NONE] for c in report.changed]
        lines += [*_table(["package", "locked", "newest", "asked for by"], rows), ""]
    lines += [
        f"Logs: `{report.folder}/logs/`, one per check, those of the search below `blame/`. The environment stays in "
        f"`{report.folder}/newest/`: its `bin/python` repeats any command above.",
        "",
    ]
    return "\n".join(lines)


def told(failure: Failure, report: Report) -> str:
    """Who is to blame, in words."""
    blame, versions = failure.blame, {change.name: change for change in report.changed}
    if blame is None:
        return "Not looked into yet."
    named = [f"**{name}** {versions[name].locked} → {versions[name].newest}" for name in blame.packages]
    tries = f"{blame.tries} {'try' if blame.tries == 1 else 'tries'}, logs: `{failure.logs}`"
    match blame.verdict:
        case "found":
            moved = f" (which takes back {', '.join(failure.moved)} as well)" if failure.moved else ""
            each = "it" if len(named) == 1 else "them"
            return f"Blame: {' and '.join(named)}. With {each} held at the locked version{moved} it passes. {tries}."
        case "locked":
            return f"It fails with every package at its locked version too: no newer package is to blame. {tries}."
        case "unsteady":
            return f"It passed when it was repeated with the same versions: unsteady, no package is to blame. {tries}."
        case "unfinished":
            known = f"{' and '.join(named)} {'is' if len(named) == 1 else 'are'} part of it. " if named else ""
            rest = f"Not cleared: {', '.join(blame.suspects)}. " if blame.suspects else ""
            return f"Not found. {known}{rest}{tries}."
        case "skipped":
            return "Not looked into: there are too many failures; repair those above and run it again."


def duration(seconds: float) -> str:
    """Seconds as people say them: 48 s, 3 min 20 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _row(check: Check, report: Report) -> list[str]:
    result = report.results[check.name]
    verdict = "ok" if result.ok else "**failed**"
    return [check.name, verdict, duration(result.seconds), result.revision, f"`{check.shown()}`"]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
