"""Grants: the things that a caller may do, and for how long."""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from msgpush.domain.channel import BROADCAST, is_channel
from msgpush.domain.errors import Denied
from msgpush.domain.quoting import short_repr

SHOWN = 5  # channels that a refusal names


def is_pattern(text: str) -> bool:
    """True for a pattern of channels: a name, or a prefix of names that ends in `*`."""
    return text == "*" or is_channel(text.removesuffix("*"))


class Patterns:
    """Patterns of channels, among thousands of which a channel is found at once."""

    __slots__ = ("_everything", "_names", "_prefixes", "texts")

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self._names = frozenset(texts)
        self._prefixes = tuple({text[:-1] for text in texts if text.endswith("*")})
        self._everything = "*" in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and self._names == other._names

    def __hash__(self) -> int:
        return hash(self._names)

    def __repr__(self) -> str:
        return f"Patterns{self.texts!r}"

    def lacking(self, channels: Iterable[str]) -> list[str]:
        """Those of some channels that none of them covers."""
        return [] if self._everything else [each for each in channels if not self.cover(each)]

    def cover(self, channel: str) -> bool:
        """True if one of them is this channel's name, or a prefix of it that ends in `*`."""
        return channel in self._names or channel.startswith(self._prefixes)


NO_PATTERNS = Patterns()


class Grant(Struct, frozen=True):
    """Permissions, as a token or a ticket gives them.

    Attributes:
        subject: whom they were given to; None where nobody was asked who it is.
        channels: channels that may be listened to, by name; `broadcast` always may.
        subscribe: patterns of further ones.
        publish: patterns of the channels that messages may go to.
        user: the user that it speaks for, as channels name users.
        users: further users that it may act for: patterns of theirs, or of a ticket their names.
        admin: whether connections may be seen and closed, and tokens revoked.
        expires: until when, in seconds since 1970; None: for ever.
        issued_at: since when, in seconds since 1970, if that is known.
        id: the token's own name (`jti`), if it has one.
        ticket: the digest of the ticket that was shown instead of a token.
    """

    subject: str | None = None
    channels: frozenset[str] = frozenset()
    subscribe: Patterns = NO_PATTERNS
    publish: Patterns = NO_PATTERNS
    admin: bool = False
    expires: float | None = None
    issued_at: float | None = None
    id: str | None = None
    ticket: str | None = None
    user: str | None = None
    users: Patterns = NO_PATTERNS

    def acts_for(self, user: str) -> bool:
        """True if it may do what only this user may: acknowledge, and see what waits for that."""
        return user == self.user or self.users.cover(user)

    def check_act(self, user: str) -> None:
        """Raise `Denied` unless it may act for a user."""
        if not self.acts_for(user):
            raise Denied(f"the permission to act for {short_repr(user)} is missing", "users")

    def check_listen(self, channels: Iterable[str]) -> None:
        """Raise `Denied` unless all of the channels may be listened to; `broadcast` always may."""
        if missing := self.not_listened(channels):
            raise _denied("subscribe", missing)

    def not_listened(self, channels: Iterable[str]) -> list[str]:
        """Those of some channels that may not be listened to."""
        own = self.channels
        others = [each for each in channels if each != BROADCAST and each not in own]
        return self.subscribe.lacking(others)

    def check_publish(self, channels: Iterable[str]) -> None:
        """Raise `Denied` unless a message may go to all of its channels."""
        if missing := self.publish.lacking(channels):
            raise _denied("publish", missing)

    def check_admin(self) -> None:
        """Raise `Denied` unless connections may be seen and closed, and tokens revoked."""
        if not self.admin:
            raise Denied("the permission `admin` is missing", "admin")


def _denied(permission: str, channels: list[str]) -> Denied:
    channels.sort()
    names = ", ".join(map(short_repr, channels[:SHOWN])) + (
        ", ..." if len(channels) > SHOWN else ""
    )
    return Denied(
        f"the permission to {permission} is missing for {names}", permission, tuple(channels)
    )


EVERYTHING = Grant(None, frozenset(), Patterns("*"), Patterns("*"), admin=True, users=Patterns("*"))
