"""Can a grader tell a question that its passage answers from one that only looks as if? On `unsolvable_questions`.

    python -m step3_rag eval abstention

Each grader sees each of the 300 questions with the passage that people wrote it about, so nothing but its judgement is
measured (what comes of it behind retrieval is in the answers table). Without any grader there is still the similarity
that retrieval has anyway: how near is the passage to the question? That is the row to beat.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from step3_rag.encoder import TextEncoder
from step3_rag.evaluation.answering_eval import models_of
from step3_rag.evaluation.datasets import Dataset, Question
from step3_rag.evaluation.journal import Outcome, measure, path_of
from step3_rag.graders import Case, Grader, embedding, load_thresholds
from step3_rag.resources import Resources

NO_GRADER = "no grader (similarity)"


def scorers(graders: Mapping[str, Grader], encoder: TextEncoder) -> dict[str, tuple[Callable[[Case], float], float]]:
    """Return name → (how a case is scored, from which score on it counts as answerable), the row to beat first."""
    similar = embedding(encoder)
    found: dict[str, tuple[Callable[[Case], float], float]] = {
        NO_GRADER: (lambda case: similar("relevant", [case])[0], load_thresholds("embedding").relevant)
    }
    for name, grader in graders.items():

        def score(case: Case, grader: Grader = grader) -> float:
            return grader("answerable", [case])[0]

        found[name] = (score, load_thresholds(name).answerable)
    return found


def measure_abstention(
    dataset: Dataset,
    questions: Sequence[Question],
    resources: Resources,
    folder: Path,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[Outcome]]:
    """Score every question with every grader; return name → outcomes {score, seconds} in the order of the questions.

    Raises what a grader and journal.measure raise.
    """
    results = {}
    for name, (score, _) in scorers(resources.graders, resources.encoder).items():

        def one(question: Question, score: Callable[[Case], float] = score) -> Outcome:
            begun = time.perf_counter()
            grade = score(Case(dataset.documents[question.source].strip(), question.text))
            return {"score": grade, "seconds": time.perf_counter() - begun}

        header = {
            "measured": "abstention",
            "arm": name,
            "dataset": dataset.name,
            "documents": dataset.digest,
            **models_of(resources, name),
        }
        results[name] = measure(questions, one, path_of(folder, header), header, advance)
    return results
