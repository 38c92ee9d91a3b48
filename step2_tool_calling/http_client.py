"""The one way a tool reaches the network, and the guards on that way.

A model chooses what to fetch, and text that it has read may choose for it. So whatever URL arrives here is treated as
hostile: it may name this machine, a router, a cloud's metadata service, an endless body, or a server that never ends
its answer. Each guard stands beside its reason, here and in connection.py (which addresses a connection may go to);
tests/step2/test_http_client.py and test_connection.py try to get past each of them.

    async with HttpClient(allow_hosts={"api.open-meteo.com"}) as client:
        response = await client.request("GET", "https://api.open-meteo.com/v1/forecast", params={"latitude": 59.9})

Proxies (HTTP_PROXY and the like) and ~/.netrc are ignored: behind a proxy it is the proxy that looks up the name and
connects, so nobody here could check the address, and netrc would send passwords to a host that the model picked.
Certificates named by SSL_CERT_FILE are honoured. httpx takes about 0.1 s to import: import this module lazily.
"""

import asyncio
import json
import logging
import re
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Self

import httpx
import tenacity

from step2_tool_calling.connection import CheckedTransport
from step2_tool_calling.tool import ToolError

USER_AGENT = "llm-engineer-roadmap/0.1 (step2_tool_calling; python-httpx)"  # Wikipedia refuses requests without one
MAX_REDIRECTS = 5
FIRST_PAUSE, MAX_PAUSE = 0.25, 5.0  # seconds before the first retry, and the longest Retry-After we sit out
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})  # RFC 9110, 9.2.2: doing it twice does no harm
TRANSIENT = frozenset({429, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})

# These decide whom the request reaches and where it ends; a caller who sets them could slip past the host check
# (virtual hosts) or hide a second request in the body. We also decode the body ourselves, see _body.
OUR_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "accept-encoding"}
)
HARMLESS_HEADERS = frozenset({"accept", "accept-language", "content-type", "user-agent"})

# At INFO httpx logs each URL with its query, and keys travel in queries.
logging.getLogger("httpx").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Response:
    """An answer of any status; the caller judges it. text: the decoded body. host: who answered, for error messages."""

    status: int
    text: str
    host: str = ""

    def json(self) -> Any:
        """The body as JSON. Raises ToolError when it is something else."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            raise ToolError(f"{self.host or 'the server'} did not answer in JSON (status {self.status})") from None


def masked(text: str) -> str:
    """A URL fit for messages and logs: passwords and values of key-like query names are replaced by ***."""
    text = re.sub(r"(?<=//)[^/?#\s@]*@", "***@", text)
    return re.sub(
        r"(?i)([?&;][^=&;#\s]*(?:key|token|secret|pass|auth|sig|code|session)[^=&;#\s]*=)[^&;#\s]*", r"\1***", text
    )


class HttpClient:
    """An HTTP client for URLs chosen by others. Use as `async with`, within one event loop.

    timeout: seconds for everything a request does: retries, pauses, redirects, the body. A server that sends a byte
    now and then keeps a per-read timeout content for ever. A connection must stand within a third of it, so that a
    lost packet can be retried. retries: further attempts after connection failures and status 429, 502, 503, 504,
    only for idempotent methods. max_bytes: of the body, after decompression. allow_hosts: exact names ("127.0.0.1"
    or "127.0.0.1:8080") and "*.example.org" for all below example.org; None means any public host. allow_private:
    connect to any address whatever; meant for the loopback sandbox, together with allow_hosts.
    """

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        retries: int = 3,
        max_bytes: int = 1_000_000,
        allow_hosts: Collection[str] | None = None,
        allow_private: bool = False,
    ) -> None:
        self._timeout = timeout
        self._retries = retries
        self._max_bytes = max_bytes
        self._allow_hosts = None if allow_hosts is None else {host.lower() for host in allow_hosts}
        self._client = httpx.AsyncClient(
            transport=CheckedTransport(allow_private),
            trust_env=False,  # no proxy, no netrc, even should httpx begin to apply them to own transports
            follow_redirects=False,  # each hop is checked here first
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one call must leave nothing for the next
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip"},
            timeout=httpx.Timeout(None, connect=timeout / 3),  # all else is under the deadline in request()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.aclose()

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> Response:
        """Send a request and return the answer, whatever its status.

        params are added to the URL's query; None values are left out. json: a body to send. Raises ToolError when the
        URL is refused, the server cannot be reached in time, or the answer is too large.
        """
        method = method.upper()
        target = _parsed(url)
        if params:
            target = target.copy_merge_params({name: value for name, value in params.items() if value is not None})
        given = _checked_headers(headers or {})
        self._check(target)
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, _TransientError) and error.pause <= MAX_PAUSE
            ),
            # No pause is begun that the deadline would cut off: the real reason is a better message than "timed out".
            stop=tenacity.stop_after_attempt(1 + (self._retries if method in IDEMPOTENT else 0))
            | tenacity.stop_before_delay(self._timeout),
            wait=_pause,
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._timeout):
                return await retrying(self._follow, method, target, given, json)
        except _TransientError as last:
            if last.response is not None:
                return last.response
            raise ToolError(str(last)) from None
        except TimeoutError:
            raise ToolError(f"{target.host} did not answer within {self._timeout:g} s") from None

    async def _follow(self, method: str, url: httpx.URL, headers: dict[str, str], body: Any) -> Response:
        """One attempt: the request and the redirects it leads to. Raises _TransientError when another may succeed."""
        for _ in range(1 + MAX_REDIRECTS):
            try:
                async with self._client.stream(method, url, headers=headers, json=body) as answer:
                    location = answer.headers.get("location")
                    if answer.status_code not in REDIRECTS or location is None:
                        response = Response(answer.status_code, await self._body(answer), url.host)
                        if answer.status_code in TRANSIENT:
                            raise _TransientError(
                                response=response, pause=_retry_after(answer.headers.get("retry-after"))
                            )
                        return response
            except httpx.TransportError as error:
                reason = str(error)[:200]
                verb = "could not connect to" if isinstance(error, httpx.ConnectError) else "lost the connection to"
                if isinstance(error, httpx.ConnectTimeout):
                    verb, reason = "could not connect to", f"no answer within {self._timeout / 3:.2g} s"
                raise _TransientError(f"{verb} {url.host}" + (f": {reason}" if reason else "")) from None

            target = _parsed(location, base=url)
            self._check(target)
            if url.scheme == "https" and target.scheme == "http":
                raise ToolError(f"{url.host} redirects from https to http, which is refused")
            if _origin(target) != _origin(url):
                # Credentials were meant for the first host. An API key may be in a header of any name, so only
                # headers known to be harmless go along, and a body does not.
                headers = {name: value for name, value in headers.items() if name.lower() in HARMLESS_HEADERS}
                if body is not None:
                    raise ToolError(f"{url.host} redirects a {method} with a body to another host, which is refused")
            if answer.status_code == 303 or (answer.status_code in (301, 302) and method == "POST"):
                method, body = ("HEAD" if method == "HEAD" else "GET"), None  # RFC 9110, 15.4
            url = target
        raise ToolError(f"{url.host} redirected more than {MAX_REDIRECTS} times")

    def _check(self, url: httpx.URL) -> None:
        """Refuse what can be refused before looking up the name; the address is checked on connecting."""
        if url.scheme not in ("http", "https"):  # file:, ftp:, data:, gopher: ...
            raise ToolError(f"only http and https addresses are allowed, not {url.scheme or 'one without a scheme'}")
        if not url.host:
            raise ToolError("the address names no host")
        if (url.port or 0) > 65535:
            raise ToolError(f"{url.port} is not a port number")
        if url.userinfo:  # https://trusted.org@evil.org/ reads as trusted.org
            raise ToolError("user names and passwords in an address are refused")
        if self._allow_hosts is not None:
            host = url.raw_host.decode().lower().rstrip(".")
            wildcards = {"*." + host.split(".", i)[i] for i in range(1, host.count(".") + 1)}
            if not ({host, f"{host}:{_origin(url)[2]}"} | wildcards) & self._allow_hosts:
                raise ToolError(f"{url.host} is not among the allowed hosts ({', '.join(sorted(self._allow_hosts))})")

    async def _body(self, answer: httpx.Response) -> str:
        """Read at most max_bytes of body.

        Decompressed here and not by httpx: its decoders expand a whole chunk before anyone can count, and 64 KB of gzip
        may hold 64 MB; stacked codings ("gzip, gzip") multiply that.
        """
        coding = answer.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip"):
            raise ToolError(f"{answer.url.host} answered in the encoding {coding[:30]!r}, which is not supported")
        unpack = zlib.decompressobj(wbits=31) if coding == "gzip" else None
        content, received = bytearray(), 0
        async for chunk in answer.aiter_raw():
            received += len(chunk)
            try:
                content += unpack.decompress(chunk, self._max_bytes + 1 - len(content)) if unpack else chunk
            except zlib.error:
                raise ToolError(f"{answer.url.host} answered with a broken gzip body") from None
            if max(received, len(content)) > self._max_bytes:
                raise ToolError(
                    f"the answer of {answer.url.host} is larger than {self._max_bytes:,} bytes; ask for less"
                )
        # Only encodings known to decode in linear time to text: Python also knows "zip", "punycode" and others.
        encoding = (answer.charset_encoding or "utf-8").lower()
        known = {"utf-8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "windows-1252", "utf-16"}
        return content.decode(encoding if encoding in known else "utf-8", errors="replace")


class _TransientError(Exception):
    """An attempt failed in a way that may pass. response: the 429 or 5xx, if one came. pause: seconds it asked for."""

    def __init__(self, reason: str = "", *, response: Response | None = None, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.response = response
        self.pause = pause


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: doubling, with jitter so that parallel calls do not come back all at once."""
    backoff = tenacity.wait_exponential_jitter(initial=FIRST_PAUSE, max=MAX_PAUSE, jitter=FIRST_PAUSE)(state)
    error = state.outcome.exception() if state.outcome else None
    return max(backoff, error.pause) if isinstance(error, _TransientError) else backoff


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for (a number or a date), 0 when there is none or it is unreadable."""
    if value is None:
        return 0.0
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _parsed(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """Parse an address, relative to base if given; httpx refuses control characters (CR, LF) and impossible hosts."""
    try:
        return base.join(url) if base is not None else httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise ToolError(f"not a usable address: {masked(str(url))[:200]!r}") from None


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Refuse header names and values that could end the header and begin another (CR, LF), and those that are ours."""
    for name, value in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or re.search(r"[^\t\x20-\x7e]", str(value)):
            raise ToolError(f"the header {name[:40]!r} holds characters that are not allowed in a header")
        if name.lower() in OUR_HEADERS:
            raise ToolError(f"the header {name!r} may not be set")
    return {name: str(value) for name, value in headers.items()}
