"""The clients and the publishers: a process of their own, which counts.

Each client behaves as an EventSource does: it waits for as long as it was told, comes back with its
cursor, and checks that each number follows the one before. What it is to do comes in by stdin, a
line each (`streams 500`, `finish`); what has happened goes out by stdout, as JSON, twice a second.
"""

import asyncio
import json
import random
import re
import sys
from collections import Counter
from typing import cast

import uvloop

CHANNELS = 4
RATE = 4.0
"""Messages a second and channel."""
_TICK = 0.05
_REPORT_EVERY = 0.5
_OPENED_A_TICK = 40
_REFUSED_RETRY = 5.0  # after what isn't an event stream, as the script in docs/proxies.md does
_SETTLE_SECONDS = 20.0
_NUMBER = re.compile(rb'"number":(\d+)')
_RETRY = re.compile(rb"^retry: (\d+)$", re.MULTILINE)
_ID = re.compile(rb"^id: (\S+)$", re.MULTILINE)
_CLOSE = re.compile(rb'event: msgpush\.close\n(?:id: \S+\n)?data: \{"reason":"(\w+)"')


class Crowd:
    """All clients of one address, and what became of them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.wanted = 0
        self.clients: list[Client] = []
        self.counts: Counter[str] = Counter()
        self.published = [0] * CHANNELS
        self.finishing = False

    async def run(self) -> None:
        publishers = [asyncio.create_task(self._publish(n)) for n in range(CHANNELS)]
        reports = asyncio.create_task(self._report())
        commands = asyncio.create_task(self._read_commands())
        while not self.finishing:
            self._approach()
            await asyncio.sleep(_TICK)
        await asyncio.gather(*publishers)
        await self._settle()
        for each in (reports, commands):
            each.cancel()
        self._say(final=True)

    def _approach(self) -> None:
        for _ in range(_OPENED_A_TICK):
            if len(self.clients) < self.wanted:
                client = Client(self, len(self.clients) % CHANNELS)
                self.clients.append(client)
                client.connect()
            elif len(self.clients) > self.wanted:
                self.clients.pop(random.randrange(len(self.clients))).leave()

    async def _read_commands(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command, _, value = line.decode().strip().partition(" ")
            if command == "streams":
                self.wanted = int(value)
            elif command == "finish":
                self.finishing = True
        self.finishing = True

    async def _publish(self, channel: int) -> None:
        publisher = Publisher(self, channel)
        while not self.finishing:
            await publisher.publish(self.published[channel] + 1)
            self.published[channel] += 1
            await asyncio.sleep(random.uniform(0.5, 1.5) / RATE)

    async def _settle(self) -> None:
        """Whoever is there must get the last message of its channel."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _SETTLE_SECONDS
        while (behind := self._behind()) and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(_TICK)
        for each in behind:
            self.counts["lost"] += self.published[each.channel] - cast(int, each.last)

    def _behind(self) -> "list[Client]":
        return [
            each
            for each in self.clients
            if each.last is not None and each.last < self.published[each.channel]
        ]

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_EVERY)
            self._say()

    def _say(self, *, final: bool = False) -> None:
        opened = sum(each.open for each in self.clients)
        told = dict(self.counts) | {
            "open": opened,
            "waiting": len(self.clients) - opened,
            "published": sum(self.published),
        }
        print(json.dumps(told | {"final": final}), flush=True)


class Client(asyncio.Protocol):
    """One reader, over all its streams."""

    def __init__(self, crowd: Crowd, channel: int) -> None:
        self.channel = channel
        self.last: int | None = None
        self.open = False
        self._crowd = crowd
        self._cursor = b""
        self._retry = 3.0
        self._left = False
        self._transport: asyncio.Transport | None = None
        self._text = b""
        self._head = True

    def connect(self) -> None:
        if not self._left:
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        # So that ephemeral ports never run out.
        source = (f"127.0.0.{random.randint(2, 9)}", 0)
        try:
            await loop.create_connection(
                lambda: self, "127.0.0.1", self._crowd.port, local_addr=source
            )
        except OSError as error:
            self._crowd.counts[f"connect {type(error).__name__}"] += 1
            loop.call_later(self._retry, self.connect)

    def leave(self) -> None:
        self._left = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._left:
            self._transport.abort()
            return
        self._text, self._head = b"", True
        # HTTP/1.0: the stream comes without chunks, and ends with its connection.
        resume = b"Last-Event-ID: %b\r\n" % self._cursor if self._cursor else b""
        path = b"/sse/stream/scaling%d" % self.channel
        self._transport.write(
            b"GET %b HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n%b\r\n"
            % (path, resume)
        )

    def data_received(self, data: bytes) -> None:
        self._text += data
        if self._head:
            head, end, rest = self._text.partition(b"\r\n\r\n")
            if not end:
                return
            self._head, self._text = False, rest
            status = head.split(b" ", 2)[1].decode()
            self._crowd.counts[f"stream {status}"] += 1
            if status != "200":
                self._retry = _REFUSED_RETRY
                return
        blocks, end, self._text = self._text.rpartition(b"\n\n")
        if end:
            self._take(blocks + b"\n")

    def _take(self, blocks: bytes) -> None:
        counts = self._crowd.counts
        for each in _NUMBER.findall(blocks):
            self._count(int(each))
        for each in _RETRY.findall(blocks):
            self._retry = int(each) / 1000
        for each in _ID.findall(blocks):
            self._cursor = each
        if b"event: msgpush.open" in blocks:
            counts["reopened" if self.last is not None else "opened"] += 1
            self.open = True
        counts["gaps"] += blocks.count(b"event: msgpush.gap")
        for reason in _CLOSE.findall(blocks):
            counts[f"closed {reason.decode()}"] += 1

    def _count(self, number: int) -> None:
        counts = self._crowd.counts
        counts["received"] += 1
        if self.last is not None and number <= self.last:
            counts["doubled"] += 1
            return
        if self.last is not None:
            counts["lost"] += number - self.last - 1
        self.last = number

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._transport = None
        if not self._left:
            self._crowd.counts["cut" if exc else "ended"] += 1
            asyncio.get_running_loop().call_later(self._retry, self.connect)


class Publisher:
    """Publishes one message after the other, each until it is accepted, over one connection."""

    def __init__(self, crowd: Crowd, channel: int) -> None:
        self._crowd, self._channel = crowd, channel
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def publish(self, number: int) -> None:
        body = json.dumps(
            {
                "id": f"{self._channel}-{number}",
                "type": "info",
                "service": "scaling",
                "channels": [f"scaling{self._channel}"],
                "data": {"number": number},
            },
            separators=(",", ":"),
        )
        while True:
            try:
                async with asyncio.timeout(10):
                    status = await self._send(body.encode())
            except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
                self._crowd.counts[f"publish {type(error).__name__}"] += 1
                self._forget()
            else:
                self._crowd.counts[f"publish {status}"] += 1
                if status == 202:
                    return
            await asyncio.sleep(random.uniform(0.1, 0.3))

    async def _send(self, body: bytes) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._crowd.port)
        reader, writer = self._streams
        writer.write(
            b"POST /api/v1/messages/send HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = re.search(r"\r\ncontent-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        if "\r\nconnection: close" in head:
            self._forget()
        return int(head.split(" ")[1])

    def _forget(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams = None


if __name__ == "__main__":
    uvloop.run(Crowd(int(sys.argv[1])).run())
