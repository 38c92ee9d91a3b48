"""From logits to the next token: penalties, temperature, top-k, top-p, min-p, and an exact draw.

    logits ─ penalties, bias, grammar mask ─▶ ÷ temperature ─▶ top-k ─▶ top-p ─▶ min-p ─▶ renormalise ─▶ draw

The filters run in transformers' order, each on what the one before left over. `filtered_probabilities` is the exact
distribution that `sample` draws from; a χ² test holds the two together (tests/shared/test_sampling.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch those filters off.

    presence_penalty and frequency_penalty (OpenAI's) look at generated tokens; repetition_penalty (Keskar et al.,
    "CTRL", 2019) looks at the prompt as well. logit_bias: token id → number added to its logit.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def generator(self) -> torch.Generator:
        """Return this request's own random stream, so that its tokens do not depend on who shares the batch."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed % 2**63)
        return generator


def penalize(logits: Tensor, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
    """Return logits [vocabulary] with penalties and bias applied; the input is left alone."""
    s = sampling
    plain = s.presence_penalty == 0 and s.frequency_penalty == 0 and s.repetition_penalty == 1 and not s.logit_bias
    if plain:
        return logits
    logits = logits.clone()
    if s.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *generated}), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
    if generated and (s.presence_penalty or s.frequency_penalty):
        ids, counts = torch.tensor(generated, device=logits.device).unique(return_counts=True)
        logits[ids] -= s.presence_penalty + s.frequency_penalty * counts
    for token, bias in s.logit_bias.items():
        logits[token] += bias
    return logits


def filtered_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Return the distribution [vocabulary] that sampling draws from. Temperature 0 (greedy): all mass on the argmax.

    top_k: keep the k most likely. top_p: keep the smallest set of most likely tokens whose mass reaches top_p
    (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020). min_p: keep tokens at least min_p times as
    likely as the likeliest (Nguyen et al., 2024).
    """
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(0, logits.argmax(keepdim=True), 1.0)
    logits = logits.float()
    # Subtract the maximum before dividing: a tiny temperature would overflow to inf, and inf - inf is NaN.
    logits = (logits - logits.max()) / temperature
    if 0 < top_k < logits.numel():
        kept = logits.topk(top_k).indices
        logits = torch.full_like(logits, -torch.inf).scatter_(0, kept, logits[kept])
    probabilities = logits.softmax(-1)
    if top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    if min_p > 0:
        probabilities = probabilities.where(probabilities >= min_p * probabilities.max(), 0.0)
    return probabilities / probabilities.sum()


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero everything outside the smallest set of likeliest tokens with mass top_p; at least one token stays."""
    # Sorting 49,152 numbers takes 3 ms; the nucleus is nearly always among the first few hundred.
    size = min(256, probabilities.numel())
    values, ids = probabilities.topk(size)
    if values.sum() < top_p:
        values, ids = probabilities.sort(descending=True)
    before = values.cumsum(0) - values
    keep = before < top_p
    return torch.zeros_like(probabilities).scatter_(0, ids[keep], values[keep])


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw one token id from logits [vocabulary] (penalties and masks already applied)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = filtered_probabilities(logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))
