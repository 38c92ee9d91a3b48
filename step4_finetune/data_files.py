"""The data files: which there are, how they come about, and the record of what was left out of them.

out/step4/tools/    train.jsonl, its beginning train_quick.jsonl, second.jsonl and third.jsonl (what the second and
                    third hour train on), prompts.jsonl (of another seed, for the quick DPO)
out/step4/grader/   train.jsonl, train_quick.jsonl
…/report.json       of each: sha256 and size of every file, what was refused and what was removed, by source

python -m step4_finetune data build
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UserError
from shared.files import atomic_write

if TYPE_CHECKING:
    from shared.tokenizer import ChatTokenizer

FOLDER = Path("out/step4")
SETS = ("tools", "grader")
# The first 320 of 4,000 tools examples: 112,000 tokens, 9 minutes for an epoch at 215 tok/s (2 cores, no bfloat16).
QUICK_EXAMPLES = 320
PROMPTS_SHARE = 5  # a fifth of the training mixture: some 800 prompts, of which a run takes evenly spaced ones
PROMPTS_SEED = 1_000_000  # above every training seed: answers to prompts that were trained on are nearly always right
SECOND_SEED = 2_000_000  # other draws than the first hour's and the prompts'
THIRD_SEED = 3_000_000
SHOWN_REFUSALS = 5


def build(name: str, seed: int, folder: Path = FOLDER) -> dict[str, Any]:
    """Build the files of "tools" or "grader" in folder/name; return the report, which is written there too.

    The same seed gives the same bytes. Fetches the sources. Raises what data_build.build and grader_data.build raise.
    """
    target = folder / name
    found = {"tools": _build_tools, "grader": _build_grader}[name](seed, target)
    files = {
        path.name: {
            "rows": len(path.read_bytes().splitlines()),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(target.glob("*.jsonl"))
        if path.name in found["files"]
    }
    report = {"set": name, "seed": seed} | found | {"files": files}
    atomic_write(target / "report.json", json.dumps(report, ensure_ascii=False, indent=1))
    return report


def _build_tools(seed: int, folder: Path) -> dict[str, Any]:
    from step4_finetune import data_build
    from step4_finetune.examples import write_jsonl
    from step4_finetune.function_specs import functions, later_functions
    from step4_finetune.second_lessons import SecondGenerator

    examples, report = data_build.build(seed)
    second, second_report = data_build.build(seed + SECOND_SEED, data_build.SECOND_MIXTURE, maker=SecondGenerator)
    report.add(second_report)
    everything = functions(held_out=False) + later_functions()
    third, third_report = data_build.build(
        seed + THIRD_SEED, data_build.THIRD_MIXTURE, real=False, maker=SecondGenerator, chosen=everything
    )
    report.add(third_report)
    counts = {kind: max(1, count // PROMPTS_SHARE) for kind, count in data_build.MIXTURE.items()}
    prompts, _ = data_build.build(seed + PROMPTS_SEED, counts, real=False)
    files = {
        "train.jsonl": examples,
        "train_quick.jsonl": examples[:QUICK_EXAMPLES],
        "second.jsonl": second,
        "third.jsonl": third,
        "prompts.jsonl": prompts,
    }
    for name, chosen in files.items():
        write_jsonl(chosen, folder / name)
    return {
        "files": files,
        "refused": {"synthetic": dict(report.refused.most_common())},
        "examples_of_refusals": report.examples_of_refusals[:SHOWN_REFUSALS],
        "removed": {source: dict(reasons) for source, reasons in report.removed.items() if reasons},
        "stats": data_build.stats(examples),
    }


def _build_grader(seed: int, folder: Path) -> dict[str, Any]:
    from step4_finetune import grader_data

    rows, removed = grader_data.build(seed)
    files = {"train.jsonl": rows, "train_quick.jsonl": grader_data.build(seed, grader_data.QUICK)[0]}
    for name, chosen in files.items():
        grader_data.write(chosen, folder / name)
    by_source: dict[str, dict[str, int]] = {}
    for key, count in removed.items():
        source, _, what = key.partition(" ")
        by_source.setdefault(source, {})[what] = count
    return {"files": files, "refused": {}, "removed": by_source, "stats": grader_data.stats(rows)}


# -- looking at them ---------------------------------------------------------------------------------------------------


def path_of(name: str, folder: Path = FOLDER) -> Path:
    """The file that a name means: "tools" and "grader" their train.jsonl, anything else a path."""
    return folder / name / "train.jsonl" if name in SETS else Path(name)


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a data file. Raises UserError when it is missing or not one of ours."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if rows and all(isinstance(row["messages"], list) and "kind" in row and "id" in row for row in rows):
            return rows
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it with: step4 data build") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is not a data file that `data build` writes")


def stats(path: Path, tokenizer: "ChatTokenizer | None" = None) -> dict[str, Any]:
    """Count a data file's rows by kind and source; with a tokenizer, tokens too. Raises what `read` raises."""
    rows = read(path)
    if is_tools(rows[0]):
        from step4_finetune.data_build import stats as count
        from step4_finetune.examples import read_jsonl

        return count(read_jsonl(path), tokenizer)
    from step4_finetune.grader_data import stats as count_grades

    return count_grades(rows, tokenizer)


def is_tools(row: Mapping[str, Any]) -> bool:
    """Whether a row is a function-calling example; else it is a grader's."""
    return bool(row.get("tools"))


def choose(rows: list[dict[str, Any]], count: int, kind: str | None, source: str | None) -> list[dict[str, Any]]:
    """At most `count` rows, evenly spaced, of a kind and a source (for the grader: a task).

    Raises UserError when there are none, naming what there is.
    """
    found = [
        row for row in rows if kind in (None, row["kind"]) and source in (None, row.get("source", row.get("task")))
    ]
    if not found:
        kinds = sorted({row["kind"] for row in rows})
        sources = sorted({str(row.get("source", row.get("task"))) for row in rows})
        raise UserError(f"no such rows; the kinds are {', '.join(kinds)}, the sources {', '.join(sources)}")
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]
