"""Who may ask for what: keys, scopes, revocation, and no open door by accident."""

import hmac
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import Gateway, Start, chat_body, eventually, new_key
from fake_engine import ADAPTER, MODEL, Fake

from shared.errors import UserError
from step5_serving import keys
from step5_serving.database import connect
from step5_serving.refusals import Refusal
from step5_serving.service import Options, serve


def test_a_key_opens_the_door(gateway: Gateway) -> None:
    answer = gateway.chat()
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "w0 w1 w2 w3 "


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_anything_else_does_not(gateway: Gateway, engine: Fake, path: str) -> None:
    _, identity, secret = gateway.key.split("-", 2)
    for authorization in (
        None, b"", b"Bearer", b"Bearer sk-", b"Bearer sk-nobody-secret", f"Bearer {gateway.key}x".encode(),
        f"Basic {gateway.key}".encode(), gateway.key.encode(), f"Bearer sk-{identity}-".encode(),
        f"Bearer pk-{identity}-{secret}".encode(), b"Bearer \xff\xfe",
    ):  # fmt: skip
        headers = [] if authorization is None else [(b"authorization", authorization)]
        answer = gateway.http.post(path, json=chat_body(), headers=headers)
        assert answer.status_code == 401, authorization
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert secret not in answer.text
    assert not engine.seen


def test_nor_for_what_costs_nothing(gateway: Gateway) -> None:
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/usage", "/v1/usage/some-id"):
        assert gateway.http.get(path).status_code == 401
        assert gateway.get(path, key="sk-nobody-secret").status_code == 401


def test_only_the_hash_of_a_key_is_stored(gateway: Gateway) -> None:
    gateway.chat()
    gateway.parts.ledger.flush()
    secret = gateway.key.split("-", 2)[2]
    stored = b"".join(path.read_bytes() for path in gateway.home.rglob("*") if path.is_file())
    assert secret.encode() not in stored
    assert sha256(secret.encode()).digest() in stored
    assert (gateway.home / "gateway.db").stat().st_mode & 0o077 == 0


def test_secrets_are_compared_in_constant_time_and_unknown_ids_cost_the_same(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare_digest = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return compare_digest(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    identity = gateway.key.split("-")[1]
    for key in (gateway.key, f"sk-{identity}-wrong", "sk-unknown-wrong"):
        with suppress(Refusal):
            gateway.parts.keys.authenticate(b"Bearer " + key.encode())
    # Each was hashed and compared once, whole digests against whole digests.
    assert [(len(a), len(b)) for a, b in compared] == [(32, 32)] * 3


def test_a_key_revoked_or_made_while_the_service_runs(gateway: Gateway) -> None:
    assert gateway.chat().status_code == 200
    with closing(connect()) as database:
        keys.revoke(database, gateway.key.split("-")[1])
    eventually(lambda: gateway.chat().status_code == 401)
    late = new_key("late")
    eventually(lambda: gateway.chat(key=late).status_code == 200)


def test_scope(gateway: Gateway, engine: Fake) -> None:
    key = new_key("scoped", models=[ADAPTER])
    eventually(lambda: gateway.chat(key=key, model=ADAPTER).status_code == 200)
    seen = len(engine.seen)
    for model in (MODEL, "no-such-model"):  # what exists outside its scope is none of its business
        refused = gateway.chat(key=key, model=model)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "model_not_allowed"
        assert refused.json()["error"]["type"] == "permission_error"
    assert len(engine.seen) == seen
    assert [card["id"] for card in gateway.get("/v1/models", key).json()["data"]] == [ADAPTER]
    assert gateway.get(f"/v1/models/{MODEL}", key).status_code == 404
    assert gateway.get(f"/v1/models/{ADAPTER}", key).json()["id"] == ADAPTER
    assert gateway.post("/v1/embeddings", key, json={"model": "minilm-l6-v2", "input": "x"}).status_code == 403


def test_usage_shows_a_key_its_own_requests_only(gateway: Gateway) -> None:
    other = new_key("other")
    eventually(lambda: gateway.chat(key=other).status_code == 200)
    mine = gateway.chat()
    path = f"/v1/usage/{mine.headers['x-request-id']}"
    assert gateway.get(path).json()["completion"] == 4
    assert gateway.get(path, other).status_code == 404
    assert gateway.get("/v1/usage").json()["data"][0]["requests"] == 1


def test_it_does_not_listen_to_other_machines_without_a_key(home: Path) -> None:
    with pytest.raises(UserError, match="there is no key"):
        serve(Options(host="0.0.0.0", port=0))
    with closing(connect()) as database:
        assert not keys.list_keys(database)  # nor does it make one that nobody saw
        keys.create(database, "revoked")
        keys.revoke(database, "revoked")
    with pytest.raises(UserError, match="there is no key"):
        serve(Options(host="::", port=0))


def test_metrics_are_for_the_operator(start: Start, engine: Fake) -> None:
    """From this machine without a key; from others, here behind a proxy on this machine, with one."""
    gateway = start(engine)
    elsewhere = {"x-forwarded-for": "192.0.2.7"}
    assert gateway.http.get("/metrics").status_code == 200
    assert gateway.http.get("/metrics", headers=elsewhere).status_code == 401
    assert gateway.http.get("/metrics", headers=gateway.headers(more=elsewhere)).status_code == 200
