"""The report page's section about training: loss and gradient norm over the steps, and for DPO the rewards.

Read from training.json, which train.py and dpo.py leave beside the adapter.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from shared.report.charts import Line, curves
from shared.report.markup import legend, scrolled, section

SMOOTH = 20  # the loss curve is a mean over a twentieth of the run


def training(adapters: Mapping[str, str]) -> str:
    """The section about the runs that made these adapters (directory → label); "" for none."""
    out = ""
    for adapter, label in adapters.items():
        try:
            run = json.loads((Path(adapter).parent / "training.json").read_text(encoding="utf-8"))
            out += _run(label, run)
        except (OSError, ValueError, KeyError):
            out += f'<p class="note">{escape(label)}: the figures of its training are not on this disk.</p>'
    prose = [
        "Loss per trained token (SFT) or per pair (DPO, where log 2 = 0.69 is no preference yet); pale, each step.",
        "Gradient norm before clipping, on a logarithmic scale: spikes say that a batch was unlike the others.",
    ]
    return section("training", "Training", prose, out) if out else ""


def _run(label: str, run: dict[str, Any]) -> str:
    rows = [row for row in run["history"] if "loss" in row]
    loss = [(float(row["step"]), float(row["loss"])) for row in rows]
    pairs = "pairs" in run
    amount = f"{run['pairs']} pairs" if pairs else f"{run['examples']} conversations"
    out = f"<h3>{escape(label)}</h3><p>{amount}, {run['steps']} steps, {run['seconds'] / 60:.1f} minutes, "
    out += f"{run['tokens_per_second']:.0f} tokens a second; loss {run['first_loss']:.3f} → {run['last_loss']:.3f}"
    out += f"; {100 * run['accuracy']:.0f} % of the pairs the right way round at the end.</p>" if pairs else ".</p>"
    steps = [Line("loss, each step", 2, loss, faint=True), Line("loss", 2, smoothed(loss))]
    out += '<p class="small">loss</p>' + scrolled(curves(steps, "Loss", level=0.6931 if pairs else None))
    norms = [(float(row["step"]), float(row["grad_norm"])) for row in rows if "grad_norm" in row]
    norm = curves([Line("gradient norm", 5, norms)], "Gradient norm", log=True)
    out += '<p class="small">gradient norm</p>' + scrolled(norm)
    if pairs:
        lines = [
            Line(name, colour, [(float(row["step"]), float(row[f"rewards/{name}"])) for row in rows])
            for name, colour in (("chosen", 3), ("rejected", 5))
        ]
        out += '<p class="small">reward: β × change of the answer\'s log-probability</p>'
        out += legend((line.label, line.colour) for line in lines)
        out += scrolled(curves(lines, "Rewards", zero=False, level=0.0))
    return out


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each value as the mean of itself and those just before it."""
    window = max(1, len(points) // SMOOTH)
    values = [y for _, y in points]
    return [(x, statistics.mean(values[max(0, i - window) : i + 1])) for i, (x, _) in enumerate(points)]
