"""The facade, with the tasks that deliver."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from msgpush.adapters.memory_bus import MemoryBus
from msgpush.domain import Gap, Malformed, Message, Push, parse
from msgpush.domain.connection import NOW, Connection, Subscription
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.history import Page
from msgpush.domain.position import Position
from tests.support.fakes import FakeSink, PlainView, make

PATIENCE = 5.0


@pytest.fixture
async def push() -> AsyncIterator[Push]:
    async with Push(MemoryBus(history_length=100)) as opened:
        yield opened


def join(push: Push, *channels: str, id: str = "c1") -> tuple[Connection, FakeSink]:
    sink = FakeSink()
    connection = Connection(id, sink)
    push.subscribe(connection, Subscription(frozenset(channels), PlainView()), NOW, lambda _: b"open\n")
    return connection, sink


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - any turn of the loop may make it true
            await asyncio.sleep(0)


def message(id: str, channel: str = "a") -> Message:
    return parse(b'{"type":"info","service":"s","id":"%b","channels":["%b"]}' % (id.encode(), channel.encode()))


async def test_a_listener_gets_what_is_published_and_resumes(push: Push) -> None:
    cursor = (await push.publish(message("m1"))).cursor
    await push.publish(message("m2"))
    async for item in push.listen("a", after=cursor):
        assert isinstance(item, Message)
        assert item.id == "m2"
        break
    assert push.hub.connections == {} or await gone(push)


async def gone(push: Push) -> bool:
    await until(lambda: not push.hub.connections)
    return True


async def test_a_listener_that_lags_gets_everything_or_is_told(push: Push) -> None:
    listener = push.listen("a")
    first = asyncio.ensure_future(anext(listener))
    await until(lambda: push.hub.connections)
    for n in range(300):
        await push.publish(
            parse(b'{"type":"info","service":"s","id":"m%d","channels":["a"],"data":{"x":"%b"}}' % (n, b"y" * 5000))
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
async def test_a_listener_names_channels_and_a_cursor(push: Push, channel: str, after: str | None) -> None:
    with pytest.raises(Malformed):
        await anext(push.listen(channel, after=after))


async def test_those_that_fall_behind_are_not_forgotten_when_another_comes(push: Push) -> None:
    _, sink = join(push, "a")
    await push.publish(message("m1"))
    await until(lambda: sink.ids == ["m1"])
    # The tail loses an entry: the reader falls behind, and before anybody sees to it another one connects.
    assert isinstance(push.bus, MemoryBus)
    await push.bus.append([make("m2", "a"), make("m3", "a")])
    (tail,) = push.bus._tails
    push.hub.append(tail.take()[1:])
    join(push, "b", id="c2")
    await until(lambda: sink.ids == ["m1", "m2", "m3"])


async def test_a_catch_up_waits_for_a_bus_that_is_away(push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(push.bus, MemoryBus)
    real, calls = push.bus.history, 0

    async def flaky(channels: list[str], after: Position | None, limit: int) -> list[Page]:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise BusUnavailable("away", retry_after=0)
        return await real(channels, after, limit)

    monkeypatch.setattr(push.bus, "history", flaky)
    await push.publish(message("m1"))
    sink = FakeSink()
    start = await push.start_at("earliest")
    push.subscribe(Connection("c1", sink), Subscription(frozenset(["a"]), PlainView()), start, lambda _: b"open\n")
    await until(lambda: sink.ids == ["m1"])


async def test_a_mistake_in_one_catch_up_closes_that_connection_alone(
    push: Push, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, healthy = join(push, "a")

    async def broken(*_: object) -> list[Page]:
        raise RuntimeError

    monkeypatch.setattr(push.bus, "history", broken)
    sink = FakeSink()
    start = await push.start_at("earliest")
    push.subscribe(Connection("c2", sink), Subscription(frozenset(["a"]), PlainView()), start, lambda _: b"open\n")
    await until(lambda: sink.ended)
    assert "close disconnected True" in sink.lines[-1]
    assert "a catch-up has failed" in caplog.text
    await push.publish(message("m1"))
    await until(lambda: healthy.ids == ["m1"])
    assert push.alive


async def test_a_replay_of_large_messages_reads_few_of_them_at_a_time() -> None:
    asked: list[int] = []

    class Watched(MemoryBus):
        async def history(self, channels: Sequence[str], after: Position | None, limit: int) -> list[Page]:
            asked.append(limit)
            return await super().history(channels, after, limit)

    bus = Watched()
    await bus.append([make(f"m{n}", "a", data={"x": "y" * 100_000}) for n in range(30)])
    async with Push(bus) as push:
        sink = FakeSink()
        connection = Connection("c1", sink)
        push.subscribe(
            connection, Subscription(frozenset({"a"}), PlainView()), await push.start_at("earliest"), lambda _: b""
        )
        await until(lambda: len(sink.ids) == 30)
    assert set(asked[1:]) == {8}
