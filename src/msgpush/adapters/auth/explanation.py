"""What a token may do, or why it is refused: for the command, and `/api/v1/tokens/explain`."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.auth.tokens import registry_for
from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import GUARDED, Operation, content, json_answer
from msgpush.adapters.http.requests import no_field, read_object
from msgpush.adapters.http.responses import json_response
from msgpush.domain.channel import BROADCAST
from msgpush.domain.credentials import PREFIX
from msgpush.domain.errors import Fault, Invalid, Unauthorized
from msgpush.domain.grant import EVERYTHING, Grant
from msgpush.domain.message import format_seconds
from msgpush.domain.service import Push

MAX_BYTES = 64 * 1024


class Unverified(Struct, frozen=True):
    """What a token says, whoever has made it."""

    header: dict[str, Any]
    claims: Any


class Explanation(Struct, frozen=True):
    """What a token may do now, or the reason why it is refused.

    Attributes:
        revoked: whether that reason is a revocation.
        subscribe: the channels that it may listen to, and patterns of those.
        users: those that it may act for, and patterns of those.
        said: what it says itself, which nobody has verified where it is refused.
    """

    accepted: bool
    reason: str | None
    revoked: bool
    subject: str | None = None
    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    admin: bool = False
    issued_at: str | None = None
    expires_at: str | None = None
    jti: str | None = None
    said: Unverified | None = None


def said_by(token: str) -> Unverified | None:
    """What a token says of itself; None: it is none that can be read."""
    try:
        signed = jws.extract_compact(token.encode(), None, registry_for(()))
        said = [signed.headers(), json.loads(signed.payload)]
        # JSON may have half of a surrogate pair in it, and UTF-8 can't: that becomes a `?`.
        header, claims = json.loads(json.dumps(said, ensure_ascii=False).encode(errors="replace"))
        return Unverified(header, claims)
    except (JoseError, ValueError, RecursionError):
        return None


async def explained(
    token: str,
    read: Callable[[str], Awaitable[Grant]],
    revoked: Callable[[Grant], Awaitable[str | None]],
) -> Explanation:
    """Find out what a token may do.

    Args:
        read: gives its permissions, or raises `Unauthorized`.
        revoked: the reason why they are refused, if they were revoked.

    Raises:
        KeysUnavailable, BusUnavailable: that can't be found out now.
    """
    said = said_by(token)
    try:
        grant = await read(token)
    except Unauthorized as error:
        told = "it is a ticket, not a token" if token.startswith(PREFIX) else str(error)
        return Explanation(accepted=False, reason=told, revoked=False, said=said)
    return permissions_of(grant, await revoked(grant), said)


def permissions_of(
    grant: Grant, reason: str | None = None, said: Unverified | None = None
) -> Explanation:
    """The permissions of a grant, which was revoked for a reason or not at all."""
    return Explanation(
        accepted=reason is None,
        reason=reason,
        revoked=reason is not None,
        subject=grant.subject,
        subscribe=(BROADCAST, *sorted(grant.channels), *grant.subscribe),
        publish=tuple(grant.publish),
        users=(*filter(None, [grant.user]), *grant.users),
        admin=grant.admin,
        issued_at=_moment(grant.issued_at),
        expires_at=_moment(grant.expires),
        jti=grant.id,
        said=said,
    )


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else format_seconds(seconds)


OPERATIONS = (
    Operation(
        "POST",
        "/api/v1/tokens/explain",
        tag="Operate",
        id="explainToken",
        summary="What a token may do, or why it is refused",
        answers={200: json_answer("What it may do.", Explanation)},
        problems=(*GUARDED, 413, 415, 422, 503),
        body=content(
            "application/json",
            {
                "type": "object",
                "required": ["token"],
                "properties": {"token": {"type": "string", "minLength": 1}},
                "additionalProperties": False,
            },
            example={"token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c2VyMTIzIn0.c2lnbmF0dXJl"},
        ),
    ),
)


class ExplainApi:
    """Serves explanations of tokens.

    Args:
        read: of tokens; None: authentication is off.
    """

    def __init__(
        self, push: Push, auth: Authenticator, read: Callable[[str], Awaitable[Grant]] | None
    ) -> None:
        self._push, self._auth, self._read = push, auth, read

    async def explain(self, request: Request) -> Response:
        grant = await self._auth.authenticate(request.scope)
        grant.check_admin()
        token = _token(await read_object(request, MAX_BYTES, '{"token": "..."}'))
        self._push.check(grant)  # a body may take long
        if self._read is None:
            return json_response(permissions_of(EVERYTHING, said=said_by(token)))
        return json_response(await explained(token, self._read, self._revoked))

    async def _revoked(self, grant: Grant) -> str | None:
        return self._push.revoked(grant)


def _token(given: dict[str, Any]) -> str:
    """The token that a request asks about: no error shows it."""
    token = given.pop("token", None)
    for name in given:
        raise no_field(name, "this request")
    if not isinstance(token, str) or not token.strip():
        raise Invalid(Fault("/token", "it must be a text, and not empty"))
    return token.strip()
