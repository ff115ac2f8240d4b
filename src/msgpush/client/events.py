"""What a listener hears."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct


class Metadata(Struct, frozen=True):
    """How a message is treated."""

    priority: str = "normal"
    ttl: int = 0
    retry_count: int = 0
    ack: Any = None


class Received(Struct, kw_only=True):
    """A message, as it was published.

    Args:
        cursor: the place after it: a listener with `since=cursor` goes on there.
        raw: its JSON.
    """

    id: str
    type: str
    service: str
    timestamp: str
    source: str | None = None
    target: dict[str, str] = {}
    channels: tuple[str, ...] = ()
    data: dict[str, Any] = {}
    metadata: Metadata = Metadata()
    cursor: str = ""
    raw: str = ""

    @property
    def key(self) -> str:
        """What it is acknowledged by: `<service>/<id>`."""
        return f"{self.service}/{self.id}"

    @property
    def wants_acknowledgement(self) -> bool:
        """Whether it comes again until it is acknowledged."""
        return bool(self.metadata.ack)


class Message(Received):
    """A message that a `Listener` has heard."""

    _say: Callable[[Received], Awaitable[bool]] | None = None

    async def acknowledge(self) -> bool:
        """Say that its user has it, so that it doesn't come again; tried until that is stored.

        Returns:
            Whether it was still waited for.

        Raises:
            Rejected: the token may not act for that user, for instance.
            Unavailable: the service was away for 5 minutes.
        """
        assert self._say is not None, "a listener has heard it"
        return await self._say(self)


class SyncMessage(Received):
    """A message that a `SyncListener` has heard."""

    _say: Callable[[Received], bool] | None = None

    def acknowledge(self) -> bool:
        """As of `Message`."""
        assert self._say is not None, "a listener has heard it"
        return self._say(self)


class Gap(Struct, frozen=True):
    """Something is missing here, and nobody can say what.

    Args:
        channel: where; none: anywhere.
        after: the cursor behind which it is missing.
        reason: trimmed, expired or reset.
    """

    reason: str
    channel: str | None = None
    after: str | None = None
    detail: str = ""


class Opened(Struct, frozen=True):
    """A stream has opened: from here on nothing is missed.

    Args:
        resumed: whether it goes on where another one ended.
        heartbeat: seconds between two signs of life.
    """

    connection: str
    channels: tuple[str, ...] = ()
    resumed: bool = False
    heartbeat: float = 0.0


class Closed(Struct, frozen=True):
    """A stream has ended.

    Args:
        reason: the service's (drain, overload, slow, expired, disconnected, revoked); "lost", where
            the connection broke; "over", where the service wants no other one.
        reconnect: whether the listener opens another one.
        detail: of a lost one, what happened.
    """

    reason: str
    reconnect: bool
    detail: str = ""


Event = Message | Gap | Opened | Closed
SyncEvent = SyncMessage | Gap | Opened | Closed
