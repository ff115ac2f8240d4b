"""Who a request comes from: by its token or ticket, or by nothing in the open modes, in which that
isn't asked.
"""

import hmac
from collections.abc import Awaitable, Container
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from msgpush.adapters.auth.tokens import Tokens
from msgpush.adapters.http.cors import CorsRules
from msgpush.adapters.http.origins import is_local_host, own_origin, sent_origin
from msgpush.adapters.http.web import error_response, header
from msgpush.domain.credentials import PREFIX
from msgpush.domain.errors import Denied, Unauthorized
from msgpush.domain.grant import EVERYTHING, Grant
from msgpush.domain.permissions import NO_TICKET, Permissions

COOKIE = "msgpush_token"


class Authenticator(Protocol):
    """Finds out what the sender of a request may do."""

    async def authenticate(self, scope: Scope, token: str | None = None) -> Grant:
        """What the credentials in this request allow.

        Args:
            token: what the request's query says, where a token is read there.

        Raises:
            Unauthorized: there are none, or they aren't valid.
            Denied: they came along without having been sent: by another origin's page, for all that
                is known.
            KeysUnavailable, BusUnavailable: that can't be found out now.
        """


class OpenAuthenticator:
    """Anybody may do anything: authentication is switched off, or the service is in local mode."""

    async def authenticate(self, scope: Scope, token: str | None = None) -> Grant:
        return EVERYTHING


class TokenAuthenticator:
    """By a token in the header `Authorization`, in the query, or in a cookie: the first that is
    there decides.

    In the query, a ticket stands for a token.

    Args:
        origins: further origins whose pages may have a browser send the cookie.
    """

    def __init__(
        self, tokens: Tokens, permissions: Permissions, origins: Container[str] = ()
    ) -> None:
        self._tokens, self._permissions = tokens, permissions
        self._origins = origins

    async def authenticate(self, scope: Scope, token: str | None = None) -> Grant:
        bearer = _bearer(scope)
        if bearer is not None:
            grant = await self._tokens.read(bearer)
        elif token is not None:
            grant = await (
                self._ticket(token) if token.startswith(PREFIX) else self._tokens.read(token)
            )
        elif (cookie := _cookie(scope)) is not None:
            grant = await self._tokens.read(cookie)
            if not self._is_wanted(scope):
                raise Denied(_FOREIGN_COOKIE)
        else:
            raise Unauthorized("there is no token: send it as `Authorization: Bearer <token>`")
        self._permissions.check(grant)
        return grant

    async def _ticket(self, ticket: str) -> Grant:
        grant = await self._permissions.ticket(ticket)
        if grant is None:
            raise Unauthorized(NO_TICKET)
        return grant

    def _is_wanted(self, scope: Scope) -> bool:
        """Whether a request whose cookie a browser has added was made by a page that may."""
        origin = header(scope, b"origin")
        if origin is not None:
            own = own_origin(scope["scheme"], header(scope, b"host"))
            return origin in self._origins or (own is not None and sent_origin(origin) == own)
        site = header(scope, b"sec-fetch-site")
        return scope["method"] in ("GET", "HEAD") and site in (None, "same-origin", "none")


_FOREIGN_COOKIE = (
    "the cookie counts only where the browser says that a page of this service, or of CORS_ORIGINS,"
    " has made the request; where a proxy serves the page, it must pass the Host on, and"
    " TRUSTED_PROXIES makes its scheme count"
)


def _bearer(scope: Scope) -> str | None:
    """The token in the header `Authorization` (RFC 6750, section 2.1); other schemes are for
    others.
    """
    given = [
        value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"
    ]
    tokens = [
        token.strip()
        for scheme, _, token in (value.partition(" ") for value in given)
        if scheme.lower() == "bearer"
    ]
    if len(tokens) > 1:
        raise Unauthorized("there is more than one token")
    return tokens[0] if tokens else None


def _cookie(scope: Scope) -> str | None:
    # Not by Python's own parser (http.cookies): unquoting takes it, before 3.11.10, the square of a
    # value's length (CVE-2024-7592), and no token is quoted.
    for name, value in scope["headers"]:
        for pair in value.decode("latin-1").split(";") if name == b"cookie" else ():
            key, _, token = pair.partition("=")
            if key.strip() == COOKIE and token.strip():
                return str(token.strip())
    return None


def has_token(scope: Scope, token: str) -> bool:
    """Whether a request carries this very token."""
    return hmac.compare_digest((_bearer(scope) or "").encode(), token.encode())


_PROXY_HEADERS = frozenset((b"forwarded", b"x-real-ip", b"via"))
_ADVICE = (
    "the service is in local mode, without authentication, and serves this machine alone; to serve"
    " others, set a key for tokens (JWT_SECRET, JWT_PUBLIC_KEY, JWKS_URL or JWT_ISSUER), or"
    " ENABLE_AUTH=false behind something that protects it"
)


class LocalOnly:
    """Refuses what came through a proxy, or under another name than this machine's: DNS rebinding,
    pages of others.

    Args:
        rules: has the origins whose pages may use the service.
    """

    def __init__(self, app: ASGIApp, rules: CorsRules) -> None:
        self._app, self._rules = app, rules

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine of its own: that would cost every open stream half a kilobyte.
        if scope["type"] == "http" and (reason := self._stranger(scope)):
            refusal = error_response(Denied(f"{reason}; {_ADVICE}"))
            refusal.headers.update(self._rules.answer(header(scope, b"origin")))
            return refusal(scope, receive, send)
        return self._app(scope, receive, send)

    def _stranger(self, scope: Scope) -> str | None:
        if scope["http_version"] == "1.0":
            return "the request came over HTTP/1.0, as from a proxy"
        hosts = []
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value.decode("latin-1"))
            elif name in _PROXY_HEADERS or name.startswith(b"x-forwarded-"):
                return f"the request came through a proxy ({name.decode('latin-1')} header)"
            elif name == b"origin" and value.decode("latin-1") not in self._rules.origins:
                return "the request came from another origin's page"
        if len(hosts) != 1 or not is_local_host(hosts[0]):
            return "the request came under another name than localhost (Host header)"
        return None
