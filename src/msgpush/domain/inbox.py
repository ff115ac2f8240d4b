"""A sink within the process: what a program that embeds the domain reads from."""

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from msgpush.domain.history import Gap
from msgpush.domain.message import Entry, Message

HIGH_WATER = 256 * 1024

_message = msgspec.json.Decoder(Message).decode
_gap = msgspec.json.Decoder(Gap).decode
_encode = msgspec.json.encode


class Lines(Struct, frozen=True):
    """The log as lines, each a message or a gap; a listener in the process needs no heartbeat."""

    def opening(self, connection: str, channels: frozenset[str], cursor: str, **_: object) -> bytes:
        return b""

    def message(self, entry: Entry, cursor: str) -> bytes:
        return b"m" + entry.body + b"\n"

    def pending(self, body: bytes) -> bytes:
        return b""  # a listener in the process acts for nobody

    acknowledged = pending

    def gap(self, gap: Gap) -> bytes:
        return b"g" + _encode(gap) + b"\n"

    def heartbeat(self, cursor: str) -> bytes:
        return b""

    def close(self, reason: str, reconnect: bool, cursor: str) -> bytes:
        return b""  # it is raised

    def chunk(self, frames: Sequence[bytes]) -> bytes:
        return b"".join(frames)


LINES = Lines()


class Inbox:
    """Takes chunks until 256 KiB are unread: a reader that lags catches up from the log.

    What it has taken can be read after its end, too.
    """

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._lines: list[bytes] = []
        self._changed = asyncio.Event()
        self._ended = False
        self.backlog = 0

    @property
    def writable(self) -> bool:
        return self.backlog < HIGH_WATER and not self._ended

    def offer(self, chunk: bytes) -> bool:
        if not self.writable:
            return False
        if chunk:
            self._chunks.append(chunk)
            self.backlog += len(chunk)
            self._changed.set()
        return True

    def finish(self, chunk: bytes) -> None:
        self._ended = True
        self._changed.set()

    def abort(self) -> None:
        self.finish(b"")  # there is no socket to cut

    async def drained(self) -> bool:
        while not self.writable and not self._ended:
            await self._change()
        return self.writable

    async def next(self) -> Message | Gap | None:
        """The next item, when there is one; None at the end."""
        while not self._lines:
            if self._chunks:
                self._lines = self._chunks.popleft().splitlines()[::-1]
            elif self._ended:
                return None
            else:
                await self._change()
        line = self._lines.pop()
        # With each item, since that is how a slow reader is told from one that has stopped.
        self.backlog -= len(line) + 1
        self._changed.set()
        return _message(line[1:]) if line[:1] == b"m" else _gap(line[1:])

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
