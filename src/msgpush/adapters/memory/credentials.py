"""Tickets and revocations of a single process, in its memory."""

import time
from collections.abc import Callable
from heapq import heappop, heappush

from msgspec import Struct

from msgpush.adapters.memory.devices import MemoryDevices
from msgpush.domain.credentials import MOST, Revocation, Revocations, Ticket


class _Kept(Struct):
    ticket: Ticket
    until: float
    connection: str = ""


class MemoryCredentials:
    """Tickets and revocations in memory, gone at exit as the bus beside it.

    Args:
        lifetime: seconds for which a revocation stands.
        clock: seconds since 1970.
        devices: those that go with a revocation of their user.
    """

    def __init__(
        self,
        *,
        lifetime: float,
        clock: Callable[[], float] = time.time,
        devices: MemoryDevices | None = None,
    ) -> None:
        self._clock = clock
        self._devices = devices
        self._revoked = Revocations(lifetime)
        self._tickets: dict[str, _Kept] = {}
        self._by_end: list[tuple[float, str]] = []
        self._by_subject: dict[str | None, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    async def add_ticket(self, digest: str, ticket: Ticket, seconds: float) -> None:
        self._forget()
        self._keep(digest, _Kept(ticket, self._clock() + seconds))
        own = self._by_subject.setdefault(ticket.subject, {})
        own[digest] = None
        if len(own) > MOST:
            self._drop(next(iter(own)))

    async def ticket(self, digest: str) -> Ticket | None:
        self._forget()
        kept = self._tickets.get(digest)
        return None if kept is None else kept.ticket

    async def holder(self, digest: str) -> str | None:
        self._forget()
        kept = self._tickets.get(digest)
        return None if kept is None else kept.connection

    async def claim(
        self, digest: str, subject: str | None, *, connection: str, before: str, until: float
    ) -> bool:
        self._forget()
        kept = self._tickets.get(digest)
        if kept is None or kept.connection != before:
            return False
        kept.connection = connection
        if until != kept.until:
            kept.until = until
            self._keep(digest, kept)
        return True

    async def revoke(self, *revocations: Revocation) -> None:
        for revocation in revocations:
            self._revoked.add(revocation, self._clock())
            if revocation.kind == "subject" and self._devices is not None:
                self._devices.revoke(revocation.value, revocation.at)

    async def revocations(self) -> list[Revocation]:
        return list(self._revoked)

    def _keep(self, digest: str, kept: _Kept) -> None:
        self._tickets[digest] = kept
        heappush(self._by_end, (kept.until, digest))
        if len(self._by_end) > 1_000 + 2 * len(self._tickets):
            # Most of it is of tickets that are there no longer, or that end at another time by now.
            self._by_end = sorted((kept.until, digest) for digest, kept in self._tickets.items())

    def _forget(self) -> None:
        now = self._clock()
        while self._by_end and self._by_end[0][0] <= now:
            _, digest = heappop(self._by_end)
            kept = self._tickets.get(digest)
            if kept is not None and kept.until <= now:
                self._drop(digest)

    def _drop(self, digest: str) -> None:
        subject = self._tickets.pop(digest).ticket.subject
        own = self._by_subject[subject]
        del own[digest]
        if not own:
            del self._by_subject[subject]
