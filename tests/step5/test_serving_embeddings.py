"""/v1/embeddings: OpenAI's shape, the same accounts, and an event loop that is never blocked."""

import base64
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from conftest import Gateway, account_of, new_key

from shared import embeddings as shared_embeddings
from shared.errors import UserError
from step5_serving.embeddings import MODEL


class FakeEncoder:
    """Stands for MiniLM: a text's vector is (its length, 1); a token is a word. It waits until it may go on."""

    dimensions = 2

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.threads: set[str] = set()

    def encode(self, texts: Sequence[str]) -> Any:
        self.threads.add(threading.current_thread().name)
        assert self.go.wait(10)
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    made = FakeEncoder()
    monkeypatch.setattr(shared_embeddings, "load_embedder", lambda _: made)
    return made


def test_vectors_and_accounts(gateway: Gateway, encoder: FakeEncoder) -> None:
    answer = gateway.post("/v1/embeddings", json={"model": MODEL, "input": ["a bb", "ccc"]})
    assert answer.status_code == 200
    assert [item["embedding"] for item in answer.json()["data"]] == [[4, 1], [3, 1]]
    assert answer.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    row = gateway.rows()[-1]
    assert (row["endpoint"], row["model"], row["prompt"], row["completion"]) == ("/v1/embeddings", MODEL, 3, 0)
    assert row["cost"] == pytest.approx(3 * gateway.parts.prices[MODEL].input / 1e6)
    assert gateway.metric("gateway_tokens_total", model=MODEL, kind="prompt") == 3


def test_the_form_that_openais_client_asks_for(gateway: Gateway, encoder: FakeEncoder) -> None:
    answer = gateway.post("/v1/embeddings", json={"model": MODEL, "input": "abc", "encoding_format": "base64"})
    assert struct.unpack("<2f", base64.b64decode(answer.json()["data"][0]["embedding"])) == (3, 1)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": MODEL}, 400), ({"model": MODEL, "input": []}, 400), ({"model": MODEL, "input": [[1, 2]]}, 400),
        ({"model": MODEL, "input": ["x"] * 2049}, 400), ({"model": MODEL, "input": "x", "dimensions": 7}, 400),
        ({"model": "gpt", "input": "x"}, 404), ({"input": "x"}, 400),
    ],
)  # fmt: skip
def test_what_is_refused(gateway: Gateway, encoder: FakeEncoder, body: dict[str, Any], status: int) -> None:
    answer = gateway.post("/v1/embeddings", json=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_loop_goes_on_while_it_computes(gateway: Gateway, encoder: FakeEncoder) -> None:
    encoder.go.clear()

    def meanwhile() -> None:
        try:
            assert gateway.chat().status_code == 200
            assert gateway.http.get("/health").status_code == 200
        finally:
            encoder.go.set()

    embed = {"model": MODEL, "input": "x"}
    answer, _ = gateway.at_once([lambda: gateway.post("/v1/embeddings", json=embed), meanwhile])
    assert answer.status_code == 200
    assert all(name.startswith("embeddings") for name in encoder.threads)


def test_the_line_is_bounded(gateway: Gateway, encoder: FakeEncoder) -> None:
    encoder.go.clear()
    many = {"model": MODEL, "input": ["x"] * 2048}
    refused = threading.Event()

    def ask() -> int:
        answer = gateway.post("/v1/embeddings", json=many)
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            refused.set()
        return answer.status_code

    def release() -> None:
        assert refused.wait(10)
        encoder.go.set()

    statuses = gateway.at_once([ask, ask, ask, release])
    assert sorted(statuses[:3]) == [200, 200, 429]


def test_limits_hold_here_too(gateway: Gateway, encoder: FakeEncoder) -> None:
    key = new_key("one a minute", requests_per_minute=1)
    account_of(gateway, key)
    body = {"model": MODEL, "input": "x"}
    assert [gateway.post("/v1/embeddings", key, json=body).status_code for _ in range(2)] == [200, 429]


def test_a_model_that_cannot_be_fetched(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise UserError("no network")

    monkeypatch.setattr(shared_embeddings, "load_embedder", fail)
    answer = gateway.post("/v1/embeddings", json={"model": MODEL, "input": "x"})
    assert answer.status_code == 503
    assert "no network" in answer.text
    assert gateway.chat().status_code == 200
