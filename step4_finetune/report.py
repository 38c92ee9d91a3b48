"""One page that shows whether it helped: curves, bars with intervals, calibration, items fixed and broken.

    python -m step4_finetune report out/step4/eval -o report.html

Self-contained and without a script: frame, look and pictures are those of every report (shared/report), report.css has
what only this one needs. Questions and answers are other people's and a model's words, so they enter it escaped only.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.report.charts import Bar, Dot, bars, reliability
from shared.report.markup import legend, scrolled, section, table
from shared.report.page import page, save
from shared.results import format_metric
from step4_finetune.columns import Entry
from step4_finetune.record import compare_entries, entries_of, judged_of, read_record
from step4_finetune.report_training import training
from step4_finetune.tables import COSTS, p_value

if TYPE_CHECKING:
    from step4_finetune.evaluation.comparison import Comparison, Example, Judged, Side
    from step4_finetune.evaluation.task import Task

SHOWN = 8  # items of each kind and comparison
CHANCE = 0.05  # a change with a larger p is called chance
QUESTION = 110  # characters of a question in its headline


@dataclass(frozen=True)
class Part:
    """One task of the record, its columns judged again from the answers. comparisons: (a, b, b against a)."""

    name: str
    task: "Task"
    entries: list[Entry]
    judged: "list[list[Judged]]"
    comparisons: "list[tuple[Entry, Entry, Comparison]]"


def write_report(evaluation: Path, path: Path) -> None:
    """Write the page about a folder of `eval`. Raises UserError when it holds none, or `path` cannot be written."""
    save(path, render(read_record(evaluation), parts_of(evaluation)))


def parts_of(evaluation: Path) -> list[Part]:
    """The tasks of a record with their answers. Raises UserError when answers are missing."""
    document = read_record(evaluation)
    parts = []
    for name in document["tasks"]:
        entries = entries_of(document, name)
        found = [judged_of(evaluation, name, entry) for entry in entries]
        pairs = [(a, b, compare_entries(evaluation, name, a, b)) for a, b in _pairs(entries)]
        parts.append(Part(name, found[0][0], entries, [judged for _, judged in found], pairs))
    return parts


def _pairs(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """What is compared: each adapter with the last base column, and with the adapter before it."""
    base, tuned = [e for e in entries if not e.adapter], [e for e in entries if e.adapter]
    pairs = [(base[-1], entry) for entry in tuned] if base else []
    return pairs + list(itertools.pairwise(tuned))


def render(document: dict[str, Any], parts: Sequence[Part]) -> str:
    """The page as HTML."""
    shown = {
        "results": ("Before and after", _results(parts)),
        "regressions": ("General ability", _regressions(document["regressions"])),
        "training": ("Training", training(adapters_of(parts))),
        "calibration": ("Calibration", _calibration(parts)),
        "items": ("Fixed and broken", _items(parts)),
    }
    return page(
        title="Did it help?",
        overline="Fine-tuning, measured",
        summary=_summary(parts),
        facts=_facts(document.get("made", {}), parts),
        sections={name: title for name, (title, made) in shown.items() if made},
        main="\n".join(made for _, made in shown.values()),
        footer="<p>Made by <code>step4 report</code> from the answers on the disk.</p>",
        style=Path(__file__).with_name("report.css").read_text("utf-8"),
    )


def adapters_of(parts: Sequence[Part]) -> dict[str, str]:
    """Directory → label of every adapter in the tables."""
    return {entry.adapter: entry.label for part in parts for entry in part.entries if entry.adapter}


# -- head --------------------------------------------------------------------------------------------------------------


def _summary(parts: Sequence[Part]) -> str:
    tuned = [(part, entry) for part in parts for entry in part.entries if entry.changes]
    if not tuned:
        return "Only the base model is measured so far: no adapter stands against it yet."
    part, entry = next((part, entry) for part, entry in reversed(tuned) if part is tuned[0][0])
    # Of calls the first group, not all: a base that always calls has none of irrelevance. Of grades the ranking.
    change = entry.changes[-1 if part.entries[0].strategy == "choice" else 0]
    low, high = change["ci95"]
    verdict = "beyond chance" if change["p"] < CHANCE else "not beyond chance"
    numbers = f"n = {change['n']}, {escape(p_value(change['p']))}, {verdict}"
    if change["group"] == "AUROC":
        return (
            f"<b>{escape(entry.label)}</b> ranks {escape(part.name)} better than {escape(entry.baseline)} by "
            f"<b>{change['difference']:+.3f}</b> AUROC [{low:+.3f}, {high:+.3f}] ({numbers})."
        )
    return (
        f"<b>{escape(entry.label)}</b> has <b>{change['b']:.1f} %</b> of {escape(change['group'])} right, "
        f"{escape(entry.baseline)} {change['a']:.1f} %: <b>{change['difference']:+.1f} points</b> "
        f"[{low:+.1f}, {high:+.1f}] ({numbers})."
    )


def _facts(made: dict[str, Any], parts: Sequence[Part]) -> list[tuple[str, str, str]]:
    machine = made.get("hardware", {})
    versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    rows = [
        (part.name, f"{max(len(judged) for judged in part.judged)} items", f"asked as {part.entries[0].strategy}")
        for part in parts
    ]
    rows.append(("measured", str(made.get("date", "")), f"revision {made.get('git_revision', '')}"))
    rows.append(("machine", str(machine.get("gpu") or machine.get("cpu") or ""), versions))
    return rows


def colours(parts: Sequence[Part]) -> dict[str, int]:
    """The number of each column's colour, in all tasks the same: grey, orange and purple before training."""
    columns = {entry.label: entry for part in parts for entry in part.entries}
    base, tuned = itertools.cycle((0, 1, 4)), itertools.cycle((2, 3, 5))
    return {label: next(tuned if entry.adapter else base) for label, entry in columns.items()}


# -- results -----------------------------------------------------------------------------------------------------------


def _results(parts: Sequence[Part]) -> str:
    prose = [
        "The same questions to every column: the base model as it is, the base model with its best prompt, the base "
        "model with an adapter. The fair opponent of a tuned model is the prompt, not the bare model.",
        "Whiskers are 95 % intervals of each column alone. Where two overlap, the columns may still differ: the table "
        "of changes below compares item by item, which is sharper.",
    ]
    colour = colours(parts)
    out = "".join(_result(part, colour) for part in parts) or '<p class="note">Nothing is measured yet.</p>'
    return section("results", "Before and after", prose, out)


def _result(part: Part, colour: Mapping[str, int]) -> str:
    shares: list[Bar] = []
    ranks: list[Bar] = []
    # Not the first column's: similarity ranks passages and answers nothing.
    groups = list(dict.fromkeys(n for e in part.entries for n, cell in e.row.items() if cell.get("unit") == "%"))
    for target, metrics in ((shares, groups), (ranks, ["AUROC"])):
        for name in metrics:
            for entry in part.entries:
                cell = entry.row.get(name)
                if cell and cell["ci95"]:
                    target.append(Bar(name, entry.label, colour[entry.label], cell["value"], tuple(cell["ci95"])))
    out = f"<h3>{escape(part.name)}, right answers in percent</h3>"
    out += legend((entry.label, colour[entry.label]) for entry in part.entries)
    out += scrolled(bars(shares, 100, "%"))
    if ranks:
        word = "a yes" if part.entries[0].strategy == "choice" else "a call"
        out += f'<p class="small">AUROC: how well the probability of {word} ranks the items; 0.5 is chance.</p>'
        out += scrolled(bars(ranks, 1, "", chance=0.5))
    taken = [f"{e.label} {'always' if e.threshold == 0 else f'from p = {e.threshold:g}'}" for e in part.entries]
    if part.entries[0].strategy != "native":
        forced = "A column that always calls has no irrelevance right: look at each kind of question apart."
        more = forced if any(entry.threshold == 0 for entry in part.entries) else ""
        out += f'<p class="note">Counts as a call, or a yes: {escape("; ".join(taken))}. {more}</p>'
    if part.comparisons:
        head = ["change", *(f"{escape(b.label)}<br>against {escape(a.label)}" for a, b, _ in part.comparisons)]
        rows = [[escape(group), *(_change(found, group) for *_, found in part.comparisons)] for group in groups]
        rows.append(["AUROC", *(_auroc(found) for *_, found in part.comparisons)])
        out += table(head, rows)
    names = dict.fromkeys(name for entry in part.entries for name in entry.row)
    kinds = [n for n in names if n not in COSTS and all(not e.row[n]["ci95"] for e in part.entries if n in e.row)]
    counts = [[escape(kind), *(str(e.row.get(kind, {"value": 0})["value"]) for e in part.entries)] for kind in kinds]
    costs = [[name, *(escape(format_metric(e.row.get(name))) for e in part.entries)] for name in COSTS]
    return out + table(["failures and cost", *(escape(e.label) for e in part.entries)], counts + costs)


def _change(found: "Comparison", group: str) -> str:
    change = next((c for c in found.changes if c.group == group), None)
    if change is None:
        return "–"
    low, high = change.ci95
    return _coloured(
        f"{change.difference:+.1f}", f"[{low:+.1f}, {high:+.1f}]", change.difference, change.mcnemar.p, change.n
    )


def _auroc(found: "Comparison") -> str:
    if found.auroc is None:
        return "–"
    value, (low, high), p = found.auroc
    return _coloured(f"{value:+.3f}", f"[{low:+.3f}, {high:+.3f}]", value, p, found.changes[-1].n)


def _coloured(shown: str, interval: str, value: float, p: float, n: int) -> str:
    """A cell of the table of changes; coloured where chance alone would rarely do it."""
    kind = ("good" if value > 0 else "bad") if p < CHANCE else ""
    return f'<span class="{kind}">{shown}</span> {interval}<br><span class="small">{escape(p_value(p))}, n = {n}</span>'


def _regressions(found: dict[str, Any]) -> str:
    out = ""
    for label, entry in found.items():
        rows = []
        for change in entry["changes"]:
            low, high = change["ci95"]
            unit = " %" if change["task"] == "perplexity" else ""
            kind = "bad" if change["fell"] else ""
            cell = f'<span class="{kind}">{change["difference"]:+.1f}{unit}</span> [{low:+.1f}, {high:+.1f}]'
            rows.append([change["task"], f"{change['base']:.1f}", f"{change['tuned']:.1f}", cell, str(change["n"])])
        out += f"<h3>{escape(label)}</h3>" + table(["", "base", "tuned", "change", "n"], rows)
    prose = [
        "What was lost elsewhere: tasks that nobody trained for, by lm-eval, in percent; perplexity of prose, where "
        "less is better. HellaSwag has no answers here: the share of items on which both choose the same ending.",
        "Red: a task fell by more than 2 points.",
    ]
    return section("regressions", "General ability", prose, out) if out else ""


# -- calibration and items ---------------------------------------------------------------------------------------------


def _calibration(parts: Sequence[Part]) -> str:
    from step4_finetune.evaluation.calibration import calibration
    from step4_finetune.evaluation.comparison import probabilities

    out, colour = "", colours(parts)
    for part in parts:
        dots: list[Dot] = []
        lines = []
        for entry, judged in zip(part.entries, part.judged, strict=True):
            graded = probabilities(part.task, judged)
            if graded is None:
                continue
            found = calibration(*graded)
            low, high = found.ece.ci95
            lines.append([escape(entry.label), f"{found.ece.value:.3f} [{low:.3f}, {high:.3f}]"])
            dots += [
                Dot(entry.label, colour[entry.label], b.probability, b.positive.value, b.positive.ci95, b.n)
                for b in found.bins
            ]
        if dots:
            what = "a yes" if part.entries[0].strategy == "choice" else "a call"
            out += f"<h3>{escape(part.name)}: probability of {what}</h3>"
            out += legend((dot.column, dot.colour) for dot in dots) + scrolled(reliability(dots))
            out += table(["", "calibration error (ECE)"], lines)
    prose = [
        "Of the items given 80 %, are 80 % positive? On the dashed line, yes. Dots are ten bins of equal width, larger "
        "with more items; whiskers are 95 % intervals.",
        "Ranking and calibration are two things: a threshold needs both.",
    ]
    return section("calibration", "Is a probability worth its name?", prose, out) if out else ""


def _items(parts: Sequence[Part]) -> str:
    prose = [
        "Only the items on which two columns differ can tell them apart, and only reading them says why. Fixed: wrong "
        "before, right after. Broken: the other way round.",
        f"At most {SHOWN} of each are listed, evenly spaced over the task.",
    ]
    out = "".join(map(_differing, parts)) or '<p class="note">No adapter is measured yet.</p>'
    return section("items", "Fixed and broken", prose, out)


def _differing(part: Part) -> str:
    out = ""
    for a, b, found in part.comparisons:
        out += f"<h3>{escape(part.name)}: {escape(b.label)} against {escape(a.label)}</h3>"
        for title, examples in (("Fixed", found.fixed), ("Broken", found.broken)):
            count = min(SHOWN, len(examples))
            evenly = [examples[i * len(examples) // count] for i in range(count)]
            listed = "".join(_item(example, a.label, b.label) for example in evenly)
            out += f'<div class="group"><p class="small">{title}: {len(examples)}</p>{listed}</div>'
    return out


def _item(example: "Example", a: str, b: str) -> str:
    question = " ".join(example.question.split())
    short = question if len(question) <= QUESTION else f"{question[:QUESTION]}…"
    return (
        f"<details><summary><code>{escape(example.id)}</code> {escape(short)}</summary>"
        f'<p class="asked">{escape(example.question)}</p>'
        f'<div class="sides">{_side(a, example.a)}{_side(b, example.b)}</div></details>'
    )


def _side(label: str, side: "Side") -> str:
    verdict = '<span class="good">right</span>' if not side.kind else f'<span class="bad">{escape(side.kind)}</span>'
    detail = f'<p class="note">{escape(side.detail)}</p>' if side.detail else ""
    return (
        f'<div class="side"><p class="small">{escape(label)}: {verdict}</p>'
        f'<p class="said">{escape(side.said)}</p>{detail}</div>'
    )
