"""Is this passage relevant to this question? BoolQ's dev part, each question with its own passage and with the best
one that BM25 finds elsewhere.

What step 3 asks of every passage that it retrieves. `by_similarity` is the opponent that costs nothing: the embedding
model that found the passage in the first place.
"""

from collections.abc import Sequence

from step4_finetune.evaluation.task import Answer, Item, Task
from step4_finetune.evaluation.tasks.graded import held_out_task


def task(limit: int | None = None) -> Task:
    """At most `limit` held-out pairs of question and passage. Raises what grader_data.held_out raises."""
    return held_out_task("relevant", limit)


def by_similarity(items: Sequence[Item]) -> list[Answer]:
    """Grade by the cosine of question and passage, moved from [-1, 1] to [0, 1]: a column without a language model.

    It ranks; as a probability it means nothing, so look at its AUROC and not at its accuracy or calibration.
    """
    from shared.embeddings import load_embedder

    embedder = load_embedder()
    questions = embedder.encode([item.gold.question for item in items])
    passages = embedder.encode([item.gold.passage for item in items])
    cosines = (questions * passages).sum(axis=1).tolist()
    return [
        Answer(item.id, item.digest, text="(similarity)", probability=min(1.0, max(0.0, (1 + cosine) / 2)))
        for item, cosine in zip(items, cosines, strict=True)
    ]
