"""The roster of a single process: its own connections."""

from collections.abc import Callable

from msgpush.domain.listing import Listing
from msgpush.domain.ports import (
    ConnectionFilter,
    ConnectionState,
    ConnectionStats,
    InstanceState,
)


class MemoryRoster:
    """The live connections of this process.

    Args:
        report: what it tells of itself.
    """

    def __init__(self, listing: Listing, report: Callable[[], InstanceState]) -> None:
        self._listing, self._report = listing, report

    async def connections(
        self, wanted: ConnectionFilter, limit: int, after: str | None
    ) -> tuple[list[ConnectionState], str | None]:
        found: list[ConnectionState] = []
        for id in sorted(self._listing.connections):
            if after is not None and id <= after:
                continue
            (state,) = self._listing.states([id])
            if wanted.matches(state):
                if len(found) == limit:
                    return found, found[-1].id
                found.append(state)
        return found, None

    async def stats(self) -> ConnectionStats:
        return self._listing.stats(*self._listing.count())

    async def close(self, id: str, *, reconnect: bool) -> bool:
        return self._listing.close(id, reconnect=reconnect)

    async def instances(self) -> list[InstanceState]:
        return [self._report()]
