"""Random and hostile requests (step5_fuzz.py) to a running service with a real model behind it.

Used by test_step5_real.py. What such an engine computes takes its time, so every answer is made short.
"""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import step5_fuzz
import step5_hostile
from conftest import Gateway
from real_service import MODEL
from step5_fuzz_check import Storm

MOST = {"max_tokens": 6, "max_completion_tokens": 6, "n": 1}  # of two answers vLLM counts the prompt twice
_aim = step5_fuzz.aim


def short(case: Any, chance: random.Random) -> None:
    """Give a request what step5_fuzz.aim does, and an end; what is no number stays what it is."""
    _aim(case, chance)
    if not isinstance(case.body, dict) or case.path.endswith("embeddings"):
        return
    for name, most in MOST.items():
        if type(case.body.get(name)) is int:
            case.body[name] = min(case.body[name], most)
    if all(case.body.get(name) is None for name in ("max_tokens", "max_completion_tokens")):
        case.body["max_tokens"] = MOST["max_tokens"]


def send(gateway: Gateway, storm: Storm, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send so many random requests, and a hostile one to ten of them."""
    monkeypatch.setattr(step5_fuzz, "aim", short)
    monkeypatch.setattr(step5_fuzz, "ADAPTER", "tools")
    for module in (step5_fuzz, step5_hostile):
        monkeypatch.setattr(module, "MODEL", MODEL)
    world: Any = SimpleNamespace(url=gateway.url, keys={"plain": gateway.key})
    chance, senders = random.Random(6), step5_fuzz.Senders(world, storm, 6)
    made = step5_fuzz.cases(gateway.get("/openapi.json").json(), 10, chance)
    for number in range(count):
        senders.work.put((f"random-{number}", next(made)))
        if number % 10 == 0:
            senders.work.put((f"hostile-{number}", chance.choice(step5_hostile.HOSTILE)))
    senders.finish()
