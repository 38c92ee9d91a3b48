"""Intervals and paired tests: what turns a measured number into a claim.

Every comparison in this repository is made on the same items, so the tests are paired; every value carries a 95 %
interval, because small evaluations move by several points when the questions are drawn again.

    python -m pytest tests/shared/test_stats.py     # held to scipy's references

numpy is imported on first use, so that `--help` stays quick.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Z95 = NormalDist().inv_cdf(0.975)  # 1.96: half-width of a 95 % interval in standard errors
RESAMPLES = 10_000  # the ends of the interval then move by about 1 % of its width from seed to seed


class Estimate(NamedTuple):
    """A value with its 95 % interval, both in the unit of the input."""

    value: float
    ci95: tuple[float, float]


class Difference(NamedTuple):
    """Mean of a - b over paired items, its 95 % interval, and the two-sided p of "no difference"."""

    value: float
    ci95: tuple[float, float]
    p: float


class McNemar(NamedTuple):
    """Items only a got right, items only b got right, and the two-sided p of "equally many"."""

    only_a: int
    only_b: int
    p: float


def _finite(values: Sequence[float], name: str) -> "NDArray[np.float64]":
    """Return `values` as a float array. ValueError when it is empty or holds NaN or infinity."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return array


def _paired(a: Sequence[float], b: Sequence[float]) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Return both as arrays. ValueError when they cannot be item by item the same measurement."""
    first, second = _finite(a, "a"), _finite(b, "b")
    if first.size != second.size:
        raise ValueError(f"paired values need equal lengths, got {first.size} and {second.size}")
    return first, second


def _resampled(
    draw: "Callable[[np.random.Generator, int], NDArray[np.float64]]", n: int, resamples: int, seed: int
) -> "NDArray[np.float64]":
    """Return `resamples` statistics; draw(rng, rows) makes them in blocks of about 4 million numbers (32 MB)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    block = max(1, 4_000_000 // n)
    return np.concatenate([draw(rng, min(block, resamples - done)) for done in range(0, resamples, block)])


def mean_ci(values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the mean and its percentile-bootstrap interval.

    With fewer than about 20 values the interval is too narrow (it cannot see past the values drawn).
    Raises ValueError on empty or non-finite input.
    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    import numpy as np

    array = _finite(values, "values")
    n = array.size
    means = _resampled(lambda rng, rows: array[rng.integers(n, size=(rows, n))].mean(axis=1), n, resamples, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(array.mean()), (float(low), float(high)))


def wilson_ci(successes: float, n: int) -> Estimate:
    """Return the proportion successes / n and its Wilson score interval.

    Unlike p ± 1.96 standard errors it keeps its coverage for small n and near 0 and 1, and never leaves [0, 1].
    Raises ValueError unless 0 <= successes <= n and n >= 1.
    Source: Wilson, JASA 22, 1927; recommended by Brown, Cai & DasGupta, Statistical Science 16, 2001.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    p, z2 = successes / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends the formula gives 0 and 1 up to rounding; say so exactly.
    return Estimate(p, (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare two systems measured on the same items: a[i] and b[i] belong to item i.

    The interval is the percentile bootstrap over items. p is the sign-flip randomisation test, because a bootstrap p
    is wrong at small n: three wins out of three items give p = 0.25 here, as they should, and 0.0002 there.
    The smallest p it can report is 1 / (resamples + 1).
    Raises ValueError on unequal lengths, empty or non-finite input.
    Source: interval as in `mean_ci`; Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989; the + 1 is
    from Phipson & Smyth, "Permutation p-values should never be zero", 2010.
    """
    import numpy as np

    first, second = _paired(a, b)
    differences = first - second
    estimate = mean_ci(differences.tolist(), resamples=resamples, seed=seed)

    def flip(rng: np.random.Generator, rows: int) -> "NDArray[np.float64]":
        flipped = np.where(rng.random((rows, differences.size)) < 0.5, differences, -differences)
        return np.asarray(flipped.mean(axis=1), dtype=np.float64)

    # The same sum in another order differs in the last bits; such ties count as "at least as large".
    threshold = abs(estimate.value) - 1e-12 * float(np.abs(differences).mean())
    reached = int((np.abs(_resampled(flip, differences.size, resamples, seed + 1)) >= threshold).sum())
    return Difference(estimate.value, estimate.ci95, (reached + 1) / (resamples + 1))


def mcnemar_exact(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """Compare two systems right (True) or wrong on the same items; items on which they agree say nothing.

    p is the exact two-sided binomial test of only_a against only_b at one half; 1.0 when they never disagree.
    Raises ValueError on unequal lengths, empty input, or values other than 0 and 1.
    Source: McNemar, Psychometrika 12, 1947; the exact form: Fagerland, Lydersen & Laake, BMC Med Res Methodol 13, 2013.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired values need equal, non-zero lengths, got {len(a)} and {len(b)}")
    if any(value not in (0, 1) for value in (*a, *b)):
        raise ValueError("values must be True or False (1 or 0)")
    only_a = sum(1 for x, y in zip(a, b, strict=True) if x and not y)
    only_b = sum(1 for x, y in zip(a, b, strict=True) if y and not x)
    n = only_a + only_b
    # Whole numbers throughout: exact, and no overflow however many items there are.
    term = tail = 1
    for k in range(min(only_a, only_b)):
        term = term * (n - k) // (k + 1)  # comb(n, k + 1) from comb(n, k)
        tail += term
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> Estimate:
    """Return the area under the ROC curve: how often a positive outscores a negative, ties counting one half.

    scores: higher should mean positive. labels: True for positives; both kinds must occur.
    The interval is DeLong's on the logit scale, which keeps it inside (0, 1). DeLong's variance is zero when the
    classes separate perfectly or all scores tie; the interval is then Wilson's, as if only the smaller class had been
    counted: wide, but 5 against 5 items must not claim certainty.
    Raises ValueError on unequal lengths, non-finite scores, or one class only.
    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988; ranks: Sun & Xu, IEEE SPL 21, 2014; logit: Pepe, 2003.
    """
    import numpy as np

    values, truth = _paired(scores, labels)
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be True or False (1 or 0)")
    positives, negatives = values[truth == 1], values[truth == 0]
    m, n = positives.size, negatives.size
    if m == 0 or n == 0:
        raise ValueError("AUROC needs at least one positive and one negative label")

    def below(items: "NDArray[np.float64]", others: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """For each item the share of `others` below it, ties counting half."""
        ordered = np.sort(others)
        left, right = np.searchsorted(ordered, items, "left"), np.searchsorted(ordered, items, "right")
        return np.asarray((left + right) / (2 * others.size), dtype=np.float64)

    wins, losses = below(positives, negatives), below(negatives, positives)
    area = float(wins.mean())
    variance = float(wins.var(ddof=1) / m + losses.var(ddof=1) / n) if min(m, n) > 1 else 0.0
    if variance < 1e-15 or not 0 < area < 1:
        return Estimate(area, wilson_ci(area * min(m, n), min(m, n)).ci95)
    centre, half = math.log(area / (1 - area)), Z95 * math.sqrt(variance) / (area * (1 - area))
    return Estimate(area, (1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))))
