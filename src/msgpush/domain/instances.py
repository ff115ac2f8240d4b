"""What an instance tells of itself: the operator sees it beside the others."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Self

from msgpush.domain.connection import Connection
from msgpush.domain.counts import counted, quantile
from msgpush.domain.message import format_seconds
from msgpush.domain.ports import InstanceState, InstanceStreams, RecentLatency, RegistryState
from msgpush.domain.service import Push
from msgpush.domain.tally import Histogram, Row, Tally

BEAT = 0.1  # seconds
RECENT = 10.0  # seconds

# Seconds that the loop is late: the upper bounds of the buckets.
LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_BEATS = int(RECENT / BEAT)


class Pulse:
    """Watches the event loop and the latency, ten times a second. An async context manager.

    Of both it knows the last ten seconds.

    Attributes:
        lag: seconds that the event loop was late with what was due, since the start.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally, self.lag = tally, Histogram(LAG)
        self._lags: deque[float] = deque(maxlen=_BEATS)
        self._latencies: deque[list[int]] = deque([list(tally.latency.counts)], maxlen=_BEATS)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="msgpush pulse")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT
            await asyncio.sleep(BEAT)
            self.beat(loop.time() - due)

    def beat(self, late: float) -> None:
        """Note the state of things.

        Args:
            late: seconds by which the loop came back too late.
        """
        late = max(0.0, late)
        self.lag.observe(late)
        self._lags.append(late)
        self._latencies.append(list(self._tally.latency.counts))

    @property
    def loop_lag(self) -> float:
        """The most seconds by which the loop was late, of the last ten."""
        return max(self._lags, default=0.0)

    def latency(self) -> list[int]:
        """The values of the latency by its buckets."""
        pairs = zip(self._tally.latency.counts, self._latencies[0], strict=True)
        return [now - before for now, before in pairs]


class InstanceReport:
    """Tells what is to be known of this instance.

    Args:
        bus: its name.
        registration: how it stands with the registry; it gives None where there is none.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        push: Push,
        tally: Tally,
        pulse: Pulse,
        *,
        node: str,
        version: str,
        bus: str,
        limit: int,
        registration: Callable[[], RegistryState | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._push, self._tally, self._pulse = push, tally, pulse
        self._node, self._version, self._bus, self._limit = node, version, bus, limit
        self._registration, self._clock = registration, clock
        self._started_at = format_seconds(clock())

    def __call__(self) -> InstanceState:
        push = self._push
        connections = push.connections
        live = sum(each.live for each in connections.values())
        rows = [counted(Row()), *map(counted, self._tally.rows.values())]
        published, failed, delivered, acknowledged, dead, _ = map(sum, zip(*rows, strict=True))
        latency = self._pulse.latency()
        unready = push.unready
        return InstanceState(
            node=self._node,
            version=self._version,
            started_at=self._started_at,
            ready=unready is None,
            reason=unready or push.trouble,
            draining=push.draining,
            bus=self._bus,
            streams=InstanceStreams(live, len(connections) - live),
            transports=by_transport(connections),
            limit=self._limit,
            published=published,
            failed=failed,
            delivered=delivered,
            acknowledged=acknowledged,
            dead=dead,
            latency_ms=RecentLatency(_ms(quantile(latency, 0.5)), _ms(quantile(latency, 0.99))),
            loop_lag_ms=round(self._pulse.loop_lag * 1000, 1),
            at=format_seconds(self._clock()),
            registry=self._registration(),
        )


def by_transport(connections: Mapping[str, Connection]) -> dict[str, int]:
    """The number of clients' connections, by what carries them."""
    none = {"sse": 0, "ws": 0}
    return none | Counter(each.info.transport for each in connections.values())


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
