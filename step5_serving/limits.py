"""What one key may use: requests and tokens per minute (token buckets), models, and money.

A bucket holds one minute's worth and refills continuously, so a burst passes and a sustained rate does not exceed the
limit. Tokens and money are not known before the answer is: an estimate is taken at admission and the difference is
given back, or taken in addition, when the engine has said what it used. The balance of a bucket can thereby fall below
zero, which delays the key's next request instead of cutting this one off.

Buckets live in memory: after a restart they are full. Spending is read back from the database.

    python -m pytest tests/step5/test_serving_limits.py
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from step5_serving.refusals import Headers, Refusal

Clock = Callable[[], float]


class Bucket:
    """`per_minute` units a minute, at most that many at once."""

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._at = float(per_minute), clock()

    @property
    def level(self) -> float:
        """Units available now; below zero after requests that took more than estimated."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def wait(self, units: float) -> float:
        """Seconds until `units` are there; 0 when they are. More than a full bucket only ever waits for a full one."""
        missing = min(units, self.per_minute) - self.level
        return missing * 60 / self.per_minute if missing > 1e-6 else 0.0  # less is rounding

    def take(self, units: float) -> None:
        """Take units, or give them back when negative."""
        self._level = min(self.per_minute, self.level - units)


@dataclass
class Account:
    """A key in use. models: None for all. cap: US dollars in all. reserved: estimated money of requests under way."""

    id: str
    name: str
    digest: bytes
    models: frozenset[str] | None = None
    requests: Bucket | None = None
    tokens: Bucket | None = None
    cap: float | None = None
    spent: float = 0.0
    reserved: float = field(default=0.0, init=False)

    def may_use(self, model: str) -> bool:
        """Whether the key's scope includes the model."""
        return self.models is None or model in self.models

    def reserve(self, tokens: int, money: float) -> None:
        """Take one request, estimated tokens and money; all or nothing.

        Raises Refusal 429: rate_limit_exceeded with Retry-After, or insufficient_quota, where waiting does not help.
        """
        if self.cap is not None and self.spent + self.reserved + money > self.cap:
            left = max(0.0, self.cap - self.spent - self.reserved)
            raise Refusal(
                429, "insufficient_quota",
                f"This key has ${left:.6f} of its ${self.cap:g} left and the request may cost ${money:.6f}; "
                "ask for fewer tokens (max_tokens) or for a higher cap.",
            )  # fmt: skip
        for bucket, units, what in ((self.requests, 1, "requests"), (self.tokens, tokens, "tokens")):
            if bucket is not None and (seconds := bucket.wait(units)) > 0:
                raise Refusal(
                    429, "rate_limit_exceeded",
                    f"This key's limit of {bucket.per_minute} {what} a minute is reached; try again in {seconds:.1f} s",
                    retry_after=seconds,
                )  # fmt: skip
        if self.requests is not None:
            self.requests.take(1)
        if self.tokens is not None:
            self.tokens.take(tokens)
        self.reserved += money

    def settle(self, estimated: int, money: float, used: int, cost: float) -> None:
        """Replace a reservation by what the request really used. money, cost: US dollars, estimated and real."""
        if self.tokens is not None:
            self.tokens.take(used - estimated)
        self.reserved = max(0.0, self.reserved - money)
        self.spent += cost

    def headers(self) -> Headers:
        """OpenAI's x-ratelimit-* headers; none for a key without limits."""
        found: Headers = []
        for bucket, what in ((self.requests, b"requests"), (self.tokens, b"tokens")):
            if bucket is not None:
                level = bucket.level
                seconds = math.ceil((bucket.per_minute - level) * 60 / bucket.per_minute)
                found += [
                    (b"x-ratelimit-limit-" + what, b"%d" % bucket.per_minute),
                    (b"x-ratelimit-remaining-" + what, b"%d" % max(0, level)),
                    (b"x-ratelimit-reset-" + what, b"%ds" % seconds),
                ]
        return found
