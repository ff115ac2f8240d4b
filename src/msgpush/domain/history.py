"""Reading histories: channels merged, and what can't be proven complete told as gaps."""

from collections.abc import Iterable, Mapping
from heapq import merge
from operator import attrgetter
from typing import Literal, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from msgpush.domain.log import unique
from msgpush.domain.message import Entry, priority_of
from msgpush.domain.position import ZERO, Position, mistake

Reason = Literal["trimmed", "expired", "reset"]


class Gap(Struct, frozen=True):
    """Messages of a channel after a cursor are missing, or may be; of all channels where it names
    none.
    """

    channel: str | None
    after: str
    reason: Reason
    detail: str | UnsetType = UNSET


def reset_after(cursor: str) -> Gap:
    """The gap of a reader whose cursor the log didn't make.

    It says so in plain words where a program's mistake has made it."""
    return Gap(None, cursor, "reset", mistake(cursor) or UNSET)


class Linked(NamedTuple):
    """An entry of a channel's history, and the channel's position before it."""

    prev: Position
    entry: Entry


class Page(NamedTuple):
    """The facts that a bus knows of one channel after a position.

    `Replay` tells from them what is missing.

    Attributes:
        entries: the oldest of those retained, in order, expired ones included.
        last: the channel's newest position; where that has been forgotten, the newest that it can
            have been.
        more: whether the channel has more entries after these.
        lost: why the newest of the entries that are retained no longer has gone, as far as the bus
            knows."""

    entries: list[Linked]
    last: Position
    more: bool
    lost: Reason = "trimmed"


class Replayed(NamedTuple):
    """The outcome of a step of a replay: entries, what is missing before them, and its end."""

    entries: list[Entry]
    missing: list[tuple[str, Reason]]
    end: Position


class Replay:
    """A read of some channels from a position on, through as many pages as it takes.

    Args:
        after: the position to continue from; None reads from the earliest that is retained, which
            is never a gap.
        now: milliseconds since 1970. Of a read from the earliest, nothing was promised that had
            expired by then.
        types: only messages of these types are read; None reads all.
        least: only messages of at least this priority are.
    """

    __slots__ = ("_floors", "_least", "_promised_from", "_types", "after")

    def __init__(
        self,
        after: Position | None,
        now: int,
        types: frozenset[str] | None = None,
        least: int = 0,
    ) -> None:
        self.after = after
        self._types, self._least = types, least
        self._promised_from = now if after is None else 0
        # Up to where a channel's continuity has been settled already, where that is later than
        # `after`.
        self._floors: dict[str, Position] = {}

    def of(self, channels: frozenset[str]) -> "Replay":
        """The same read from here on, of these channels: those that it had before go on.

        A channel that is new is read after the same position as all others."""
        other = Replay(self.after, 0, self._types, self._least)
        other._promised_from = self._promised_from
        other._floors = {each: at for each, at in self._floors.items() if each in channels}
        return other

    def step(
        self, pages: Mapping[str, Page], limit: Position, now: int, size: int | None = None
    ) -> Replayed:
        """Merge one page of each channel, read after `self.after`, and move on.

        Args:
            limit: nothing after this position is delivered, nor passed over.
            now: milliseconds since 1970; what has expired by then is missing, not delivered.
            size: bytes of bodies after which the step ends.
        """
        end = limit
        for page in pages.values():
            if page.more:
                end = min(end, page.entries[-1].entry.position)
        merged = merge(
            *([linked.entry for linked in page.entries] for page in pages.values()), key=_position
        )
        entries: list[Entry] = []
        taken = 0
        for entry in unique(merged):
            if entry.position > end:
                break
            if entry.expires > now and self.wants(entry):
                entries.append(entry)
                taken += len(entry.body)
                if size is not None and taken >= size:
                    end = entry.position
                    break
        missing = [
            (channel, reason)
            for channel, page in pages.items()
            if (reason := self._missing(channel, page, end, now))
        ]
        self.after = end
        return Replayed(entries, missing, end)

    def _missing(self, channel: str, page: Page, end: Position, now: int) -> Reason | None:
        if self.after is None:
            self._floors[channel] = page.entries[0].prev if page.entries else page.last
            return self._expired((linked.entry for linked in page.entries), end, now)
        known = max(self.after, self._floors.get(channel, ZERO))
        if page.entries:
            first = page.entries[0].prev
            if first > known:
                self._floors[channel] = first
                return page.lost
            return self._expired((linked.entry for linked in page.entries), end, now)
        if page.last > known:
            self._floors[channel] = page.last
            return page.lost
        return None

    def _expired(self, entries: Iterable[Entry], end: Position, now: int) -> Reason | None:
        for entry in entries:
            if entry.position <= end and entry.expires <= now and self.owes(entry):
                return "expired"
        return None

    def wants(self, entry: Entry) -> bool:
        """True if the reader asked for messages of this type and priority."""
        return (self._types is None or entry.type in self._types) and (
            not self._least or priority_of(entry) >= self._least
        )

    def owes(self, entry: Entry) -> bool:
        """True if an entry that has expired must be told as missing.

        A message that was delivered again is its first delivery's matter: it has no place of its
        own in any history."""
        again = entry.mark is not None and entry.mark.kind == "redelivery"
        return not again and entry.expires > self._promised_from and self.wants(entry)


_position = attrgetter("position")
