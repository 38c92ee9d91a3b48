"""shared/stats.py against scipy's references, plus the properties a reader relies on.

python -m pytest tests/shared/test_stats.py
"""

import numpy as np
import pytest
from scipy import stats as reference

from shared.stats import auroc, mcnemar_exact, mean_ci, paired_bootstrap, wilson_ci


def test_mean_ci_matches_scipy_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(size=60)
    ours = mean_ci(values.tolist())
    theirs = reference.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.ci95 == pytest.approx((theirs.low, theirs.high), abs=0.02)  # two seeds of the same bootstrap


def test_mean_ci_is_repeatable_and_exact_for_constants() -> None:
    assert mean_ci([1.0, 2.0, 5.0]) == mean_ci([1.0, 2.0, 5.0])
    assert mean_ci([3.0] * 7) == (3.0, (3.0, 3.0))


def test_mean_ci_covers_the_true_mean_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(10, 2, size=(400, 50))
    intervals = [mean_ci(sample.tolist(), resamples=500, seed=i).ci95 for i, sample in enumerate(samples)]
    covered = np.mean([low <= 10 <= high for low, high in intervals])
    assert 0.90 < covered < 0.98  # 95 % less the percentile bootstrap's small-sample loss, ± 3 standard errors


def test_blocks_do_not_change_the_number_of_resamples() -> None:
    values = np.random.default_rng(4).normal(size=9_000)  # 9000 x 10,000 draws need several blocks
    low, high = mean_ci(values.tolist(), resamples=1_000).ci95
    assert (high - low) / 2 == pytest.approx(1.96 / np.sqrt(9_000), rel=0.1)


@pytest.mark.parametrize("n", [1, 2, 10, 137, 3270])
def test_wilson_matches_scipy(n: int) -> None:
    for successes in {0, 1, n // 3, n // 2, n}:
        theirs = reference.binomtest(successes, n).proportion_ci(0.95, method="wilson")
        ours = wilson_ci(successes, n)
        assert ours.value == successes / n
        assert ours.ci95 == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert 0 <= ours.ci95[0] <= ours.value <= ours.ci95[1] <= 1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_ci(successes, n)


def test_paired_p_matches_scipy_exact_permutation() -> None:
    rng = np.random.default_rng(5)
    for shift in (0.0, 0.4, 0.8):
        a = rng.normal(shift, 1, size=10)
        b = rng.normal(0, 1, size=10)
        theirs = reference.permutation_test(
            (a, b), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", n_resamples=np.inf
        )
        assert paired_bootstrap(a.tolist(), b.tolist()).p == pytest.approx(theirs.pvalue, abs=0.015)


def test_paired_is_antisymmetric_and_sees_pairing() -> None:
    difficulty = np.random.default_rng(6).normal(0, 10, size=40)
    better = (difficulty + 0.5 + np.random.default_rng(7).normal(0, 0.2, size=40)).tolist()
    forward, backward = paired_bootstrap(better, difficulty.tolist()), paired_bootstrap(difficulty.tolist(), better)
    assert forward.value == pytest.approx(-backward.value)
    assert forward.ci95[0] > 0.3  # unpaired, a spread of 10 would drown a difference of 0.5
    assert forward.p == pytest.approx(1 / 10_001)


def test_paired_does_not_shout_at_small_n() -> None:
    assert paired_bootstrap([1, 1, 1], [0, 0, 0]).p == pytest.approx(0.25, abs=0.02)
    assert paired_bootstrap([1.5, 2.0], [1.5, 2.0]) == (0.0, (0.0, 0.0), 1.0)


def test_paired_tests_agree_on_right_and_wrong() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random(80) < 0.6, rng.random(80) < 0.5
    exact = mcnemar_exact(a.tolist(), b.tolist()).p
    assert paired_bootstrap(a.tolist(), b.tolist()).p == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 1), (7, 7), (30, 12), (2_000, 1_800)])
def test_mcnemar_matches_scipy(only_a: int, only_b: int) -> None:
    a = [True] * only_a + [False] * only_b + [True, False]
    b = [False] * only_a + [True] * only_b + [True, False]
    n = only_a + only_b
    expected = reference.binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert mcnemar_exact(a, b)[:2] == (only_a, only_b)
    assert mcnemar_exact(a, b).p == pytest.approx(expected, rel=1e-9)


def test_auroc_matches_mann_whitney_with_ties() -> None:
    rng = np.random.default_rng(9)
    scores, labels = rng.integers(0, 6, size=90).astype(float), rng.random(90) < 0.4
    expected = reference.mannwhitneyu(scores[labels], scores[~labels]).statistic / (labels.sum() * (~labels).sum())
    estimate = auroc(scores.tolist(), labels.tolist())
    assert estimate.value == pytest.approx(expected, abs=1e-12)
    mirrored = auroc((-scores).tolist(), labels.tolist())
    assert mirrored.value == pytest.approx(1 - expected)
    assert mirrored.ci95 == pytest.approx((1 - estimate.ci95[1], 1 - estimate.ci95[0]))


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_auroc_interval_covers_the_truth(shift: float) -> None:
    rng = np.random.default_rng(10)
    truth = reference.norm.cdf(shift / np.sqrt(2))
    labels = [True] * 30 + [False] * 50
    covered = 0
    for _ in range(400):
        scores = np.concatenate([rng.normal(shift, 1, 30), rng.normal(0, 1, 50)])
        low, high = auroc(scores.tolist(), labels).ci95
        covered += low <= truth <= high
    assert 0.915 < covered / 400 < 0.985


@pytest.mark.parametrize("scores", [[1, 2, 3, 7, 8, 9], [7, 8, 9, 1, 2, 3], [5] * 6])
def test_auroc_never_claims_certainty_from_six_items(scores: list[float]) -> None:
    estimate = auroc(scores, [False] * 3 + [True] * 3)
    low, high = estimate.ci95
    assert 0 <= low <= estimate.value <= high <= 1
    assert high - low > 0.4


@pytest.mark.parametrize("function", [paired_bootstrap, mcnemar_exact, auroc])
@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 0.0]), ([0.0, 1.0, 1.0], [1.0, 0.0])])
def test_pairs_must_match(function, a, b) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"length|non-empty"):
        function(a, b)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        mean_ci([1.0, float("nan")])
    with pytest.raises(ValueError, match="non-empty"):
        mean_ci([])
    with pytest.raises(ValueError, match="one positive and one negative"):
        auroc([1.0, 2.0], [True, True])
    with pytest.raises(ValueError, match="True or False"):
        mcnemar_exact([2, 0], [1, 0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="True or False"):
        auroc([1.0, 2.0], [0, 2])  # type: ignore[list-item]
