"""The buffer: messages that wait to be sent, and the thread that sends them.

A program puts messages in and goes on at once. The thread takes what has gathered (after 20 ms, or
100 messages, or what came while the last request was under way) and publishes it in its order, one
request at a time. A message is in the buffer until it has a verdict, so what is under way counts
too: the bound holds whatever the service does.

Each message gets a number when it comes. `_waiting` is in their order, and what is under way is
older than all of it: so all up to a number is done when nothing older than it is left, and that is
what `flush` waits for.

Progress of a task that nobody has sent yet gives way to a newer one of that task. The newer one
takes its place *at the end*, or it would overtake what was said in between.
"""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing.util
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from msgpush.client.errors import BufferFull, Ended, MsgpushError, Unavailable, Unsendable, Unsent
from msgpush.client.exchange import Verdict, publish_all
from msgpush.client.http import Http
from msgpush.client.messages import Bar, Item, Sent

WhenFull = Literal["wait", "raise"]

GATHER_SECONDS, GATHER_MESSAGES = 0.02, 100
# Nobody sees a bar move more often than this, and each request costs the job a little.
PROGRESS_SECONDS = 0.25
LARGEST_BATCH = 1000
CAPACITY, CAPACITY_BYTES = 10_000, 64 << 20
LAST_SECONDS = 5.0  # for what is left at the end
LAST_TRIES_EVERY = 0.25
COMPLAIN_EVERY = 60.0

log = logging.getLogger("msgpush.client")

OnError = Callable[[MsgpushError], object]


class Complaints:
    """Tells what went wrong: the program's function, or else the log, at most once a minute."""

    def __init__(
        self, on_error: OnError | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_error, self._clock = on_error, clock
        self._next = float("-inf")
        self._silent = 0

    def __call__(self, error: MsgpushError) -> None:
        """Tell; never raises, since a job goes on whatever becomes of its messages."""
        if self._on_error is not None and not is_complaining():
            _telling.now = True
            try:
                self._on_error(error)
            except (Exception, SystemExit):
                log.exception("on_error itself has failed")
            finally:
                _telling.now = False
            return
        now = self._clock()
        if now < self._next:
            self._silent += 1
            return
        self._next = now + COMPLAIN_EVERY
        silent, self._silent = self._silent, 0
        more = f" (and {silent} more errors since the last such line)" if silent else ""
        log.warning("%s%s", error, more)


_telling = threading.local()


def is_complaining() -> bool:
    """Whether this thread is in `on_error`: what that reports itself could fail alike, for ever."""
    return getattr(_telling, "now", False)


class Buffer:
    """Messages that are sent by a thread of its own, which starts with the first of them.

    Args:
        http: makes a client whose waits are those of the function that it is given.
        capacity: how many messages it holds, and `capacity_bytes` how many bytes of them.
    """

    def __init__(
        self,
        http: Callable[[Callable[[float], object]], Http],
        complain: Complaints,
        *,
        capacity: int = CAPACITY,
        capacity_bytes: int = CAPACITY_BYTES,
        when_full: WhenFull = "wait",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http, self._complain, self._clock = http(self._pause), complain, clock
        self._capacity, self._capacity_bytes, self._when_full = capacity, capacity_bytes, when_full
        self._begin()
        _watch_the_process()
        _lives.add(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._waiting: OrderedDict[int, Item | Bar] = OrderedDict()
        self._groups: dict[str, int] = {}  # of those that wait, the number of each group's
        self._sending: dict[int, Item] = {}
        self._unsendable: list[Unsendable] = []
        self._bytes = 0
        self._number = 0
        self._eager = 0  # up to this number nothing is gathered any longer: somebody waits for it
        self._last_sent = float("-inf")
        self._failing = False
        self._ending = self._abandoned = False

    def put(self, item: Item | Bar, *, patient: bool = True) -> None:
        """Take a message, which is sent later; wait for room, if that is what a full buffer does.

        Args:
            patient: whether to wait also while the service is away, and not only while it takes
                messages.

        Raises:
            BufferFull: there is no room, and it isn't waited for.
            Ended: it was closed.
        """
        with self._changed:
            while not self._take_in(item):
                if self._when_full == "raise" or self._is_mine() or (self._failing and not patient):
                    raise self.full(item)
                self._changed.wait()

    def offer(self, item: Item | Bar) -> bool:
        """Take a message if there is room at once; whether it was taken. Raises `Ended`."""
        with self._changed:
            return self._take_in(item)

    def hurry(self) -> int:
        """Gather no longer what is here by now; up to which number that is."""
        with self._changed:
            self._eager = self._number
            self._changed.notify_all()
            return self._eager

    def is_done(self, upto: int) -> bool:
        """Whether all up to that number has been sent."""
        with self._changed:
            return self._oldest() > upto

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all that is here by now has been sent; whether it has, in that time."""
        if self._is_mine():
            seconds = 0.0
        upto = self.hurry()
        with self._changed:
            return self._changed.wait_for(lambda: self._oldest() > upto, seconds)

    def full(self, item: Item | Bar) -> BufferFull:
        """The error for a message that there is no room for."""
        return BufferFull(item.key, self._capacity)

    def end(self) -> None:
        """Take nothing more; what is here is still sent, as long as the process lives."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """Send what is here, take nothing more, and tell what could not be sent in that time."""
        self.end()
        thread = self._thread
        if self._is_mine():
            return  # it sends what is here, and ends
        if thread is not None:
            self.flush(seconds)
            with self._changed:
                self._abandoned = True
                left = [*self._sending.values(), *self._waiting.values()]
                self._waiting.clear()
                self._sending.clear()
                self._changed.notify_all()
            if left:
                self._complain(Unsent(tuple(item.key for item in left)))
            else:
                thread.join(1.0)
        _lives.discard(self)

    def forked(self) -> None:
        """This is another process now: what waited is its parent's to send."""
        for entry in self._waiting.values():
            _leave(entry)
        self._begin()

    def _take_in(self, item: Item | Bar) -> bool:
        if self._ending:
            raise Ended("the publisher is closed")
        if self._thread is None:
            self._thread = self._started(item)
        older = self._groups.get(item.group)
        replaced = self._waiting[older].size if older is not None else 0
        number = len(self._waiting) + len(self._sending) - (older is not None)
        if number and (
            number >= self._capacity or self._bytes - replaced + item.size > self._capacity_bytes
        ):
            return False
        if older is not None:
            _leave(self._waiting.pop(older))
        self._number += 1
        self._waiting[self._number] = item
        if isinstance(item, Bar):
            item.waiting = True
        self._bytes += item.size - replaced
        if item.group:
            self._groups[item.group] = self._number
        if older is None and len(self._waiting) in (1, GATHER_MESSAGES):
            self._changed.notify_all()
        return True

    def _started(self, item: Item | Bar) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="msgpush publisher", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there are too many, or the interpreter is about to end
            raise Unavailable(str(error), (item.key,)) from error
        return thread

    def _is_mine(self) -> bool:
        """Whether this is the buffer's own thread, which would wait for itself."""
        return threading.current_thread() is self._thread

    def _oldest(self) -> float:
        first = next(iter(self._sending), None) or next(iter(self._waiting), None)
        return first if first is not None else float("inf")

    def _run(self) -> None:
        with suppress(_Abandoned):
            while (items := self._take()) is not None:
                for error in self._unsendable:
                    self._complain(error)
                verdicts = self._publish(items)
                with self._changed:
                    self._bytes -= sum(item.size for item in items)
                    self._sending.clear()
                    self._last_sent = self._clock()
                    self._failing = False
                    self._changed.notify_all()
                for verdict in verdicts:
                    if not isinstance(verdict, Sent):
                        self._complain(verdict)
        self._http.close()

    def _publish(self, items: list[Item]) -> list[Verdict]:
        try:
            return self._http.run(publish_all(items, self._clock))
        except _Abandoned:
            raise
        except Exception as error:
            # Whatever it is (options that httpx2 doesn't take, say): the thread goes on, and tells.
            log.exception("messages could not be sent")
            return [Unavailable(repr(error), (item.key,)) for item in items]

    def _take(self) -> list[Item] | None:
        """The next messages to send; none, when it ends."""
        with self._changed:
            self._unsendable.clear()
            self._changed.wait_for(lambda: self._waiting or self._ending)
            if not self._waiting:
                return None
            self._gather()
            taken: list[Item] = []
            for _ in range(min(len(self._waiting), LARGEST_BATCH)):
                number, entry = self._waiting.popitem(last=False)
                if entry.group:
                    self._groups.pop(entry.group, None)
                if (item := self._ready(entry)) is not None:
                    self._sending[number] = item
                    taken.append(item)
            return taken

    def _ready(self, entry: Item | Bar) -> Item | None:
        """The message itself; of a bar, made now, unless it can't be one."""
        if isinstance(entry, Item):
            return entry
        try:
            item = entry.take()
        except Exception as error:  # its data may be anything
            self._bytes -= entry.size
            self._unsendable.append(Unsendable(str(error)))
            return None
        self._bytes += item.size - entry.size
        return item

    def _gather(self) -> None:
        """Give others the time to join the first one that waits."""
        begun = self._clock()
        while len(self._waiting) < GATHER_MESSAGES and not self._ending:
            if self._oldest() <= self._eager:
                return
            until = begun + GATHER_SECONDS
            if len(self._groups) == len(self._waiting):
                until = max(until, self._last_sent + PROGRESS_SECONDS)
            left = until - self._clock()
            if left <= 0:
                return
            self._changed.wait(left)

    def _pause(self, seconds: float) -> None:
        """Wait before the next try, but not when somebody begins to wait for it."""
        with self._changed:
            self._failing = True
            self._changed.notify_all()
            eager, ending = self._eager, self._ending
            self._changed.wait_for(
                lambda: self._abandoned or (self._eager, self._ending) != (eager, ending),
                min(seconds, LAST_TRIES_EVERY) if ending else seconds,
            )
            if self._abandoned:
                raise _Abandoned


def _leave(entry: Item | Bar) -> None:
    """It doesn't wait any longer, and is not going to be sent."""
    if isinstance(entry, Bar):
        entry.waiting = False


class _Abandoned(Exception):
    """There is no time left to send what is under way."""


_lives: weakref.WeakSet[Buffer] = weakref.WeakSet()


@functools.cache
def _watch_the_process() -> None:
    """Have all buffers told when the interpreter exits, and that they are in a forked process."""
    atexit.register(_close_all)
    os.register_at_fork(after_in_child=_forked)
    # A forked process of multiprocessing ends without what `atexit` has, but not without this.
    _close_at_its_end(_lives)
    multiprocessing.util.register_after_fork(_lives, _close_at_its_end)


def _close_at_its_end(_: object) -> None:
    multiprocessing.util.Finalize(None, _close_all, exitpriority=0)


def _close_all() -> None:
    # 5 seconds for all of them together.
    until = time.monotonic() + LAST_SECONDS
    for buffer in list(_lives):
        buffer.close(max(0.0, until - time.monotonic()))


def _forked() -> None:
    for buffer in list(_lives):
        buffer.forked()
