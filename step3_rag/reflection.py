"""The reflection graph: look, judge what was found, look again, write, judge what was written, or say "I don't know".

    route ─ retrieve ─ grade ─ generate ─ cite ─ check ─ answer
      │        │         │ ╲_ rewrite → retrieve   │ ╲_ generate again, or rewrite → retrieve
      │        └─────────┴────── abstain ──────────┘
      └─ small_talk

A node is a pure function: the state and the run's tools in, a change of the state out, with the outcome that names the
edge to take. The edges are data (EDGES in answers.py), and LangGraph walks them. Loops are bounded by two numbers in
the state that only ever fall, `rewrites_left` and `answers_left`; every path ends (property test over all gradings).
After Asai et al., "Self-RAG", 2023, and Yan et al., "Corrective Retrieval Augmented Generation", 2024, with graders
that need no training in place of their trained critics.

    for event in run("who wrote the first compiler", resources, Reflection()): ...
    python -m step3_rag ask "who wrote the first compiler" --trace
    python -m pytest tests/step3/test_reflection.py
"""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypedDict

from shared.errors import UserError
from shared.grading import Task
from step3_rag.answers import EDGES, NODES, Answer, Event, Sentence, Step, Token
from step3_rag.citations import cite as find_citations
from step3_rag.generation import build_prompt, chat, write
from step3_rag.graders import DEFAULT_GRADER, Case, Thresholds, answers, load_thresholds, passage_text
from step3_rag.passages import Hit, Passage
from step3_rag.rerank import DEFAULT_RERANKER
from step3_rag.resources import Resources
from step3_rag.retrieval import RETRIEVERS, search
from step3_rag.rewriting import next_query
from step3_rag.watching import watch

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph
    from langgraph.runtime import Runtime

__all__ = ["NAIVE", "Reflection", "Resources", "build", "run"]


@dataclass(frozen=True)
class Reflection:
    """How to answer; the fields are the switches of the ablation.

    k: passages that are retrieved, and at most written from. retrievers, reranker: as retrieval.search takes them.
    routing: ask the router first. grader: who grades, a name in Resources.graders; None: nobody, what was found is
    good. thresholds: None takes the grader's calibrated ones. max_rewrites: other queries searched, 0 switches
    rewriting off. checking: cite and check what was written. max_regenerations: answers written after the first.
    """

    k: int = 5
    retrievers: Sequence[str] = RETRIEVERS
    reranker: str | None = DEFAULT_RERANKER
    routing: bool = True
    grader: str | None = DEFAULT_GRADER
    thresholds: Thresholds | None = None
    max_rewrites: int = 2
    checking: bool = True
    max_regenerations: int = 1

    def __post_init__(self) -> None:
        if self.k < 1 or self.max_rewrites < 0 or self.max_regenerations < 0:
            raise UserError("k must be at least 1, and the numbers of rewrites and regenerations at least 0")
        if self.checking and self.grader is None:
            raise UserError("checking an answer needs a grader")

    @property
    def longest(self) -> int:
        """Nodes on the longest path: route and an end, and what each rewrite and each answer can cost."""
        return 2 + 2 + 3 * self.max_rewrites + 3 * (1 + self.max_regenerations)


NAIVE = Reflection(reranker=None, routing=False, grader=None, max_rewrites=0, checking=False, max_regenerations=0)


class State(TypedDict, total=False):
    """What is known so far. Nodes never change it; they return what is to be replaced."""

    question: str
    route: str
    tried: tuple[str, ...]  # queries, the question first; the last one is searched next
    rewrites_left: int
    answers_left: int
    found: tuple[Hit, ...]  # all passages that any query found, the best first once they are graded
    grades: Mapping[str, float]  # passage id → how relevant to the question
    kept: tuple[Hit, ...]  # the passages to write from, best first
    text: str  # the answer last written
    sentences: tuple[Sentence, ...]  # its sentences, with citations
    dropped: int
    tokens: int
    abstained: bool
    reason: str  # why there is no answer, or none that was checked
    outcome: str  # of the last node: the edge to take
    detail: Mapping[str, Any]  # of the last node, for people


@dataclass(frozen=True)
class Context:
    """What a node may use. emit: tells whoever is watching, and raises when nobody is."""

    resources: Resources
    settings: Reflection
    thresholds: Thresholds
    emit: Callable[[Event], None]

    def grade(self, task: Task, cases: Sequence[Case]) -> list[float]:
        """Ask the run's grader; none for no cases."""
        return self.resources.graders[self.settings.grader or ""](task, cases) if cases else []


# -- the nodes -------------------------------------------------------------------------------------------------------


def route(state: State, context: Context) -> State:
    """Is this a question for the collection? By similarity to labelled examples; no model is asked."""
    if not context.settings.routing:
        return {"route": "collection", "outcome": "collection", "detail": {"router": "off"}}
    found = context.resources.router.route(state["question"], context.resources.encoder)
    reason = "the question does not seem to be about the collection" if found.name == "out_of_scope" else ""
    detail = {"similarity": round(found.similarity, 3)}
    return {"route": found.name, "reason": reason, "outcome": found.name.replace("_", " "), "detail": detail}


def retrieve(state: State, context: Context) -> State:
    """Search the latest query, and put what is new behind what was found before."""
    settings, resources = context.settings, context.resources
    reranker = resources.rerankers[settings.reranker] if settings.reranker else None
    query, known = state["tried"][-1], state["found"]
    hits = search(
        query, settings.k, resources.index, resources.encoder, retrievers=settings.retrievers, reranker=reranker
    )
    ids = {hit.passage.id for hit in known}
    found = (*known, *(hit for hit in hits if hit.passage.id not in ids))
    detail = {"query": query, "found": len(hits), "new": len(found) - len(known)}
    if not found:
        return {"reason": "nothing was found", "outcome": "nothing found", "detail": detail}
    if settings.grader is None:
        return {"found": found, "kept": found, "outcome": "found, not graded", "detail": detail}
    return {"found": found, "outcome": "found", "detail": detail}


def grade(state: State, context: Context) -> State:
    """Keep the passages that are relevant; is the question answerable from one of them? If not, it is put anew.

    Graded is against the question as it was asked, whichever query found the passage.
    """
    question, limits = state["question"], context.thresholds
    cases = {hit.passage.id: Case(passage_text(hit.passage), question) for hit in state["found"]}
    new = [name for name in cases if name not in state["grades"]]
    graded = context.grade("relevant", [cases[name] for name in new])
    grades = {**state["grades"], **dict(zip(new, graded, strict=True))}
    best = sorted(state["found"], key=lambda hit: -grades[hit.passage.id])
    kept = tuple(hit for hit in best if grades[hit.passage.id] >= limits.relevant)[: context.settings.k]
    answerable = max(context.grade("answerable", [cases[hit.passage.id] for hit in kept]), default=0.0)

    change: State = {"grades": grades, "kept": kept, "found": tuple(best)}
    change["detail"] = {
        "relevant": [round(grades[hit.passage.id], 3) for hit in best],
        "kept": len(kept),
        "answerable": round(answerable, 3),
        "thresholds": {"relevant": limits.relevant, "answerable": limits.answerable},
    }
    if kept and answerable >= limits.answerable:
        return {**change, "outcome": "answerable"}
    top = grades[best[0].passage.id]
    change["reason"] = (
        f"the passages found do not seem to answer it (graded {answerable:.2f}, needed {limits.answerable:.2f})"
        if kept
        else f"no passage found is relevant enough (the best is graded {top:.2f}, needed {limits.relevant:.2f})"
    )
    return {**change, "outcome": "not good enough" if state["rewrites_left"] else "rewrites used up"}


def rewrite(state: State, context: Context) -> State:
    """Say the question in other words, or widen it. No query is searched twice."""
    left = state["rewrites_left"] - 1
    other = next_query(context.resources.model, state["question"], state["found"], state["tried"])
    if other is None:
        return {"rewrites_left": left, "outcome": "no other words", "detail": {}}
    detail = {"query": other.query, "way": other.way} | ({"refused": other.refused} if other.refused else {})
    tried = (*state["tried"], other.query)
    return {"tried": tried, "rewrites_left": left, "outcome": "new query", "detail": detail}


def generate(state: State, context: Context) -> State:
    """Write an answer from the passages kept; it streams while it is written."""
    settings, model = context.settings, context.resources.model
    attempt = 1 + settings.max_regenerations - state["answers_left"]
    if attempt:
        context.emit(Token("", reset=True))
    prompt = build_prompt(model, state["question"], _passages(state), attempt)
    written = write(model, prompt.messages, lambda text: context.emit(Token(text)), attempt)
    remarks = {"remarks": prompt.remarks} if prompt.remarks else {}
    change: State = {
        "kept": state["kept"][: prompt.passages],
        "text": written.text,
        "tokens": state["tokens"] + written.tokens,
        "answers_left": state["answers_left"] - 1,
        "detail": {"attempt": attempt + 1, "passages": prompt.passages, "tokens": written.tokens} | remarks,
    }
    if not written.text:
        return {**change, "reason": "the model wrote nothing", "outcome": "nothing written"}
    if not settings.checking:
        return {**change, "reason": "neither cited nor checked", "outcome": "written, not checked"}
    return {**change, "outcome": "written"}


def cite(state: State, context: Context) -> State:
    """Find what supports each sentence; a citation that does not is dropped, a sentence without any is withdrawn."""
    question = state["question"]

    def support(pairs: Sequence[tuple[Passage, str]]) -> list[float]:
        return context.grade("grounded", [Case(passage_text(passage), question, text) for passage, text in pairs])

    cited = find_citations(state["text"], question, _passages(state), support, context.thresholds.grounded)
    kept = tuple(sentence for sentence in cited.sentences if sentence.citations)
    withdrawn = [sentence.text for sentence in cited.sentences if not sentence.citations]
    detail = {"cited": len(kept), "withdrawn": withdrawn, "dropped": cited.dropped}
    dropped = state["dropped"] + cited.dropped
    return {"text": cited.text, "sentences": kept, "dropped": dropped, "outcome": "cited", "detail": detail}


def check(state: State, context: Context) -> State:
    """Does the answer stand on the passages, and does what stands answer the question? If not: again, or elsewhere."""
    if not state["sentences"]:
        reason = "nothing that was written stands on the passages found"
        outcome = "not grounded" if state["answers_left"] else "attempts used up"
        return {"reason": reason, "outcome": outcome, "detail": {"grounded": False}}
    grader, limit = context.resources.graders[context.settings.grader or ""], context.thresholds.answers
    quotes = " ".join(dict.fromkeys(sentence.citations[0].quote for sentence in state["sentences"]))
    grade = answers(grader, state["question"], state["text"], quotes)
    detail = {"grounded": True, "answers": round(grade, 3), "threshold": limit}
    if grade >= limit:
        return {"reason": "", "outcome": "supported", "detail": detail}
    reason = f"what was written does not answer the question (graded {grade:.2f}, needed {limit:.2f})"
    again = state["answers_left"] and state["rewrites_left"]
    return {"reason": reason, "outcome": "not an answer" if again else "attempts used up", "detail": detail}


def answer(state: State, context: Context) -> State:
    """Give the answer as it stands."""
    return {"outcome": "done", "detail": {"sentences": len(state["sentences"]), "reason": state["reason"]}}


def abstain(state: State, context: Context) -> State:
    """Say that there is no answer, and why."""
    reason = state["reason"]
    text = f"I don't know: {reason}."
    return {"text": text, "sentences": (), "abstained": True, "outcome": "done", "detail": {"reason": reason}}


def small_talk(state: State, context: Context) -> State:
    """Answer without looking anything up."""
    written = chat(context.resources.model, state["question"], lambda text: context.emit(Token(text)))
    text, reason = written.text or "(The model wrote nothing.)", "small talk: nothing was looked up"
    return {"text": text, "tokens": written.tokens, "reason": reason, "outcome": "done", "detail": {}}


def _passages(state: State) -> list[Passage]:
    return [hit.passage for hit in state["kept"]]


# -- the graph ---------------------------------------------------------------------------------------------------------

_NODES: Mapping[str, Callable[[State, Context], State]] = {
    "route": route,
    "small_talk": small_talk,
    "retrieve": retrieve,
    "grade": grade,
    "rewrite": rewrite,
    "generate": generate,
    "cite": cite,
    "check": check,
    "answer": answer,
    "abstain": abstain,
}


@cache
def build() -> "CompiledStateGraph[State, Context, State, State]":
    """Return the graph of NODES and EDGES, compiled once per process."""
    from langgraph.graph import END, START, StateGraph

    graph = StateGraph(State, context_schema=Context)
    graph.add_edge(START, "route")
    for name in NODES:
        graph.add_node(name, _told(name, _NODES[name]))
        edges: dict[Hashable, str] = {outcome: target for node, outcome, target in EDGES if node == name}
        graph.add_conditional_edges(name, lambda state: state["outcome"], edges or {"done": END})
    return graph.compile()


def _told(name: str, node: Callable[[State, Context], State]) -> Any:  # the protocols of LangGraph's nodes are private
    """The node as LangGraph calls it; whoever is watching is told how it ended."""

    def told(state: State, runtime: "Runtime[Context]") -> State:
        begun = time.perf_counter()
        change = node(state, runtime.context)
        step = Step(name, change["outcome"], change["detail"], time.perf_counter() - begun)
        runtime.context.emit(step)
        return change

    return told


def run(question: str, resources: Resources, settings: Reflection = Reflection()) -> Iterator[Event]:
    """Answer a question; yield what happens as it happens, the Answer last.

    Leaving the loop early, by Ctrl-C too, stops the work at its next token or node and cancels the model's request.
    Raises UserError for an empty question, an unknown grader or reranker, and when the endpoint or the index fails.
    """
    if not question.strip():
        raise UserError("the question is empty")
    for name, loaded in ((settings.grader, resources.graders), (settings.reranker, resources.rerankers)):
        if name is not None and name not in loaded:
            raise UserError(f"{name!r} is not loaded; there are {', '.join(loaded) or 'none'}")
    thresholds = settings.thresholds or load_thresholds(settings.grader or DEFAULT_GRADER)
    start: State = {
        "question": question, "route": "", "tried": (question,), "rewrites_left": settings.max_rewrites,
        "answers_left": 1 + settings.max_regenerations, "found": (), "grades": {}, "kept": (), "text": "",
        "sentences": (), "dropped": 0, "tokens": 0, "abstained": False, "reason": "",
    }  # fmt: skip

    def work(emit: Callable[[Event], None]) -> None:
        begun = time.perf_counter()
        context = Context(resources, settings, thresholds, emit)
        # One more than the longest path: a bound that did not hold would be an error, not a silent end.
        end = build().invoke(start, {"recursion_limit": settings.longest + 1}, context=context)
        emit(
            Answer(
                question=question,
                text=end["text"],
                sentences=end["sentences"],
                abstained=end["abstained"],
                reason=end["reason"],
                nearest=(end["kept"] or end["found"])[: settings.k],
                dropped_citations=end["dropped"],
                route=end["route"],
                rewrites=end["tried"][1:],
                tokens=end["tokens"],
                seconds=time.perf_counter() - begun,
            )
        )

    return watch(work)
