"""Connections and cohorts by themselves: the states of the one, and what keeps the other's bytes."""

import pytest

from msgpush.domain import connection as connection_module
from msgpush.domain.connection import Cohort, Connection, Subscription
from msgpush.domain.frames import FrameCache
from msgpush.domain.history import Gap
from msgpush.domain.log import Log, Ring
from msgpush.domain.message import Entry
from msgpush.domain.position import ZERO, Position
from tests.support.fakes import FakeSink, PlainView

NOW_MS = 1_800_000_000_000


def at(ms: int) -> Position:
    return Position(ms, 0)


def entry(ms: int, type: str = "info") -> Entry:
    return Entry(at(ms), at(ms - 1), ("a",), type, "tests", NOW_MS, b'{"id":"m%d"}' % ms)


def cohort_of(types: frozenset[str] | None = None) -> Cohort:
    subscription = Subscription(frozenset({"a"}), PlainView(), types)
    return Cohort(subscription, FrameCache().enter(subscription.view))


def log_at(ms: int) -> Log:
    log = Log(Ring())
    log.begin("abcdefgh", at(ms))
    return log


def begins_nowhere(connection: Connection) -> bool:
    return connection.replay is None and connection.last_event_id is None


def test_an_entry_is_pending_once_and_only_if_its_type_is_wanted() -> None:
    cohort, first = cohort_of(frozenset({"info"})), entry(5)
    assert cohort.mark(first, at(4))
    assert not cohort.mark(first, at(4))  # it has several of the channels
    assert not cohort.mark(entry(6, "status"), at(5))
    assert cohort.pending == [first]


def test_the_floor_is_the_head_or_what_pending_entries_come_after() -> None:
    cohort = cohort_of()
    assert cohort.floor(at(4)) == at(4)
    cohort.mark(entry(5), at(4))
    cohort.mark(entry(7), at(6))
    assert cohort.floor(at(7)) == at(4)


def test_a_round_takes_a_chunk_and_holds_the_position_until_it_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "CHUNK", 50)
    cohort, entries = cohort_of(), [entry(ms) for ms in (5, 6, 7)]
    for each in entries:
        cohort.mark(each, at(each.position.ms - 1))
    taken, chunk = cohort.take("1abcdefgh.")
    assert (taken, chunk.count(b"\n")) == (entries[:2], 2)
    assert cohort.pending == entries[2:]
    assert (cohort.position(at(7)), cohort.floor(at(7)), cohort.busy) == (at(4), at(6), True)
    cohort.served(1.0)
    assert cohort.position(at(7)) == at(6)


def test_a_connection_is_live_or_behind_or_has_left() -> None:
    cohort, connection = cohort_of(), Connection("c", FakeSink())
    cohort.enter(connection, at(3), NOW_MS)
    assert (connection in cohort.behind, connection.live, connection.attached) == (
        True,
        False,
        True,
    )
    assert connection.replay is not None
    connection.last_event_id = "asked"
    cohort.join(connection, at(4))
    assert connection.live
    assert (list(cohort.live), list(cohort.behind)) == ([connection], [])
    assert begins_nowhere(connection)
    cohort.enter(connection, at(4), NOW_MS)
    assert (list(cohort.live), list(cohort.behind)) == ([], [connection])
    cohort.leave(connection)
    assert (list(cohort.live), list(cohort.behind), connection.attached) == ([], [], False)


def test_a_live_connections_position_is_its_cohorts_or_its_own_where_that_is_further() -> None:
    log, cohort, connection = log_at(5), cohort_of(), Connection("c", FakeSink())
    cohort.join(connection, at(4))
    cohort.mark(entry(5), at(4))
    assert connection.position_in(log) == at(4)
    connection.cursor = at(5)  # it has got the chunk, others haven't yet
    assert connection.position_in(log) == at(5)
    assert connection.cursor_in(log) == "1abcdefgh.5-0"
    assert connection.lag_in(log) == 0


def test_a_connection_that_has_not_moved_yet_goes_on_from_what_it_came_with() -> None:
    log, cohort, connection = log_at(9), cohort_of(), Connection("c", FakeSink())
    cohort.enter(connection, None, NOW_MS)
    connection.last_event_id = "earliest"
    assert (connection.position_in(log), connection.cursor_in(log)) == (ZERO, "earliest")
    connection.move_to(at(6))
    assert (connection.cursor_in(log), connection.lag_in(log)) == ("1abcdefgh.6-0", 3)


def test_a_log_that_lost_its_end_is_told_once_after_the_cursor_from_before() -> None:
    log, cohort, connection = log_at(9), cohort_of(), Connection("c", FakeSink())
    cohort.join(connection, at(9))
    connection.lose(log)
    connection.lose(log)
    assert connection.gaps == [Gap(None, "1abcdefgh.9-0", "reset")]


def test_what_a_sink_refuses_is_not_counted_and_its_gaps_stay() -> None:
    connection = Connection("c", FakeSink())
    connection.gaps.append(Gap(None, "x", "reset"))
    connection.sink.full = True  # type: ignore[attr-defined]
    assert not connection.give(b"chunk\n", 2, 1.0)
    assert (connection.messages_sent, connection.bytes_sent, len(connection.gaps)) == (0, 0, 1)
    connection.sink.full = False  # type: ignore[attr-defined]
    assert connection.give(b"chunk\n", 2, 1.0)
    assert (connection.messages_sent, connection.bytes_sent, connection.gaps) == (2, 6, [])
