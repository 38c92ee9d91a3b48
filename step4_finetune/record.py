"""The record of an evaluation: evaluation.json beside the files of answers.

It says which columns each task's table has, how each was asked, its row of figures, and its change against the base.
The report page and the model card are made from it, so neither can show a number that was not measured.

    record(Path("out/step4/eval"), "bfcl", entries)
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UserError
from shared.files import atomic_write
from step4_finetune.columns import Entry, task_of

if TYPE_CHECKING:
    from step4_finetune.evaluation.comparison import Comparison, Judged
    from step4_finetune.evaluation.task import Task

RECORD = "evaluation.json"


def record(folder: Path, task: str, entries: Sequence[Entry]) -> list[Entry]:
    """Put entries into the folder's record, in the place of earlier ones with their label; return the task's column.

    Changes are computed anew: of every tuned column against the last base column, on the items that both answered.
    Columns with another limit or strategy leave the table, since they are of other items or another question.
    """
    from shared.provenance import git_revision, hardware, versions

    document = read_record(folder) if (folder / RECORD).exists() else {"tasks": {}, "regressions": {}}
    kept = {entry.label: entry for entry in entries_of(document, task)}
    kept |= {entry.label: entry for entry in entries}
    like = (entries[-1].limit, entries[-1].strategy)
    table = [entry for entry in kept.values() if (entry.limit, entry.strategy) == like]
    # First what only ranks: the last base column is the one that tuned ones are compared with in everything.
    table.sort(key=lambda entry: (bool(entry.adapter), set(entry.row) != {"AUROC"}))
    base = [entry for entry in table if not entry.adapter]
    if base:
        table = [replace(e, **_changes(folder, task, base, e)) if e.adapter else e for e in table]
    document["tasks"][task] = [asdict(entry) for entry in table]
    document["made"] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "git_revision": git_revision(),
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "openai", "xgrammar"),
    }
    _write(folder, document)
    return table


def record_regressions(folder: Path, label: str, adapter: str, weights: str, changes: Sequence[Any]) -> None:
    """Put one adapter's changes of general ability (evaluation/regressions.py) into the folder's record."""
    document = read_record(folder) if (folder / RECORD).exists() else {"tasks": {}, "regressions": {}}
    rows = [asdict(change) | {"fell": change.fell} for change in changes]
    document["regressions"][label] = {"adapter": adapter, "weights": weights, "changes": rows}
    _write(folder, document)


def read_record(folder: Path) -> dict[str, Any]:
    """The folder's record. Raises UserError when there is none, or it is of another form."""
    path = folder / RECORD
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for task in document["tasks"]:
            entries_of(document, task)
        if isinstance(document["regressions"], dict):
            return document
    except FileNotFoundError:
        raise UserError(f"{folder} holds no evaluation; `eval --output {folder}` makes one") from None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is not the record of an evaluation; delete it and run `eval` again (answers are kept)")


def entries_of(document: dict[str, Any], task: str) -> list[Entry]:
    """The columns of one task in a record."""
    return [Entry(**{**entry, "changes": tuple(entry["changes"])}) for entry in document["tasks"].get(task, [])]


def judged_of(folder: Path, task: str, entry: Entry) -> "tuple[Task, list[Judged]]":
    """The task as this column was asked it, and its answers judged again. Raises UserError when they are gone."""
    from step4_finetune.evaluation.comparison import judge
    from step4_finetune.evaluation.runner import read_answers

    found = task_of(task, entry.limit)
    return found, judge(found, read_answers(folder / entry.file), entry.threshold)


def compare_entries(folder: Path, task: str, a: Entry, b: Entry) -> "Comparison":
    """Column b against column a on the items that both answered. Raises what judged_of and compare raise."""
    from step4_finetune.evaluation.comparison import compare

    found, first = judged_of(folder, task, a)
    return compare(found, first, judged_of(folder, task, b)[1])


def _changes(folder: Path, task: str, base: Sequence[Entry], entry: Entry) -> dict[str, Any]:
    changes = []
    for column in (base[-1], *base[:-1]):
        found = compare_entries(folder, task, column, entry)
        name = "AUROC"
        if column is base[-1]:
            changes += [asdict(change) | {"p": change.mcnemar.p} for change in found.changes]
        else:
            name += f", against {column.label}"
        if found.auroc is not None:
            value, ci95, p = found.auroc
            changes.append({"group": name, "n": entry.n, "difference": value, "ci95": list(ci95), "p": p})
    changes.sort(key=lambda change: bool(change["group"] == "AUROC"))  # where the report looks for it
    return {"baseline": base[-1].label, "changes": tuple(changes)}


def _write(folder: Path, document: dict[str, Any]) -> None:
    atomic_write(folder / RECORD, json.dumps(document, ensure_ascii=False, indent=1) + "\n")
