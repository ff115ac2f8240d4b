"""What can go wrong with a publisher or a listener."""

from __future__ import annotations

import msgspec
from msgspec import Struct

MESSAGES_NAMED = 5


class Fault(Struct, frozen=True):
    """One thing that is wrong with a message: where (a JSON pointer), and what."""

    pointer: str
    detail: str


class MsgpushError(Exception):
    """Something that this client says."""


class Unavailable(MsgpushError):
    """The service could not be reached, or could not answer, for as long as it was tried.

    Args:
        cause: what it was, the last time.
        keys: the messages that were not accepted, `<service>/<id>` each. An attempt may have
            stored one all the same: sent again with the same id, it is stored once.
    """

    def __init__(self, cause: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(f"{_named(keys)}{cause}")
        self.cause, self.keys = cause, keys


class Rejected(MsgpushError):
    """The service has refused something, and would refuse it again.

    Args:
        status: of the answer, or of this message's part of it (401, 403, 409, 413, 422, ...).
        detail: the reason, in the service's words.
        faults: what is wrong with the message, and where.
        key: the message, `<service>/<id>`.
    """

    def __init__(
        self, status: int, detail: str, faults: tuple[Fault, ...] = (), key: str = ""
    ) -> None:
        super().__init__(f"{_named((key,) if key else ())}{status}, {detail}")
        self.status, self.detail, self.faults, self.key = status, detail, faults, key


class Unsendable(MsgpushError):
    """What was to be reported can't be a message: its data has no JSON form, for instance."""


class BufferFull(MsgpushError):
    """The buffer had no room for a message; it wasn't taken.

    Args:
        key: the message, `<service>/<id>`.
    """

    def __init__(self, key: str, capacity: int) -> None:
        super().__init__(
            f"{key}: the buffer is full ({capacity} messages): the service is away, or too slow"
        )
        self.key = key


class Unsent(MsgpushError):
    """A publisher has ended before all that it had buffered was accepted.

    Args:
        keys: the messages that were left, `<service>/<id>` each.
    """

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__(f"{_named(keys)}not accepted by the service in time")
        self.keys = keys


class Ended(MsgpushError):
    """The publisher or listener was closed before."""


class Problem(Struct):
    """The body of an answer that is an error (RFC 9457)."""

    title: str = ""
    detail: str = ""
    status: int = 0
    errors: tuple[Fault, ...] = ()


_decode_problem = msgspec.json.Decoder(Problem).decode
# What a decoder raises for a body that is something else.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def rejected(status: int, body: bytes, key: str = "") -> Rejected:
    """The error that an answer stands for; of one that isn't the service's own, what it says."""
    try:
        problem = _decode_problem(body)
    except UNREADABLE:
        text = " ".join(body.decode(errors="replace").split())[:200]
        return Rejected(
            status, f"not an answer of msgpush ({text or 'empty'}): is the URL right?", (), key
        )
    return Rejected(status, problem.detail or problem.title, problem.errors, key)


def _named(keys: tuple[str, ...]) -> str:
    """The messages that an error is about, as the beginning of its text."""
    if not keys:
        return ""
    rest = f" and {len(keys) - MESSAGES_NAMED} more" if len(keys) > MESSAGES_NAMED else ""
    return f"{', '.join(keys[:MESSAGES_NAMED])}{rest}: "
