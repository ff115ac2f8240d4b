"""Where the figures come from: the tally, the service, the process."""

import gc
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, Self, get_args

from msgpush import __version__
from msgpush.adapters.metrics.families import Figures, Series, value_of
from msgpush.domain.errors import Ending
from msgpush.domain.instances import Pulse
from msgpush.domain.ports import Bus
from msgpush.domain.service import Push
from msgpush.domain.tally import SHORT, Histogram, Tally

TRANSPORTS = ("sse", "ws")

_FILES = "/proc/self/fd"


def of_tally(tally: Tally) -> Figures:
    """What was counted. Nothing is, while this is made: all of it is of one moment."""
    rows = tally.rows.items()
    closed: Series = {(t, r): 0 for t in TRANSPORTS for r in ("gone", *get_args(Ending))}
    return {
        "message_push_messages_sent_total": {k: v.published for k, v in rows if v.published},
        "message_push_messages_failed_total": _copy(tally.failures),
        "message_push_messages_delivered_total": {k: v.delivered for k, v in rows if v.delivered},
        "message_push_publish_seconds": {(): value_of(tally.writes)},
        "message_push_message_duration_seconds": {
            key: value_of(each) for key, each in tally.durations.items()
        },
        "message_push_streams_opened_total": _by(tally.opened_streams, TRANSPORTS),
        "message_push_streams_closed_total": closed | tally.closed_streams,
        "message_push_refused_total": _by(tally.refusals),
        "message_push_replays_total": _by(tally.replays),
        "message_push_gaps_total": _by(tally.gaps),
        "message_push_sweep_seconds": {(): value_of(tally.sweeps)},
        "message_push_swept_messages_total": {(): tally.swept_messages},
        "message_push_acknowledged_seconds": {
            (service,): value_of(each) for service, each in tally.answers.items()
        },
        "message_push_redeliveries_total": _by(tally.redeliveries),
        "message_push_dead_letters_total": _copy(tally.deaths),
        "message_push_pushes_total": _copy(tally.pushes),
        "message_push_push_seconds": {
            (kind,): value_of(each) for kind, each in tally.push_times.items()
        },
        "message_push_bus_round_trip_seconds": {(): value_of(tally.round_trips)},
    }


def of_service(
    push: Push, bus: Bus, tally: Tally, *, kind: str, limit: int
) -> Callable[[], Figures]:
    """What the service is like now.

    Args:
        kind: the bus's name.
        limit: how many messages its log keeps at most; 0: that isn't limited.
    """
    build = {(__version__, platform.python_version(), kind): 1.0}

    def figures() -> Figures:
        written = dict.fromkeys(TRANSPORTS, 0) | tally.written
        total: dict[str, int] = dict.fromkeys(TRANSPORTS, 0)
        live = dict(total)
        # Once through all of them: a tenth of a microsecond each, and nothing to keep in step.
        for connection in push.connections.values():
            transport = connection.info.transport
            total[transport] = total.get(transport, 0) + 1
            live[transport] = live.get(transport, 0) + connection.live
            written[transport] = written.get(transport, 0) + connection.bytes_sent
        return {
            "message_push_connections_total": _by(total),
            "message_push_connections_limit": {(): push.max_connections},
            "message_push_streams": {
                **{(each, "live"): live[each] for each in live},
                **{(each, "behind"): total[each] - live[each] for each in total},
            },
            "message_push_bytes_written_total": _by(written),
            "message_push_up": {(): float(push.trouble is None)},
            "message_push_ready": {(): float(push.unready is None)},
            "message_push_draining": {(): float(push.draining)},
            "message_push_build_info": _copy(build),
            "message_push_bus_length": {(): bus.length},
            "message_push_bus_limit": {(): limit},
            "message_push_pending_acknowledgements": {(): bus.outbox.pending},
            "message_push_unknown_entries": {(): bus.unknown},
            "message_push_tail_lag_seconds": {(): push.tail_lag},
        }

    return figures


class Process:
    """What the process is like: its loop, its garbage collector, its files. An async context
    manager: it times the collector while it is open.

    Args:
        pulse: watches the loop.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._pauses = [Histogram(SHORT) for _ in gc.get_threshold()]
        self._started = time.time()
        self._began = 0.0

    async def __aenter__(self) -> Self:
        gc.callbacks.append(self._collected)
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ValueError):
            gc.callbacks.remove(self._collected)

    def figures(self) -> Figures:
        files = open_files()
        return {
            "message_push_loop_lag_seconds": {(): value_of(self._pulse.lag)},
            "message_push_gc_pause_seconds": {
                (str(generation),): value_of(each) for generation, each in enumerate(self._pauses)
            },
            "message_push_open_files": {} if files is None else {(): files},
            "message_push_open_files_limit": {
                (): float(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            },
            "message_push_start_time_seconds": {(): self._started},
        }

    def _collected(self, phase: Literal["start", "stop"], info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self._pauses[info["generation"]].observe(time.perf_counter() - self._began)


def open_files() -> int | None:
    """How many files this process has open; None: that isn't known here."""
    try:
        # Since Linux 6.2 the directory's size is their number; before, they must be read.
        return os.stat(_FILES).st_size or len(os.listdir(_FILES))
    except OSError:
        return None


def _copy(counts: Mapping[Any, float]) -> Series:
    return {**counts}


def _by(counts: Mapping[Any, float], known: tuple[str, ...] = ()) -> Series:
    """Counts by one label; of what is known beforehand also where there are none yet."""
    return {(each,): counts.get(each, 0) for each in (*known, *counts)}
