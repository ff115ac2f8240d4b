"""Drives a hub over a real memory bus by hand: nothing happens but what a test asks for, in the
order that it asks.
"""

import itertools
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.domain.catch_up import Step
from msgpush.domain.connection import Connection, Start, Subscription
from msgpush.domain.hub import Hub
from msgpush.domain.log import Ring
from msgpush.domain.message import Draft, Entry
from msgpush.domain.ports import Stored, View
from msgpush.domain.position import EARLIEST, Cursor, Position, parse_cursor
from tests.support.fakes import FakeClock, FakeSink, PlainView
from tests.support.observer import Recorder

T = TypeVar("T")


def at_once(awaitable: Awaitable[T]) -> T:
    """The result of an awaitable that never waits, as the memory bus's don't."""
    try:
        next(awaitable.__await__())
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


class Reader:
    """A client: its connection, and its sink."""

    def __init__(self, connection: Connection, sink: FakeSink, subscription: Subscription) -> None:
        self.connection, self.sink, self.subscription = connection, sink, subscription


class Driver:
    """A hub, its bus, and a tail that moves when it is told to."""

    def __init__(
        self, *, history_length: int = 1000, ring_length: int = 65_536, heartbeat: float = 30.0
    ) -> None:
        self.clock = FakeClock()
        self.bus = MemoryBus(history_length=history_length, clock=self.clock.now)
        self.observer = Recorder()
        self.hub = Hub(
            clock=self.clock.now,
            monotonic=self.clock.monotonic,
            heartbeat=heartbeat,
            write_timeout=30.0,
            ring=Ring(ring_length),
            observer=self.observer,
        )
        self.hub.begin(self.bus.epoch, at_once(self.bus.end()))
        self.waiting: list[Entry] = []
        self._tail = self.bus.tail(self.hub.log.head)
        self._names = itertools.count()

    def publish(self, *drafts: Draft) -> list[str]:
        """Store messages; the hub hears of them at the next `tail`. Returns their cursors."""
        results = at_once(self.bus.append(drafts))
        stored = [each for each in results if isinstance(each, Stored)]
        assert len(stored) == len(drafts)
        self.waiting += at_once(anext(self._tail))
        return [self.cursor(each.position) for each in stored]

    def tail(self, number: int | None = None) -> None:
        """The hub hears of entries: all that are waiting, or the first so many."""
        taken = self.waiting[:number]
        del self.waiting[:number]
        self.hub.append(taken)

    def say(self, *drafts: Draft) -> list[str]:
        """Publish, and have it delivered."""
        cursors = self.publish(*drafts)
        self.tail()
        self.settle()
        return cursors

    def settle(self) -> None:
        """Let everything happen that can."""
        for _ in range(10_000):
            more = self.hub.sweep()
            moved = [
                self.advance(each) for each in list(self.hub.connections.values()) if not each.live
            ]
            self.hub.take_newly_behind()
            if not more and Step.WROTE not in moved and Step.LIVE not in moved:
                return
        raise AssertionError("it never settles")

    def advance(self, connection: Connection) -> Step:
        """One step of a connection's catch-up, histories included."""
        step = self.hub.advance(connection)
        if step is not Step.HISTORY:
            return step
        assert connection.replay is not None
        assert connection.cohort is not None
        limit = self.hub.floor_of(connection)
        channels = list(connection.cohort.subscription.channels)
        pages = at_once(self.bus.history(channels, connection.replay.after, 3))
        return self.hub.deliver(connection, dict(zip(channels, pages, strict=True)), limit)

    def connect(
        self,
        *channels: str,
        after: str | None = None,
        view: View | None = None,
        types: Sequence[str] | None = None,
        settle: bool = True,
    ) -> Reader:
        """A client connects, with the cursor that it has."""
        sink = FakeSink()
        wanted = Subscription(
            frozenset(channels), view or PlainView(), None if types is None else frozenset(types)
        )
        connection = Connection(f"c{next(self._names)}", sink)
        self.hub.attach(connection, wanted, self.start(after))
        self.hub.take_newly_behind()
        if settle:
            self.settle()
        return Reader(connection, sink, wanted)

    def start(self, after: str | None) -> Start:
        if after is None:
            return Start()
        if after == EARLIEST:
            return Start(EARLIEST)
        position = parse_cursor(after, self.bus.epoch)
        return Start(after, position, reset=position is None)

    def cursor(self, position: Position) -> str:
        return str(Cursor(self.bus.epoch, position))
