"""`/api/v1/tickets` and `/api/v1/revocations`: permission for a stream; the end of permissions."""

import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import (
    CHANNEL,
    GUARDED,
    Json,
    Operation,
    content,
    fields,
    json_answer,
)
from msgpush.adapters.http.requests import no_field, read_object
from msgpush.adapters.http.responses import json_response
from msgpush.domain.channel import MAX_LISTENED, is_channel, no_channel
from msgpush.domain.credentials import Revocation
from msgpush.domain.errors import Fault, Invalid, RateExceeded
from msgpush.domain.message import format_seconds, normal_timestamp
from msgpush.domain.ports import Limiter
from msgpush.domain.quoting import short_repr
from msgpush.domain.service import Push

MAX_BYTES = 16 * 1024

log = logging.getLogger("msgpush.auth")


class NewTicket(Struct, frozen=True):
    """A ticket for `?token=` of a stream; `expires_at` ends it, once it is used within a minute."""

    ticket: str
    expires_at: str


class Revoked(Struct, frozen=True, omit_defaults=True):
    """The tokens that were revoked, and until when.

    Those of a subject, the one with an id, or all that were issued before a moment."""

    at: str
    until: str
    subject: str | None = None
    jti: str | None = None
    issued_before: str | None = None


def _only(name: str, schema: Json) -> Json:
    return fields(**{name: schema}) | {"additionalProperties": False}


_CHANNELS: Json = {"type": "array", "minItems": 1, "maxItems": MAX_LISTENED, "items": CHANNEL}
_ACKNOWLEDGE: Json = {
    "type": ["boolean", "null"],
    "default": False,
    "description": "Whether it may acknowledge messages, too, for the users whose channels it"
    " names: who asks for it must be one who may.",
}
_TICKET: Json = {
    "type": "object",
    "required": ["channels"],
    "properties": {"channels": _CHANNELS, "acknowledge": _ACKNOWLEDGE},
    "additionalProperties": False,
}
_TEXT: Json = {"type": "string", "minLength": 1}
_MOMENT: Json = {
    "description": "Seconds since 1970, or an RFC 3339 date-time; not in the future.",
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "format": "date-time"}],
}
OPERATIONS = (
    Operation(
        "POST",
        "/api/v1/tickets",
        tag="Receive",
        id="ticket",
        summary="Make a ticket, for the `token` parameter of a stream of these channels",
        answers={201: json_answer("To be used within a minute.", NewTicket)},
        problems=(*GUARDED, 413, 415, 422, 429, 503),
        body=content(
            "application/json",
            _TICKET,
            example={"channels": ["user:user123"], "acknowledge": True},
        ),
    ),
    Operation(
        "POST",
        "/api/v1/revocations",
        tag="Operate",
        id="revoke",
        summary="Refuse tokens from now on, and end the streams that were opened with them",
        answers={201: json_answer("They are refused.", Revoked)},
        problems=(*GUARDED, 413, 415, 422, 503),
        body=content(
            "application/json",
            {
                "oneOf": [
                    _only("subject", _TEXT),
                    _only("jti", _TEXT),
                    _only("issued_before", _MOMENT),
                ]
            },
            example={"subject": "user123"},
        ),
    ),
)


class PermissionsApi:
    """Serves tickets, and revocations.

    Args:
        limiter: how many tickets a subject may have made here.
        max_lifetime: seconds for which a revocation stands.
        leeway: seconds by which clocks may differ.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        push: Push,
        auth: Authenticator,
        limiter: Limiter,
        *,
        max_lifetime: float,
        leeway: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._push, self._auth, self._limiter = push, auth, limiter
        self._max_lifetime, self._leeway, self._clock = max_lifetime, leeway, clock

    async def ticket(self, request: Request) -> Response:
        grant = await self._auth.authenticate(request.scope)
        channels, acknowledge = _wanted(await read_object(request, MAX_BYTES))
        self._push.check(grant)  # a body may take long
        grant.check_listen(channels)
        allowance = await self._limiter.take(grant.subject or "", 1)
        if not allowance.granted:
            raise RateExceeded("tickets", allowance)
        ticket, expires = await self._push.new_ticket(grant, channels, acknowledge=acknowledge)
        return json_response(NewTicket(ticket, format_seconds(expires)), 201)

    async def revoke(self, request: Request) -> Response:
        grant = await self._auth.authenticate(request.scope)
        grant.check_admin()
        revocation = self._revocation(await read_object(request, MAX_BYTES))
        self._push.check(grant)
        await self._push.revoke(revocation)
        what = {revocation.kind: revocation.value or format_seconds(revocation.at)}
        by = "an admin" if grant.subject is None else short_repr(grant.subject)
        log.info("tokens are revoked by %s: %s", by, _meant(revocation))
        until = format_seconds(revocation.at + self._max_lifetime)
        return json_response(Revoked(format_seconds(revocation.at), until, **what), 201)

    def _revocation(self, given: dict[str, Any]) -> Revocation:
        """The revocation that a request asks for."""
        now = self._clock()
        match given:
            case {"subject": str(value), **rest} if value and not rest:
                return Revocation("subject", value, now)
            case {"jti": str(value), **rest} if value and not rest:
                return Revocation("jti", value, now)
            case {"issued_before": value, **rest} if not rest:
                at = _seconds(value)
                if not 0 <= at <= now + self._leeway:
                    raise _not_allowed("issued_before", value, "it must be from 1970 until now")
                return Revocation("issued_before", "", at)
        for name, value in given.items():
            if name not in ("subject", "jti", "issued_before"):
                raise no_field(name, "a revocation")
            if len(given) == 1:
                raise _not_allowed(name, value, "it must be a text, and not empty")
        raise Invalid(
            Fault("", "it must have exactly one of the fields subject, jti and issued_before")
        )


def _meant(revocation: Revocation) -> str:
    """The tokens that it revokes, in words."""
    match revocation.kind:
        case "subject":
            return f"those of the subject {short_repr(revocation.value)}"
        case "jti":
            return f"the one with the jti {short_repr(revocation.value)}"
        case "issued_before":
            return f"all that were issued before {format_seconds(revocation.at)}"


def _wanted(given: dict[str, Any]) -> tuple[list[str], bool]:
    """The channels that a request for a ticket names, and whether it is to act for their users."""
    for name in given:
        if name not in ("channels", "acknowledge"):
            raise no_field(name, "a ticket")
    acknowledge = given.get("acknowledge")
    if not isinstance(acknowledge, bool | None):
        raise _not_allowed("acknowledge", acknowledge, "true or false")
    channels = given.get("channels")
    if not isinstance(channels, list) or not 0 < len(channels) <= MAX_LISTENED:
        raise Invalid(Fault("/channels", f"it must be a list of 1 to {MAX_LISTENED} channel names"))
    faults = [
        Fault(f"/channels/{index}", no_channel(name))
        for index, name in enumerate(channels)
        if not isinstance(name, str) or not is_channel(name)
    ]
    if faults:
        raise Invalid(*faults)
    return channels, bool(acknowledge)


def _seconds(value: object) -> float:
    """A moment as tokens write it, in seconds since 1970, or as RFC 3339."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(normal_timestamp(value)).timestamp()
        except Invalid:
            pass
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _not_allowed("issued_before", value, "seconds since 1970, or an RFC 3339 date-time")


def _not_allowed(name: str, value: object, allowed: str) -> Invalid:
    return Invalid(Fault(f"/{name}", f"{short_repr(value)} is not allowed: {allowed}"))
