"""What did the adapter cost elsewhere? General ability before and after, item by item, through lm-eval.

    base = measure("smollm2-135m", None, folder); tuned = measure("smollm2-135m", Path("…/adapter"), folder)
    for change in changes(base, tuned): print(change)

lm-eval (EleutherAI) is what published figures are measured with. Its tasks are YAML files (lm_eval_tasks/), here with
data from a pinned artifact, so that nothing is fetched while it runs. A model is measured by the log-likelihood of the
given choices, without chat template, as is usual for these tasks: it asks what the weights know, not how they chat.
A prompt changes no weights, so the columns here are base, SFT and SFT + DPO.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.results import Row, metric
from shared.stats import mcnemar_exact, mean_ci, paired_bootstrap, wilson_ci
from step4_finetune.evaluation.regression_data import CHOICE_TASKS, UNLABELLED, prepare
from step4_finetune.evaluation.runner import weights_digest

Samples = dict[str, list[dict[str, Any]]]  # task -> what regression_worker.sample_of keeps, in the order of the items
TITLES = {
    "openbookqa": "OpenBookQA",
    "hellaswag": "HellaSwag, same choice as base",
    "piqa": "PIQA",
    "commonsenseqa": "CommonsenseQA",
    "perplexity": "word perplexity",
}
TOLERATED = 2.0  # percentage points that a task may fall by


def measure(model: str, adapter: Path | None, folder: Path, *, limit: int | None = 500) -> Samples:
    """Measure a model, with an adapter or without; keep and reuse the samples in the folder.

    model: as MODEL (catalog name, directory, Hub id). limit: items per task; 500 make up about 260,000 tokens. Progress
    goes to stderr. Raises UserError when lm-eval is missing or fails, and what fetch raises.
    """
    from shared.models import resolve

    directory = resolve(model)
    data = folder / f"data-{limit or 'all'}"
    digest = prepare(data, limit)
    weights = weights_digest(directory) + (weights_digest(adapter) if adapter else "")
    key = hashlib.sha256(f"{digest} {weights}".encode()).hexdigest()[:12]
    output = folder / f"samples-{key}.json"
    if not output.exists():
        run_worker(data, output, directory, adapter)
    try:
        samples: Samples = json.loads(output.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{output} is damaged ({error}); delete it") from None
    return samples


def run_worker(data: Path, output: Path, model: Path, adapter: Path | None) -> None:
    """Run lm-eval in its own process, offline. Raises UserError when it fails; its own words are on stderr by then."""
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("the regression tasks need lm-eval: make .venv/.step4 installs it")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    quiet = {"LMEVAL_LOG_LEVEL": "WARNING", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not sys.stderr.isatty():
        quiet["TQDM_DISABLE"] = "1"
    environment = os.environ | offline | quiet | {"HF_DATASETS_CACHE": str((data / "cache").absolute())}
    command = [sys.executable, "-m", "step4_finetune.evaluation.regression_worker", str(data), str(output), str(model)]
    finished = subprocess.run([*command, *([str(adapter)] if adapter else [])], env=environment, check=False)
    if finished.returncode != 0 or not output.exists():
        raise UserError(
            f"lm-eval failed on {adapter or model} (exit code {finished.returncode}), see above", exit_code=1
        )


# -- what it comes to --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One task, tuned against base. accuracy: percentage points, base and tuned in percent; perplexity: percent of it.

    For HellaSwag there is no right answer: base is 100 by definition, tuned the share of items where both choose the
    same ending. p: McNemar's, exact (accuracy), or of the sign-flip test (perplexity); None for HellaSwag.
    """

    task: str
    n: int
    base: float
    tuned: float
    difference: float
    ci95: tuple[float, float]
    p: float | None

    @property
    def fell(self) -> bool:
        """Whether a task with right answers fell by more than is tolerated. Not whether that is beyond chance."""
        return self.task in CHOICE_TASKS and self.task not in UNLABELLED and self.difference < -TOLERATED


def changes(base: Samples, tuned: Samples) -> list[Change]:
    """Compare two models' samples item by item. Raises UserError when they are not of the same items."""
    if {name: [s["id"] for s in samples] for name, samples in base.items()} != {
        name: [s["id"] for s in samples] for name, samples in tuned.items()
    }:
        raise UserError("the two models were measured on different items: use the same limit for both")
    return [_change(name, base[name], tuned[name]) for name in TITLES]


def _change(name: str, base: Sequence[dict[str, Any]], tuned: Sequence[dict[str, Any]]) -> Change:
    n = len(base)
    if name == "perplexity":
        before, after = _surprise(base), _surprise(tuned)
        change = paired_bootstrap(after, before)
        value, low, high = (100 * math.expm1(nats) for nats in (change.value, *change.ci95))
        return Change(name, n, math.exp(sum(before) / n), math.exp(sum(after) / n), value, (low, high), change.p)
    if name in UNLABELLED:
        same = wilson_ci(_agreement(base, tuned), n)
        value, low, high = (100 * (share - 1) for share in (same.value, *same.ci95))
        return Change(name, n, 100.0, 100 * same.value, value, (low, high), None)
    before, after = [float(s["correct"]) for s in base], [float(s["correct"]) for s in tuned]
    change = paired_bootstrap(after, before)
    value, low, high = (100 * share for share in (change.value, *change.ci95))
    p = mcnemar_exact([s["correct"] for s in base], [s["correct"] for s in tuned]).p
    return Change(name, n, 100 * sum(before) / n, 100 * sum(after) / n, value, (low, high), p)


def _surprise(samples: Sequence[dict[str, Any]]) -> list[float]:
    """Nats per word of each piece. The pieces are of equal length, so their plain mean is the mean over words."""
    return [-s["loglikelihood"] / s["words"] for s in samples]


def _agreement(base: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> int:
    return sum(a["chosen"] == b["chosen"] for a, b in zip(base, other, strict=True))


def row(label: str, base: Samples, samples: Samples) -> Row:
    """One line of the table, in percent; for the base model itself, `samples` is `base`."""
    metrics = {}
    for name, title in TITLES.items():
        entries = samples[name]
        if name == "perplexity":
            nats = mean_ci(_surprise(entries))
            metrics[title] = metric(math.exp(nats.value), (math.exp(nats.ci95[0]), math.exp(nats.ci95[1])))
            continue
        unlabelled = name in UNLABELLED
        right = _agreement(base[name], entries) if unlabelled else sum(s["correct"] for s in entries)
        share = wilson_ci(right, len(entries))
        metrics[title] = metric(100 * share.value, (100 * share.ci95[0], 100 * share.ci95[1]), unit="%")
    return {"name": label, "metrics": metrics}
