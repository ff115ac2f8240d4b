"""Group commit: questions that come up while others are answered are asked together, next.

So a group is as large as the traffic is heavy: a question that comes alone isn't held up by any
timer, and many that come at a time cost Redis one call. So publishes are committed (`Writer`), the
calls of many are sent over one connection (`SharedLink`), and rates are asked for (`RedisLimiter`).

A task of its own asks, so that nobody's going disturbs the others. A caller may bring several
questions; a group that is full takes some of them, and the next one the others. So the queue is of
callers, the oldest first, each with the answers that it has so far: one of whose questions some are
still to be asked stays at its front."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from msgpush.domain.errors import BusUnavailable

QUESTIONS = 256

Q = TypeVar("Q")
A = TypeVar("A")


class _Caller(Struct, Generic[Q, A], eq=False, gc=False):
    """A caller's questions, and the answers so far.

    Attributes:
        stays: whether they are asked even where the caller goes.
        done: cancelled where it has gone.
    """

    questions: Sequence[Q]
    stays: bool
    answers: list[A | BusUnavailable]
    done: asyncio.Future[None]

    @property
    def missing(self) -> int:
        return len(self.questions) - len(self.answers)


class Batcher(Generic[Q, A]):
    """Answers questions in groups.

    Args:
        ask: the answers to some questions, in their order. Raises BusUnavailable where there are
            none.
        most: questions of a group.
        room: begins a group; what it returns says how many of some further questions, in their
            order, have room in it. A question that has none stands alone.
        ended: what those are told who aren't asked for any more.

    Attributes:
        doubted: whether those behind a group that failed are to be asked all the same, one alone,
            since it may have failed for how much was asked."""

    def __init__(
        self,
        ask: Callable[[Sequence[Q]], Awaitable[Sequence[A]]],
        most: int = QUESTIONS,
        room: Callable[[], Callable[[Sequence[Q]], int]] = lambda: len,
        ended: str = "Redis is not asked any more",
    ) -> None:
        self._ask, self.most, self._room, self._ended = ask, most, room, ended
        self.doubted = False
        self._callers: deque[_Caller[Q, A]] = deque()
        self._asking: list[tuple[_Caller[Q, A], int]] = []  # with how many of their questions
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        # Whoever asks first isn't the one that it is done for alone.
        self._context = contextvars.copy_context()

    async def __call__(self, question: Q) -> A:
        """The answer to one question; it isn't asked where the caller goes first.

        Raises:
            BusUnavailable: there is none.
        """
        caller = self._queued([question], stays=False)
        await caller.done
        answer = caller.answers.pop()
        if isinstance(answer, BusUnavailable):
            try:
                raise answer
            finally:
                del answer  # else it and this frame would keep each other
        return answer

    async def all(self, questions: Sequence[Q]) -> list[A | BusUnavailable]:
        """The answers to some questions; they are asked even where the caller goes."""
        caller = self._queued(questions, stays=True)
        await caller.done
        return caller.answers

    async def close(self) -> None:
        """Ask no more; who still waits is refused, and so is who comes later."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._refuse(BusUnavailable(self._ended))

    def _queued(self, questions: Sequence[Q], *, stays: bool) -> _Caller[Q, A]:
        done = asyncio.get_running_loop().create_future()
        caller: _Caller[Q, A] = _Caller(questions, stays, [], done)
        if self._closed or not questions:
            caller.answers.extend([BusUnavailable(self._ended)] * len(questions))
            done.set_result(None)
            return caller
        self._callers.append(caller)
        if not self._arrived.is_set():
            self._arrived.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._run(), name="msgpush redis batcher", context=self._context
            )
        return caller

    async def _run(self) -> None:
        """Ask for one group after the other, and hand out the answers."""
        try:
            while True:
                while not self._callers:
                    self._arrived.clear()
                    await self._arrived.wait()
                if not (group := self._next_group()):
                    continue
                try:
                    self._hand_out(await self._ask(group))
                except BusUnavailable as error:
                    # As a value it would keep the frames that it came through, and so the
                    # questions, in a circle.
                    error.__cause__ = error.__context__ = None
                    # Those behind would find the same, and have waited as long already.
                    self._refuse(error.with_traceback(None), all=not self.doubted)
        finally:
            self._refuse(BusUnavailable(self._ended))

    def _next_group(self) -> list[Q]:
        """The questions that are asked together next, in the order of their callers."""
        group: list[Q] = []
        left, room, callers = self.most, self._room(), self._callers
        while callers and left:
            caller = callers[0]
            if caller.done.done() and not (caller.stays and caller.missing):
                callers.popleft()
                continue
            asked = caller.questions[len(caller.answers) :] if caller.answers else caller.questions
            number = room(asked[:left])
            if not number:
                if group:
                    break
                number, left = 1, 1
            group += asked[:number]
            left -= number
            self._asking.append((caller, number))
            if number < len(asked):
                break
            callers.popleft()
        return group

    def _hand_out(self, answers: Sequence[A]) -> None:
        given = 0
        for caller, number in self._asking:
            caller.answers.extend(answers[given : given + number])
            given += number
            if len(caller.answers) == len(caller.questions) and not caller.done.done():
                caller.done.set_result(None)
        self._asking.clear()

    def _refuse(self, error: BusUnavailable, *, all: bool = True) -> None:
        """Fail those who were asked for, and all who wait behind them."""
        for caller in [*(caller for caller, _ in self._asking), *(self._callers if all else ())]:
            caller.answers.extend([error] * caller.missing)
            if not caller.done.done():
                caller.done.set_result(None)
        self._asking.clear()
        if all:
            self._callers.clear()
