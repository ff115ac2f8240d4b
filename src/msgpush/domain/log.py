"""Runs of log entries: the order that everything else relies on, kept in lists that can be searched."""

from bisect import bisect_right
from collections.abc import Iterator
from heapq import merge
from operator import attrgetter

from msgpush.domain.message import Entry
from msgpush.domain.position import ZERO, Position

_position = attrgetter("position")


class Run:
    """Entries in order: appended at one end, dropped from the other, read after any position."""

    __slots__ = ("_entries", "_start")

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._start = 0

    def __len__(self) -> int:
        return len(self._entries) - self._start

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)

    def first(self) -> Entry:
        return self._entries[self._start]

    def drop_first(self) -> Entry:
        entry = self._entries[self._start]
        self._start += 1
        if self._start >= 64 and self._start * 2 >= len(self._entries):
            del self._entries[: self._start]
            self._start = 0
        return entry

    def index_after(self, after: Position) -> int:
        """Where the first entry after `after` stands, counted from the first one kept."""
        return bisect_right(self._entries, after, lo=self._start, key=_position) - self._start

    def slice(self, start: int, length: int) -> list[Entry]:
        return self._entries[self._start + start : self._start + start + length]

    def after(self, after: Position) -> Iterator[Entry]:
        """The entries after a position; the run must not change meanwhile."""
        for index in range(self._start + self.index_after(after), len(self._entries)):
            yield self._entries[index]


class Ring:
    """The newest entries of the log, found by channel.

    Everything of the log after `floor` is here; nothing at or below it is.

    Args:
        length: entries kept at most.
        size: bytes of bodies kept at most.
    """

    def __init__(self, length: int = 65_536, size: int = 64 * 1024 * 1024) -> None:
        self._length, self._size = length, size
        self.clear(ZERO)

    def clear(self, floor: Position) -> None:
        """Forget all; the log goes on after `floor`."""
        self.floor = floor
        self._bytes = 0
        self._all = Run()
        self._by_channel: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._all)

    def append(self, entry: Entry) -> None:
        self._all.append(entry)
        self._bytes += len(entry.body)
        by_channel = self._by_channel
        for channel in entry.channels:
            run = by_channel.get(channel)
            if run is None:
                run = by_channel[channel] = Run()
            run.append(entry)
        while len(self._all) > self._length or self._bytes > self._size:
            self._drop_first()

    def _drop_first(self) -> None:
        entry = self._all.drop_first()
        self.floor = entry.position
        self._bytes -= len(entry.body)
        for channel in entry.channels:
            run = self._by_channel[channel]
            run.drop_first()
            if not run:
                del self._by_channel[channel]

    def after(self, channels: frozenset[str], after: Position) -> Iterator[Entry]:
        """The entries of any of `channels` after a position, in order, each once."""
        runs = [run.after(after) for channel in channels if (run := self._by_channel.get(channel))]
        return runs[0] if len(runs) == 1 else unique(merge(*runs, key=_position))


def unique(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The entries without repetitions, which stand side by side."""
    last = ZERO
    for entry in entries:
        if entry.position != last:
            last = entry.position
            yield entry
