"""A proxy for one client, which cuts its streams where a test says: at an event's end as a server
closes, in an event's midst with a reset, or before an event's last byte.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator

LIMIT = 1024 * 1024  # of a chunk's size line and a head: far above both
_TORN = (asyncio.IncompleteReadError, OSError)


class Proxy:
    """A port that leads to a service, or to nowhere: then connections are refused.

    `statuses` are those of the answers to its client's GETs, so far.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.statuses: list[int] = []
        self._server: asyncio.Server | None = None
        self._wanted: tuple[str, asyncio.Future[None]] | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Proxy"]:
        """It listens, until the block ends."""
        await self.allow()
        try:
            yield self
        finally:
            await self.refuse()
            for each in self._tasks:
                each.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def allow(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, limit=LIMIT, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Listen no more, and end what is open with a reset."""
        if self._server is not None:
            self._server.close()
            for each in list(self._open):
                _reset(each)
            self._server = None

    async def cut(self, kind: str) -> None:
        """Cut the stream at its next message: after it as a server ends a response (`end`), in its
        midst with a reset (`reset`), or before its last byte (`last`). Other connections of the
        client are reset.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted = (kind, done)
        try:
            await done
        finally:
            self._wanted = None

    def _accept(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio complains of those that it has started, and that are cancelled.
        task = asyncio.create_task(self._serve(client, answers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        self._open.add(answers)
        try:
            # A browser may open a connection long before it uses it: where it leads is decided then.
            first = await client.readuntil(b"\r\n\r\n")
            await self._relay(first, client, answers)
        except _TORN:
            _reset(answers)
        finally:
            self._open.discard(answers)
            answers.close()

    async def _relay(
        self, first: bytes, client: asyncio.StreamReader, answers: asyncio.StreamWriter
    ) -> None:
        server, requests = await asyncio.open_connection("127.0.0.1", self.target, limit=LIMIT)
        methods: deque[bytes] = deque()
        ways = [
            asyncio.create_task(_relay_requests(first, client, requests, methods)),
            asyncio.create_task(self._relay_answers(server, answers, methods)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ways:
                each.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            requests.close()

    async def _relay_answers(
        self, server: asyncio.StreamReader, answers: asyncio.StreamWriter, methods: deque[bytes]
    ) -> None:
        with contextlib.suppress(*_TORN):
            while True:
                head = await server.readuntil(b"\r\n\r\n")
                if methods.popleft() == b"GET":
                    self.statuses.append(int(head.split(b" ", 2)[1]))
                answers.write(head)
                if b"\r\ntransfer-encoding: chunked" in head.lower():
                    await self._relay_chunks(server, answers)
                elif (at := head.lower().find(b"\r\ncontent-length:")) >= 0:
                    length = int(head[at + 17 :].split(b"\r\n", 1)[0])
                    answers.write(await server.readexactly(length))
                await answers.drain()

    async def _relay_chunks(
        self, server: asyncio.StreamReader, answers: asyncio.StreamWriter
    ) -> None:
        """Relay a stream; raises where it has been cut. The service writes whole events, in
        chunks."""
        while True:
            size = await server.readuntil(b"\r\n")
            chunk = await server.readexactly(int(size, 16) + 2)
            if self._wanted is not None and b'"n":' in chunk:
                (kind, done), self._wanted = self._wanted, None
                await _cut(answers, kind, size, chunk)
                # Those that are kept alive, too: they may lead to where `target` was before.
                for each in self._open - {answers}:
                    _reset(each)
                done.set_result(None)
                raise ConnectionError("cut")
            answers.write(size + chunk)
            await answers.drain()
            if int(size, 16) == 0:
                return


async def _relay_requests(
    head: bytes,
    client: asyncio.StreamReader,
    requests: asyncio.StreamWriter,
    methods: deque[bytes],
) -> None:
    with contextlib.suppress(*_TORN):
        while True:
            methods.append(head.split(b" ", 1)[0])
            requests.write(head)
            await requests.drain()
            head = await client.readuntil(b"\r\n\r\n")


async def _cut(answers: asyncio.StreamWriter, kind: str, size: bytes, chunk: bytes) -> None:
    match kind:
        case "end":
            answers.write(size + chunk + b"0\r\n\r\n")
        case "reset":
            answers.write(size + chunk[: len(chunk) // 2])
        case "last":
            assert chunk.endswith(b"\n\n\r\n"), chunk
            answers.write(size + chunk[:-3])
    await answers.drain()
    if kind == "reset":
        _reset(answers)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset."""
    connection: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
