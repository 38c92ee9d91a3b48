"""Costs: the arithmetic, which price a model name gets, and price lists that people break."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.config import settings
from shared.errors import UserError
from step2_tool_calling.conversation import Usage
from step2_tool_calling.prices import Price, cost, find_price, load_prices


@pytest.fixture(autouse=True)
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a user's own prices would lie; nothing is there yet."""
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path))
    settings.cache_clear()
    load_prices.cache_clear()
    yield tmp_path / "prices.toml"
    load_prices.cache_clear()


def test_a_million_tokens_of_each_kind() -> None:
    usage = Usage(prompt=3_000_000, cached=1_000_000, completion=1_000_000)
    # gpt-4o-mini: 2 M fresh at 0.15, 1 M cached at 0.075, 1 M written at 0.60
    assert cost("gpt-4o-mini", usage, local=False) == pytest.approx(0.975)
    assert cost("gpt-4o-mini", Usage(), local=False) == 0


def test_a_local_model_costs_nothing_whatever_its_name() -> None:
    assert cost("gpt-4o", Usage(prompt=10**9), local=True) == 0
    assert cost("smollm2-135m", Usage(prompt=10**9), local=True) == 0


def test_a_model_that_nobody_lists_has_no_price() -> None:
    assert cost("smollm2-135m", Usage(prompt=10), local=False) is None


@pytest.mark.parametrize(
    ("model", "listed"),
    [
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("gpt-5-2025-08-07", "gpt-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-opus-4-1@20250805", "claude-opus-4-1"),
        ("claude-3-7-sonnet-latest", "claude-3-7-sonnet"),
        ("models/gemini-2.0-flash-001", "gemini-2.0-flash"),
        ("openai/gpt-4.1", "gpt-4.1"),
        # Near misses with other prices: none is better than a wrong one.
        ("gpt-4o-audio-preview", None),
        ("gpt-5.9", None),
        ("gpt-5-pro", None),
        ("claude-sonnet-4-9", None),
        ("gpt-4", None),
        ("", None),
    ],
)
def test_which_price_a_name_gets(model: str, listed: str | None) -> None:
    prices = load_prices()
    assert find_price(model, prices) == (prices[listed] if listed else None)


def test_every_shipped_price_has_a_page_and_a_month_and_is_plausible() -> None:
    prices = load_prices()
    assert len(prices) > 40
    for name, price in prices.items():
        assert re.fullmatch(r"https://\S+, 20\d\d-\d\d", price.source), name
        assert 0 < price.cached <= price.input <= price.output <= 100, name


def test_the_users_file_replaces_models_and_adds_new_ones(own_file: Path) -> None:
    own_file.write_text(
        '[mine.models]\n"gpt-4o" = { input = 1, output = 2 }\n"org/my-model" = { input = 0.5, output = 0.5 }\n'
    )
    usage = Usage(prompt=1_000_000, cached=400_000, completion=1_000_000)
    assert cost("gpt-4o", usage, local=False) == pytest.approx(3.0)  # without a cached price, cached cost as others
    assert cost("org/my-model", usage, local=False) == pytest.approx(1.0)
    assert cost("gpt-4.1", usage, local=False) is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not toml [", "not readable as TOML"),
        ("openai = 3\n", "[openai] has no models"),
        ('["gpt-4o"]\ninput = 1\noutput = 2\n', "[gpt-4o] has no models"),
        ('[a.models]\n"m" = 5\n', "'m' must look like"),
        ('[a.models]\n"m" = { input = 1 }\n', "'m' must look like"),
        ('[a.models]\n"m" = { input = 1, output = 2, per = 3 }\n', "'m' must look like"),
        ('[a.models]\n"m" = { input = -1, output = 2 }\n', "not -1"),
        ('[a.models]\n"m" = { input = "1", output = 2 }\n', "not '1'"),
        ('[a.models]\n"m" = { input = nan, output = 2 }\n', "not nan"),
    ],
)
def test_a_bad_price_list_is_named_with_its_entry(own_file: Path, text: str, says: str) -> None:
    own_file.write_text(text)
    with pytest.raises(UserError) as caught:
        cost("gpt-4o", Usage(prompt=1), local=False)
    assert str(own_file) in str(caught.value)
    assert says in str(caught.value)


def test_a_price_list_in_another_encoding(own_file: Path) -> None:
    own_file.write_bytes("[é.models]\n".encode("utf-16"))
    with pytest.raises(UserError, match="not readable as TOML"):
        load_prices()


def test_given_prices_are_used_as_they_are() -> None:
    assert cost("x", Usage(completion=10), local=False, prices={"x": Price(1, 1, 100_000, "here")}) == 1.0
