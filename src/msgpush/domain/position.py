"""Positions in the log, and the cursors that clients are told of them.

One log per deployment. A *position* is totally ordered and never reused; a *cursor* is a position
with the log's epoch, a short random id that changes when the log does. A cursor is the same for
every set of channels, so the id line of a message is part of the bytes that all its readers share.
"""

import re
import secrets
from typing import NamedTuple

from msgspec import Struct

from msgpush.domain.errors import Malformed
from msgpush.domain.quoting import short_repr

EARLIEST = "earliest"
LATEST = "latest"
TERMINAL = "~end"
MAX_CURSOR = 128

_TEXT = re.compile(rf"[A-Za-z0-9_.~-]{{1,{MAX_CURSOR}}}")
_NO_VALUES = {
    **dict.fromkeys(
        ("undefined", "null", "NaN", "true", "false"), "a JavaScript value that isn't a text"
    ),
    "[object Object]": "a JavaScript object",
    "None": "Python's None",
    "nil": "a value that isn't there",
}
# The leading 1 is the form's version: it leaves room for several logs one day.
_CURSOR = re.compile(r"1([a-z0-9]{8})\.(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})")


class Position(Struct, frozen=True, order=True, gc=False):
    """A place in the log: milliseconds since 1970 by the bus's clock, and a number within one."""

    ms: int
    seq: int


ZERO = Position(0, 0)


class Cursor(NamedTuple):
    """A position in a certain log."""

    epoch: str
    position: Position

    @property
    def prefix(self) -> str:
        """The text that all cursors of this log begin with, before the position."""
        return f"1{self.epoch}."

    def __str__(self) -> str:
        return cursor_text(self.prefix, self.position)


def cursor_text(prefix: str, position: Position) -> str:
    """The text of a cursor, from what all cursors of its log begin with."""
    return f"{prefix}{position.ms}-{position.seq}"


def new_epoch() -> str:
    """A name for a new log that no other log has had."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(8))


def is_cursor(text: str) -> bool:
    """True if the text could be a cursor, of this log or another."""
    return _TEXT.fullmatch(text) is not None


def check_cursor(text: str) -> str:
    """The text, if it could be a cursor.

    Raises:
        Malformed: it has other characters than cursors have, or is too long.
    """
    if not is_cursor(text):
        raise Malformed(
            mistake(text)
            or f"{short_repr(text)} is no cursor: 1-{MAX_CURSOR} characters of A-Za-z0-9_.~-"
        )
    return text


def mistake(text: str) -> str | None:
    """The words for a text that a program's mistake has made; None: it isn't known as such."""
    if text not in _NO_VALUES:
        return None
    advice = (
        "send the lastEventId of the newest event, or no cursor at all to begin with what comes now"
    )
    return (
        f"{short_repr(text)} is no cursor, but what {_NO_VALUES[text]} becomes as a text: {advice}"
    )


def parse_cursor(text: str, epoch: str) -> Position | None:
    """The position that a cursor names; None where the log `epoch` didn't make this cursor."""
    match = _CURSOR.fullmatch(text)
    if match is None or match[1] != epoch:
        return None
    return Position(int(match[2]), int(match[3]))
