"""Admission control: so many requests run, a bounded number wait their fair turn, the rest are refused at once.

    enter ── a slot is free and nobody waits ────────────────────────────► runs
          └─ it would wait too long ──► 429 with Retry-After, in microseconds
          └─ waits in its key's lane ──► the lane that has had least is next ► runs

Without a bound, a server at 3 times its capacity answers nobody in time: the queue grows as long as the overload lasts
and every answer waits for all that came before. Here the queue is bounded in estimated tokens, by how many the engines
get through in `max_wait` seconds, so whoever is admitted starts within about that time, under any load. That drain
rate is measured, while all slots are taken. It is an average, and slots come free in bursts: what began together ends
together. So nobody may wait either for whom no slot will be free in time, by how far the running answers have come.
Engines must not queue themselves: `slots` is what they run at once.

Fair among keys, twice. Who is next: start-time fair queueing, the lane that has received the fewest tokens lately
(Goyal, Vin & Cheng, SIGCOMM 1996). Who may wait: a lane may hold as many tokens as are still free (Choudhury & Hahne,
"Dynamic queue length thresholds", IEEE/ACM ToN 1998): alone, a key gets half of the queue; the other half is there for
whoever comes next. So a flood from one key leaves the others their share of the slots that come free.

    python -m pytest tests/step5/test_serving_admission.py
"""

import asyncio
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from step5_serving.refusals import Refusal

MEMORY = 30.0  # seconds over which the drain rate is averaged: engines slow down and speed up with the prompts
PACE_TOKENS = 8  # of an answer, before the time that they took counts
LONGEST_RETRY = 60.0  # seconds: later than that, nobody knows how full the queue will be


@dataclass(eq=False)
class Ticket:
    """One admitted request. turn: done when it may run (None: at once). tokens: estimated, of prompt and answer.

    answer: estimated, of the answer alone; received: so many have come, from `first` to `latest` on the gate's clock
    (latest: its start, if none has; a request that is not streamed shows none until it is over).
    """

    key: str
    tokens: int
    answer: int
    entered: float
    turn: asyncio.Future[None] | None = None
    running: bool = False
    started: float = 0.0
    received: int = 0
    first: float = 0.0
    latest: float = 0.0

    @property
    def pace(self) -> float | None:
        """Seconds per token of its answer; None until there are enough to tell."""
        return (self.latest - self.first) / (self.received - 1) if self.received > PACE_TOKENS else None


@dataclass
class Lane:
    """The waiting requests of one key. served: its virtual time, tokens it has received on the common clock."""

    waiting: deque[Ticket] = field(default_factory=deque)
    tokens: int = 0
    served: float = 0.0


class Admission:
    """The gate. Belongs to one event loop; nothing here blocks or takes a lock."""

    def __init__(
        self, slots: int, max_wait: float, tokens_per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """slots: requests that may run at once. max_wait: seconds. tokens_per_second: until it is measured."""
        self.slots, self.max_wait, self._clock = slots, max_wait, clock
        self.queued = self.queued_tokens = 0
        self._running: set[Ticket] = set()
        self._lanes: dict[str, Lane] = {}
        self._now = 0.0  # virtual time: what the lane that was served last had received by then
        self._drained, self._seconds = tokens_per_second * MEMORY, MEMORY
        self._full_from: float | None = None  # when the last slot was taken; None while some are free
        self._measured = 0.0  # until when the time since then has been counted

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def rate(self) -> float:
        """Tokens that finish per second while every slot is taken."""
        return max(1.0, self._drained / self._seconds)  # when only refusals finish, too

    @property
    def bound(self) -> float:
        """Estimated tokens that may wait."""
        return self.max_wait * self.rate

    def enter(self, key: str, tokens: int, answer: int = 0) -> Ticket:
        """Admit a request or raise Refusal 429 queue_full. The caller then calls wait(), and leave() in any case.

        tokens: estimated, of prompt and answer together; answer: of the answer, 0 when nothing is known.
        """
        ticket = Ticket(key, tokens, answer, self._clock())
        if self.running < self.slots and not self.queued:
            self._run(ticket)
            return ticket
        lane = self._lanes.setdefault(key, Lane())
        # An empty queue takes a request of any length: else a long one could never wait, however idle the machine.
        too_long = (lane.tokens + tokens + self.queued_tokens - self.bound) / self.rate if self.queued else 0.0
        too_late = self._expected_wait(lane) - self.max_wait
        if too_long > 0 or too_late > 0:
            self._forget_idle(key)
            raise Refusal(
                429, "queue_full",
                f"The service is at its limit: {self.running} requests are running, {self.queued} waiting, and this "
                f"one would not start within {self.max_wait:g} s; try again later.",
                retry_after=min(max(too_long, too_late), LONGEST_RETRY),
            )  # fmt: skip
        if not lane.waiting:
            lane.served = max(lane.served, self._now)  # idle time earns no credit
        ticket.turn = asyncio.get_running_loop().create_future()
        lane.waiting.append(ticket)
        lane.tokens += tokens
        self.queued += 1
        self.queued_tokens += tokens
        return ticket

    async def wait(self, ticket: Ticket) -> float:
        """Return when the request may run, with the seconds it waited.

        Raises Refusal 429 queue_timeout when that took twice as long as it should have: the estimate was wrong, and
        the bound on waiting is a promise.
        """
        if ticket.turn is not None and not ticket.running:
            try:
                async with asyncio.timeout(2 * self.max_wait):
                    await ticket.turn
            except TimeoutError:
                raise Refusal(
                    429, "queue_timeout", f"No free slot within {2 * self.max_wait:g} s.", retry_after=self.max_wait
                ) from None
        return self._clock() - ticket.entered

    def progress(self, ticket: Ticket, received: int) -> None:
        """So many tokens of its answer have come."""
        ticket.latest = self._clock()
        if not ticket.received:
            ticket.first = ticket.latest
        ticket.received = received

    def leave(self, ticket: Ticket, used: int | None = None) -> None:
        """The request is over, or will not run. used: the tokens it really took, if known. Calling it twice is fine."""
        if ticket.running:
            ticket.running = False
            self._measure(ticket, ticket.tokens if used is None else used)
            self._running.remove(ticket)
            self._next()
        elif ticket.turn is not None and ticket in self._lanes.get(ticket.key, Lane()).waiting:
            self._lanes[ticket.key].waiting.remove(ticket)
            self._unqueue(ticket)

    def resize(self, slots: int) -> None:
        """Engines came or went."""
        self.slots = slots
        self._full_from = None
        self._next()

    def fail(self, refusal: Refusal) -> None:
        """Refuse everything that waits: no engine is left to run it."""
        for lane in list(self._lanes.values()):
            while lane.waiting:
                ticket = lane.waiting.popleft()
                self._unqueue(ticket)
                if ticket.turn is not None and not ticket.turn.done():
                    ticket.turn.set_exception(refusal)

    def _expected_wait(self, lane: Lane) -> float:
        """Seconds until a slot will be free for a lane's next request; 0 as long as nothing is known.

        Before it come those of its own lane and as many of each other lane, as the lanes take turns. An answer is
        expected to be as long as estimated and to go on at its pace, or at the median pace of the others.
        """
        paces = [ticket.pace for ticket in self._running if ticket.pace is not None]
        if not paces:
            return 0.0
        usual, now, own = statistics.median(paces), self._clock(), len(lane.waiting)
        before = sum(min(len(other.waiting), own + (other is not lane)) for other in self._lanes.values())
        left = sorted(
            max(0.0, (t.answer - t.received) * (t.pace or usual) - (now - t.latest)) for t in self._running
        )  # fmt: skip
        rounds, place = divmod(before, len(left))  # each round: an answer that has not begun yet
        return left[place] + rounds * usual * statistics.median(t.answer for t in self._running)

    def _next(self) -> None:
        """Give free slots to the lanes that have received least."""
        while self.queued and self.running < self.slots:
            lane = min((lane for lane in self._lanes.values() if lane.waiting), key=lambda lane: lane.served)
            ticket = lane.waiting.popleft()
            self._now = lane.served
            lane.served += ticket.tokens
            self._unqueue(ticket)
            if ticket.turn is not None and not ticket.turn.done():  # done: its client left a moment ago
                self._run(ticket)
                ticket.turn.set_result(None)

    def _run(self, ticket: Ticket) -> None:
        ticket.running = True
        ticket.started = ticket.latest = self._clock()
        self._running.add(ticket)
        if self.running >= self.slots and self._full_from is None:
            self._full_from = self._measured = ticket.started

    def _unqueue(self, ticket: Ticket) -> None:
        self.queued -= 1
        self.queued_tokens -= ticket.tokens
        self._lanes[ticket.key].tokens -= ticket.tokens
        self._forget_idle(ticket.key)

    def _forget_idle(self, key: str) -> None:
        """Drop a lane that holds nothing and is owed nothing: keys come and go."""
        lane = self._lanes[key]
        if not lane.waiting and lane.served <= self._now:
            del self._lanes[key]

    def _measure(self, ticket: Ticket, tokens: int) -> None:
        """Add a finished request to the drain rate, which can only be seen while every slot is taken."""
        if self._full_from is None:
            return
        now = self._clock()
        # Only the part of the request that fell into that time, or a short rush would look like a fast machine.
        share = min(1.0, (now - self._full_from) / max(now - ticket.started, 1e-9))
        decay = math.exp((self._measured - now) / MEMORY)
        self._seconds = self._seconds * decay + (now - self._measured)
        self._drained = self._drained * decay + tokens * share
        self._measured = now
        if not self.queued:
            self._full_from = None  # nobody takes the slot that becomes free now
