"""Where each head looks: attention maps, and a measured name for what every head does.

    python -m step1_foundations attention "The cat sat on the mat because it was" --layer 3 --head 5

A head's name is a property of the head, not of your sentence, so it is measured on a probe: PROBES sequences of PERIOD
random tokens, each said twice. Over the second half (where a repeat is there to be found), the head's mean attention to
  previous    the token before;
  sink        the first token, where heads park attention they have no use for (Xiao et al., "Efficient Streaming
              Language Models with Attention Sinks", 2023);
  induction   the token after the same token's earlier occurrence: "… A B … A" looks at B, which is how a model copies
              (Olsson et al., "In-context Learning and Induction Heads", 2022);
  itself      the token itself.
These are four different positions, so the four scores add up to at most 1 and at most one exceeds THRESHOLD = 0.5,
which names the head; otherwise it is "mixed". Random tokens carry no meaning, so only position and repetition count.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shared.errors import UserError
from step1_foundations.inspector import Inspector
from step1_foundations.tokens import visible

if TYPE_CHECKING:
    from rich.console import Console

    from shared.models import LoadedModel

PROBES = 4
PERIOD = 25
THRESHOLD = 0.5
LABELS = ("previous", "sink", "induction", "itself")
LETTERS = {"previous": "p", "sink": "s", "induction": "I", "itself": "o", "mixed": "·"}
SHADES = " ░▒▓█"
ROW_SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Head:
    """One head's scores on the probe (each 0 … 1) and the name they give it."""

    layer: int
    head: int
    previous: float
    sink: float
    induction: float
    itself: float
    label: str


@dataclass(frozen=True)
class AttentionReport:
    """tokens: pieces. maps: [layers][heads][i][j ≤ i], how much token i looks at token j; a row has i + 1 numbers,
    because nobody sees the future. heads: layer by layer. row_sum_error: the largest |sum of a row - 1|.
    """

    ids: list[int]
    tokens: list[str]
    maps: list[list[list[list[float]]]]
    heads: list[Head]
    row_sum_error: float


def attention(model: "LoadedModel", ids: list[int]) -> AttentionReport:
    """Return the attention maps of the tokens `ids` (at most inspector.MAX_TOKENS) and every head's name."""
    inspector = Inspector.of_model(model)
    maps = inspector.run(ids).maps.cpu()
    # Five decimals are more than any picture shows, and halve the JSON; the row sums are checked before rounding.
    rounded = torch.round(maps.double(), decimals=5).tolist()
    return AttentionReport(
        ids=ids,
        tokens=[model.tokenizer.piece(i) for i in ids],
        maps=[[[row[: i + 1] for i, row in enumerate(head)] for head in layer] for layer in rounded],
        heads=name_heads(inspector, model.tokenizer.backend.get_vocab_size()),
        row_sum_error=float((maps.sum(-1) - 1).abs().max()),
    )


def name_heads(inspector: Inspector, vocabulary: int) -> list[Head]:
    """Measure every head on the probe sequences; `vocabulary` is the number of tokens to draw from."""
    period = min(PERIOD, inspector.config.context // 2)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(inspector.config.layers, inspector.config.heads, len(LABELS))
    for _ in range(PROBES):
        once = torch.randint(vocabulary, (period,), generator=generator).tolist()
        total += probe_scores(inspector.run(once + once).maps, period)
    scores = total / PROBES
    return [
        Head(layer, head, float(row[0]), float(row[1]), float(row[2]), float(row[3]), head_label(row))
        for layer, heads in enumerate(scores)
        for head, row in enumerate(heads)
    ]


def probe_scores(maps: Tensor, period: int) -> Tensor:
    """Mean attention [layers, heads, 4] (columns: LABELS) over the second half of maps of a twice-said sequence.

    maps: [layers, heads, 2 · period, 2 · period]. The second half's first token is left out: there, the place that
    induction looks at (1 + its earlier occurrence) is fine, but with period 1 it would be the token itself.
    """
    i = torch.arange(period, 2 * period, device=maps.device)[1 if period > 1 else 0 :]
    targets = (i - 1, torch.zeros_like(i), i - period + 1, i)
    return torch.stack([maps[:, :, i, j].mean(-1) for j in targets], dim=-1).cpu()


def head_label(scores: Tensor) -> str:
    """Name the place that gets more than THRESHOLD of the attention; "mixed" when none does."""
    best = int(scores.argmax())
    return LABELS[best] if float(scores[best]) > THRESHOLD else "mixed"


def choose_head(result: AttentionReport, layer: int | None, head: int | None) -> Head:
    """Return the head to draw: the one asked for, or the strongest previous-token head of those that fit.

    Raises UserError when the model has no such layer or head.
    """
    layers, heads = len(result.maps), len(result.maps[0])
    for name, value, count in (("--layer", layer, layers), ("--head", head, heads)):
        if value is not None and not 0 <= value < count:
            raise UserError(f"{name} {value}: this model has {name[2:]}s 0 to {count - 1}")
    fitting = [h for h in result.heads if layer in (None, h.layer) and head in (None, h.head)]
    return max(fitting, key=lambda h: h.previous)


def print_attention(out: "Console", result: AttentionReport, chosen: Head) -> None:
    """Print the layer × head overview of names, and one head's map in shades."""
    from rich.text import Text

    from shared.terminal import PALETTE

    colours = dict(zip((*LABELS, "mixed"), ("sky", "grey", "vermilion", "green", "grey"), strict=True))
    heads = len(result.maps[0])
    width = max(1, min(3, 70 // heads))
    out.print("[bold]What the heads do[/bold] (rows: layers, columns: heads)")
    for layer in range(len(result.maps)):
        line = Text(f"{layer:>4}  ")
        for h in result.heads[layer * heads : (layer + 1) * heads]:
            line.append(LETTERS[h.label].ljust(width), PALETTE[colours[h.label]])
        out.print(line)
    count = Counter(h.label for h in result.heads)
    out.print("      " + ", ".join(f"{LETTERS[name]} {name} {count[name]}" for name in (*LABELS, "mixed")))
    for name in ("previous", "induction"):  # the two that work together: one marks what came before, one copies
        best = max(result.heads, key=lambda h: getattr(h, name))
        out.print(f"      strongest {name}: layer {best.layer} head {best.head}, score {getattr(best, name):.2f}")

    out.print(
        f"\n[bold]Layer {chosen.layer}, head {chosen.head}[/bold] ({chosen.label}): each row looks at the columns"
    )
    shown = range(max(0, len(result.tokens) - 28), len(result.tokens))  # 28 columns of 2 beside the pieces fit 80
    if shown.start:
        out.print(f"      the last {len(shown)} of {len(result.tokens)} tokens; the PNG and --json have all")
    out.print(" " * 19 + "".join(f"{j % 100:<2}" for j in shown))
    for i in shown:
        row = result.maps[chosen.layer][chosen.head][i]
        cells = "".join(SHADES[min(4, int(row[j] * 5))] * 2 for j in shown if j <= i)
        out.print(Text(f"{visible(result.tokens[i])[:13]:>14} {i:>3} ").append(cells, PALETTE["sky"]))
    out.print(" " * 19 + "shades: " + "  ".join(f"{s} ≥ {n / 5:.1f}" for n, s in enumerate(SHADES) if n))
    verdict = "ok" if result.row_sum_error <= ROW_SUM_TOLERANCE else "WRONG"
    out.print(f"\nevery row sums to 1: largest error {result.row_sum_error:.1e} ({verdict})")
