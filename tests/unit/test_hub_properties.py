"""Any order of publishing, sweeping, stalling, cutting and resuming gives each client its messages
exactly once.
"""

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from msgpush.domain import catch_up, connection, fan_out
from msgpush.domain.position import Position, parse_cursor
from tests.support.driver import Driver, Reader
from tests.support.fakes import make, message_id

CHANNELS = ("a", "b", "c")


class Client:
    """A client that reconnects with the last cursor it saw, and checks what it sees."""

    def __init__(self, channels: frozenset[str], reader: Reader) -> None:
        self.channels = channels
        self.reader = reader
        self.read = 0  # lines of the present connection that it has seen
        self.got: list[str] = []
        self.cursor = ""
        self.begin: Position | None = None
        self.told = False


class HubMachine(RuleBasedStateMachine):
    @initialize(history=st.sampled_from([3, 1000]), ring=st.sampled_from([2, 6, 1000]))
    def begin(self, history: int, ring: int) -> None:
        self.history = history
        self.driver = Driver(history_length=history, ring_length=ring, heartbeat=30)
        self.published: list[tuple[Position, str, frozenset[str]]] = []
        self.clients: list[Client] = []
        self.numbers = itertools.count()
        for channels in ({"a"}, {"a"}, {"a", "b"}):
            self.connect(channels, earliest=False)
            self.driver.settle()

    @rule(channels=st.lists(st.sets(st.sampled_from(CHANNELS), min_size=1), min_size=1, max_size=5))
    def publish(self, channels: list[set[str]]) -> None:
        drafts = [make(f"m{next(self.numbers)}", *sorted(names)) for names in channels]
        for draft, cursor in zip(drafts, self.driver.publish(*drafts), strict=True):
            self.published.append((self.position(cursor), draft.id, frozenset(draft.channels)))

    @rule(number=st.integers(1, 4))
    def tail(self, number: int) -> None:
        self.driver.tail(number)

    @rule()
    def lose_the_tail(self) -> None:
        del self.driver.waiting[:1]

    @rule()
    def deliver(self) -> None:
        self.driver.tail()
        self.driver.hub.sweep()

    @rule()
    def settle(self) -> None:
        self.driver.settle()

    @rule()
    def sweep_a_little(self) -> None:
        self.driver.hub.sweep(0)

    @rule(channels=st.sets(st.sampled_from(CHANNELS), min_size=1), earliest=st.booleans())
    def come(self, channels: set[str], earliest: bool) -> None:
        self.connect(channels, earliest)

    def connect(self, channels: set[str], earliest: bool) -> None:
        if len(self.clients) < 6:
            reader = self.driver.connect(
                *channels, after="earliest" if earliest else None, settle=False
            )
            self.clients.append(Client(frozenset(channels), reader))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from(self.clients)).reader.connection
        if not connection.live:
            self.driver.advance(connection)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), full=st.booleans())
    def stall(self, data: st.DataObject, full: bool) -> None:
        data.draw(st.sampled_from(self.clients)).reader.sink.full = full

    @rule(seconds=st.sampled_from([0.001, 1.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.driver.clock.advance(seconds)
        self.driver.hub.beat()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def cut_and_resume(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        unseen = len(client.reader.sink.lines) - client.read
        self.see(client, data.draw(st.integers(0, unseen)))
        self.driver.hub.detach(client.reader.connection)
        client.reader = self.driver.connect(
            *client.channels, after=client.cursor or None, settle=False
        )
        client.read = 0
        if not client.cursor:
            client.begin = None

    def see(self, client: Client, number: int) -> None:
        """The client sees further lines; each cursor among them must stand for all that came
        before.
        """
        for line in client.reader.sink.lines[client.read : client.read + number]:
            client.read += 1
            kind, _, rest = line.partition(" ")
            if kind == "gap":
                client.told = True
                continue
            if kind == "close":
                continue
            cursor = rest if kind in ("open", "heartbeat") else kind
            if kind not in ("open", "heartbeat"):
                client.got.append(message_id(line))
            client.cursor = cursor
            if cursor != "earliest":
                self.check(client, self.position(cursor))
            elif client.begin is None:
                client.begin = Position(0, 0)

    def check(self, client: Client, upto: Position) -> None:
        if client.begin is None:
            client.begin = upto
        due = [
            id
            for position, id, channels in self.published
            if client.begin < position <= upto and channels & client.channels
        ]
        assert len(set(client.got)) == len(client.got), "once"
        if client.told or (client.begin == Position(0, 0) and self.history < 1000):
            assert client.got == [id for id in due if id in set(client.got)], (
                "in order, and nothing else"
            )
        else:
            assert client.got == due, "an id is written after everything at or below it"

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        for client in self.clients:
            client.reader.sink.full = False
        self.driver.tail()
        # Whatever the tail had lost, the next entry shows it.
        cursor = self.driver.publish(make("last", *CHANNELS))[0]
        self.published.append((self.position(cursor), "last", frozenset(CHANNELS)))
        self.driver.tail()
        self.driver.settle()
        for client in self.clients:
            if client.reader.sink.ended:
                continue
            self.see(client, len(client.reader.sink.lines))
            assert client.got[-1:] == ["last"]
            assert client.reader.connection.live

    def position(self, cursor: str) -> Position:
        position = parse_cursor(cursor, self.driver.bus.epoch)
        assert position is not None
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
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
