"""The two ways to the service: blocking, and async. Each does what an exchange says."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import anyio
import httpx2

from msgpush.client.exchange import Answer, Call, Exchange, Failure, Wait
from msgpush.client.tokens import AsyncTokenSource, Tokens

T = TypeVar("T")

# To connect and to send there is little time; an answer may wait for the service's own timeouts.
TIMEOUT = httpx2.Timeout(15.0, connect=5.0)
# Whatever answers at the service's address: it ends, and has room. 1,000 receipts are 7 MB at most.
ANSWERED_IN, LARGEST_ANSWER = 60.0, 16 << 20


def base_url(url: str) -> str:
    """The service's address, with the prefix under which a proxy serves it, if there is one.

    Raises:
        ValueError: it is none.
    """
    parsed = httpx2.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query:
        raise ValueError(f"url is {url!r}: it must be such as https://push.example.com")
    return url.rstrip("/")


def _request(base: str, call: Call, token: str) -> dict[str, Any]:
    headers = {"Content-Type": call.content_type} if call.body else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return {
        "method": call.method,
        "url": base + call.path,
        "content": call.body or None,
        "headers": headers,
    }


class _Endless(Exception):
    """An answer that takes too long, or too much room."""


class _Body:
    """The body of an answer, as far as it has come."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._until = time.monotonic() + ANSWERED_IN

    def add(self, part: bytes) -> None:
        """Another part; raises `_Endless`."""
        self._data += part
        if len(self._data) > LARGEST_ANSWER or time.monotonic() > self._until:
            raise _Endless("the answer has no end")

    def answer(self, response: httpx2.Response) -> Answer:
        """The whole answer."""
        return Answer(response.status_code, response.headers, bytes(self._data))


def failure(error: Exception) -> Failure:
    """That there is no answer, and why."""
    return Failure(str(error) or type(error).__name__)


class Http:
    """A blocking client.

    Args:
        options: further arguments of `httpx2.Client`, such as `verify` or `proxy`.
        sleep: waits for so many seconds, or is told to go on earlier.
    """

    def __init__(
        self,
        base: str,
        token: AsyncTokenSource,
        options: Mapping[str, Any],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._base, self._options, self._sleep = base, options, sleep
        self._tokens = Tokens(token)
        if self._tokens.waits:
            raise TypeError("the token's function is a coroutine function: it must be a plain one")
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None
        _watch_the_process()
        _lives.add(self)

    def run(self, exchange: Exchange[T]) -> T:
        """The result of an exchange; raises what it raises."""
        try:
            step = next(exchange)
            while True:
                step = exchange.send(self._do(step))
        except StopIteration as end:
            result: T = end.value
            return result

    def close(self) -> None:
        """Close its connections; the next request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def forked(self) -> None:
        """This is another process now: the connections, and who holds a lock, are its parent's."""
        self._lock = threading.Lock()
        self._tokens.forked()
        self._client = None

    def _opened(self) -> httpx2.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx2.Client(**{"timeout": TIMEOUT, **self._options})
            return self._client

    def _do(self, step: Call | Wait) -> Answer | Failure:
        if isinstance(step, Wait):
            self._sleep(step.seconds)
            return Failure(step.cause)
        try:
            if step.fresh:
                self._tokens.forget()
            token = self._tokens.get()
        except Exception as error:
            return _no_token(error)
        client = self._opened()
        body = _Body()
        try:
            with client.stream(**_request(self._base, step, token)) as response:
                for part in response.iter_bytes():
                    body.add(part)
                return body.answer(response)
        except (httpx2.HTTPError, _Endless) as error:
            return failure(error)


class AsyncHttp:
    """An async client; as `Http`."""

    def __init__(self, base: str, token: AsyncTokenSource, options: Mapping[str, Any]) -> None:
        self._base, self._options = base, options
        self.tokens = Tokens(token)
        self._opened: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        _watch_the_process()
        _lives.add(self)

    @property
    def _client(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._opened is None or self._loop is not loop:
            # Connections of a loop that has ended are of no use in another one.
            self._opened = httpx2.AsyncClient(**{"timeout": TIMEOUT, **self._options})
            self._loop = loop
        return self._opened

    async def run(self, exchange: Exchange[T]) -> T:
        """The result of an exchange; raises what it raises."""
        try:
            step = next(exchange)
            while True:
                step = exchange.send(await self._do(step))
        except StopIteration as end:
            result: T = end.value
            return result

    async def close(self) -> None:
        """Close its connections; the next request opens new ones."""
        client, self._opened = self._opened, None
        if client is not None:
            await client.aclose()

    def forked(self) -> None:
        """As of `Http`."""
        self.tokens.forked()
        self._opened = None

    def stream(
        self, path: str, headers: Mapping[str, str], *, token: str
    ) -> AbstractAsyncContextManager[httpx2.Response]:
        """A request whose answer is read as it comes; it may take as long as it likes."""
        request = _request(self._base, Call("GET", path), token)
        request["headers"] |= headers
        return self._client.stream(**request, timeout=None)

    async def _do(self, step: Call | Wait) -> Answer | Failure:
        if isinstance(step, Wait):
            await anyio.sleep(step.seconds)
            return Failure(step.cause)
        try:
            if step.fresh:
                self.tokens.forget()
            token = await self.tokens.aget()
        except Exception as error:
            return _no_token(error)
        body = _Body()
        try:
            async with self._client.stream(**_request(self._base, step, token)) as response:
                async for part in response.aiter_bytes():
                    body.add(part)
                return body.answer(response)
        except (httpx2.HTTPError, _Endless) as error:
            return failure(error)


_lives: weakref.WeakSet[Http | AsyncHttp] = weakref.WeakSet()


@functools.cache
def _watch_the_process() -> None:
    """Have all clients told that they are in a forked process: two on one connection mix up their
    answers.
    """
    os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    for client in list(_lives):
        client.forked()


def _no_token(error: Exception) -> Failure:
    # Whatever a token's function raises is no reason for a job to fail: it may work the next time.
    return Failure(f"no token: {failure(error).cause}")
