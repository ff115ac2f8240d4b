"""Any order of publishing, sweeping, stalling, changing channels, cutting and resuming gives each
client its messages exactly once.

What is due is said by positions alone: a message is due if it has a channel that its reader
listened to at the message's place in the log. The reader listens to other channels from its cursor
on, where they are changed."""

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from msgpush.domain import catch_up, connection, fan_out
from msgpush.domain.catch_up import Step
from msgpush.domain.history import Gap, Page, Replay
from msgpush.domain.position import ZERO, Position, parse_cursor
from tests.support.driver import Driver, Reader, at_once
from tests.support.fakes import make, message_id

CHANNELS = ("a", "b", "c")
TYPES = ("info", "status")
CROWDED = (("a",), ("a", "b"), ("b",))
CROWD = 31  # after 32 readers a sweep looks whether its time is up

some_channels = st.sets(st.sampled_from(CHANNELS), min_size=1)
any_channels = st.sets(st.sampled_from(CHANNELS))


class Published(NamedTuple):
    position: Position
    id: str
    channels: frozenset[str]
    type: str
    expires: float


class Told(NamedTuple):
    """A gap of a channel: what comes after `after` may be missing, and nothing from `upto` on.

    What is written together with it is no sign that it has come to its end, nor is a message that
    was trimmed from the channel and came by another one. `number`: the events that there were
    before it; `lost`: the newest of the channel that was trimmed by then. Of who reads the earliest
    that isn't known before something comes."""

    channel: str
    after: Position
    number: int
    chunk: int
    upto: Position | None
    lost: Position | None = None


class Event(NamedTuple):
    """Something that was written: a message has an id, a gap no cursor."""

    chunk: int
    cursor: str | None = None
    id: str | None = None
    gap: Gap | None = None
    lost: Position = ZERO  # the newest message of the gap's channel that was trimmed by then


class Client:
    """A client that reconnects with the last cursor that it saw, and checks what was written.

    Attributes:
        spans: the channels that it listens to, each after a position.
        events: what it saw on former connections, and what was written on this one.
        seen: how many of them it saw on former ones.
    """

    def __init__(self, types: frozenset[str] | None) -> None:
        self.types = types
        self.reader: Reader
        self.read = 0  # chunks of the present connection that are among the events
        self.seen = 0
        self.events: list[Event] = []
        self.spans: list[tuple[Position, frozenset[str]]] = []
        # What is known by the events so far.
        self.cursor = ""
        self.upto = ZERO
        self.got: set[str] = set()
        self.gaps: list[Told] = []
        self.began = 0.0  # to read the earliest: of what had expired by then nothing is told
        self.settled: dict[str, Position] = {}  # up to where each channel's losses were told

    @property
    def channels(self) -> frozenset[str]:
        return self.spans[-1][1]

    def channels_at(self, position: Position) -> frozenset[str]:
        spans = [channels for after, channels in self.spans if after < position]
        return spans[-1] if spans else frozenset()

    def wants(self, message: Published) -> frozenset[str]:
        """The channels by which a message is due."""
        if self.types is not None and message.type not in self.types:
            return frozenset()
        return message.channels & self.channels_at(message.position)

    def listen(self, after: Position, channels: frozenset[str], *, earliest: bool) -> None:
        """Listen to these from a position on; of the earliest that is retained nothing is told."""
        number, chunk = len(self.events), len(self.reader.sink.chunks)
        former = self.channels if self.spans else frozenset()
        self.spans = [each for each in self.spans if each[0] < after]
        self.spans.append((after, channels))
        for channel in channels - former:
            self.settled[channel] = after
            if earliest:
                self.gaps.append(Told(channel, after, number, chunk, None))

    def forget(self, seen: int) -> None:
        """It saw no more than so many events before it was cut."""
        self.events = self.events[:seen]
        self.gaps = [each._replace(chunk=-1) for each in self.gaps if each.number < seen]

    # What was written

    def take(self, event: Event, position: Position | None, log: Iterable[Published]) -> None:
        """Check what was written; `position` is that of its cursor."""
        if event.gap is not None:
            self.take_gap(event, position or ZERO)
        elif position is not None:
            if event.id is not None:
                assert self.upto < position, "in order, and once"
            assert self.upto <= position, "no cursor goes back"
            self.check(position, event, log)
            self.cursor, self.upto = event.cursor or "", position

    def take_gap(self, event: Event, after: Position) -> None:
        gap, number, chunk = event.gap, len(self.events) - 1, event.chunk
        assert gap is not None
        for channel in CHANNELS if gap.channel is None else (gap.channel,):
            self.gaps.append(Told(channel, after, number, chunk, None, event.lost))
        if gap.reason == "trimmed" and gap.channel is not None:
            assert gap.channel in self.channels, "no gap is told of what isn't listened to"
            assert event.lost > self.settled[gap.channel], "a loss is told once"
            self.settled[gap.channel] = event.lost

    def check(self, position: Position, event: Event | None, log: Iterable[Published]) -> None:
        """With this cursor everything up to it has come, or was told to be missing."""
        for message in log:
            if not self.upto < message.position <= position:
                continue
            by = self.wants(message)
            if event is not None and message.id == event.id:
                assert by, "nothing comes that isn't listened to"
                self.got.add(message.id)
                for channel in by:  # what is missing after this is another loss
                    self.settled[channel] = min(self.settled[channel], position)
                self.close_gaps(message, event.chunk)
            elif by and message.expires > self.began:
                assert all(self.excused(channel, message.position) for channel in by), (
                    "an id is written after everything at or below it"
                )

    def begin_reading(self, trimmed: Callable[[str], Position]) -> None:
        """The histories were read: what they had lost by then is among what isn't told."""
        self.gaps = [
            each._replace(lost=trimmed(each.channel)) if each.lost is None else each
            for each in self.gaps
        ]

    def close_gaps(self, message: Published, chunk: int) -> None:
        """From a message of a channel on nothing of that is missing."""
        self.gaps = [
            each._replace(upto=message.position)
            if each.upto is None
            and each.chunk < chunk
            and each.lost is not None
            and each.lost < message.position
            and each.channel in message.channels
            else each
            for each in self.gaps
        ]

    def excused(self, channel: str, position: Position) -> bool:
        return any(
            each.channel == channel
            and each.after < position
            and (each.upto is None or position < each.upto)
            for each in self.gaps
        )


class Reading(NamedTuple):
    """A read of the histories that is under way; so many messages were published before it."""

    published: int
    replay: Replay
    channels: list[str]
    pages: list[Page]
    limit: Position


class HubMachine(RuleBasedStateMachine):
    @initialize(history=st.sampled_from([3, 1000]), ring=st.sampled_from([2, 6, 1000]))
    def begin(self, history: int, ring: int) -> None:
        self.history = history
        self.driver = Driver(history_length=history, ring_length=ring, heartbeat=30)
        self.published: list[Published] = []
        self.clients: list[Client] = []
        self.readings: dict[Client, Reading] = {}
        self.numbers = itertools.count()
        # Of what comes before a log's first entry nothing is told.
        self.say([{"c"}], "info", None)
        self.driver.tail()
        # So many that a sweep may stop between the first client and the next.
        for channels in CROWDED:
            for _ in range(CROWD):
                self.driver.connect(*channels)
        for own in (("a",), ("a",), ("a", "b"), ()):
            self.connect({*own}, None, earliest=False)
            self.driver.settle()

    # The log

    @rule(
        channels=st.lists(some_channels, min_size=1, max_size=5),
        type=st.sampled_from(TYPES),
        ttl=st.sampled_from([None, None, 20]),
        heard=st.integers(0, 5),
    )
    def publish(self, channels: list[set[str]], type: str, ttl: int | None, heard: int) -> None:
        self.say(channels, type, ttl)
        self.driver.tail(heard)

    def say(self, channels: list[set[str]], type: str, ttl: int | None) -> None:
        now = self.driver.clock.now()
        if not channels:
            return
        drafts = [
            make(f"m{next(self.numbers)}", *sorted(names), type=type, ttl=ttl, now=now)
            for names in channels
        ]
        for draft, cursor in zip(drafts, self.driver.publish(*drafts), strict=True):
            own, expires = frozenset(draft.channels), now + draft.ttl
            self.published.append(Published(self.position(cursor), draft.id, own, type, expires))

    @rule(number=st.integers(1, 4))
    def tail(self, number: int) -> None:
        self.driver.tail(number)

    @rule()
    def lose_the_tail(self) -> None:
        del self.driver.waiting[:1]

    @rule(number=st.sampled_from([0, 10]))
    def deliver(self, number: int) -> None:
        self.driver.tail(number)
        self.driver.hub.sweep()

    @rule()
    def settle(self) -> None:
        self.readings.clear()
        self.driver.settle()

    @rule()
    def sweep_a_little(self) -> None:
        """Serve some of a round's readers: the crowd, and the first client."""
        self.driver.hub.sweep(0)

    @rule(seconds=st.sampled_from([0.001, 1.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.driver.clock.advance(seconds)
        self.driver.hub.beat()

    # Clients

    @rule(
        channels=any_channels,
        earliest=st.booleans(),
        types=st.sampled_from([None, None, frozenset({"status"})]),
    )
    def come(self, channels: set[str], earliest: bool, types: frozenset[str] | None) -> None:
        self.connect(channels, types, earliest=earliest)

    def connect(self, channels: set[str], types: frozenset[str] | None, *, earliest: bool) -> None:
        if len(self.clients) < 6:
            client = Client(types)
            self.open(client, frozenset(channels), "earliest" if earliest else "")
            self.clients.append(client)

    def open(self, client: Client, channels: frozenset[str], cursor: str) -> None:
        types = None if client.types is None else sorted(client.types)
        client.reader = self.driver.connect(
            *channels, after=cursor or None, types=types, settle=False
        )
        client.read = 0
        client.seen = len(client.events)
        client.upto = self.driver.hub.log.head if not cursor else self.position(cursor)
        if not cursor:
            # It begins with what its opening says.
            client.upto = self.position(client.reader.sink.lines[0].removeprefix("open "))
        client.spans = [each for each in client.spans if each[0] < client.upto]
        client.settled.clear()
        client.began = self.driver.clock.now() if cursor == "earliest" else 0.0
        client.listen(client.upto, channels, earliest=cursor == "earliest")
        client.settled.update(dict.fromkeys(channels, client.upto))

    @rule(
        data=st.data(),
        news=st.lists(some_channels, max_size=6),
        swept=st.booleans(),
        changes=st.lists(any_channels, min_size=1, max_size=3),
    )
    def change_in_the_midst(
        self,
        data: st.DataObject,
        news: list[set[str]],
        swept: bool,
        changes: list[set[str]],
    ) -> None:
        """Change channels while something is pending, some of it on its way."""
        self.say(news, "info", None)
        self.driver.tail()
        if swept:
            self.driver.hub.sweep(0)
        for channels in changes:
            self.change(data.draw(st.sampled_from(self.clients)), channels, started=False)

    @rule(data=st.data(), channels=any_channels, started=st.booleans())
    def change_one(self, data: st.DataObject, channels: set[str], started: bool) -> None:
        self.change(data.draw(st.sampled_from(self.clients)), channels, started=started)

    @rule(data=st.data(), news=st.lists(some_channels, min_size=3, max_size=9))
    def fall_behind(self, data: st.DataObject, news: list[set[str]]) -> None:
        """A client whose socket is full for a while: it has some of the news still to get."""
        client = data.draw(st.sampled_from(self.clients))
        sink = client.reader.sink
        sink.full = True
        self.say(news, "info", None)
        self.driver.tail()
        self.driver.hub.sweep()
        sink.full = False

    def change(self, client: Client, channels: set[str], *, started: bool) -> None:
        connection = client.reader.connection
        if not connection.attached or connection.channels == channels:
            return
        hub = self.driver.hub
        before, after = connection.cursor_in(hub.log), connection.position_in(hub.log)
        # Everything up to there has come by now, and nothing behind it.
        self.everything_that_was_written_is_right()
        assert client.upto <= after
        client.check(after, None, self.published)
        client.upto = after
        assert connection.cohort is not None
        wanted = msgspec.structs.replace(
            connection.cohort.subscription, channels=frozenset(channels)
        )
        hub.change(connection, wanted)
        assert connection.cursor_in(hub.log) == before
        client.listen(after, frozenset(channels), earliest=before == "earliest")
        if started and not connection.live:
            # As `Delivery` does, though a read of the histories is under way.
            hub.advance(connection)
        hub.take_newly_behind()

    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        if not client.reader.connection.live and self.reading(client) is None:
            self.driver.advance(client.reader.connection)

    def reading(self, client: Client) -> Reading | None:
        """The read that is under way for a client, unless it was sent elsewhere meanwhile."""
        reading = self.readings.get(client)
        if reading is None or client.reader.connection.replay is not reading.replay:
            return None
        return reading

    @rule(data=st.data(), number=st.integers(1, 3))
    def begin_to_read_histories(self, data: st.DataObject, number: int) -> None:
        client = data.draw(st.sampled_from(self.clients))
        connection, hub = client.reader.connection, self.driver.hub
        if connection.live or hub.advance(connection) is not Step.HISTORY:
            return
        assert connection.replay is not None
        channels, limit = list(connection.channels), hub.floor_of(connection)
        pages = at_once(self.driver.bus.history(channels, connection.replay.after, number))
        self.readings[client] = Reading(
            len(self.published), connection.replay, channels, pages, limit
        )

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def have_read_histories(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(list(self.readings)))
        reading = self.reading(client)
        del self.readings[client]
        if reading is not None:
            pages = dict(zip(reading.channels, reading.pages, strict=True))
            self.driver.hub.deliver(client.reader.connection, pages, reading.limit)
            self.see(client, self.published[: reading.published])

    @rule(data=st.data(), full=st.booleans())
    def stall(self, data: st.DataObject, full: bool) -> None:
        data.draw(st.sampled_from(self.clients)).reader.sink.full = full

    @rule(data=st.data())
    def cut_and_resume(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        channels = client.channels
        seen = data.draw(st.integers(client.seen, len(client.events)))
        self.driver.hub.detach(client.reader.connection)
        self.readings.pop(client, None)
        client.forget(seen)
        client.cursor = next(
            (each.cursor for each in reversed(client.events) if each.cursor is not None), ""
        )
        self.open(client, channels, client.cursor)

    # What comes of it

    @invariant()
    def everything_that_was_written_is_right(self) -> None:
        for client in getattr(self, "clients", ()):
            self.see(client, self.published)

    def see(self, client: Client, known: list[Published]) -> None:
        """Check what was written to a client by what the histories had when they were read."""
        chunks = client.reader.sink.chunks
        for number in range(client.read, len(chunks)):
            client.read = number + 1
            for line in chunks[number].decode().splitlines():
                if not line.startswith("close"):
                    event = self.event(line, number, known)
                    client.events.append(event)
                    if event.id is not None:
                        client.begin_reading(lambda channel: self.trimmed(channel, known))
                    at = event.gap.after if event.gap is not None else event.cursor
                    client.take(event, self.position(at or ""), self.published)

    def event(self, line: str, chunk: int, known: list[Published]) -> Event:
        kind, _, rest = line.partition(" ")
        match kind:
            case "gap":
                gap = msgspec.json.decode(rest, type=Gap)
                return Event(chunk, gap=gap, lost=self.trimmed(gap.channel, known))
            case "open" | "heartbeat":
                return Event(chunk, rest)
        return Event(chunk, kind, message_id(line))

    def trimmed(self, channel: str | None, known: list[Published]) -> Position:
        """The newest message of a channel that its history has no longer for its length."""
        own = [each.position for each in known if channel in each.channels]
        return own[-self.history - 1] if len(own) > self.history else ZERO

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        for client in self.clients:
            client.reader.sink.full = False
        self.driver.tail()
        # Whatever the tail had lost, the next entry shows it.
        self.say([{*CHANNELS}], "status", None)
        self.driver.tail()
        self.driver.settle()
        self.everything_that_was_written_is_right()
        last = self.published[-1].id
        for client in self.clients:
            connection = client.reader.connection
            if client.reader.sink.ended:
                continue
            assert connection.live
            assert connection.channels == client.channels
            assert (last in client.got) == bool(client.channels)
            assert connection.position_in(self.driver.hub.log) == self.driver.hub.log.head
        self.nothing_is_left()

    def nothing_is_left(self) -> None:
        hub = self.driver.hub
        for each in list(hub.connections.values()):
            hub.detach(each)
        hub.take_newly_behind()
        self.driver.clock.advance(10)
        hub.beat()
        assert (hub.pending, hub.leftovers()) == (0, 0)

    def position(self, cursor: str) -> Position:
        if cursor == "earliest":
            return ZERO
        position = parse_cursor(cursor, self.driver.bus.epoch)
        assert position is not None, cursor
        return position


@pytest.mark.parametrize("small", [False, True])
def test_every_client_gets_exactly_its_messages_or_is_told(
    small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        # Bounds so small that every one of them is met all the time.
        monkeypatch.setattr(connection, "CHUNK", 600)
        monkeypatch.setattr(catch_up, "CATCH_UP_CHUNK", 500)
        monkeypatch.setattr(catch_up, "SCAN", 5)
        monkeypatch.setattr(fan_out, "PENDING", 12)
    run_state_machine_as_test(
        HubMachine,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
