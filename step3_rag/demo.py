"""What `make step3` shows: a question that is answered, one that is put in other words first, one that is declined.

Which question ends how is decided by a model and a grader, and another model, another grader, even another processor
(which rounds otherwise) may decide a near thing differently. So each of the three has a few questions, and they are
asked until one ends as it should. Those that did not are shown like the others.

    python -m step3_rag demo
    python -m pytest tests/step3/test_demo.py
"""

from collections.abc import Mapping
from typing import Any

from shared.terminal import console, say
from step3_rag.answers import Answer, Step
from step3_rag.reflection import Reflection, run
from step3_rag.resources import Resources
from step3_rag.trace import Trace, document

# How a question should end → questions, the best first. Few can show the second: in results/answers_boolq.json as many
# are declined with rewriting as without. Each here says "uk" or "permit" where its article does not.
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "answered": (
        "what is a thundersnow",
        "what is a pizzly bear",
        "what is the salt belt",
        "what causes the sound of the ocean in a seashell",
    ),
    "rewritten": ("do you need a tv license in uk", "how do you get a tv permit in england"),
    "declined": (
        "who won the first season of the show that was filmed on the moon",
        "what is the recipe of grandmother's apple pie",
        "what did the mayor say about the new swimming pool",
    ),
}


def shows(answer: Answer) -> set[str]:
    """Return what an answer is an example of, of "answered", "rewritten" and "declined"."""
    if answer.abstained:
        return {"declined"}
    if not answer.sentences:  # small talk, or not checked
        return set()
    return {"answered", "rewritten"} if answer.rewrites else {"answered"}


def perform(resources: Resources, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Ask until each ending was shown; return the documents of all questions asked, `shows` being what each was for.

    `shows` is None for one that ended otherwise. quiet: print nothing. Raises UserError as reflection.run does.
    """
    trace, settings = Trace(steps=True), Reflection(grader=next(iter(resources.graders)))
    documents = []
    for ending, questions in QUESTIONS.items():
        for question in questions:
            answer, steps = _ask(question, resources, settings, None if quiet else trace)
            shown = ending in shows(answer)
            documents.append(document(answer, steps) | {"shows": ending if shown else None})
            if shown:
                break
            if not quiet:
                say(f"(this one was to be {ending}, and was not)")
    return documents


def _ask(question: str, resources: Resources, settings: Reflection, trace: Trace | None) -> tuple[Answer, list[Step]]:
    steps: list[Step] = []
    if trace:
        console(stderr=True).print(f"\n[bold]you>[/] {question}")
        trace.begin()
    for event in run(question, resources, settings):
        if trace:
            trace(event)
        if isinstance(event, Step):
            steps.append(event)
        elif isinstance(event, Answer):
            return event, steps
    raise AssertionError("run ends with an Answer, or raises")
