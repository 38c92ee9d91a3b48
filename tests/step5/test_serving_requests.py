"""One request on its way: what is forwarded and how, what is refused and why, and what happens when engines fail."""

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from conftest import Gateway, Start, chat_body, eventually
from fake_engine import ADAPTER, MODEL, Fake, fake_engine

from step5_serving.embeddings import MODEL as EMBEDDER
from step5_serving.service import Timeouts

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def second() -> Iterator[Fake]:
    """Another engine."""
    with fake_engine() as fake:
        yield fake


def error_of(answer: httpx.Response) -> dict[str, object]:
    """The error, which has exactly OpenAI's members."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return dict(error)


def test_the_engine_gets_the_bytes_that_the_client_sent(gateway: Gateway, engine: Fake) -> None:
    body = (
        b'{ "messages":[{"role":"user","content":"h\\u00e9 \xe2\x82\xac"}],\n"model":"fake-model", "new_field": 1e3 }'
    )
    answer = gateway.post("/v1/chat/completions", content=body)
    assert answer.status_code == 200
    assert engine.seen[-1][1] == body


def test_keys_and_cookies_stay_here(gateway: Gateway, engine: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.post("/v1/chat/completions", more={"cookie": "a=b", "x-secret": "s"}, json=chat_body())
    assert set(engine.seen[-1][0]) == {"host", "content-type", "content-length", "x-request-id", "traceparent"}


def test_an_engines_own_key(start: Start, engine: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_API_KEY", "engine-secret")
    start(engine).chat()
    assert engine.seen[-1][0]["authorization"] == "Bearer engine-secret"


def test_a_body_that_is_too_large(start: Start, engine: Fake) -> None:
    gateway = start(engine, max_body=1000)
    padding = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 10_000_000}]}
    announced = gateway.post("/v1/chat/completions", json=padding)
    chunks = gateway.post("/v1/chat/completions", content=(b" " * 600 for _ in range(2)))  # no content-length
    for answer in (announced, chunks):
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "body_too_large"
        assert "1,000 bytes" in answer.text
    assert not engine.seen
    assert gateway.chat().status_code == 200


NONSENSE = [
    (b"", "JSON"), (b"{", "JSON"), (b"[]", "object"), (b"null", "object"), (b"\xff\xfe", "JSON"),
    (b'{"model": NaN}', "JSON"), (b"[" * 100_000, "JSON"), (b"{}", "model"), (b'{"model": 3}', "model"),
    (b'{"model": ""}', "model"), (b'{"model": "fake-model", "stream": "yes"}', "stream"),
    (b'{"model": "fake-model", "max_tokens": "5"}', "max_tokens"),
    (b'{"model": "fake-model", "max_tokens": -1}', "max_tokens"),
    (b'{"model": "fake-model", "max_completion_tokens": 1.5}', "max_completion_tokens"),
    (b'{"model": "fake-model", "n": true}', "n must be"),
    (b'{"model": "fake-model", "stream": true, "stream_options": []}', "stream_options"),
]  # fmt: skip


def test_bodies_that_make_no_sense(gateway: Gateway, engine: Fake) -> None:
    for body, about in NONSENSE:
        answer = gateway.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400, body
        assert error_of(answer)["type"] == "invalid_request_error"
        assert about in answer.text
    assert not engine.seen
    assert gateway.parts.admission.running == 0


def test_what_the_engine_refuses_is_passed_on(gateway: Gateway, engine: Fake) -> None:
    engine.failures += [400, 422, 400]
    for stream in (False, True, True):
        answer = gateway.chat(stream=stream)
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["message"].startswith("the fake says")
        assert answer.headers["x-request-id"]
    assert [row["outcome"] for row in gateway.rows()] == ["invalid_request"] * 3
    assert [row["completion"] for row in gateway.rows()] == [0, 0, 0]


def test_models(gateway: Gateway) -> None:
    assert [card["id"] for card in gateway.get("/v1/models").json()["data"]] == [MODEL, ADAPTER, EMBEDDER]
    answer = gateway.chat(model="no-such-model")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"
    assert MODEL in answer.text
    assert gateway.get("/v1/models/no-such-model").status_code == 404


def test_paths_that_are_not_there(gateway: Gateway) -> None:
    assert error_of(gateway.get("/v1/nothing"))["type"] == "not_found_error"
    assert gateway.get("/v1/chat/completions").status_code == 405
    assert error_of(gateway.get("/v1/usage?days=0"))["type"] == "invalid_request_error"


def test_request_ids(gateway: Gateway, engine: Fake) -> None:
    ours = gateway.chat().headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", ours)
    assert engine.seen[-1][0]["x-request-id"] == ours
    assert gateway.rows()[-1]["id"] == ours
    theirs = gateway.post("/v1/chat/completions", more={"x-request-id": "order-17"}, json=chat_body())
    assert theirs.headers["x-request-id"] == "order-17"
    assert re.fullmatch("[0-9a-f]{32}", engine.seen[-1][0]["x-request-id"])  # two clients may choose the same
    assert gateway.log("request")[-1]["client_id"] == "order-17"
    bad = gateway.post("/v1/chat/completions", more={"x-request-id": "x" * 200}, json=chat_body())
    assert re.fullmatch("[0-9a-f]{32}", bad.headers["x-request-id"])
    assert gateway.http.post("/v1/chat/completions").headers["x-request-id"]  # a 401 has one, too


def test_trace_context_goes_through(gateway: Gateway, engine: Fake) -> None:
    sent = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
    answer = gateway.post("/v1/chat/completions", more=sent, json=chat_body())
    version, trace, span, flags = engine.seen[-1][0]["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != SPAN
    assert engine.seen[-1][0]["tracestate"] == "vendor=1"
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{span}-01"
    assert gateway.rows()[-1]["trace"] == TRACE
    for wrong in ("", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01"):
        gateway.post("/v1/chat/completions", more={"traceparent": wrong}, json=chat_body())
        begun = engine.seen[-1][0]["traceparent"].split("-")[1]
        assert re.fullmatch("[0-9a-f]{32}", begun)
        assert begun not in (TRACE, "0" * 32)


def test_no_first_token_in_time(start: Start, engine: Fake) -> None:
    gateway = start(engine, timeouts=Timeouts(first_token=0.5))
    engine.failures.append("silence")
    engine.can_abort = False
    answer = gateway.chat(stream=True)
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "first_token_timeout"
    eventually(lambda: engine.left == 1)
    engine.seconds_per_token, engine.tokens = 0.05, 6
    assert gateway.stream().endswith(b"[DONE]\n\n")  # a stream that has begun may take longer


def test_no_whole_answer_in_time(start: Start, engine: Fake) -> None:
    gateway = start(engine, timeouts=Timeouts(total=0.3))
    engine.seconds_per_token, engine.tokens = 0.05, 1000
    whole = gateway.chat()
    assert whole.status_code == 504
    assert error_of(whole)["code"] == "total_timeout"
    last = gateway.stream().split(b"\n\n")[-2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "total_timeout"
    rows = gateway.rows()
    assert [row["outcome"] for row in rows] == ["total_timeout"] * 2
    assert sum(row["completion"] for row in rows) == engine.completion_tokens
    assert sum(row["prompt"] for row in rows) == engine.prompt_tokens
    assert engine.running == gateway.parts.admission.running == 0


@pytest.mark.parametrize("stream", [True, False])
def test_tried_again_while_the_client_has_no_byte(gateway: Gateway, engine: Fake, stream: bool) -> None:
    engine.failures += ["drop", "drop"]
    answer = gateway.chat(stream=stream)
    assert answer.status_code == 200
    assert b"w3" in answer.content
    assert len(engine.seen) == 3
    assert gateway.metric("gateway_retries_total") == 2
    assert gateway.log("request")[-1]["attempts"] == 3
    assert [(row["outcome"], row["completion"]) for row in gateway.rows()] == [("ok", 4)]


def test_not_tried_for_ever(gateway: Gateway, engine: Fake) -> None:
    engine.failures += ["drop"] * 4
    answer = gateway.chat()
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "engine_lost"
    assert answer.headers["retry-after"] == "1"
    assert len(engine.seen) == 3
    assert gateway.parts.engines.all[0].in_flight == 0


def test_another_engine_takes_over(start: Start, engine: Fake, second: Fake) -> None:
    gateway = start(engine, second)
    engine.failures += [500]
    second.failures += ["drop"]
    for _ in range(2):
        assert gateway.chat().status_code == 200
    assert not engine.failures or not second.failures
    assert len(engine.seen) + len(second.seen) == 2 + gateway.metric("gateway_retries_total")
    assert gateway.metric("gateway_retries_total") >= 1


def test_the_only_engines_500_is_passed_on(gateway: Gateway, engine: Fake) -> None:
    engine.failures.append(500)
    answer = gateway.chat()
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the fake says 500"
    assert gateway.rows()[-1]["outcome"] == "engine_error"


def test_an_engines_own_error_page_becomes_an_error_in_openais_shape(gateway: Gateway, engine: Fake) -> None:
    engine.failures.append("page")
    answer = gateway.chat()
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "engine_error"
    assert gateway.rows()[-1]["outcome"] == "engine_error"


def test_requests_go_to_the_engine_with_fewer(start: Start, engine: Fake, second: Fake) -> None:
    engine.seconds_per_token = second.seconds_per_token = 0.03
    gateway = start(engine, second, slots=4)
    answers = gateway.at_once([gateway.chat] * 8)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert (engine.most_running, second.most_running) == (4, 4)


def test_an_engine_that_is_gone(start: Start, second: Fake) -> None:
    with fake_engine() as engine:
        gateway = start(engine)
        assert gateway.http.get("/ready").json()["status"] == "ready"
    answer = gateway.chat()
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "engine_unavailable"
    assert int(answer.headers["retry-after"]) >= 1
    assert gateway.http.get("/ready").status_code == 503
    assert gateway.http.get("/health").status_code == 200  # the gateway itself is well: do not restart it
    assert MODEL in [card["id"] for card in gateway.get("/v1/models").json()["data"]]
    port = int(engine.url.rpartition(":")[2])
    with fake_engine(port):
        eventually(lambda: gateway.chat().status_code == 200)


def test_before_any_engine_is_ready(start: Start) -> None:
    with fake_engine(healthy=False) as engine:
        gateway = start(engine, wait=False)
        assert gateway.chat().status_code == 503
        assert gateway.chat(model="who-knows").status_code == 503  # not 404: nobody has said yet what is served
        engine.healthy = True
        eventually(lambda: gateway.chat().status_code == 200)


def test_the_openapi_document_names_what_there_is(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/usage"} <= set(
        document["paths"]
    )
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "403", "404", "413", "429", "502", "503", "504"} <= set(chat["responses"])
    reference = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert "messages" in document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named <= set(document["components"]["schemas"])
    assert gateway.http.get("/docs").status_code == 404  # it would load scripts from elsewhere
