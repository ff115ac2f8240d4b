"""The roster of a single process: its own hub's connections."""

from collections import Counter
from collections.abc import Iterable

from msgpush.domain.connection import Connection
from msgpush.domain.hub import Hub
from msgpush.domain.message import format_ms
from msgpush.domain.ports import ConnectionFilter, ConnectionState, ConnectionStats


class MemoryRoster:
    """The live connections of this process.

    Args:
        node: the process's name in the list.
    """

    def __init__(self, hub: Hub, node: str) -> None:
        self._hub, self._node = hub, node

    async def connections(
        self, wanted: ConnectionFilter, limit: int, after: str | None
    ) -> tuple[list[ConnectionState], str | None]:
        found: list[ConnectionState] = []
        for id in sorted(self._hub.connections):
            if after is not None and id <= after:
                continue
            state = _state(self._hub, self._hub.connections[id], self._node)
            if wanted.matches(state):
                if len(found) == limit:
                    return found, found[-1].id
                found.append(state)
        return found, None

    async def stats(self) -> ConnectionStats:
        connections = self._hub.connections.values()
        transports = Counter(each.info.transport for each in connections)
        kinds = Counter(kind for each in connections for kind in kinds_of(each.channels))
        return stats_of(self._hub, self._node, transports, kinds)

    def states(self, ids: Iterable[str]) -> list[ConnectionState]:
        """The states of those connections that are still there."""
        connections = self._hub.connections
        return [_state(self._hub, connections[id], self._node) for id in ids if id in connections]

    async def close(self, id: str, *, reconnect: bool) -> bool:
        connection = self._hub.connections.get(id)
        if connection is None:
            return False
        self._hub.close(connection, "disconnected", reconnect=reconnect)
        return True


def kinds_of(channels: frozenset[str]) -> set[str]:
    """The kinds of channels: `user` of `user:123`; a plain channel's kind is its name."""
    return {name.partition(":")[0] for name in channels}


def stats_of(hub: Hub, node: str, transports: Counter[str], kinds: Counter[str]) -> ConnectionStats:
    """The statistics of one process, from what was counted of its transports and channels."""
    total = len(hub.connections)
    states = Counter("live" if each.live else "behind" for each in hub.connections.values())
    by_node = {node: total} if total else {}
    return ConnectionStats(total, hub.peak, by_node, dict(+transports), dict(+kinds), dict(states))


def _state(hub: Hub, connection: Connection, node: str) -> ConnectionState:
    info = connection.info
    return ConnectionState(
        id=connection.id,
        node=node,
        subject=info.subject,
        transport=info.transport,
        channels=tuple(sorted(connection.channels)),
        remote=info.remote,
        user_agent=info.user_agent,
        connected_at=format_ms(int(info.connected_at * 1000)),
        messages_sent=connection.messages_sent,
        bytes_sent=connection.bytes_sent,
        state="live" if connection.live else "behind",
        lag=connection.lag_in(hub.log),
    )
