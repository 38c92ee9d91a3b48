"""Connections to the open internet only: look up, check, connect to what was checked.

The lowest layer of http_client.py, and the one that decides whom a tool can reach. It sees every connection, those
after a redirect included.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from functools import lru_cache

import httpcore
import httpx

from step2_tool_calling.tool import ToolError

# `is_global` differs between Python patch releases and follows the registry's letter, so what it lets through by some
# version is named here: IETF assignments, the 6to4 relay, tunnels that carry an IPv4 address inside, documentation.
NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "100.64.0.0/10", "2001::/23", "2002::/16", "3fff::/20")
]
# Every public IPv6 address is in here; outside are loopback, link-local, multicast, NAT64 (64:ff9b::/96), ::/96.
IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an IP address, as the resolver writes it, belongs to the open internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:  # ::ffff:127.0.0.1 connects to 127.0.0.1
            return is_public(str(ip.ipv4_mapped))
        if ip not in IPV6_UNICAST:
            return False
    if any(ip in network for network in NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_link_local)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Reading the certificate authorities takes 20 to 90 ms: once per process."""
    return httpx.create_ssl_context()


class CheckedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over a connection pool that looks up names through CheckedBackend.

    httpx has no public setting for the backend, so the pool is made here and the parent's constructor is not called:
    should a later httpx keep its pool elsewhere, this fails to work at all instead of working unchecked.
    """

    def __init__(self, allow_private: bool) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(),
            network_backend=CheckedBackend(allow_private),
            max_connections=50,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
        )


class CheckedBackend(httpcore.AnyIOBackend):
    """Look up a name once, check the addresses, connect to a checked address.

    Checking a name first and letting the library connect by name would look it up twice, and a hostile name server
    answers differently the second time (DNS rebinding). TLS is set up above this layer, with the host's name, so
    certificates are still checked against the name. Odd spellings of IPv4 (2130706433, 0x7f.1, 017700000001) need
    no rule of their own: what is checked is what the resolver made of them.
    """

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _lookup(host, port)
        if not self._allow_private:
            addresses = [address for address in addresses if is_public(address)]
            if not addresses:
                raise ToolError(f"{host} has no public address; private, loopback and link-local addresses are refused")
        failure: Exception = httpcore.ConnectError("no address")
        for address in addresses[:4]:
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


async def _lookup(host: str, port: int) -> list[str]:
    """The host's addresses, IPv4 first: a network whose IPv6 is broken costs a third of the time limit per attempt."""
    try:
        # The spellings above never leave this machine as a DNS question.
        return [socket.inet_ntoa(socket.inet_aton(host))]
    except OSError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a valid host name"
        raise httpcore.ConnectError(reason) from None
    addresses = [str(address[0]) for _, _, _, _, address in sorted(found, key=lambda item: item[0] != socket.AF_INET)]
    return list(dict.fromkeys(addresses))
