"""Tasks: the start, the progress and the end of a job, said by the way."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from msgpush.client.messages import Bar, Data, Type, failed, progressed

T = TypeVar("T")

TRACKED_EVERY = 0.1  # seconds between two steps of a bar: nobody sees more

Report = Callable[[Type, Data], None]


class Task:
    """A job, and those who watch it. As a context manager it says that it starts, and how it ends:
    with `success`, or with `error` and the exception's type and text.

    All messages have its id as `data.task_id`. None waits for the service, and none raises: what
    can't be sent is told to the publisher's `on_error`. May be used from any thread.

    Args:
        report: publishes any message of it.
        put: puts its bar in the buffer.
    """

    def __init__(
        self, report: Report, put: Callable[[Bar], None], bar: Bar, name: str, id: str
    ) -> None:
        self.name, self.id = name, id
        self._report, self._put, self._bar = report, put, bar
        self._result: dict[str, Any] = {}

    def progress(
        self,
        percent: float,
        *,
        stage: str | None = None,
        message: str | None = None,
        **details: Any,
    ) -> None:
        """Say how far it is, in percent. One that is newer replaces one that still waits."""
        if self._bar.show(progressed(self.id, percent, stage, message, details)):
            self._put(self._bar)

    def status(self, state: str, **data: Any) -> None:
        """Say what it is at."""
        self.report("status", {"state": state, **data})

    def info(self, message: str, **data: Any) -> None:
        """Say something about it."""
        self.report("info", {"message": message, **data})

    def warning(self, message: str, **data: Any) -> None:
        """Say that something is not as it should be."""
        self.report("warning", {"message": message, **data})

    def result(self, **data: Any) -> None:
        """What the message of its success will have besides."""
        self._result |= data

    def report(self, type: Type, data: Data | None = None) -> None:
        """Publish any message of it."""
        self._bar = self._bar.stay_behind()
        self._report(type, {"task_id": self.id, "task": self.name, **(data or {})})

    @overload
    def track(
        self, items: Iterable[T], *, total: int | None = None, stage: str | None = None
    ) -> Tracked[T]: ...

    @overload
    def track(
        self, items: AsyncIterable[T], *, total: int | None = None, stage: str | None = None
    ) -> AsyncTracked[T]: ...

    def track(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        total: int | None = None,
        stage: str | None = None,
    ) -> Tracked[T] | AsyncTracked[T]:
        """The same items, with the progress said as they are worked through.

        Args:
            total: how many there are, where `len(items)` doesn't tell. Without either, the count
                is said as a status.
        """
        if total is None and isinstance(items, Sized):
            total = len(items)
        bar = _Bar(self, total, stage)
        if isinstance(items, AsyncIterable):
            return AsyncTracked(bar, items)
        return Tracked(bar, items)

    def __enter__(self) -> Self:
        self.status("started")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.report("success", self._result)
        else:
            self.report("error", failed(self.id, error))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)


class _Bar:
    """How far the items of a task are."""

    def __init__(self, task: Task, total: int | None, stage: str | None) -> None:
        self._task, self._total, self._stage = task, total, stage
        self._done = 0
        self._next = 0.0

    def step(self, done: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if now < self._next and not last:
            return
        self._next = now + TRACKED_EVERY
        if self._total is None:
            stage = {"stage": self._stage} if self._stage else {}
            self._task.status("finished" if last else "running", done=done, **stage)
            return
        percent = min(100.0, 100 * done / self._total) if self._total else 100.0
        self._task.progress(round(percent, 1), stage=self._stage, done=done, total=self._total)


class Tracked(Generic[T]):
    """The items of a task, whose progress is said."""

    def __init__(self, bar: _Bar, items: Iterable[T]) -> None:
        self._bar, self._items = bar, items

    def __iter__(self) -> Iterator[T]:
        done = 0
        for done, item in enumerate(self._items, 1):
            self._bar.step(done - 1)
            yield item
        self._bar.step(done, last=True)


class AsyncTracked(Generic[T]):
    """The same, of items that come asynchronously."""

    def __init__(self, bar: _Bar, items: AsyncIterable[T]) -> None:
        self._bar, self._items = bar, items

    async def __aiter__(self) -> AsyncIterator[T]:
        done = 0
        async for item in self._items:
            self._bar.step(done)
            yield item
            done += 1
        self._bar.step(done, last=True)
