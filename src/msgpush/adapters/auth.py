"""Who a request comes from: the Authenticator port, and the open modes, in which that isn't asked."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from msgpush.adapters.web import error_response
from msgpush.domain.errors import Denied
from msgpush.domain.grant import EVERYTHING, Grant


class Authenticator(Protocol):
    """Finds out what the sender of a request may do."""

    async def authenticate(self, scope: Scope) -> Grant:
        """What the credentials in this request allow."""


class OpenAuthenticator:
    """Anybody may do anything: authentication is switched off, or the service is in local mode."""

    async def authenticate(self, scope: Scope) -> Grant:
        return EVERYTHING


_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:@/]+))(?::[0-9]{1,5})?")
_PROXY_HEADERS = frozenset((b"forwarded", b"x-real-ip", b"via"))
_ADVICE = (
    "the service is in local mode, without authentication, and serves this machine alone; "
    "to serve others, set ENABLE_AUTH=false behind something that protects it"
)


def is_local_host(host: str) -> bool:
    """Whether a Host header's value, or an origin's host, names this machine."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = (match[1] or match[2]).lower()
    if name == "localhost":
        return match[1] is None
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback and (address.version == 6) == (match[1] is not None)


class LocalOnly:
    """Refuses what came through a proxy, or under another name than this machine's: DNS rebinding, pages of others.

    Args:
        origins: further origins whose pages may use the service.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (reason := self._stranger(scope)):
            await error_response(Denied(f"{reason}; {_ADVICE}"))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _stranger(self, scope: Scope) -> str | None:
        if scope["http_version"] == "1.0":
            return "the request came over HTTP/1.0, as from a proxy"
        hosts = []
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value.decode("latin-1"))
            elif name in _PROXY_HEADERS or name.startswith(b"x-forwarded-"):
                return f"the request came through a proxy ({name.decode('latin-1')} header)"
            elif name == b"origin" and not self._may_use(value.decode("latin-1")):
                return "the request came from another origin's page"
        if len(hosts) != 1 or not is_local_host(hosts[0]):
            return "the request came under another name than localhost (Host header)"
        return None

    def _may_use(self, origin: str) -> bool:
        scheme, _, host = origin.partition("://")
        return origin in self._origins or (scheme in ("http", "https") and is_local_host(host))
