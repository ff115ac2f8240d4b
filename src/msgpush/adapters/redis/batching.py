"""Group commit: questions that come up while others are answered are asked together, next.

So a group is as large as the traffic is heavy: a question that comes alone isn't held up by any
timer, and many that come at a time cost Redis one call. So publishes are committed (`Writer`), the
calls of many are sent over one connection (`SharedLink`), and rates are asked for (`RedisLimiter`).

A task of its own asks, so that nobody's going disturbs the others. A caller may bring several
questions; a group that is full takes some of them, and the next one the others. So the queue is of
callers, the oldest first, each with the answers that it has so far; and a group is of those at its
front."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from msgpush.domain.errors import BusUnavailable

QUESTIONS = 256

Q = TypeVar("Q")
A = TypeVar("A")


class _Caller(NamedTuple, Generic[Q, A]):
    """A caller's questions, and the answers so far. One that has gone is done, too."""

    questions: Sequence[Q]
    answers: list[A | BusUnavailable]
    done: asyncio.Future[None]


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
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def __call__(self, question: Q) -> A:
        """The answer to one question; it isn't asked where the caller goes first.

        Raises:
            BusUnavailable: there is none.
        """
        caller = self._queued([question])
        await caller.done
        (answer,) = caller.answers
        if isinstance(answer, BusUnavailable):
            raise answer
        return answer

    async def all(self, questions: Sequence[Q]) -> list[A | BusUnavailable]:
        """The answers to some questions; they are asked even where the caller goes."""
        caller = self._queued(questions)
        await asyncio.shield(caller.done)
        return caller.answers

    async def close(self) -> None:
        """Ask no more; who still waits is refused, and so is who comes later."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._refuse(self._callers, BusUnavailable(self._ended))  # of a task that had no turn yet

    def _queued(self, questions: Sequence[Q]) -> _Caller[Q, A]:
        caller: _Caller[Q, A] = _Caller(questions, [], asyncio.get_running_loop().create_future())
        if self._closed:
            self._refuse([caller], BusUnavailable(self._ended))
            return caller
        self._callers.append(caller)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="msgpush redis batcher")
        return caller

    async def _run(self) -> None:
        try:
            while group := self._next_group():
                try:
                    answers = await self._ask([each for _, some in group for each in some])
                except BusUnavailable as error:
                    # As a value it would keep the frames that it came through, and so the
                    # questions, in a circle.
                    error.__cause__ = error.__context__ = None
                    # Those behind would find the same, and have waited as long already.
                    failed = [caller for caller, _ in group] if self.doubted else self._callers
                    self._refuse(failed, error.with_traceback(None))
                else:
                    _hand_out(group, answers)
        finally:
            self._task = None
            self._refuse(self._callers, BusUnavailable(self._ended))

    def _next_group(self) -> list[tuple[_Caller[Q, A], Sequence[Q]]]:
        while self._callers and self._callers[0].done.done():
            self._callers.popleft()
        group: list[tuple[_Caller[Q, A], Sequence[Q]]] = []
        left, room = self.most, self._room()
        for caller in self._callers:
            if caller.done.done():
                continue
            asked = caller.questions[len(caller.answers) :]
            some = asked[:left]
            some = some[: room(some) or (0 if group else 1)]
            if some:
                group.append((caller, some))
            left -= len(some)
            if not left or len(some) < len(asked):
                break
        return group

    def _refuse(self, callers: Iterable[_Caller[Q, A]], error: BusUnavailable) -> None:
        for caller in callers:
            if not caller.done.done():
                caller.answers.extend([error] * (len(caller.questions) - len(caller.answers)))
                caller.done.set_result(None)


def _hand_out(group: Sequence[tuple[_Caller[Q, A], Sequence[Q]]], answers: Sequence[A]) -> None:
    given = 0
    for caller, some in group:
        caller.answers.extend(answers[given : given + len(some)])
        given += len(some)
        if len(caller.answers) == len(caller.questions) and not caller.done.done():
            caller.done.set_result(None)
