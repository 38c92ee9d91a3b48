"""Whom a tool may reach: addresses, names, redirects and lists of hosts, each attacked.

python -m pytest tests/step2/test_connection.py
"""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpcore
import httpx
import pytest
from loopback import PUBLIC, Internet, Server, fetch, local, reply

from step2_tool_calling import http_client
from step2_tool_calling.connection import is_public
from step2_tool_calling.tool import ToolError


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.fixture
def internet(server: Server, monkeypatch: pytest.MonkeyPatch) -> Internet:
    return Internet(server, monkeypatch)


def mocked(monkeypatch: pytest.MonkeyPatch, handler: Callable[[httpx.Request], httpx.Response]) -> list[httpx.Request]:
    """Replace the network by a function; returns the requests it saw."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return handler(request)

    monkeypatch.setattr(http_client, "CheckedTransport", lambda allow_private: httpx.MockTransport(answer))
    return seen


# -- whom a request may reach ------------------------------------------------------------------------------------------

NOT_PUBLIC = """
127.0.0.1 127.8.8.8 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1
100.100.100.200 192.0.0.8 192.0.2.1 198.18.0.1 192.88.99.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 ::
::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808
64:ff9b:1::a00:1 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1 2001::1 2002:7f00:1::1
100::1 3fff::1
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", PUBLIC, "172.32.0.1", "100.128.0.1", "2606:4700::6810:84e5", "::ffff:8.8.8.8"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


PRIVATE_HOSTS = """
127.0.0.1 127.1 2130706433 0x7f000001 0x7f.0.0.1 017700000001 0177.1 0 localhost LOCALHOST 10.0.0.1
169.254.169.254 0xa9fea9fe 2852039166 [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:a9fe:a9fe]
[64:ff9b::a9fe:a9fe] [fd00:ec2::254] [fe80::1] metadata.test private.test
"""


@pytest.mark.parametrize("host", PRIVATE_HOSTS.split())
def test_every_spelling_of_a_private_address_is_refused(internet: Internet, server: Server, host: str) -> None:
    internet.names |= {
        "localhost": [["::1", "127.0.0.1"]],
        "metadata.test": [["169.254.169.254"]],
        "private.test": [["10.0.0.7", "fd00::7"]],
    }
    with pytest.raises(ToolError, match="no public address; private, loopback and link-local addresses are refused"):
        fetch(f"http://{host}:{server.port}/latest/meta-data/")
    assert internet.connected == []
    assert server.requests == []


def test_localhost_through_the_real_resolver(server: Server) -> None:
    with pytest.raises(ToolError, match="localhost has no public address"):
        fetch(f"http://localhost:{server.port}/")
    assert local(f"http://localhost:{server.port}/").text == "hello"  # the guard, and nothing else, was in the way


def test_a_name_with_public_and_private_addresses_reaches_the_public_one_only(internet: Internet) -> None:
    internet.names["mixed.test"] = [["127.0.0.1", "::1", "10.0.0.1", PUBLIC]]
    assert fetch("http://mixed.test/").text == "hello"
    assert internet.connected == [PUBLIC]


def test_rebinding_the_address_that_was_checked_is_the_one_connected_to(internet: Internet) -> None:
    internet.names["rebind.test"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetch("http://rebind.test/").text == "hello"
    assert internet.lookups == ["rebind.test"]  # looked up once: nothing to rebind between check and connect
    with pytest.raises(ToolError, match="no public address"):  # and a new connection is checked again
        fetch("http://rebind.test/")
    assert internet.connected == [PUBLIC]


def test_tls_is_checked_against_the_name_not_the_address(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str | None] = []

    class Stream(httpcore.AsyncNetworkStream):
        async def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: Any = None) -> Any:
            assert ssl_context.check_hostname
            names.append(server_hostname)
            raise httpcore.ConnectError("certificate verify failed")

    async def connect(*args: Any, **kwargs: Any) -> Stream:
        return Stream()

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    with pytest.raises(ToolError, match="could not connect to public.test: certificate verify failed"):
        fetch("https://public.test/", options={"retries": 0})
    assert names == ["public.test"]


def test_the_next_address_is_tried_when_the_first_does_not_answer(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    internet.names["two.test"] = [["2606:4700::1", "93.184.215.1", PUBLIC]]
    through = httpcore.AnyIOBackend.connect_tcp

    async def connect(backend: Any, host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "93.184.215.1":
            raise httpcore.ConnectTimeout
        return await through(backend, host, *args, **kwargs)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    assert fetch("http://two.test/").status == 200
    assert internet.connected == [PUBLIC]  # IPv4 before IPv6


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("ftp://public.test/", "only http and https"),
        ("gopher://public.test:6379/_FLUSHALL", "only http and https"),
        ("data:text/plain,hello", "only http and https"),
        ("//public.test/", "without a scheme"),
        ("public.test", "without a scheme"),
        ("http:///path", "names no host"),
        ("http://trusted.org@public.test/", "user names and passwords"),
        ("http://user:hunter2@public.test/", "user names and passwords"),
        ("http://public.test/\r\nHost: evil", "not a usable address"),
        ("http://public.test:99999/", "not a port number"),
        ("http://public.test:x/", "not a usable address"),
        ("http://[::1/", "not a usable address"),
        ("http://" + "a" * 300 + ".test/", "could not connect|not a usable address"),
        ("http://nosuch.test/", "could not connect to nosuch.test: Name or service not known"),
        ("", "without a scheme"),
    ],
)
def test_addresses_that_are_no_business_of_a_tool(internet: Internet, url: str, reason: str) -> None:
    with pytest.raises(ToolError, match=reason) as caught:
        fetch(url, options={"retries": 0})
    assert "hunter2" not in str(caught.value)
    assert internet.connected == []


@pytest.mark.parametrize(
    ("host", "allowed", "passes"),
    [
        ("public.test", {"public.test"}, True),
        ("PUBLIC.test", {"Public.Test"}, True),
        ("public.test.", {"public.test"}, True),
        ("public.test", {"*.test"}, True),
        ("public.test", {"public.test:80"}, True),
        ("public.test", {"public.test:8080"}, False),
        ("public.test", {"*.public.test"}, False),
        ("public.test", {"test"}, False),
        ("public.test", set(), False),
        ("evil-public.test", {"public.test", "*.public.test"}, False),
        ("public.test.evil.test", {"public.test", "*.public.test"}, False),
    ],
)
def test_the_list_of_allowed_hosts(internet: Internet, host: str, allowed: set[str], passes: bool) -> None:
    internet.names |= {name: [[PUBLIC]] for name in ("public.test.", "evil-public.test", "public.test.evil.test")}
    if passes:
        assert fetch(f"http://{host}/", options={"allow_hosts": allowed}).text == "hello"
    else:
        with pytest.raises(ToolError, match="is not among the allowed hosts"):
            fetch(f"http://{host}/", options={"allow_hosts": allowed})
        assert internet.lookups == []  # a look-up alone can carry data out


def test_proxies_and_netrc_are_ignored(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert local(server.url).text == "hello"
    assert "Authorization" not in server.requests[0][2]


# -- redirects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.1:{port}/secret", "no public address"),
        ("http://169.254.169.254/latest/meta-data/iam", "no public address"),
        ("//localhost:{port}/secret", "no public address"),
        ("http://2130706433:{port}/", "no public address"),
        ("http://[::ffff:127.0.0.1]:{port}/", "no public address"),
        ("http://private.test/", "no public address"),
        ("file:///etc/passwd", "only http and https"),
        ("gopher://public.test/", "only http and https"),
        ("http://me:hunter2@public.test/", "user names and passwords"),
    ],
)
def test_redirects_are_checked_like_first_requests(
    internet: Internet, server: Server, location: str, reason: str
) -> None:
    internet.names |= {"private.test": [["192.168.0.1"]], "localhost": [["127.0.0.1"]]}
    target = location.format(port=server.port)
    server.answer = lambda handler: reply(handler, b"", 302, Location=target)
    with pytest.raises(ToolError, match=reason):
        fetch("http://public.test/start")
    assert [request[1] for request in server.requests] == ["/start"]


def test_a_redirect_may_not_leave_the_allowed_hosts(internet: Internet, server: Server) -> None:
    internet.names["other.test"] = [[PUBLIC]]
    server.answer = lambda handler: reply(handler, b"", 302, Location="http://other.test/")
    with pytest.raises(ToolError, match="other.test is not among the allowed hosts"):
        fetch("http://public.test/", options={"allow_hosts": {"public.test"}})
    assert len(server.requests) == 1


def test_relative_redirects_are_followed_five_times_at_most(server: Server) -> None:
    def count_down(handler: BaseHTTPRequestHandler) -> None:
        left = int(handler.path.strip("/"))
        reply(handler, b"done") if left == 0 else reply(handler, b"", 302, Location=f"/{left - 1}")

    server.answer = count_down
    assert local(f"{server.url}/5").text == "done"
    with pytest.raises(ToolError, match="redirected more than 5 times"):
        local(f"{server.url}/6")
    server.requests.clear()
    server.answer = lambda handler: reply(handler, b"", 307, Location=handler.path)
    with pytest.raises(ToolError, match="redirected more than 5 times"):
        local(f"{server.url}/loop")
    assert len(server.requests) == 6


def test_credentials_stay_with_their_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def hop(request: httpx.Request) -> httpx.Response:
        ways = {"/a": "https://one.test/b", "/b": "https://two.test/c", "/c": "https://one.test/d"}
        location = ways.get(request.url.path)
        return (
            httpx.Response(302, headers={"Location": location})
            if location
            else httpx.Response(200, stream=httpx.ByteStream(b"end"))
        )

    seen = mocked(monkeypatch, hop)
    headers = {"Authorization": "Bearer hunter2", "X-Api-Key": "hunter2", "Cookie": "s=hunter2", "Accept": "text/plain"}
    assert fetch("https://one.test/a", headers=headers).text == "end"
    carried = [{name for name in ("authorization", "x-api-key", "cookie") if name in one.headers} for one in seen]
    assert carried == [{"authorization", "x-api-key", "cookie"}] * 2 + [set(), set()]  # and they do not come back
    assert [one.headers["accept"] for one in seen] == ["text/plain"] * 4


def test_a_redirect_from_https_to_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = mocked(monkeypatch, lambda request: httpx.Response(301, headers={"Location": "http://one.test/"}))
    with pytest.raises(ToolError, match="one.test redirects from https to http"):
        fetch("https://one.test/")
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("status", "expected"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")]
)
def test_the_method_after_a_redirect(server: Server, status: int, expected: str) -> None:
    server.answer = lambda handler: (
        reply(handler, b"", status, Location="/next") if handler.path == "/" else reply(handler, b"ok")
    )
    assert local(server.url + "/", "POST", json={"a": 1}).text == "ok"
    method, path, _, body = server.requests[-1]
    assert (method, path, body) == (expected, "/next", b'{"a":1}' if expected == "POST" else b"")


def test_a_body_is_not_carried_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = mocked(monkeypatch, lambda request: httpx.Response(307, headers={"Location": "https://two.test/"}))
    with pytest.raises(ToolError, match="redirects a POST with a body to another host"):
        fetch("https://one.test/", "POST", json={"secret": 1})
    assert len(seen) == 1
