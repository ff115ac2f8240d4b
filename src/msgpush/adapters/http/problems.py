"""The one table from errors to statuses, and problems (RFC 9457), as all errors are told."""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from math import ceil

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from msgpush.domain.errors import (
    BusUnavailable,
    Conflict,
    Denied,
    DeviceTaken,
    Fault,
    Invalid,
    KeysUnavailable,
    MailboxFull,
    Malformed,
    MsgpushError,
    NotDue,
    Overloaded,
    PendingFull,
    RateExceeded,
    TooLarge,
    Unauthorized,
)
from msgpush.domain.rates import Allowance

encode = msgspec.json.Encoder().encode


class NotFound(MsgpushError):
    """There is no such thing."""


class Acknowledged(MsgpushError):
    """It can't be withdrawn: a client has acknowledged it."""


class PushOff(MsgpushError):
    """Nothing is sent to devices of this kind here."""


class Unsupported(MsgpushError):
    """A body in a form that isn't read."""


STATUS: Mapping[type[MsgpushError], int] = {
    Malformed: 400,
    Unauthorized: 401,
    Denied: 403,
    NotFound: 404,
    NotDue: 404,
    Conflict: 409,
    MailboxFull: 409,
    DeviceTaken: 409,
    PushOff: 409,
    Acknowledged: 409,
    TooLarge: 413,
    Unsupported: 415,
    Invalid: 422,
    RateExceeded: 429,
    BusUnavailable: 503,
    PendingFull: 503,
    KeysUnavailable: 503,
    Overloaded: 503,
}


# The types of problems that a program has to tell from others of their status.
TYPES: Mapping[type[MsgpushError], str] = {
    MailboxFull: "mailbox-full",
    PushOff: "push-off",
    PendingFull: "pending-full",
}


class Problem(Struct, kw_only=True):
    """An error, as every error response tells it (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: tuple[Fault, ...] | UnsetType = UNSET

    @staticmethod
    def of(error: MsgpushError) -> "Problem":
        """An error of this package, as it is told to the client."""
        detail = error.public if isinstance(error, BusUnavailable) else str(error)
        faults = error.faults if isinstance(error, Invalid) else UNSET
        told = problem(STATUS[type(error)], detail, faults)
        told.type = TYPES.get(type(error), told.type)
        return told


def problem(status: int, detail: str, errors: tuple[Fault, ...] | UnsetType = UNSET) -> Problem:
    """A problem with the title that goes with its status."""
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)


class ProblemResponse(Response):
    media_type = "application/problem+json"

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(encode(problem), problem.status, headers)


def error_response(error: MsgpushError) -> ProblemResponse:
    """The answer to a request that an error has ended."""
    headers = rate_headers(error.what, error.allowance) if isinstance(error, RateExceeded) else {}
    if isinstance(error, BusUnavailable | KeysUnavailable | RateExceeded):
        headers["Retry-After"] = str(ceil(error.retry_after))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = challenge("invalid_token", str(error))
    if isinstance(error, Denied) and error.permission is not None:
        headers["WWW-Authenticate"] = challenge("insufficient_scope", str(error))
    if isinstance(error, TooLarge):
        # What is left of the body isn't wanted: the server half-closes, so that the client can read
        # this.
        headers["Connection"] = "close"
    return ProblemResponse(Problem.of(error), headers)


async def deny(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with this response, also where it asks for a WebSocket, instead of that."""
    if scope["type"] == "websocket":
        await receive()  # the request itself
        if "websocket.http.response" not in scope.get("extensions", {}):
            # A server that can't be told makes it a 403, whatever it is.
            await send({"type": "websocket.close"})
            return
    await response(scope, receive, send)


def challenge(code: str, description: str) -> str:
    """A `WWW-Authenticate` header's value (RFC 6750, section 3), with the characters that it may
    have.
    """
    text = re.sub(r"[^\x20\x21\x23-\x5b\x5d-\x7e]", "?", description.replace('"', "'"))
    return f'Bearer realm="msgpush", error="{code}", error_description="{text}"'


def rate_headers(what: str, allowance: Allowance) -> dict[str, str]:
    """Tell a client of its rate (draft-ietf-httpapi-ratelimit-headers)."""
    window = max(1, ceil(allowance.burst / allowance.rate))
    return {
        "RateLimit-Policy": f'"{what}";q={allowance.burst};w={window}',
        "RateLimit": f'"{what}";r={allowance.remaining};t={ceil(allowance.retry_after)}',
    }


def raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


async def respond(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes = b"application/json",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send a whole response, with no object in between: the hot endpoints' way."""
    start: Message = {
        "type": "http.response.start",
        "status": status,
        "headers": [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
