"""The forms of a batch: from a request's body to the texts of its messages."""

import asyncio
import re
from contextlib import suppress

import msgspec
from msgspec import Raw, Struct

from msgpush.domain.errors import Fault, Invalid, Malformed
from msgpush.domain.json_text import (
    check_utf8,
    escape,
    flatten,
    mask_surrogates,
    unreadable,
    without_bom,
)
from msgpush.domain.quoting import short_repr

NDJSON_TYPES = (
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonl",
    "application/jsonlines",
    "application/x-jsonlines",
)
FORMS = (
    'a JSON array of messages, {"messages": [...]}, or NDJSON with the Content-Type'
    " application/x-ndjson"
)


class _Batch(Struct, forbid_unknown_fields=True):
    messages: list[Raw]


class _Whole(Struct):
    messages: Raw


_decode_raw = msgspec.json.Decoder(Raw).decode
_decode_any = msgspec.json.Decoder(float_hook=float).decode
_decode_array = msgspec.json.Decoder(list[Raw]).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_whole = msgspec.json.Decoder(_Whole).decode
_BETWEEN = re.compile(rb"[\s,]*")


async def split(body: bytes) -> list[bytes]:
    """As `split_array`; a body that needs a second look gets it in a thread, since that may take
    seconds.
    """
    body = _checked(body)
    try:
        return _items(body)
    except (msgspec.DecodeError, RecursionError):
        return await asyncio.to_thread(_split_again, body)


def split_array(body: bytes) -> list[bytes]:
    """The texts of a batch's messages, from a JSON array or from `{"messages": [...]}`.

    What is wrong within one of them (half of a surrogate pair, too much nesting) is no fault of the
    others.

    Raises:
        Malformed: not JSON.
        Invalid: neither form.
    """
    body = _checked(body)
    try:
        return _items(body)
    except (msgspec.DecodeError, RecursionError):
        return _split_again(body)


def _checked(body: bytes) -> bytes:
    check_utf8(body)
    return without_bom(body)


def _is_object(body: bytes) -> bool:
    return body.lstrip()[:1] == b"{"


def _items(body: bytes) -> list[bytes]:
    items = _decode_batch(body).messages if _is_object(body) else _decode_array(body)
    return [bytes(item) for item in items]


def _split_again(body: bytes) -> list[bytes]:
    """The same, of a body that the decoder can't read as it is: by another one of the same shape,
    which it can.
    """
    shape = mask_surrogates(body)
    try:
        try:
            items = _items(shape)
        except RecursionError:
            shape = flatten(shape)
            items = _items(shape)
    except msgspec.ValidationError:
        raise _no_batch(body) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _unreadable(body, error) from None
    at = shape.index(b"[") + 1
    if _is_object(shape):
        # The last of its members counts, where the name comes again.
        at = len(shape.rstrip()[:-1].rstrip()) - len(bytes(_decode_whole(shape).messages)) + 1
    texts = []
    for item in items:
        match = _BETWEEN.match(shape, at)
        assert match is not None
        at = match.end() + len(item)
        texts.append(body[match.end() : at])
    return texts


def _no_batch(body: bytes) -> Malformed | Invalid:
    """The error for JSON that is no batch, in words for what it is instead."""
    try:
        value = _decode_any(body)
    except msgspec.ValidationError:
        value = ...
    except (msgspec.DecodeError, RecursionError) as error:
        return _unreadable(body, error)
    if not _is_object(body):
        return Invalid(Fault("", f"{short_repr(value)} is no batch: it must be {FORMS}"))
    names = list(_decode_members(body))
    if "messages" not in names and {"type", "service"} & {*names}:
        return Invalid(
            Fault("", f"this is one message, which is sent to /send; a batch is {FORMS}")
        )
    for name in names:
        if name != "messages":
            return Invalid(
                Fault(
                    f"/{escape(name)}",
                    f"{short_repr(name)} is no field of a batch: it must be {FORMS}",
                )
            )
    return Invalid(Fault("/messages", f"it must be an array of messages: a batch is {FORMS}"))


def _unreadable(body: bytes, error: Exception) -> Malformed | Invalid:
    if _has_lines(body):
        told = f"that is NDJSON, which is sent with Content-Type: {NDJSON_TYPES[0]}"
        return Malformed(f"the body has several JSON values, one a line: {told}")
    return unreadable(body, error)


def _has_lines(body: bytes) -> bool:
    first, _, rest = body.strip().partition(b"\n")
    if rest.lstrip()[:1] not in (b"{", b"["):
        return False
    with suppress(msgspec.DecodeError, RecursionError):
        _decode_raw(mask_surrogates(first))
        return True
    return False


def instead_of_one(body: bytes, error: Malformed | Invalid) -> Malformed | Invalid:
    """The words for a body that should have been one message, and had `error`: where it is a
    batch, that it is.
    """
    body = without_bom(body)
    advice = "one message is a JSON object; several are sent to /api/v1/messages/batch"
    if isinstance(error, Malformed):
        return (
            Malformed(f"the body has several JSON values, one a line: {advice}")
            if _has_lines(body)
            else error
        )
    if body.lstrip()[:1] == b"[":
        return Invalid(Fault("", f"it is an array: {advice}"))
    if [fault.pointer for fault in error.faults] == ["/messages"]:
        return Invalid(Fault("", f"it is a batch: {advice}"))
    return error
