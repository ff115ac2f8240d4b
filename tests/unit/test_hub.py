"""The hub: who gets what, when, and with which cursor."""

import pytest

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.domain import fan_out
from msgpush.domain.catch_up import Step
from msgpush.domain.connection import NOW, Connection, End, Subscription
from msgpush.domain.control import Close, command_draft
from msgpush.domain.history import Gap
from msgpush.domain.message import Entry
from msgpush.domain.position import ZERO, Position, parse_cursor
from tests.support.driver import Driver, at_once
from tests.support.fakes import FakeSink, PlainView, make


def test_a_live_connection_gets_the_messages_of_its_channels_in_order() -> None:
    driver = Driver()
    reader = driver.connect("a")
    driver.say(make("m1", "a"), make("m2", "b"))
    driver.say(make("m3", "a"))
    assert reader.sink.ids == ["m1", "m3"]


def test_a_message_that_matches_several_channels_arrives_once() -> None:
    driver = Driver()
    reader = driver.connect("a", "b")
    cursors = driver.say(make("m1", "a", "b"), make("m2", "b", "a"))
    assert reader.sink.ids == ["m1", "m2"]
    again = driver.connect("a", "b", after=cursors[0])
    assert again.sink.ids == ["m2"]


def test_a_new_connection_begins_now() -> None:
    driver = Driver()
    driver.say(make("m1", "a"))
    reader = driver.connect("a")
    driver.say(make("m2", "a"))
    assert reader.sink.ids == ["m2"]


def test_the_opening_carries_a_cursor_from_which_nothing_is_missed() -> None:
    driver = Driver()
    driver.say(make("m0", "a"))
    reader = driver.connect("a")
    opening = reader.sink.lines[0].removeprefix("open ")
    driver.hub.detach(reader.connection)
    driver.say(make("m1", "a"))
    assert driver.connect("a", after=opening).sink.ids == ["m1"]


def test_a_connection_that_comes_while_messages_are_pending_misses_nothing_after_its_opening() -> (
    None
):
    driver = Driver()
    first = driver.connect("a")
    driver.publish(make("m1", "a"), make("m2", "a"))
    driver.tail()
    second = driver.connect("a", settle=False)
    opening = second.sink.lines[0].removeprefix("open ")
    driver.publish(make("m3", "a"))
    driver.tail()
    driver.settle()
    resumed = driver.connect("a", after=opening)
    assert first.sink.ids == ["m1", "m2", "m3"]
    assert second.sink.ids == resumed.sink.ids


def test_a_resume_is_answered_with_the_cursor_that_was_asked_for() -> None:
    driver = Driver()
    cursors = driver.say(make("m1", "a"), make("m2", "a"))
    assert driver.connect("a", after=cursors[0]).sink.lines[0] == f"open {cursors[0]}"
    assert driver.connect("a", after="earliest").sink.lines[0] == "open earliest"


def test_a_resume_from_the_ring_and_one_from_the_histories_give_the_same() -> None:
    near, far = Driver(), Driver(ring_length=2)
    for driver in (near, far):
        cursors = driver.say(*[make(f"m{n}", "ab"[n % 2]) for n in range(20)])
        reader = driver.connect("a", "b", after=cursors[4])
        assert reader.sink.ids == [f"m{n}" for n in range(5, 20)]
        assert reader.connection.live
        driver.say(make("next", "a"))
        assert reader.sink.ids[-1] == "next"


def test_a_resume_with_other_channels_works_with_the_same_cursor() -> None:
    driver = Driver(ring_length=3)
    cursors = driver.say(*[make(f"m{n}", "abc"[n % 3]) for n in range(12)])
    assert driver.connect("b", "c", after=cursors[3]).sink.ids == [
        "m4",
        "m5",
        "m7",
        "m8",
        "m10",
        "m11",
    ]


def test_earliest_gives_all_that_is_retained_and_tells_no_gap() -> None:
    driver = Driver(history_length=4, ring_length=2)
    driver.say(*[make(f"m{n}", "a") for n in range(9)])
    reader = driver.connect("a", after="earliest")
    assert reader.sink.ids == ["m5", "m6", "m7", "m8"]
    assert reader.sink.gaps == []


def test_a_cursor_of_another_log_is_told_as_reset_before_what_is_retained() -> None:
    driver = Driver()
    driver.say(make("m1", "a"))
    reader = driver.connect("a", after="1otherlog.5-0")
    assert reader.sink.gaps == [Gap(None, "1otherlog.5-0", "reset")]
    assert (
        reader.sink.lines.index(next(each for each in reader.sink.lines if each.startswith("gap")))
        == 1
    )
    assert reader.sink.ids == ["m1"]


def test_a_cursor_ahead_of_the_tail_gets_nothing_at_or_below_it() -> None:
    driver = Driver()
    cursors = driver.publish(*[make(f"m{n}", "a") for n in range(4)])
    reader = driver.connect("a", after=cursors[1])
    assert not reader.connection.live
    driver.tail(1)
    driver.settle()
    assert reader.sink.ids == []
    driver.tail()
    driver.settle()
    assert reader.sink.ids == ["m2", "m3"]
    assert reader.connection.live


def test_a_slow_reader_catches_up_in_order_when_it_reads_again() -> None:
    driver = Driver()
    slow, quick = driver.connect("a"), driver.connect("a")
    driver.say(make("m0", "a"))
    slow.sink.full = True
    for n in range(1, 50):
        driver.say(make(f"m{n}", "a"))
    assert quick.sink.ids == [f"m{n}" for n in range(50)]
    assert slow.sink.ids == ["m0"]
    slow.sink.drain()
    driver.settle()
    assert slow.sink.ids == quick.sink.ids
    assert slow.connection.live


def test_a_slow_reader_costs_no_memory_that_grows() -> None:
    driver = Driver(ring_length=10, history_length=10)
    slow = driver.connect("a")
    slow.sink.full = True
    driver.say(make("m0", "a", data={"x": "y" * 1000}))
    for n in range(500):
        driver.say(make(f"n{n}", "a", data={"x": "y" * 1000}))
    assert driver.hub.pending == 0
    assert slow.sink.ids == []


def test_a_slow_reader_is_told_once_the_log_has_moved_on() -> None:
    driver = Driver(ring_length=5, history_length=5)
    slow = driver.connect("a")
    (cursor,) = driver.say(make("m0", "a"))
    slow.sink.full = True
    for n in range(1, 20):
        driver.say(make(f"m{n}", "a"))
    slow.sink.drain()
    driver.settle()
    assert slow.sink.gaps == [Gap("a", cursor, "trimmed")]
    assert slow.sink.ids == ["m0", *[f"m{n}" for n in range(15, 20)]]


def test_a_slow_reader_gets_what_the_ring_still_has_beyond_the_history() -> None:
    driver = Driver(ring_length=50, history_length=5)
    slow = driver.connect("a")
    (cursor,) = driver.say(make("m0", "a"))
    slow.sink.full = True
    for n in range(1, 101):
        driver.say(make(f"m{n}", "a"))
    slow.sink.drain()
    driver.settle()
    assert slow.sink.gaps == [Gap("a", cursor, "trimmed")]
    got = slow.sink.ids[1:]
    assert len(got) >= 50
    assert got == [f"m{n}" for n in range(101 - len(got), 101)]


def test_an_expired_message_is_told_once_however_many_chunks_the_rest_takes() -> None:
    for ring_length in (2, 1000):
        driver = Driver(ring_length=ring_length)
        (cursor,) = driver.say(make("m0", "a"))
        driver.say(make("m1", "a", ttl=1))
        driver.say(*[make(f"n{n}", "a", data={"x": "y" * 20_000}) for n in range(12)])
        driver.clock.advance(2)
        reader = driver.connect("a", after=cursor)
        assert reader.sink.gaps == [Gap("a", cursor, "expired")]
        assert reader.sink.ids == [f"n{n}" for n in range(12)]
        assert max(map(len, reader.sink.chunks)) < 100_000


def test_beyond_a_limit_of_pending_entries_readers_go_on_from_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fan_out, "PENDING", 20)
    driver = Driver()
    readers = [driver.connect("broadcast", f"user:{n}") for n in range(10)]
    driver.publish(*[make(f"m{n}", "broadcast") for n in range(50)])
    driver.tail()
    assert driver.hub.pending <= 20
    driver.settle()
    assert all(each.sink.ids == [f"m{n}" for n in range(50)] for each in readers)


def test_a_refused_chunk_of_a_catch_up_is_offered_again() -> None:
    driver = Driver(ring_length=2)
    cursors = driver.say(*[make(f"m{n}", "a") for n in range(10)])
    reader = driver.connect("a", after=cursors[0], settle=False)
    refuse, reader.sink.offer = reader.sink.offer, lambda chunk: False  # type: ignore[method-assign]
    assert driver.advance(reader.connection) is Step.BLOCKED
    reader.sink.offer = refuse  # type: ignore[method-assign]
    driver.settle()
    assert reader.sink.ids == [f"m{n}" for n in range(1, 10)]


def test_a_message_that_expired_before_its_replay_is_told() -> None:
    driver = Driver()
    (cursor,) = driver.say(make("m0", "a"))
    driver.say(make("m1", "a", ttl=1), make("m2", "a"))
    driver.clock.advance(2)
    reader = driver.connect("a", after=cursor)
    assert reader.sink.gaps == [Gap("a", cursor, "expired")]
    assert reader.sink.ids == ["m2"]


def test_an_expired_message_of_a_type_that_nobody_asked_for_is_no_gap() -> None:
    driver = Driver()
    (cursor,) = driver.say(make("m0", "a"))
    driver.say(make("m1", "a", ttl=1, type="status"), make("m2", "a"))
    driver.clock.advance(2)
    reader = driver.connect("a", after=cursor, types=["info"])
    assert (reader.sink.gaps, reader.sink.ids) == ([], ["m2"])


def test_types_filter_live_and_on_replay() -> None:
    driver = Driver()
    live = driver.connect("a", types=["status"])
    driver.say(make("m1", "a"), make("m2", "a", type="status"), make("m3", "a", type="error"))
    replayed = driver.connect("a", types=["status"], after="earliest")
    assert live.sink.ids == replayed.sink.ids == ["m2"]


def test_connections_with_one_subscription_share_the_very_bytes() -> None:
    driver = Driver()
    one, two = driver.connect("a"), driver.connect("a")
    driver.say(make("m1", "a"))
    assert one.sink.chunks[-1] is two.sink.chunks[-1]


def test_messages_that_come_together_are_written_together() -> None:
    driver = Driver()
    reader = driver.connect("a")
    driver.say(*[make(f"m{n}", "a") for n in range(10)])
    assert len(reader.sink.chunks) == 2  # the opening, and all ten


def test_a_chunk_is_bounded() -> None:
    driver = Driver()
    reader = driver.connect("a")
    driver.say(*[make(f"m{n}", "a", data={"x": "y" * 10_000}) for n in range(100)])
    assert max(map(len, reader.sink.chunks)) < 200_000
    assert len(reader.sink.ids) == 100


def test_a_sweep_stops_at_its_budget_and_goes_on_where_it_was() -> None:
    driver = Driver()
    readers = [driver.connect("a") for _ in range(100)]
    driver.publish(make("m1", "a"))
    driver.tail()
    assert driver.hub.sweep(0) is True
    served = sum(bool(each.sink.ids) for each in readers)
    assert 0 < served < 100
    while driver.hub.sweep(0):
        pass
    assert all(each.sink.ids == ["m1"] for each in readers)


def test_a_reader_that_goes_during_a_sweep_gets_nothing_more() -> None:
    driver = Driver()
    readers = [driver.connect("a") for _ in range(100)]
    driver.publish(make("m1", "a"))
    driver.tail()
    driver.hub.sweep(0)
    late = next(each for each in readers if not each.sink.ids)
    driver.hub.detach(late.connection)
    driver.settle()
    assert late.sink.ids == []


def test_no_cursor_is_ahead_of_what_a_connection_has_got_in_the_middle_of_a_sweep() -> None:
    driver = Driver()
    driver.say(make("m0", "a"))
    readers = [driver.connect("a") for _ in range(100)]
    cursors = driver.publish(make("m1", "a"))
    driver.tail()
    driver.hub.sweep(0)
    for each in readers:
        behind = each.connection.cursor_in(driver.hub.log) < cursors[0]
        assert behind == (each.sink.ids == [])


def test_a_cohort_that_the_log_outruns_continues_from_the_log() -> None:
    driver = Driver(ring_length=5, history_length=100)
    reader = driver.connect("a")
    driver.publish(*[make(f"m{n}", "a") for n in range(30)])
    driver.tail()  # all at once, more than the ring holds, before any sweep
    driver.settle()
    assert reader.sink.ids == [f"m{n}" for n in range(30)]
    assert reader.sink.gaps == []


def test_a_reader_that_falls_behind_and_catches_up_within_a_sweep_gets_each_message_once() -> None:
    driver = Driver()
    readers = [driver.connect("a") for _ in range(100)]
    driver.publish(make("m1", "a"))
    driver.tail()
    driver.hub.sweep(0)
    driver.publish(make("m2", "a"), make("m3", "a"))
    del driver.waiting[0]  # the tail loses m2, with the sweep of m1 half done
    driver.tail()
    for each in readers:
        while not each.connection.live:
            driver.advance(each.connection)
    driver.settle()
    assert all(each.sink.ids == ["m1", "m2", "m3"] for each in readers)


def test_a_tail_that_has_lost_entries_sends_its_readers_to_the_histories() -> None:
    driver = Driver()
    reader = driver.connect("a", "b")
    driver.say(make("m0", "a"))
    driver.publish(make("m1", "a"), make("m2", "b"))
    driver.waiting.clear()
    driver.say(make("m3", "a"))
    assert reader.sink.ids == ["m0", "m1", "m2", "m3"]


def test_a_heartbeat_comes_after_the_interval_without_a_write_and_not_before() -> None:
    driver = Driver(heartbeat=30)
    reader = driver.connect("a")
    driver.clock.advance(29.9)
    driver.hub.beat()
    assert not heartbeats(reader.sink.lines)
    driver.clock.advance(3.3)
    driver.hub.beat()
    assert len(heartbeats(reader.sink.lines)) == 1


def test_a_message_puts_the_heartbeat_off() -> None:
    driver = Driver(heartbeat=30)
    reader = driver.connect("a")
    driver.clock.advance(20)
    driver.hub.beat()
    driver.say(make("m1", "a"))
    driver.clock.advance(20)
    driver.hub.beat()
    assert not heartbeats(reader.sink.lines)
    driver.clock.advance(14)
    driver.hub.beat()
    assert len(heartbeats(reader.sink.lines)) == 1


def test_heartbeats_of_those_that_came_together_are_spread() -> None:
    driver = Driver(heartbeat=30)
    readers = [driver.connect("a") for _ in range(300)]
    most = 0
    before = 0
    for _ in range(340):
        driver.clock.advance(0.1)
        driver.hub.beat()
        sent = sum(len(heartbeats(each.sink.lines)) for each in readers)
        most = max(most, sent - before)
        before = sent
    assert before == 300
    assert most < 30


def test_an_idle_clients_cursor_never_ages() -> None:
    driver = Driver(heartbeat=30)
    reader = driver.connect("quiet")
    (cursor,) = driver.say(make("m1", "busy"))
    driver.clock.advance(34)
    driver.hub.beat()
    assert heartbeats(reader.sink.lines) == [cursor]


def test_a_heartbeat_of_a_connection_that_is_behind_carries_its_own_cursor() -> None:
    driver = Driver(heartbeat=30)
    cursors = driver.say(*[make(f"m{n}", "a") for n in range(3)])
    driver.publish(make("m3", "a"))
    ahead = driver.publish(make("m4", "a"))[0]
    reader = driver.connect("a", after=ahead)
    driver.clock.advance(34)
    driver.hub.beat()
    assert heartbeats(reader.sink.lines) == [ahead]
    assert cursors[-1] < ahead


def test_a_socket_that_takes_nothing_is_cut_after_the_write_timeout() -> None:
    driver = Driver()
    reader, other = driver.connect("a"), driver.connect("a")
    reader.sink.full = True
    driver.say(make("m1", "a"))
    driver.clock.advance(29)
    driver.hub.beat()
    assert not reader.sink.ended
    driver.clock.advance(2)
    driver.hub.beat()
    assert reader.sink.ended
    assert "close slow True" in reader.sink.lines[-1]
    driver.clock.advance(2)
    driver.hub.beat()
    assert reader.sink.aborted
    assert list(driver.hub.connections.values()) == [other.connection]


def test_a_socket_that_takes_a_little_is_slow_but_not_cut() -> None:
    driver = Driver()
    reader = driver.connect("a")
    reader.sink.full = True
    reader.sink.backlog = 1000
    driver.say(make("m1", "a"))
    for _ in range(10):
        driver.clock.advance(20)
        reader.sink.backlog -= 10
        driver.hub.beat()
    assert not reader.sink.ended


def test_only_what_a_client_has_taken_live_counts_as_delivered() -> None:
    driver = Driver()
    internal = Connection("internal", FakeSink(), listed=False)
    driver.hub.attach(internal, Subscription(frozenset({"/control"}), PlainView("internal")), NOW)
    full, other = driver.connect("a"), driver.connect("b")
    driver.say(make("m1", "a"), make("m2", "b", type="status"))
    assert driver.observer.deliveries == [["info"], ["status"]]
    full.sink.full = True
    driver.say(make("m3", "a"))  # nobody takes it
    driver.say(command_draft(Close("c1", True)), make("m5"), make("m6", "nobody"))
    full.sink.drain()
    driver.settle()
    assert full.sink.ids == ["m1", "m3"]  # by catching up
    driver.connect("a", after="earliest")
    assert driver.observer.deliveries == [["info"], ["status"]]
    mixed = driver.connect("b")
    mixed.sink.full = True
    driver.say(make("m7", "b", type="error"))
    assert (other.sink.ids[-1], mixed.sink.ids) == ("m7", [])
    assert driver.observer.deliveries == [["info"], ["status"], ["error"]]


def test_a_chunk_that_reaches_a_reader_in_a_later_turn_counts_as_delivered_once() -> None:
    driver = Driver()
    readers = [driver.connect("a") for _ in range(100)]
    driver.publish(make("m1", "a"))
    driver.tail()
    turns = 1
    while driver.hub.sweep(0):
        turns += 1
    assert (turns > 2, driver.observer.deliveries) == (True, [["info"]])
    assert all(reader.sink.ids == ["m1"] for reader in readers)


def test_a_close_tells_from_where_to_go_on_so_that_what_was_not_taken_comes_again() -> None:
    driver = Driver()
    reader, waiting = driver.connect("a"), driver.connect("a", after="earliest", settle=False)
    (taken,) = driver.say(make("m1", "a"))
    reader.sink.full = True
    driver.say(make("m2", "a"))
    driver.hub.close(reader.connection, "slow", reconnect=True)
    assert reader.connection.end == End("slow", True, taken)
    again = driver.connect("a", after=reader.connection.end.cursor)
    assert (again.sink.ids, again.sink.gaps) == (["m2"], [])
    assert waiting.connection.end is None


def test_a_gap_that_could_not_be_told_before_a_close_is_told_to_who_goes_on_from_there() -> None:
    driver = Driver()
    reader = driver.connect("a")
    (cursor,) = driver.say(make("m1", "a"))
    reader.sink.full = True
    driver.hub.cut("other", driver.hub.log.head)
    driver.hub.close(reader.connection, "slow", reconnect=True)
    assert reader.connection.end == End("slow", True, cursor)
    foreign = driver.connect("a", after="foreign", settle=False)
    driver.hub.close(foreign.connection, "drain", reconnect=True)
    assert foreign.connection.end == End("drain", True, "foreign")


@pytest.mark.parametrize("reconnect", [True, False])
def test_only_a_close_for_good_carries_a_terminal_cursor(reconnect: bool) -> None:
    driver = Driver()
    reader = driver.connect("a")
    (cursor,) = driver.say(make("m1", "a"))
    driver.hub.close(reader.connection, "disconnected", reconnect=reconnect)
    expected = f"close disconnected {reconnect} " + ("" if reconnect else f"{cursor}~end")
    assert reader.sink.lines[-1] == expected
    assert reader.sink.ended


def test_connects_and_disconnects_leave_nothing_behind() -> None:
    driver = Driver()
    for n in range(1000):
        reader = driver.connect("a", f"own:{n % 50}", after="earliest" if n % 3 == 0 else None)
        if n % 7 == 0:
            reader.sink.full = True
        driver.say(make(f"m{n}", "a"))
        driver.hub.detach(reader.connection)
    driver.clock.advance(100)
    driver.hub.beat()
    assert driver.hub.connections == {}
    assert driver.hub.leftovers() == 0


def test_views_differ_in_bytes_not_in_messages() -> None:
    driver = Driver()
    one, two = driver.connect("a"), driver.connect("a", view=PlainView("other"))
    driver.say(make("m1", "a"))
    assert one.sink.ids == two.sink.ids == ["m1"]


def test_a_blocked_connection_says_so() -> None:
    driver = Driver()
    reader = driver.connect("a")
    reader.sink.full = True
    driver.say(make("m1", "a"))
    assert driver.hub.advance(reader.connection) is Step.BLOCKED


def heartbeats(lines: list[str]) -> list[str]:
    return [line.removeprefix("heartbeat ") for line in lines if line.startswith("heartbeat")]


def lost_end(driver: Driver, kept: str) -> None:
    """The log goes on under another name after a cursor of it, as after a failover to a replica
    that lagged.
    """
    position = parse_cursor(kept, driver.hub.log.epoch)
    assert position is not None
    driver.hub.cut("newepoch", position)
    driver.waiting.clear()


def follow(driver: Driver, *ids: str) -> None:
    """The log's next entries, after its new end."""
    prev = driver.hub.log.head
    for number, id in enumerate(ids, 1):
        position = Position(prev.ms + 1000 + number, 0)
        draft = make(id, "a")
        expires = position.ms + draft.ttl * 1000
        driver.hub.append(
            [Entry(position, prev, draft.channels, draft.type, draft.service, expires, draft.body)]
        )
        prev = position
    driver.settle()


def test_a_log_that_has_lost_its_end_is_told_and_what_follows_is_delivered_under_its_new_name() -> (
    None
):
    driver = Driver()
    reader = driver.connect("a")
    kept, lost = driver.say(make("m1", "a"), make("m2", "a"))
    lost_end(driver, kept)
    driver.settle()
    assert reader.sink.gaps == [Gap(None, lost, "reset")]
    follow(driver, "m3")
    assert reader.sink.ids == ["m1", "m2", "m3"]
    assert reader.sink.cursors[-1].startswith("1newepoch.")


def test_a_reader_that_was_before_the_cut_gets_what_is_left_and_no_message_that_was_lost() -> None:
    driver = Driver()
    reader = driver.connect("a")
    (start,) = driver.say(make("m0", "a"))
    reader.sink.full = True
    kept, _ = driver.say(make("m1", "a"), make("m2", "a"))
    lost_end(driver, kept)
    reader.sink.drain()
    follow(driver, "m3")
    assert reader.sink.ids == ["m0", "m1", "m3"]
    assert reader.sink.gaps == [Gap(None, start, "reset")]
    assert reader.sink.lines[2].startswith("gap")


def test_a_log_that_loses_its_end_twice_is_told_once_to_a_reader_that_was_not_there() -> None:
    driver = Driver()
    reader = driver.connect("a")
    kept, newest = driver.say(make("m1", "a"), make("m2", "a"))
    reader.sink.full = True
    lost_end(driver, kept)
    driver.hub.cut("another1", driver.hub.log.head)
    reader.sink.drain()
    driver.settle()
    assert reader.sink.gaps == [Gap(None, newest, "reset")]


def test_a_cut_in_the_middle_of_a_round_gives_nobody_a_cursor_of_the_former_log_again() -> None:
    driver = Driver()
    readers = [driver.connect("a") for _ in range(100)]
    (kept,) = driver.say(make("m1", "a"))
    driver.publish(make("m2", "a"))
    driver.tail()
    driver.hub.sweep(budget=0)
    served = [each for each in readers if each.sink.ids == ["m1", "m2"]]
    assert 0 < len(served) < 100
    lost_end(driver, kept)
    follow(driver, "m3")
    for reader in readers:
        assert reader.sink.ids == (["m1", "m2", "m3"] if reader in served else ["m1", "m3"])
        assert len(reader.sink.gaps) == 1
        gap = next(n for n, line in enumerate(reader.sink.lines) if line.startswith("gap"))
        assert all("1newepoch." in line.split(" ")[0] for line in reader.sink.lines[gap + 1 :])


def test_a_log_that_begins_anew_gives_everything_that_it_has() -> None:
    driver = Driver()
    reader = driver.connect("a")
    (old,) = driver.say(make("m1", "a"))
    driver.bus = MemoryBus(clock=driver.clock.now)
    driver.hub.cut("newepoch", ZERO)
    at_once(driver.bus.append([make("m2", "a")]))
    driver.hub.append(at_once(anext(driver.bus.tail(ZERO))))
    driver.settle()
    assert reader.sink.ids == ["m1", "m2"]
    assert reader.sink.gaps == [Gap(None, old, "reset")]


def test_a_reader_that_waits_for_the_bus_gets_its_gap_and_heartbeats_meanwhile() -> None:
    driver = Driver()
    reader = driver.connect("a", after="foreign", settle=False)
    for _ in range(2):
        driver.clock.advance(34)
        driver.hub.beat()
    assert [line.split(" ")[0] for line in reader.sink.lines] == [
        "open",
        "gap",
        "heartbeat",
        "heartbeat",
    ]
    driver.say(make("m1", "a"))
    assert reader.sink.ids == ["m1"]
    assert len(reader.sink.gaps) == 1
