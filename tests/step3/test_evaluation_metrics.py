"""Scores against cases worked by hand, and against the package that everybody uses where it is installed."""

import math
import random
import sys

import pytest

from step3_rag.evaluation.metrics import ndcg, recall_at, reciprocal_rank, rouge_l, token_f1, yes_or_no


def test_recall_looks_at_the_first_k() -> None:
    assert recall_at([3], 3)
    assert not recall_at([3], 2)
    assert recall_at([9, 1], 1)
    assert not recall_at([], 10)


def test_reciprocal_rank_is_of_the_best_place_among_ten() -> None:
    assert reciprocal_rank([4, 2, 7]) == 1 / 2
    assert reciprocal_rank([10]) == 1 / 10
    assert reciprocal_rank([11]) == 0
    assert reciprocal_rank([]) == 0


def test_ndcg_by_hand() -> None:
    assert ndcg([1], 1) == 1
    assert ndcg([3], 1) == pytest.approx(1 / 2)  # log2(4)
    assert ndcg([1, 3], 2) == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))
    assert ndcg([1, 2], 3) < 1
    assert ndcg([], 3) == 0
    assert ndcg(list(range(1, 11)), 25) == pytest.approx(1)  # no more than ten fit
    assert ndcg([11], 1) == 0


def test_token_f1_by_hand() -> None:
    assert token_f1("The old king.", ["an Old KING"]) == 1
    assert token_f1("the king of France", ["king"]) == pytest.approx(2 * 1 / (3 + 1))
    assert token_f1("king king", ["king"]) == pytest.approx(2 * 1 / (2 + 1))  # a word counts as often as it is there
    assert token_f1("queen", ["king", "the queen"]) == 1
    assert token_f1("", ["king"]) == 0
    assert token_f1("the", ["a"]) == 0  # nothing but articles


def test_rouge_l_by_hand() -> None:
    assert rouge_l("police killed the gunman", ["police kill the gunman"]) == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", ["police kill the gunman"]) == pytest.approx(2 / 4)
    assert rouge_l("Don't!", ["don t"]) == 1
    assert rouge_l("x", ["king", "x y"]) == pytest.approx(2 / 3)
    assert rouge_l("", ["king"]) == 0


def test_rouge_l_is_what_rouge_score_gives() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    # It imports absl, whose log handler keeps the stderr of this moment, pytest's own file, and closes it when the next
    # server configures its logging: each later test of this process would then fail. It leaves the real stderr open.
    pytest.importorskip("absl.logging").get_absl_handler().python_handler.setStream(sys.__stderr__)
    chance = random.Random(0)
    words = ["the", "King", "of", "France's", "1,204", "naïve", "co-op", "died.", "“quoted”", "x"]
    for _ in range(200):
        said, wanted = (" ".join(chance.choices(words, k=chance.randint(0, 12))) for _ in range(2))
        expected = scorer.score(wanted, said)["rougeL"].fmeasure
        assert rouge_l(said, [wanted]) == pytest.approx(expected), (said, wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes, it is.", "yes"),
        ("no", "no"),
        (" \n*No*, because", "no"),
        ("Nothing is known", ""),
        ("The answer is yes", ""),
        ("", ""),
    ],
)
def test_yes_or_no_is_read_at_the_beginning_only(text: str, said: str) -> None:
    assert yes_or_no(text) == said
