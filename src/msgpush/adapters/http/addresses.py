"""IP addresses, one notation for each; and the proxies whose word for a client's is taken."""

import re
from collections.abc import Awaitable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from msgpush.adapters.http.requests import header

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Proxy = Network | Literal["unix"]

_MAPPED_BITS = (
    96  # of ::ffff:0:0/96, in which IPv6 has the IPv4 addresses (RFC 4291, section 2.5.5.2)
)
_WITH_PORT = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::([0-9]{1,5}))?")


def read_address(text: str) -> Address:
    """The address that a text names. An IPv4 one is an IPv4 one, also where it is mapped into IPv6.

    Raises:
        ValueError: it names none.
    """
    address = ip_address(text)
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def read_network(text: str) -> Network:
    """The network, or the one address, that a text names; IPv4 ones as `read_address` takes them.

    Raises:
        ValueError: it names none, or has host bits, or is of one link alone (`%`).
    """
    network = ip_network(text)
    if isinstance(network, IPv4Network):
        return network
    if "%" in text:
        raise ValueError("the zone of an address means nothing elsewhere")
    if network.prefixlen >= _MAPPED_BITS and (mapped := network.network_address.ipv4_mapped):
        return IPv4Network((int(mapped), network.prefixlen - _MAPPED_BITS))
    return network


def one_notation(host: str) -> str:
    """An address as it is written everywhere here; what is no address, as it is."""
    try:
        return str(read_address(host))
    except ValueError:
        return host


def with_port(host: str, port: int) -> str:
    """An address and a port in one text: an IPv6 one in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def limited_address(host: str) -> str:
    """The address that limits count by: of IPv6 its network of 64 bits.

    Whoever has one address has all of those."""
    try:
        address = read_address(host)
    except ValueError:
        return host
    return str(address if address.version == 4 else IPv6Network((int(address), 64), strict=False))


class ProxyHeaders:
    """Takes a trusted proxy's word for a request's client and scheme: its `X-Forwarded-*` headers.

    Args:
        trusted: addresses of proxies; "unix" is whoever connects to a unix socket.
    """

    def __init__(self, app: ASGIApp, trusted: Iterable[Proxy]) -> None:
        self._app = app
        trusted = tuple(trusted)
        self._unix = "unix" in trusted
        self._networks = tuple(each for each in trusted if each != "unix")

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine of its own: that would cost every open stream half a kilobyte.
        if scope["type"] in ("http", "websocket") and self._trusts_peer(scope):
            self._believe(scope)
        return self._app(scope, receive, send)

    def _trusts_peer(self, scope: Scope) -> bool:
        client = scope.get("client")
        return self._unix if client is None else self._trusts(client[0])

    def _trusts(self, host: str) -> bool:
        try:
            address = read_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def _believe(self, scope: Scope) -> None:
        # Of a WebSocket some proxies say ws or wss: Traefik does.
        if (scheme := header(scope, b"x-forwarded-proto")) in ("http", "https", "ws", "wss"):
            secure = "s" if scheme in ("https", "wss") else ""
            scope["scheme"] = ("http" if scope["type"] == "http" else "ws") + secure
        told = [
            value.decode("latin-1")
            for name, value in scope["headers"]
            if name == b"x-forwarded-for"
        ]
        if hops := [hop.strip() for hop in ",".join(told).split(",") if hop.strip()]:
            scope["client"] = self._client(hops)

    def _client(self, hops: Sequence[str]) -> tuple[str, int]:
        # Each proxy adds whom it was asked by: what a client wrote itself stands before the last
        # that is no proxy.
        hosts = [_host_and_port(hop) for hop in hops]
        return next((each for each in reversed(hosts) if not self._trusts(each[0])), hosts[0])


def _host_and_port(hop: str) -> tuple[str, int]:
    """The address that a proxy names, and its port, if it has one; IPv6 is in brackets then."""
    found = _WITH_PORT.fullmatch(hop)
    if found is None:
        return one_notation(hop), 0
    port = int(found[3] or 0)
    return one_notation(found[1] or found[2] or ""), port if port <= 65535 else 0
