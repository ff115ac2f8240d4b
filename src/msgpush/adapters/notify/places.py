"""Which places on the network notices are sent to: those of push services, never inside.

A browser's endpoint is a URL that a stranger names. So its host has to be a known push service's,
and whatever its name resolves to has to be a public address: that is looked at as each connection
is made, and that very address is connected to, so that no second answer can lead elsewhere."""

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

LONGEST_ENDPOINT = 1_024
HTTPS = 443

# The browsers' own: Chrome and those made of it, Firefox, Safari, Edge.
BROWSERS = (
    "fcm.googleapis.com",
    "push.services.mozilla.com",
    "push.apple.com",
    "notify.windows.com",
)

# A name as it is looked up (RFC 1035, section 2.3.4), or an address.
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}([.][a-z0-9_-]{1,63})*")
_V6 = re.compile("[0-9a-f:.]+")

_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_6TO4 = ipaddress.ip_network("2002::/16")
_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")  # whose parts Python's releases judge differently
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Place(NamedTuple):
    """A host, and those below it; with a port: that host alone, and wherever it is."""

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The place that a text names: `push.example`, or `localhost:8443`.

        Raises:
            ValueError: it names none; its text continues "it".
        """
        try:
            parts = urlsplit(f"//{text}")
            host, port = (parts.hostname or "").removesuffix("."), parts.port
        except ValueError:
            host, port = "", None
        plain = text.isascii() and not set(text) & set("/?#@\\ ") and text.isprintable()
        named = _is_host(host, bracketed="[" in text)
        if not plain or not named or port == 0 or text.endswith(":"):
            raise ValueError("is no name of a host, nor one with a port, as localhost:8443")
        return cls(host, port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    def has(self, host: str, port: int) -> bool:
        """True if this host and port are meant."""
        if self.port is not None:
            return (host, port) == self
        return port == HTTPS and (host == self.host or host.endswith("." + self.host))


class Places:
    """The places where endpoints may be."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = tuple(places)

    def check(self, endpoint: str) -> str:
        """Check that a browser's endpoint may be sent to; returns it as browsers write it.

        So an endpoint is the same device, however it is written.

        Raises:
            ValueError: it may not; its text continues "it", and doesn't have the endpoint.
        """
        if len(endpoint) > LONGEST_ENDPOINT:
            raise ValueError(f"is longer than {LONGEST_ENDPOINT} characters")
        if not endpoint.isascii() or not endpoint.isprintable() or set(endpoint) & set(' \\"<>'):
            raise ValueError("is no URL")
        try:
            parts = urlsplit(endpoint)
            host, port = parts.hostname or "", HTTPS if parts.port is None else parts.port
        except ValueError:
            raise ValueError("is no URL") from None
        if parts.scheme != "https" or not _is_host(host, bracketed="[" in parts.netloc):
            raise ValueError("is no https URL")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise ValueError("has user information or a fragment, which no endpoint has")
        if not any(place.has(host, port) for place in self._places):
            raise ValueError(
                "is at none of the push services that PUSH_ENDPOINTS names, on port 443"
            )
        query = f"?{parts.query}" if parts.query else ""
        return f"https://{Place(host, None if port == HTTPS else port)}{parts.path or '/'}{query}"


def _is_host(text: str, *, bracketed: bool) -> bool:
    return (_V6 if bracketed else _NAME).fullmatch(text) is not None


def is_public(address: str) -> bool:
    """True for an address on the internet, where no machine of one's own is reached by it."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if ip.version == 6 and ip in _NAT64:
        ip = ipaddress.IPv4Address(ip.packed[-4:])
    if ip.version == 6 and (ip not in _GLOBAL_V6 or ip in _6TO4):
        return False
    if ip.version == 4 and ip in _PROTOCOLS:
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
