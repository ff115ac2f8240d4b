"""The text that Prometheus reads (its exposition format, version 0.0.4), by its official client."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from msgpush.adapters.metrics.families import FAMILIES, Family, Figures, Value

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LINES = 200  # about a millisecond of work, after which the loop gets its turn

_Row = tuple[tuple[str, ...], Value]


async def render(figures: Figures) -> bytes:
    """The text of some figures; others have their turn while it is made."""
    parts = []
    for name, family in FAMILIES.items():
        rows = [*figures.get(name, {}).items()]
        at_once = max(1, LINES // (len(family.bounds) + 3))
        for start in range(0, len(rows), at_once):
            text = generate_latest(_Slice(name, family, rows[start : start + at_once]))
            # What a metric is stands before its first line alone.
            parts.append(text if start == 0 else text.split(b"\n", 2)[2])
            await asyncio.sleep(0)
    return b"".join(parts)


class _Slice(Collector):
    """Some of a metric's values, as the client has them."""

    def __init__(self, name: str, family: Family, rows: Sequence[_Row]) -> None:
        self._name, self._family, self._rows = name, family, rows

    def collect(self) -> Iterator[Metric]:
        name, family = self._name, self._family
        if family.kind == "histogram":
            histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
            bounds = (*map(repr, map(float, family.bounds)), "+Inf")
            for labels, value in self._rows:
                assert isinstance(value, list)
                *counts, total = value
                buckets = zip(bounds, accumulate(counts), strict=True)
                histogram.add_metric(labels, [*buckets], sum_value=total)
            yield histogram
            return
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        metric = kind(name, family.help, labels=family.labels)
        for labels, value in self._rows:
            assert not isinstance(value, list)
            metric.add_metric(labels, value)
        yield metric
