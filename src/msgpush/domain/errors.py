"""The errors, as a small tree. They carry fields; nobody parses their text."""

from collections.abc import Mapping
from typing import Literal, Self

from msgspec import Struct

from msgpush.domain.rates import Allowance

Ending = Literal["drain", "slow", "expired", "disconnected", "revoked"]
Refusal = Literal["connections", "subject", "address", "draining", "bus", "keys"]


class Fault(Struct, frozen=True):
    """One thing that is wrong with a body: where (a JSON pointer, RFC 6901) and what would be
    right.
    """

    pointer: str
    detail: str


class MsgpushError(Exception):
    """Every error that this package raises on purpose."""

    def as_value(self) -> Self:
        """The same, to be kept among results.

        A raised error keeps the frames that it came through, and what they had, a body maybe: in a
        circle, until the garbage collector comes, and that is rarely."""
        self.__context__ = None
        return self.with_traceback(None)


class Malformed(MsgpushError):
    """The text can't be read at all: not UTF-8, not JSON, not a cursor."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Invalid(MsgpushError):
    """The JSON was read, but it isn't a message."""

    def __init__(self, *faults: Fault) -> None:
        told = (
            f"{fault.pointer}: {fault.detail}" if fault.pointer else fault.detail
            for fault in faults
        )
        super().__init__("; ".join(told))
        self.faults = faults


class TooLarge(MsgpushError):
    """More than a limit allows."""

    def __init__(self, what: str, limit: int, unit: str = "bytes") -> None:
        super().__init__(f"{what} is larger than the {limit} {unit} allowed")
        self.what, self.limit, self.unit = what, limit, unit


class Conflict(MsgpushError):
    """The id was accepted before, with other content."""

    def __init__(self, service: str, id: str) -> None:
        super().__init__(f'service "{service}" has published id "{id}" before, with other content')
        self.service, self.id = service, id


class MailboxFull(MsgpushError):
    """A user has as many unacknowledged messages of a service as may wait."""

    def __init__(self, service: str, user: str, most: int, size: int) -> None:
        super().__init__(
            f'user "{user}" has as many unacknowledged messages of service "{service}" as may wait:'
            f" at most {most}, of {size} bytes together; publish again once some are acknowledged,"
            " withdrawn or given up"
        )
        self.service, self.user = service, user


class DeviceTaken(MsgpushError):
    """The device is another user's, and who registers it hasn't shown what it alone knows."""

    def __init__(self) -> None:
        super().__init__(
            "this device is registered for another user: it moves with the keys of the subscription"
            " that it was registered with, or its secret"
        )


class NotDue(MsgpushError):
    """A message isn't delivered again: it was acknowledged, or somebody else was first.

    Args:
        superseded: whether a newer message has taken its place.
    """

    def __init__(self, key: str, *, superseded: bool = False) -> None:
        super().__init__(f"{key} is not to be delivered again now")
        self.key, self.superseded = key, superseded


class Denied(MsgpushError):
    """The caller may not do this.

    Args:
        permission: which one is missing: `subscribe`, `publish` or `admin`; None: no permission
            would help.
        channels: those that it is missing for.
    """

    def __init__(
        self, detail: str, permission: str | None = None, channels: tuple[str, ...] = ()
    ) -> None:
        super().__init__(detail)
        self.detail, self.permission, self.channels = detail, permission, channels


class Unauthorized(MsgpushError):
    """There is no token, or it isn't valid; its text says why."""


class BusUnavailable(MsgpushError):
    """The bus can't take or give messages now; nothing was stored.

    Args:
        detail: what has happened, for the log: it may name servers.
        retry_after: seconds after which another try makes sense.
        public: the same as strangers may hear it, if that differs.
    """

    reason: Refusal = "bus"  # why a stream is refused then

    def __init__(self, detail: str, retry_after: int = 1, *, public: str | None = None) -> None:
        super().__init__(detail)
        self.detail, self.retry_after = detail, retry_after
        self.public = detail if public is None else public


class PendingFull(BusUnavailable):
    """There is no room now for one more message that waits for its acknowledgement."""

    def __init__(self) -> None:
        super().__init__(
            "there is no room now for one more message that waits for an acknowledgement", 60
        )


class KeysUnavailable(MsgpushError):
    """There are no keys yet to verify tokens with."""

    retry_after = 5
    reason: Refusal = "keys"


class RateExceeded(MsgpushError):
    """A subject asks for more than it may now.

    Args:
        what: that it asks for, in the plural.
    """

    def __init__(self, what: str, allowance: Allowance) -> None:
        super().__init__(
            f"no more {what} of this subject now: {allowance.rate:g} a second are allowed, and"
            f" {allowance.burst} at once; try again in {allowance.retry_after:.3g} seconds"
        )
        self.what, self.allowance = what, allowance
        self.retry_after = allowance.retry_after


class Overloaded(MsgpushError):
    """No new stream can be served now, here."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(f"no new stream can be served: {_OVERLOADED[reason]}")
        self.reason = reason


_OVERLOADED: Mapping[Refusal, str] = {
    "connections": "there are as many as this process may serve",
    "subject": "there are as many as this subject may have",
    "address": "there are as many as this address may have",
    "draining": "this one is ending, or has ended",
    "bus": "the bus can't be reached",
    "keys": "there are no keys to verify tokens with",
}


class Closed(MsgpushError):
    """A listener was ended, after everything that it has been given.

    Args:
        reason: why: `drain` (this `Push` ends), `slow` (it has read nothing for too long),
            `disconnected` (on request, or by a mistake here), `expired` or `revoked` (its
            permissions ended).
        reconnect: whether it is welcome again.
        cursor: where to listen on from, so that nothing is overlooked.
    """

    def __init__(self, reason: Ending, reconnect: bool, cursor: str) -> None:
        super().__init__(f"the listener was closed ({reason}); continue after {cursor!r}")
        self.reason, self.reconnect, self.cursor = reason, reconnect, cursor


# What a bus answers for a message that it doesn't store.
Rejection = Conflict | MailboxFull | NotDue | BusUnavailable
