"""Listeners: what a program hears messages with.

A listener is one stream after another: each ends sooner or later, and the next one goes on at its
cursor. There are two cursors. One is after what has been *received*: there the next stream begins.
The other is after what the program has *done*, which is known when it asks for the next event: that
one is kept in the cursor's file, so a program that dies in the midst of a message gets it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from queue import SimpleQueue
from time import monotonic
from typing import Any, Generic, Protocol, Self, TypedDict, TypeVar, Unpack, cast
from urllib.parse import quote, urlencode

import httpx2
import msgspec
from anyio.to_thread import run_sync
from msgspec import Struct

from msgpush.client.cursors import CursorFile
from msgpush.client.errors import UNREADABLE, Ended, MsgpushError, Rejected, rejected
from msgpush.client.events import (
    Closed,
    Event,
    Gap,
    Message,
    Opened,
    Received,
    SyncEvent,
    SyncMessage,
)
from msgpush.client.exchange import Backoff, Call, ask, passes, read, retry_after
from msgpush.client.http import AsyncHttp, base_url, failure
from msgpush.client.tokens import AsyncTokenSource

M = TypeVar("M", bound=Received)
T_contra = TypeVar("T_contra", contravariant=True)

OPENS_IN = 15.0  # seconds
FIRST_SILENCE = 75.0  # until a stream has said how often its heart beats
SILENT_BEATS, SHORTEST_SILENCE = 2.5, 1.0
LARGEST_EVENT = 64 << 20
REMEMBERED = 10_000  # keys of messages that want an acknowledgement
KEPT_EVERY = 0.2  # seconds
# Who comes back to a service that is about to end is told "overload", and to come back much later.
# So long after the word of its end that is taken for what it is.
DRAINS_FOR, DRAIN_WAIT = 60.0, 0.5
AHEAD = 1000  # events that were received and not asked for yet, at most

log = logging.getLogger("msgpush.client")


class _Acknowledged(Struct):
    acknowledged: list[str]


_decode_gap = msgspec.json.Decoder(Gap).decode
_decode_opened = msgspec.json.Decoder(Opened).decode
_decode_closed = msgspec.json.Decoder(Closed).decode
_decode_acknowledged = msgspec.json.Decoder(_Acknowledged).decode


class _Lost(Exception):
    """There is no stream this time; `at_least` are the seconds that the service asks for."""

    def __init__(self, detail: str, at_least: float = 0.0) -> None:
        super().__init__(detail)
        self.at_least = at_least


class _Unauthorized(_Lost):
    """The token was refused."""


class ListenerOptions(TypedDict, total=False):
    """What to listen to, and how; see `Listener`."""

    channels: str | Sequence[str]
    user: str | None
    service: str | None
    token: AsyncTokenSource
    since: str | None
    types: Sequence[str]
    priority: str | None
    passive: bool
    broadcast: bool
    cursor_file: str | os.PathLike[str] | None
    http: Mapping[str, Any] | None


class _Streams(Generic[M]):
    """The streams of a listener, in an event loop.

    Args:
        form: the class of its messages.
    """

    def __init__(self, form: type[M], url: str, options: ListenerOptions) -> None:
        self._path = _path(options)
        self._http = AsyncHttp(base_url(url), options.get("token"), options.get("http") or {})
        self._decode = msgspec.json.Decoder(form).decode
        path = options.get("cursor_file")
        self._file = CursorFile(path) if path is not None else None
        kept = self._file.read() if self._file is not None else ""
        self._cursor = kept or options.get("since") or ""
        self.done = ""  # the cursor after what the program has done; it sets it
        self._silence = FIRST_SILENCE
        self._retry = 0.0  # seconds
        self._backoff = Backoff()
        self._drained = float("-inf")
        self._refused = False
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._acknowledged: OrderedDict[str, None] = OrderedDict()
        self._words: set[asyncio.Task[bool]] = set()
        self._end: Closed | None = None
        self.open = False  # whether somebody iterates, and closes it then

    async def events(self) -> AsyncGenerator[tuple[M | Gap | Opened | Closed | None, str]]:
        """All events, each with the cursor after it; of a heartbeat the cursor alone."""
        keeper = asyncio.create_task(self._keep()) if self._file is not None else None
        told = False
        try:
            while True:
                at_least = 0.0
                try:
                    async with aclosing(self._stream()) as stream:
                        async for event, cursor in stream:
                            told = False
                            yield event, cursor
                    end = self._end or Closed("lost", True, "the connection was closed")
                except (_Lost, httpx2.HTTPError, TimeoutError) as error:
                    if not isinstance(error, _Unauthorized):
                        self._refused = False
                    end = Closed("lost", True, failure(error).cause)
                    at_least = error.at_least if isinstance(error, _Lost) else 0.0
                if not told:
                    # Of an outage the first failure is told, and not each try.
                    told = True
                    yield end, self._cursor
                if not end.reconnect:
                    return
                await asyncio.sleep(self._pause(end, at_least))
        finally:
            if keeper is not None:
                keeper.cancel()
                await asyncio.wait([keeper])  # or it writes an older one over what is written now
            await self.keep()

    async def close(self) -> None:
        """End what is said besides, and close all connections."""
        self.open = False
        for word in self._words:
            word.cancel()
        await self._http.close()

    async def _stream(self) -> AsyncGenerator[tuple[M | Gap | Opened | None, str]]:
        """The events of one stream; `_end` says how the service has ended it, if it has."""
        self._end = None
        headers = {"Accept": "text/event-stream"}
        if self._cursor:
            headers["Last-Event-ID"] = self._cursor
        token = await self._token()
        async with AsyncExitStack() as closed:
            try:
                async with asyncio.timeout(OPENS_IN):
                    answer = await closed.enter_async_context(
                        self._http.stream(self._path, headers, token=token)
                    )
                    if not await self._is_open(answer):
                        return
            except TimeoutError:
                raise _Lost(f"there was no answer in {OPENS_IN:g} s") from None
            source = httpx2.EventSource(answer, LARGEST_EVENT).__aiter__()
            async with aclosing(cast("AsyncGenerator[httpx2.ServerSentEvent]", source)) as lines:
                while True:
                    try:
                        async with asyncio.timeout(self._silence):
                            line = await anext(lines)
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        raise _Lost(f"nothing was heard for {self._silence:g} s") from None
                    if line.retry is not None:
                        self._retry = line.retry / 1000
                    if line.event == "msgpush.close":
                        self._end = _decode_closed(line.data)
                        return
                    self._cursor = line.id or self._cursor
                    try:
                        event = self._event(line)
                    except UNREADABLE:
                        raise rejected(200, line.data.encode()) from None
                    if event is not None or line.event == "msgpush.heartbeat":
                        yield event, self._cursor

    async def _token(self) -> str:
        try:
            return await self._http.tokens.aget()
        except Exception as error:
            raise _Lost(f"no token: {failure(error).cause}") from error

    async def _is_open(self, answer: httpx2.Response) -> bool:
        """Whether events follow; raises `Rejected` where they never will."""
        status = answer.status_code
        if status == 200:
            return True
        if status == 204:
            self._end = Closed("over", False, "the service wants no other stream")
            return False
        body = await answer.aread()
        if status == 401 and self._http.tokens.renewable and not self._refused:
            self._refused = True
            self._http.tokens.forget()
            raise _Unauthorized(str(rejected(status, body)))
        if not passes(status):
            raise rejected(status, body)
        raise _Lost(str(rejected(status, body)), retry_after(answer.headers))

    def _event(self, line: httpx2.ServerSentEvent) -> M | Gap | Opened | None:
        match line.event:
            case "message" if line.data:
                return self._message(line)
            case "msgpush.gap":
                return _decode_gap(line.data)
            case "msgpush.heartbeat":
                self._backoff.reset()
            case "msgpush.open":
                opened = _decode_opened(line.data)
                self._silence = max(SHORTEST_SILENCE, opened.heartbeat * SILENT_BEATS)
                self._refused = False
                return opened
        return None

    def _message(self, line: httpx2.ServerSentEvent) -> M | None:
        """A message, unless it has come before."""
        message = self._decode(line.data)
        self._backoff.reset()  # not by opening alone: whoever cuts each stream then isn't hurried
        message.cursor, message.raw = self._cursor, line.data
        if message.metadata.ack:
            key = message.key
            if key in self._acknowledged:
                # That word may have been lost.
                word = asyncio.create_task(self._acknowledge_again(message))
                self._words.add(word)
                word.add_done_callback(self._words.discard)
                return None
            if key in self._seen:
                return None
            _remember(self._seen, key)
        return message

    def _pause(self, end: Closed, at_least: float) -> float:
        """Seconds to wait before the next stream."""
        now = monotonic()
        if end.reason == "drain":
            self._drained = now
        if now < self._drained + DRAINS_FOR:
            return self._backoff.wait(at_most=DRAIN_WAIT)
        if end.reason == "overload":
            return self._backoff.wait(self._retry)
        return self._backoff.wait(at_least)

    async def acknowledge(self, message: Received) -> bool:
        """Acknowledge a message; as of `Message`."""
        user = message.target.get("user_id", "")
        path = f"/api/v1/users/{quote(user, safe='')}/acknowledgements"
        call = Call("POST", path, msgspec.json.encode({"keys": [message.key]}))
        try:
            answer = await self._http.run(ask(call, monotonic, message.key))
        finally:
            if not self.open:  # nobody iterates any longer, who would close it
                await self._http.close()
        said = read(answer, _decode_acknowledged)
        if isinstance(said, Rejected):
            raise said
        _remember(self._acknowledged, message.key)
        return message.key in said.acknowledged

    async def _acknowledge_again(self, message: Received) -> bool:
        try:
            return await self.acknowledge(message)
        except MsgpushError as error:
            log.warning("it couldn't be acknowledged again: %s", error)
            return False

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEPT_EVERY)
            await self.keep()

    async def keep(self) -> None:
        """As `write`, in a thread."""
        if self._file is not None:
            await run_sync(self.write)

    def write(self) -> None:
        """Write down the place after what is done."""
        if self._file is not None:
            self._file.write(self.done)


def _remember(keys: OrderedDict[str, None], key: str) -> None:
    keys[key] = None
    if len(keys) > REMEMBERED:
        keys.popitem(last=False)


def _path(options: ListenerOptions) -> str:
    """The path of a stream of all that is to be listened to.

    Raises:
        TypeError: there is no such option.
        ValueError: there is nothing to listen to.
    """
    if unknown := options.keys() - ListenerOptions.__annotations__.keys():
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    channels = options.get("channels", ())
    names = [channels] if isinstance(channels, str) else [*channels]
    given = {"user": options.get("user"), "service": options.get("service")}
    names += [f"{kind}:{name}" for kind, name in given.items() if name is not None]
    if not names:
        raise ValueError("there is nothing to listen to: give channels, a user or a service")
    query = {
        "events": "none",
        "types": ",".join(options.get("types", ())),
        "priority": options.get("priority"),
        "passive": "true" if options.get("passive") else None,
        "broadcast": None if options.get("broadcast", True) else "false",
    }
    asked = urlencode({name: value for name, value in query.items() if value})
    return f"/sse/stream/{','.join(quote(name, safe=':') for name in names)}?{asked}"


class Listener:
    """Hears messages, for ever: `async for event in listener`.

    It reconnects by itself and goes on where it was. Events are `Message`; `Gap`, where something
    is missing; `Opened` and `Closed`, when a stream begins and ends. It ends when the service says
    so (`Closed` with `reconnect` false), and when nobody iterates over it any longer. As a context
    manager it ends at the end of the block.

    Args:
        url: where the service is, such as `https://push.example.com`.
        channels: what to listen to; `user="123"` is short for the channel `user:123`, `service="a"`
            for `service:a`.
        token: a token, a function or coroutine function that gives one, or an `OAuth2`.
        since: a cursor; "earliest", for all that is retained; by default from now on.
        types: hear only these.
        priority: hear only messages of this priority, or a higher one.
        passive: don't count as one of the user's own clients (docs/delivery.md).
        broadcast: hear what is for everybody, too.
        cursor_file: keeps the place, so that a restarted program goes on there. It wins over
            `since`.
        http: further arguments of `httpx2.AsyncClient`, such as `verify` or `proxy`.

    Raises:
        Rejected: by iterating: the service refuses the stream, and would refuse it again.
        ValueError: there is nothing to listen to, or no cursor in the file.
    """

    def __init__(self, url: str, **options: Unpack[ListenerOptions]) -> None:
        self._streams = _Streams(Message, url, options)
        self._inbox = _LoopInbox()
        self._tasks: list[asyncio.Task[None]] = []  # the last one is that of the iteration

    def __aiter__(self) -> AsyncIterator[Event]:
        """Hear on where an earlier iteration has stopped; one that goes on still ends."""
        loop = asyncio.get_running_loop()
        before = [each for each in self._tasks if not each.done() and each.get_loop() is loop]
        turn = self._inbox.begin()
        task = loop.create_task(_receive(self._streams, self._inbox, before))
        self._tasks = [*before, task]
        return _Events(self._streams, self._inbox, turn, task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


class SyncListener:
    """The twin of `Listener` for programs without an event loop: `for event in listener`.

    Its streams are in a thread.
    """

    def __init__(self, url: str, **options: Unpack[ListenerOptions]) -> None:
        self._streams = _Streams(SyncMessage, url, options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left: list[_Pair[SyncMessage]] = []  # received, and not asked for

    def __iter__(self) -> Iterator[SyncEvent]:
        inbox = _ThreadInbox(self._left)
        self._left = []
        thread = threading.Thread(
            target=self._receive, args=(inbox,), name="msgpush listener", daemon=True
        )
        thread.start()
        try:
            while True:
                event, cursor = inbox.take()
                if isinstance(event, SyncMessage):
                    event._say = self._acknowledge
                if event is not None:
                    yield event
                self._streams.done = cursor
        except _End as end:
            self._streams.write()
            if end.error is not None:
                raise end.error from None
        finally:
            inbox.stop()
            thread.join()
            self._left = inbox.left()

    def _receive(self, inbox: _ThreadInbox) -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._run(inbox))

    async def _run(self, inbox: _ThreadInbox) -> None:
        self._loop = inbox.loop = asyncio.get_running_loop()
        inbox.task = asyncio.current_task()
        if not inbox.stopped:
            await _receive(self._streams, inbox)

    def _acknowledge(self, message: Received) -> bool:
        if self._loop is None or self._loop.is_closed():
            raise Ended("the listener has ended")
        word = self._streams.acknowledge(message)
        return asyncio.run_coroutine_threadsafe(word, self._loop).result()


# How events get from the streams to the program. The streams are in a task of their own, whoever
# iterates: a program may leave its loop at any point, be cancelled, or take an hour for a message,
# and what is open is always closed by the task that has opened it. What was received and not asked
# for yet is in an inbox, which is bounded.


class _End(Exception):
    """There are no more events; `error` is why, unless it is as it should be."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error


_Pair = tuple[M | Gap | Opened | Closed | None, str]


class _Inbox(Protocol[T_contra]):
    """What was received, and not asked for yet."""

    def put(self, pair: T_contra | _End) -> None:
        """Another one; never waits."""

    def is_full(self) -> bool:
        """Whether to wait with the next one."""

    async def has_room(self) -> None:
        """Wait until half of them have been taken."""


async def _receive(
    streams: _Streams[M], inbox: _Inbox[_Pair[M]], before: Sequence[asyncio.Task[None]] = ()
) -> None:
    """Receive events until this task is cancelled: that is how whoever iterates ends it. So what
    was received can be acknowledged as long as it is worked on.

    Args:
        before: the tasks of earlier iterations, which end first.
    """
    for task in before:
        task.cancel()
    if before:
        await asyncio.wait(before)
    streams.open = True
    try:
        try:
            async with aclosing(streams.events()) as events:
                async for pair in events:
                    inbox.put(pair)  # first, since this may be where it is cancelled
                    if inbox.is_full():
                        await inbox.has_room()
        except Exception as error:
            inbox.put(_End(error))
        else:
            inbox.put(_End())
        await asyncio.Event().wait()
    finally:
        await streams.close()


class _LoopInbox:
    """An inbox within one event loop. What one iteration has left in it is the next one's."""

    def __init__(self) -> None:
        self._received: deque[_Pair[Message]] = deque()
        self._end: _End | None = None
        self._turn = 0
        self._something, self._room = asyncio.Event(), asyncio.Event()

    def begin(self) -> int:
        """Another iteration begins, which may be in another loop; its number."""
        self._something.set()
        self._something, self._room = asyncio.Event(), asyncio.Event()
        self._end = None
        self._turn += 1
        return self._turn

    def put(self, pair: _Pair[Message] | _End) -> None:
        if isinstance(pair, _End):
            self._end = pair
        else:
            self._received.append(pair)
        self._something.set()

    def is_full(self) -> bool:
        return len(self._received) >= AHEAD

    async def has_room(self) -> None:
        self._room.clear()
        await self._room.wait()

    async def take(self, turn: int) -> _Pair[Message]:
        """The next event, once it is there; raises `_End` after the last one."""
        while turn == self._turn and not self._received:
            if self._end is not None:
                raise self._end
            something = self._something
            something.clear()
            await something.wait()
        if turn != self._turn:
            raise _End
        pair = self._received.popleft()
        if len(self._received) == AHEAD // 2:
            self._room.set()
        return pair


class _Events:
    """An iteration over a listener. Its task ends with it."""

    def __init__(
        self, streams: _Streams[Message], inbox: _LoopInbox, turn: int, task: asyncio.Task[None]
    ) -> None:
        self._streams, self._inbox, self._turn, self._task = streams, inbox, turn, task
        self._cursor = ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            while True:
                self._streams.done = self._cursor or self._streams.done
                event, self._cursor = await self._inbox.take(self._turn)
                if isinstance(event, Message):
                    event._say = self._streams.acknowledge
                if event is not None:
                    return event
        except _End as end:
            await self._streams.keep()
            if end.error is not None:
                raise end.error from None
            raise StopAsyncIteration from None

    def __del__(self) -> None:
        # A loop that was left by `break` says so by this alone.
        with suppress(RuntimeError):  # the event loop has ended, and its tasks with it
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)


class _ThreadInbox:
    """An inbox between the thread of the streams and the program's.

    Args:
        before: what was left of an earlier one.
    """

    def __init__(self, before: Sequence[_Pair[SyncMessage]]) -> None:
        self._received: SimpleQueue[_Pair[SyncMessage] | _End] = SimpleQueue()
        for pair in before:
            self._received.put(pair)
        self.stopped = False
        self._room = asyncio.Event()
        self._waited_for = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None

    def put(self, pair: _Pair[SyncMessage] | _End) -> None:
        self._received.put(pair)

    def is_full(self) -> bool:
        return self._received.qsize() >= AHEAD

    async def has_room(self) -> None:
        self._room.clear()
        self._waited_for = True
        if self.is_full():  # still: whoever takes the next one knows that it is waited for
            await self._room.wait()

    def take(self) -> _Pair[SyncMessage]:
        """The next event, once it is there; raises `_End` after the last one."""
        if self._waited_for and self._received.qsize() <= AHEAD // 2:
            self._waited_for = False
            self._tell(self._room.set)
        pair = self._received.get()
        if isinstance(pair, _End):
            raise pair
        return pair

    def stop(self) -> None:
        """No more are wanted."""
        self.stopped = True  # before the task is there, it sees this
        if self.task is not None:
            self._tell(self.task.cancel)

    def left(self) -> list[_Pair[SyncMessage]]:
        """What nobody has asked for, once it has ended."""
        left: list[_Pair[SyncMessage]] = []
        while not self._received.empty():
            pair = self._received.get()
            if not isinstance(pair, _End):
                left.append(pair)
        return left

    def _tell(self, what: Callable[[], object]) -> None:
        assert self.loop is not None
        with suppress(RuntimeError):  # it has ended by itself
            self.loop.call_soon_threadsafe(what)
