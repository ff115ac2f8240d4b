"""The embedded bus: the log and its histories in this process's memory, gone at exit."""

import asyncio
import heapq
import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from operator import attrgetter

from msgpush.adapters.memory.outbox import MemoryOutbox
from msgpush.adapters.memory.sendings import MemorySendings
from msgpush.domain.errors import Conflict, Rejection
from msgpush.domain.history import Linked, Page, Reason
from msgpush.domain.log import index_after
from msgpush.domain.marks import key_of
from msgpush.domain.message import Draft, Entry
from msgpush.domain.ports import Stored
from msgpush.domain.position import ZERO, Cursor, Position, new_epoch

_position = attrgetter("position")

DAY = 86_400
OVERHEAD = (
    400  # bytes that an entry costs in a history beyond its body, and about what a channel costs
)
ID_SECONDS = 600
MOST_IDS = 1_000_000
TAIL_LENGTH = 65_536
TAIL_BYTES = 64 * 1024 * 1024


class _History:
    """One channel: what is retained of it, and its newest position, which outlives that."""

    __slots__ = ("due", "entries", "expires", "last", "lost", "prev", "queued")

    def __init__(self, last: Position) -> None:
        self.entries: list[Entry] = []
        self.prev = last  # of the first entry retained
        self.last = last
        self.lost: Reason = "trimmed"  # why the newest entry that has gone went
        self.expires = 0  # when the last of its entries does, in milliseconds
        self.due = 0  # when it is looked at next, in milliseconds
        self.queued = False  # among the candidates for the oldest entry


class _Tail:
    """The entries that one reader of the log has still to be given."""

    __slots__ = ("arrived", "entries", "size")

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = deque(entries)
        self.size = _size(entries)
        self.arrived = asyncio.Event()

    def put(self, entries: Sequence[Entry], size: int) -> None:
        self.entries.extend(entries)
        self.size += size
        self.arrived.set()
        while len(self.entries) > TAIL_LENGTH or self.size > TAIL_BYTES:
            self.size -= len(self.entries.popleft().body)

    def take(self) -> list[Entry]:
        entries = list(self.entries)
        self.entries.clear()
        self.size = 0
        return entries


def _size(entries: Sequence[Entry]) -> int:
    return sum([len(entry.body) for entry in entries])


class MemoryBus:
    """One append-only log in memory, with each channel's history.

    Args:
        history_length: messages retained a channel; a 64th more is let in before the oldest go, all
            at once.
        size: bytes that all histories may cost together, with what the outbox has; beyond it the
            oldest messages of the histories go, whatever their channel.
        outbox: for messages that ask for an acknowledgement.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        history_length: int = 1000,
        size: int = 256 * 1024 * 1024,
        outbox: MemoryOutbox | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.outbox = outbox or MemoryOutbox(size=size // 2, clock=clock)
        self.sendings = MemorySendings(self.outbox)
        self.epoch = new_epoch()
        self.cut: Cursor | None = None
        self.reachable = True
        self.trouble: str | None = None
        self.unknown = 0
        self._clock = clock
        self._history_length, self._size = history_length, size
        self._most = history_length + history_length // 64
        self._used = 0
        self._room = size  # what the outbox leaves to the histories
        self._last = ZERO
        self._histories: dict[str, _History] = {}
        # A channel that isn't known has had nothing after this.
        self._forgotten = ZERO
        # Heaps with an item a channel, corrected when it comes up: by its oldest entry, by when it
        # is looked at next.
        self._oldest: list[tuple[Position, str]] = []
        self._dues: list[tuple[int, str]] = []
        self._emptied: OrderedDict[str, None] = OrderedDict()
        self._ids: dict[tuple[str, str], tuple[bytes, Position, str]] = {}
        self._ids_by_age: deque[tuple[int, tuple[str, str]]] = deque()
        self._tails: set[_Tail] = set()

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | Rejection]:
        now = self._clock()
        self._forget(now)
        self._room = self._size - self.outbox.used
        entries: list[Entry] = []
        ms = int(now * 1000)
        results: list[Stored | Rejection] = [self._append(draft, ms, entries) for draft in drafts]
        size = _size(entries)
        for tail in self._tails:
            tail.put(entries, size)
        return results

    async def tail(self, after: Position) -> AsyncGenerator[Sequence[Entry], None]:
        tail = _Tail(self._retained_after(after))
        self._tails.add(tail)
        try:
            while True:
                if tail.entries:
                    yield tail.take()
                else:
                    tail.arrived.clear()
                    await tail.arrived.wait()
        finally:
            self._tails.discard(tail)

    async def history(
        self, channels: Sequence[str], after: Position | None, limit: int
    ) -> list[Page]:
        self._forget(self._clock())
        return [self._page(channel, after, limit) for channel in channels]

    async def newest(self, channel: str, before: Position | None, limit: int) -> list[Entry]:
        self._forget(self._clock())
        history = self._histories.get(channel)
        entries = history.entries if history else []
        end = len(entries) if before is None else bisect_left(entries, before, key=_position)
        return entries[max(0, end - limit) : end][::-1]

    async def end(self) -> Position:
        return self._last

    @property
    def length(self) -> int:
        """Messages retained, counted in each of their channels."""
        return sum(len(history.entries) for history in self._histories.values())

    @property
    def channels(self) -> int:
        """Channels that are remembered."""
        return len(self._histories)

    @property
    def used(self) -> int:
        """Bytes that the histories cost, by the reckoning that the budget bounds."""
        return self._used

    # Writing

    def _append(self, draft: Draft, now: int, entries: list[Entry]) -> Stored | Rejection:
        """Keep a message in its channels' histories, at the next position, unless it is known."""
        if (
            draft.digest is not None
            and (known := self._ids.get((draft.service, draft.id))) is not None
        ):
            digest, position, timestamp = known
            if digest != draft.digest:
                return Conflict(draft.service, draft.id)
            return Stored(position, timestamp, True)
        mark, replaces = draft.mark, None
        if draft.push is not None and (full := self.sendings.refusal(draft)) is not None:
            return full
        if mark is not None and mark.key and (refusal := self.outbox.refusal(draft)) is not None:
            return refusal
        last = self._last
        # The clock may step back; positions may not.
        position = Position(now, 0) if now > last.ms else Position(last.ms, last.seq + 1)
        entry = Entry(
            position,
            last,
            draft.channels,
            draft.type,
            draft.service,
            position.ms + draft.ttl * 1000,
            draft.body,
            mark,
        )
        self._last = position
        if mark is not None and mark.key:
            replaces = self.outbox.accept(draft, position)
            self._room = self._size - self.outbox.used
        if draft.push is not None:
            self.sendings.accept(draft)
            self._room = self._size - self.outbox.used
        for channel in entry.channels if mark is None or mark.kind == "message" else ():
            history = self._histories.get(channel)
            if history is None:
                history = self._histories[channel] = _History(self._forgotten)
                self._used += OVERHEAD
            retained = history.entries
            if not retained:
                self._begin(channel, history, entry)
            retained.append(entry)
            history.last = position
            history.expires = max(history.expires, entry.expires)
            if len(retained) > self._most:
                self._drop(history, len(retained) - self._history_length, "trimmed")
            self._used += len(entry.body) + OVERHEAD
        if draft.digest is not None:
            key = (draft.service, draft.id)
            self._ids[key] = (draft.digest, position, draft.timestamp)
            self._ids_by_age.append((now, key))
        if self._used > self._room:
            self._fit()
        entries.append(entry)
        return Stored(position, draft.timestamp, False, replaces)

    def _begin(self, channel: str, history: _History, entry: Entry) -> None:
        history.prev = history.last
        self._emptied.pop(channel, None)
        if not history.queued:
            history.queued = True
            heapq.heappush(self._oldest, (entry.position, channel))
        if not history.due or entry.expires < history.due:
            self._look_again(channel, history, entry.expires)

    # Forgetting

    def _drop(self, history: _History, number: int, why: Reason) -> None:
        entries = history.entries
        self._used -= _size(entries[:number]) + OVERHEAD * number
        history.prev = entries[number - 1].position
        history.lost = why
        del entries[:number]

    def _fit(self) -> None:
        while self._used > self._room:
            if self._emptied:
                self._forget_channel(next(iter(self._emptied)))
            elif self._oldest:
                self._drop_oldest()
            else:
                return

    def _drop_oldest(self) -> None:
        position, channel = self._oldest[0]
        history = self._histories.get(channel)
        if history is None or not history.entries:
            heapq.heappop(self._oldest)
            if history is not None:
                history.queued = False
        elif (first := history.entries[0].position) != position:
            heapq.heapreplace(self._oldest, (first, channel))
        else:
            self._drop(history, 1 + len(history.entries) // 64, "trimmed")
            if not history.entries:
                self._forget_channel(channel)

    def _forget_channel(self, channel: str) -> None:
        history = self._histories.pop(channel)
        self._forgotten = max(self._forgotten, history.last)
        self._emptied.pop(channel, None)
        self._used -= OVERHEAD

    def _look_again(self, channel: str, history: _History, due: int) -> None:
        history.due = due
        heapq.heappush(self._dues, (due, channel))

    def _forget(self, now: float) -> None:
        ms = int(now * 1000)
        while self._dues and self._dues[0][0] <= ms:
            due, channel = heapq.heappop(self._dues)
            history = self._histories.get(channel)
            if history is not None and history.due == due:
                self._forget_expired(channel, history, ms)
        if len(self._oldest) + len(self._dues) > 128 + 4 * len(self._histories):
            self._drop_stale()
        ids = self._ids_by_age
        while ids and (ids[0][0] <= ms - ID_SECONDS * 1000 or len(ids) > MOST_IDS):
            _, key = ids.popleft()
            if self.outbox.remembers(key_of(*key)):
                ids.append((ms, key))
                if len(ids) > MOST_IDS:
                    break
            else:
                del self._ids[key]

    def _drop_stale(self) -> None:
        # Channels that come and go leave items behind; when they are the most, the heaps are made
        # anew.
        for history in self._histories.values():
            history.queued = bool(history.entries)
        self._oldest = [
            (each.entries[0].position, name)
            for name, each in self._histories.items()
            if each.queued
        ]
        self._dues = [(each.due, name) for name, each in self._histories.items()]
        heapq.heapify(self._oldest)
        heapq.heapify(self._dues)

    def _forget_expired(self, channel: str, history: _History, ms: int) -> None:
        # A history lives until the longest ttl in it, and its newest position for a day beyond.
        remembered = history.last.ms + DAY * 1000
        if history.entries and history.expires > ms:
            self._look_again(channel, history, history.expires)
        elif not history.entries and remembered <= ms:
            self._forget_channel(channel)
        else:
            if history.entries:
                self._drop(history, len(history.entries), "expired")
            self._emptied[channel] = None
            self._look_again(channel, history, max(remembered, ms + 1))

    # Reading

    def _page(self, channel: str, after: Position | None, limit: int) -> Page:
        history = self._histories.get(channel)
        if history is None:
            return Page([], self._forgotten, False, "trimmed")
        entries = history.entries
        start = 0 if after is None else index_after(entries, after)
        prev = entries[start - 1].position if start else history.prev
        linked = []
        for entry in entries[start : start + limit]:
            linked.append(Linked(prev, entry))
            prev = entry.position
        return Page(linked, history.last, start + len(linked) < len(entries), history.lost)

    def _retained_after(self, after: Position) -> list[Entry]:
        entries: dict[Position, Entry] = {}
        for history in self._histories.values():
            new = history.entries[index_after(history.entries, after) :]
            entries.update((entry.position, entry) for entry in new)
        return [entries[position] for position in sorted(entries)]
