"""step3_rag/citations.py: sentences of any text, citations that give exactly what they quote, and what is dropped.

python -m pytest tests/step3/test_citations.py
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from collections_on_disk import make_pdf
from fake_encoder import FakeEncoder
from fake_index import passage
from hypothesis import given
from hypothesis import strategies as st

from step3_rag.chunks import passages_of
from step3_rag.citations import PROPOSED, SHOWN, Cited, cite, split
from step3_rag.documents import parse
from step3_rag.passages import Passage


def said(text: str) -> list[str]:
    return [text[start:end] for start, end, _ in split(text)]


def everything(pairs: Sequence[tuple[Passage, str]]) -> list[float]:
    return [1.0] * len(pairs)


# -- sentences -----------------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.sampled_from("ab C1.!?…。:;\"')]\n\t `~#|-*=(){}[]2,é\r\u2028"), max_size=200))
def test_spans_are_in_order_apart_trimmed_and_hold_every_character_that_is_not_blank(text: str) -> None:
    spans = split(text)
    for span in spans:
        assert text[span.start : span.end].strip() == text[span.start : span.end] != ""
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    outside = text
    for span in reversed(spans):
        outside = outside[: span.start] + outside[span.end :]
    assert not outside.strip()


def test_prose_is_cut_at_sentences_and_not_at_abbreviations() -> None:
    text = (
        'Dr. J. R. Smith paid $3.50 for no. 5 in the U.S. Army. He left! "Why?" she asked. It rose by approx. 5 %\n'
        "in Jan. 1990. It was 5 p.m. Then all slept... So did I. Who? 東京は首都。次の文。"
    )
    assert said(text) == [
        "Dr. J. R. Smith paid $3.50 for no. 5 in the U.S. Army.",
        "He left!",
        '"Why?"',
        "she asked.",
        "It rose by approx. 5 %\nin Jan. 1990.",
        "It was 5 p.m.",
        "Then all slept...",
        "So did I.",
        "Who?",
        "東京は首都。",
        "次の文。",
    ]
    assert said("The answer is no. Then they left. See no. 7.") == [
        "The answer is no.",
        "Then they left.",
        "See no. 7.",
    ]


def test_lists_headings_and_tables_are_cut_by_line() -> None:
    text = (
        "# Steps\nDo this:\n1. Open the door. Go in.\n2. Close\n   it again\n- then rest\n\n| a | b |\n|---|---|\n"
        "| 1 | 2 |\n\nEnd."
    )
    assert said(text) == [
        "# Steps",
        "Do this:",
        "1. Open the door.",
        "Go in.",
        "2. Close\n   it again",
        "- then rest",
        "| a | b |",
        "|---|---|",
        "| 1 | 2 |",
        "End.",
    ]


def test_code_stays_in_one_piece_up_to_a_blank_line() -> None:
    fenced = "Use this. It works.\n\n```python\nx = a[1]\n\nprint(x)  # done. Really.\n```\nThen go."
    assert said(fenced) == [
        "Use this.", "It works.", "```python\nx = a[1]\n\nprint(x)  # done. Really.\n```", "Then go."
    ]  # fmt: skip
    source = "def f(x):\n    return x.y  # one. Two.\n\nclass A:\n    b = 1\n"
    assert [(source[s.start : s.end], s.code) for s in split(source)] == [
        ("def f(x):\n    return x.y  # one. Two.", True),
        ("class A:\n    b = 1", True),
    ]
    assert said("```\nnever closed") == ["```\nnever closed"]


# -- citations -----------------------------------------------------------------------------------------------------

RIVER = "The Amber river is 300 km long. It rises in the Basalt hills. Salmon live in it."
TOWN = "Garnet is a town on the Amber river. It was founded in 1204."


def test_each_sentence_gets_the_span_that_shares_most_of_its_words() -> None:
    a, b = passage("a", RIVER, start=1000), passage("b", TOWN, start=5)
    cited = cite("The Amber is 300 km long. Garnet was founded in 1204.", "What is there?", [a, b], everything, 0.5)
    first, second = cited.sentences
    assert (first.citations[0].passage, first.citations[0].quote) == (a, "The Amber river is 300 km long.")
    assert (first.citations[0].start, first.citations[0].end) == (1000, 1031)
    assert (second.citations[0].passage, second.citations[0].quote) == (b, "It was founded in 1204.")
    assert cited.text == "The Amber is 300 km long. Garnet was founded in 1204."
    assert cited.dropped == 0


def test_what_is_not_supported_is_dropped_counted_and_withdrawn() -> None:
    def only_salmon(pairs: Sequence[tuple[Passage, str]]) -> list[float]:
        return [0.9 if "Salmon" in sentence else 0.4 for _, sentence in pairs]

    answer = "The Amber flows through Garnet. Salmon live in it.\n\nTrolls like turnips."
    cited = cite(answer, "What lives in the Amber?", [passage("a", RIVER), passage("b", TOWN)], only_salmon, 0.5)
    assert [bool(sentence.citations) for sentence in cited.sentences] == [False, True, False]
    assert cited.text == "Salmon live in it."
    assert cited.dropped == 2
    assert {c.support for c in cited.sentences[1].citations} == {0.9}
    assert cite(answer, "?", [passage("a", RIVER)], lambda pairs: [0.0] * len(pairs), 0.5).text == ""


def test_the_line_structure_of_what_is_left_stays() -> None:
    answer = "It is long:\n- The Amber is 300 km long.\n- Trolls.\n- Salmon live in it."
    cited = cite(answer, "The Amber?", [passage("a", RIVER)], everything, 0.5)
    assert cited.text == "It is long:\n- The Amber is 300 km long.\n- Salmon live in it."


def test_a_bare_yes_is_cited_by_the_words_of_the_question() -> None:
    cited = cite("Yes.", "Do salmon live in the Amber?", [passage("a", RIVER)], everything, 0.5)
    assert cited.sentences[0].citations[0].quote == "Salmon live in it."
    assert cite("Yes.", "Is it?", [passage("a", RIVER)], everything, 0.5).dropped == 1


def marked(answer: str, holds: str = "ab") -> Cited:
    def support(pairs: Sequence[tuple[Passage, str]]) -> list[float]:
        return [0.9 if p.id in holds else 0.1 for p, _ in pairs]

    return cite(answer, "What of the Amber?", [passage("a", RIVER), passage("b", TOWN)], support, 0.5)


def test_a_title_is_no_evidence() -> None:
    tipping = passage("a", "# Cow tipping\n\nCows are hard to tip.", titles=["Farms", "Cow tipping"])
    (sentence,) = cite("Cow tipping is real.", "Is cow tipping real?", [tipping], everything, 0.5).sentences
    assert [citation.quote for citation in sentence.citations] == ["Cows are hard to tip."]
    alone = passage("b", "# Cow tipping", titles=["Cow tipping"])
    assert cite("Cow tipping is real.", "Is cow tipping real?", [alone], everything, 0.5).text == ""


@pytest.mark.parametrize("answer", ["Garnet lies on the Amber [2].", "Garnet lies on the Amber. [2]"])
def test_markers_are_read_checked_and_taken_out(answer: str) -> None:
    cited = marked(answer)
    assert cited.text == "Garnet lies on the Amber."
    # Proposed first, although passage 1 is as sure.
    assert [c.passage.id for c in cited.sentences[0].citations] == ["b", "a"]
    assert cited.dropped == 0


def test_a_marker_that_does_not_hold_is_dropped_and_the_sentence_may_stand_on_another_passage() -> None:
    cited = marked("Garnet lies on the Amber [2].", holds="a")
    assert [c.passage.id for c in cited.sentences[0].citations] == ["a"]
    assert cited.dropped == 1
    assert marked("Garnet lies on the Amber [1, 7].").dropped == 1  # there is no passage 7
    assert marked("Garnet lies on the Amber [1-2][0].").dropped == 1
    assert marked("Garnet lies on the Amber [2].", holds="").dropped == 1


def test_brackets_that_are_no_markers_stay() -> None:
    assert marked("The Amber [sic] rises in the hills of 1204 [1999].").text.count("[") == 2
    code = "```\namber = river[1]\n```"
    assert marked(f"The Amber:\n\n{code}").sentences[-1].text == code


def test_the_grader_is_asked_about_few_passages_and_about_one_after_the_other() -> None:
    asked: list[tuple[str, str]] = []

    def support(pairs: Sequence[tuple[Passage, str]]) -> list[float]:
        asked.extend((p.id, sentence) for p, sentence in pairs)
        return [1.0] * len(pairs)

    passages = [passage(f"p{n}", f"Amber and basalt, number{n}.") for n in range(8)]
    cited = cite("Amber here. Basalt there.", "Amber?", passages, support, 0.5)
    assert len(asked) == 2 * PROPOSED
    assert [name for name, _ in asked] == sorted(name for name, _ in asked)
    assert all(len(sentence.citations) == SHOWN for sentence in cited.sentences)


# -- over every type of file -----------------------------------------------------------------------------------------

PROSE = "The Amber river is 300 km long. It rises in the Basalt hills — “naïve” 🙂 folk say. Salmon live in it."
FILES = {
    "a.md": f"# Rivers\n\n{PROSE}\n\n## More\n\n- Garnet was founded in 1204.\n- It has *two* bridges.\n",
    "a.rst": f"Rivers\n======\n\n{PROSE}\n\nMore\n----\n\nGarnet was founded in 1204.\n",
    "a.txt": f"{PROSE}\r\n\r\nGarnet was founded in 1204.\r\n",
    "a.html": f"<h1>Rivers</h1><p>{PROSE}</p><ul><li>Garnet was founded in 1204.</li></ul><script>x</script>",
    "a.py": f'"""{PROSE}"""\n\nGARNET = 1204  # Garnet was founded in 1204.\n\n\ndef amber():\n    return 300\n',
}


@pytest.mark.parametrize("name", [*FILES, "a.pdf"])
def test_offsets_give_exactly_the_quoted_text_in_every_type_of_file(name: str) -> None:
    if name == "a.pdf":
        data = make_pdf(["The Amber river is 300 km long.\nSalmon live in it.", "Garnet was founded in 1204."], [])
    else:
        data = FILES[name].encode()
    document = parse(Path(name), data)
    passages = passages_of(f"/docs/{name}", document, FakeEncoder(24))
    answer = "The Amber river is 300 km long. Garnet was founded in 1204. Salmon live in it."
    cited = cite(answer, "What is there?", passages, everything, 0.5)
    citations = [citation for sentence in cited.sentences for citation in sentence.citations]
    assert len(citations) >= 3
    for citation in citations:
        p = citation.passage
        assert p.start <= citation.start < citation.end <= p.end
        assert document.text[citation.start : citation.end] == citation.quote
    quotes = " ".join(citation.quote for citation in citations)
    assert all(fact in quotes for fact in ("300 km", "1204", "Salmon"))


@given(st.lists(st.text(alphabet="amber basalt.\n- ", min_size=1, max_size=60), min_size=1, max_size=4), st.text())
def test_citations_lie_in_their_passages_for_any_text(texts: list[str], answer: str) -> None:
    passages = [passage(str(n), text, start=n * 7) for n, text in enumerate(texts)]
    cited = cite(f"{answer} amber. Basalt?", "amber basalt", passages, everything, 0.5)
    at = 0
    for sentence in cited.sentences:
        for citation in sentence.citations:
            p = citation.passage
            assert p.start <= citation.start < citation.end <= p.end
            assert citation.quote == p.text[citation.start - p.start : citation.end - p.start] != ""
        if sentence.citations:
            at = cited.text.index(sentence.text, at) + len(sentence.text)
    assert at == len(cited.text)
