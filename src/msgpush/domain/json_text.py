"""JSON texts (RFC 8259), byte by byte: what may stand before one, and what is wrong where one can't be read."""

import json
import re
from collections.abc import Iterator

import msgspec
from msgspec import Raw

from msgpush.domain.channel import escape, shown
from msgpush.domain.errors import Fault, Invalid, Malformed

BOM = b"\xef\xbb\xbf"
DEEP = 500  # levels that the parser takes for certain, whoever calls it

_decode_raw = msgspec.json.Decoder(Raw).decode


def check_utf8(body: bytes) -> None:
    """Raise `Malformed` unless `body` is UTF-8 throughout: the decoder doesn't look inside what it passes on."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not UTF-8 (byte {error.start})") from None


def without_bom(body: bytes) -> bytes:
    """The text without the byte order mark that may stand at its start; editors and some libraries write one."""
    return body.removeprefix(BOM)


def unreadable(body: bytes, error: Exception) -> Malformed | Invalid:
    """Why the decoder, which has raised `error`, can't read a body.

    Half of a surrogate pair (RFC 8259, section 8.2) is a fault of one value, not of the JSON: it has a pointer.
    """
    if not body.strip():
        return Malformed("the body is empty")
    if isinstance(error, RecursionError):
        return Malformed("the body is nested too deeply")
    if (masked := mask_surrogates(body)) != body:
        try:
            _decode_raw(masked)
            return Invalid(_half_pair(body))
        except (msgspec.DecodeError, RecursionError) as worse:
            return unreadable(masked, worse) if isinstance(worse, RecursionError) else _no_json(worse)
    return _no_json(error)


_WORDS = {"str": "string", "int": "whole number", "float": "number", "bool": "boolean", "|": "or"}


def json_words(text: str) -> str:
    """What msgspec says of a value, in JSON's words instead of Python's."""
    if not text.startswith("Expected"):
        return text
    return re.sub(r"\b(?:str|int|float|bool)\b|\|", lambda found: _WORDS[found[0]], text)


def _no_json(error: Exception) -> Malformed:
    return Malformed(f"the body is not JSON: {error}")


def mask_surrogates(text: bytes) -> bytes:
    r"""A text of the same shape and length, in which no escape is half of a surrogate pair, so that it can be parsed.

    Every `\ud...` becomes `\uf...`: whatever that was, this is a character, and none that a known name has.
    """
    return text.replace(rb"\ud", rb"\uf").replace(rb"\uD", rb"\uf")


_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]+|[\]}]+', re.DOTALL)


def flatten(text: bytes) -> bytes:
    """A text of the same length, with nothing but spaces in what is nested more than 500 levels deep.

    It takes a moment: up to half a second a MiB.
    """
    flat = bytearray(text)
    depth = start = 0
    for token in _TOKEN.finditer(text):
        at, end = token.span()
        if text[at] in b"[{":
            if depth < DEEP <= depth + end - at:
                start = at + DEEP - depth
            depth += end - at
        elif text[at] in b"]}":
            if depth >= DEEP > depth - (end - at):
                stop = at + depth - DEEP
                flat[start:stop] = b" " * (stop - start)
            depth -= end - at
    return bytes(flat)


class _Members(list[tuple[str, object]]):
    """An object: its members in their order, those included whose name comes again."""


def _half_pair(body: bytes) -> Fault:
    # Python's own parser is slower, and takes halves: which is what is asked for here.
    value = json.loads(body, object_pairs_hook=_Members, parse_int=len, parse_float=len)
    for pointer, text in _texts(value):
        if half := re.search("[\ud800-\udfff]", text):
            where = f"{shown(text)} has half of a surrogate pair, \\u{ord(half[0]):x} as character {half.start() + 1}"
            return Fault(pointer, f"{where}: that is no character; texts are to be cut between whole characters")
    raise AssertionError("the decoder has found one")


def _texts(value: object) -> Iterator[tuple[str, str]]:
    """All texts of a JSON value, in their order, each with its pointer; names with their object's."""
    waiting: list[tuple[str, object]] = [("", value)]
    while waiting:
        pointer, value = waiting.pop()
        if isinstance(value, str):
            yield pointer, value
        elif isinstance(value, _Members):
            for name, _ in value:
                yield pointer, name
            waiting.extend((f"{pointer}/{escape(name)}", each) for name, each in reversed(value))
        elif isinstance(value, list):
            waiting.extend((f"{pointer}/{index}", each) for index, each in reversed(list(enumerate(value))))
