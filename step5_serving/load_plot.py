"""Latency against load, as a PNG: time to the first token of every probe of the search."""

import io
from collections.abc import Sequence
from pathlib import Path

from shared.files import atomic_write
from shared.terminal import PALETTE
from step5_serving.bench import Probe
from step5_serving.load_report import Slo


def plot(probes: Sequence[Probe], slo: Slo, path: Path) -> None:
    """Write the curve, both axes logarithmic, in one step. OSError as atomic_write raises it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        canvas = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")  # no pyplot: no window system
        axes = canvas.add_subplot()
        colours = [PALETTE[name] for name in ("blue", "vermilion", "green", "purple")]
        for index, target in enumerate(dict.fromkeys(probe.target for probe in probes)):
            points = sorted((p.rate, p.summary.ttft) for p in probes if p.target == target and p.summary.ttft)
            for place, style, label in ((0, "o-", "p50"), (2, "s--", "p99")):
                rates, waits = [rate for rate, _ in points], [ttft[place] for _, ttft in points]
                axes.plot(rates, waits, style, markersize=4, color=colours[index % 4], label=f"{target}, {label}")
        axes.axhline(slo.ttft, color=PALETTE["grey"], linestyle=":", label=f"SLO {slo.ttft:g} s")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):  # 0.3, not 3 × 10^-1
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
        axes.set_xlabel("offered requests per second (Poisson)")
        axes.set_ylabel("time to the first token, s, of answered requests")
        axes.legend()
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png")
    atomic_write(path, buffer.getvalue())
