"""The roster of many instances: each writes down its own connections, and that it lives.

What has changed at an instance is written twice a second, in one call, however many connections
came and went; what it has written goes when its lease runs out. Nothing here is needed to deliver:
it is for those who look."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from heapq import merge
from itertools import islice
from typing import Any, Final, NamedTuple, Self, TypeVar

import msgspec

from msgpush.adapters.redis.link import HASH_TAG, Script, SharedLink, lua
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.control import Close, Command
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.listing import Listing, kinds_of
from msgpush.domain.ports import (
    ConnectionFilter,
    ConnectionState,
    ConnectionStats,
    InstanceState,
)

SYNC = 0.5  # seconds between two writes
REPORT = 1.0  # seconds for which what an instance tells of itself is new enough
LEASE = 10.0  # seconds after which an instance that writes no more is gone
ADDED = 1_000  # connections a write that are new; after an outage all are
REFRESHED = (
    150  # connections a write whose counts have changed; the others' turn comes with the next
)
CHUNK = 500

NODES: Final = f"{HASH_TAG}:nodes"
TOTALS: Final = f"{HASH_TAG}:totals"
STATS: Final = f"{HASH_TAG}:stats"
PEAK: Final = f"{HASH_TAG}:peak"

T = TypeVar("T")

log = logging.getLogger("msgpush.redis")


class _Stats(ConnectionStats, frozen=True):
    """What stands beside an instance's lease: its totals, and what it tells of itself."""

    report: msgspec.Raw = msgspec.Raw(b"null")


_encode = msgspec.json.Encoder().encode
_state = msgspec.json.Decoder(ConnectionState).decode
_stats = msgspec.json.Decoder(_Stats).decode
_instance = msgspec.json.Decoder(InstanceState).decode
SYNC_SCRIPT = lua("roster")


class _Written(NamedTuple):
    """A connection as it was last written down, as far as it changes or is counted."""

    messages: int
    live: bool
    channels: frozenset[str]
    transport: str
    kinds: set[str]


class RedisRoster:
    """The live connections of all instances. An async context manager.

    Args:
        listing: this instance's, whose name no other has.
        command: has a command obeyed by all instances.
        report: what this instance tells of itself.
    """

    def __init__(
        self,
        target: RedisTarget,
        listing: Listing,
        command: Callable[[Command], Awaitable[None]],
        report: Callable[[], InstanceState],
    ) -> None:
        self._listing, self._command, self._node = listing, command, listing.node
        self._report, self._told, self._told_at = report, msgspec.Raw(b"null"), float("-inf")
        self._link = SharedLink(target, "msgpush-roster")
        self._script = Script(SYNC_SCRIPT)
        self._written: dict[str, _Written] = {}
        # Kept as connections come and go: to count ten thousand anew each second would hold
        # everything up.
        self._transports: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._anew = True
        self._syncing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="msgpush redis roster")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(BusUnavailable):  # the lease runs out by itself
            await self._call(
                ("ZREM", NODES, self._node),
                ("HDEL", TOTALS, self._node),
                ("HDEL", STATS, self._node),
            )
        await self._link.close()

    async def connections(
        self, wanted: ConnectionFilter, limit: int, after: str | None
    ) -> tuple[list[ConnectionState], str | None]:
        others = await self._others() if wanted.node != self._node else []
        nodes = [node for node in others if wanted.node in (None, node)]
        found: list[ConnectionState] = []
        while True:
            ids = await self._ids_after(nodes, after or "")
            for state in await self._states(ids):
                if wanted.matches(state):
                    if len(found) == limit:
                        return found, found[-1].id
                    found.append(state)
            if len(ids) < CHUNK:
                return found, None
            after = ids[-1][0]

    async def stats(self) -> ConnectionStats:
        others = await self._others()
        peak, *written = await self._call(
            ("GET", PEAK), *(("HGET", STATS, node) for node in others)
        )
        parts = [
            self._listing.stats(*self._listing.count()),
            *filter(None, (_read(_stats, text) for text in written if text is not None)),
        ]
        total = sum(part.total for part in parts)
        return ConnectionStats(
            total=total,
            peak=max(int(peak or 0), total),
            by_node=_sum(part.by_node for part in parts),
            by_transport=_sum(part.by_transport for part in parts),
            by_channel_kind=_sum(part.by_channel_kind for part in parts),
            by_state=_sum(part.by_state for part in parts),
        )

    async def close(self, id: str, *, reconnect: bool) -> bool:
        if self._listing.close(id, reconnect=reconnect):
            return True
        nodes = await self._others()
        if not any(await self._call(*(("HEXISTS", _states_of(node), id) for node in nodes))):
            return False
        await self._command(Close(id, reconnect))
        return True

    async def instances(self) -> list[InstanceState]:
        time, leases, written = await self._call(
            ("TIME",), ("ZRANGE", NODES, "0", "-1", "WITHSCORES"), ("HVALS", STATS)
        )
        living = set(_living(time, leases)) - {self._node}
        told = (_read(_stats, text) for text in written)
        others = (_read(_instance, each.report) for each in told if each is not None)
        found = [each for each in others if each is not None and each.node in living]
        return sorted([self._report(), *found], key=lambda each: each.node)

    # Writing

    async def _run(self) -> None:
        while True:
            try:
                await self.sync()
            except BusUnavailable:
                pass  # the bus says so already
            except Exception:
                log.exception("the list of connections can't be written")
            await asyncio.sleep(SYNC)

    async def sync(self) -> bool:
        """Write down what has changed since the last time; True where there is more.

        Raises:
            BusUnavailable: it could not be written.
        """
        async with self._syncing:
            return await self._sync()

    async def _sync(self) -> bool:
        """Write down one portion of what has changed; see `sync`."""
        connections = self._listing.connections
        removed = [id for id in self._written if id not in connections]
        states = self._listing.states(self._changed())
        self._count(removed, states)
        stats = self._listing.stats(self._transports, self._kinds)
        head = (
            self._node,
            int(LEASE * 1000),
            stats.total,
            self._stats_text(stats),
            int(self._anew),
            len(removed),
        )
        args: list[str | bytes | int] = [*head, *removed]
        for state in states:
            args += (state.id, _encode(state))
        keys = [NODES, TOTALS, STATS, PEAK, _states_of(self._node), _ids_of(self._node)]
        try:
            number = await self._link.script(self._script, keys, args)
        except BusUnavailable:
            self._anew = True
            self._forget()
            raise
        # Redis may have been away for longer than the lease, or have lost what it had.
        self._anew = number != len(self._written)
        if self._anew:
            self._forget()
        return len(self._written) < len(connections)

    def _stats_text(self, stats: ConnectionStats) -> bytes:
        """The totals as they are written down, with what this instance tells of itself."""
        if (now := time.monotonic()) - self._told_at >= REPORT:
            self._told, self._told_at = msgspec.Raw(_encode(self._report())), now
        return _encode(_Stats(**msgspec.structs.asdict(stats), report=self._told))

    def _changed(self) -> list[str]:
        connections, written = self._listing.connections, self._written
        stale = (
            id
            for id, (messages, live, channels, _, _) in written.items()
            if (now := connections.get(id)) is not None
            # A subscription's own set: the same object, unless it has changed.
            and (now.messages_sent != messages or now.live != live or now.channels is not channels)
        )
        new = (id for id in connections if id not in written)
        return [*islice(new, ADDED), *islice(stale, REFRESHED)]

    def _count(self, removed: Sequence[str], states: Sequence[ConnectionState]) -> None:
        """Count those that have gone, and those that will be written now."""
        # Before they are written: should that fail, everything is written anew.
        for id in removed:
            gone = self._written.pop(id)
            self._transports[gone.transport] -= 1
            self._kinds.subtract(gone.kinds)
        for state in states:
            # To the end of the order: the others' turn comes first.
            before = self._written.pop(state.id, None)
            channels = self._listing.connections[state.id].channels
            if before is not None and before.channels is channels:
                kinds = before.kinds
            else:
                kinds = kinds_of(channels)
                self._kinds.update(kinds)
                if before is None:
                    self._transports[state.transport] += 1
                else:
                    self._kinds.subtract(before.kinds)
            live = state.state == "live"
            self._written[state.id] = _Written(
                state.messages_sent, live, channels, state.transport, kinds
            )

    def _forget(self) -> None:
        self._written.clear()
        self._transports.clear()
        self._kinds.clear()

    # Reading

    async def _others(self) -> list[str]:
        time, leases = await self._call(("TIME",), ("ZRANGE", NODES, "0", "-1", "WITHSCORES"))
        return [node for node in _living(time, leases) if node != self._node]

    async def _ids_after(self, nodes: Sequence[str], after: str) -> list[tuple[str, str | None]]:
        """The next ids of all instances, in order, each with its instance (None: this one)."""
        start = f"({after}" if after else "-"
        replies = await self._call(
            *(("ZRANGEBYLEX", _ids_of(node), start, "+", "LIMIT", 0, CHUNK) for node in nodes)
        )
        mine = sorted(id for id in self._listing.connections if id > after)
        lists: list[list[tuple[str, str | None]]] = [[(id, None) for id in mine]]
        for node, ids in zip(nodes, replies, strict=True):
            lists.append([(id.decode(), node) for id in ids])
        return list(islice(merge(*lists), CHUNK))

    async def _states(self, ids: Sequence[tuple[str, str | None]]) -> list[ConnectionState]:
        by_node: dict[str, list[str]] = {}
        for id, node in ids:
            if node is not None:
                by_node.setdefault(node, []).append(id)
        replies = await self._call(
            *(("HMGET", _states_of(node), *mine) for node, mine in by_node.items())
        )
        states = {
            state.id: state
            for state in self._listing.states([id for id, node in ids if node is None])
        }
        others = (_read(_state, text) for texts in replies for text in texts if text is not None)
        states |= {state.id: state for state in others if state is not None}
        return [states[id] for id, _ in ids if id in states]

    async def _call(self, *commands: Sequence[str | bytes | int]) -> list[Any]:
        return await self._link.calls(commands) if commands else []


def _living(time: Sequence[bytes], leases: Sequence[bytes]) -> list[str]:
    """The instances whose lease hasn't ended, by the server's time."""
    now = int(time[0]) * 1000 + int(time[1]) // 1000
    nodes = zip(leases[::2], leases[1::2], strict=True)
    return [node.decode() for node, lease in nodes if float(lease) > now]


def _read(decode: Callable[[bytes], T], text: bytes) -> T | None:
    try:
        return decode(text)
    except msgspec.MsgspecError:
        # Of a later release, while instances are replaced one by one.
        return None


def _states_of(node: str) -> str:
    return f"{HASH_TAG}:connections:{node}"


def _ids_of(node: str) -> str:
    return f"{HASH_TAG}:ids:{node}"


def _sum(parts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
