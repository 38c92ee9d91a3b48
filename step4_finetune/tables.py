"""Tables on the terminal, and the bars while they are made: what eval, compare and the demo print."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shared.terminal import console

if TYPE_CHECKING:
    from step4_finetune.columns import Entry
    from step4_finetune.evaluation.comparison import Change
    from step4_finetune.evaluation.task import Answer

COSTS = ("prompt tokens", "s/item")


@contextmanager
def progress_bars(quiet: bool) -> "Iterator[Callable[[str, int], Callable[[Answer], None]]]":
    """Bars on stderr, one per column; yields what columns.measure takes as progress."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shown, console=console(stderr=True), disable=quiet) as bar:

        def complete() -> None:
            """Answers that were there already advance nothing."""
            for task in bar.tasks:
                bar.update(task.id, completed=task.total)

        def begin(label: str, total: int) -> "Callable[[Answer], None]":
            complete()
            task = bar.add_task(label, total=total)
            return lambda _: bar.advance(task)

        yield begin
        complete()


def print_table(task: str, table: "Sequence[Entry]") -> None:
    """Print one task: columns side by side with their 95 % intervals, then what changed against the base."""
    from rich.table import Table

    from shared.results import format_metric

    out = console()
    title = f"{task}, n = {max(entry.n for entry in table)}"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    names = list(dict.fromkeys(n for entry in table for n, cell in entry.row.items() if _is_figure(n, cell)))
    shown.add_column("", min_width=max(map(len, names), default=0))  # a name is never cut; columns wrap instead
    for entry in table:
        shown.add_column(entry.label, justify="right")
    for name in names:
        shown.add_row(name, *(_cell(format_metric(entry.row.get(name))) for entry in table))
    thresholds = ["always" if entry.threshold == 0 else f"p ≥ {entry.threshold:g}" for entry in table]
    shown.add_row("yes from" if table[0].strategy == "choice" else "calls from", *thresholds)
    out.print()
    out.print(shown)
    for entry in table:
        if entry.changes:
            out.print(f"\n{entry.label} against {entry.baseline}", style="bold", markup=False)
        for change in entry.changes:
            out.print(f"  {change_line(change)}", markup=False)


def _cell(text: str) -> str:
    """A value above its interval: `46.0 [36.5, 55.7] %` in two lines, the unit in the first."""
    value, _, rest = text.partition(" [")
    interval, _, unit = rest.partition("] ")
    return f"{value} {unit}".strip() + (f"\n[{interval.rstrip(']')}]" if rest else "")


def _is_figure(name: str, cell: dict[str, Any]) -> bool:
    """Whether a metric is one to compare; the rest are counts of failures."""
    return bool(cell["ci95"]) or name in COSTS


def change_line(change: dict[str, Any]) -> str:
    """One change in words: `simple_python: +40.0 points [+30.1, +49.9], p = 3e-05, n = 100`."""
    low, high = change["ci95"]
    value = change["difference"]
    if change["group"].startswith("AUROC"):
        return f"{change['group']}: {value:+.3f} [{low:+.3f}, {high:+.3f}], {p_value(change['p'])}, n = {change['n']}"
    return (
        f"{change['group']}: {value:+.1f} points [{low:+.1f}, {high:+.1f}], {p_value(change['p'])}, n = {change['n']}"
    )


def p_value(p: float) -> str:
    """A p value in words; none is zero, but the tail of a normal distribution ends where its float does."""
    return f"p = {p:.2g}" if p > 0 else "p < 1e-15"


def print_change(change: "Change") -> None:
    """Print one group of a comparison: both shares, the difference, and the items behind it."""
    low, high = change.ci95
    console().print(
        f"  {change.group:18} {change.a:5.1f} → {change.b:5.1f} %  {change.difference:+.1f} [{low:+.1f}, {high:+.1f}]  "
        f"p = {change.mcnemar.p:.2g}, n = {change.n}: fixed {change.mcnemar.only_b}, broke {change.mcnemar.only_a}",
        markup=False,
        soft_wrap=True,
    )


def print_regressions(regressions: dict[str, Any]) -> None:
    """Print what each adapter lost or gained in general ability."""
    out = console()
    for label, found in regressions.items():
        out.print(f"\n{label}, general ability against the base", style="bold", markup=False)
        for change in found["changes"]:
            low, high = change["ci95"]
            unit = "%" if change["task"] == "perplexity" else "points"
            out.print(
                f"  {change['task']:14} {change['base']:6.1f} → {change['tuned']:6.1f}  {change['difference']:+.1f} "
                f"{unit} [{low:+.1f}, {high:+.1f}], n = {change['n']}{'   FELL' if change['fell'] else ''}",
                markup=False,
            )


def printable(text: str) -> str:
    """A model's words without control characters: an escape sequence would otherwise command the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
