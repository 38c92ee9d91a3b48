"""Streams: bytes unchanged, tokens counted, nobody computes for a client that has left."""

import json
import socket
import time

import pytest
from conftest import Gateway, Start, chat_body, eventually
from fake_engine import Fake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from step5_serving import exchange
from step5_serving.stream import ENDS, Events, Usage, read_usage

ASKED = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("piece", [None, 7])
def test_a_stream_arrives_byte_for_byte(gateway: Gateway, engine: Fake, piece: int | None) -> None:
    engine.piece = piece
    assert gateway.stream(**ASKED) == engine.sent[-1]
    row = gateway.rows()[-1]
    assert (row["prompt"], row["cached"], row["completion"], row["estimated"]) == (3, 1, 4, 0)
    assert 0 < row["first_token"] <= row["seconds"]


def test_token_counts_that_the_client_did_not_ask_for_are_read_and_left_out(gateway: Gateway, engine: Fake) -> None:
    got = gateway.stream()
    assert engine.last["stream_options"] == {"include_usage": True}
    usage = next(event for event in engine.sent[-1].split(b"\n\n") if b'"usage"' in event)
    assert got == engine.sent[-1].replace(usage + b"\n\n", b"")
    assert b"usage" not in got
    assert gateway.rows()[-1]["completion"] == 4
    gateway.stream(stream_options={"include_usage": False, "other": 1})
    assert engine.last["stream_options"] == {"include_usage": True, "other": 1}


def test_other_line_ends_are_understood(gateway: Gateway, engine: Fake) -> None:
    engine.end, engine.piece = b"\r\n\r\n", 5
    assert gateway.stream(**ASKED) == engine.sent[-1]
    assert gateway.rows()[-1]["completion"] == 4


def test_tokens_arrive_when_they_are_made(gateway: Gateway, engine: Fake) -> None:
    engine.seconds_per_token, engine.tokens = 0.05, 6
    with gateway.streaming() as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        blocks = response.iter_raw()  # held: httpx hangs up when the iterator is dropped
        next(blocks)
        assert engine.running == 1  # the first byte is here and the engine is still at it


def test_plain_completions_stream_too(gateway: Gateway, engine: Fake) -> None:
    body = {"model": "fake-model", "prompt": "one two", "stream": True, **ASKED}
    assert gateway.post("/v1/completions", json=body).content == engine.sent[-1]
    assert (gateway.rows()[-1]["prompt"], gateway.rows()[-1]["completion"]) == (2, 4)


def test_an_event_larger_than_what_is_held_back(gateway: Gateway, engine: Fake) -> None:
    engine.failures.append("huge")
    assert gateway.stream(**ASKED) == engine.sent[-1]
    assert gateway.rows()[-1]["completion"] == 4


def test_an_engine_that_does_not_count(gateway: Gateway, engine: Fake) -> None:
    engine.failures += ["no usage", "no usage"]
    gateway.stream()
    gateway.chat()
    for row in gateway.rows():
        assert row["estimated"] == 1
        assert row["completion"] >= 4  # an event each, or what was expected


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_not_computed_for_and_counted_exactly(
    gateway: Gateway, engine: Fake, stream: bool
) -> None:
    engine.seconds_per_token, engine.tokens = 0.02, 1000
    with socket.create_connection(gateway.address) as connection:
        connection.sendall(raw_request(gateway, stream=stream))
        eventually(lambda: engine.completion_tokens >= 3)
    eventually(lambda: engine.running == 0)
    eventually(lambda: gateway.parts.admission.running == 0)
    row = gateway.rows()[-1]
    assert (row["outcome"], row["status"], row["estimated"]) == ("client_left", 499, 0)
    assert (row["prompt"], row["completion"]) == (engine.prompt_tokens, engine.completion_tokens)
    assert row["completion"] < 1000
    assert engine.left == 0  # it was asked to stop and said what it had done
    assert engine.aborted[0] == f"chatcmpl-{row['id']}"


def test_an_engine_that_cannot_abort_by_name_is_hung_up_on(gateway: Gateway, engine: Fake) -> None:
    engine.seconds_per_token, engine.tokens, engine.can_abort = 0.02, 1000, False
    with gateway.streaming() as response:
        blocks = response.iter_raw()
        for _ in range(4):
            next(blocks)
    eventually(lambda: engine.left == 1 and engine.running == 0)
    eventually(lambda: gateway.parts.admission.running == 0)
    row = gateway.rows()[-1]
    assert (row["outcome"], row["estimated"]) == ("client_left", 1)
    assert abs(row["completion"] - engine.completion_tokens) <= 3


def test_who_leaves_before_the_first_token_pays_nothing(gateway: Gateway, engine: Fake) -> None:
    engine.seconds_before = 30
    with socket.create_connection(gateway.address) as connection:
        connection.sendall(raw_request(gateway, stream=True))
        eventually(lambda: engine.running == 1)
    eventually(lambda: gateway.parts.admission.running == 0)
    assert (engine.prompt_tokens, engine.completion_tokens) == (0, 0)
    assert (gateway.rows()[-1]["prompt"], gateway.rows()[-1]["completion"]) == (0, 0)


def test_who_leaves_the_queue_never_reaches_an_engine(start: Start, engine: Fake) -> None:
    engine.seconds_per_token = 0.2
    gateway = start(engine, slots=1)

    def impatient() -> None:
        eventually(lambda: gateway.parts.admission.running == 1)
        with socket.create_connection(gateway.address) as connection:
            connection.sendall(raw_request(gateway, stream=True))
            eventually(lambda: gateway.parts.admission.queued == 1)
        eventually(lambda: gateway.parts.admission.queued == 0)

    gateway.at_once([gateway.chat, impatient])
    assert len(engine.seen) == 1
    assert len(gateway.rows()) == 1
    assert gateway.metric("gateway_errors_total", kind="client_left") == 1


def test_a_client_that_does_not_read_slows_the_engine_and_is_cut_off(
    start: Start, engine: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 MB for a client with a small window: they do not pile up here, and the slot comes back."""
    from step5_serving.service import Timeouts

    monkeypatch.setattr(exchange, "ABORT_SECONDS", 0.02)
    engine.tokens, engine.word_bytes = 300, 200_000
    gateway = start(engine, timeouts=Timeouts(total=1.5))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(gateway.address)
        connection.sendall(raw_request(gateway, stream=True))
        eventually(lambda: engine.running == 1)
        time.sleep(0.7)
        assert engine.completion_tokens < 200  # the rest waits in the engine
        eventually(lambda: engine.running == 0 and gateway.parts.admission.running == 0, seconds=15)
    assert gateway.rows()[-1]["outcome"] == "total_timeout"


def test_a_stream_that_breaks_off_ends_with_an_error(gateway: Gateway, engine: Fake) -> None:
    engine.failures.append("cut")
    events = gateway.stream().split(b"\n\n")
    assert events[-1] == b""
    error = json.loads(events[-2].removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "engine_lost")
    assert b"[DONE]" not in events
    assert len(engine.seen) == 1  # bytes were sent: it is not tried again
    row = gateway.rows()[-1]
    assert (row["outcome"], row["estimated"]) == ("engine_lost", 1)
    assert row["completion"] >= 2


EVENT = st.one_of(
    st.text(max_size=30).map(lambda text: json.dumps({"choices": [{"delta": {"content": text}}]})),
    st.sampled_from(
        ['{"choices":[{"delta":{"content":"\\"usage\\" [DONE]"}}]}', '{"choices":[{"delta":{}}],"usage":null}']
    ),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENT, max_size=8), st.booleans(), st.sampled_from(ENDS), st.data())
def test_however_the_network_cuts_it(texts: list[str], hide: bool, end: bytes, data: st.DataObject) -> None:
    usage = '{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 9}}'
    payloads = [b"data: " + text.encode() + end for text in [*texts, usage, "[DONE]"]]
    stream = b"".join(payloads)
    events, out = Events(hide), b""
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        out += events.feed(stream[:size])
        stream = stream[size:]
    out += events.finish()
    assert out == b"".join(payload for payload in payloads if not (hide and payload == payloads[-2]))
    assert events.usage == Usage(7, 0, 9)
    assert events.events == len(texts)
    assert events.done


@pytest.mark.parametrize(
    "document", [None, [], {}, {"usage": None}, {"usage": []}, {"usage": {"prompt_tokens": "3"}},
                 {"usage": {"prompt_tokens": -1}}, {"usage": {"prompt_tokens": True}}],
)  # fmt: skip
def test_counts_that_make_no_sense_are_none(document: object) -> None:
    assert read_usage(document) is None


def raw_request(gateway: Gateway, **body: object) -> bytes:
    """The bytes of a chat request."""
    content = json.dumps(chat_body(**body)).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s" % (gateway.key.encode(), len(content), content)
    )
