"""The reflection graph's bounds: whatever the graders say, it ends, and no answer stands on nothing.

python -m pytest tests/step3/test_reflection_bounds.py
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from reflection_world import LIMITS, PASSAGES, QUESTION, outcomes, resources, settle

from step3_rag.answers import EDGES, ENDS, NODES, Answer, Event, Step
from step3_rag.graders import Case, Grader
from step3_rag.reflection import Reflection, build, run


def held_to_the_rules(events: Sequence[Event], how: Reflection) -> None:
    """What must be true of every run, whatever the graders say."""
    steps = [event for event in events if isinstance(event, Step)]
    answer = events[-1]
    assert isinstance(answer, Answer)
    assert sum(isinstance(event, Answer) for event in events) == 1
    # It ends within the bound, and each loop within its own.
    visits = Counter(step.node for step in steps)
    assert len(steps) <= how.longest
    assert visits["rewrite"] <= how.max_rewrites
    assert visits["generate"] <= 1 + how.max_regenerations
    assert visits["retrieve"] <= 1 + how.max_rewrites
    # It goes along the edges, from the first node to an end.
    assert steps[0].node == "route"
    assert steps[-1].node in ENDS
    for step, following in itertools.pairwise(steps):
        assert (step.node, step.outcome, following.node) in EDGES
    # It was answered on evidence, or it says why not.
    assert answer.text
    if answer.abstained:
        assert answer.reason
        assert answer.reason in answer.text
        assert not answer.sentences
    elif answer.route == "small_talk" or not how.checking:
        assert answer.reason
    else:
        assert answer.reason == ""
        assert answer.sentences
        for sentence in answer.sentences:
            assert sentence.citations
            assert all(citation.support >= LIMITS.grounded for citation in sentence.citations)
            assert all(citation.quote in citation.passage.text for citation in sentence.citations)


def drawn(grades: Sequence[float]) -> Grader:
    """A fake grader that says these grades in turn, over and over."""
    endless = itertools.cycle(grades)

    def grade(task: str, cases: Sequence[Case]) -> list[float]:
        return [next(endless) for _ in cases]

    return grade


REPLIES = ["", "Salmon live in the Amber river. Cats too.", "Trolls.", "What lives in the Amber?", "I do not know."]


@settings(max_examples=100)
@given(
    grades=st.lists(st.sampled_from([0.0, 0.49, 0.5, 1.0]), min_size=1, max_size=24),
    replies=st.lists(st.sampled_from(REPLIES), min_size=1, max_size=4),
    rewrites=st.integers(0, 3),
    regenerations=st.integers(0, 2),
    k=st.integers(1, 3),
    checking=st.booleans(),
    first=st.sampled_from(["What", "hello", "weather"]),
)
def test_every_path_ends_within_its_bound_and_every_answer_stands_on_something_or_says_why_not(
    grades: list[float], replies: list[str], rewrites: int, regenerations: int, k: int, checking: bool, first: str
) -> None:
    how = settle(max_rewrites=rewrites, max_regenerations=regenerations, k=k, checking=checking)
    say = itertools.cycle(replies)
    res = resources(drawn(grades), lambda _: next(say))
    held_to_the_rules(list(run(f"{first} lives in the Amber river?", res, how)), how)


def test_all_gradings_of_two_rounds_one_by_one() -> None:
    """Not drawn but counted out: good or bad at each decision of the longest way with one rewrite and two answers."""
    seen: set[tuple[str, str]] = set()
    for bits in itertools.product([0.0, 1.0], repeat=6):
        left = {task: iter(bits[n : n + 2]) for n, task in ((0, "relevant"), (2, "grounded"), (4, "quotes"))}
        whole = {p.text for p in PASSAGES}

        def grade(task: str, cases: Sequence[Case], left: Any = left, whole: Any = whole) -> list[float]:
            if task == "answerable" and cases[0].passage.split("\n")[-1] in whole:
                return [1.0] * len(cases)
            return [next(left["quotes" if task == "answerable" else task], 1.0)] * len(cases)

        how = settle(max_rewrites=1, max_regenerations=1)
        events = list(run(QUESTION, resources(grade), how))
        held_to_the_rules(events, how)
        seen |= set(outcomes(events))
    assert {("check", o) for o in ("supported", "not grounded", "not an answer", "attempts used up")} < seen
    assert {("grade", o) for o in ("answerable", "not good enough", "rewrites used up")} < seen


def test_the_compiled_graph_is_the_one_that_is_drawn() -> None:
    graph = build().get_graph()
    assert set(graph.nodes) - {"__start__", "__end__"} == set(NODES)
    edges = {(edge.source, edge.target) for edge in graph.edges}
    assert edges == {
        ("__start__", "route"),
        *((node, target) for node, _, target in EDGES),
        *((node, "__end__") for node in ENDS),
    }
    assert {node for node, _, _ in EDGES} | set(ENDS) == set(NODES)
