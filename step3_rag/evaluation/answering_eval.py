"""What is each part of answering worth? The same questions, the same k, one part more in each arm.

    python -m step3_rag eval answers --limit 20

Arm by arm, one question at a time: the wall time of a question is then what one person waits, and a passage's states
in the engine's prefix cache are from this arm's own work (the cache holds about the last dozen prompts).

A yes/no question is scored twice. As text: the answer must begin with the right word. As forced choice: the probability
of yes against no as the first word, after the prompt with the passages that the arm ended with, also where it
abstained; so it shows what the passages are worth, apart from what the model makes of them in words.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shared.grading import ALTERNATIVES, probability_of_yes
from step3_rag.answers import Answer, Step
from step3_rag.chat_model import ChatModel, model_errors
from step3_rag.chunks import RECIPE
from step3_rag.evaluation.datasets import Dataset, Question
from step3_rag.evaluation.journal import Outcome, measure, missing, path_of
from step3_rag.generation import build_prompt
from step3_rag.graders import DEFAULT_GRADER, WITHOUT_ADAPTER, load_thresholds
from step3_rag.reflection import NAIVE, Reflection, run
from step3_rag.rerank import DEFAULT_RERANKER
from step3_rag.resources import ADAPTER_FOLDER, Resources

BASELINE = "dense (naive RAG)"
FULL = "full reflection"
MODELS = ("llm", "adapter")  # graders that ask the chat model
# Of two idle laptop-class cores and the embedded model, alone: tokens read and written in a second.
READS, WRITES = 790, 230


def ablation(graders: Sequence[str]) -> dict[str, Reflection]:
    """Return arm → settings, the baseline first. All retrieve the same number of passages.

    graders: those that are loaded; they grade what the reranker that step 3 ships with brings to the top. The last two
    arms have the grader that it ships with, where it is among them.
    """
    default = DEFAULT_GRADER if DEFAULT_GRADER in graders else WITHOUT_ADAPTER
    full = Reflection(grader=default)
    found, name = replace(NAIVE, reranker=DEFAULT_RERANKER), f"fused + {DEFAULT_RERANKER}"
    arms = {
        BASELINE: replace(NAIVE, retrievers=("dense",)),
        "lexical": replace(NAIVE, retrievers=("lexical",)),
        "fused": NAIVE,
        name: found,
    }
    arms |= {f"{name} + {grader} grader": replace(found, grader=grader) for grader in graders}
    arms[f"{name} + {default} grader + rewriting"] = replace(found, grader=default, max_rewrites=full.max_rewrites)
    arms[FULL] = full
    return arms


def arms_for(dataset: Dataset, graders: Sequence[str]) -> dict[str, Reflection]:
    """The arms that can differ on a dataset: where abstaining is asked for, of those that never do the baseline."""
    arms = ablation(graders)
    if any(not question.answerable for question in dataset.questions):
        return {name: arm for name, arm in arms.items() if name == BASELINE or arm.grader is not None}
    return arms


def answer_one(question: Question, resources: Resources, settings: Reflection) -> Outcome:
    """Ask one question. Raises what reflection.run raises.

    An outcome has the answer's text and figures, `answerable`, the last grade that decided whether to answer (None in
    arms without a grader), and for yes/no questions `yes`, the forced choice.
    """
    answerable: float | None = None
    answer: Answer | None = None
    for event in run(question.text, resources, settings):
        if isinstance(event, Step) and event.node == "grade":
            answerable = event.detail["answerable"]
        elif isinstance(event, Answer):
            answer = event
    assert answer is not None  # run ends with one, or raises
    outcome = {
        "text": answer.text,
        "abstained": answer.abstained,
        "reason": answer.reason,
        "route": answer.route,
        "rewrites": list(answer.rewrites),
        "passages": [Path(hit.passage.source).name for hit in answer.nearest],
        "sentences": len(answer.sentences),
        "dropped": answer.dropped_citations,
        "answerable": answerable,
        "tokens": answer.tokens,
        "seconds": answer.seconds,
    }
    if set(question.answers) <= {"yes", "no"} and question.answers:
        outcome["yes"] = forced_choice(resources.model, question.text, answer) if answer.nearest else 0.5
    return outcome


def forced_choice(model: ChatModel, question: str, answer: Answer) -> float:
    """Return the probability of yes against no as the first word of an answer from the same passages.

    Raises UserError when the endpoint fails; 0.5 when it gives no log-probabilities.
    """
    prompt = build_prompt(model, question, [hit.passage for hit in answer.nearest])
    with model_errors():
        reply = model.chat.invoke(
            prompt.messages, max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=ALTERNATIVES
        )
    content = (reply.response_metadata.get("logprobs") or {}).get("content") or [{}]
    first = {entry["token"]: float(entry["logprob"]) for entry in content[0].get("top_logprobs") or []}
    return probability_of_yes(first) if first else 0.5


def header_of(dataset: Dataset, arm: str, settings: Reflection, resources: Resources) -> dict[str, Any]:
    """What is measured, everything that could change an answer: the journal's first line."""
    chosen = settings.thresholds or (load_thresholds(settings.grader) if settings.grader else None)
    asked = [build_prompt(resources.model, text, []).messages for text in ("Who?", "Is it?")]
    return {
        "measured": "answers",
        "dataset": dataset.name,
        "arm": arm,
        "settings": asdict(replace(settings, thresholds=chosen)),
        "prompts": asked,
        "documents": dataset.digest,
        "chunks": RECIPE,
        **models_of(resources, settings.grader),
    }


def models_of(resources: Resources, grader: str | None) -> dict[str, str]:
    """The models that an outcome depends on, for a journal's header; an adapter trained anew is another one."""
    found = {"model": str(getattr(resources.model.chat, "model_name", "")), "encoder": resources.encoder.name}
    weights = ADAPTER_FOLDER / "adapter_model.safetensors"
    if grader == "adapter" and weights.exists():
        found["adapter"] = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    return found


def measure_answers(
    dataset: Dataset,
    questions: Sequence[Question],
    resources: Resources,
    arms: dict[str, Reflection],
    folder: Path,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[Outcome]]:
    """Ask every arm every question; return arm → outcomes in the order of the questions.

    Raises what reflection.run and journal.measure raise.
    """
    results = {}
    for name, settings in arms.items():
        header = header_of(dataset, name, settings, resources)

        def one(question: Question, settings: Reflection = settings) -> Outcome:
            return answer_one(question, resources, settings)

        results[name] = measure(questions, one, path_of(folder, header), header, advance)
    return results


def estimate(
    dataset: Dataset,
    questions: Sequence[Question],
    resources: Resources,
    arms: dict[str, Reflection],
    folder: Path,
) -> float:
    """Return about how many seconds `measure_answers` still takes on two idle cores, counted in tokens.

    Each arm reads k passages and writes 60 tokens; a grader that is a model reads each passage once more for itself.
    0 when everything is there.
    """
    sample = list(dataset.documents.values())[:100]
    passage = sum(min(resources.model.count(text), resources.encoder.max_tokens) for text in sample) / len(sample) + 20
    seconds = 0.0
    for name, settings in arms.items():
        header = header_of(dataset, name, settings, resources)
        left = missing(questions, path_of(folder, header), header)
        read = settings.k * passage + 60
        read += settings.k * (passage + 60) if settings.grader in MODELS else 0
        attempts = 1.3 if settings.max_rewrites else 1.0  # some are rewritten, some written twice
        rerank = 0.3 if settings.reranker else 0.0
        seconds += left * (attempts * (read / READS + 60 / WRITES) + rerank)
    return seconds


def warm_up(question: Question, resources: Resources, arms: dict[str, Reflection]) -> None:
    """Ask once without counting: first calls compile, load and embed what later ones find ready."""
    for settings in (arms[BASELINE], arms[FULL]):
        _drain(run(question.text, resources, settings))


def _drain(events: Iterator[object]) -> None:
    for _ in events:
        pass
