"""step3_rag/reflection.py: the ways through the graph, its switches, and how it is stopped.

python -m pytest tests/step3/test_reflection.py     # that every path ends: test_reflection_bounds.py
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fake_index import FakeIndex, passage
from reflection_world import ANSWER, PASSAGES, QUESTION, asked, grader, outcomes, requests, resources, settle, way

from shared.errors import UserError
from step3_rag.answers import Answer, Event, Step, Token
from step3_rag.graders import Case
from step3_rag.reflection import NAIVE, run

# -- the ways through the graph ----------------------------------------------------------------------------------------


def test_the_straight_way_is_answered_cited_and_checked() -> None:
    res = resources(lambda task, cases: [0.2 if case.answer.startswith("Cats") else 0.9 for case in cases])
    events, answer = asked(res)
    assert way(events) == ["route", "retrieve", "grade", "generate", "cite", "check", "answer"]
    assert (answer.abstained, answer.reason, answer.route, answer.rewrites) == (False, "", "collection", ())
    # The second sentence has no support: it streamed, and is withdrawn.
    assert "".join(event.text for event in events if isinstance(event, Token)) == ANSWER
    assert answer.text == "Salmon live in the Amber river."
    assert answer.dropped_citations == 1
    [sentence] = answer.sentences
    assert sentence.citations[0].quote == "Salmon live in the Amber river."
    assert answer.tokens == len(ANSWER.split())
    assert 0 < len(answer.nearest) <= 2
    assert answer.seconds >= sum(event.seconds for event in events if isinstance(event, Step)) > 0


def test_steps_come_as_they_happen() -> None:
    events: Iterator[Event] = run(QUESTION, resources(pause=0.02), settle())
    seen = [next(events) for _ in range(4)]
    assert [type(event).__name__ for event in seen] == ["Step", "Step", "Step", "Token"]
    rest = list(events)
    assert next(event.node for event in rest if isinstance(event, Step)) == "generate"


def test_small_talk_and_questions_out_of_scope_search_nothing() -> None:
    index = FakeIndex(PASSAGES)
    events, answer = asked(resources(index=index, say=lambda _: "Hello!"), question="hello there")
    assert (way(events), answer.text, answer.abstained) == (["route", "small_talk"], "Hello!", False)
    assert (answer.reason, answer.sentences) == ("small talk: nothing was looked up", ())
    events, answer = asked(resources(index=index), question="weather tomorrow?")
    assert (way(events), answer.abstained) == (["route", "abstain"], True)
    assert answer.text == "I don't know: the question does not seem to be about the collection."
    assert (answer.nearest, answer.tokens) == ((), 0)
    assert index.queries == []


def test_what_is_not_relevant_is_put_in_other_words_then_declined_with_the_nearest() -> None:
    index = FakeIndex(PASSAGES)
    res = resources(grader(relevant=0.3), index=index)
    events, answer = asked(res, settle(max_rewrites=2))
    assert way(events) == ["route", *["retrieve", "grade", "rewrite"] * 2, "retrieve", "grade", "abstain"]
    assert outcomes(events)[-2] == ("grade", "rewrites used up")
    assert len(set(index.queries)) == 3 == 1 + len(answer.rewrites)
    assert answer.abstained
    assert answer.reason == "no passage found is relevant enough (the best is graded 0.30, needed 0.50)"
    assert answer.text == f"I don't know: {answer.reason}."
    assert 0 < len(answer.nearest) <= 2
    assert not any(prompt.startswith("Passages") for prompt, _ in requests(res))  # no answer was written


def test_a_rewrite_that_finds_the_passage_leads_to_an_answer() -> None:
    hidden = [passage(str(n), "What a question this is, whatever it may be.") for n in range(3)]
    index = FakeIndex([*hidden, passage("s", "Salmon live in fresh water.")])

    def grade(task: str, cases: Sequence[Case]) -> list[float]:
        return [0.9 if "Salmon" in case.passage else 0.1 for case in cases]

    def say(prompt: str) -> str:
        return (
            "Which question is about salmon in water?"
            if prompt.startswith("Rewrite")
            else "Salmon live in fresh water."
        )

    how = settle(retrievers=("lexical",), k=1)
    events, answer = asked(resources(grade, say, index=index), how, "What is this question about?")
    assert answer.rewrites == ("question notes", "Which question is about salmon in water?")
    assert not answer.abstained
    assert ("rewrite", "new query") in outcomes(events)
    grades = [event.detail["relevant"] for event in events if isinstance(event, Step) and event.node == "grade"]
    assert grades == [[0.1], [0.1], [0.9, 0.1]]  # what was found before is kept, and not graded again


def test_what_is_relevant_but_does_not_answer_is_declined_too() -> None:
    _, answer = asked(resources(grader(answerable=0.2)), settle(max_rewrites=0))
    assert answer.reason == "the passages found do not seem to answer it (graded 0.20, needed 0.50)"


def test_an_answer_that_stands_on_nothing_is_written_again_then_declined() -> None:
    res = resources(grader(grounded=0.1))
    events, answer = asked(res, settle(max_regenerations=1))
    assert way(events)[3:] == ["generate", "cite", "check", "generate", "cite", "check", "abstain"]
    assert answer.reason == "nothing that was written stands on the passages found"
    assert answer.dropped_citations == 4
    assert answer.tokens == 2 * len(ANSWER.split())
    # The page must know that the first attempt is withdrawn.
    tokens = [event for event in events if isinstance(event, Token)]
    assert [token.reset for token in tokens].count(True) == 1
    written = [arguments for prompt, arguments in requests(res) if prompt.startswith("Passages")]
    assert [arguments["temperature"] for arguments in written] == [0.0, 0.7]
    assert [arguments["seed"] for arguments in written] == [0, 1]


def test_an_answer_to_something_else_is_looked_up_anew_then_declined() -> None:
    events, answer = asked(resources(grader(answers=0.1)), settle(max_rewrites=2, max_regenerations=1))
    assert outcomes(events)[5:7] == [("check", "not an answer"), ("rewrite", "new query")]
    assert outcomes(events)[-2:] == [("check", "attempts used up"), ("abstain", "done")]
    assert answer.reason == "what was written does not answer the question (graded 0.10, needed 0.50)"
    assert len(answer.rewrites) == 1  # another answer was not left to be written
    _, refused = asked(resources(say=lambda _: "Salmon: the passage does not mention the river."), settle())
    assert refused.abstained


def test_a_model_that_writes_nothing_is_declined() -> None:
    events, answer = asked(resources(say=lambda _: ""))
    assert outcomes(events)[-2:] == [("generate", "nothing written"), ("abstain", "done")]
    assert answer.reason == "the model wrote nothing"


def test_an_empty_collection_is_declined() -> None:
    events, answer = asked(resources(index=FakeIndex([])))
    assert outcomes(events)[-2:] == [("retrieve", "nothing found"), ("abstain", "done")]
    assert answer.text == "I don't know: nothing was found."


# -- the arms of the ablation ------------------------------------------------------------------------------------------


def test_naive_is_retrieve_and_generate_and_asks_no_grader() -> None:
    def never(task: str, cases: Sequence[Case]) -> list[float]:
        raise AssertionError(task)

    events, answer = asked(resources(never), NAIVE, "weather in the Amber river?")
    assert way(events) == ["route", "retrieve", "generate", "answer"]
    assert (answer.text, answer.sentences, answer.reason) == (ANSWER, (), "neither cited nor checked")


def test_each_switch_leaves_its_part_out() -> None:
    poor = grader(relevant=0.1)
    assert "rewrite" not in way(asked(resources(poor), settle(max_rewrites=0))[0])
    unchecked, answer = asked(resources(grader(grounded=0.0)), settle(checking=False))
    assert way(unchecked) == ["route", "retrieve", "grade", "generate", "answer"]
    assert not answer.abstained
    assert asked(resources(), settle(routing=False), "hello Amber river")[1].route == "collection"
    words = FakeIndex(PASSAGES)
    asked(resources(index=words), settle(retrievers=("dense",)))
    assert words.queries == []


def test_a_reranker_reorders_what_the_graph_finds() -> None:
    def kelp_first(query: str, texts: Sequence[str]) -> list[float]:
        assert query == QUESTION
        return [float("Kelp" in text) for text in texts]

    res = replace(resources(), rerankers={"late": kelp_first})
    as_found = asked(res, replace(NAIVE, k=1))[1].nearest[0]
    assert "Kelp" not in as_found.passage.text
    assert "reranked" not in as_found.ranks
    for how in (replace(NAIVE, k=1, reranker="late"), settle(k=1)):  # settle: `late` is what looks twice by default
        (hit,) = asked(res, how)[1].nearest
        assert hit.passage.text.startswith("Kelp")
        assert hit.ranks["reranked"] == 1
        assert hit.ranks["fused"] > 1
        prompts = [prompt for prompt, _ in requests(res) if prompt.startswith("Passages")]
        assert "Kelp" in prompts[-1]  # it is what the answer is written from


def test_wrong_settings_are_said_before_anything_runs() -> None:
    for wrong in ({"k": 0}, {"max_rewrites": -1}, {"max_regenerations": -1}, {"grader": None}):
        with pytest.raises(UserError):
            settle(**wrong)
    with pytest.raises(UserError, match="'llm' is not loaded; there are fake"):
        run(QUESTION, resources(), settle(grader="llm"))
    with pytest.raises(UserError, match="'cross' is not loaded; there are late"):
        run(QUESTION, resources(), settle(reranker="cross"))
    with pytest.raises(UserError, match="the question is empty"):
        run(" ", resources(), settle())


# -- stopping, failing, several at once --------------------------------------------------------------------------------


def workers() -> int:
    return sum(thread.name == "reflection" for thread in threading.enumerate())


def test_leaving_early_stops_the_model_and_the_thread() -> None:
    res = resources(say=lambda _: "word " * 150, pause=0.02)
    before = workers()
    events: Any = run(QUESTION, res, settle())
    next(event for event in events if isinstance(event, Token))
    events.close()
    chat: Any = res.model.chat
    assert chat.closed.wait(5)
    deadline = time.monotonic() + 5
    while workers() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers() == before


def test_what_fails_in_a_node_reaches_the_caller_with_the_steps_before_it() -> None:
    def broken(task: str, cases: Sequence[Case]) -> list[float]:
        raise UserError("the endpoint refuses the key", exit_code=1)

    events = run(QUESTION, resources(broken), settle())
    assert way([next(events), next(events)]) == ["route", "retrieve"]
    with pytest.raises(UserError, match="refuses the key") as caught:
        next(events)
    assert caught.value.exit_code == 1


def test_several_questions_at_once_do_not_mix() -> None:
    res = resources(say=lambda prompt: "Salmon live in the Amber river." if "lives" in prompt else "Garnet is a town.")
    answers: dict[str, Answer] = {}

    def one(question: str) -> None:
        answers[question] = asked(res, question=question)[1]

    questions = [f"What lives in the Amber river, {n}?" for n in range(4)] + [
        f"Where is Garnet, {n}?" for n in range(4)
    ]
    threads = [threading.Thread(target=one, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for question in questions:
        assert answers[question].question == question
        assert answers[question].text.startswith("Salmon" if "lives" in question else "Garnet")
