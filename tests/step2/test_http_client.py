"""The guards of http_client.py on bodies, time, retries, headers and secrets, each attacked.

Whom a request may reach is attacked in test_connection.py.

python -m pytest tests/step2/test_http_client.py
"""

import asyncio
import gzip
import time
import tracemalloc
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from loopback import Internet, Server, fetch, local, reply

from step2_tool_calling import http_client
from step2_tool_calling.http_client import HttpClient, Response, masked
from step2_tool_calling.tool import ToolError


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_PAUSE", 0.001)


@pytest.fixture
def internet(server: Server, monkeypatch: pytest.MonkeyPatch) -> Internet:
    return Internet(server, monkeypatch)


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_the_size_limit_is_exact(server: Server) -> None:
    server.answer = lambda handler: reply(handler, b"x" * int(handler.path.strip("/")))
    assert len(local(f"{server.url}/1000", options={"max_bytes": 1000}).text) == 1000
    with pytest.raises(ToolError, match="the answer of 127.0.0.1 is larger than 1,000 bytes; ask for less"):
        local(f"{server.url}/1001", options={"max_bytes": 1000})


def test_an_endless_body_ends(server: Server) -> None:
    sent = []

    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            sent.append(1)

    server.answer = pour
    with pytest.raises(ToolError, match="larger than 1,000,000 bytes"):
        local(server.url)
    assert len(sent) < 1000


@pytest.mark.timeout(20)
def test_gzip_is_read_and_a_gzip_bomb_is_not(server: Server) -> None:
    server.answer = lambda handler: reply(handler, gzip.compress("grüß".encode()), Content_Encoding="gzip")
    assert local(server.url).text == "grüß"

    bomb = gzip.compress(b"\0" * 50_000_000)  # 49 KB: one chunk, which httpx would expand as a whole
    server.answer = lambda handler: reply(handler, bomb, Content_Encoding="gzip")
    tracemalloc.start()
    try:
        with pytest.raises(ToolError, match="larger than 1,000,000 bytes"):
            local(server.url)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", ["gzip, gzip", "br", "zstd", "deflate"])
def test_other_and_stacked_encodings_are_refused(server: Server, coding: str) -> None:
    server.answer = lambda handler: reply(handler, b"x", Content_Encoding=coding)
    with pytest.raises(ToolError, match="encoding .* not supported"):
        local(server.url)


def test_broken_gzip_and_bytes_after_its_end(server: Server) -> None:
    server.answer = lambda handler: reply(handler, b"not gzip", Content_Encoding="gzip")
    with pytest.raises(ToolError, match="broken gzip"):
        local(server.url)
    server.answer = lambda handler: reply(handler, gzip.compress(b"a") + b"\0" * 5000, Content_Encoding="gzip")
    with pytest.raises(ToolError, match="larger than 1,000 bytes"):
        local(server.url, options={"max_bytes": 1000})


@pytest.mark.parametrize("charset", ["zip", "punycode", "unicode_escape", "rot13", "nosuch", "idna"])
def test_strange_charsets_are_read_as_utf8(server: Server, charset: str) -> None:
    kind = f"text/plain; charset={charset}"
    server.answer = lambda handler: reply(handler, "é".encode(), Content_Type=kind)
    assert local(server.url).text == "é"


def test_latin_1_and_bytes_that_are_no_text(server: Server) -> None:
    server.answer = lambda handler: reply(handler, b"\xe9", Content_Type="text/plain; charset=ISO-8859-1")
    assert local(server.url).text == "é"
    server.answer = lambda handler: reply(handler, b"a\xff")
    assert local(server.url).text == "a\ufffd"


@pytest.mark.parametrize("text", ["", "<html>", "{", "[" * 100_000])
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(ToolError, match="api.test did not answer in JSON .status 200"):
        Response(200, text, "api.test").json()


# -- time --------------------------------------------------------------------------------------------------------------


def trickle_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def trickle_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for i in range(40):
        handler.wfile.write(f"X-{i}: y\r\n".encode())
        time.sleep(0.05)


def say_nothing(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.5)


@pytest.mark.parametrize("answer", [trickle_body, trickle_headers, say_nothing])
def test_the_deadline_is_for_the_whole_request(server: Server, answer: Any) -> None:
    server.answer = answer
    begun = time.monotonic()
    with pytest.raises(ToolError, match="^127.0.0.1 did not answer within 0.3 s$"):
        local(server.url, options={"timeout": 0.3})
    assert time.monotonic() - begun < 2


def test_redirects_and_retries_share_the_deadline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_PAUSE", 0.4)
    server.answer = lambda handler: reply(handler, b"busy", 503)
    # The next pause would outlast the deadline: what is known is returned now.
    assert local(server.url, options={"timeout": 0.3}).status == 503
    assert len(server.requests) == 1


def test_cancelling_a_request_is_not_a_timeout(server: Server) -> None:
    server.answer = say_nothing

    async def run() -> None:
        async with HttpClient(allow_private=True) as client:
            task = asyncio.create_task(client.request("GET", server.url))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


# -- retries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "statuses", "requests", "final"),
    [
        ("GET", [200], 1, 200),
        ("GET", [503, 200], 2, 200),
        ("GET", [429, 502, 504, 200], 4, 200),
        ("GET", [503] * 9, 4, 503),
        ("PUT", [503, 200], 2, 200),
        ("HEAD", [503, 200], 2, 200),
        ("POST", [503, 200], 1, 503),
        ("GET", [500, 200], 1, 500),
        ("GET", [404, 200], 1, 404),
    ],
)
def test_what_is_retried_and_how_often(
    server: Server, method: str, statuses: list[int], requests: int, final: int
) -> None:
    left = iter(statuses)
    server.answer = lambda handler: reply(handler, b"" if handler.command == "HEAD" else b"x", next(left))
    assert local(server.url, method).status == final
    assert len(server.requests) == requests


def test_a_dropped_connection_is_retried_for_idempotent_methods_only(server: Server) -> None:
    def drop(handler: BaseHTTPRequestHandler) -> None:
        if len(server.requests) % 2:
            handler.close_connection = True
        else:
            reply(handler, b"second")

    server.answer = drop
    assert local(server.url).text == "second"
    with pytest.raises(ToolError, match="lost the connection to 127.0.0.1"):
        local(server.url, "POST", json={})
    assert len(server.requests) == 3


def test_a_closed_port_is_named_after_the_retries(server: Server) -> None:
    server.close()
    with pytest.raises(ToolError, match="could not connect to 127.0.0.1"):
        local(server.url)


def test_retry_after_is_honoured_up_to_a_bound(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    left = iter([("2", 429), (formatdate(time.time() + 4, usegmt=True), 503), ("soon", 503), ("0", 200)])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        wait, status = next(left)
        reply(handler, b"x", status, Retry_After=wait)

    server.answer = answer
    assert local(server.url, options={"timeout": 60}).status == 200
    assert 2 <= pauses[0] < 2.1
    assert 2.5 < pauses[1] <= 4
    assert pauses[2] < 0.1

    server.requests.clear()
    server.answer = lambda handler: reply(handler, b"later", 429, Retry_After="20")
    assert local(server.url, options={"timeout": 60}).status == 429
    assert len(server.requests) == 1  # to ask again before that would only annoy


def test_pauses_double_and_vary(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr(http_client, "FIRST_PAUSE", 0.25)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    server.answer = lambda handler: reply(handler, b"x", 503)
    local(server.url, options={"timeout": 60})
    assert [0.25 * 2**i <= pause <= 0.25 * 2**i + 0.25 for i, pause in enumerate(pauses)] == [True] * 3
    assert len({round(pause / 0.25 - 2**i, 6) for i, pause in enumerate(pauses)}) == 3  # jitter


# -- headers, parameters, state, secrets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "b\r\nX-Evil: 1"},
        {"X-A": "b\nX-Evil: 1"},
        {"X-A\r\nX-Evil": "1"},
        {"X A": "1"},
        {"": "1"},
        {"X-A": "b\0"},
        {"Host": "evil.test"},
        {"hOST": "evil.test"},
        {"Content-Length": "3"},
        {"Transfer-Encoding": "chunked"},
        {"Connection": "upgrade"},
        {"Accept-Encoding": "br"},
    ],
)
def test_headers_that_would_forge_a_request(server: Server, headers: dict[str, str]) -> None:
    with pytest.raises(ToolError, match="header"):
        local(server.url, headers=headers)
    assert server.requests == []


def test_parameters_cannot_leave_the_query(server: Server) -> None:
    local(f"{server.url}/p?a=1", params={"q": "x\r\nEvil: 1 &b=2#f", "none": None, "n": 3})
    assert [request[1] for request in server.requests] == ["/p?a=1&q=x%0D%0AEvil%3A+1+%26b%3D2%23f&n=3"]


def test_cookies_are_not_kept(server: Server) -> None:
    server.answer = lambda handler: reply(handler, b"x", Set_Cookie="id=1; Path=/")

    async def run() -> None:
        async with HttpClient(allow_private=True) as client:
            for _ in range(2):
                await client.request("GET", server.url)

    asyncio.run(run())
    assert ["Cookie" in request[2] for request in server.requests] == [False, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://a.org/x?api_key=s3cret&q=1", "https://a.org/x?api_key=***&q=1"),
        ("https://a.org/x?q=1&ACCESS_TOKEN=s3cret#f", "https://a.org/x?q=1&ACCESS_TOKEN=***#f"),
        ("https://me:s3cret@a.org/x", "https://***@a.org/x"),
        ("https://a.org/?city=Oslo", "https://a.org/?city=Oslo"),
        (
            "https://a.org/?password=s3cret&sig=s3cret&client_secret=s3cret",
            "https://a.org/?password=***&sig=***&client_secret=***",
        ),
    ],
)
def test_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_secrets_stay_out_of_errors_and_of_the_log(
    internet: Internet, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    key = {"api_key": "s3cret"}
    server.answer = lambda handler: reply(handler, b"x" * 2000)
    for url in ("http://nosuch.test/", "http://10.0.0.1/", "http://public.test/", "http://public.test:x/?token=s3cret"):
        with pytest.raises(ToolError) as caught:
            fetch(url, params=key, headers={"Authorization": "s3cret"}, options={"max_bytes": 1000, "retries": 0})
        assert "s3cret" not in str(caught.value)
    assert "s3cret" not in caplog.text
