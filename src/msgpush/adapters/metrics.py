"""The metrics, for Prometheus.

No label takes values that a client chooses, beyond a bounded number of services."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from msgpush.domain.errors import (
    BusUnavailable,
    Conflict,
    Denied,
    Invalid,
    KeysUnavailable,
    MailboxFull,
    Malformed,
    MsgpushError,
    PendingFull,
    RateExceeded,
    TooLarge,
    Unauthorized,
)
from msgpush.domain.message import Draft, Entry
from msgpush.domain.observer import Observer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_SERVICES = 100
OTHER = "other"

_REASONS: dict[type[MsgpushError], str] = {
    Malformed: "malformed",
    Invalid: "invalid",
    TooLarge: "too_large",
    Conflict: "conflict",
    MailboxFull: "mailbox_full",
    PendingFull: "pending_full",
    Denied: "denied",
    BusUnavailable: "unavailable",
    KeysUnavailable: "unavailable",
    Unauthorized: "unauthorized",
    RateExceeded: "rate",
}

_REFUSALS = (Denied, KeysUnavailable, RateExceeded, TooLarge, Unauthorized)

# What a gauge of all workers is made of, among those that run.
_TOGETHER: Mapping[str, Literal["livesum", "livemostrecent", "livemin", "livemax"]] = {
    "message_push_connections_total": "livesum",
    "message_push_bus_length": "livemostrecent",
    "message_push_pending_acknowledgements": "livemostrecent",
    "message_push_up": "livemin",
    "message_push_unknown_entries": "livemax",
}


class Shared:
    """The metrics of all workers of a service, each of which writes files of its own in one
    directory.

    That is prometheus_client's multiprocess mode, with a worker's number where that takes its
    process id: a successor goes on counting where its predecessor ended, and however often workers
    die, the files don't get more. A gauge is written by `refresh`; the others' are as old as their
    last."""

    # prometheus_client decides for a process as a whole where its values live, and so is this the
    # process's.
    joined: ClassVar["Shared | None"] = None

    # prometheus_client itself reads this variable: it must be set before the process starts.
    DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

    def __init__(self, directory: str, worker: int) -> None:
        self.gauges: Gauges | None = None
        self._directory, self._worker = Path(directory), worker
        self._registry = CollectorRegistry(auto_describe=False)
        MultiProcessCollector(self._registry, directory)  # type: ignore[no-untyped-call]
        self._written: dict[str, Gauge] = {}

    @classmethod
    def join(cls, directory: str, worker: int) -> Self:
        """From here on all metrics that this process makes are those of a worker."""
        values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]
        cls.joined = shared = cls(directory, worker)
        return shared

    @staticmethod
    def forget(directory: str, worker: int) -> None:
        """A worker has ended: its gauges count no longer, its counters stay."""
        mark_process_dead(worker, directory)  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """Remove this worker's files, and the directory after the last one's: there is nobody else
        who would.
        """
        for file in self._directory.glob(f"*_{self._worker}.db"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it isn't empty
            self._directory.rmdir()

    def register(self, collector: Collector) -> None:
        """Take in what is the same whichever worker says it."""
        self._registry.register(collector)

    def services(self) -> set[str]:
        """The services that any worker has counted."""
        samples = (sample for metric in self._registry.collect() for sample in metric.samples)
        return {sample.labels.get("service", "") for sample in samples} - {"", OTHER}

    def refresh(self) -> None:
        """Tell the others this worker's gauges."""
        for family in self.gauges.collect() if self.gauges else ():
            for sample in family.samples:
                gauge = self._written.get(family.name)
                if gauge is None:
                    mode = _TOGETHER[family.name]
                    gauge = Gauge(
                        family.name,
                        family.documentation,
                        list(sample.labels),
                        registry=None,
                        multiprocess_mode=mode,
                    )
                    self._written[family.name] = gauge
                (gauge.labels(**sample.labels) if sample.labels else gauge).set(sample.value)

    def text(self) -> bytes:
        self.refresh()
        return generate_latest(self._registry)


class Metrics(Observer):
    """The service's counters, in a registry of their own: an application that embeds the service
    keeps its.

    A worker's speak for all workers; see `Shared`.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.registry = CollectorRegistry(auto_describe=False)
        self._sent = Counter(
            "message_push_messages_sent_total",
            "Messages accepted, once each.",
            ["service", "type"],
            registry=self.registry,
        )
        self._failed = Counter(
            "message_push_messages_failed_total",
            "Messages refused or not stored.",
            ["service", "type", "reason"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "message_push_message_duration_seconds",
            "From a message's acceptance to its writing to sockets, once for each set of like"
            " connections of which at least one has taken it, and once for messages of the same"
            " millisecond that are written together. Live delivery alone: what is replayed, or"
            " caught up on by a slow reader, isn't counted.",
            ["service", "type"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self._refused = Counter(
            "message_push_refused_total",
            "Streams, requests and connections refused: by a limit, for want of permission, or"
            " broken.",
            ["reason"],
            registry=self.registry,
        )
        self._acknowledged = Histogram(
            "message_push_acknowledged_seconds",
            "From a message's acceptance to its acknowledgement by a client, once each.",
            ["service"],
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 6 * 3600, 86_400),
            registry=self.registry,
        )
        self._redelivered = Counter(
            "message_push_redeliveries_total",
            "Messages that were delivered once more, since nobody had acknowledged them.",
            ["service"],
            registry=self.registry,
        )
        self._died = Counter(
            "message_push_dead_letters_total",
            "Messages that were given up, and dead letters that went.",
            ["service", "reason"],
            registry=self.registry,
        )
        self._shared = Shared.joined
        # With them, a successor doesn't bring as many services again.
        self._services = self._shared.services() if self._shared else set()
        self._sent_children: dict[tuple[str, str], Counter] = {}
        self._duration_children: dict[tuple[str, str], Histogram] = {}

    def register(self, collector: Collector) -> None:
        """Take in what is told of the service as a whole, not of this worker alone."""
        self.registry.register(collector)
        if self._shared is not None:
            self._shared.register(collector)

    def accepted(self, drafts: Sequence[Draft]) -> None:
        counts: dict[tuple[str, str], int] = {}
        for draft in drafts:
            key = (draft.service, draft.type)
            counts[key] = counts.get(key, 0) + 1
        for key, count in counts.items():
            child = self._sent_children.get(key)
            if child is None:
                child = self._sent.labels(self._service(key[0]), key[1])
                if key[0] in self._services:
                    self._sent_children[key] = child
            child.inc(count)

    def rejected(self, error: MsgpushError, draft: Draft | None) -> None:
        """A message was refused or not stored; without a draft, before its service and type were
        known.
        """
        service = ""
        if draft is not None:
            # Who may publish nothing doesn't use up the names.
            known = draft.service in self._services or not isinstance(error, Denied)
            service = self._service(draft.service) if known else OTHER
        self._failed.labels(
            service, draft.type if draft else "", _REASONS.get(type(error), "other")
        ).inc()

    def error(self, error: MsgpushError) -> None:
        """A request was answered with an error; those of the limits and permissions are counted as
        refused.
        """
        if isinstance(error, _REFUSALS):
            self.refused(_REASONS[type(error)])

    def refused(self, reason: str) -> None:
        """A stream, a request or a connection was refused."""
        self._refused.labels(reason).inc()

    def delivered(self, entries: Sequence[Entry], streams: int) -> None:
        now = self._clock()
        # A histogram counts one by one, and a batch's messages all took the same time: they count
        # once.
        for service, type, ms in {
            (entry.service, entry.type, entry.position.ms) for entry in entries
        }:
            child = self._duration_children.get((service, type))
            if child is None:
                child = self._duration.labels(self._service(service), type)
                if service in self._services:
                    self._duration_children[service, type] = child
            child.observe(max(0.0, now - ms / 1000))

    def acknowledged(self, service: str, type: str, seconds: float) -> None:
        self._acknowledged.labels(self._service(service)).observe(seconds)

    def redelivered(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            self._redelivered.labels(self._service(draft.service)).inc()

    def died(self, service: str, type: str, reason: str) -> None:
        self._died.labels(self._service(service), reason).inc()

    def buried(self, service: str) -> None:
        self._died.labels(self._service(service), "removed").inc()

    def text(self) -> bytes:
        return self._shared.text() if self._shared else generate_latest(self.registry)

    def _service(self, service: str) -> str:
        if service not in self._services:
            if len(self._services) >= MAX_SERVICES:
                return OTHER
            self._services.add(service)
        return service


class Gauges(Collector):
    """The gauges, which are read off the service when they are asked for."""

    def __init__(
        self,
        connections: Callable[[], dict[str, int]],
        bus_length: Callable[[], int],
        unknown: Callable[[], int],
        pending: Callable[[], int],
        up: Callable[[], bool],
    ) -> None:
        self._connections, self._bus_length = connections, bus_length
        self._unknown, self._pending, self._up = unknown, pending, up
        if Shared.joined is not None:
            Shared.joined.gauges = self

    def collect(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily(
            "message_push_connections_total", "Streams open now.", labels=["transport"]
        )
        for transport, number in self._connections().items():
            connections.add_metric([transport], number)
        yield connections
        yield GaugeMetricFamily(
            "message_push_bus_length", "Messages that the bus retains.", value=self._bus_length()
        )
        yield GaugeMetricFamily(
            "message_push_pending_acknowledgements",
            "Messages that wait for acknowledgements, at all instances together.",
            value=self._pending(),
        )
        yield GaugeMetricFamily(
            "message_push_unknown_entries",
            "Entries of the log passed over since the start: of a later release, or written by"
            " somebody else.",
            value=self._unknown(),
        )
        yield GaugeMetricFamily(
            "message_push_up",
            "Whether messages can be published and are delivered.",
            value=float(self._up()),
        )
