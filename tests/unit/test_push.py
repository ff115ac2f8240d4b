"""The facade, with the tasks that deliver."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.domain import (
    Closed,
    Cursor,
    Gap,
    Malformed,
    Message,
    Overloaded,
    Push,
    delivery,
    parse,
)
from msgpush.domain.connection import NOW, Connection, Subscription
from msgpush.domain.control import Close
from msgpush.domain.errors import BusUnavailable, Conflict
from msgpush.domain.history import Page
from msgpush.domain.position import Position
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import AsgiDriver
from tests.support.fakes import FakeClock, FakeSink, PlainView, make
from tests.support.observer import Recorder

PATIENCE = 5.0


@pytest.fixture
async def push() -> AsyncIterator[Push]:
    async with Push(MemoryBus(history_length=100)) as opened:
        yield opened


def join(push: Push, *channels: str, id: str = "c1") -> tuple[Connection, FakeSink]:
    sink = FakeSink()
    connection = Connection(id, sink)
    push.subscribe(connection, Subscription(frozenset(channels), PlainView()), NOW)
    return connection, sink


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - any turn of the loop may make it true
            await asyncio.sleep(0)


def message(id: str, channel: str = "a") -> Message:
    return parse(
        b'{"type":"info","service":"s","id":"%b","channels":["%b"]}'
        % (id.encode(), channel.encode())
    )


async def test_a_listener_gets_what_is_published_and_resumes(push: Push) -> None:
    cursor = (await push.publish(message("m1"))).cursor
    await push.publish(message("m2"))
    async for item in push.listen("a", after=cursor):
        assert isinstance(item, Message)
        assert item.id == "m2"
        break
    assert push.connections == {} or await gone(push)


async def gone(push: Push) -> bool:
    await until(lambda: not push.connections)
    return True


async def test_a_listener_that_lags_gets_everything_or_is_told(push: Push) -> None:
    listener = push.listen("a")
    first = asyncio.ensure_future(anext(listener))
    await until(lambda: push.connections)
    for n in range(300):
        await push.publish(
            parse(
                b'{"type":"info","service":"s","id":"m%d","channels":["a"],"data":{"x":"%b"}}'
                % (n, b"y" * 5000)
            )
        )
    got = [await first]
    async with asyncio.timeout(PATIENCE):
        while not (isinstance(got[-1], Message) and got[-1].id == "m299"):
            got.append(await anext(listener))
    await listener.aclose()
    assert [item.id for item in got if isinstance(item, Message)] == [f"m{n}" for n in range(300)]


async def test_a_listener_after_a_foreign_cursor_is_told_first(push: Push) -> None:
    await push.publish(message("m1"))
    listener = push.listen("a", after="foreign")
    assert await anext(listener) == Gap(None, "foreign", "reset")
    await listener.aclose()


@pytest.mark.parametrize(("channel", "after"), [("a b", None), ("a", "no cursor")])
async def test_a_listener_names_channels_and_a_cursor(
    push: Push, channel: str, after: str | None
) -> None:
    with pytest.raises(Malformed):
        await anext(push.listen(channel, after=after))


async def test_those_that_fall_behind_are_not_forgotten_when_another_comes(push: Push) -> None:
    _, sink = join(push, "a")
    await push.publish(message("m1"))
    await until(lambda: sink.ids == ["m1"])
    # The tail loses an entry: the reader falls behind, and before anybody sees to it another one
    # connects.
    assert isinstance(push._bus, MemoryBus)
    await push._bus.append([make("m2", "a"), make("m3", "a")])
    (tail,) = push._bus._tails
    push._hub.append(tail.take()[1:])
    join(push, "b", id="c2")
    await until(lambda: sink.ids == ["m1", "m2", "m3"])


async def test_a_catch_up_waits_for_a_bus_that_is_away(
    push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(push._bus, MemoryBus)
    real, calls = push._bus.history, 0

    async def flaky(channels: list[str], after: Position | None, limit: int) -> list[Page]:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise BusUnavailable("away", retry_after=0)
        return await real(channels, after, limit)

    monkeypatch.setattr(push._bus, "history", flaky)
    await push.publish(message("m1"))
    sink = FakeSink()
    start = await push.start_at("earliest")
    push.subscribe(Connection("c1", sink), Subscription(frozenset(["a"]), PlainView()), start)
    await until(lambda: sink.ids == ["m1"])


async def test_a_mistake_in_one_catch_up_closes_that_connection_alone(
    push: Push, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, healthy = join(push, "a")

    async def broken(*_: object) -> list[Page]:
        raise RuntimeError

    monkeypatch.setattr(push._bus, "history", broken)
    sink = FakeSink()
    start = await push.start_at("earliest")
    push.subscribe(Connection("c2", sink), Subscription(frozenset(["a"]), PlainView()), start)
    await until(lambda: sink.ended)
    assert "close disconnected True" in sink.lines[-1]
    assert "a catch-up has failed" in caplog.text
    await push.publish(message("m1"))
    await until(lambda: healthy.ids == ["m1"])
    assert push.alive


async def test_a_replay_of_large_messages_reads_few_of_them_at_a_time() -> None:
    asked: list[int] = []

    class Watched(MemoryBus):
        async def history(
            self, channels: Sequence[str], after: Position | None, limit: int
        ) -> list[Page]:
            asked.append(limit)
            return await super().history(channels, after, limit)

    bus = Watched()
    await bus.append([make(f"m{n}", "a", data={"x": "y" * 100_000}) for n in range(30)])
    async with Push(bus) as push:
        sink = FakeSink()
        connection = Connection("c1", sink)
        push.subscribe(
            connection, Subscription(frozenset({"a"}), PlainView()), await push.start_at("earliest")
        )
        await until(lambda: len(sink.ids) == 30)
    assert set(asked[1:]) == {1}


# Listeners that are closed


def large(number: int) -> Message:
    body = b'{"type":"info","service":"s","id":"m%d","channels":["a"],"data":{"x":"%b"}}' % (
        number,
        b"y" * 2000,
    )
    return parse(body)


class Listener:
    """A program that listens, in a task of its own, until it is closed."""

    def __init__(self, push: Push, *channels: str, after: str | None = None) -> None:
        self.items: list[Message | Gap] = []
        self.closed: Closed | None = None
        self._items = push.listen(*channels, after=after)
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        try:
            async for item in self._items:
                self.items.append(item)
        except Closed as closed:
            self.closed = closed

    async def end(self) -> Closed:
        async with asyncio.timeout(PATIENCE):
            await self.task
        assert self.closed is not None
        return self.closed

    @property
    def ids(self) -> list[str | None]:
        return [item.id for item in self.items if isinstance(item, Message)]


async def test_a_listener_that_reads_slowly_but_on_and_on_is_never_closed() -> None:
    clock = FakeClock()
    async with Push(
        MemoryBus(clock=clock.now), clock=clock.now, monotonic=clock.monotonic, write_timeout=0.5
    ) as push:
        items = push.listen("a", after="earliest")
        for number in range(400):
            await push.publish(large(number))
        got: list[Message | Gap] = []
        async with asyncio.timeout(PATIENCE):
            while len(got) < 400:
                got.append(await anext(items))
                clock.advance(0.02)
                push._hub.beat()
                await asyncio.sleep(0)
        assert [item.id for item in got if isinstance(item, Message)] == [
            f"m{number}" for number in range(400)
        ]
        await items.aclose()


async def test_a_listener_that_has_stopped_gets_what_it_took_then_the_reason_and_loses_nothing() -> (
    None
):
    clock = FakeClock()
    async with Push(
        MemoryBus(clock=clock.now), clock=clock.now, monotonic=clock.monotonic, write_timeout=0.5
    ) as push:
        stopped = push.listen("a", after="earliest")
        for number in range(400):
            await push.publish(large(number))
        got = [await anext(stopped)]
        await until(lambda: push._hub._liveness._blocked)
        clock.advance(1)
        push._hub.beat()
        assert not push.connections
        clock.advance(10)
        push._hub.beat()  # what the hub has closed it cuts after a while
        with pytest.raises(Closed) as caught:  # noqa: PT012 - after these
            async for item in stopped:
                got.append(item)  # noqa: PERF401
        assert (caught.value.reason, caught.value.reconnect) == ("slow", True)
        assert 100 < len(got) < 400
        async for item in push.listen("a", after=caught.value.cursor):
            got.append(item)
            if len(got) >= 400:
                break
        assert [item.id for item in got if isinstance(item, Message)] == [
            f"m{number}" for number in range(400)
        ]


@pytest.mark.parametrize("reconnect", [True, False])
async def test_a_listener_that_is_closed_on_request_is_told(push: Push, reconnect: bool) -> None:
    listener = Listener(push, "a")
    await until(lambda: push.connections)
    (id,) = push.connections
    await push.publish(message("m1"))
    await until(lambda: listener.ids == ["m1"])
    await push.command(Close(id, reconnect))
    closed = await listener.end()
    assert (closed.reason, closed.reconnect) == ("disconnected", reconnect)
    await push.publish(message("m2"))
    again = Listener(push, "a", after=closed.cursor)
    await until(lambda: again.items)
    assert again.ids == ["m2"]


async def test_a_drain_tells_listeners_after_all_that_was_published(push: Push) -> None:
    listener = Listener(push, "a")
    await until(lambda: push.connections)
    cursor = (await push.publish(message("m1"))).cursor
    await push.drain(0.1)
    closed = await listener.end()
    assert (listener.ids, closed.reason, closed.cursor) == (["m1"], "drain", cursor)


async def test_a_listener_that_never_got_anything_is_told_the_cursor_that_it_came_with(
    push: Push,
) -> None:
    cursor = (await push.publish(message("m1"))).cursor
    listener = Listener(push, "b", after=cursor)
    await until(lambda: push.connections)
    await push.drain(0)
    assert (await listener.end()).cursor == cursor


# Leaving


class Lost(Exception):
    """The body of a `with` block fails."""


@pytest.mark.parametrize("failing", [False, True])
async def test_leaving_ends_every_listener_and_every_stream_after_what_was_published(
    failing: bool,
) -> None:
    bus = MemoryBus()
    before = asyncio.all_tasks()
    with contextlib.suppress(Lost):
        async with Push(bus) as push:
            listeners = [
                Listener(push, "a"),
                Listener(push, "b", after="earliest"),
                Listener(push, "a", "b"),
            ]
            await until(lambda: len(push.connections) == 3)
            _, stream = join(push, "a")
            _, stalled = join(push, "a", id="c2")
            stalled.full = True
            await push.publish(message("m1"))
            if failing:
                raise Lost
    assert [(await each.end()).reason for each in listeners] == ["drain"] * 3
    assert [each.ids for each in listeners] == [["m1"], [], ["m1"]]
    assert stream.ids == ["m1"]
    assert stream.lines[-1].startswith("close drain True")
    assert stalled.ended
    await until(lambda: asyncio.all_tasks() == before)
    assert not push.connections
    # The bus is the same: another one goes on from where each was.
    async with Push(bus) as anew:
        await anew.publish(message("m2"))
        later = Listener(anew, "a", after=(await listeners[0].end()).cursor)
        await until(lambda: later.ids == ["m2"])


async def test_leaving_does_not_wait_for_a_bus_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never() -> Position:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(delivery, "LEAVING", 0.01)
    async with Push(MemoryBus()) as push:
        listener = Listener(push, "a")
        await until(lambda: push.connections)
        monkeypatch.setattr(push._bus, "end", never)
    assert (await listener.end()).reason == "drain"


async def test_a_socket_that_is_full_when_everything_ends_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "CLOSING", 0.01)
    async with Push(MemoryBus()) as push:
        _, stalled = join(push, "a")
        stalled.full = True
    await until(lambda: stalled.aborted)
    assert push._hub.leftovers() == 0


async def test_who_comes_after_the_end_is_refused_and_does_not_wait_for_ever() -> None:
    async with Push(MemoryBus()) as push:
        pass
    with pytest.raises(Overloaded, match="has ended") as refused:
        await asyncio.wait_for(anext(push.listen("a")), PATIENCE)
    assert refused.value.reason == "draining"
    with pytest.raises(Overloaded):
        push.admit()
    _, sink = join(push, "a")
    assert sink.ended
    assert not push.connections


async def test_who_was_about_to_listen_when_it_ended_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asyncio.Event()
    async with Push(MemoryBus()) as push:
        real = push._bus.end

        async def slow() -> Position:
            await asked.wait()
            return await real()

        monkeypatch.setattr(push._bus, "end", slow)
        future = str(Cursor(push._bus.epoch, Position(1 << 40, 0)))
        listener = asyncio.ensure_future(anext(push.listen("a", after=future)))
        await asyncio.sleep(0)
    asked.set()
    with pytest.raises(Overloaded):
        await asyncio.wait_for(listener, PATIENCE)


async def test_one_that_was_left_can_be_opened_again() -> None:
    push = Push(MemoryBus())
    for number in range(3):
        async with push:
            listener = Listener(push, "a")
            await until(lambda: push.connections)
            await push.publish(message(f"m{number}"))
        assert (await listener.end()).reason == "drain"
        assert listener.ids == [f"m{number}"]


@pytest.mark.parametrize("wire", [True, False])
@pytest.mark.parametrize("stalled", [True, False])
async def test_streams_over_http_end_when_the_service_is_left(
    wire: bool, stalled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSING", 0.01)
    made = create_app(Settings())
    async with AsyncExitStack() as streams:
        async with lifespan(made):
            client = AsgiDriver(made, wire=wire)
            stream = await streams.enter_async_context(client.stream("/sse/stream/a"))
            await stream.read_until(b"\n\n")
            stream.full = stream.wire.full = stalled
        assert stream.task is not None
        async with asyncio.timeout(PATIENCE):
            await stream.task
        assert stalled or b'{"reason":"drain","reconnect":true}' in stream.body
        refused = await client.request("GET", "/sse/stream/a")
        assert b'{"reason":"overload","reconnect":true}' in refused.body


async def test_an_observer_is_told_what_happens_to_messages_and_clients() -> None:
    observer = Recorder()
    async with Push(MemoryBus(), observer=observer) as push:
        connection, _ = join(push, "a", id="c1")
        join(push, "b", id="c2")
        await push.publish(message("m1"))
        await push.publish(message("m1"))  # for the second time
        other = parse(b'{"type":"status","service":"s","id":"m1","channels":["a"]}')
        with pytest.raises(Conflict):
            await push.publish(other)
        await until(lambda: observer.deliveries == [["info"]])
        push.unsubscribe(connection)
        lost = Connection("c3", FakeSink())
        after = await push.start_at("1aaaaaaaa.1-1")  # another log's
        push.subscribe(lost, Subscription(frozenset("a"), PlainView()), after)
        await until(lambda: lost.live)
    assert observer.events == [
        ("opened", "c1"),
        ("opened", "c2"),
        ("accepted", "m1"),
        ("rejected", "Conflict"),
        ("closed", "c1 gone"),
        ("opened", "c3"),
        ("gap", "c3 reset"),
        ("draining", ""),
        ("closed", "c2 drain"),
        ("closed", "c3 drain"),
    ]
