"""Metrics: each moves when its cause is made; several workers speak as one service; all of it is
text that Prometheus reads, and stays bounded.
"""

import asyncio
import errno
import gc
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.adapters.metrics.collector import Metrics
from msgpush.adapters.metrics.families import FAMILIES, Figures, Series
from msgpush.adapters.metrics.shared import Shared
from msgpush.adapters.metrics.sources import Process, of_service, of_tally
from msgpush.adapters.metrics.text import Texts
from msgpush.domain.connection import NOW, Connection, Start, Subscription
from msgpush.domain.errors import BusUnavailable, Denied, Malformed, MsgpushError, TooLarge
from msgpush.domain.instances import Pulse
from msgpush.domain.message import Entry, parse
from msgpush.domain.observer import Observer, Observers
from msgpush.domain.ports import ClientInfo
from msgpush.domain.position import ZERO, Position
from msgpush.domain.service import Push
from msgpush.domain.tally import MAX_SERVICES, Tally
from tests.support.fakes import FakeClock, FakeSink, PlainView, make
from tests.support.observer import Recorder


def value(text: str, name: str, **labels: str) -> float | None:
    """The sum of what Prometheus finds in a text; None where it finds nothing."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(found) if found else None


class Worker:
    """A worker's metrics, as its process would make them."""

    def __init__(self, directory: Path, number: int) -> None:
        self.streams, self.up = 0, True
        self.tally = Tally(clock=lambda: 1_800_000_001.0)
        self.shared = Shared(str(directory), number)
        self.metrics = Metrics(lambda: of_tally(self.tally), self._gauges, shared=self.shared)
        self.tell()

    def tell(self) -> None:
        self.shared.write(self.metrics.figures())

    async def value(self, name: str, **labels: str) -> float | None:
        text = (await self.metrics.text()).decode()
        return value(text, f"message_push_{name}", **labels)

    def _gauges(self) -> Figures:
        return {
            "message_push_connections_total": {("sse",): self.streams},
            "message_push_bus_length": {(): 7},
            "message_push_pending_acknowledgements": {(): 5},
            "message_push_up": {(): float(self.up)},
        }


def files(directory: Path) -> tuple[int, int]:
    """How many workers have files, and their bytes."""
    own = [*directory.glob("*.json")]
    return len(own), sum(each.stat().st_size for each in own)


async def test_every_worker_tells_the_sum_of_all_counters(tmp_path: Path) -> None:
    one, two = Worker(tmp_path, 1), Worker(tmp_path, 2)
    one.tally.accepted([make("1", "a"), make("2", "a")])
    two.tally.accepted([make("3", "a"), make("4", "a", service="others")])
    two.tally.rejected(Malformed("no"), None)
    one.tell()
    two.tell()
    for asked in (one, two):
        assert await asked.value("messages_sent_total", service="tests", type="info") == 3
        assert await asked.value("messages_sent_total") == 4
        assert await asked.value("messages_failed_total", reason="malformed") == 1


async def test_what_one_worker_has_told_no_other_one_takes_back(tmp_path: Path) -> None:
    one, two = Worker(tmp_path, 1), Worker(tmp_path, 2)
    one.tally.accepted([make("1", "a")])
    assert await one.value("messages_sent_total") == 1
    # Without a second in between: one is killed right after it was asked.
    Shared.forget(str(tmp_path), 1)
    assert await two.value("messages_sent_total") == 1


async def test_gauges_are_of_the_workers_that_run(tmp_path: Path) -> None:
    one, two = Worker(tmp_path, 1), Worker(tmp_path, 2)
    one.streams, two.streams, two.up = 3, 4, False
    two.tell()
    assert await one.value("connections_total", transport="sse") == 7
    assert await one.value("bus_length") == 7
    assert await one.value("pending_acknowledgements") == 5
    assert await one.value("up") == 0
    Shared.forget(str(tmp_path), 2)
    assert await one.value("connections_total", transport="sse") == 3
    assert await one.value("up") == 1


async def test_a_successor_goes_on_where_its_predecessor_ended(tmp_path: Path) -> None:
    one, former = Worker(tmp_path, 1), Worker(tmp_path, 2)
    former.streams = 5
    former.tally.accepted([make("1", "a")])
    former.tally.delivered([entry()], 1)
    former.tell()
    Shared.forget(str(tmp_path), 2)
    assert await one.value("messages_sent_total") == 1
    successor = Worker(tmp_path, 2)
    successor.tally.accepted([make("2", "a")])
    successor.tally.delivered([entry()], 1)
    successor.tell()
    for asked in (one, successor):
        assert await asked.value("messages_sent_total") == 2
        assert await asked.value("message_duration_seconds_count") == 2
        assert await asked.value("connections_total") == 0
    assert files(tmp_path)[0] == 2


async def test_neither_workers_nor_successors_bring_services_without_end(tmp_path: Path) -> None:
    most = 0
    for life in range(4):
        process = Worker(tmp_path, life % 2 + 1)
        process.tally.accepted(
            [make(None, "a", service=f"s{life}-{n}") for n in range(MAX_SERVICES)]
        )
        process.tell()
        number, size = files(tmp_path)
        most = most or size
        assert number <= 2
        assert size < 3 * most
    process = Worker(tmp_path, 3)
    assert await process.value("messages_sent_total") == 4 * MAX_SERVICES
    assert await process.value("messages_sent_total", service="other") == 3 * MAX_SERVICES
    text = (await process.metrics.text()).decode()
    assert text.count("message_push_messages_sent_total{") == MAX_SERVICES + 1


async def test_a_duration_falls_into_the_same_bucket_whoever_measured_it(tmp_path: Path) -> None:
    one, two = Worker(tmp_path, 1), Worker(tmp_path, 2)
    for process in (one, two):
        process.tally.delivered([entry()], 1)
        process.tell()
    duration = "message_duration_seconds"
    assert await one.value(f"{duration}_count") == 2
    assert await one.value(f"{duration}_sum") == 2.0
    assert await one.value(f"{duration}_bucket", le="0.5") == 0
    assert await one.value(f"{duration}_bucket", le="1.0") == 2
    assert await one.value(f"{duration}_bucket", le="+Inf") == 2


def test_workers_whose_supervisor_has_gone_leave_no_files(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    one, two = Worker(directory, 1), Worker(directory, 2)
    one.tally.accepted([make("1", "a")])
    one.tell()
    one.shared.leave()
    assert [each.name for each in directory.glob("*.json")] == ["2.json"]
    two.shared.leave()
    assert not directory.exists()


async def test_a_file_of_somebody_else_is_passed_over(tmp_path: Path) -> None:
    one = Worker(tmp_path, 1)
    (tmp_path / "2.json").write_text('{"counted": 1}')
    (tmp_path / "3.json").write_text('{"counted":{"later_release":[[[],1.0]]},"now":{}}')
    assert await one.value("up") == 1


async def test_a_worker_tells_the_others_while_it_runs(tmp_path: Path) -> None:
    one, two = Worker(tmp_path, 1), Worker(tmp_path, 2)
    one.tally.accepted([make("1", "a")])
    async with one.metrics:
        await asyncio.sleep(0)
        assert await two.value("messages_sent_total") == 1
        one.tally.accepted([make("2", "a")])
    assert await two.value("messages_sent_total") == 2


async def test_where_nothing_can_be_written_a_worker_tells_its_own_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    one = Worker(directory, 1)
    one.tally.accepted([make("1", "a")])
    one.tell()
    away = directory.rename(tmp_path / "away")
    one.tally.accepted([make("2", "a")])
    assert await one.value("messages_sent_total") == 2
    assert await one.value("messages_sent_total") == 2
    (line,) = caplog.records
    assert line.getMessage().startswith("a worker's metrics can't be shared: ")
    assert not line.exc_info
    away.rename(directory)
    two = Worker(directory, 2)
    assert await one.value("messages_sent_total") == 2
    assert await two.value("messages_sent_total") == 2


def test_a_worker_that_ends_while_nothing_can_be_written_ends_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Worker(tmp_path, 1)
    monkeypatch.setattr(Path, "write_bytes", no_space)
    Shared.forget(str(tmp_path), 1)


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


# What is counted


def entry(ms: int = 1_800_000_000_000, type: str = "info", service: str = "s") -> Entry:
    return Entry(Position(ms, 0), ZERO, ("a",), type, service, 1_900_000_000_000, b"{}")


def test_messages_of_one_millisecond_that_are_written_together_are_timed_once() -> None:
    tally = Tally(clock=lambda: 1_800_000_001.0)
    later = entry(1_800_000_000_500)
    tally.delivered([entry(), entry(type="error"), entry(), later, later], 3)
    assert {key: sum(each.counts) for key, each in tally.durations.items()} == {
        ("s", "info"): 2,
        ("s", "error"): 1,
    }
    assert sum(tally.latency.counts) == 2
    assert tally.rows["s", "info"].delivered == 12


def test_what_became_of_messages_that_asked_is_counted_by_service_and_reason() -> None:
    tally = Tally()
    for service, seconds in (("mail", 0.3), ("mail", 700.0), ("chat", 0.3)):
        tally.acknowledged(service, "info", seconds)
    tally.redelivered([make("1", "a"), make("2", "a", service="mail")])
    tally.died("mail", "info", "expired")
    tally.died("mail", "info", "deliveries")
    tally.buried("mail")
    assert sum(tally.answers["mail"].counts) == 2
    assert tally.redeliveries == {"tests": 1, "mail": 1}
    assert tally.deaths == dict.fromkeys(
        [("mail", "expired"), ("mail", "deliveries"), ("mail", "removed")], 1
    )
    assert tally.rows["mail", "info"].dead == 2


def test_services_that_are_too_many_are_counted_together_whatever_they_do() -> None:
    tally = Tally(clock=lambda: 1_800_000_001.0)
    for number in range(MAX_SERVICES + 7):
        name = f"s{number}"
        tally.acknowledged(name, "info", 1.0)
        tally.died(name, "info", "expired")
        tally.buried(name)
        tally.delivered([entry(service=name)], 1)
        tally.redelivered([make("1", "a", service=name)])
        tally.rejected(TooLarge("it", 1), make("1", "a", service=name))
    assert sum(tally.answers["other"].counts) == 7
    assert tally.deaths["other", "expired"] == tally.redeliveries["other"] == 7
    for counts in (tally.rows, tally.answers, tally.durations, tally.failures, tally.redeliveries):
        assert len(counts) == MAX_SERVICES + 1
    assert len(tally.deaths) == 2 * (MAX_SERVICES + 1)


def test_who_may_publish_nothing_uses_up_no_names() -> None:
    tally = Tally()
    for number in range(MAX_SERVICES):
        tally.rejected(Denied("no"), make("1", "a", service=f"stranger{number}"))
    tally.accepted([make("1", "a", service="mine")])
    tally.rejected(Denied("no"), make("1", "a", service="mine"))
    assert {*tally.failures} == {("other", "info", "denied"), ("mine", "info", "denied")}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Malformed("x"), "malformed"),
        (BusUnavailable("x"), "unavailable"),
        (MsgpushError(), "other"),
    ],
)
def test_a_refused_message_is_counted_by_its_reason(error: MsgpushError, reason: str) -> None:
    tally = Tally()
    tally.rejected(error, None)
    assert tally.failures == {("", "", reason): 1}
    assert tally.rows["", ""].failed == 1


# A whole service, in this process


class Served:
    """A `Push` on the embedded bus, whose metrics are read as Prometheus reads them."""

    def __init__(self) -> None:
        self.clock, self.tally = FakeClock(), Tally()
        self.pulse = Pulse(self.tally)
        self.process = Process(self.pulse)
        self.bus = MemoryBus(clock=self.clock.now, history_length=3)
        self.push = Push(
            self.bus,
            observer=self.tally,
            clock=self.clock.now,
            monotonic=self.clock.monotonic,
            max_connections=7,
        )
        service = of_service(self.push, self.bus, self.tally, kind="memory", limit=0)
        self.metrics = Metrics(lambda: of_tally(self.tally), service, self.process.figures)

    async def value(self, name: str, **labels: str) -> float | None:
        text = (await self.metrics.text()).decode()
        return value(text, f"message_push_{name}", **labels)

    async def publish(self, number: int = 1) -> None:
        for _ in range(number):
            await self.push.publish(parse(b'{"type":"info","service":"s","channels":["a"]}'))

    def listen(self, start: Start = NOW, transport: str = "sse") -> Connection:
        info = ClientInfo(None, transport, "", "", 0.0)
        connection = Connection(f"c{len(self.push.connections)}", FakeSink(), info)
        self.push.subscribe(connection, Subscription(frozenset({"a"}), PlainView()), start)
        return connection

    async def beat(self) -> None:
        """Wait until the loop's lag has been looked at once more."""
        before = sum(self.pulse.lag.counts)
        async with asyncio.timeout(5):
            while sum(self.pulse.lag.counts) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def until(self, name: str, expected: float, **labels: str) -> None:
        async with asyncio.timeout(5):
            while await self.value(name, **labels) != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served()
    async with made.push, made.pulse, made.process, made.metrics:
        yield made


async def test_streams_are_counted_by_transport_state_and_end(served: Served) -> None:
    sse, ws = served.listen(), served.listen(transport="ws")
    assert await served.value("connections_total") == 2
    assert await served.value("connections_total", transport="ws") == 1
    assert await served.value("streams", transport="sse", state="live") == 1
    sink = sse.sink
    assert isinstance(sink, FakeSink)
    sink.full = True
    await served.publish()
    await served.until("streams", 1, transport="sse", state="behind")
    assert await served.value("streams", state="live") == 1
    served.push._hub.close(sse, "slow", reconnect=True)
    served.push.unsubscribe(ws)
    assert await served.value("streams") == 0
    assert await served.value("streams_opened_total", transport="sse") == 1
    assert await served.value("streams_closed_total", transport="sse", reason="slow") == 1
    assert await served.value("streams_closed_total", transport="ws", reason="gone") == 1
    assert await served.value("streams_closed_total") == 2
    assert await served.value("connections_limit") == 7


async def test_bytes_are_counted_while_a_stream_is_open_and_stay_when_it_ends(
    served: Served,
) -> None:
    connection = served.listen()
    await served.publish()
    await served.until("messages_delivered_total", 1, service="s", type="info")
    written = await served.value("bytes_written_total", transport="sse")
    assert written == connection.bytes_sent > 0
    served.push.unsubscribe(connection)
    assert await served.value("bytes_written_total", transport="sse") == written


async def test_publishing_sweeping_and_the_bus_are_timed(served: Served) -> None:
    served.listen()
    await served.publish(3)
    await served.until("swept_messages_total", 3)
    assert await served.value("publish_seconds_count") == 3
    assert await served.value("messages_sent_total", service="s") == 3
    assert (await served.value("sweep_seconds_count") or 0) > 0
    await served.until("bus_round_trip_seconds_count", 1)
    assert (await served.value("bus_length") or 0) >= 3
    assert await served.value("bus_limit") == 0
    assert await served.value("tail_lag_seconds") == 0


async def test_a_sign_of_life_that_does_not_come_back_shows_as_lag(served: Served) -> None:
    await served.until("bus_round_trip_seconds_count", 1)
    served.push._delivery._probed = served.clock.monotonic()
    served.clock.advance(4.0)
    assert await served.value("tail_lag_seconds") == 4.0


async def test_replays_and_gaps_are_counted_by_where_from_and_why(served: Served) -> None:
    await served.publish()
    served.listen(Start("earliest"))
    await served.until("replays_total", 1)
    await served.publish(5)  # of which the history keeps three
    await served.until("replays_total", 1)
    served.listen(Start("0-1", reset=True))
    await served.until("gaps_total", 1, reason="reset")


async def test_readiness_and_the_drain_show(served: Served) -> None:
    await served.until("ready", 1)
    assert await served.value("up") == 1
    assert await served.value("draining") == 0
    await served.push.drain(0.0)
    assert await served.value("draining") == 1
    assert await served.value("ready") == 0
    assert await served.value("build_info", bus="memory") == 1


async def test_the_process_shows_its_files_its_collector_and_its_loop(served: Served) -> None:
    before = await served.value("open_files") or 0
    with socket.socket(), socket.socket():
        assert await served.value("open_files") == before + 2
    assert (await served.value("open_files_limit") or 0) >= before
    collected = await served.value("gc_pause_seconds_count", generation="2") or 0
    gc.collect()
    assert await served.value("gc_pause_seconds_count", generation="2") == collected + 1
    await served.beat()
    assert (await served.value("loop_lag_seconds_count") or 0) >= 1
    assert (await served.value("start_time_seconds") or 0) > 1_000_000_000
    assert (await served.value("scrape_seconds") or 0) > 0


async def test_a_loop_that_is_held_up_shows_how_long(served: Served) -> None:
    await served.beat()
    before = served.pulse.lag.sum
    blocked = asyncio.get_running_loop().time() + 0.3
    while asyncio.get_running_loop().time() < blocked:
        pass
    await served.beat()
    assert served.pulse.lag.sum - before > 0.15
    assert served.pulse.loop_lag > 0.15


async def test_nothing_is_left_of_what_watches_the_process() -> None:
    before = len(gc.callbacks)
    async with Process(Pulse(Tally())):
        assert len(gc.callbacks) == before + 1
    assert len(gc.callbacks) == before


# The text


async def test_the_text_is_what_prometheus_reads_whatever_a_label_has() -> None:
    odd = 'a"b\\c\nd'
    text = (await Texts().render({"message_push_redeliveries_total": {(odd,): 3}})).decode()
    assert value(text, "message_push_redeliveries_total", service=odd) == 3
    assert "# TYPE message_push_redeliveries_total counter\n" in text


async def test_what_has_changed_since_the_last_text_is_told_as_it_is_now() -> None:
    texts = Texts()
    name, busy, idle = "message_push_publish_seconds", ("a", "info"), ("b", "info")
    for sent in (1, 2, 2, 5):
        figures: Figures = {
            "message_push_messages_sent_total": {busy: sent, idle: 7},
            name: {(): [*([float(sent)] * (len(FAMILIES[name].bounds) + 1)), 0.5 * sent]},
        }
        text = await texts.render(figures)
        assert text == await Texts().render(figures)
        assert value(text.decode(), "message_push_messages_sent_total", service="a") == sent
        assert value(text.decode(), "message_push_publish_seconds_sum") == 0.5 * sent
        assert text.count(b"# HELP") == 2
    assert b'service="b"' not in await texts.render({name: {(): [0.0] * 15}})


async def test_others_have_their_turn_while_a_long_text_is_made() -> None:
    series: Series = {(f"s{n}", "info"): [1.0] * 15 for n in range(3_000)}
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await Texts().render({"message_push_message_duration_seconds": series})
    task.cancel()
    assert turns > 3


async def test_a_source_that_is_added_later_is_among_the_metrics() -> None:
    metrics = Metrics()
    metrics.add(lambda: {"message_push_bus_limit": {(): 3}})
    assert value((await metrics.text()).decode(), "message_push_bus_limit") == 3


def test_no_label_takes_what_a_client_chooses_but_a_service() -> None:
    labels = {label for family in FAMILIES.values() for label in family.labels}
    known = {"transport", "state", "type", "reason", "from", "generation", "version", "python"}
    known |= {"kind", "outcome"}  # of pushes
    assert labels - known == {"service", "bus", "registry"}


# Observers


def test_several_observers_are_told_and_who_ignores_something_costs_nothing() -> None:
    tally, recorder = Tally(), Recorder()
    both = Observers(tally, recorder, Observer())
    both.refused("rate")
    assert tally.refusals == {"rate": 1}
    assert recorder.events == [("refused", "rate")]
    both.draining()
    assert recorder.events[-1] == ("draining", "")
    assert both.draining == recorder.draining  # no call in between
    both.swept(0.1, 2)
    assert tally.swept_messages == 2
