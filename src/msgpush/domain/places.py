"""The places among the streams of one process: open ones, and those about to open."""

from collections import Counter
from typing import Any

from msgpush.domain.ports import ClientInfo


class Places:
    """The counts that limits of streams go by.

    All streams of one ticket have one place together, since a new one ends the older.
    """

    def __init__(self) -> None:
        self.total = 0
        self.subjects: Counter[str | None] = Counter()
        self.addresses: Counter[str] = Counter()
        self._tickets: dict[str, list[str]] = {}  # and the addresses that they are used from

    def take(self, info: ClientInfo, ticket: str | None) -> None:
        """One more stream is open, or about to be."""
        new, elsewhere = self.needed(info, ticket)
        if new:
            self.total += 1
            self.subjects[info.subject] += 1
        if elsewhere:
            self.addresses[info.address] += 1
        if ticket is not None:
            self._tickets.setdefault(ticket, []).append(info.address)

    def leave(self, info: ClientInfo, ticket: str | None) -> None:
        """A stream has ended, or isn't about to open any longer."""
        if ticket is not None:
            self._tickets[ticket].remove(info.address)
            if not self._tickets[ticket]:
                del self._tickets[ticket]
        new, elsewhere = self.needed(info, ticket)
        if new:
            self.total -= 1
            _discount(self.subjects, info.subject)
        if elsewhere:
            _discount(self.addresses, info.address)

    def needed(self, info: ClientInfo, ticket: str | None) -> tuple[bool, bool]:
        """True if a stream needs a place that its ticket lacks yet: at all, and at its address."""
        has = self._tickets.get(ticket, ()) if ticket is not None else ()
        return not has, info.address not in has


def _discount(counts: Counter[Any], key: str | None) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
