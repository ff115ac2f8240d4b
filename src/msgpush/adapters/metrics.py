"""What Prometheus is told. No label takes values that a client chooses, beyond a bounded number of services."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from msgpush.domain.errors import (
    BusUnavailable,
    Conflict,
    Denied,
    Invalid,
    Malformed,
    MsgpushError,
    TooLarge,
)
from msgpush.domain.message import Draft, Entry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_SERVICES = 100
OTHER = "other"

_REASONS: dict[type[MsgpushError], str] = {
    Malformed: "malformed",
    Invalid: "invalid",
    TooLarge: "too_large",
    Conflict: "conflict",
    Denied: "denied",
    BusUnavailable: "unavailable",
}


class Metrics:
    """The service's counters, in a registry of their own: an application that embeds the service keeps its.

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
            "From a message's acceptance to its writing to sockets, once for each set of like connections.",
            ["service", "type"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self._services: set[str] = set()
        self._sent_children: dict[tuple[str, str], Counter] = {}
        self._duration_children: dict[tuple[str, str], Histogram] = {}

    def sent(self, drafts: Iterable[Draft]) -> None:
        """Messages were accepted."""
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

    def failed(self, error: MsgpushError, draft: Draft | None) -> None:
        """A message was refused or not stored; without a draft, before its service and type were known."""
        service = self._service(draft.service) if draft else ""
        self._failed.labels(service, draft.type if draft else "", _REASONS.get(type(error), "other")).inc()

    def delivered(self, entries: Sequence[Entry]) -> None:
        """A set of like connections has been given these entries."""
        now = self._clock()
        for entry in entries:
            key = (entry.service, entry.type)
            child = self._duration_children.get(key)
            if child is None:
                child = self._duration.labels(self._service(entry.service), entry.type)
                if entry.service in self._services:
                    self._duration_children[key] = child
            child.observe(max(0.0, now - entry.position.ms / 1000))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _service(self, service: str) -> str:
        if service not in self._services:
            if len(self._services) >= MAX_SERVICES:
                return OTHER
            self._services.add(service)
        return service


class Gauges(Collector):
    """What is read off the service when it is asked for."""

    def __init__(
        self, connections: Callable[[], dict[str, int]], bus_length: Callable[[], int], up: Callable[[], bool]
    ) -> None:
        self._connections, self._bus_length, self._up = connections, bus_length, up

    def collect(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily("message_push_connections_total", "Streams open now.", labels=["transport"])
        for transport, number in self._connections().items():
            connections.add_metric([transport], number)
        yield connections
        yield GaugeMetricFamily("message_push_bus_length", "Messages that the bus retains.", value=self._bus_length())
        yield GaugeMetricFamily("message_push_up", "Whether messages are delivered.", value=float(self._up()))
