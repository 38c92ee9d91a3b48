"""Other words for a question: when what was found is not good enough, and when a follow-up leans on what was said.

First the titles of the nearest passages are put beside the question's words (pseudo-relevance feedback: Rocchio, 1971).
That needs no model and gives the same on every machine. What it is worth is measured with the model's part
(results/answers_*.json, the arm "… + rewriting"): as many questions are declined with it as without.

Then the model is asked. One of 135 M parameters answers, repeats or wanders off when it should rewrite, so what it
writes is a proposal, taken only when it still shares the question's words and keeps its numbers. It may be a guessed
answer rather than another question. That may still find the real one (Gao et al., "Precise Zero-Shot Dense Retrieval
without Relevance Labels", 2022), and the trace says which it was. No query is searched twice.

    python -m pytest tests/step3/test_rewriting.py
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.foreign_text import unmarked
from step3_rag.chat_model import ChatModel, model_errors
from step3_rag.lexical import STOPWORDS, words
from step3_rag.passages import Hit

REWRITE_TOKENS = 48
LONGEST = 40  # words of a query; what is longer is an essay, not a question
SHARED = 0.5  # share of the question's words that a rewrite keeps
TITLES = 3

REWRITE = (
    "Rewrite this question in other words, so that a search finds more. Reply with the question only.\n\nQuestion: "
)
STANDALONE = (
    "Earlier question: {earlier}\nAnswer: {answer}\nNext question: {question}\n\n"
    "Write the next question so that it can be understood alone: replace words like it, they or there by what they "
    "mean. Reply with the question only."
)


@dataclass(frozen=True)
class Rewriting:
    """query: what to search. way: how it came about, for the trace. refused: what the model proposed, if not taken."""

    query: str
    way: str
    refused: str = ""


def next_query(model: ChatModel, question: str, nearest: Sequence[Hit], tried: Sequence[str]) -> Rewriting | None:
    """Return another query for a question; None when there is none that was not tried.

    nearest: passages found so far, best first; their titles widen the query. tried: the question and all queries since.
    Raises UserError when the endpoint fails.
    """
    done = {"", *(_plain(query) for query in tried)}
    widened = _widened(question, nearest)
    if len(tried) == 1 and _plain(widened) not in done:
        return Rewriting(widened, "with the titles found")
    proposal = _ask(model, REWRITE + unmarked(question))
    if _plain(proposal) not in done and faithful(proposal, question):
        return Rewriting(proposal, "in other words" if proposal.endswith("?") else "a guessed answer")
    for query, way in ((keywords(question), "its words alone"), (widened, "with the titles found")):
        if _plain(query) not in done:
            return Rewriting(query, way, proposal)
    return None


def faithful(rewrite: str, question: str) -> bool:
    """Whether a rewrite still asks the question: shares half of its words, keeps its numbers, is one short line.

    One that begins to speak of the question or its answer ("The answer to this question is …") is about the task.
    """
    before, after = set(words(question)), set(words(rewrite))
    return (
        not {"question", "answer"} & (after - before)
        and 0 < len(rewrite.split()) <= LONGEST
        and "\n" not in rewrite
        and bool(before)
        and len(before & after) >= SHARED * len(before)
        and _numbers(question) <= _numbers(rewrite)
    )


def keywords(question: str) -> str:
    """Return the question's words as they are written, without the common ones."""
    return " ".join(word for word in re.findall(r"\w+(?:['’.-]\w+)*", question) if word.casefold() not in STOPWORDS)


def _widened(question: str, nearest: Sequence[Hit]) -> str:
    """The question's words and the titles of the nearest passages."""
    titles = [hit.passage.heading_path[-1] if hit.passage.heading_path else "" for hit in nearest]
    titles = [title or Path(hit.passage.source).stem for title, hit in zip(titles, nearest, strict=True)]
    return " ".join([keywords(question), *list(dict.fromkeys(titles))[:TITLES]]).strip()


# -- follow-up questions ------------------------------------------------------------------------------------------

_LEANS = re.compile(
    r"\b(?:it|its|they|them|their|he|him|his|she|her|hers|this|that|these|those|there|then|one|ones|former|latter|same)\b"
    r"|^\W*(?:and|but|or|so|what about|how about|why|where|when|how|who)\W*(?:\w+\W*)?$",
    re.IGNORECASE,
)


def standalone(model: ChatModel, question: str, history: Sequence[tuple[str, str]]) -> Rewriting:
    """Return a follow-up question so that it can be understood alone.

    history: (question, answer) of the conversation, oldest first; questions as they were made stand-alone.
    A question that leans on nothing, or has nothing before it, stays as it is. What the model proposes is taken when it
    keeps the question's words and takes new ones from the conversation only; otherwise the words of the question
    before are put beside it. Raises UserError when the endpoint fails.
    """
    if not history or not leans(question):
        return Rewriting(question, "stands alone")
    earlier, answer = history[-1]
    asked = STANDALONE.format(earlier=unmarked(earlier), answer=unmarked(answer), question=unmarked(question))
    proposal = _ask(model, asked)
    own, context = set(words(question)), set(words(f"{earlier} {answer}"))
    new = set(words(proposal)) - own
    if (not own or faithful(proposal, question)) and new and new <= context and len(proposal.split()) <= LONGEST:
        return Rewriting(proposal, "made stand-alone")
    topic = keywords(earlier)
    if not topic:
        return Rewriting(question, "nothing to lean on", proposal)
    return Rewriting(f"{question} ({topic})", "with the words of the question before", proposal)


def leans(question: str) -> bool:
    """Whether a question seems to lean on an earlier one: it has a pronoun, or no word of its own to look for."""
    return bool(_LEANS.search(question)) or not words(question)


# -- the model's proposal --------------------------------------------------------------------------------------------


def _ask(model: ChatModel, text: str) -> str:
    """The first line of the model's reply, without a label or quotation marks around it."""
    with model_errors():
        reply = model.chat.invoke([{"role": "user", "content": text}], max_tokens=REWRITE_TOKENS, temperature=0.0)
    content = reply.content if isinstance(reply.content, str) else ""
    line = next((line for line in content.splitlines() if line.strip()), "")
    line = re.sub(r"^\s*(?:(?:re)?(?:written|phrased)?\s*(?:next )?question)\s*:\s*", "", line, flags=re.IGNORECASE)
    return line.strip().strip("\"'“”*` ")


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:[.,]\d+)*", text))
