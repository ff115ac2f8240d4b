"""`/admin/session`, and signing in and out at the company's OpenID Connect provider."""

import hashlib
import html
import logging
import time
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, Literal, NamedTuple, Protocol

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from msgpush.adapters.auth.admission import HOME, has_claim, safe_next, where_to
from msgpush.adapters.auth.sessions import CookieJar, Sealed, Sessions
from msgpush.adapters.http.addresses import limited_address
from msgpush.adapters.http.callers import Authenticator, bearer, cookies
from msgpush.adapters.http.operation import GUARDED, Operation, content, json_answer, parameter
from msgpush.adapters.http.requests import Query
from msgpush.adapters.http.responses import json_response
from msgpush.domain.credentials import Revocation
from msgpush.domain.errors import BusUnavailable, Denied, MsgpushError, Unauthorized
from msgpush.domain.grant import Grant
from msgpush.domain.message import format_seconds
from msgpush.domain.ports import Limiter
from msgpush.domain.quoting import short_repr
from msgpush.domain.service import Push

PENDING = "msgpush_sign_in_"  # before the state's digest: each tab has a cookie of its own
PATIENCE = 600.0  # seconds that signing in may take
AT_ONCE = 5  # that one browser has begun: more would make its headers too large
LONGEST_SUB = 255  # characters (OpenID Connect Core 1.0, section 2)

Mode = Literal["local", "open", "token", "oidc"]

log = logging.getLogger("msgpush.auth")


class NotSignedIn(MsgpushError):
    """Nobody is signed in.

    Args:
        status: of the answer.
        told: to whom has tried.
        detail: for the log, which isn't told where it is empty; it shows no code and no token.
    """

    def __init__(self, status: int, told: str, detail: str = "") -> None:
        super().__init__(told)
        self.status, self.told, self.detail = status, told, detail


class Provider(Protocol):
    """The provider that operators sign in at."""

    async def begin(self, request: Request) -> tuple[str, str, dict[str, Any]]:
        """Begin to sign in: where the browser has to go, the state, and what has to be kept of it.

        Raises:
            NotSignedIn: the provider can't be found now.
        """

    async def finish(self, request: Request, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        """The claims of whom the provider has sent back, to the browser that had begun.

        Raises:
            NotSignedIn: why nobody is signed in.
        """


class SignIn(NamedTuple):
    """What signing in is done with.

    Args:
        public_url: of the service, without a slash at its end.
        admin_claim: the claim and the value that make an admin, as `groups=ops`.
        limiter: how often an address may try.
    """

    provider: Provider
    sessions: Sessions
    pending: Sealed
    public_url: str
    admin_claim: str
    limiter: Limiter


class SessionState(Struct, frozen=True):
    """Who asks, and what they may do.

    `mode` says how it is known: null, where nobody is signed in. `oidc`: signing in at the provider
    is offered."""

    subject: str | None
    admin: bool
    subscribe: list[str]
    publish: list[str]
    users: list[str]
    expires_at: str | None
    mode: Mode | None
    oidc: bool


_PAGE = {"schema": {"type": "string"}}
_TRIED = {
    status: {"description": text, "content": {"text/html": _PAGE}}
    for status, text in {
        400: "A page: it wasn't begun in this browser, or took too long.",
        403: "A page: whoever has signed in is no admin, or has given up.",
        404: "A page: no provider is set.",
        429: "A page: this address has tried too often.",
        502: "A page: the provider has answered something wrong.",
        503: "A page: the provider can't be reached.",
    }.items()
}
OPERATIONS = (
    Operation(
        "GET",
        "/admin/session",
        tag="Operate",
        id="session",
        summary="Who asks: by a token or a session, or nobody",
        answers={200: json_answer("Who asks.", SessionState)},
        problems=(*GUARDED, 503),
    ),
    Operation(
        "GET",
        "/admin/sign-in",
        tag="Operate",
        id="signIn",
        summary="Sign in to the operator's page at the OpenID Connect provider",
        answers={302: {"description": "To the provider."}, **_TRIED},
        problems=(405,),
        parameters=[parameter("next", "The path to come back to.", default=HOME)],
    ),
    Operation(
        "GET",
        "/admin/callback",
        tag="Operate",
        id="signedIn",
        summary="Where the provider sends a browser back to",
        answers={303: {"description": "Signed in: to where it came from."}, **_TRIED},
        problems=(405,),
        parameters=[
            parameter(name, "As the provider has it (OpenID Connect Core 1.0, 3.1.2.5).")
            for name in ("code", "state", "iss", "error")
        ],
    ),
    Operation(
        "POST",
        "/admin/sign-out",
        tag="Operate",
        id="signOut",
        summary="End the session, and its streams",
        answers={
            303: {"description": "Signed out: to the operator's page."},
            404: {
                "description": "A page: no provider is set.",
                "content": content("text/html", {"type": "string"}),
            },
        },
        problems=(403, 405),
    ),
)


class SignInApi:
    """Serves sessions: who is signed in, signing in, signing out.

    Args:
        mode: of the service.
        sign_in: None: no provider is set.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        push: Push,
        auth: Authenticator,
        mode: Literal["open", "local", "tokens"],
        sign_in: SignIn | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._push, self._auth, self._mode, self._sign_in = push, auth, mode, sign_in
        self._clock = clock
        self._jar = CookieJar(sign_in.public_url if sign_in else "")

    def routes(self) -> list[Route]:
        return [
            Route("/admin/session", self.session),
            Route("/admin/sign-in", self.sign_in),
            Route("/admin/callback", self.callback),
            Route("/admin/sign-out", self.sign_out, methods=["POST"]),
        ]

    async def session(self, request: Request) -> Response:
        Query(request.scope).done()
        try:
            grant = await self._auth.authenticate(request.scope)
        except (Unauthorized, Denied):
            # A token that somebody has just typed in is worth an answer; a cookie isn't.
            if bearer(request.scope) is not None:
                raise
            return json_response(self._state(Grant(), None))
        return json_response(self._state(grant, self._known_by(request)))

    def _known_by(self, request: Request) -> Mode:
        if self._mode != "tokens":
            return self._mode
        shown = self._sign_in and self._sign_in.sessions.shown(request.scope)
        return "oidc" if shown and bearer(request.scope) is None else "token"

    def _state(self, grant: Grant, mode: Mode | None) -> SessionState:
        return SessionState(
            subject=grant.subject,
            admin=grant.admin,
            subscribe=[*sorted(grant.channels), *grant.subscribe],
            publish=[*grant.publish],
            users=[*filter(None, [grant.user]), *grant.users],
            expires_at=None if grant.expires is None else format_seconds(grant.expires),
            mode=mode,
            oidc=self._sign_in is not None,
        )

    async def sign_in(self, request: Request) -> Response:
        """Send a browser to the provider."""
        try:
            sign_in = await self._offered(request)
            where, state, kept = await sign_in.provider.begin(request)
        except NotSignedIn as error:
            return _failed(error)
        kept = {**kept, "state": state, "next": safe_next(request.query_params.get("next", HOME))}
        answer = RedirectResponse(where, 302, {"Cache-Control": "no-store"})
        answer.headers.append(
            "Set-Cookie",
            self._jar.keep(_pending_name(state), sign_in.pending.seal(kept), PATIENCE),
        )
        for name in self._begun(request)[AT_ONCE - 1 :]:
            answer.headers.append("Set-Cookie", self._jar.drop(name))
        return answer

    async def callback(self, request: Request) -> Response:
        """Take back the browser that the provider sends."""
        state = request.query_params.get("state", "")
        try:
            sign_in = await self._offered(request)
        except NotSignedIn as error:
            return _failed(error)  # loading the page again may go well
        try:
            kept = self._kept(request, sign_in, state)
            claims = await sign_in.provider.finish(request, kept)
        except NotSignedIn as error:
            answer = _failed(error)
        else:
            answer = _answered(sign_in, claims, kept["next"])
        if state:
            # Used up, whatever has come of it.
            answer.headers.append("Set-Cookie", self._jar.drop(_pending_name(state)))
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End the session: its cookie, and all streams that were opened with it."""
        sign_in = self._sign_in
        if sign_in is None:
            return _failed(_not_offered())
        if not sign_in.sessions.is_own(request.scope):
            raise Denied("only a page of this service itself may sign its user out")
        if (shown := sign_in.sessions.shown(request.scope)) is not None:
            await self._end(sign_in.sessions, shown)
        headers = {"Cache-Control": "no-store", "Set-Cookie": sign_in.sessions.closing()}
        return RedirectResponse(sign_in.public_url + HOME, 303, headers)

    async def _end(self, sessions: Sessions, shown: str) -> None:
        try:
            grant = sessions.read(shown)
        except Unauthorized:
            return  # it has ended
        assert grant.id is not None
        try:
            await self._push.revoke(Revocation("jti", grant.id, self._clock()))
        except BusUnavailable as error:
            # It holds here, and its cookie goes; elsewhere it ends in its time.
            log.warning("a session that was signed out of may be good elsewhere: %s", error)
        log.info("signed out: %s", short_repr(grant.subject))

    async def _offered(self, request: Request) -> SignIn:
        """What signing in is done with, unless this address tries too often."""
        if self._sign_in is None:
            raise _not_offered()
        host, _ = request.scope.get("client") or ("", 0)
        allowance = await self._sign_in.limiter.take(limited_address(host), 1)
        if not allowance.granted:
            wait = ceil(allowance.retry_after)
            raise NotSignedIn(429, f"too many tries: try again in {wait} seconds")
        return self._sign_in

    def _begun(self, request: Request) -> list[str]:
        """The names of the cookies by which this browser is known to have begun, newest first."""
        prefix = self._jar.name(PENDING)
        found = [name for name, _ in cookies(request.scope) if name.startswith(prefix)]
        # Browsers send the oldest first (RFC 6265, section 5.4).
        return [PENDING + name.removeprefix(prefix) for name in reversed(found)]

    def _kept(self, request: Request, sign_in: SignIn, state: str) -> dict[str, Any]:
        """What this browser has kept since it began."""
        name = self._jar.name(_pending_name(state))
        text = next((value for key, value in cookies(request.scope) if key == name), "")
        kept = sign_in.pending.open(text)
        if not state or kept is None or kept.pop("state") != state:
            raise NotSignedIn(
                400, "this sign-in wasn't begun in this browser, was used before, or took too long"
            )
        return kept


def _not_offered() -> NotSignedIn:
    return NotSignedIn(
        404, "signing in at a provider isn't set up here (OIDC_ISSUER); a token opens the page"
    )


def _pending_name(state: str) -> str:
    return PENDING + hashlib.sha256(state.encode()).hexdigest()[:16]


def _answered(sign_in: SignIn, claims: Mapping[str, Any], next: str) -> Response:
    """The answer to whom the provider has sent back: a session, or why there is none."""
    try:
        sub = _admitted(claims, sign_in.admin_claim)
    except NotSignedIn as error:
        answer = _failed(error)
        # Nor goes that of somebody else on, who was here before.
        answer.headers.append("Set-Cookie", sign_in.sessions.closing())
        return answer
    grant, session = sign_in.sessions.open(sub)
    log.info("signed in: %s, with the session %s", short_repr(grant.subject), grant.id)
    headers = {"Cache-Control": "no-store", "Set-Cookie": session}
    return RedirectResponse(where_to(sign_in.public_url, next), 303, headers)


def _admitted(claims: Mapping[str, Any], wanted: str) -> str:
    """The name of whoever has signed in and is an admin."""
    sub = claims.get("sub")
    if not isinstance(sub, str) or not 0 < len(sub) <= LONGEST_SUB:
        raise NotSignedIn(502, "the sign-in provider doesn't say who has signed in", "no sub")
    if not has_claim(claims, wanted):
        name, _, value = wanted.partition("=")
        raise NotSignedIn(
            403,
            f"this account may not operate the service: for that the claim {name} must have the"
            f" value {value} (OIDC_ADMIN_CLAIM)",
            f"{short_repr(sub)} is no admin",
        )
    return sub


# A page without a script and without a style: it loads nothing.
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_TEXT = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Not signed in - msgpush</title>
<h1>Not signed in</h1>
<p>{told}.</p>
<p><a href="sign-in">Try again</a> or <a href="./">go back to the operator's page</a></p>
</html>
"""


def _failed(error: NotSignedIn) -> Response:
    """The page that says why nobody is signed in."""
    if error.detail:
        log.warning("nobody was signed in: %s (%s)", error.told, error.detail)
    told = html.escape(error.told[:1].upper() + error.told[1:])
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Response(_TEXT.format(told=told), error.status, headers, "text/html")
