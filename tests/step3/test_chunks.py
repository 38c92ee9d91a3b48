"""step3_rag/chunks.py: whatever the text, a span gives exactly its passage, nothing is lost, nothing is too long.

python -m pytest tests/step3/test_chunks.py
"""

from itertools import pairwise

import pytest
from fake_encoder import FakeEncoder
from hypothesis import example, given
from hypothesis import strategies as st

from step3_rag.chunks import MAX_CHARACTERS, passages_of
from step3_rag.encoder import Encoder, TextEncoder
from step3_rag.formats import Document, html, markdown, plain, restructured_text, source_code
from step3_rag.passages import Passage

ENCODER = FakeEncoder(max_tokens=40)
# Pieces that texts are made of: structure of every format, long runs, other alphabets, characters outside the BMP.
PIECES = st.sampled_from(
    ["word ", "two words. ", "# Title\n", "## Sub\n", "Title\n=====\n", "\n\n", "\n", "\r\n", "def f(x):\n    pass\n",
     "class A:\n", "    def g(self): ...\n", "<h1>One</h1>", "<p>text", "</p>", "```\n# no heading\n```\n", "日本語。",
     "é", "🙂", "\t", "  ", "x" * 150, "a.b,c;" * 40, "lorem ipsum dolor sit amet " * 30, "\u2028", "\x1c", "…”  ",
     "- item\n"]
)  # fmt: skip
# Its first passage lies under the short title; the overlap of the second under the long one, which leaves it no room.
LONG_TITLE = (
    "word word " + "two words. " * 4 + "def f(x):\n    pass\n    def g(self): ...\nTitle\n=====\n# Title\nword "
)
texts = st.lists(PIECES, max_size=25).map("".join)
FORMATS = [plain, markdown, restructured_text, source_code, html]


def check(document: Document, passages: list[Passage], encoder: TextEncoder) -> None:
    """The promises of passages_of, for any document."""
    covered = bytearray(len(document.text))
    for passage in passages:
        assert passage.text == document.text[passage.start : passage.end]
        assert passage.text == passage.text.strip() != ""
        assert len(passage.text) <= MAX_CHARACTERS
        assert len(encoder.token_spans(passage.indexed_text)) <= encoder.max_tokens - encoder.special_tokens
        covered[passage.start : passage.end] = b"\1" * len(passage.text)
    lost = [character for character, seen in zip(document.text, covered, strict=True) if not seen]
    assert not "".join(lost).strip()
    assert len({passage.id for passage in passages}) == len(passages)
    assert all(a.start < b.start and a.end < b.end for a, b in pairwise(passages))


@pytest.mark.parametrize("read", FORMATS, ids=lambda read: read.__name__)
@given(text=texts)
@example(text=LONG_TITLE)
def test_spans_are_exact_and_complete_for_any_text(read, text: str) -> None:  # type: ignore[no-untyped-def]
    document = read(text)
    for heading in document.headings:
        assert 0 <= heading.start <= heading.end <= len(document.text)
    check(document, passages_of("/s", document, ENCODER), ENCODER)


@given(st.text(max_size=400))
def test_spans_are_exact_for_arbitrary_unicode(text: str) -> None:
    document = plain(text)
    check(document, passages_of("/s", document, ENCODER), ENCODER)


NOTES = """Before any heading.

# Guide

## Limits

A passage about limits.

## Empty

## Costs

First sentence here. """ + " ".join(f"Sentence number {n} goes on." for n in range(30))


def test_headings_divide_and_name() -> None:
    passages = passages_of("/notes.md", markdown(NOTES), ENCODER)
    assert passages[0].text == "Before any heading."
    assert passages[0].heading_path == ()
    assert passages[1].text == "# Guide\n\n## Limits\n\nA passage about limits."
    assert passages[1].heading_path == ("Guide", "Limits")
    assert passages[1].context == ""  # its own text says it all
    # A heading without text opens the next passage, which bears the name of the last heading it opens with.
    assert passages[2].text.startswith("## Empty\n\n## Costs\n\nFirst sentence here.")
    assert passages[2].heading_path == ("Guide", "Costs")
    assert passages[2].context == "Guide"
    for later in passages[3:]:
        assert later.heading_path == ("Guide", "Costs")
        assert later.context == "Guide > Costs"
        assert later.indexed_text == f"Guide > Costs\n\n{later.text}"


def test_a_long_section_is_cut_at_sentences_with_overlap() -> None:
    passages = passages_of("/notes.md", markdown(NOTES), ENCODER)[2:]
    assert len(passages) > 3
    for before, after in pairwise(passages):
        assert before.text.endswith(".")
        assert before.start < after.start < before.end  # they share at least one sentence …
        assert after.text.startswith("Sentence")  # … and begin with one
        shared = ENCODER.token_spans(before.text[after.start - before.start :])
        assert len(shared) <= ENCODER.max_tokens // 4


def test_ids_depend_on_what_is_said_and_where_from_but_not_on_the_place_in_the_file() -> None:
    passages = passages_of("/a.md", markdown(NOTES), ENCODER)
    assert [p.id for p in passages] == [p.id for p in passages_of("/a.md", markdown(NOTES), ENCODER)]
    moved = passages_of("/a.md", markdown("# New\n\nfirst\n\n" + NOTES.replace("Before", "# Old\n\nBefore")), ENCODER)
    assert {p.id for p in passages[1:]} <= {p.id for p in moved}
    assert not {p.id for p in passages} & {p.id for p in passages_of("/b.md", markdown(NOTES), ENCODER)}


def test_the_same_text_twice_gets_two_ids() -> None:
    text = "# A\n\nsame\n\n# A\n\nsame\n"
    first, second = passages_of("/a.md", markdown(text), ENCODER)
    assert first.text == second.text
    assert first.id != second.id


def test_deep_titles_leave_room_for_the_text() -> None:
    text = "".join(f"{'#' * n} {'very ' * 12}long title {n}\n\n" for n in range(1, 7)) + "word " * 200
    encoder = FakeEncoder(max_tokens=128)
    passages = passages_of("/a.md", markdown(text), encoder)
    check(markdown(text), passages, encoder)
    assert passages[-1].context.endswith("long title 6")
    assert "long title 1" not in passages[-1].context  # the innermost titles are kept


def test_methods_name_what_follows_without_dividing() -> None:
    code = "class Store:\n" + "".join(f"    def method_{n}(self):\n        return {n}\n" for n in range(20))
    passages = passages_of("/s.py", source_code(code), ENCODER)
    assert len(passages) > 2
    assert passages[-1].heading_path[0] == "class Store"
    assert passages[-1].context.startswith("class Store > def method_")


def test_a_huge_section_takes_linear_time() -> None:
    """Two megabytes in one section: a copy of the rest per passage would take minutes."""
    text = "A sentence of a few words. " * 75_000
    assert len(passages_of("/s", plain(text), FakeEncoder(max_tokens=256))) > 1500


@pytest.mark.real
def test_minilm_never_sees_more_than_it_reads() -> None:
    encoder = Encoder()
    for read, text in [(markdown, NOTES * 3), (plain, "x" * 5000 + " naïve 日本語。" * 400), (plain, "a1b2/" * 2000)]:
        document = read(text)
        passages = passages_of("/s", document, encoder)
        check(document, passages, encoder)
        assert max(encoder._embedder.count_tokens([p.indexed_text for p in passages])) <= 256
