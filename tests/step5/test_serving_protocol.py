"""What arrives at an open port and is no request, or not only one: answered in OpenAI's shape or let go, never kept."""

import json
import socket
import time

import pytest
from conftest import Gateway, eventually
from fake_engine import Fake
from step5_hostile import HOSTILE, Raw, as_expected, attack

from step5_serving import protocol


def test_hostile_requests_one_by_one(gateway: Gateway, engine: Fake) -> None:
    for number, hostile in enumerate(HOSTILE):
        answers = attack(gateway.address, hostile, Raw(f"hostile-{number}", gateway.key))
        assert as_expected(hostile, [status for status, _ in answers]), (hostile.name, answers)
        for status, body in answers:
            if status >= 400:
                assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}, hostile.name
            if status == 200:
                assert json.loads(body)["usage"]["completion_tokens"] == 6
    eventually(lambda: gateway.metric("gateway_in_flight") == 0)
    assert gateway.parts.admission.running == gateway.parts.admission.queued == engine.running == 0
    ids = [line["client_id"] for line in gateway.log("request")]
    for number, hostile in enumerate(HOSTILE):
        logged = ids.count(f"hostile-{number}") + ids.count(f"hostile-{number}.2")
        assert hostile.logged[0] <= logged <= hostile.logged[1], (hostile.name, logged)
    assert gateway.log("bug") == []
    assert gateway.chat().status_code == 200


def test_another_protocol_is_declined_with_the_whole_body(gateway: Gateway, engine: Fake) -> None:
    """Every Java HttpClient offers h2c with its first request; the body may come later, another request after it."""
    raw = Raw("java", gateway.key)
    content = raw.body()
    head = raw.head(b"connection: Upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n" % len(content)) + b"\r\n"
    with socket.create_connection(gateway.address, timeout=30) as connection:
        for part in (head[:60], head[60:], content[:9], content[9:]):
            connection.sendall(part)
            time.sleep(0.02)
        first = connection.recv(65536)
        connection.sendall(raw.next().whole())
        second = connection.recv(65536)
    assert first.startswith(b"HTTP/1.1 200 OK"), first
    assert second.startswith(b"HTTP/1.1 200 OK"), second
    assert engine.seen[0][1] == content


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nho"])
def test_headers_that_never_come(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    with socket.create_connection(gateway.address, timeout=30) as connection:
        connection.sendall(sent)
        assert connection.recv(100) == b""


def test_headers_without_end(gateway: Gateway) -> None:
    """They are refused at the limit, not collected: the sender is cut off long before it has sent all of it."""
    with socket.create_connection(gateway.address, timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx: ")
        with pytest.raises(ConnectionError):
            connection.sendall(b"a" * 100_000_000)


def test_a_slow_answer_is_not_cut_off_by_the_time_for_headers(
    gateway: Gateway, engine: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    engine.seconds_per_token = 0.1
    raw = Raw("slow", gateway.key)
    with socket.create_connection(gateway.address, timeout=30) as connection:
        connection.sendall(raw.whole() + raw.next().head()[:50])  # half of the next one, for as long as it takes
        got = connection.recv(65536)
        assert got.startswith(b"HTTP/1.1 200 OK")


def test_whoever_hangs_up_with_two_requests_open_is_not_computed_for(gateway: Gateway, engine: Fake) -> None:
    engine.seconds_per_token = 0.2
    raw = Raw("two", gateway.key)
    with socket.create_connection(gateway.address) as connection:
        connection.sendall(raw.whole() + raw.next().whole())
        eventually(lambda: engine.completion_tokens == 1)
    eventually(lambda: engine.running == 0 and gateway.parts.admission.running == 0)
    assert engine.completion_tokens < 6
    assert [row["outcome"] for row in gateway.rows()] == ["client_left"]
