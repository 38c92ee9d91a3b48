"""Limits of one key: requests and tokens a minute, money."""

import time
from pathlib import Path

import pytest
from conftest import Gateway, Start, account_of, new_key
from fake_engine import ADAPTER, MODEL, Fake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from step5_serving.limits import Account, Bucket
from step5_serving.refusals import Refusal

# $1 for a million prompt tokens, $1,000 for a million completion tokens.
PRICE = '[hosted.models]\n"*" = { input = 1, output = 1000 }\n'


class Clock:
    """A clock that stands still until it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_requests_per_minute(gateway: Gateway, engine: Fake) -> None:
    key = new_key("two a minute", requests_per_minute=2)
    account_of(gateway, key)
    answers = [gateway.chat(key=key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    refused = answers[-1]
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert 25 <= int(refused.headers["retry-after"]) <= 30  # one comes back every 30 s
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert len(engine.seen) == 2
    assert gateway.chat().status_code == 200  # other keys are not affected


def test_tokens_per_minute_are_those_really_used(gateway: Gateway) -> None:
    key = new_key("200 tokens a minute", tokens_per_minute=200)
    account = account_of(gateway, key)
    began = time.monotonic()
    first = gateway.chat("a " * 50, key=key, max_tokens=100)
    # Estimated at admission from the body's length; settled at 50 + 100 before the last byte.
    assert first.headers["x-ratelimit-limit-tokens"] == "200"
    assert account.tokens is not None
    refilled = (time.monotonic() - began) * 200 / 60
    assert 50 <= account.tokens.level <= 51 + refilled
    second = gateway.chat("a " * 50, key=key, max_tokens=100)
    assert second.status_code == 429
    assert int(second.headers["retry-after"]) >= 10


def test_a_refusal_by_the_engine_takes_no_tokens(gateway: Gateway, engine: Fake) -> None:
    key = new_key("tokens", tokens_per_minute=100)
    account_of(gateway, key)
    engine.failures.append(400)
    assert gateway.chat(key=key, max_tokens=90).status_code == 400
    assert gateway.chat("short", key=key, max_tokens=60).status_code == 200


@pytest.fixture
def priced(start: Start, engine: Fake, home: Path) -> Gateway:
    """A gateway at PRICE."""
    home.mkdir(parents=True)
    (home / "prices.toml").write_text(PRICE)
    return start(engine)


def test_spending_cap(priced: Gateway) -> None:
    """Six tokens of an answer cost 0.6 cents here; what was not used of a reservation is given back."""
    key = new_key("five cents", cap=0.05)
    account = account_of(priced, key)
    assert priced.chat("one two three four", key=key, max_tokens=6).status_code == 200
    assert account.spent == pytest.approx(0.006004)
    assert account.reserved == 0
    too_long = priced.chat("one", key=key, max_tokens=60)
    assert too_long.status_code == 429
    error = too_long.json()["error"]
    assert error["code"] == "insufficient_quota"
    assert "$0.04" in error["message"]
    assert "retry-after" not in too_long.headers  # waiting does not help
    no_limit = priced.chat("one", key=key)  # could be as long as the model's context
    assert no_limit.json()["error"]["code"] == "insufficient_quota"
    assert priced.chat("one", key=key, max_tokens=-1000).status_code == 400  # no way to lower what is reserved
    assert account.spent == pytest.approx(0.006004)


def test_a_prompt_of_more_tokens_than_expected_stays_below_the_cap(priced: Gateway) -> None:
    """The estimate is a token for four bytes; these have two, and would cost $0.0019."""
    key = new_key("a sixth of a cent", cap=0.0017)
    account = account_of(priced, key)
    refused = priced.chat("a " * 900, key=key, max_tokens=1)
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert priced.chat("a " * 100, key=key, max_tokens=1).status_code == 200
    assert account.spent == pytest.approx(0.0011)


def test_many_prompts_and_two_limits_stay_below_the_cap(priced: Gateway) -> None:
    """Each prompt may fill the context, and which limit an engine obeys is its business."""
    key = new_key("half a cent", cap=0.005)
    account_of(priced, key)
    headers = {"authorization": f"Bearer {key}"}
    three = {"model": MODEL, "prompt": ["a " * 900] * 3, "max_tokens": 1}
    many = priced.http.post("/v1/completions", json=three, headers=headers)
    assert many.json()["error"]["code"] == "insufficient_quota"
    both = priced.http.post("/v1/completions", json={"model": MODEL, "prompt": "a", "max_tokens": 6,
                                                      "max_completion_tokens": 1}, headers=headers)  # fmt: skip
    assert both.json()["error"]["code"] == "insufficient_quota"


def test_spending_is_remembered_over_a_restart(priced: Gateway, start: Start, engine: Fake) -> None:
    key = new_key("cents", cap=0.05)
    account_of(priced, key)
    assert priced.chat("one two three four", key=key, max_tokens=26, model=ADAPTER).status_code == 200
    priced.parts.ledger.flush()
    again = start(engine)
    assert account_of(again, key).spent == pytest.approx(0.026004)
    assert again.chat("one two three four", key=key, max_tokens=26).json()["error"]["code"] == "insufficient_quota"


def test_a_bucket_refills_at_its_rate_and_never_beyond() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert bucket.wait(1) == pytest.approx(1.0)
    clock.now += 0.5
    assert bucket.wait(1) == pytest.approx(0.5)
    clock.now += 3600
    assert bucket.level == 60
    assert bucket.wait(1000) == 0  # more than a full bucket only waits for a full one
    bucket.take(90)
    assert bucket.wait(60) == pytest.approx(90)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40)), max_size=60))
def test_a_sustained_rate_does_not_exceed_the_limit(tries: list[tuple[float, int]]) -> None:
    """However requests arrive: in any stretch of time, at most one bucket more than the rate allows."""
    clock = Clock()
    account = Account("id", "name", b"", tokens=Bucket(60, clock))
    passed = 0
    for pause, tokens in tries:
        clock.now += pause
        try:
            account.reserve(tokens, 0.0)
        except Refusal as refusal:
            clock.now += refusal.retry_after or 0
            account.reserve(tokens, 0.0)  # what Retry-After says is enough
        passed += tokens
    assert passed <= 60 + (clock.now - 100.0) + 1e-6


@pytest.mark.parametrize(("tokens", "money"), [(8, 0.0), (1, 2.0)])
def test_a_refused_reservation_takes_nothing(tokens: int, money: float) -> None:
    requests, left = Bucket(10, Clock()), Bucket(10, Clock())
    account = Account("id", "name", b"", requests=requests, tokens=left, cap=1.0)
    left.take(5)
    with pytest.raises(Refusal):
        account.reserve(tokens, money)
    assert (requests.level, left.level, account.reserved) == (10, 5, 0)
