"""Scores of one question, from 0 to 1: where the right passage came, and how near an answer is to what people wrote.

    python -m pytest tests/step3/test_evaluation_metrics.py     # by hand, and against rouge-score where it is installed

Intervals and tests over many questions: shared/stats.py.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

DEPTH = 10  # places that are looked at


def recall_at(ranks: Sequence[int], k: int) -> bool:
    """Whether a relevant passage is among the first k. ranks: places of the relevant passages, 1 is best.

    With one relevant passage, as nearly always here, that is recall; with several, a reader needs one of them.
    """
    return any(rank <= k for rank in ranks)


def reciprocal_rank(ranks: Sequence[int]) -> float:
    """Return 1 / the best place, 0 when no relevant passage is among the first DEPTH."""
    found = [1 / rank for rank in ranks if rank <= DEPTH]
    return max(found, default=0.0)


def ndcg(ranks: Sequence[int], relevant: int) -> float:
    """Return nDCG@DEPTH with relevance 0 or 1. relevant: how many relevant passages there are, at least 1.

    Σ 1 / log2(1 + rank) over the relevant passages found, divided by what it is when they come first.
    Source: Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.
    """
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(relevant, DEPTH) + 1))
    return sum(1 / math.log2(1 + rank) for rank in ranks if rank <= DEPTH) / ideal


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 of shared words over the references, with SQuAD's normalisation.

    Lower case, no punctuation, no articles. Source: Rajpurkar et al., "SQuAD", EMNLP 2016 (evaluate-v1.1.py).
    """
    said = _squad_words(answer)
    return max(_f1((Counter(said) & Counter(r)).total(), len(said), len(r)) for r in map(_squad_words, references))


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Return the best ROUGE-L F1 over the references: words in common in the same order, not stemmed.

    Source: Lin, "ROUGE", 2004; words as in Google's rouge-score: runs of a-z and 0-9 in lower case.
    """
    said = _rouge_words(answer)
    return max(_f1(_common(said, r), len(said), len(r)) for r in map(_rouge_words, references))


def yes_or_no(text: str) -> str:
    """Return "yes" or "no" when a text begins with it, "" when it does not."""
    match = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return match[1].lower() if match else ""


def _f1(common: int, said: int, wanted: int) -> float:
    return 2 * common / (said + wanted) if common else 0.0


def _squad_words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _rouge_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        above = row
        row = [0]
        for place, other in enumerate(b):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[place]))
    return row[-1]
