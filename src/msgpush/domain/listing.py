"""The connections of this process, as rosters list and count them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from msgpush.domain.connection import Connection
from msgpush.domain.hub import Hub
from msgpush.domain.message import format_seconds
from msgpush.domain.ports import ConnectionState, ConnectionStats


class Listing:
    """The connections of one hub.

    Args:
        node: the process's name in the list.
    """

    def __init__(self, hub: Hub, node: str) -> None:
        self._hub, self.node = hub, node

    @property
    def connections(self) -> Mapping[str, Connection]:
        """Those that are open now, by their ids."""
        return self._hub.connections

    def states(self, ids: Iterable[str]) -> list[ConnectionState]:
        """The states of those connections that are still there."""
        return [self._state(self.connections[id]) for id in ids if id in self.connections]

    def stats(self, transports: Counter[str], kinds: Counter[str]) -> ConnectionStats:
        """The statistics, from what was counted: by `count`, or as connections came and went."""
        total = len(self.connections)
        states: Counter[str] = Counter(_live_or_behind(each) for each in self.connections.values())
        by_node = {self.node: total} if total else {}
        return ConnectionStats(
            total, self._hub.peak, by_node, dict(+transports), dict(+kinds), dict(states)
        )

    def count(self) -> tuple[Counter[str], Counter[str]]:
        """Count the connections of each transport, and those to each kind of channels."""
        connections = self.connections.values()
        transports = Counter(each.info.transport for each in connections)
        kinds = Counter(kind for each in connections for kind in kinds_of(each.channels))
        return transports, kinds

    def close(self, id: str, *, reconnect: bool) -> bool:
        """End a connection; False: it isn't here."""
        connection = self.connections.get(id)
        if connection is None:
            return False
        self._hub.close(connection, "disconnected", reconnect=reconnect)
        return True

    def _state(self, connection: Connection) -> ConnectionState:
        info = connection.info
        return ConnectionState(
            id=connection.id,
            node=self.node,
            subject=info.subject,
            transport=info.transport,
            channels=tuple(sorted(connection.channels)),
            remote=info.remote,
            user_agent=info.user_agent,
            connected_at=format_seconds(info.connected_at),
            messages_sent=connection.messages_sent,
            bytes_sent=connection.bytes_sent,
            state=_live_or_behind(connection),
            lag=connection.lag_in(self._hub.log),
        )


def kinds_of(channels: Iterable[str]) -> set[str]:
    """The kinds of channels: `user` of `user:123`; a plain channel's kind is its name."""
    return {name.partition(":")[0] for name in channels}


def _live_or_behind(connection: Connection) -> Literal["live", "behind"]:
    return "live" if connection.live else "behind"
