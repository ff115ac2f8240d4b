"""The text that Prometheus reads (its exposition format, version 0.0.4), by its official client."""

import asyncio
import time
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from msgpush.adapters.metrics.families import FAMILIES, Family, Figures, Value

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SLICE = 0.001  # seconds of work after which the loop gets its turn


class Texts:
    """Makes the text of figures; others have their turn while it is made.

    The client takes 12 us a line, and of a hundred services few are busy. So the lines of what has
    not changed are kept: as many as there are labels, and these are bounded."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, tuple[str, ...]], tuple[Value, bytes, bytes]] = {}

    async def render(self, figures: Figures) -> bytes:
        """The text of some figures."""
        parts: list[bytes] = []
        until = time.monotonic() + SLICE
        for name, family in FAMILIES.items():
            for place, (labels, value) in enumerate(figures.get(name, {}).items()):
                head, lines = self._lines(name, family, labels, value)
                parts += (lines,) if place else (head, lines)
                if time.monotonic() >= until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + SLICE
        return b"".join(parts)

    def _lines(
        self, name: str, family: Family, labels: tuple[str, ...], value: Value
    ) -> tuple[bytes, bytes]:
        """What stands before all of a metric's values, and the lines of one of them."""
        made = self._made.get((name, labels))
        if made is None or made[0] != value:
            help, type, lines = generate_latest(_One(name, family, labels, value)).split(b"\n", 2)
            made = self._made[name, labels] = value, b"%b\n%b\n" % (help, type), lines
        return made[1], made[2]


class _One(Collector):
    """One value of a metric, as the client has it."""

    def __init__(self, name: str, family: Family, labels: tuple[str, ...], value: Value) -> None:
        self._name, self._family, self._labels, self._value = name, family, labels, value

    def collect(self) -> Iterator[Metric]:
        name, family, value = self._name, self._family, self._value
        if isinstance(value, list):
            histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
            *counts, total = value
            bounds = (*map(repr, map(float, family.bounds)), "+Inf")
            buckets = zip(bounds, accumulate(counts), strict=True)
            histogram.add_metric(self._labels, [*buckets], sum_value=total)
            yield histogram
            return
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        metric = kind(name, family.help, labels=family.labels)
        metric.add_metric(self._labels, value)
        yield metric
