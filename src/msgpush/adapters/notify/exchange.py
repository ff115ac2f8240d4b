"""Requests to providers: pooled connections, all of it within ten seconds, of answers 4 KiB."""

import asyncio
import email.utils
import logging
import ssl
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple, Self

import httpcore2

from msgpush import __version__
from msgpush.adapters.notify.network import Inside, Network, Stale

SECONDS = 10.0  # for all of it
SILENCE = 8.0  # seconds without a byte, after which a connection is given up
READ = 4_096  # bytes that are read of an answer
CONCURRENCY = 50
ANEW = 5  # tries on connections that have turned out to be closed: nothing was asked on them
IDLE = 240.0  # seconds that a connection is kept for the next request

# What they log names endpoints and tokens.
_TALKATIVE = ("httpcore2", "hpack", "h2")


class Unanswered(Exception):
    """There was no answer; `reason` says why, and has no address in it.

    Attributes:
        again: whether another try makes sense.
    """

    def __init__(self, reason: str, *, again: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.again = reason, again


class Reply(NamedTuple):
    """A provider's answer.

    Attributes:
        retry_after: seconds, where it said so.
        body: its first 4 KiB.
    """

    status: int
    retry_after: float | None
    body: bytes


class Exchange:
    """Requests to the services of a provider. An async context manager.

    Args:
        trusted: hosts and ports that may be anywhere; others have to be public.
        http2: whether it is spoken, where the other side does.
        concurrency: requests under way at most; others wait.
        tls: whom to trust; None: the system's certificates.
        seconds: for a request and its answer, and `silence`, without a byte: tests are in a hurry.
    """

    def __init__(
        self,
        *,
        trusted: Iterable[tuple[str, int]] = (),
        http2: bool = False,
        concurrency: int = CONCURRENCY,
        tls: ssl.SSLContext | None = None,
        seconds: float = SECONDS,
        silence: float = SILENCE,
    ) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(),
            max_connections=concurrency,
            keepalive_expiry=IDLE,
            http2=http2,
            network_backend=Network(trusted),
        )
        self._free = asyncio.Semaphore(concurrency)
        self._seconds, self._silence = seconds, silence

    async def __aenter__(self) -> Self:
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.INFO)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    async def post(self, url: str, headers: Mapping[str, str], content: bytes) -> Reply:
        """Post something, and read the answer; no redirect is followed.

        Raises:
            Unanswered: there is none.
        """
        async with self._free:
            try:
                async with asyncio.timeout(self._seconds):
                    for _ in range(ANEW):
                        with suppress(Stale):
                            return await self._post(url, headers, content)
                    raise Unanswered("its connections end at once")
            except Inside:
                raise Unanswered("its address is internal", again=False) from None
            except (TimeoutError, httpcore2.TimeoutException):
                raise Unanswered("no answer in time") from None
            except httpcore2.ConnectError as error:
                raise Unanswered(f"no connection: {error}") from None
            except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
                raise Unanswered(f"no answer: {type(error).__name__}") from None

    async def _post(self, url: str, headers: Mapping[str, str], content: bytes) -> Reply:
        head = {
            "User-Agent": f"msgpush/{__version__}",
            "Content-Length": str(len(content)),
            **headers,
        }
        async with self._pool.stream(
            "POST",
            url,
            headers=[(name.encode(), value.encode()) for name, value in head.items()],
            content=content,
            extensions={"timeout": {"read": self._silence}},
        ) as response:
            body = b""
            async for part in response.aiter_stream():
                body += part
                if len(body) >= READ:
                    break  # the rest isn't waited for: its connection, or stream, ends
            return Reply(response.status, _retry_after(response.headers), body[:READ])


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Seconds until another try (RFC 9110, section 10.2.3); None: it isn't said, or not rightly."""
    for name, value in headers:
        if name.lower() == b"retry-after":
            text = value.decode("ascii", "replace").strip()
            if text.isascii() and text.isdigit():
                return float(text[:9])
            try:
                at = email.utils.parsedate_to_datetime(text).timestamp()
            except (ValueError, TypeError, OverflowError):
                return None
            return max(0.0, at - time.time())
    return None
