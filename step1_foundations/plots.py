"""The pictures: embedding map, attention maps, ablation heat map, as PNG files.

    python -m step1_foundations attention "The cat sat on the mat" --output map.png

Colours are Okabe & Ito's and viridis, which stay apart with every common colour-vision deficiency and in grey print.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared.errors import UserError
from shared.files import atomic_write
from shared.terminal import PALETTE
from step1_foundations.attention import AttentionReport, Head
from step1_foundations.attribution import AblationReport
from step1_foundations.embeddings import EmbeddingReport
from step1_foundations.tokens import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """Yield a figure of width × height inches; at the end it is saved to `path` in one step.

    Raises UserError when the file cannot be written there.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # A piece like "$" is text here, not the start of a formula.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font has no emoji; an empty box is good enough
        canvas = Figure(
            figsize=(width, height), dpi=130, layout="constrained"
        )  # no pyplot: no window system, no global state
        yield canvas
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png")
    try:
        atomic_write(path, buffer.getvalue())
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place with --output") from None


def plot_embeddings(result: EmbeddingReport, path: Path) -> None:
    """The 2-D PCA map: words large and bold, their neighbours small, in one colour per word."""
    colours = [PALETTE[name] for name in ("blue", "vermilion", "green", "purple", "orange", "sky", "grey")]
    with figure(path, 8, 6) as canvas:
        axes = canvas.add_subplot()
        for point in result.points:
            colour = colours[point.word % len(colours)]
            axes.scatter(point.x, point.y, s=60 if point.is_word else 14, color=colour)
            axes.annotate(
                visible(point.label),
                (point.x, point.y),
                xytext=(4, 4),
                textcoords="offset points",
                weight="bold" if point.is_word else "normal",
                fontsize=10 if point.is_word else 7,
            )
        axes.set_xlabel(f"first principal component ({result.explained[0]:.0%} of the variance)")
        axes.set_ylabel(f"second ({result.explained[1]:.0%})")
        axes.margins(0.12)  # room for the labels at the edge
        axes.set_title("Words and their nearest neighbours in the embedding matrix")


def plot_attention(result: AttentionReport, chosen: Head, path: Path) -> None:
    """All heads as one sheet of small maps (rows: layers, columns: heads), and the chosen head large."""
    from matplotlib.patches import Rectangle

    maps = dense_maps(result)
    layers, heads, size, _ = maps.shape
    gap = max(1, size // 8)
    sheet = np.full((layers * (size + gap), heads * (size + gap)), np.nan)
    for layer in range(layers):
        for head in range(heads):
            y, x = layer * (size + gap), head * (size + gap)
            sheet[y : y + size, x : x + size] = maps[layer, head]
    # One picture for all heads: hundreds of axes would take matplotlib minutes.
    height = max(5.0, min(14.0, 4.5 * layers / heads))
    width = min(10.0, height * heads / layers)
    with figure(path, width + 8, height) as canvas:
        left, right = canvas.subplots(1, 2, width_ratios=[width, 7])
        left.imshow(sheet, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        step = size + gap
        left.set_xticks([h * step + size / 2 for h in range(heads)], [str(h) for h in range(heads)])
        left.set_yticks([n * step + size / 2 for n in range(layers)], [str(n) for n in range(layers)])
        left.set_xlabel("head")
        left.set_ylabel("layer")
        left.set_title("All heads")
        corner = (chosen.head * step - 1, chosen.layer * step - 1)
        left.add_patch(Rectangle(corner, size + 1, size + 1, fill=False, edgecolor=PALETTE["vermilion"], linewidth=2))
        image = right.imshow(maps[chosen.layer, chosen.head], cmap="viridis", vmin=0, vmax=1)
        labels = [visible(token) for token in result.tokens]
        font = 9 if size <= 24 else max(2, int(220 / size))
        right.set_xticks(range(size), labels, rotation=90, fontsize=font)
        right.set_yticks(range(size), labels, fontsize=font)
        right.set_title(f"Layer {chosen.layer}, head {chosen.head} ({chosen.label}): each row looks at the columns")
        canvas.colorbar(image, ax=right, location="bottom", shrink=0.5, label="attention")


def dense_maps(result: AttentionReport) -> Numbers:
    """The report's ragged maps as one array [layers, heads, tokens, tokens], zero above the diagonal."""
    size = len(result.tokens)
    maps = np.zeros((len(result.maps), len(result.maps[0]), size, size))
    for layer, heads in enumerate(result.maps):
        for head, rows in enumerate(heads):
            for i, row in enumerate(rows):
                maps[layer, head, i, : i + 1] = row
    return maps


def plot_ablation(result: AblationReport, path: Path) -> None:
    """The change of the target's log-probability per layer and part; vermilion: the target needs that part."""
    from matplotlib.colors import FuncNorm, LinearSegmentedColormap

    change = np.array(result.change)
    largest = float(np.abs(change).max()) or 1.0
    colours = LinearSegmentedColormap.from_list("needs", [PALETTE["vermilion"], "white", PALETTE["blue"]])
    layers, parts = change.shape
    with figure(path, max(5.0, 0.45 * parts + 2), max(4.0, 0.24 * layers + 1.5)) as canvas:
        axes = canvas.add_subplot()
        # The square root spreads the scale: one part in layer 0 often moves more than all others together.
        norm = FuncNorm((_signed_root, _signed_square), vmin=-largest, vmax=largest)
        image = axes.imshow(change, cmap=colours, norm=norm, aspect="auto")
        axes.set_xticks(range(parts), [*map(str, range(parts - 1)), "MLP"])
        axes.set_yticks(range(layers))
        axes.set_xlabel("head switched off")
        axes.set_ylabel("layer")
        axes.set_title(f"Change of log P({visible(result.target)!r}), nats", fontsize=10)
        ticks = [sign * share * largest for sign in (-1, 1) for share in (1, 0.5, 0.2, 0.05)]
        canvas.colorbar(image, ax=axes, ticks=[*ticks, 0.0], format=lambda value, _: f"{value:+.2g}")


def _signed_root(x: Numbers) -> Numbers:
    return np.sign(x) * np.sqrt(np.abs(x))


def _signed_square(x: Numbers) -> Numbers:
    return np.sign(x) * np.square(x)


def bar_chart(names: list[str], values: list[float], label: str, path: Path) -> None:
    """Draw horizontal bars, one per name, each with its number, as a PNG."""
    with figure(path, 7, 0.4 * len(names) + 0.8) as drawing:
        axes = drawing.subplots()
        bars = axes.barh(names, values, color=PALETTE["blue"])
        axes.bar_label(bars, fmt="%.0f", padding=3)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
