"""From events to markup, without a browser: all is escaped, every span is where it says, the graph lights up.

    python -m pytest tests/step3/test_page_markup.py

What a browser makes of it: test_page.py.
"""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step3_rag.answers import EDGES, ENDS, NODES, Answer, Citation, Event, Sentence, Step, Token
from step3_rag.page_markup import Turn, advance, answer, cards, decisions, past, progress
from step3_rag.page_trace import graph, running_node
from step3_rag.passages import Hit, Passage

NASTY = "</p><img src=x onerror=alert(1)><script>alert(2)</script> \"'`${1}{{x}} ![p](http://evil.invalid/p.png) &amp;"
SOURCE = "Before it.\n\nThe tower was finished in 1882. It still stands. " + "Much follows. " * 200
PASSAGE = Passage("p1", "/files/towers.md", ("Towers", "Eddystone"), 12, 60, SOURCE[12:60])
ALLOWED = re.findall(
    r"\S+",
    "section article h2 h3 p span b a div ul ol li dl dt dd blockquote mark details summary "
    "svg defs marker path g title rect text",
)


class Reader(HTMLParser):
    """Reads markup strictly: every tag known, closed in order, no attribute that runs or loads anything."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text = ""
        self.marked: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED
        self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "style")
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                assert (value or "").startswith("#")
                self.links.append((value or "")[1:])
        if tag == "mark":
            self.marked.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("rect", "path")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "mark" in self.open:
            self.marked[-1] += data


def citation(first: int, last: int, passage: Passage = PASSAGE, support: float = 0.9) -> Citation:
    return Citation(passage, first, last, support)


def answered(*sentences: Sentence, text: str | None = None, question: str = "When?", reason: str = "") -> Answer:
    said = " ".join(sentence.text for sentence in sentences) if text is None else text
    return Answer(question, said, sentences, False, reason, (Hit(PASSAGE, 0.5),), 0, "collection", (), 12, 1.5)


def declined(reason: str = "nothing relevant was found") -> Answer:
    nearest = (Hit(PASSAGE, 0.3), Hit(replace(PASSAGE, id="p2"), 0.2))
    return Answer("When?", f"I don't know: {reason}.", (), True, reason, nearest, 0, "collection", (), 0, 0.5)


def turn(*events: Event, question: str = "When?") -> Turn:
    found = Turn(1, question)
    for event in events:
        found = advance(found, event)
    return found


# --- events ---


def test_tokens_add_up_and_a_reset_withdraws_them() -> None:
    found = turn(Token("A "), Token("guess."), Token("", reset=True), Token("The "), Token("truth."))
    assert found.written == "The truth."
    assert found.running
    assert "The truth." in Reader(answer(found)).text


def test_progress_names_the_node_at_work() -> None:
    assert progress(turn()).startswith("route: ")
    assert progress(turn(Step("route", "collection"))) == f"retrieve: {NODES['retrieve']}"
    assert progress(turn(Step("route", "no such outcome"))) == "Working."
    assert progress(turn(answered())) == "The answer is complete."
    assert "no answer" in progress(turn(declined()))
    assert progress(replace(turn(), failure="The endpoint is gone.")) == "The endpoint is gone."


# --- the answer ---


def test_each_sentence_links_to_the_card_of_its_passage() -> None:
    other = replace(PASSAGE, id="p2", heading_path=())
    found = turn(
        answered(
            Sentence("It was finished in 1882.", (citation(12, 44),)),
            Sentence("It stands.", (citation(45, 60, other), citation(12, 44))),
        )
    )
    text, shown = Reader(answer(found)), Reader(cards(found, {PASSAGE.source: SOURCE}))
    assert text.links == ["turn1-source1", "turn1-source1", "turn1-source2"]
    assert [name for name in shown.ids if not name.endswith("-name")] == ["turn1-source1", "turn1-source2"]
    assert re.sub(r"\s+", " ", text.text).startswith("You asked: When?It was finished in 1882.1 It stands.12")


def test_words_between_the_sentences_are_kept() -> None:
    sentences = Sentence("One.", (citation(12, 20),)), Sentence("Two.", (citation(12, 20),))
    found = turn(answered(*sentences, text="So: One.\n\n- Two. The end."))
    assert "So: One.1\n\n- Two.1 The end." in Reader(answer(found)).text


def test_an_abstention_shows_its_reason_once_and_the_nearest_passages() -> None:
    found = turn(declined())
    assert Reader(answer(found)).text.count("nothing relevant was found") == 1
    shown = Reader(cards(found, {PASSAGE.source: SOURCE}))
    assert shown.text.startswith("Nearest passages, not cited")
    assert shown.marked == []
    assert len([name for name in shown.ids if not name.endswith("-name")]) == 2


def test_an_answer_that_was_not_checked_says_so() -> None:
    assert (
        "Neither cited nor checked."
        in Reader(answer(turn(answered(text="Yes.", reason="neither cited nor checked")))).text
    )


def test_a_follow_up_shows_how_it_was_understood() -> None:
    assert "understood as" not in answer(turn(answered(), question="When?"))
    assert "understood as: “When?”" in Reader(answer(turn(answered(), question="And when?"))).text


def test_a_failure_keeps_what_was_written() -> None:
    found = replace(turn(Token("The tower ")), failure="The endpoint's answer broke off.")
    text = Reader(answer(found)).text
    assert "The tower" in text
    assert "broke off" in text
    assert cards(found, {}) == ""


# --- the passages ---


@given(data=st.data())
def test_marks_are_exactly_the_cited_text(data: st.DataObject) -> None:
    """In the card and in the source, for any text and any spans, also overlapping ones."""
    source = data.draw(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\0", categories=["L", "P", "Zs", "S"]), min_size=1)
    )
    start = data.draw(st.integers(0, len(source) - 1))
    end = data.draw(st.integers(start + 1, len(source)))
    spans = data.draw(
        st.lists(
            st.tuples(st.integers(start, end), st.integers(start, end)).map(sorted).filter(lambda s: s[0] < s[1]),
            min_size=1,
        )
    )
    passage = Passage("p", "/f.txt", (), start, end, source[start:end])
    found = turn(answered(*(Sentence("So.", (citation(a, b, passage),)) for a, b in spans)))
    marked = {place for a, b in spans for place in range(a, b)}
    expected = "".join(source[place] for place in sorted(marked))
    reader = Reader(cards(found, {"/f.txt": source}))
    # Far apart, spans are shown in the card with all between them; each is there twice, card and source.
    assert "".join(reader.marked) == expected * 2


def test_the_source_shows_what_is_around_the_passage() -> None:
    found = turn(answered(Sentence("It was finished in 1882.", (citation(12, 44),))))
    markup = cards(found, {PASSAGE.source: SOURCE})
    text = Reader(markup).text
    assert "Before it." in text
    assert text.endswith(" …")
    assert len(text) < len(SOURCE)
    assert "/files/towers.md, characters 12 to 60" in text
    assert "Towers › Eddystone" in text
    assert "support 0.90" in text


def excerpt(source: str, quote: str) -> str:
    """What a card shows of a passage that is the whole source, where `quote` is cited."""
    passage = Passage("p", "/f.txt", (), 0, len(source), source)
    first = source.index(quote)
    markup = cards(turn(answered(Sentence("So.", (citation(first, first + len(quote), passage),)))), {})
    found = re.search(r"<blockquote>(.*)</blockquote>", markup, re.DOTALL)
    assert found
    return found[1]


def test_a_card_shows_the_paragraph_of_the_citation_cut_at_words() -> None:
    assert excerpt("Title\n\nIt stood. It fell.\n\nMore.", "It fell.") == "… It stood. <mark>It fell.</mark> …"
    assert excerpt("It fell.", "It fell.") == "<mark>It fell.</mark>"
    words = " ".join(f"word{n}" for n in range(200))
    shown = excerpt(words, "word100")
    assert shown.startswith("… word")
    assert shown.endswith(" …")
    assert set(re.sub("<.*?>|…", "", shown).split()) <= set(words.split())
    assert len(shown) < 400


@pytest.mark.parametrize("sources", [{}, {PASSAGE.source: "It is another file now."}])
def test_a_source_that_has_changed_is_not_quoted_from(sources: dict[str, str]) -> None:
    text = Reader(cards(turn(answered(Sentence("So.", (citation(12, 44),)))), sources)).text
    assert "The source has changed since" in text
    assert "It is another file" not in text


def test_nothing_foreign_becomes_markup() -> None:
    passage = Passage(NASTY, f"/{NASTY}", (NASTY,), 0, len(NASTY), NASTY)
    found = turn(
        Step("route", NASTY, {NASTY: NASTY, "list": [NASTY, {NASTY: 1}]}),
        Token(NASTY),
        question=NASTY,
    )
    running = answer(found) + decisions(found)
    found = advance(found, answered(Sentence(NASTY, (citation(0, 9, passage),)), question=NASTY + "?", reason=NASTY))
    done = answer(found) + cards(found, {passage.source: NASTY}) + past(found, {passage.source: NASTY})
    failed = answer(replace(found, failure=NASTY))
    for markup in (running, done, failed):
        reader = Reader(markup)  # asserts that only our own tags are there
        assert "<img src=x onerror=alert(1)>" in reader.text
        assert "http://evil.invalid/p.png" in reader.text


def test_marks_that_turn_the_writing_direction_are_visible() -> None:
    assert "\u202e" not in answer(turn(question="abc\u202edef"))


# --- the trace ---


def test_the_graph_shows_every_node_and_edge_once() -> None:
    markup = graph([], running=False, name="t")
    Reader(markup)
    assert sorted(re.findall(r'data-node="(\w+)"', markup)) == sorted(NODES)
    assert sorted(re.findall(r'data-edge="(\w+)-(\w+)"', markup)) == sorted((node, to) for node, _, to in EDGES)


def test_boxes_do_not_overlap_and_lie_in_the_picture() -> None:
    markup = graph([], running=False, name="t")
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)" role', markup).groups())  # type: ignore[union-attr]
    boxes = [
        tuple(map(int, box)) for box in re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', markup)
    ]
    assert len(boxes) == len(NODES)
    for x, y, w, h in boxes:
        assert x + w <= width
        assert y + h <= height
    for (x, y, w, h), (u, v, _, _) in pairwise(sorted(boxes)):
        assert abs(x - u) >= w or abs(y - v) >= h


def kinds(markup: str, what: str) -> dict[str, str]:
    """Node or edge → how it is drawn."""
    return {name: kind for kind, name in re.findall(rf'class="{what} (\w+)" data-{what}="([\w-]+)"', markup)}


def test_nodes_light_up_as_steps_come() -> None:
    steps = [Step("route", "collection"), Step("retrieve", "found"), Step("grade", "not good enough")]
    for count, now in enumerate(("route", "retrieve", "grade", "rewrite")):
        nodes = kinds(graph(steps[:count], running=True, name="t"), "node")
        assert [node for node, kind in nodes.items() if kind == "now"] == [now]
        assert {node for node, kind in nodes.items() if kind == "done"} == {step.node for step in steps[:count]}
    edges = kinds(graph(steps, running=True, name="t"), "edge")
    assert {edge for edge, kind in edges.items() if kind == "taken"} == {
        "route-retrieve",
        "retrieve-grade",
        "grade-rewrite",
    }


def test_a_node_that_ran_twice_says_so() -> None:
    steps = [
        Step("retrieve", "found"),
        Step("grade", "not good enough"),
        Step("rewrite", "new query"),
        Step("retrieve", "found"),
    ]
    assert "✓ retrieve ×2" in Reader(graph(steps, running=True, name="t")).text
    assert kinds(graph(steps, running=True, name="t"), "node")["grade"] == "now"
    assert "now" not in kinds(graph(steps, running=False, name="t"), "node").values()


@pytest.mark.parametrize(("node", "outcome", "to"), EDGES)
def test_every_edge_leads_on(node: str, outcome: str, to: str) -> None:
    assert running_node([Step(node, outcome)]) == to


def test_nothing_runs_after_an_end() -> None:
    assert {running_node([Step(end, "done")]) for end in ENDS} == {None}


def test_the_list_gives_every_decision_with_its_numbers() -> None:
    detail = {"relevant": [0.125, 0.5], "kept": 1, "thresholds": {"relevant": 0.25}, "grounded": True, "withdrawn": []}
    text = Reader(decisions(turn(Step("grade", "answerable", detail, 0.4)))).text
    for words in (
        "grade answerable 0.40 s",
        "relevant0.12; 0.50",
        "kept1",
        "thresholdsrelevant 0.25",
        "groundedyes",
        "withdrawnnone",
    ):
        assert words in text


def test_two_pictures_on_a_page_share_no_id() -> None:
    first = turn(answered(Sentence("So.", (citation(12, 44),))))
    second = replace(first, number=2)
    ids = Reader(past(first, {}) + answer(second) + cards(second, {}) + decisions(second)).ids
    assert len(ids) == len(set(ids))
