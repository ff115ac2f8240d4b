"""What is told of registrations: in metrics, and by the API; with workers, by each for all."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from msgpush.adapters.registry.registration import Report

Reports = Callable[[], Sequence[Report]]

_FILE = "registry.json"


class ReportFile:
    """The reports of a supervisor, as a file beside its workers' metrics."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory) / _FILE

    def write(self, reports: Sequence[Report]) -> None:
        """Have others read these from now on."""
        new = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):  # the directory is full, or goes
            new.write_bytes(msgspec.json.encode(reports))
            os.replace(new, self._path)

    def read(self) -> list[Report]:
        """What was written last; empty before that."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[Report])
        except (OSError, msgspec.MsgspecError):
            return []

    def remove(self) -> None:
        """Leave nothing behind, where the supervisor can't any more."""
        with contextlib.suppress(OSError):
            self._path.unlink()


class RegistryMetrics(Collector):
    """The metrics of registrations, which are read off their reports."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        if not (reports := self._reports()):
            return
        registered = GaugeMetricFamily(
            "message_push_registered",
            "Whether a registry knows this instance.",
            labels=["registry"],
        )
        failures = CounterMetricFamily(
            "message_push_registry_failures",
            "Attempts to be registered, renewed or withdrawn that failed.",
            labels=["registry"],
        )
        for each in reports:
            registered.add_metric([each.kind], float(each.state == "registered"))
            failures.add_metric([each.kind], each.failures)
        yield registered
        yield failures


def summary(reports: Sequence[Report]) -> dict[str, Any] | None:
    """The reports as the API tells them of an instance: of several, the one that stands worst.

    None: the instance is registered nowhere, since no registry is set."""
    if not reports:
        return None
    worst = next((each for each in reports if each.state != "registered"), reports[0])
    since = datetime.fromtimestamp(worst.since, UTC).replace(tzinfo=None)
    return {
        "kind": ",".join(each.kind for each in reports),
        "state": worst.state,
        "since": f"{since.isoformat(timespec='milliseconds')}Z",
        "error": worst.error,
    }
