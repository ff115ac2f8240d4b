"""The log of streams: each that opens and ends, and no flood of them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.adapters.stream_log import MOST, StreamLog
from msgpush.domain.connection import NOW, Connection, Subscription
from msgpush.domain.ports import ClientInfo
from msgpush.domain.service import Push
from tests.support.fakes import FakeClock, FakeSink, PlainView


class Told:
    """A log of streams at a fake clock, whose timers a test lets ring."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.log = StreamLog(
            clock=self.clock.now,
            monotonic=self.clock.monotonic,
            later=lambda seconds, function: self.timers.append((seconds, function)),
        )

    def ring(self) -> None:
        ((seconds, function),) = self.timers
        self.timers.clear()
        self.clock.advance(seconds)
        function()


@pytest.fixture
def told() -> Iterator[Told]:
    yield Told()
    structlog.reset_defaults()


def connection(subject: str | None = "ann", at: float = 1_800_000_000.0) -> Connection:
    return Connection("c1", FakeSink(), ClientInfo(subject, "sse", "", "", at))


async def test_a_stream_is_logged_as_it_opens_and_as_it_ends(told: Told) -> None:
    push = Push(MemoryBus(), observer=told.log)
    one = connection()
    with capture_logs() as lines:
        push.subscribe(one, Subscription(frozenset({"a", "b", "broadcast"}), PlainView()), NOW)
        told.clock.advance(90.5)
        push._hub.close(one, "slow", reconnect=True)
    common = {"connection": "c1", "transport": "sse", "subject": "ann", "channels": 2}
    assert lines == [
        {"event": "a stream has opened", "log_level": "info", **common},
        {
            "event": "a stream has ended",
            "log_level": "info",
            **common,
            "reason": "slow",
            "seconds": 90.5,
            "messages": 0,
        },
    ]


def test_a_flood_is_summed_up_once_a_second(told: Told) -> None:
    with capture_logs() as lines:
        for _ in range(MOST + 30):
            told.log.opened(connection())
        for _ in range(5):
            told.log.closed(connection())
        assert len(lines) == MOST
        told.ring()
        assert {key: lines[-1][key] for key in ("opened", "closed")} == {"opened": 30, "closed": 5}
        assert len(lines) == MOST + 1
        told.log.opened(connection())
        assert len(lines) == MOST + 2
        assert told.timers == []


def test_the_seconds_of_a_long_flood_have_twenty_one_lines_each(told: Told) -> None:
    with capture_logs() as lines:
        for _ in range(10):
            for _ in range(500):
                told.log.opened(connection())
            told.ring()
    assert len(lines) == 10 * (MOST + 1)
    assert sum(line.get("opened", 1) for line in lines) == 5_000


async def test_what_was_left_out_is_told_at_the_end(told: Told) -> None:
    with capture_logs() as lines:
        async with told.log:
            for _ in range(MOST + 1):
                told.log.opened(connection())
    assert lines[-1]["opened"] == 1


@pytest.mark.parametrize("subject", ["a\x1b[2Jb", "a\nb", "x" * 5_000])
def test_a_subject_neither_breaks_the_line_nor_fills_it(told: Told, subject: str) -> None:
    with capture_logs() as lines:
        told.log.opened(connection(subject))
    shown: Any = lines[0]["subject"]
    assert shown.isprintable()
    assert len(shown) < 300


def test_who_listens_in_the_process_has_no_age(told: Told) -> None:
    with capture_logs() as lines:
        told.log.closed(connection(None, at=0.0))
    assert (lines[0]["seconds"], lines[0]["reason"]) == (None, "gone")


def test_a_program_that_has_said_nothing_about_logs_finds_none_on_its_output(
    told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.reset_defaults()
    told.log.opened(connection())
    assert capsys.readouterr().out == ""
