"""The one thing a language model computes: a probability for every possible next token.

    python -m step1_foundations next "The capital of France is" --top-p 0.9
    python -m step1_foundations next "The capital of France is" --target Paris

Everything else (chat, tools, agents) draws from this distribution again and again. The table shows it as the model
gives it and as the sampler sees it after temperature, top-k, top-p and min-p; entropy says how undecided it is.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shared.errors import UserError
from shared.tokenizer import ChatTokenizer
from step1_foundations.tokens import visible

if TYPE_CHECKING:
    from rich.console import Console

    from shared.models import LoadedModel

BAR = 20  # characters of the longest bar; two of them and the numbers fit 80 columns


@dataclass(frozen=True)
class Candidate:
    """One possible next token: its probability as the model gives it, and as the filters leave it (0: never drawn)."""

    id: int
    piece: str
    logprob: float
    probability: float
    filtered: float


@dataclass(frozen=True)
class Target:
    """A word the reader asked about. rank (1 is the likeliest), probability and logprob are of its first token.

    joint_logprob: natural log-probability of all its tokens in a row; text: the word as written after the prompt, with
    a leading space where the model finds that likelier.
    """

    text: str
    ids: list[int]
    pieces: list[str]
    rank: int
    probability: float
    logprob: float
    joint_logprob: float


@dataclass(frozen=True)
class NextToken:
    """The distribution after a prompt. kept: how many tokens the filters leave; entropies in bits."""

    prompt_tokens: int
    candidates: list[Candidate]
    kept: int
    entropy: float
    entropy_filtered: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    target: Target | None = None


def next_token(
    model: "LoadedModel",
    ids: list[int],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    target: str | None = None,
    count: int = 10,
) -> NextToken:
    """Return the distribution after the prompt `ids`, likeliest `count` tokens first.

    The filters are those of shared/sampling.py, which generation draws from. Raises UserError for one out of range.
    """
    from shared.sampling import filtered_probabilities

    for name, value, good in (
        ("--temperature", temperature, 0 <= temperature < float("inf")),
        ("--top-k", top_k, top_k >= 0),
        ("--top-p", top_p, 0 < top_p <= 1),
        ("--min-p", min_p, 0 <= min_p <= 1),
    ):
        if not good:
            bounds = {"--temperature": "0 or more", "--top-k": "0 (off) or more", "--top-p": "above 0, up to 1"}
            raise UserError(f"{name} {value}: give {bounds.get(name, 'a number from 0 to 1')}")
    logits = logits_of(model, ids)[-1]
    logprobs = logits.log_softmax(-1)
    filtered = filtered_probabilities(logits, temperature, top_k, top_p, min_p)
    best = logprobs.topk(min(count, logprobs.numel()))
    candidates = [
        Candidate(i, model.tokenizer.piece(i), logprob, float(logprobs[i].exp()), float(filtered[i]))
        for logprob, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return NextToken(
        prompt_tokens=len(ids),
        candidates=candidates,
        kept=int((filtered > 0).sum()),
        entropy=entropy(logprobs.exp()),
        entropy_filtered=entropy(filtered),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        target=None if target is None else score_target(model, ids, target, logits),
    )


def logits_of(model: "LoadedModel", ids: list[int], last: int = 1) -> Tensor:
    """Return float32 logits [last, vocabulary] after the last positions of `ids`, on the CPU.

    Raises UserError when the prompt does not fit the model's context.
    """
    if len(ids) > model.config.context:
        raise UserError(f"the prompt is {len(ids)} tokens, the model's context is {model.config.context}; shorten it")
    adapter = next(iter(model.adapters.values()), None)
    transformer = model.transformer
    cache = transformer.new_cache(capacity=len(ids))
    hidden = transformer.forward(torch.tensor(ids, device=transformer.device), [cache], [len(ids)], adapter)
    return transformer.logits(hidden[-last:]).cpu()


def entropy(probabilities: Tensor) -> float:
    """Shannon entropy in bits: how many yes/no questions the next token is worth. Source: Shannon, 1948."""
    p = probabilities.double()
    return float(-(p * p.clamp_min(1e-300).log2()).sum().clamp_max(0))


def target_ids(tokenizer: ChatTokenizer, word: str, logits: Tensor) -> list[int]:
    """Return the ids of `word` as the model would write it after a prompt with these next-token logits [vocabulary].

    Most vocabularies hold " Paris" and "Paris" as different tokens; the likelier of the two first tokens decides.
    Raises UserError for an empty word.
    """
    if not word.strip():
        raise UserError("--target is empty; give the word you expect next")
    spellings = [tokenizer.encode(word)] if word[0].isspace() else [tokenizer.encode(w) for w in (" " + word, word)]
    return max((ids for ids in spellings if ids), key=lambda ids: float(logits[ids[0]]))


def score_target(model: "LoadedModel", ids: list[int], word: str, logits: Tensor) -> Target:
    """Return rank and probability of `word` after the prompt `ids`, whose next-token logits [vocabulary] are given."""
    wanted = target_ids(model.tokenizer, word, logits)
    logprobs = logits.log_softmax(-1)
    first = float(logprobs[wanted[0]])
    joint = first
    if len(wanted) > 1:
        # log p(a b c) = log p(a) + log p(b | a) + log p(c | a b): one more forward pass gives all but the first.
        rest = logits_of(model, [*ids, *wanted[:-1]], last=len(wanted) - 1).log_softmax(-1)
        joint += float(rest[torch.arange(len(rest)), torch.tensor(wanted[1:])].sum())
    return Target(
        text=model.tokenizer.decode(wanted),
        ids=wanted,
        pieces=[model.tokenizer.piece(i) for i in wanted],
        rank=int((logits > logits[wanted[0]]).sum()) + 1,
        probability=float(logprobs[wanted[0]].exp()),
        logprob=first,
        joint_logprob=joint,
    )


def print_next(out: "Console", result: NextToken) -> None:
    """Print the distribution as two columns of bars, raw and filtered."""
    from rich.table import Table
    from rich.text import Text

    from shared.terminal import PALETTE

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("next", max_width=18, no_wrap=True)
    table.add_column("model says", justify="right")
    table.add_column("", min_width=BAR)
    table.add_column("drawn with", justify="right")
    table.add_column("", min_width=BAR)
    scale = max(max(c.probability, c.filtered) for c in result.candidates)
    for c in result.candidates:
        raw, kept = (Text("█" * round(BAR * p / scale)) for p in (c.probability, c.filtered))
        raw.stylize(PALETTE["sky"])
        kept.stylize(PALETTE["orange"])
        table.add_row(
            Text(visible(c.piece)), f"{c.probability:.2%}", raw, f"{c.filtered:.2%}" if c.filtered else "–", kept
        )
    out.print(table)
    out.print(
        f"\nentropy {result.entropy:.2f} bits; {result.entropy_filtered:.2f} after temperature {result.temperature:g}, "
        f"top-k {result.top_k}, top-p {result.top_p:g}, min-p {result.min_p:g}; {result.kept:,} tokens can be drawn"
    )
    if result.target:
        t = result.target
        # Quotation marks, and no markup: a piece may hold [brackets].
        out.print(
            f"target {visible(t.text)!r}: rank {t.rank:,}, probability {t.probability:.4g}, "
            f"log-probability {t.logprob:.3f}"
            + (f"; of all its {len(t.ids)} tokens {t.joint_logprob:.3f}" if len(t.ids) > 1 else ""),
            markup=False,
        )
