"""The log as a process has read it: its newest position, and the ring of its newest entries."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import merge
from operator import attrgetter

from msgpush.domain.message import Entry
from msgpush.domain.position import ZERO, Cursor, Position, cursor_text

_position = attrgetter("position")


def index_after(entries: Sequence[Entry], after: Position) -> int:
    """The index of the first entry after a position."""
    return bisect_right(entries, after, key=_position)


class Ring:
    """The newest entries of the log, found by channel.

    Everything of the log after `floor` is here; nothing at or below it is.

    Args:
        length: entries kept; a sixteenth more is let in before the oldest go, all at once.
        size: bytes of bodies kept, likewise.
    """

    def __init__(self, length: int = 65_536, size: int = 64 * 1024 * 1024) -> None:
        self._length, self._size = length, size
        self._most, self._largest = length + length // 16, size + size // 16
        self.clear(ZERO)

    def clear(self, floor: Position) -> None:
        """Forget all; the log goes on after `floor`."""
        self.floor = floor
        self._bytes = 0
        self._all: list[Entry] = []
        self._by_channel: dict[str, list[Entry]] = {}

    def append(self, entry: Entry) -> None:
        self._all.append(entry)
        self._bytes += len(entry.body)
        by_channel = self._by_channel
        for channel in entry.channels:
            entries = by_channel.get(channel)
            if entries is None:
                by_channel[channel] = [entry]
            else:
                entries.append(entry)
        if len(self._all) > self._most or self._bytes > self._largest:
            self._trim()

    def _trim(self) -> None:
        """Drop the oldest entries, down to what is kept."""
        number, kept = 0, len(self._all)
        while kept > self._length or self._bytes > self._size:
            self._bytes -= len(self._all[number].body)
            number += 1
            kept -= 1
        dropped = self._all[:number]
        del self._all[:number]
        self.floor = dropped[-1].position
        for channel, count in Counter(
            channel for entry in dropped for channel in entry.channels
        ).items():
            entries = self._by_channel[channel]
            if count == len(entries):
                del self._by_channel[channel]
            else:
                del entries[:count]

    def cut(self, end: Position) -> None:
        """Forget what comes after `end`; nothing at or below it is added to what is here."""
        kept = self._all[: index_after(self._all, end)]
        self.clear(min(self.floor, end))
        for entry in kept:
            self.append(entry)

    def after(self, channels: frozenset[str], after: Position) -> Iterator[Entry]:
        """The entries of any of `channels` after a position, in order, each once."""
        found = [
            _after(self._by_channel[channel], after)
            for channel in channels
            if channel in self._by_channel
        ]
        return found[0] if len(found) == 1 else unique(merge(*found, key=_position))


class Log:
    """The log as this process has read it: its name, its newest position and entries.

    Attributes:
        prefix: what its cursors begin with.
    """

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.epoch = self.prefix = ""
        self.head = ZERO

    def begin(self, epoch: str, head: Position) -> None:
        """Follow the log of this name, from this position on."""
        self._go_on(epoch, head)
        self.ring.clear(head)

    def cut(self, epoch: str, end: Position) -> None:
        """Go on as another log after `end`."""
        self._go_on(epoch, end)
        self.ring.cut(end)

    def skip(self, to: Position) -> None:
        """Go on after entries that are missing here."""
        self.head = to
        self.ring.clear(to)

    def cursor(self, position: Position) -> str:
        """The text of a position's cursor."""
        return cursor_text(self.prefix, position)

    def _go_on(self, epoch: str, head: Position) -> None:
        self.epoch, self.head = epoch, head
        self.prefix = Cursor(epoch, head).prefix


def _after(entries: list[Entry], after: Position) -> Iterator[Entry]:
    for index in range(index_after(entries, after), len(entries)):
        yield entries[index]


def unique(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The entries without repetitions, which stand side by side."""
    last = ZERO
    for entry in entries:
        if entry.position != last:
            last = entry.position
            yield entry
