"""The sampler draws from exactly the distribution it promises, and filters as transformers does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shared.sampling import Sampling, filtered_probabilities, penalize, sample

LOGITS = torch.tensor([3.0, 2.5, 2.4, 1.0, 0.5, 0.0, -1.0, -4.0, 2.4])


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1),
        Sampling(temperature=0.5, seed=2),
        Sampling(temperature=1.7, top_k=4, seed=3),
        Sampling(top_p=0.8, seed=4),
        Sampling(min_p=0.3, seed=5),
        Sampling(temperature=1.3, top_k=6, top_p=0.9, min_p=0.05, seed=6),
    ],
)
def test_draws_follow_the_analytic_distribution(sampling: Sampling) -> None:
    n, generator = 20_000, sampling.generator()
    counts = torch.bincount(
        torch.tensor([sample(LOGITS, sampling, generator) for _ in range(n)]), minlength=len(LOGITS)
    ).double()
    expected = filtered_probabilities(
        LOGITS, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
    ).double()
    impossible = expected == 0
    assert counts[impossible].sum() == 0
    expected = expected[~impossible] / expected.sum() * n
    # A false alarm once in 10,000 runs if the seeds were random; they are fixed, so never or always.
    assert stats.chisquare(counts[~impossible].numpy(), expected.numpy()).pvalue > 1e-4


def test_a_biased_sampler_would_be_noticed() -> None:
    """The χ² test above has the power to see a temperature that is off by 10 %."""
    n = 20_000
    wrong = filtered_probabilities(LOGITS, 1.1).double()
    right = filtered_probabilities(LOGITS, 1.0).double()
    assert stats.chisquare((wrong / wrong.sum() * n).numpy(), (right / right.sum() * n).numpy()).pvalue < 1e-4


@given(
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=300),
    temperature=st.floats(0.05, 3),
    top_k=st.integers(0, 320),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 0.9),
)
def test_filters_equal_transformers(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    # Spread ties apart: which of two equal logits survives a filter is nobody's promise.
    spread = torch.tensor(logits, dtype=torch.float64) + torch.arange(len(logits)) * 1e-3
    ours = filtered_probabilities(spread.float(), temperature, top_k, top_p, min_p)
    theirs = _transformers(spread.float(), temperature, top_k, top_p, min_p)
    assert ours.sum().item() == pytest.approx(1, abs=1e-5)
    # A token whose cumulative mass touches top_p within rounding may fall on either side.
    different = (ours > 0) != (theirs > 0)
    assert different.sum() <= 1
    if not different.any():
        assert torch.allclose(ours, theirs, atol=1e-5)


def _transformers(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores, none = logits[None], torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(none, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(none, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(none, scores)
    if min_p > 0:
        scores = MinPLogitsWarper(min_p)(none, scores)
    return scores.softmax(-1)[0]


def test_nucleus_beyond_the_fast_path() -> None:
    """A nearly flat distribution needs more than the 256 tokens that are looked at first."""
    logits = torch.linspace(0, 0.01, 5000)
    kept = filtered_probabilities(logits, top_p=0.5) > 0
    assert 2480 < kept.sum() < 2520
    assert kept[-1]
    assert not kept[0]


def test_temperature_zero_is_greedy_and_tiny_temperatures_do_not_overflow() -> None:
    assert filtered_probabilities(LOGITS, 0)[0] == 1
    assert filtered_probabilities(LOGITS * 1000, 1e-6).argmax() == 0
    assert not filtered_probabilities(LOGITS * 1000, 1e-6).isnan().any()


def test_same_seed_same_draws_and_none_means_fresh() -> None:
    def draws(seed: int | None) -> list[int]:
        sampling = Sampling(seed=seed)
        generator = sampling.generator()
        return [sample(LOGITS, sampling, generator) for _ in range(40)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)


def test_penalties_follow_their_definitions() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 0.0])
    openai = penalize(logits, Sampling(presence_penalty=0.5, frequency_penalty=0.25), [3], [0, 0, 1])
    assert openai.tolist() == [2.0 - 0.5 - 0.5, -2.0 - 0.5 - 0.25, 1.0, 0.0]
    ctrl = penalize(logits, Sampling(repetition_penalty=2.0), [1], [0])
    assert ctrl.tolist() == [1.0, -4.0, 1.0, 0.0]
    biased = penalize(logits, Sampling(logit_bias={2: 5.0}), [], [])
    assert biased.tolist() == [2.0, -2.0, 6.0, 0.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.0]
