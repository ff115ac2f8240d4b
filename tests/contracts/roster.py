"""What every roster promises. A roster's own test module derives from `RosterContract` and says how
to open one.
"""

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from msgpush.domain.connection import NOW, Connection, Subscription
from msgpush.domain.hub import Hub
from msgpush.domain.ports import ClientInfo, ConnectionFilter, ConnectionState, Roster
from tests.support.fakes import FakeSink, PlainView, reporting


class Opened(NamedTuple):
    """A roster, and the hubs of all its instances: some of them, or one."""

    roster: Roster
    hubs: list[Hub]

    async def written(self) -> None:
        """Wait until what has changed can be seen; nothing to wait for within one process."""


def join(
    hub: Hub, id: str, *channels: str, subject: str | None = None
) -> tuple[Connection, FakeSink]:
    """A client connects."""
    sink = FakeSink()
    info = ClientInfo(subject, "sse", "192.0.2.1:5000", "test/1", 1_800_000_000.5)
    connection = Connection(id, sink, info)
    hub.attach(connection, Subscription(frozenset(channels), PlainView()), NOW)
    return connection, sink


class RosterContract:
    """Subclass it, and say how a roster is opened."""

    def open(self) -> AbstractAsyncContextManager[Opened]:
        raise NotImplementedError

    async def test_a_connection_is_listed_with_all_that_is_known_of_it(self) -> None:
        async with self.open() as opened:
            for number, hub in enumerate(opened.hubs):
                join(hub, f"c{number}", "b", "user:1", subject="me")
            await opened.written()
            found, following = await opened.roster.connections(ConnectionFilter(), 10, None)
            assert following is None
            assert [each.id for each in found] == [
                f"c{number}" for number in range(len(opened.hubs))
            ]
            assert len({each.node for each in found}) == len(opened.hubs)
            for each in found:
                expected = ConnectionState(
                    id=each.id,
                    node=each.node,
                    subject="me",
                    transport="sse",
                    channels=("b", "user:1"),
                    remote="192.0.2.1:5000",
                    user_agent="test/1",
                    connected_at="2027-01-15T08:00:00.500Z",
                    messages_sent=0,
                    bytes_sent=0,
                    state="live",
                    lag=0,
                )
                assert each == expected

    async def test_pages_give_each_connection_once_and_in_order(self) -> None:
        async with self.open() as opened:
            ids = [f"{n * 7919 % 1000:03}" for n in range(1000)]
            for number, id in enumerate(ids):
                join(opened.hubs[number % len(opened.hubs)], id, "a")
            await opened.written()
            found: list[str] = []
            after: str | None = None
            while True:
                page, after = await opened.roster.connections(ConnectionFilter(), 70, after)
                found += [each.id for each in page]
                if after is None:
                    break
                assert len(page) == 70
            assert found == sorted(ids)

    async def test_filters_are_for_channels_subject_and_node(self) -> None:
        async with self.open() as opened:
            for number, hub in enumerate(opened.hubs):
                join(hub, f"a{number}", "x", "y", subject="s")
                join(hub, f"b{number}", "x", subject="t")
                join(hub, f"c{number}", "y")
            await opened.written()

            async def ids(wanted: ConnectionFilter) -> set[str]:
                return {
                    each.id[0] for each in (await opened.roster.connections(wanted, 100, None))[0]
                }

            assert await ids(ConnectionFilter(frozenset({"x"}))) == {"a", "b"}
            assert await ids(ConnectionFilter(frozenset({"x", "y"}))) == {"a"}
            assert await ids(ConnectionFilter(subject="t")) == {"b"}
            assert await ids(ConnectionFilter(frozenset({"y"}), "s")) == {"a"}
            assert await ids(ConnectionFilter(frozenset({"nobody"}))) == set()
            everybody, _ = await opened.roster.connections(ConnectionFilter(), 100, None)
            for node in {each.node for each in everybody}:
                mine, _ = await opened.roster.connections(ConnectionFilter(node=node), 100, None)
                assert [each.id[0] for each in mine] == ["a", "b", "c"]
            assert await ids(ConnectionFilter(node="elsewhere")) == set()

    async def test_statistics_count_all_instances(self) -> None:
        async with self.open() as opened:
            gone = []
            for hub in opened.hubs:
                join(hub, f"a{id(hub)}", "user:1", "user:2", "plain")
                gone.append((hub, join(hub, f"b{id(hub)}", "plain")[0]))
            number = len(opened.hubs)
            await opened.written()
            stats = await opened.roster.stats()
            assert (stats.total, stats.peak) == (2 * number, 2 * number)
            assert sorted(stats.by_node.values()) == [2] * number
            assert stats.by_transport == {"sse": 2 * number}
            assert stats.by_channel_kind == {"user": number, "plain": 2 * number}
            assert stats.by_state == {"live": 2 * number}
            for hub, connection in gone:
                hub.detach(connection)
            await opened.written()
            stats = await opened.roster.stats()
            assert (stats.total, stats.peak) == (number, 2 * number)

    async def test_a_connection_that_has_gone_is_listed_no_longer(self) -> None:
        async with self.open() as opened:
            connections = [(hub, join(hub, f"c{n}", "a")[0]) for n, hub in enumerate(opened.hubs)]
            await opened.written()
            for hub, connection in connections:
                hub.detach(connection)
            await opened.written()
            assert await opened.roster.connections(ConnectionFilter(), 10, None) == ([], None)

    async def test_closing_what_is_not_there_says_so(self) -> None:
        async with self.open() as opened:
            assert not await opened.roster.close("nobody", reconnect=True)

    async def test_closing_reaches_the_connection(self) -> None:
        async with self.open() as opened:
            _, sink = join(opened.hubs[0], "c0", "a")
            assert await opened.roster.close("c0", reconnect=False)
            assert sink.lines[-1].startswith("close disconnected False")
            assert sink.ended

    async def test_each_instance_is_listed_with_what_it_tells_of_itself(self) -> None:
        async with self.open() as opened:
            await opened.written()
            found = await opened.roster.instances()
            assert len(found) == len(opened.hubs)
            names = [each.node for each in found]
            assert names == sorted(set(names))
            assert found == [reporting(name)() for name in names]
