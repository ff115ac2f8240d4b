"""JSON texts (RFC 8259), byte by byte: how they begin, and why one can't be read."""

import json
import re
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Raw

from msgpush.domain.errors import Fault, Invalid, Malformed
from msgpush.domain.quoting import short_repr

BOM = b"\xef\xbb\xbf"
LONGEST_POINTER = 1000  # characters
DEEP = 500  # levels that the parser takes for certain, whoever calls it

_decode_raw = msgspec.json.Decoder(Raw).decode


def check_utf8(body: bytes) -> None:
    """Raise `Malformed` unless `body` is UTF-8: the decoder doesn't look into what it passes on."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not UTF-8 (byte {error.start})") from None


def without_bom(body: bytes) -> bytes:
    """The text without a byte order mark at its start, as editors write one."""
    return body.removeprefix(BOM)


def unreadable(body: bytes, error: Exception) -> Malformed | Invalid:
    """The reason why the decoder, which has raised `error`, can't read a body.

    Half of a surrogate pair (RFC 8259, section 8.2) is a fault of one value, not of the JSON: it
    has a pointer."""
    if not body.strip():
        return Malformed("the body is empty")
    if isinstance(error, RecursionError):
        return Malformed("the body is nested too deeply")
    if (masked := mask_surrogates(body)) != body:
        try:
            _decode_raw(masked)
            return Invalid(_half_pair(body))
        except (msgspec.DecodeError, RecursionError) as worse:
            return (
                unreadable(masked, worse) if isinstance(worse, RecursionError) else _no_json(worse)
            )
    return _no_json(error)


_WORDS = {"str": "string", "int": "whole number", "float": "number", "bool": "boolean", "|": "or"}


def json_words(text: str) -> str:
    """msgspec's words for a value, in JSON's terms instead of Python's."""
    if not text.startswith("Expected"):
        return text
    return re.sub(r"\b(?:str|int|float|bool)\b|\|", lambda found: _WORDS[found[0]], text)


def _no_json(error: Exception) -> Malformed:
    return Malformed(f"the body is not JSON: {error}")


def mask_surrogates(text: bytes) -> bytes:
    r"""A text of the same length that can be parsed: no escape is half a surrogate pair.

    Every `\ud...` becomes `\uf...`: whatever that was, this is a character, and none that a known
    name has."""
    return text.replace(rb"\ud", rb"\uf").replace(rb"\uD", rb"\uf")


_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]+|[\]}]+', re.DOTALL)


def flatten(text: bytes) -> bytes:
    """A text of the same length, with only spaces in what is nested over 500 levels deep.

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
    for place, text in _texts(value):
        if half := re.search("[\ud800-\udfff]", text):
            where = (
                f"{short_repr(text)} has half of a surrogate pair, \\u{ord(half[0]):x} as character"
                f" {half.start() + 1}"
            )
            return Fault(pointer_of(_steps(place)), f"{where}: cut texts between whole characters")
    raise AssertionError("the decoder has found one")


# A place in a JSON value: the place of what it is in, and a name or a number there. It is text when
# that is asked for: there may be as many of them as the body has bytes.
Place = tuple["Place", str | int] | None


def _texts(value: object) -> Iterator[tuple[Place, str]]:
    """All texts of a JSON value, in their order, each with its place; names with their object's."""
    # What is gone through now, innermost last: where it is, and what is left of it.
    open_: list[tuple[Place, Iterator[tuple[str | int, object]]]] = [(None, iter([("", value)]))]
    while open_:
        outer, rest = open_[-1]
        step = next(rest, None)
        if step is None:
            open_.pop()
            continue
        name, inner = step
        place: Place = None if len(open_) == 1 else (outer, name)
        if isinstance(inner, str):
            yield place, inner
        elif isinstance(inner, _Members):
            for member, _ in inner:
                yield place, member
            open_.append((place, iter(inner)))
        elif isinstance(inner, list):
            open_.append((place, enumerate(inner)))


def _steps(place: Place) -> list[str | int]:
    steps: list[str | int] = []
    while place is not None:
        place, name = place
        steps.append(name)
    return steps[::-1]


def pointer_of(steps: Iterable[str | int]) -> str:
    """A JSON pointer (RFC 6901); one to the value around where it would be too long."""
    pointer = ""
    for step in steps:
        longer = f"{pointer}/{escape(str(step))}"
        if len(longer) > LONGEST_POINTER:
            break
        pointer = longer
    return pointer


def escape(key: str) -> str:
    """A key as part of a JSON pointer (RFC 6901, section 3)."""
    return key.replace("~", "~0").replace("/", "~1")
