"""Is a probability worth its name? Ranking (AUROC), and calibration: of the items given 80 %, are 80 % positive?

The two are independent. A grader that says 0.51 for every good passage and 0.49 for every bad one ranks perfectly and
is badly calibrated; one that says the base rate for everything is calibrated and useless. A threshold, or a decision
by expected cost, needs both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from shared.errors import UserError
from shared.stats import Z95, Difference, Estimate, auroc, mean_ci, wilson_ci

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Items whose probability lies in [low, high). positive: the share that is positive, with its interval."""

    low: float
    high: float
    n: int
    probability: float
    positive: Estimate


@dataclass(frozen=True)
class Calibration:
    """ece: expected calibration error, 0 is perfect; brier: mean squared error, what guessing 0.5 makes is 0.25.

    bins: the points of the reliability diagram; empty ones are left out.
    """

    ece: Estimate
    brier: Estimate
    bins: list[Bin]


def calibration(probabilities: Sequence[float], labels: Sequence[bool], *, resamples: int = 2000) -> Calibration:
    """Compare probabilities with what came true, in ten bins of equal width.

    ece = Σ (n_bin / n) · |share positive in the bin - mean probability in the bin|. It cannot be negative, so noise
    adds to it: with probabilities spread evenly, a perfectly calibrated model shows 0.05 at n = 300 and 0.03 at 1000.
    Its interval is a bootstrap over the items, which has that bias twice: both ends lie a little high.
    Raises ValueError on unequal lengths, no items, or values outside [0, 1].
    Source: Naeini, Cooper & Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    import numpy as np

    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if p.shape != y.shape or p.size == 0 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("need as many labels as probabilities, at least one, and probabilities in [0, 1]")
    place = np.minimum((p * BINS).astype(int), BINS - 1)  # 1.0 belongs to the last bin

    def error(rows: "NDArray[np.int64]") -> float:
        gaps = np.bincount(place[rows], weights=(y - p)[rows], minlength=BINS)
        return float(np.abs(gaps).sum() / rows.size)

    rng = np.random.default_rng(0)
    drawn = [error(rng.integers(p.size, size=p.size)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    bins = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            count = int(inside.sum())
            share = wilson_ci(float(y[inside].sum()), count)
            bins.append(Bin(number / BINS, (number + 1) / BINS, count, float(p[inside].mean()), share))
    ece = Estimate(error(np.arange(p.size)), (float(low), float(high)))
    return Calibration(ece, mean_ci(((p - y) ** 2).tolist()), bins)


def auroc_difference(a: Sequence[float], b: Sequence[float], labels: Sequence[bool]) -> Difference:
    """AUROC of a less that of b, two gradings of the same items, with the paired interval and p.

    For each positive item, what share of the negatives it outranks; the difference of that between a and b varies
    much less than either, which is what pairing buys. Raises ValueError as shared.stats.auroc does.
    Source: DeLong, DeLong & Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44, 1988.
    """
    difference = auroc(a, labels).value - auroc(b, labels).value
    wins_a, losses_a = _placements(a, labels)
    wins_b, losses_b = _placements(b, labels)
    wins, losses = wins_a - wins_b, losses_a - losses_b
    if min(wins.size, losses.size) < 2:
        raise ValueError("a paired interval needs at least two positive and two negative labels")
    error = math.sqrt(wins.var(ddof=1) / wins.size + losses.var(ddof=1) / losses.size)
    if error == 0 and difference != 0:
        # Perfect against all tied, say: no item varies. Few items must not claim certainty, so nothing is claimed.
        (low_a, high_a), (low_b, high_b) = auroc(a, labels).ci95, auroc(b, labels).ci95
        return Difference(difference, (low_a - high_b, high_a - low_b), 1.0)
    p = 2 * NormalDist().cdf(-abs(difference) / error) if error else 1.0
    return Difference(difference, (max(-1.0, difference - Z95 * error), min(1.0, difference + Z95 * error)), p)


def _placements(scores: Sequence[float], labels: Sequence[bool]) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """For each positive the share of negatives below it, for each negative the share of positives above it."""
    import numpy as np

    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    positives, negatives = values[truth], values[~truth]
    outranks = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    return outranks.mean(axis=1), outranks.mean(axis=0)


def best_threshold(probabilities: Sequence[float], labels: Sequence[bool]) -> float:
    """The threshold with the best mean of the two accuracies, on positive and on negative items.

    Choose it on other items than those it is judged by. Raises UserError unless both kinds of items are there.
    """
    positive = [p for p, label in zip(probabilities, labels, strict=True) if label]
    negative = [p for p, label in zip(probabilities, labels, strict=True) if not label]
    if not positive or not negative:
        raise UserError("a threshold can only be chosen on items of both kinds, positive and negative")

    def balanced(threshold: float) -> float:
        return sum(p >= threshold for p in positive) / len(positive) + sum(p < threshold for p in negative) / len(
            negative
        )

    return max(sorted({*probabilities, 1.0}), key=balanced)
