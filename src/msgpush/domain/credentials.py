"""Credentials that outlive a request: tickets, and revocations of tokens."""

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from typing import Literal

from msgspec import Struct

from msgpush.domain.channel import USER
from msgpush.domain.grant import NO_PATTERNS, Grant, Patterns

Kind = Literal["subject", "jti", "issued_before"]

MOST = 10_000  # tickets of a subject, or of a service that asks for its users
UNUSED = 60  # seconds for which a ticket waits for its first use
PREFIX = "ticket_"  # nobody takes it for a token


def users_named(channels: Iterable[str]) -> list[str]:
    """The users whose channels are among these."""
    return [each.removeprefix(USER) for each in channels if each.startswith(USER)]


class Ticket(Struct, frozen=True):
    """The permissions of a ticket: to listen to these channels, as long as its token is good.

    Attributes:
        expires, issued_at: of that token, in seconds since 1970, and so are `subject` and `id`.
        acknowledge: whether it may act for the users whose channels it names, too.
    """

    subject: str | None
    channels: tuple[str, ...]
    expires: float
    issued_at: float | None
    id: str | None
    acknowledge: bool = False

    def grant(self, digest: str) -> Grant:
        """The permissions of whoever shows it."""
        return Grant(
            self.subject,
            frozenset(self.channels),
            expires=self.expires,
            issued_at=self.issued_at,
            id=self.id,
            ticket=digest,
            users=Patterns(*users_named(self.channels)) if self.acknowledge else NO_PATTERNS,
        )


def new_ticket() -> str:
    """A random value that nobody guesses."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(ticket: str) -> str:
    """The digest that is kept of a ticket: whoever reads it can't use it."""
    return hashlib.sha256(ticket.encode(errors="surrogatepass")).hexdigest()


class Revocation(Struct, frozen=True, tag="revoke"):
    """Tokens that are refused from now on.

    Attributes:
        kind: whether `value` is a subject, whose tokens issued at `at` or before are meant, or a
            token's `jti`; or every token is meant that was issued before `at`.
        at: in seconds since 1970.
    """

    kind: Kind
    value: str
    at: float


class Revocations:
    """The revocations that stand.

    Args:
        lifetime: seconds for which a revocation has to stand, since no token is valid for longer.
    """

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._at: dict[tuple[Kind, str], float] = {}
        self._crowded = 1_000

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[Revocation]:
        return (Revocation(kind, value, at) for (kind, value), at in self._at.items())

    def add(self, revocation: Revocation, now: float) -> None:
        """Let a revocation stand; an earlier one of the same tokens stays in force."""
        key = (revocation.kind, revocation.value)
        self._at[key] = max(revocation.at, self._at.get(key, revocation.at))
        if len(self._at) >= self._crowded:
            self._at = {key: at for key, at in self._at.items() if at + self._lifetime > now}
            self._crowded = max(1_000, 2 * len(self._at))

    def reason(self, grant: Grant) -> str | None:
        """The reason why what a token or ticket grants is refused; None: it isn't."""
        if not self._at or grant.subject is None:
            return None  # there are none, or nobody asked for a token
        issued = grant.issued_at
        at = self._at.get(("subject", grant.subject))
        if at is not None and (issued is None or issued <= at):
            return "the token is refused: its subject's tokens have been revoked"
        if grant.id is not None and ("jti", grant.id) in self._at:
            return "the token has been revoked"
        before = self._at.get(("issued_before", ""))
        if before is not None and (issued is None or issued < before):
            return (
                "the token is refused: all that were issued before a certain moment have been"
                " revoked"
            )
        return None
