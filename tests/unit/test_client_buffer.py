"""The client's buffer: what waits, what gives way, what is sent together, and how it ends."""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar, cast

import msgspec
import pytest

from msgpush.client import (
    BufferFull,
    Ended,
    MsgpushError,
    Rejected,
    Unavailable,
    Unsendable,
    Unsent,
)
from msgpush.client.buffer import Buffer, Complaints, WhenFull
from msgpush.client.exchange import Answer, Exchange, Failure, Wait
from msgpush.client.http import Http
from msgpush.client.messages import Bar, Defaults, Item, item, progressed
from tests.support.publishing import Odd, circle
from tests.support.service import eventually

T = TypeVar("T")
HERE = Defaults("tests", stamped=True)


class Wire:
    """What stands for the way to the service: each request waits for the test's word.

    Once `open` is set, all are answered; `away` says that there is no answer.
    """

    def __init__(self) -> None:
        self.open, self.away = threading.Event(), False
        self.batches: list[list[Any]] = []
        self.refused: dict[Any, dict[str, Any]] = {}
        self.failure: BaseException | None = None
        self.closed = threading.Event()
        self._sleep: Callable[[float], object] = time.sleep

    def __call__(self, sleep: Callable[[float], object]) -> Http:
        self._sleep = sleep
        return cast("Http", self)

    def run(self, exchange: Exchange[T]) -> T:
        try:
            step = next(exchange)
            while True:
                if isinstance(step, Wait):
                    self._sleep(step.seconds)
                    step = exchange.send(Failure(step.cause))
                    continue
                if self.failure is not None:
                    failure, self.failure = self.failure, None
                    raise failure
                self.batches.append([msgspec.json.decode(each) for each in step.body.splitlines()])
                assert self.open.wait(10)
                step = exchange.send(Failure("away") if self.away else self._answer())
        except StopIteration as end:
            result: T = end.value
            return result

    def _answer(self) -> Answer:
        results = [
            {"error": self.refused[each["data"]["n"]]}
            if each["data"].get("n") in self.refused
            else {"id": each["id"]}
            for each in self.batches[-1]
        ]
        return Answer(202, {}, msgspec.json.encode({"results": results}))

    def close(self) -> None:
        self.closed.set()

    @property
    def sent(self) -> list[Any]:
        """What was in the messages, in their order."""
        return [
            each["data"].get("n", each["data"].get("progress"))
            for batch in self.batches
            for each in batch
        ]


class Kept(list[MsgpushError]):
    """What `on_error` was told."""

    def __call__(self, error: MsgpushError) -> None:
        self.append(error)

    def of(self, kind: type[T]) -> list[T]:
        return [each for each in self if isinstance(each, kind)]


class Open:
    """A buffer, what it sends over, and what it complains of."""

    def __init__(self, when_full: WhenFull = "wait", **options: Any) -> None:
        self.wire, self.told = Wire(), Kept()
        complain = Complaints(options.pop("on_error", self.told))
        self.buffer = Buffer(self.wire, complain, when_full=when_full, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.open.set()
        self.wire.away = False
        self.buffer.close()

    def hold(self) -> None:
        """Have a request under way, which isn't answered."""
        self.buffer.put(said(-1))
        self.buffer.hurry()
        eventually(lambda: self.wire.batches)


@pytest.fixture(name="opened")
def _opened() -> Iterator[Open]:
    with Open() as opened:
        yield opened


def said(n: int, size: int = 0) -> Item:
    return item(HERE, "info", {"n": n, "x": "x" * size}, {"id": f"m{n}"})


def moved(percent: float, group: str = "import") -> Item:
    return item(HERE, "progress", progressed(group, percent), {}, group=group)


# Order


def test_all_is_sent_in_its_order(opened: Open) -> None:
    opened.hold()
    for n in range(3000):
        opened.buffer.put(said(n))
    opened.wire.open.set()
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [-1, *range(3000)]
    assert [len(each) for each in opened.wire.batches] == [1, 1000, 1000, 1000]
    assert not opened.told


def test_many_threads_lose_nothing_and_each_keeps_its_order(opened: Open) -> None:
    opened.wire.open.set()

    def put(thread: int) -> None:
        for n in range(300):
            opened.buffer.put(said(thread * 1000 + n))

    threads = [threading.Thread(target=put, args=(n,)) for n in range(10)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert opened.buffer.flush(10)
    sent = opened.wire.sent
    assert sorted(sent) == [t * 1000 + n for t in range(10) for n in range(300)]
    for thread in range(10):
        own = [n for n in sent if n // 1000 == thread]
        assert own == sorted(own)


def test_a_flush_waits_for_what_was_there_and_for_no_more(opened: Open) -> None:
    opened.hold()
    assert not opened.buffer.flush(0.01)
    upto = opened.buffer.hurry()
    opened.wire.open.set()
    eventually(lambda: opened.buffer.is_done(upto))
    opened.wire.open.clear()
    opened.buffer.put(said(2))
    assert opened.buffer.is_done(upto)


# Progress


def test_progress_that_waits_gives_way_to_a_newer_one(opened: Open) -> None:
    opened.hold()
    for percent in range(100):
        opened.buffer.put(moved(percent))
    opened.wire.open.set()
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [-1, 99]


def test_it_never_overtakes_what_was_said_in_between(opened: Open) -> None:
    opened.hold()
    opened.buffer.put(moved(1))
    opened.buffer.put(said(10))
    opened.buffer.put(moved(2))
    opened.buffer.put(said(20))
    opened.buffer.put(moved(3, "export"))
    opened.wire.open.set()
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [-1, 10, 2, 20, 3]


def test_what_is_under_way_is_not_replaced(opened: Open) -> None:
    opened.buffer.put(moved(1))
    opened.buffer.hurry()
    eventually(lambda: opened.wire.batches)
    opened.buffer.put(moved(2))
    opened.wire.open.set()
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [1, 2]


def test_progress_without_a_group_is_never_replaced(opened: Open) -> None:
    opened.hold()
    for percent in range(5):
        opened.buffer.put(item(HERE, "progress", progressed("t", percent), {}))
    opened.wire.open.set()
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [-1, 0, 1, 2, 3, 4]


def test_ten_thousand_steps_of_a_bar_are_few_requests(opened: Open) -> None:
    opened.wire.open.set()
    bar = Bar(HERE, {}, "import")
    for n in range(10_000):
        if bar.show(progressed("import", n / 100)):
            opened.buffer.put(bar)
    assert opened.buffer.flush(10)
    assert opened.wire.sent[-1] == 99.99
    # One at once, and one more for each quarter of a second that this has taken.
    assert len(opened.wire.batches) < 40


def test_a_newer_bar_of_the_same_group_takes_the_older_ones_place_at_the_end(opened: Open) -> None:
    opened.hold()
    older = Bar(HERE, {}, "import")
    older.show(progressed("import", 1))
    opened.buffer.put(older)
    newer = older.stay_behind()
    opened.buffer.put(said(5))
    newer.show(progressed("import", 2))
    opened.buffer.put(newer)
    opened.wire.open.set()
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [-1, 5, 2]
    assert not older.waiting


# Bounds


def test_a_full_buffer_raises_if_that_is_wanted() -> None:
    with Open("raise", capacity=3) as opened:
        opened.hold()
        opened.buffer.put(said(1))
        opened.buffer.put(said(2))
        with pytest.raises(BufferFull, match="tests/m3: the buffer is full") as caught:
            opened.buffer.put(said(3))
        assert caught.value.key == "tests/m3"
    assert opened.wire.sent == [-1, 1, 2]


def test_a_full_buffer_waits_for_room() -> None:
    with Open(capacity=3) as opened:
        opened.hold()

        def put() -> None:
            for n in range(9):
                opened.buffer.put(said(n))

        thread = threading.Thread(target=put)
        thread.start()
        eventually(lambda: not opened.buffer.offer(said(100)))
        assert thread.is_alive()
        opened.wire.open.set()
        thread.join(10)
        assert opened.buffer.flush(10)
    assert [n for n in opened.wire.sent if 0 <= n < 100] == [*range(9)]


def test_progress_has_room_in_a_full_buffer_where_it_replaces() -> None:
    with Open("raise", capacity=2) as opened:
        opened.hold()
        opened.buffer.put(moved(1))
        opened.buffer.put(moved(2))
        with pytest.raises(BufferFull):
            opened.buffer.put(moved(3, "export"))


def test_its_bytes_are_bounded_too() -> None:
    with Open("raise", capacity_bytes=10_000) as opened:
        opened.hold()
        taken = [opened.buffer.offer(said(n, 1000)) for n in range(20)]
        assert 7 <= sum(taken) <= 9
        with pytest.raises(BufferFull):
            opened.buffer.put(said(20, 1000))
        opened.wire.open.set()
        assert opened.buffer.flush(10)
        opened.buffer.put(said(200, 20_000))  # alone, it may be as large as it is
        assert opened.buffer.flush(10)
        for n in range(8):
            opened.buffer.put(said(n, 1000))


def test_by_default_it_holds_64_mib() -> None:
    with Open("raise") as opened:
        opened.hold()
        large = [said(n, 1 << 20) for n in range(65)]
        taken = sum(opened.buffer.offer(each) for each in large)
        assert taken == 63


def test_a_job_is_not_held_up_while_the_service_is_away() -> None:
    with Open(capacity=2) as opened:
        opened.wire.away = True
        opened.wire.open.set()
        opened.buffer.put(said(1))
        opened.buffer.put(said(2))
        with pytest.raises(BufferFull):
            opened.buffer.put(said(3), patient=False)


def test_a_service_that_comes_back_gets_all_of_it(opened: Open) -> None:
    opened.wire.away = True
    opened.wire.open.set()
    opened.buffer.put(said(1))
    opened.buffer.hurry()
    eventually(lambda: len(opened.wire.batches) > 2)
    opened.buffer.put(said(2))
    opened.wire.away = False
    assert opened.buffer.flush(10)
    accepted = [each["data"]["n"] for each in opened.wire.batches[-2] + opened.wire.batches[-1]]
    assert accepted in ([1, 2], [1, 1, 2])
    assert not opened.told


# What goes wrong


def test_a_refused_message_is_told_and_the_others_go_on(opened: Open) -> None:
    opened.wire.refused = {1: {"status": 422, "detail": "wrong"}}
    opened.wire.open.set()
    for n in range(3):
        opened.buffer.put(said(n))
    assert opened.buffer.flush(10)
    [error] = eventually(lambda: opened.told.of(Rejected))
    assert error.key == "tests/m1"


@pytest.mark.parametrize("failure", [ValueError("odd options"), RuntimeError("closed")])
def test_the_thread_outlives_whatever_a_request_raises(
    opened: Open, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    opened.wire.failure = failure
    opened.wire.open.set()
    opened.buffer.put(said(1))
    assert opened.buffer.flush(10)
    opened.buffer.put(said(2))
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [2]
    [error] = opened.told.of(Unavailable)
    assert error.keys == ("tests/m1",)
    assert "messages could not be sent" in caplog.text


@pytest.mark.parametrize("value", [object(), circle(), "\ud800", Odd()])
def test_the_thread_outlives_whatever_a_bar_shows(opened: Open, value: object) -> None:
    opened.wire.open.set()
    bar = Bar(HERE, {}, "import")
    bar.show({"task_id": "import", "progress": 5, "details": value})
    opened.buffer.put(bar)
    opened.buffer.put(said(2))
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [2]
    assert eventually(lambda: opened.told.of(Unsendable))
    bar.show(progressed("import", 6))
    opened.buffer.put(bar)
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [2, 6]


@pytest.mark.parametrize("failure", [ZeroDivisionError(), SystemExit(3)])
def test_the_thread_outlives_what_on_error_raises(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: MsgpushError) -> None:
        raise failure

    with Open(on_error=fail) as opened:
        opened.wire.refused = {1: {"status": 422, "detail": "wrong"}}
        opened.wire.open.set()
        opened.buffer.put(said(1))
        assert opened.buffer.flush(10)
        opened.buffer.put(said(2))
        assert opened.buffer.flush(10)
        assert opened.wire.sent == [1, 2]
    assert "on_error itself has failed" in caplog.text


def test_on_error_may_use_the_buffer() -> None:
    flushed: list[bool] = []

    def use(_: MsgpushError) -> None:
        opened.buffer.put(said(100))
        flushed.append(opened.buffer.flush())
        opened.buffer.close()

    with Open(on_error=use) as opened:
        opened.wire.refused = {1: {"status": 422, "detail": "wrong"}}
        opened.hold()
        opened.buffer.put(said(1))
        opened.buffer.put(said(2))
        opened.wire.open.set()
        assert opened.wire.closed.wait(10), "what was there is sent, and then it ends"
    assert opened.wire.sent == [-1, 1, 2, 100]
    assert flushed == [False]


def test_on_error_that_needs_a_lock_of_the_job_waits_for_nothing_else() -> None:
    lock = threading.Lock()
    called = threading.Event()

    def count(_: MsgpushError) -> None:
        called.set()
        with lock:
            pass

    with Open(on_error=count) as opened:
        opened.wire.open.set()
        bar = Bar(HERE, {}, "import")
        bar.show({"progress": object()})
        with lock:
            opened.buffer.put(bar)
            assert called.wait(10)
            opened.buffer.put(said(1))  # while it waits for the job


def test_what_on_error_reports_itself_is_told_to_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = BufferFull("tests/m1", 1)
    calls: list[MsgpushError] = []

    def again(error: MsgpushError) -> None:
        calls.append(error)
        complain(error)

    complain = Complaints(again)
    complain(error)
    complain(error)
    assert len(calls) == 2
    assert "the buffer is full" in caplog.text


def test_the_log_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    complain = Complaints(None, lambda: now)
    with caplog.at_level(logging.WARNING, "msgpush.client"):
        for now in (0, 1, 59, 60, 61, 200):
            complain(Unsendable(f"at {now}"))
    assert caplog.messages == [
        "at 0",
        "at 60 (and 2 more errors since the last such line)",
        "at 200 (and 1 more errors since the last such line)",
    ]


def test_a_thread_that_cannot_be_started_is_told(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Unavailable, match="tests/m1: can't start new thread"):
            opened.buffer.put(said(1))
    opened.wire.open.set()
    opened.buffer.put(said(2))
    assert opened.buffer.flush(10)
    assert opened.wire.sent == [2]


# The end


def test_closing_sends_what_waits() -> None:
    with Open() as opened:
        opened.wire.open.set()
        for n in range(50):
            opened.buffer.put(said(n))
    assert opened.wire.sent == [*range(50)]
    assert opened.wire.closed.is_set()
    assert not opened.told


def test_closing_takes_no_longer_than_it_may_and_names_what_was_left() -> None:
    with Open() as opened:
        opened.hold()
        for n in range(7):
            opened.buffer.put(said(n))
        opened.buffer.close(0.05)
        [error] = opened.told.of(Unsent)
        assert error.keys == ("tests/m-1", *(f"tests/m{n}" for n in range(7)))
        assert "and 3 more: not accepted by the service in time" in str(error)
    opened.wire.open.set()
    assert opened.wire.closed.wait(10), "its thread ends all the same"


def test_closing_while_the_service_is_away_tries_until_the_end() -> None:
    with Open() as opened:
        opened.wire.away = True
        opened.wire.open.set()
        opened.buffer.put(said(1))
        opened.buffer.hurry()
        eventually(lambda: opened.wire.batches)
        opened.buffer.end()
        opened.wire.away = False
        opened.buffer.close()
    assert not opened.told


def test_who_waits_for_room_is_told_of_the_end() -> None:
    caught: list[MsgpushError] = []

    def put() -> None:
        try:
            opened.buffer.put(said(2))
        except Ended as error:
            caught.append(error)

    with Open(capacity=1) as opened:
        opened.hold()
        thread = threading.Thread(target=put)
        thread.start()
        opened.buffer.close(0.01)
        thread.join(10)
        assert [str(each) for each in caught] == ["the publisher is closed"]


def test_after_the_end_it_takes_nothing_and_may_be_closed_again() -> None:
    with Open() as opened:
        opened.wire.open.set()
        opened.buffer.close()
        opened.buffer.close()
        with pytest.raises(Ended):
            opened.buffer.put(said(1))
        assert opened.buffer.flush(1)


def test_a_buffer_that_never_had_a_message_has_no_thread() -> None:
    before = threading.active_count()
    with Open() as opened:
        assert opened.buffer.flush(1)
        assert threading.active_count() == before


def test_a_buffer_that_was_ended_sends_the_rest_and_is_gone() -> None:
    opened = Open()
    opened.wire.open.set()
    opened.buffer.put(said(1))
    opened.buffer.end()
    assert opened.wire.closed.wait(10)
    assert opened.wire.sent == [1]
    gone = weakref.ref(opened.buffer)
    del opened
    eventually(lambda: gc.collect() is not None and gone() is None)
