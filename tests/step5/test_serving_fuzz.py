"""Random requests made from the OpenAPI document by schemathesis, and hostile ones: see step5_fuzz.py.

The test sends a few hundred; `python tests/step5/step5_fuzz.py --requests 100000` the number that is reported.
"""

import pytest
from conftest import Gateway
from fake_engine import Fake
from step5_fuzz import storm
from step5_fuzz_check import Sent, Storm, counted, held


def test_after_a_storm_everything_adds_up() -> None:
    rows, problems = storm(300)
    assert problems == []
    (row,) = rows
    values = {name: entry["value"] for name, entry in row["metrics"].items()}
    assert values["requests"] == 330
    assert values["5xx"] == 0
    assert (values["answers 2xx"] or 0) > 50  # else it was about refusals only
    assert (values["tokens"] or 0) > 300


def test_what_does_not_add_up_is_noticed() -> None:
    storm = Storm([Sent("a", 200, (1, 1)), Sent("b", None, (0, 1)), Sent("c", 200, (1, 1))])
    storm.answered("chat", 500, b'{"error": {"message": "no", "type": "x", "param": null, "code": "internal_error"}}')
    storm.answered("chat", 404, b"Not Found")
    assert [message[:9] for message in storm.problems] == ["chat: 500", "chat: 404"]
    line = {"event": "request", "endpoint": "/v1/embeddings", "outcome": "queue_full"}
    lines = [line | {"client_id": "c", "status": 429}, line | {"client_id": "d", "status": 429}, {"event": "bug"}]
    found = " ".join(counted(storm, lines, ""))
    for part in ("a bug", "a was sent once and logged 0 times", "c was answered with 200 and logged with 429", "['d']",
                 "gateway_requests_total", "gateway_errors_total"):  # fmt: skip
        assert part in found
    quiet = {"running": 0, "queued": 0, "queued tokens": 0, "at the engine": 0, "reserved": 0.0, "free slots": 4,
             "tasks": {"tick": 1}, "alive": {}, "files": 20, "objects": 10_000, "rss": 100.0}  # fmt: skip
    assert list(held(quiet, quiet, quiet)) == []
    leaky = quiet | {
        "running": 1,
        "free slots": 3,
        "tasks": {"tick": 1, "abort": 2},
        "alive": {"Exchange": 7},
        "files": 90,
    }
    leaky |= {"objects": 20_000, "rss": 200.0, "reserved": 0.1}
    assert len(list(held(quiet, quiet, leaky))) == 8


@pytest.mark.parametrize("n", [129, 2**63])
def test_more_answers_than_any_engine_gives(gateway: Gateway, engine: Fake, n: int) -> None:
    """A sum with such an estimate in it would no longer notice the others: fairness among keys lives on sums."""
    answer = gateway.chat(n=n)
    assert answer.status_code == 400
    assert "n must be at most 128" in answer.text
    assert not engine.seen
    assert gateway.chat(n=128).status_code == 200
