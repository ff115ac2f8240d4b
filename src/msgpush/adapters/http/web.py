"""What the HTTP adapters share: problems (RFC 9457), bodies, queries, and the one table from errors
to statuses.
"""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from http import HTTPStatus
from math import ceil
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from msgpush.domain.channel import shown
from msgpush.domain.errors import (
    BusUnavailable,
    Conflict,
    Denied,
    Fault,
    Invalid,
    Malformed,
    MsgpushError,
    Overloaded,
    TooLarge,
    Unauthorized,
)
from msgpush.domain.ports import Allowance, Limiter

MAX_PARAMETERS = 256

encode = msgspec.json.Encoder().encode


class NotFound(MsgpushError):
    """There is no such thing."""


class Unsupported(MsgpushError):
    """A body in a form that isn't read."""


class KeysUnavailable(MsgpushError):
    """There are no keys yet to verify tokens with."""

    retry_after = 5


class RateExceeded(MsgpushError):
    """More than a subject may ask for now."""

    def __init__(self, what: str, limiter: Limiter, allowance: Allowance) -> None:
        self.retry_after = allowance.retry_after
        self.headers = rate_headers(what, limiter, allowance)
        super().__init__(
            f"no more {what} of this subject now: {limiter.rate:g} a second are allowed, and"
            f" {limiter.burst} at once; try again in {self.retry_after:.3g} seconds"
        )


STATUS: Mapping[type[MsgpushError], int] = {
    Malformed: 400,
    Unauthorized: 401,
    Denied: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Unsupported: 415,
    Invalid: 422,
    RateExceeded: 429,
    BusUnavailable: 503,
    KeysUnavailable: 503,
    Overloaded: 503,
}


class Problem(Struct, kw_only=True):
    """An error, as every error response tells it (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: tuple[Fault, ...] | UnsetType = UNSET


class ClientGone(Exception):
    """The client went before its request was complete: there is nobody to answer, and nothing was
    asked.
    """


def problem(status: int, detail: str, errors: tuple[Fault, ...] | UnsetType = UNSET) -> Problem:
    """A problem with the title that goes with its status."""
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)


def problem_of(error: MsgpushError) -> Problem:
    """An error of this package, as it is told to the client."""
    detail = error.public if isinstance(error, BusUnavailable) else str(error)
    return problem(
        STATUS[type(error)], detail, error.faults if isinstance(error, Invalid) else UNSET
    )


class ProblemResponse(Response):
    media_type = "application/problem+json"

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(encode(problem), problem.status, headers)


def error_response(error: MsgpushError) -> ProblemResponse:
    """The answer to a request that an error has ended."""
    headers = dict(error.headers) if isinstance(error, RateExceeded) else {}
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
    return ProblemResponse(problem_of(error), headers)


def challenge(code: str, description: str) -> str:
    """A `WWW-Authenticate` header's value (RFC 6750, section 3), with the characters that it may
    have.
    """
    text = re.sub(r"[^\x20\x21\x23-\x5b\x5d-\x7e]", "?", description.replace('"', "'"))
    return f'Bearer realm="msgpush", error="{code}", error_description="{text}"'


def rate_headers(what: str, limiter: Limiter, allowance: Allowance) -> dict[str, str]:
    """What tells a client of its rate (draft-ietf-httpapi-ratelimit-headers)."""
    window = max(1, ceil(limiter.burst / limiter.rate))
    return {
        "RateLimit-Policy": f'"{what}";q={limiter.burst};w={window}',
        "RateLimit": f'"{what}";r={allowance.remaining};t={ceil(allowance.retry_after)}',
    }


async def on_error(_: Request, error: Exception) -> Response:
    """Starlette's handler of this package's errors."""
    assert isinstance(error, MsgpushError)
    return error_response(error)


async def on_http_exception(_: Request, error: Exception) -> Response:
    """Starlette's handler of its own: no such path, or no such method there."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    headers = dict(error.headers or {})
    if allowed := headers.get("Allow"):
        headers["Allow"] = ", ".join(sorted(allowed.split(", ")))
    return ProblemResponse(problem(status, error.detail), headers)


async def on_crash(_: Request, __: Exception) -> Response:
    """Starlette's handler of what nobody expected; the details go to the log alone."""
    return ProblemResponse(problem(500, "the server has made a mistake"))


async def on_client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=400)


def header(scope: Scope, name: bytes) -> str | None:
    """A request header's value; the first where there are several."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def segment(scope: Scope, prefix: str, suffix: str = "") -> str:
    """What stands between `prefix` and `suffix` in the path, decoded; before the prefix is what the
    service is under.

    Taken from the raw path where the server gives it, since what isn't UTF-8 has been replaced in
    the other one.

    Raises:
        Malformed: not UTF-8.
    """
    raw = scope.get("raw_path")
    path: bytes = (
        scope["path"].encode() if raw is None else unquote_to_bytes(raw.partition(b"?")[0])
    )
    root: bytes = scope.get("root_path", "").encode()
    # As Starlette matches routes: a server may leave the root out of the path.
    if path.startswith(root + b"/"):
        path = path[len(root) :]
    try:
        return path.removeprefix(prefix.encode()).decode().removesuffix(suffix)
    except UnicodeDecodeError:
        raise Malformed("the path is not UTF-8") from None


class Query:
    """A request's parameters, each taken by name; `done` refuses what nobody took.

    Raises:
        Malformed: not UTF-8.
    """

    def __init__(self, scope: Scope) -> None:
        try:
            query = scope["query_string"].decode("ascii")
            pairs = parse_qsl(
                query, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
            )
        except (UnicodeDecodeError, ValueError):
            raise Malformed(
                f"the query string can't be read: percent-encoded UTF-8, of {MAX_PARAMETERS}"
                " parameters at most"
            ) from None
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def all(self, name: str) -> list[str]:
        return self._values.pop(name, [])

    def one(self, name: str) -> str | None:
        """The value of a parameter that may be given once."""
        found = self.all(name)
        if len(found) > 1:
            raise Malformed(f"the parameter {name} is given more than once")
        return found[0] if found else None

    def same(self, name: str) -> str | None:
        """The value of a parameter that may be repeated with that value; an empty one is none."""
        first, *others = dict.fromkeys(filter(None, self.all(name))) or (None,)
        if others:
            raise Malformed(
                f"the parameter {name} is given with different values: {shown(first)},"
                f" {shown(others[0])}"
            )
        return first

    def integer(self, name: str, default: int, lowest: int, highest: int) -> int:
        value = self.one(name)
        if value is None:
            return default
        if not (
            value.isascii()
            and value.isdecimal()
            and len(value) < 10
            and lowest <= int(value) <= highest
        ):
            raise Malformed(
                f"the parameter {name} is {shown(value)}: it must be a number from {lowest} to"
                f" {highest}"
            )
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.one(name)
        if value not in (None, "true", "false"):
            raise Malformed(f"the parameter {name} is {shown(value)}: it must be true or false")
        return default if value is None else value == "true"

    def done(self, passed: re.Pattern[str] = re.compile("_")) -> None:
        """Raise `Malformed` where there is a parameter that nobody took, but for those that begin
        like `passed`.
        """
        for name in self._values:
            if not passed.match(name):
                raise Malformed(f"there is no parameter {shown(name)} here")


async def body_parts(receive: Receive) -> AsyncIterator[bytes]:
    """A request's body as it arrives.

    Raises:
        ClientGone: it was cut; what has been given so far is not the whole.
    """
    more = True
    while more:
        part = await receive()
        if part["type"] == "http.disconnect":
            raise ClientGone
        yield part.get("body", b"")
        more = part.get("more_body", False)


async def read_body(receive: Receive, limit: int, what: str) -> bytes:
    """A request's whole body.

    Raises:
        TooLarge: it is larger than `limit` bytes.
        ClientGone: it was cut.
    """
    part = await receive()
    if part["type"] == "http.request" and not part.get("more_body", False):
        # Most bodies come in one piece.
        body: bytes = part.get("body", b"")
        if len(body) > limit:
            raise TooLarge(what, limit)
        return body
    if part["type"] == "http.disconnect":
        raise ClientGone
    parts, size = [part.get("body", b"")], len(part.get("body", b""))
    async for more in body_parts(receive):
        parts.append(more)
        size += len(more)
        if size > limit:
            raise TooLarge(what, limit)
    return b"".join(parts)


class BodyHeaders(NamedTuple):
    """What the headers say of a body."""

    content_type: str
    idempotency_key: str | None


def body_headers(scope: Scope, limit: int | None, what: str) -> BodyHeaders:
    """What the headers say of the body, before it is read.

    Raises:
        TooLarge: it announces more than `limit` bytes.
        Unsupported: it is compressed.
    """
    content_type, key = "", None
    for name, value in scope["headers"]:
        if name == b"content-length":
            if limit is not None and value.isdigit() and int(value) > limit:
                raise TooLarge(what, limit)
        elif name == b"content-type":
            content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif name == b"idempotency-key":
            key = value.decode("latin-1")
        elif name == b"content-encoding" and value not in (b"", b"identity"):
            raise Unsupported(
                f"the Content-Encoding {shown(value.decode('latin-1'))} is not read here: send the"
                " body as it is"
            )
    return BodyHeaders(content_type, key)


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
