"""Chapter 4: a fine-tune of about two minutes with step 4's own recipe, and its own evaluation before and after.

A tenth of step 4's mixture, without the real conversations and without what is longer than 512 tokens: 195 examples,
71,000 tokens. At 900 tokens a second two minutes are one and a half times through them. The questions are step 4's
unseen-tool split, whose functions and domains no training example has.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.tour.findings import Chapter, Facts, Picture, Stage, Table, Text, Verdict
from scripts.tour.steps import ask_step
from shared.foreign_text import one_line

if TYPE_CHECKING:
    from step4_finetune.columns import Entry
    from step4_finetune.evaluation.comparison import Change, Comparison, Example

SHARE = 10  # a tenth of data_build.MIXTURE
STEPS, LONGEST = 36, 512  # of 8 examples, of so many tokens at most
TASK, LIMIT = "unseen_tools", 4  # of each of its five kinds: 20 questions
RUN = "two_minutes"  # the adapter's label, and its name in chapter 5
CHANCE = 0.05  # a change with a larger p is called chance
SHOWN = 2  # questions that were fixed, and that were broken


def perform(stage: Stage) -> None:
    """Build data, evaluate, train, evaluate; each part is skipped where an interrupted attempt has finished it."""
    data, evaluation, run = stage.folder / "train.jsonl", stage.folder / "eval", stage.folder / RUN
    kinds = _build(data)
    made = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in kinds.items())
    stage.show(
        Text(f"{sum(kinds.values())} conversations about tools, made and checked by step 4's generator: {made}.")
    )
    stage.remark(f"before: {LIMIT * 5} questions about tools that training never shows")
    measured = ["eval", TASK, "--prompt", "none", "--limit", str(LIMIT), "--output", str(evaluation)]
    ask_step(stage, "step4_finetune", *measured, "--model", stage.model)
    if not (run / "adapter").exists():
        settings = {"data": data, "output_dir": run, "max_steps": STEPS, "max_length": LONGEST}
        settings |= {"model_name_or_path": stage.model}
        overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        ask_step(stage, "step4_finetune", "train", "tools_sft_quick", *overrides)
    training = json.loads((run / "training.json").read_text(encoding="utf-8"))
    stage.show(_cost(training))
    stage.show(_curve(training))
    stage.remark("after: the same questions")
    ask_step(stage, "step4_finetune", *measured, "--model", stage.model, "--adapter", str(run / "adapter"))
    _compare(stage)


def _build(path: Path) -> Counter[str]:
    from step4_finetune.data_build import MIXTURE, build
    from step4_finetune.examples import read_jsonl, write_jsonl

    if not path.exists():
        examples, _ = build(0, {kind: max(1, count // SHARE) for kind, count in MIXTURE.items()}, real=False)
        write_jsonl(examples, path)
    return Counter(example.kind for example in read_jsonl(path))


def _cost(training: dict[str, Any]) -> Facts:
    return Facts(
        [
            ("examples", f"{training['examples']}", f"{training['left_out']} left out, over {LONGEST} tokens"),
            ("training", f"{training['seconds']:.0f} s", f"{training['steps']} steps of 8 examples"),
            ("speed", f"{training['tokens_per_second']:.0f} tok/s", "all tokens of the conversations"),
            ("loss", f"{training['first_loss']:.2f} → {training['last_loss']:.2f}", "first step; mean of the last ten"),
        ]
    )  # fmt: skip


def _curve(training: dict[str, Any]) -> Picture:
    from shared.report.charts import Line, curves

    points = [(row["step"], row["loss"]) for row in training["history"] if "loss" in row]
    return Picture(
        "The loss", curves([Line("loss", 2, points)], "Loss"),
        f"Over {len(points)} steps it goes from {points[0][1]:.2f} to {points[-1][1]:.2f}.",
    )  # fmt: skip


def _compare(stage: Stage) -> None:
    """Before and after from step 4's record, paired on the same questions."""
    from step4_finetune.record import compare_entries, entries_of, read_record

    entries = entries_of(read_record(stage.folder / "eval"), TASK)
    before, after = (next(e for e in entries if bool(e.adapter) is tuned) for tuned in (False, True))
    found = compare_entries(stage.folder / "eval", TASK, before, after)
    stage.show(_bars(before, after))
    rows = [[c.group, str(c.n), f"{c.a:.0f} %", f"{c.b:.0f} %", _change(c)] for c in found.changes]
    stage.show(
        Table("Right answers, calls held to their schemas for both", ["", "n", "before", "after", "change"], rows)
    )
    stage.show(_verdict(found))
    if examples := [*_listed("fixed", found.fixed), *_listed("broken", found.broken)]:
        stage.show(Table("Some questions", ["", "asked", "before", "after"], examples))
    stage.show(
        Text(
            "The base model is taken to call always, since by itself it hardly ever does: so it gets none of the "
            "questions right that no tool fits. With the adapter a call counts from p = 0.5 on. The p of a change is "
            "McNemar's, exact, on the same questions."
        )
    )


def _listed(kind: str, examples: "Sequence[Example]") -> list[list[str]]:
    return [[kind, *(one_line(words, 200) for words in (e.question, e.a.said, e.b.said))] for e in examples[:SHOWN]]


def _change(change: "Change") -> str:
    low, high = change.ci95
    return f"{change.difference:+.0f} [{low:+.0f}, {high:+.0f}], p = {change.mcnemar.p:.2g}"


def _verdict(found: "Comparison") -> Verdict:
    whole = found.changes[-1]
    words = f"{whole.a:.0f} % right before, {whole.b:.0f} % after, n = {whole.n}, p = {whole.mcnemar.p:.2g}: "
    if whole.difference > 0 and whole.mcnemar.p < CHANCE:
        return Verdict(True, words + "more than chance.")
    if whole.difference > 0:
        return Verdict(False, words + f"better, but {whole.n} questions cannot tell it from chance.")
    return Verdict(False, words + "no better in this run.")


def _bars(before: "Entry", after: "Entry") -> Picture:
    from shared.report.charts import Bar, bars

    groups = [name for name, cell in before.row.items() if cell.get("unit") == "%" and cell["ci95"]]
    entries = [
        Bar(group, label, colour, entry.row[group]["value"], tuple(entry.row[group]["ci95"]))
        for group in groups
        for label, colour, entry in (("before", 0, before), ("after", 2, after))
    ]
    return Picture(
        "Before and after", bars(entries, 100, "%"),
        f"Percent right with 95 % intervals, n = {before.n}: wide, as {before.n} questions say no more.",
        legend=[("before", 0), ("after", 2)],
    )  # fmt: skip


CHAPTER = Chapter(
    "training",
    "Two minutes of fine-tuning",
    [
        "LoRA leaves the weights alone and trains two thin matrices beside each: 3 % of the numbers, an adapter of 10 "
        "MB. Two minutes are little; what they change is measured here.",
        "Before and after are the same questions, about tools that no training example has.",
    ],
    ["make step4", f".venv/bin/python -m step4_finetune train tools_sft_quick --set max_steps={STEPS}"],
    perform,
)
