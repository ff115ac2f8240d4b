"""Requests as the endpoints read them: headers, the path, parameters, bodies."""

import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope

from msgpush.adapters.http.problems import Unsupported
from msgpush.domain.errors import Fault, Invalid, Malformed, TooLarge
from msgpush.domain.json_text import check_utf8, escape, unreadable, without_bom
from msgpush.domain.quoting import short_repr

MAX_PARAMETERS = 256

# A number that no float can hold is one all the same.
_decode = msgspec.json.Decoder(float_hook=float).decode


class ClientGone(Exception):
    """The client went before its request was complete: nobody is to be answered."""


def header(scope: Scope, name: bytes) -> str | None:
    """A request header's value; the first where there are several."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def path_tail(scope: Scope, prefix: str, suffix: str = "") -> str:
    """The part of the path between `prefix` and `suffix`, decoded.

    Before the prefix may be what the service is under.

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

    @property
    def names(self) -> set[str]:
        """The parameters that nobody has taken yet, but for those that anybody may add."""
        return {name for name in self._values if not name.startswith("_")}

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
                f"the parameter {name} is given with different values: {short_repr(first)},"
                f" {short_repr(others[0])}"
            )
        return first

    def integer(self, name: str, default: int, lowest: int, highest: int) -> int:
        """The whole number that a parameter gives, within these bounds."""
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
                f"the parameter {name} is {short_repr(value)}: it must be a number from {lowest} to"
                f" {highest}"
            )
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.one(name)
        if value not in (None, "true", "false"):
            raise Malformed(
                f"the parameter {name} is {short_repr(value)}: it must be true or false"
            )
        return default if value is None else value == "true"

    def done(self, passed: re.Pattern[str] = re.compile("_")) -> None:
        """Raise `Malformed` for a parameter that nobody took, unless it begins like `passed`."""
        for name in self._values:
            if not passed.match(name):
                raise Malformed(f"there is no parameter {short_repr(name)} here")


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
    """The headers that describe a body."""

    content_type: str
    idempotency_key: str | None


def body_headers(scope: Scope, limit: int | None, what: str) -> BodyHeaders:
    """Read the headers that describe a body, before the body itself.

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
                f"the Content-Encoding {short_repr(value.decode('latin-1'))} is not read here: send"
                " the body as it is"
            )
    return BodyHeaders(content_type, key)


async def read_object(request: Request, limit: int, example: str = "") -> dict[str, Any]:
    """The JSON object (RFC 8259) that a request's body is.

    Args:
        limit: bytes of the body.
        example: one that would do, for the error's text.

    Raises:
        TooLarge, Unsupported, ClientGone: as `body_headers` and `read_body`.
        Malformed: it isn't JSON.
        Invalid: it is something else.
    """
    body_headers(request.scope, limit, "the body")
    body = await read_body(request.receive, limit, "the body")
    check_utf8(body)
    body = without_bom(body)
    try:
        given = _decode(body)
    except msgspec.ValidationError as error:
        raise Invalid(Fault("", f"it has something that can't be read: {error}")) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise unreadable(body, error) from None
    if not isinstance(given, dict):
        such = f" such as {example}" if example else ""
        raise Invalid(Fault("", f"it must be a JSON object{such}"))
    return given


def no_field(name: str, of: str) -> Invalid:
    """The refusal of a field that an object of this kind doesn't have."""
    return Invalid(Fault(f"/{escape(name)}", f"{short_repr(name)} is no field of {of}"))
