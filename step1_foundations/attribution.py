"""Why did the model say that? Two answers: when the answer appears (logit lens), and what it depends on (ablation).

    python -m step1_foundations lens "The capital of France is"
    python -m step1_foundations ablate "The capital of France is" --target Paris

Logit lens: read the residual stream after each layer as if it were the last one: final norm, then head.
Source: nostalgebraist, "interpreting GPT: the logit lens", 2020. Early layers were never trained to be read that way,
so their words are a hint, not a thought.

Zero ablation: switch one head or MLP off and see how the target's log-probability moves. A zero is not what the rest
of the model expects from that part, so a change measures dependence, which may be plain disturbance as well as
knowledge: some parts in the first layers are needed for everything. With int8 and int4 weights, changes below about
0.2 nats are the kernels' rounding of activations (inspector.py); --dtype float32 resolves smaller ones. Source:
Michel et al., "Are Sixteen Heads Really Better than One?", 2019.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shared.errors import UserError
from step1_foundations.inspector import Inspector, Recording
from step1_foundations.next_token import target_ids
from step1_foundations.tokens import visible

if TYPE_CHECKING:
    from rich.console import Console

    from shared.models import LoadedModel

DROP, RISE = "░▒▓█", "·∘○●"  # two ramps, so that the sign shows without colour


@dataclass(frozen=True)
class LensCell:
    """The likeliest next token at one layer and position, and there the rank and probability of the final answer."""

    id: int
    piece: str
    probability: float
    answer_rank: int
    answer_probability: float


@dataclass(frozen=True)
class LensReport:
    """cells: [layers + 1][positions], row 0 is the embedding before any block, the last row is the model's output.

    tokens: the prompt's pieces; answers: the final top token per position.
    """

    ids: list[int]
    tokens: list[str]
    answers: list[str]
    cells: list[list[LensCell]]


@dataclass(frozen=True)
class AblationReport:
    """change: [layers][heads + 1], the target's log-probability (nats) without the part minus with it; the last column
    is the MLP. Negative: the target needs that part. logprob: with everything on; seconds: for all ablations.
    """

    ids: list[int]
    tokens: list[str]
    target: str
    target_ids: list[int]
    logprob: float
    change: list[list[float]]
    seconds: float


def lens(model: "LoadedModel", ids: list[int]) -> LensReport:
    """Return what every layer would say after every token of `ids` (at most inspector.MAX_TOKENS)."""
    inspector = Inspector.of_model(model)
    residuals = inspector.run(ids).residuals
    answers = inspector.read_out(residuals[-1]).argmax(-1)
    piece = model.tokenizer.piece
    cells = []
    for residual in residuals:  # one layer at a time: all layers' logits together would take gigabytes
        logits = inspector.read_out(residual)
        mine = logits.gather(1, answers[:, None])
        rank = (logits > mine).sum(-1) + 1
        probabilities = logits.softmax(-1)
        top, chance = probabilities.max(-1).indices.tolist(), probabilities.max(-1).values.tolist()
        answer = probabilities.gather(1, answers[:, None])[:, 0].tolist()
        cells.append([LensCell(t, piece(t), *row) for t, *row in zip(top, chance, rank.tolist(), answer, strict=True)])
    return LensReport(ids, [piece(i) for i in ids], [piece(i) for i in answers.tolist()], cells)


def ablate(
    model: "LoadedModel",
    ids: list[int],
    word: str,
    track: Callable[[range], Iterable[int]] = lambda layers: layers,
) -> AblationReport:
    """Switch each head and each MLP off, one at a time, and return how the log-probability of `word` after `ids` moves.

    track: wraps the loop over layers, for a progress bar. Raises UserError for an empty word.
    Cost: blocks below the ablated one are not run again, and the heads + 1 variants of a layer run as one batch, so the
    whole map takes about layers/2 batched passes in place of layers · (heads + 1).
    """
    inspector = Inspector.of_model(model)
    config = model.config
    start = time.perf_counter()
    target = target_ids(model.tokenizer, word, inspector.read_out(inspector.run(ids).residuals[-1][-1:])[0].cpu())
    # With a target of several tokens, its own first tokens are part of the text that is read.
    text = [*ids, *target[:-1]]
    if len(text) > config.context:
        raise UserError(
            f"TEXT and target are {len(text)} tokens, the model's context is {config.context}; shorten TEXT"
        )
    recording = inspector.run(text)
    logprob = _target_logprob(inspector, recording.residuals[-1], 1, target)[0]
    change = []
    for index in track(range(config.layers)):
        x = variants(inspector, recording, index)
        x = inspector.run_layers(x.flatten(0, 1), config.heads + 2, index + 1)
        intact, *without = _target_logprob(inspector, x, config.heads + 2, target)
        # Compared with the intact variant of the same batch: a batch of other size may round differently.
        change.append([value - intact for value in without])
    return AblationReport(
        ids=ids,
        tokens=[model.tokenizer.piece(i) for i in ids],
        target=model.tokenizer.decode(target),
        target_ids=target,
        logprob=logprob,
        change=change,
        seconds=time.perf_counter() - start,
    )


def variants(inspector: Inspector, recording: Recording, index: int) -> Tensor:
    """The residual stream after block `index` in heads + 2 variants [heads + 2, tokens, hidden].

    First with everything on, then without head 0, 1, …, last without the MLP.
    """
    before, mixed = recording.residuals[index], recording.mixed[index]
    heads = mixed.shape[1]
    switches = torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)]).to(mixed.device)
    switched = (mixed[None] * switches[:, None, :, None]).flatten(0, 1)
    after_heads = inspector.add_heads(index, before.repeat(heads + 1, 1), switched)
    after_mlp = inspector.add_mlp(index, after_heads).unflatten(0, (heads + 1, -1))
    without_mlp = after_heads.unflatten(0, (heads + 1, -1))[:1]
    return torch.cat([after_mlp, without_mlp])


def _target_logprob(inspector: Inspector, x: Tensor, batch: int, target: list[int]) -> list[float]:
    """Log-probability of the target's tokens after the last positions of each of `batch` final residual streams."""
    last = x.unflatten(0, (batch, -1))[:, -len(target) :]
    logprobs = inspector.read_out(last.flatten(0, 1)).log_softmax(-1).unflatten(0, (batch, -1))
    wanted = torch.tensor(target, device=x.device).expand(batch, -1)[..., None]
    values: list[float] = logprobs.gather(-1, wanted).sum((1, 2)).tolist()
    return values


def check_position(position: int, count: int) -> None:
    """Raise UserError unless `position` (negative: from the end) is one of `count` tokens."""
    if not -count <= position < count:
        raise UserError(f"--position {position}: TEXT has {count} tokens, give {-count} to {count - 1}")


def print_lens(out: "Console", result: LensReport, position: int = -1) -> None:
    """Print, for one position (negative: from the end), what each layer would say."""
    from rich.table import Table
    from rich.text import Text

    from shared.terminal import PALETTE

    out.print(
        Text(f"After {visible(result.tokens[position])!r} the model says {visible(result.answers[position])!r}", "bold")
    )
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("layer", justify="right")
    table.add_column("would say", max_width=24, no_wrap=True)
    table.add_column("probability", justify="right")
    table.add_column("rank of the answer", justify="right")
    table.add_column("its probability", min_width=15)
    for layer, row in enumerate(result.cells):
        cell = row[position]
        bar = Text("█" * round(15 * cell.answer_probability), PALETTE["sky"])
        style = PALETTE["green"] if cell.answer_rank == 1 else ""
        name = "embed" if layer == 0 else str(layer - 1)
        table.add_row(name, Text(visible(cell.piece), style), f"{cell.probability:.1%}", f"{cell.answer_rank:,}", bar)
    out.print(table)


def print_ablation(out: "Console", result: AblationReport) -> None:
    """Print the layer × part heat map and the parts that matter most."""
    from rich.text import Text

    from shared.terminal import PALETTE

    parts = len(result.change[0])
    largest = max(max(abs(value) for value in row) for row in result.change) or 1.0
    width = max(1, min(3, 68 // parts))
    out.print(
        Text(
            f"log-probability of {visible(result.target)!r}: {result.logprob:.3f}; without each part it changes by",
            "bold",
        )
    )
    out.print("layer " + "".join(str(h % 10 if width < 3 else h).ljust(width) for h in range(parts - 1)) + " MLP")
    for layer, row in enumerate(result.change):
        line = Text(f"{layer:>4}  ")
        for part, value in enumerate(row):
            # The square root spreads the scale: one part in layer 0 often moves more than all others together.
            level = int(4 * (abs(value) / largest) ** 0.5 + 0.5)
            glyph = " " if level == 0 else (DROP if value < 0 else RISE)[min(3, level - 1)]
            cell = (" " if part == parts - 1 else "") + (glyph * max(1, width - 1)).ljust(width)
            line.append(cell, PALETTE["vermilion" if value < 0 else "blue"])
        out.print(line)
    out.print(f"      {DROP} less likely without it, {RISE} likelier; full scale {largest:.2f} nats, square root\n")
    for kind, columns in (("heads", range(parts - 1)), ("MLPs", range(parts - 1, parts))):
        ranked = sorted(
            ((row[part], f"{layer}" if kind == "MLPs" else f"{layer}.{part}") for layer, row in enumerate(result.change)
             for part in columns),
            key=lambda entry: -abs(entry[0]),
        )  # fmt: skip
        named = "layer.head" if kind == "heads" else "layer"
        out.print(f"{kind} ({named}): " + ", ".join(f"{name} {value:+.2f}" for value, name in ranked[:5]))
    out.print(f"\n{len(result.change) * parts} ablations in {result.seconds:.1f} s")
