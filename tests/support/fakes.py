"""Fakes: a clock that tests move, a sink that tests fill and drain, and short ways to make
messages.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from msgpush.domain.history import Gap
from msgpush.domain.message import Draft, Entry, draft, parse
from msgpush.domain.ports import InstanceState, InstanceStreams, RecentLatency, RegistryState


class FakeClock:
    """Both clocks of the domain: `now` is seconds since 1970, `monotonic` never goes back."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.time = now
        self.elapsed = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.elapsed

    def advance(self, seconds: float) -> None:
        self.time += seconds
        self.elapsed += seconds


class PlainView(Struct, frozen=True):
    """Frames as JSON lines that tests can read."""

    name: str = "plain"

    def opening(self, connection: str, channels: frozenset[str], cursor: str, **_: object) -> bytes:
        return b"open %b\n" % cursor.encode()

    def message(self, entry: Entry, cursor: str) -> bytes:
        return b"%b %b\n" % (cursor.encode(), entry.body)

    def pending(self, body: bytes) -> bytes:
        return b"pending %b\n" % body

    def acknowledged(self, body: bytes) -> bytes:
        return b"acknowledged %b\n" % body

    def gap(self, gap: Gap) -> bytes:
        return b"gap %b\n" % msgspec.json.encode(gap)

    def heartbeat(self, cursor: str) -> bytes:
        return b"heartbeat %b\n" % cursor.encode()

    def close(self, reason: str, reconnect: bool, cursor: str) -> bytes:
        return b"close %b %b %b\n" % (reason.encode(), str(reconnect).encode(), cursor.encode())

    def chunk(self, frames: Sequence[bytes]) -> bytes:
        return b"".join(frames)


class FakeSink:
    """Keeps what it is offered; `full` makes it refuse, as a socket does whose reader has stopped."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.chunks: list[bytes] = []
        self.full = False
        self.ended = False
        self.aborted = False
        self.backlog = 0
        self._drained = asyncio.Event()

    @property
    def writable(self) -> bool:
        return not self.full and not self.ended and not self.aborted

    def offer(self, chunk: bytes) -> bool:
        if not self.writable:
            return False
        self._take(chunk)
        return True

    def finish(self, chunk: bytes) -> None:
        self._take(chunk)
        self.ended = True
        self._drained.set()

    def abort(self) -> None:
        self.aborted = True
        self._drained.set()

    def drain(self) -> None:
        """The reader reads again."""
        self.full = False
        self._drained.set()

    async def drained(self) -> bool:
        while not self.writable and not self.aborted and not self.ended:
            self._drained.clear()
            await self._drained.wait()
        return self.writable

    def _take(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self.lines += chunk.decode().splitlines()

    @property
    def ids(self) -> list[str]:
        """The ids of the messages taken so far."""
        return [
            message_id(line) for line in self.lines if " {" in line and not line.startswith("gap")
        ]

    @property
    def gaps(self) -> list[Gap]:
        return [
            msgspec.json.decode(line[4:], type=Gap)
            for line in self.lines
            if line.startswith("gap ")
        ]

    @property
    def cursors(self) -> list[str]:
        """The cursors of the messages taken so far."""
        return [line.partition(" ")[0] for line in self.lines if line.startswith("1")]


def message_id(line: str) -> str:
    id: str = msgspec.json.decode(line.partition(" ")[2])["id"]
    return id


def make(
    id: str | None = None,
    *channels: str,
    type: str = "info",
    service: str = "tests",
    ttl: int | None = None,
    data: object = None,
    now: float = 1_800_000_000.0,
    fresh_id: str = "made",
) -> Draft:
    """A draft for these channels; one without an id is not idempotent."""
    body: dict[str, object] = {
        "id": id,
        "type": type,
        "service": service,
        "channels": channels,
        "data": data or {},
    }
    if ttl is not None:
        body["metadata"] = {"ttl": ttl}
    return draft(parse(msgspec.json.encode(body)), int(now * 1000), fresh_id, 3600)


def reporting(node: str) -> Callable[[], InstanceState]:
    """What an instance of this name tells of itself, always the same."""
    state = InstanceState(
        node=node,
        version="1.2.3",
        started_at="2027-01-15T08:00:00.000Z",
        ready=False,
        reason="draining",
        draining=True,
        bus="none",
        streams=InstanceStreams(2, 1),
        transports={"sse": 1, "ws": 2},
        limit=10,
        published=1,
        failed=2,
        delivered=3,
        acknowledged=4,
        dead=5,
        latency_ms=RecentLatency(1.5, None),
        loop_lag_ms=0.1,
        at="2027-01-15T08:00:01.000Z",
        registry=RegistryState("etcd", "trying", "2027-01-15T08:00:00.000Z", "no answer"),
    )
    return lambda: state
