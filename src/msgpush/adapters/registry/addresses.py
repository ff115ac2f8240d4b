"""The address that others reach this machine at, where nobody has said it."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

# Of no machine (RFC 5737, RFC 3849): the route there is the default one.
ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def own_address(url: str, families: Iterable[socket.AddressFamily]) -> str | None:
    """The address of this machine on the route to a URL's host, or on the default route.

    Where the host is this machine, the first says nothing to others. No packet is sent; a name is
    looked up, which may take its time.

    Args:
        families: those in which the service can be reached, the preferred one first.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    families = tuple(families)
    routes = [(parts.hostname or "", family) for family in families]
    routes += [(ELSEWHERE[family], family) for family in families]
    for host, family in routes:
        found = _on_route(host, port, family)
        if found is not None and is_for_others(found):
            return found
    return None


def is_for_others(address: str) -> bool:
    """True for an address that other machines can use."""
    found = ipaddress.ip_address(address)
    return not (found.is_loopback or found.is_unspecified or found.is_link_local)


def _on_route(host: str, port: int, family: socket.AddressFamily) -> str | None:
    with contextlib.suppress(OSError, UnicodeError):
        for *_, target in socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM):
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                own: str = probe.getsockname()[0]
                return own.partition("%")[0]
    return None
