"""What is told of registrations: in metrics, and by the API; with workers, by each for all."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from msgpush.adapters.files import replace
from msgpush.adapters.metrics.families import Figures
from msgpush.adapters.registry.registration import Report
from msgpush.domain.message import format_seconds
from msgpush.domain.ports import RegistryState

Reports = Callable[[], Sequence[Report]]

_FILE = "registry"


class ReportFile:
    """The reports of a supervisor, as a file beside its workers' metrics."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory) / _FILE

    def write(self, reports: Sequence[Report]) -> None:
        """Have others read these from now on."""
        with contextlib.suppress(OSError):  # the directory is full, or goes
            replace(self._path, msgspec.json.encode(reports))

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


def of_registries(reports: Sequence[Report]) -> Figures:
    """The metrics of registrations."""
    return {
        "message_push_registered": {
            (each.kind,): float(each.state == "registered") for each in reports
        },
        "message_push_registry_failures_total": {(each.kind,): each.failures for each in reports},
    }


def summary(reports: Sequence[Report]) -> RegistryState | None:
    """The reports as the API tells them of an instance: of several, the one that stands worst.

    None: the instance is registered nowhere, since no registry is set."""
    if not reports:
        return None
    worst = next((each for each in reports if each.state != "registered"), reports[0])
    return RegistryState(
        kind=",".join(each.kind for each in reports),
        state=worst.state,
        since=format_seconds(worst.since),
        error=worst.error,
    )
