"""Origins (RFC 6454, section 4; HTML, "origin"), and those whose pages may use the service."""

import logging
import re
from collections.abc import Container, Iterable
from functools import lru_cache
from ipaddress import IPv6Address

from starlette.types import Scope

from msgpush.adapters.http.addresses import read_address
from msgpush.adapters.http.requests import header
from msgpush.domain.errors import Denied

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
STRANGERS_TOLD = 100  # whoever can connect could fill a disk

log = logging.getLogger("msgpush.http")

_PORTS = {"http": 80, "https": 443}
_PAGE_SCHEMES = {"ws": "http", "wss": "https"}  # of pages that open such a URL of their own origin
# Below two labels at least, and below no address: all of `com` is nobody's, and 10.0.0.1 isn't
# below 0.0.1.
_ANY_BELOW = re.compile(
    r"([a-z][a-z0-9+.-]*://)\*\.((?:[a-z0-9_-]+\.)+[a-z0-9_-]*[a-z_-][a-z0-9_-]*(?::[0-9]{1,5})?)"
)
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:@/]+))(?::[0-9]{1,5})?")


def read_origin(text: str) -> str:
    """An origin as browsers write it: in lower case, without its scheme's own port.

    A host with a dot at its end is another host, as it is to a browser.

    Raises:
        ValueError: this is no scheme, host and port.
    """
    found = _ORIGIN.fullmatch(text.lower())
    if found is None or int(found[3] or 0) > 65535:
        raise ValueError
    scheme, host, port = found.groups()
    if host.startswith("["):
        host = f"[{IPv6Address(host[1:-1]).compressed}]"
    if port is None or _PORTS.get(scheme) == int(port):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{int(port)}"


def url_origin(url: str) -> str:
    """The origin of the pages at a URL.

    Raises:
        ValueError: it has none.
    """
    return read_origin("/".join(url.split("/")[:3]))


def read_origins(text: str) -> str:
    """One origin; or a pattern, `https://*.example.com`: all names below that one, of any depth.

    Raises:
        ValueError: it is neither, or the pattern would let in pages of whoever likes.
    """
    pattern = _ANY_BELOW.fullmatch(text.lower())
    if pattern is None:
        return read_origin(text)
    scheme, below = pattern.groups()
    return f"{scheme}*.{read_origin(scheme + below).removeprefix(scheme)}"


def sent_origin(text: str) -> str | None:
    """The origin that an `Origin` header names, if it does: browsers write it in lower case."""
    if text != text.lower():
        return None
    try:
        return read_origin(text)
    except ValueError:
        return None


def own_origin(scheme: str, host: str | None) -> str | None:
    """The origin of pages from where this request went, by its scheme and `Host` header."""
    try:
        return read_origin(f"{_PAGE_SCHEMES.get(scheme, scheme)}://{host or ''}")
    except ValueError:
        return None


def is_welcome(origin: str, scope: Scope, others: Container[str]) -> bool:
    """True if the page that a request's `Origin` names is one of the service, or of these others.

    A browser doesn't ask before it opens a WebSocket, nor before it sends a cookie along."""
    own = own_origin(scope["scheme"], header(scope, b"host"))
    return origin in others or (own is not None and sent_origin(origin) == own)


@lru_cache(maxsize=64)
def is_local_host(host: str) -> bool:
    """True if a Host header's value, or an origin's host, names this machine."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = (match[1] or match[2]).lower()
    if name == "localhost":
        return match[1] is None
    try:
        # In brackets are addresses of IPv6, and nothing else is in them.
        return read_address(name).is_loopback and (":" in name) == (match[1] is not None)
    except ValueError:
        return False


class Strangers:
    """Those who may not open a WebSocket: what to do about it is logged, once for each.

    A browser tells its page only that it failed."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def refuse(self, reason: str, advice: str) -> Denied:
        """The refusal of one of them."""
        if reason not in self._told and len(self._told) < STRANGERS_TOLD:
            self._told.add(reason)
            log.warning("a WebSocket was refused: %s; %s", reason, advice)
        return Denied(f"{reason}; {advice}")


class Origins:
    """The origins whose pages may use the service, as a set of what `Origin` headers say.

    Args:
        known: as `read_origins` gives them.
        loopback: whether the pages that this machine itself serves may, too.
    """

    def __init__(self, known: Iterable[str] = (), *, loopback: bool = False) -> None:
        known = tuple(known)
        self._known = frozenset(each for each in known if "*" not in each)
        patterns = (
            re.escape(each).replace(r"\*\.", r"(?:[a-z0-9_-]+\.)+") for each in known if "*" in each
        )
        self._patterns = tuple(map(re.compile, patterns))
        self._loopback = loopback

    def __bool__(self) -> bool:
        return bool(self._known or self._patterns or self._loopback)

    def __contains__(self, text: object) -> bool:
        origin = sent_origin(text) if isinstance(text, str) else None
        if origin is None:
            return False
        if origin in self._known or any(pattern.fullmatch(origin) for pattern in self._patterns):
            return True
        scheme, _, host = origin.partition("://")
        return self._loopback and scheme in _PORTS and is_local_host(host)
