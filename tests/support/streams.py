"""Users and their streams, over a whole `Push` whose time stands still.

Tail, sweep and catch-ups run as they do in a process; what reports, shows, repeats and tells is
called by the tests, so that nothing happens but what they ask for."""

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Self

import msgspec

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.adapters.memory.outbox import MemoryOutbox
from msgpush.domain.connection import Connection, Subscription
from msgpush.domain.errors import BusUnavailable, Rejection
from msgpush.domain.marks import PRIORITIES
from msgpush.domain.message import Draft, parse
from msgpush.domain.observer import IGNORANT, Observer
from msgpush.domain.outbox import Change, Outcome, Pending, Place, Record
from msgpush.domain.ports import Stored, View
from msgpush.domain.service import Push, Receipt
from tests.support.asking import body_of, key
from tests.support.fakes import FakeClock, FakeSink, PlainView

TURNS = 60  # of the loop, in which all that can happen does


class SlightBus(MemoryBus):
    """The embedded bus, which may refuse messages for a while: all, or those of some channels."""

    refused: frozenset[str] | None = frozenset()  # None: all

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | Rejection]:
        results: list[Stored | Rejection] = []
        for draft in drafts:
            if self.refused is None or self.refused.intersection(draft.channels):
                results.append(BusUnavailable("away", 0))
            else:
                results += await super().append([draft])
        return results


class SlightOutbox(MemoryOutbox):
    """The embedded outbox, which counts its calls, and may be away."""

    def __init__(self, **options: Any) -> None:
        super().__init__(jitter=lambda: 1.0, **options)
        self.away = False
        self.calls: list[str] = []

    async def change(self, changes: Sequence[Change]) -> list[Outcome | BusUnavailable]:
        self.calls.append("change")
        if self.away:
            return [BusUnavailable("away", 0) for _ in changes]
        return await super().change(changes)

    async def due(self, limit: int) -> tuple[int, list[Record]]:
        self._call("due")
        return await super().due(limit)

    async def find(self, key: str) -> Record | None:
        self._call("find")
        return await super().find(key)

    async def waiting(self, users: Sequence[str]) -> list[bool]:
        self._call(f"waiting {len(users)}")
        return await super().waiting(users)

    async def page(self, user: str, after: Place | None, limit: int, size: int) -> Pending:
        self._call("page")
        return await super().page(user, after, limit, size)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise BusUnavailable("away", 0)


class Stream:
    """A client's stream, and what it got, as `PlainView` shows it."""

    def __init__(self, connection: Connection, sink: FakeSink) -> None:
        self.connection, self.sink = connection, sink

    def _rest(self, kind: str) -> list[Any]:
        lines = self.sink.lines
        return [
            msgspec.json.decode(rest)
            for first, _, rest in (line.partition(" ") for line in lines)
            if (first == kind or (kind == "id" and first.startswith("1"))) and rest[:1] == "{"
        ]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Those with a place in the log, as they came."""
        return self._rest("id")

    @property
    def live(self) -> list[str]:
        """Ids of messages with a place in the log."""
        return [each["id"] for each in self.messages]

    @property
    def shown(self) -> list[str]:
        """Ids of messages without one: those that were pending as it opened."""
        return [each["id"] for each in self._rest("pending")]

    @property
    def words(self) -> list[dict[str, Any]]:
        """Word of what was acknowledged or withdrawn."""
        return self._rest("acknowledged")

    @property
    def got(self) -> list[str]:
        """The ids of all messages that it got."""
        return [*self.live, *self.shown]

    @property
    def cursor(self) -> str:
        """What its client would resume with."""
        cursor = ""
        for line in self.sink.lines:
            first, _, rest = line.partition(" ")
            if first in ("open", "heartbeat"):
                cursor = rest
            elif first.startswith("1"):
                cursor = first
        return cursor


class Instance:
    """A `Push` whose time stands still; several may share a bus.

    An async context manager."""

    def __init__(
        self,
        *,
        beside: "Instance | None" = None,
        history_length: int = 1000,
        observer: Observer = IGNORANT,
        **limits: Any,
    ) -> None:
        self.clock: FakeClock = FakeClock() if beside is None else beside.clock
        if beside is None:
            self.outbox = SlightOutbox(
                clock=self.clock.now, monotonic=self.clock.monotonic, **limits
            )
            self.bus = SlightBus(
                outbox=self.outbox, history_length=history_length, clock=self.clock.now
            )
        else:
            self.outbox, self.bus = beside.outbox, beside.bus
        self.push = Push(
            self.bus,
            clock=self.clock.now,
            monotonic=self.clock.monotonic,
            heartbeat=1e9,
            write_timeout=1e9,
            observer=observer,
        )
        self.redelivery = self.push.redelivery
        self.redelivery.works = ()
        self._names = itertools.count()

    async def __aenter__(self) -> Self:
        await self.push.__aenter__()
        await self.settle()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.push.__aexit__(*exc)

    async def settle(self) -> None:
        """Let everything happen that can without any time passing."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    # Publishers

    async def publish(self, id: str | None, *channels: str, **options: Any) -> Receipt:
        """Publish a message that asks a user, and let it be delivered; see `asking.body_of`."""
        receipt = await self.push.publish(parse(body_of(id, *channels, **options)))
        await self.settle()
        return receipt

    async def record(self, id: str, service: str = "tests") -> Record:
        record = await self.outbox.find(key(id, service))
        assert record is not None
        return record

    async def state(self, id: str) -> str:
        return (await self.record(id)).status().state

    # Clients

    async def connect(
        self,
        *channels: str,
        user: str = "bob",
        acts: bool = True,
        after: str | None = None,
        view: View | None = None,
        types: Iterable[str] | None = None,
        least: str = "low",
        full: bool = False,
    ) -> Stream:
        """Open a stream to a user's channel and others; it isn't shown what is pending yet.

        Args:
            acts: whether it may act for the user.
            full: whether its socket takes nothing but the first block.
        """
        sink = FakeSink()
        subscription = Subscription(
            frozenset(channels or (f"user:{user}",)),
            view or PlainView(),
            None if types is None else frozenset(types),
            PRIORITIES.index(least),
            frozenset({user} if acts else ()),
        )
        start = await self.push.start_at(after)
        connection = Connection(f"c{next(self._names)}", sink)
        self.push.subscribe(connection, subscription, start)
        sink.full = full
        await self.settle()
        return Stream(connection, sink)

    async def open(self, *channels: str, **options: Any) -> Stream:
        """Open a stream, and have it shown what is pending."""
        stream = await self.connect(*channels, **options)
        await self.show()
        return stream

    def leave(self, *streams: Stream) -> None:
        for stream in streams:
            self.push.unsubscribe(stream.connection)

    async def acknowledge(self, *ids: str, user: str = "bob") -> list[str]:
        """Acknowledge messages; returns the keys that are acknowledged."""
        result = await self.redelivery.acknowledge(user, [key(id) for id in ids])
        return result.acknowledged

    # Time

    async def show(self) -> None:
        """Show what is pending to those that have opened, and report it."""
        await self.redelivery.open()
        await self.settle()
        await self.report()

    async def report(self) -> None:
        await self.redelivery.report()

    async def repeat(self) -> None:
        """Do what is due, let it be delivered, and report it."""
        while await self.redelivery.repeat():
            pass
        await self.settle()
        await self.report()

    async def tell(self) -> None:
        """Tell streams and publishers what became of messages."""
        while self.redelivery._endings:
            await self.redelivery.follow()
        await self.settle()

    async def pass_time(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass, with all that the tasks do in it."""
        left = seconds
        while left > 0:
            self.clock.advance(min(step, left))
            left -= step
            await self.show()
            await self.repeat()
            await self.tell()

    async def histories(self, *channels: str) -> list[list[str]]:
        """The ids in the histories of some channels."""
        pages = await self.bus.history(channels, None, 10_000)
        return [
            [msgspec.json.decode(linked.entry.body)["id"] for linked in page.entries]
            for page in pages
        ]
