"""Publishers: what a back end says its messages with."""

from __future__ import annotations

import asyncio
import functools
import inspect
import secrets
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack, cast

from anyio.to_thread import run_sync

from msgpush.client.buffer import CAPACITY, Buffer, Complaints, OnError, WhenFull
from msgpush.client.delivery import Delivery, read_delivery
from msgpush.client.errors import MsgpushError, Unsendable
from msgpush.client.exchange import Call, Verdict, ask, delivery_path, publish, publish_all
from msgpush.client.http import AsyncHttp, Http, base_url
from msgpush.client.messages import (
    Bar,
    Data,
    Defaults,
    Item,
    Options,
    Routing,
    Sent,
    Type,
    check,
    complete,
    failed,
    group_of,
    item,
    progressed,
)
from msgpush.client.task import Task
from msgpush.client.tokens import AsyncTokenSource, OAuth2, TokenSource

R = TypeVar("R")
TOKEN_TIMEOUT = 30.0
LOOK_EVERY = 0.01  # seconds, for room in the buffer


class PublisherOptions(TypedDict, total=False):
    """What a publisher may be given; see `Publisher`."""

    service: str
    source: str
    buffered: bool
    capacity: int
    when_full: WhenFull
    on_error: OnError | None
    http: Mapping[str, Any] | None


class _Publisher(ABC, Generic[R]):
    """What both publishers say alike; `R` is what a message's sending gives."""

    def __init__(
        self,
        url: str,
        buffer_token: TokenSource,
        options: PublisherOptions,
    ) -> None:
        if unknown := options.keys() - PublisherOptions.__annotations__.keys():
            raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
        self._base = base_url(url)
        self._http_options = options.get("http") or {}
        service, source = options.get("service", ""), options.get("source", "")
        self._buffered = options.get("buffered", False)
        self._now = Defaults(service, source, stamped=self._buffered)
        self._later = Defaults(service, source, stamped=True)
        self._complain = Complaints(options.get("on_error"))
        self._buffer = Buffer(
            functools.partial(Http, self._base, buffer_token, self._http_options),
            self._complain,
            capacity=options.get("capacity", CAPACITY),
            when_full=options.get("when_full", "wait"),
        )
        # Who forgets to close it gets its messages sent all the same.
        weakref.finalize(self, self._buffer.end).atexit = False

    @abstractmethod
    def _send(self, item: Item) -> R: ...

    @abstractmethod
    def _put(self, entry: Item | Bar) -> None:
        """Buffer a message of a job, which must not be held up by a service that is away."""

    def send(self, type: Type, data: Data | None = None, **options: Unpack[Options]) -> R:
        """Publish a message.

        Returns:
            What the service answered; of a buffered one its key alone.

        Raises:
            Rejected: the service says what is wrong with it.
            Unavailable: the service was away for 5 minutes.
            BufferFull: buffered, with `when_full="raise"`.
            ValueError, TypeError: it can't be a message at all.
        """
        return self._send(item(self._now, type, data, options))

    def broadcast(self, type: Type, data: Data | None = None, **options: Unpack[Options]) -> R:
        """Publish a message to everybody; as `send`."""
        return self._send(item(self._now, type, data, options, broadcast=True))

    def progress(
        self,
        task: str,
        percent: float,
        *,
        stage: str | None = None,
        message: str | None = None,
        details: Data | None = None,
        **options: Unpack[Options],
    ) -> R:
        """Say how far a task is, in percent; as `send`.

        Buffered, it gives way to a newer one of the same task and the same readers.
        """
        data = progressed(task, percent, stage, message, details)
        group = group_of(task, options)
        return self._send(item(self._now, "progress", data, options, group=group))

    def status(
        self, task: str, state: str, data: Data | None = None, **options: Unpack[Options]
    ) -> R:
        """Say what a task is at; as `send`."""
        return self.send("status", {"task_id": task, "state": state, **(data or {})}, **options)

    def success(self, task: str, data: Data | None = None, **options: Unpack[Options]) -> R:
        """Say that a task is done, and with what result; as `send`."""
        return self.send("success", {"task_id": task, **(data or {})}, **options)

    def error(
        self,
        task: str,
        error: BaseException | str,
        data: Data | None = None,
        **options: Unpack[Options],
    ) -> R:
        """Say that a task has failed, and how; as `send`."""
        return self.send("error", {**failed(task, error), **(data or {})}, **options)

    def report(self, type: Type, data: Data | None = None, **options: Unpack[Options]) -> None:
        """Publish a message of a job that goes on whatever becomes of it.

        It goes through the buffer in any case, isn't held up by a service that is away, and raises
        nothing: `on_error` is told.
        """
        self._report(type, data, options)

    def task(self, name: str, *, id: str | None = None, **options: Unpack[Routing]) -> Task:
        """A task whose start, progress and end are reported, as in
        `with publisher.task("import", user="123") as task:`.

        Args:
            id: the task's own, as in `import-42`; by default its name and a random part.
            options: whom its messages are for, and what else `send` takes.
        """
        check(options)
        id = id or f"{name}-{secrets.token_hex(4)}"
        bar = Bar(self._later, options, group_of(id, options))

        def report(type: Type, data: Data) -> None:
            self._report(type, data, options)

        return Task(report, self._put_report, bar, name, id)

    def _report(self, type: Type, data: Data | None, options: Options | Routing) -> None:
        try:
            entry = item(self._later, type, data, options)
        except Exception as error:  # the data may be anything
            self._complain(Unsendable(str(error)))
        else:
            self._put_report(entry)

    def _put_report(self, entry: Item | Bar) -> None:
        try:
            self._put(entry)
        except MsgpushError as error:
            self._complain(error)


class Publisher(_Publisher[Sent]):
    """Publishes messages; for programs that may block, from any number of threads.

    Each message has an id before it is sent, so it is tried again after any error that may pass,
    for 5 minutes, and stored once.

    Args:
        url: where the service is, such as `https://push.example.com`.
        token: a token, a function that gives one, or an `OAuth2`.
        service: the publishing service's name, which every message has.
        buffered: send messages in the background, many in one request.
        capacity: messages that the buffer holds.
        when_full: what is done when it holds so many: "wait", or "raise" `BufferFull`.
        on_error: is told what became of buffered messages that were not accepted; by default they
            are logged, a line a minute at most.
        http: further arguments of `httpx2.Client`, such as `verify` or `proxy`.
    """

    def __init__(
        self, url: str, *, token: TokenSource = None, **options: Unpack[PublisherOptions]
    ) -> None:
        super().__init__(url, token, options)
        self._http = Http(self._base, token, self._http_options)

    def batch(self, messages: Iterable[Mapping[str, Any]]) -> list[Verdict]:
        """Publish messages, in the form of the service's API, in their order.

        Returns:
            What became of each: `Sent`, or the error that it would have raised alone.
        """
        items = [complete(self._now, each) for each in messages]
        if self._buffered:
            return [self._send(each) for each in items]
        return self._http.run(publish_all(items, time.monotonic))

    def delivery(self, key: str) -> Delivery:
        """What became of a message that wants an acknowledgement.

        Raises:
            Rejected: 404, there is no such one.
        """
        answer = self._http.run(ask(Call("GET", delivery_path(key)), time.monotonic, key))
        return read_delivery(answer)

    def withdraw(self, key: str) -> None:
        """Take back a message that wants an acknowledgement.

        Raises:
            Rejected: 404, there is no such one; 409, it was acknowledged.
        """
        self._http.run(ask(Call("DELETE", delivery_path(key)), time.monotonic, key))

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until what is buffered by now has been sent; whether it has, in that time."""
        return self._buffer.flush(seconds)

    def close(self) -> None:
        """Send what is buffered, in 5 seconds at most, and tell what was left."""
        self._buffer.close()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, item: Item) -> Sent:
        if self._buffered:
            self._buffer.put(item)
            return Sent(item.key)
        return self._http.run(publish(item, time.monotonic))

    def _put(self, entry: Item | Bar) -> None:
        self._buffer.put(entry, patient=False)


class AsyncPublisher(_Publisher[Awaitable[Sent]]):
    """Publishes messages; for asyncio.

    As `Publisher`, and its methods are awaited. What is buffered is sent by a thread, so that the
    event loop has no work with it, and a loop that has ended loses nothing.

    Args:
        token: as for `Publisher`, or a coroutine function.
    """

    def __init__(
        self, url: str, *, token: AsyncTokenSource = None, **options: Unpack[PublisherOptions]
    ) -> None:
        asked = callable(token) and not isinstance(token, OAuth2)
        self._in_loop = _InLoop(cast("_Source", token)) if asked else None
        buffer_token = cast("TokenSource", self._in_loop or token)
        super().__init__(url, buffer_token, options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._when_full = options.get("when_full", "wait")
        self._http = AsyncHttp(self._base, token, self._http_options)

    async def batch(self, messages: Iterable[Mapping[str, Any]]) -> list[Verdict]:
        """As of `Publisher`."""
        items = [complete(self._now, each) for each in messages]
        if self._buffered:
            return [await self._send(each) for each in items]
        return await self._http.run(publish_all(items, time.monotonic))

    async def delivery(self, key: str) -> Delivery:
        """As of `Publisher`."""
        answer = await self._http.run(ask(Call("GET", delivery_path(key)), time.monotonic, key))
        return read_delivery(answer)

    async def withdraw(self, key: str) -> None:
        """As of `Publisher`."""
        await self._http.run(ask(Call("DELETE", delivery_path(key)), time.monotonic, key))

    async def flush(self, seconds: float | None = None) -> bool:
        """As of `Publisher`."""
        self._know_loop()
        upto = self._buffer.hurry()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._buffer.is_done(upto):  # noqa: ASYNC110 - a thread's state
                    await asyncio.sleep(LOOK_EVERY)
        return self._buffer.is_done(upto)

    async def close(self) -> None:
        """As of `Publisher`."""
        self._know_loop()
        await run_sync(self._buffer.close)
        await self._http.close()

    async def __aenter__(self) -> Self:
        self._know_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, item: Item) -> Sent:
        if not self._buffered:
            return await self._http.run(publish(item, time.monotonic))
        self._know_loop()
        if not self._buffer.offer(item):
            if self._when_full == "raise":
                raise self._buffer.full(item)
            async with self._turn:  # who came first is first
                while not self._buffer.offer(item):  # noqa: ASYNC110 - a thread's state
                    await asyncio.sleep(LOOK_EVERY)
        return Sent(item.key)

    def _put(self, entry: Item | Bar) -> None:
        with suppress(RuntimeError):  # a thread of the job has none
            self._know_loop()
        # The loop isn't held up for a moment: what a full buffer doesn't take is told.
        if not self._buffer.offer(entry):
            raise self._buffer.full(entry)

    def _know_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._turn = loop, asyncio.Lock()
        if self._in_loop is not None:
            self._in_loop.loop = loop


_Source = Callable[[], str | Awaitable[str]]


class _InLoop:
    """A function's token, for the buffer's thread: what is to be awaited is so in the loop."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self.loop: asyncio.AbstractEventLoop | None = None

    def __call__(self) -> str:
        token = self._source()
        if isinstance(token, str):
            return token
        if self.loop is None or self.loop.is_closed():
            if inspect.iscoroutine(token):
                token.close()
            raise RuntimeError("the event loop of its function has ended")
        return asyncio.run_coroutine_threadsafe(_result(token), self.loop).result(TOKEN_TIMEOUT)


async def _result(token: Awaitable[str]) -> str:
    return await token
