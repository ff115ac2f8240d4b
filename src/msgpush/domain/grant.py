"""What a caller may do."""

from collections.abc import Iterable

from msgspec import Struct

from msgpush.domain.channel import BROADCAST
from msgpush.domain.errors import Denied


def matches(pattern: str, channel: str) -> bool:
    """Whether a pattern covers a channel: it is its name, or a prefix of it ending in `*`."""
    return channel.startswith(pattern[:-1]) if pattern.endswith("*") else channel == pattern


class Grant(Struct, frozen=True):
    """Permissions: patterns of the channels to listen to and to publish to, and whether connections may be managed."""

    subject: str | None = None
    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    admin: bool = False

    def check_listen(self, channels: Iterable[str]) -> None:
        """Raise `Denied` unless all of the channels may be listened to; every caller may listen to `broadcast`."""
        for channel in channels:
            if channel != BROADCAST and not any(matches(pattern, channel) for pattern in self.subscribe):
                raise Denied(f"no permission to subscribe to {channel!r}", channel)

    def check_publish(self, channels: Iterable[str]) -> None:
        """Raise `Denied` unless a message may go to all of its channels."""
        if "*" in self.publish:
            return
        for channel in channels:
            if not any(matches(pattern, channel) for pattern in self.publish):
                raise Denied(f"no permission to publish to {channel!r}", channel)

    def check_admin(self) -> None:
        """Raise `Denied` unless connections may be seen and closed."""
        if not self.admin:
            raise Denied("this needs a token with admin")


EVERYTHING = Grant(None, ("*",), ("*",), True)
