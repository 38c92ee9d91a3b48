"""Chapter 3: step 3's demo. A question that is answered with citations, and one that is declined."""

from collections.abc import Sequence
from typing import Any

from scripts.tour.findings import Chapter, Picture, Stage, Table, Talk, Text, Verdict
from scripts.tour.pictures import Span, timeline
from scripts.tour.steps import ask_step
from shared.foreign_text import one_line

ENDINGS = {
    "answered": "Answered: every sentence stands on a cited span of a source.",
    "rewritten": "The first search missed; put in other words the question found its article.",
    "declined": "Declined: the collection does not answer this, and it says so.",
}
QUOTE = 240  # characters of a cited span


def perform(stage: Stage) -> None:
    """Run the demo (which indexes its encyclopaedia the first time) and show what came of each question."""
    stage.remark("the first time, 2,651 articles are embedded; that takes about a minute")
    found = ask_step(stage, "step3_rag", "demo", "--model", stage.model)
    for document in found:
        show_answer(stage, document)
        ending = document["shows"]
        stage.show(
            Verdict(ending is not None, ENDINGS[ending] if ending else "This one ended in another way than planned.")
        )
    shown = {document["shows"] for document in found}
    for ending in ENDINGS.keys() - shown:
        stage.show(Verdict(False, f"No question was {ending} in this run."))


def show_answer(stage: Stage, document: dict[str, Any]) -> None:
    """One question: what was said, what it is cited from, and each decision on the way."""
    stage.show(Talk([("you", document["question"]), ("step 3", document["answer"])]))
    cited = [
        [_place(citation), f"{citation['support']:.2f}", f"“{one_line(citation['quote'], QUOTE)}”"]
        for sentence in document["sentences"]
        for citation in sentence["citations"]
    ]
    if cited:
        stage.show(Table("Cited", ["source", "support", "span"], cited))
    stage.show(_way(document["steps"]))
    if document["abstained"]:
        nearest = ", ".join(dict.fromkeys(_place(hit) for hit in document["nearest"][:3]))
        stage.show(Text(f"What came nearest: {nearest or 'nothing'}."))


def _way(steps: Sequence[dict[str, Any]]) -> Picture:
    """Every node of the graph that was passed, its outcome and its time, one after the other."""
    spans, now = [], 0.0
    for step in steps:
        spans.append(Span(f"{step['node']}: {step['outcome']}", now, now + step["seconds"]))
        now += step["seconds"]
    words = " → ".join(span.label for span in spans)
    return Picture(
        "The way there", timeline(spans, "The steps to the answer", waterfall=True), f"{words}; {now:.1f} s."
    )


def _place(found: dict[str, Any]) -> str:
    """The heading of a passage, else its file's name: the folders before it are this machine's business."""
    heading = found["heading_path"]
    return one_line(str(heading[-1] if heading else found["source"].rsplit("/", 1)[-1]), 80)


CHAPTER = Chapter(
    "documents",
    "An answer with sources, and an “I don't know”",
    [
        "A small model writes what is likely, true or not. So step 3 looks first, grades what it found, lets the model "
        "write, and then asks of every sentence which span of which source it stands on.",
        "What stands on nothing is withdrawn. If nothing is left, the answer is “I don't know”, with the reason.",
    ],
    ["make step3", '.venv/bin/python -m step3_rag ask "what is a thundersnow" --collection encyclopaedia --trace'],
    perform,
)
