"""What can go wrong, as a small tree. Errors carry fields; nobody parses their text."""

from typing import Literal

from msgspec import Struct

Refusal = Literal["connections", "subject", "address", "draining", "bus", "keys"]


class Fault(Struct, frozen=True):
    """One thing that is wrong with a body: where (a JSON pointer, RFC 6901) and what would be right."""

    pointer: str
    detail: str


class MsgpushError(Exception):
    """Every error that this package raises on purpose."""


class Malformed(MsgpushError):
    """The text can't be read at all: not UTF-8, not JSON, not a cursor."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Invalid(MsgpushError):
    """The JSON was read, but it isn't a message."""

    def __init__(self, *faults: Fault) -> None:
        told = (f"{fault.pointer}: {fault.detail}" if fault.pointer else fault.detail for fault in faults)
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
        super().__init__(f"service {service!r} has published id {id!r} before, with other content")
        self.service, self.id = service, id


class Denied(MsgpushError):
    """The caller may not do this.

    Args:
        permission: which one is missing: `subscribe`, `publish` or `admin`; None: no permission would help.
        channels: those that it is missing for.
    """

    def __init__(self, detail: str, permission: str | None = None, channels: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.detail, self.permission, self.channels = detail, permission, channels


class Unauthorized(MsgpushError):
    """There is no token, or it isn't valid; its text says why."""


class BusUnavailable(MsgpushError):
    """The bus can't take or give messages now; nothing was stored.

    Args:
        retry_after: seconds after which another try makes sense.
    """

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.detail, self.retry_after = detail, retry_after


class Overloaded(MsgpushError):
    """No new stream can be served now, here."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason = reason
