"""What every keeper of statistics promises. Its own test module derives from `StatisticsContract` and
says how to open one.
"""

import asyncio
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msgpush.domain.counts import HOUR, KEPT, MINUTE, Counts, Step
from msgpush.domain.message import TYPES
from msgpush.domain.ports import Statistics
from msgpush.domain.tally import MAX_SERVICES
from tests.support.fakes import FakeClock

NOW = 1_800_000_000 // MINUTE  # the minute of a fake clock


def counts(*rows: tuple[str, str, int], latency: int = 0) -> Counts:
    """So many messages of these services and types were published, and twice as many delivered."""
    made = Counts()
    for service, type, number in rows:
        made.count(service, type, (number, 0, 2 * number, 0, 0, 0))
    made.latency[3] = latency
    return made


def together(parts: Iterable[Counts]) -> Counts:
    """The sum of counts."""
    sum = Counts()
    for each in parts:
        sum.add(each)
    return sum


def _made(rows: list[tuple[str, str, list[int]]], latency: list[int]) -> Counts:
    counts = Counts()
    for service, type, numbers in rows:
        counts.count(service, type, numbers)
    counts.observe(latency)
    return counts


made_counts = st.builds(
    _made,
    st.lists(
        st.tuples(
            st.sampled_from(["", "a", "b", "service.long-name_1", "other"]),
            st.sampled_from(["", *TYPES]),
            st.lists(st.integers(0, 2**40), min_size=6, max_size=6),
        ),
        max_size=6,
    ),
    st.lists(st.integers(0, 2**40), min_size=14, max_size=14),
)


async def all_of(statistics: Statistics, step: Step, now: int = NOW) -> dict[int, Counts]:
    """All that is kept."""
    last = now * MINUTE // step
    return await statistics.read(step, last - KEPT[step] // step - 5, last + 5)


class StatisticsContract:
    """Subclass it, and say how they are opened, empty."""

    def open(self, clock: FakeClock) -> AbstractAsyncContextManager[Statistics]:
        raise NotImplementedError

    async def test_what_is_added_is_read_by_minutes_and_by_hours(self) -> None:
        async with self.open(FakeClock()) as statistics:
            assert await all_of(statistics, MINUTE) == await all_of(statistics, HOUR) == {}
            one, other = counts(("a", "info", 3), latency=2), counts(("a", "error", 1), ("", "", 1))
            await statistics.add("n1", 1, {NOW - 1: one, NOW: other})
            await statistics.add("n2", 1, {NOW: one})
            assert await all_of(statistics, MINUTE) == {
                NOW - 1: one,
                NOW: together([other, one]),
            }
            total = together([one, other, one])
            hours = await all_of(statistics, HOUR)
            assert together(hours.values()) == total
            assert set(hours) == {(NOW - 1) // 60, NOW // 60}
            assert await statistics.read(MINUTE, NOW, NOW) == {NOW: together([other, one])}

    async def test_the_same_number_of_an_instance_counts_once(self) -> None:
        async with self.open(FakeClock()) as statistics:
            one = counts(("a", "info", 3))
            for _ in range(3):
                await statistics.add("n1", 1, {NOW: one})
            await statistics.add("n2", 1, {NOW: one})
            assert (await all_of(statistics, MINUTE))[NOW] == together([one] * 2)
            await statistics.add("n1", 2, {NOW: one})
            await statistics.add("n1", 1, {NOW: one})
            assert (await all_of(statistics, MINUTE))[NOW] == together([one] * 3)
            assert together((await all_of(statistics, HOUR)).values()) == together([one] * 3)

    async def test_minutes_are_kept_for_a_day_and_hours_for_a_month(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as statistics:
            one = counts(("a", "info", 1))
            await statistics.add("n", 1, {NOW: one})
            for step, minutes in ((MINUTE, 24 * 60), (HOUR, 30 * 24 * 60)):
                clock.time = 1_800_000_000.0 + 60 * minutes
                now = NOW + minutes
                await statistics.add("n", minutes, {now: one})
                assert len(await all_of(statistics, step, now)) >= 2
            clock.time = 1_800_000_000.0 + KEPT[HOUR] + 3600
            await statistics.add("n", 10**6, {int(clock.time) // 60: one})
            assert NOW // 60 not in await all_of(statistics, HOUR, int(clock.time) // 60)
            assert NOW not in await all_of(statistics, MINUTE, NOW)

    async def test_what_comes_too_late_for_its_minute_still_counts_for_its_hour(self) -> None:
        async with self.open(FakeClock()) as statistics:
            one, old, older = (
                counts(("a", "info", 1)),
                NOW - KEPT[MINUTE] // MINUTE - 1,
                NOW - KEPT[HOUR] // MINUTE - 60,
            )
            await statistics.add("n", 1, {older: one, old: one})
            assert await all_of(statistics, MINUTE) == {}
            assert await all_of(statistics, HOUR) == {old // 60: one}

    async def test_a_clock_that_is_ahead_counts_in_the_present(self) -> None:
        async with self.open(FakeClock()) as statistics:
            one = counts(("a", "info", 1))
            await statistics.add("n", 1, {NOW + 10_000: one, NOW: one})
            assert await all_of(statistics, MINUTE) == {NOW: together([one, one])}

    async def test_of_a_thousand_services_a_hundred_are_told_apart(self) -> None:
        async with self.open(FakeClock()) as statistics:
            number = 0
            for instance in ("n1", "n2"):
                for start in range(0, 1000, 100):
                    number += 1
                    rows = [(f"{instance}-{n}", "info", 1) for n in range(start, start + 100)]
                    await statistics.add(instance, number, {NOW - number: counts(*rows)})
            for step in (MINUTE, HOUR):
                found = together((await all_of(statistics, step)).values())
                assert len(found.services) == MAX_SERVICES + 1
                assert sum(row[0] for row in found.services.values()) == 2000
                assert found.services["other"][0] == 1900
                assert found.total() == [2000, 0, 4000, 0, 0, 0]

    async def test_a_service_that_nothing_is_kept_of_makes_room_for_another(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as statistics:
            rows = [(f"s{n}", "info", 1) for n in range(MAX_SERVICES)]
            await statistics.add("n", 1, {NOW: counts(*rows)})
            clock.advance(20 * 86_400)
            now = int(clock.time) // MINUTE
            await statistics.add("n", 2, {now: counts(("new", "info", 1), *rows[:50])})
            assert set((await statistics.read(MINUTE, now, now))[now].services) == {
                "other",
                *(name for name, _, _ in rows[:50]),
            }
            clock.advance(20 * 86_400)
            now = int(clock.time) // MINUTE
            await statistics.add("n", 3, {now: counts(("new", "info", 1))})
            found = await all_of(statistics, HOUR, now)
            assert found[now // 60].services == {"new": [1, 0, 2, 0, 0, 0]}
            kept = together(found.values()).services
            assert set(kept) == {"new", "other", *(name for name, _, _ in rows[:50])}

    async def test_after_a_long_absence_nothing_old_is_left(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as statistics:
            one = counts(("a", "info", 1))
            await statistics.add("n", 1, {NOW - n: one for n in range(60)})
            clock.advance(300 * 86_400)
            now = int(clock.time) // MINUTE
            await statistics.add("n", 2, {now: one})
            assert await all_of(statistics, MINUTE, now) == {now: one}
            assert await statistics.read(MINUTE, NOW - 60, NOW) == {}

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(
        added=st.lists(
            st.tuples(
                st.sampled_from(["n1", "n2", "n3"]),
                st.dictionaries(st.integers(NOW - 200, NOW), made_counts, max_size=3),
                st.integers(1, 3),
            ),
            max_size=8,
        )
    )
    def test_whatever_is_added_adds_up(
        self, added: list[tuple[str, dict[int, Counts], int]]
    ) -> None:
        async def run() -> None:
            expected: dict[int, Counts] = {}
            async with self.open(FakeClock()) as statistics:
                for number, (source, minutes, times) in enumerate(added, 1):
                    for _ in range(times):
                        await statistics.add(source, number, minutes)
                    for minute, each in minutes.items():
                        expected.setdefault(minute, Counts()).add(each)
                found = await all_of(statistics, MINUTE)
                hours = await all_of(statistics, HOUR)
            assert {place: _sorted(each) for place, each in found.items()} == {
                place: _sorted(each) for place, each in expected.items()
            }
            assert _sorted(together(hours.values())) == _sorted(together(expected.values()))

        asyncio.run(run())


def _sorted(counts: Counts) -> tuple[object, ...]:
    return sorted(counts.types.items()), sorted(counts.services.items()), counts.latency
