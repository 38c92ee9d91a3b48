"""Tool output is data: what becomes of tokens, secrets, broken characters and sheer length before a model reads it.

python -m pytest tests/step2/test_foreign_text.py
"""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.foreign_text import encodable
from step2_tool_calling.loop import READ_CHARACTERS, RESULT_CHARACTERS, as_data
from step2_tool_calling.redaction import redact

KEY = "sk-" + "abcDEF0123456789abcd"  # in two parts, so that scanners do not take it for one


@pytest.mark.parametrize(
    "token",
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|endoftext|>",
        "<tool_response>",
        "</tool_response>",
        "<tool_call>",
        "</tools>",
        "[INST]",
        "[/INST]",
        "[TOOL_RESULTS]",
        "<<SYS>>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<s>",
        "</s>",
        "<｜User｜>",
        "<bos>",
        "<eos>",
        "<think>",
        "</think>",
        "<function=f>",
        "<parameter=city>",
        "<TOOLCALL>",
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        "<invoke name=",
        "[AVAILABLE_TOOLS]",
        "[SYSTEM_PROMPT]",
        "[THINK]",
        "[gMASK]",
    ],
)
def test_what_opens_a_turn_in_some_template_is_broken_up(token: str) -> None:
    text = as_data(f"a{token}b<{token}>c")
    assert token not in text
    assert text.replace("\u200b", "") == f"a{token}b<{token}>c"  # nothing else changed


ORDINARY = ["a < b", "<b>bold</b>", "x[0]", "<https://example.org>", '{"a": [1, 2]}', "<span>[see system]</span>"]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert as_data(text) == text


@given(st.text(alphabet="<>|/[]_im_starttool_callINS ", max_size=60))
def test_no_mixture_builds_a_token(text: str) -> None:
    cleaned = as_data(text)
    assert not any(token in cleaned for token in ("<|im_start|>", "<tool_call>", "</tool_call>", "[INST]", "[/INST]"))
    assert as_data(cleaned) == cleaned


@given(st.text(alphabet=st.sampled_from("a�\ufeff\ud83d\ude00😀"), max_size=8))
def test_encodable_changes_nothing_else(text: str) -> None:
    cleaned = encodable(text)
    cleaned.encode()
    assert cleaned == text or any("\ud800" <= character <= "\udfff" for character in text)
    assert cleaned.replace("😀", "").count("�") >= text.count("�")


@pytest.mark.parametrize(
    "unit",
    ["sk-", "sk-a", "eyJ-", "eyJaaaaaaaa.eyJ-", "-----BEGIN PRIVATE KEY-----", "hf_", "\\nhf_", "://a:", "bearer "],
)
def test_no_text_keeps_the_masking_busy(unit: str) -> None:
    """As quadratic patterns, the first took 2.9 s for 24,000 characters; here are 60,000."""
    begun = time.perf_counter()
    redact(unit * (60_000 // len(unit)))
    assert time.perf_counter() - begun < 1


def test_a_secret_is_masked_wherever_the_text_is_cut() -> None:
    for size in (RESULT_CHARACTERS, READ_CHARACTERS):
        for before in range(size - 60, size + 1, 7):
            cleaned = as_data("x " * (before // 2) + KEY + " y" * size)
            assert KEY[:12] not in cleaned
            assert len(cleaned) <= RESULT_CHARACTERS
    # Masks are short: what stands at the far cut could move into what is kept.
    cleaned = as_data(f"{KEY} " * 20_000)
    assert set(cleaned.partition("…")[0].split()) == {"[redacted]"}
    lines = "\n".join(["A" * 64] * 50)
    for text in (
        f"-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{lines}",
    ):
        assert as_data(f"key: {text}") == "key: [redacted]"


def test_long_results_are_cut_and_say_so() -> None:
    text = as_data("x" * (RESULT_CHARACTERS + 1))
    assert len(text) <= RESULT_CHARACTERS
    assert text.endswith("… (51 more characters left out)")
    assert as_data(text) == text
    assert as_data("x" * RESULT_CHARACTERS) == "x" * RESULT_CHARACTERS
