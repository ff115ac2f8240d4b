"""Authentication by a token or a ticket; in the open modes nobody is asked for either."""

from collections.abc import Container

from starlette.types import Scope

from msgpush.adapters.auth.sessions import Sessions
from msgpush.adapters.auth.tokens import Tokens
from msgpush.adapters.http.callers import COOKIE, bearer, cookie
from msgpush.adapters.http.origins import is_welcome
from msgpush.adapters.http.requests import header
from msgpush.domain.credentials import PREFIX
from msgpush.domain.errors import Denied, Unauthorized
from msgpush.domain.grant import EVERYTHING, Grant
from msgpush.domain.permissions import NO_TICKET
from msgpush.domain.service import Push


class OpenAuthenticator:
    """Anybody may do anything: authentication is switched off, or the service is in local mode."""

    async def authenticate(
        self, scope: Scope, token: str | None = None, *, by_ticket: bool = False
    ) -> Grant:
        return EVERYTHING

    async def read(self, token: str) -> Grant:
        return EVERYTHING


class TokenAuthenticator:
    """Takes a token in the header `Authorization`, the query, or a cookie: the first there decides.

    In the query, a ticket stands for a token. Before the token's cookie comes that of an operator's
    session, where it counts at all: where a page of another origin has made the request, it is as
    if it weren't there.

    Args:
        origins: further origins whose pages may have a browser send the token's cookie.
        sessions: of those who have signed in; None: nobody can.
    """

    def __init__(
        self,
        tokens: Tokens,
        push: Push,
        origins: Container[str] = (),
        sessions: Sessions | None = None,
    ) -> None:
        self._tokens, self._push = tokens, push
        self._origins, self._sessions = origins, sessions

    async def authenticate(
        self, scope: Scope, token: str | None = None, *, by_ticket: bool = False
    ) -> Grant:
        shown = bearer(scope)
        if shown is not None:
            is_ticket = by_ticket and shown.startswith(PREFIX)
            grant = await (self._ticket(shown) if is_ticket else self._tokens.read(shown))
        elif token is not None:
            grant = await (
                self._ticket(token) if token.startswith(PREFIX) else self._tokens.read(token)
            )
        elif self._sessions is not None and (session := self._sessions.shown(scope)) is not None:
            grant = self._sessions.read(session)
        elif (kept := cookie(scope, COOKIE)) is not None:
            grant = await self._tokens.read(kept)
            if not self._is_wanted(scope):
                raise Denied(_FOREIGN_COOKIE)
        else:
            raise Unauthorized("there is no token: send it as `Authorization: Bearer <token>`")
        self._push.check(grant)
        return grant

    async def read(self, token: str) -> Grant:
        grant = await self._tokens.read(token)
        self._push.check(grant)
        return grant

    async def _ticket(self, ticket: str) -> Grant:
        grant = await self._push.ticket(ticket)
        if grant is None:
            raise Unauthorized(NO_TICKET)
        return grant

    def _is_wanted(self, scope: Scope) -> bool:
        """True if a request whose cookie a browser has added was made by a page that may."""
        if (origin := header(scope, b"origin")) is not None:
            return is_welcome(origin, scope, self._origins)
        site = header(scope, b"sec-fetch-site")
        # A WebSocket's handshake has no method here: it is a GET.
        read = scope.get("method", "GET") in ("GET", "HEAD")
        return read and site in (None, "same-origin", "none")


_FOREIGN_COOKIE = (
    "the cookie counts only where the browser says that a page of this service, or of CORS_ORIGINS,"
    " has made the request; where a proxy serves the page, it must pass the Host on, and"
    " TRUSTED_PROXIES makes its scheme count"
)
