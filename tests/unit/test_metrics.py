"""What Prometheus is told of several workers: one service, whichever of them it asks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families

from msgpush.adapters.metrics import MAX_SERVICES, Gauges, Metrics, Shared
from msgpush.domain.errors import Malformed
from msgpush.domain.message import Entry
from msgpush.domain.position import ZERO, Position
from tests.support.fakes import make


class Process:
    """A worker's metrics, as its process would make them."""

    def __init__(self, directory: Path, number: int, *, up: bool = True) -> None:
        self.connections, self.up = 0, up
        self.shared = Shared.join(str(directory), number)
        self.metrics = Metrics(clock=lambda: 1_800_000_001.0)
        gauges = Gauges(
            lambda: {"sse": self.connections}, lambda: 7, lambda: 0, lambda: 5, lambda: self.up
        )
        self.metrics.registry.register(gauges)
        self.shared.refresh()

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of what a scrape here finds; None where it finds nothing."""
        families = text_string_to_metric_families(self.metrics.text().decode())
        samples = [sample for family in families for sample in family.samples]
        assert not any("pid" in sample.labels for sample in samples)
        found = [
            each.value
            for each in samples
            if each.name == name and labels.items() <= each.labels.items()
        ]
        return sum(found) if found else None


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(Shared.DIRECTORY, str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setattr(Shared, "joined", None)
    yield tmp_path
    values.close_all_multiprocess_files()  # type: ignore[no-untyped-call]


def test_every_worker_tells_the_sum_of_all_counters(directory: Path) -> None:
    one, two = Process(directory, 1), Process(directory, 2)
    one.metrics.accepted([make("1", "a"), make("2", "a")])
    two.metrics.accepted([make("3", "a"), make("4", "a", service="others")])
    two.metrics.rejected(Malformed("no"), None)
    for asked in (one, two):
        assert asked.value("message_push_messages_sent_total", service="tests", type="info") == 3
        assert asked.value("message_push_messages_sent_total") == 4
        assert asked.value("message_push_messages_failed_total", reason="malformed") == 1


def test_gauges_are_of_the_workers_that_run(directory: Path) -> None:
    one, two = Process(directory, 1), Process(directory, 2)
    one.connections, two.connections, two.up = 3, 4, False
    two.shared.refresh()
    assert one.value("message_push_connections_total", transport="sse") == 7
    assert one.value("message_push_bus_length") == 7
    assert one.value("message_push_up") == 0
    Shared.forget(str(directory), 2)
    assert one.value("message_push_connections_total", transport="sse") == 3
    assert one.value("message_push_up") == 1


def test_a_successor_goes_on_where_its_predecessor_ended(directory: Path) -> None:
    one, former = Process(directory, 1), Process(directory, 2)
    former.connections = 5
    former.metrics.accepted([make("1", "a")])
    former.shared.refresh()
    Shared.forget(str(directory), 2)
    assert one.value("message_push_messages_sent_total") == 1
    successor = Process(directory, 2)
    successor.metrics.accepted([make("2", "a")])
    for asked in (one, successor):
        assert asked.value("message_push_messages_sent_total") == 2
        assert asked.value("message_push_connections_total") == 0
    assert len(list(directory.glob("counter_*"))) == 1


def test_successors_do_not_bring_services_without_end(directory: Path) -> None:
    for life in range(3):
        metrics = Process(directory, 1).metrics
        metrics.accepted([make(None, "a", service=f"s{life}-{n}") for n in range(MAX_SERVICES)])
    process = Process(directory, 2)
    assert process.value("message_push_messages_sent_total") == 3 * MAX_SERVICES
    assert process.value("message_push_messages_sent_total", service="other") == 2 * MAX_SERVICES


def test_what_became_of_messages_that_asked_is_counted_by_service_and_reason(
    directory: Path,
) -> None:
    one, two = Process(directory, 1), Process(directory, 2)
    one.metrics.acknowledged("mail", "info", 0.3)
    two.metrics.acknowledged("mail", "info", 700.0)
    two.metrics.acknowledged("chat", "info", 0.3)
    one.metrics.redelivered([make("1", "a"), make("2", "a", service="mail")])
    two.metrics.redelivered([make("1", "a")])
    one.metrics.died("mail", "info", "expired")
    two.metrics.died("mail", "info", "deliveries")
    two.metrics.buried("mail")
    for asked in (one, two):
        seconds = "message_push_acknowledged_seconds"
        assert asked.value(f"{seconds}_count", service="mail") == 2
        assert asked.value(f"{seconds}_bucket", service="mail", le="0.5") == 1
        assert asked.value(f"{seconds}_bucket", service="mail", le="900.0") == 2
        assert asked.value("message_push_redeliveries_total", service="tests") == 2
        assert asked.value("message_push_redeliveries_total", service="mail") == 1
        for reason in ("expired", "deliveries", "removed"):
            dead = {"service": "mail", "reason": reason}
            assert asked.value("message_push_dead_letters_total", **dead) == 1


def test_what_waits_for_acknowledgements_is_counted_once_however_many_workers_tell_it(
    directory: Path,
) -> None:
    one, two = Process(directory, 1), Process(directory, 2)
    for asked in (one, two):
        assert asked.value("message_push_pending_acknowledgements") == 5


def test_services_that_ask_for_acknowledgements_are_as_bounded_as_others(directory: Path) -> None:
    process = Process(directory, 1)
    for number in range(MAX_SERVICES + 7):
        process.metrics.acknowledged(f"s{number}", "info", 1.0)
    for number in range(MAX_SERVICES + 7):
        process.metrics.died(f"s{number}", "info", "expired")
    assert process.value("message_push_acknowledged_seconds_count", service="other") == 7
    assert process.value("message_push_dead_letters_total", service="other") == 7
    assert process.value("message_push_dead_letters_total", service="s0") == 1


def test_a_duration_falls_into_the_same_bucket_whoever_measured_it(directory: Path) -> None:
    one, two = Process(directory, 1), Process(directory, 2)
    entry = Entry(
        Position(1_800_000_000_000, 0), ZERO, ("a",), "info", "s", 1_900_000_000_000, b"{}"
    )
    for process in (one, two):
        process.metrics.delivered([entry], 1)
    assert one.value("message_push_message_duration_seconds_count") == 2
    assert one.value("message_push_message_duration_seconds_sum") == 2.0
    assert one.value("message_push_message_duration_seconds_bucket", le="0.5") == 0
    assert one.value("message_push_message_duration_seconds_bucket", le="1.0") == 2


def test_workers_whose_supervisor_has_gone_leave_no_files(directory: Path) -> None:
    one, two = Process(directory, 1), Process(directory, 2)
    one.shared.leave()
    assert two.value("message_push_up") == 1
    two.shared.leave()
    assert not directory.exists()
