"""Statistics: what a tally counts adds up, whenever it is added, and is packed and told without loss."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgpush.adapters.memory.statistics import MemoryStatistics
from msgpush.domain import statistics as module
from msgpush.domain.counts import (
    HOUR,
    KEPT,
    MINUTE,
    Counts,
    counted,
    pack,
    quantile,
    unpack,
)
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.observer import Observer, Observers
from msgpush.domain.ports import Statistics
from msgpush.domain.statistics import Recording
from msgpush.domain.tally import LATENCY, MAX_SERVICES, Tally
from tests.contracts.statistics import NOW, StatisticsContract, all_of, made_counts, together
from tests.support.fakes import FakeClock, make
from tests.support.observer import Recorder


class TestMemoryStatistics(StatisticsContract):
    @asynccontextmanager
    async def open(self, clock: FakeClock) -> AsyncIterator[Statistics]:
        yield MemoryStatistics(clock.now)


class Moody(MemoryStatistics):
    """Does what it is asked, or doesn't, and says that it may not have."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock.now)
        self.moods: list[str] = []
        self.calls = 0

    async def add(self, source: str, number: int, minutes: Mapping[int, Counts]) -> None:
        self.calls += 1
        mood = self.moods.pop(0) if self.moods else "well"
        if mood != "away":
            await super().add(source, number, minutes)
        if mood != "well":
            raise BusUnavailable("no answer")


def publish(tally: Tally, service: str, number: int, type: str = "info") -> None:
    tally.accepted([make(None, "c", service=service, type=type) for _ in range(number)])


# Counts


@given(made_counts)
def test_what_is_packed_is_unpacked_as_it_was(counts: Counts) -> None:
    names = [name for name in counts.services if name not in ("", "other")]
    packed = pack(counts, names.index)
    assert unpack(packed, dict(enumerate(names))) == counts


def test_a_service_whose_name_is_not_known_is_among_the_others() -> None:
    counts = Counts()
    counts.count("a", "info", (1, 2, 3, 4, 5, 6))
    counts.count("b", "info", (1, 0, 0, 0, 0, 0))
    assert unpack(pack(counts, "ab".index), {}).services == {"other": [2, 2, 3, 4, 5, 6]}


def test_a_type_of_a_later_release_is_among_the_others() -> None:
    counts = Counts()
    counts.count("a", "novel", (1, 2, 3, 4, 5, 6))
    assert unpack(pack(counts, "a".index), {0: "a"}).types == {"other": [1, 2, 3, 4, 5, 6]}


def test_a_minute_of_one_service_is_packed_into_a_few_dozen_bytes() -> None:
    counts = Counts()
    counts.count("importer", "progress", (120, 0, 2400, 0, 0, 0))
    assert len(pack(counts, lambda _: 0)) < 40


@given(st.lists(st.floats(0.00001, 9.9), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    tally = Tally()
    for value in values:
        tally.latency.observe(value)
    found = quantile(tally.latency.counts, share)
    assert found is not None
    rank = max(0, -(-share * len(values) // 1) - 1)
    true = sorted(values)[int(min(rank, len(values) - 1))]
    bounds = [0.0, *LATENCY]
    near = [(low, high) for low, high in zip(bounds, LATENCY, strict=False) if low <= found <= high]
    assert any(low < true <= high or low <= true <= high for low, high in near)


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    counts = [0] * (len(LATENCY) + 1)
    assert quantile(counts, 0.5) is None
    counts[1] = 10  # over 1 ms, up to 2.5
    assert quantile(counts, 0.5) == pytest.approx(0.00175)
    counts[-1] = 90
    assert quantile(counts, 0.5) == 10.0, "it is not known how much more it was"


# Recording


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("publish"), st.sampled_from("abc"), st.integers(1, 5)),
            st.tuples(st.just("flush"), st.sampled_from(["well", "away", "lost"]), st.just(0)),
            st.tuples(st.just("pass"), st.just(""), st.integers(1, 200)),
        ),
        max_size=40,
    )
)
async def test_the_differences_add_up_whenever_they_are_added(
    steps: list[tuple[str, str, int]],
) -> None:
    clock, published = FakeClock(), 0
    tally, statistics = Tally(clock.now), Moody(clock)
    recording = Recording(tally, statistics, "n", clock.now)
    expected: dict[str, int] = {}
    for what, which, number in steps:
        if what == "publish":
            publish(tally, which, number)
            expected[which] = expected.get(which, 0) + number
            published += number
        elif what == "pass":
            clock.advance(number)
        else:
            statistics.moods = [which]
            try:
                await recording.flush()
            except BusUnavailable:
                assert which != "well"
            statistics.moods = []
    await recording.flush()
    assert recording.waiting == 0
    now = int(clock.time) // MINUTE
    for step in (MINUTE, HOUR):
        sum = together((await all_of(statistics, step, now)).values())
        assert {name: row[0] for name, row in sum.services.items()} == expected
        assert sum.total()[0] == published


async def test_an_interval_counts_in_the_minute_in_which_it_began() -> None:
    clock = FakeClock(NOW * 60 + 50.0)
    tally, statistics = Tally(clock.now), MemoryStatistics(clock.now)
    recording = Recording(tally, statistics, "n", clock.now)
    publish(tally, "a", 1)
    clock.advance(10)
    await recording.flush()
    publish(tally, "a", 2)
    clock.advance(10)
    await recording.flush()
    found = await all_of(statistics, MINUTE, NOW + 1)
    assert {place: each.total()[0] for place, each in found.items()} == {NOW: 1, NOW + 1: 2}


async def test_nothing_is_asked_for_while_nothing_happens() -> None:
    clock = FakeClock()
    statistics = Moody(clock)
    recording = Recording(Tally(clock.now), statistics, "n", clock.now)
    await recording.flush()
    assert statistics.calls == 0


async def test_what_waits_stays_small_however_long_the_store_is_away() -> None:
    clock = FakeClock()
    tally, statistics = Tally(clock.now), Moody(clock)
    recording = Recording(tally, statistics, "n", clock.now)
    minutes = 40 * 24 * 60
    for _ in range(minutes // 30):
        publish(tally, "a", 1)
        clock.advance(1800)
        statistics.moods = ["away"]
        with pytest.raises(BusUnavailable):
            await recording.flush()
    assert recording.waiting <= KEPT[MINUTE] // MINUTE + KEPT[HOUR] // HOUR + 60
    statistics.moods = []
    await recording.flush()
    found = await all_of(statistics, HOUR, int(clock.time) // MINUTE)
    # Two an hour, and of the month what is kept.
    assert abs(sum(each.total()[0] for each in found.values()) - 2 * KEPT[HOUR] // HOUR) <= 4


async def test_the_last_differences_are_added_at_the_end() -> None:
    clock = FakeClock()
    tally, statistics = Tally(clock.now), MemoryStatistics(clock.now)
    async with Recording(tally, statistics, "n", clock.now):
        publish(tally, "a", 3)
    assert (await all_of(statistics, MINUTE))[NOW].total()[0] == 3


async def test_an_end_without_the_store_is_no_failure_and_says_what_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    tally, statistics = Tally(clock.now), Moody(clock)
    async with Recording(tally, statistics, "n", clock.now):
        publish(tally, "a", 3)
        statistics.moods = ["away"]
    assert "the statistics of 1 minutes are lost" in caplog.text


async def test_it_is_added_every_ten_seconds_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    tally, statistics = Tally(), Moody(FakeClock(time.time()))
    async with Recording(tally, statistics, "n"):
        statistics.moods = ["away", "lost"]
        publish(tally, "a", 3)
        async with asyncio.timeout(5):
            while statistics.calls < 3:  # noqa: ASYNC110 - a task of its own calls
                await asyncio.sleep(0.005)
    now = int(time.time()) // 60
    sum = together((await all_of(statistics, MINUTE, now)).values())
    assert sum.total()[0] == 3


async def test_a_thousand_services_do_not_grow_it() -> None:
    clock = FakeClock()
    tally, statistics = Tally(clock.now), MemoryStatistics(clock.now)
    recording = Recording(tally, statistics, "n", clock.now)
    for n in range(1000):
        publish(tally, f"s{n}", 1)
    await recording.flush()
    found = (await all_of(statistics, MINUTE))[NOW]
    assert len(found.services) == MAX_SERVICES + 1
    assert found.services["other"][0] == 900


# The tally


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["info", "error"]))))
def test_a_batch_is_counted_whatever_it_is_mixed_of(batch: list[tuple[str, str]]) -> None:
    tally = Tally()
    tally.accepted([make(None, "c", service=service, type=type) for service, type in batch])
    assert {key: row.published for key, row in tally.rows.items()} == Counter(batch)


# Observers


def test_several_observers_are_told_and_one_alone_is_told_directly() -> None:
    tally, recorder = Tally(), Recorder()
    both = Observers(tally, recorder)
    draft = make("m1", "a")
    both.accepted([draft])
    assert recorder.events == [("accepted", "m1")]
    assert counted(tally.rows["tests", "info"])[0] == 1
    both.refused("keys")
    assert recorder.events[-1] == ("refused", "keys")
    both.buried("nobody listens")
    assert Observers(tally).accepted == tally.accepted
    assert Observers(Observer(), tally).acknowledged == tally.acknowledged
