"""A server of moods: each request is answered as the next of them has it.

It stands before a real service, like a proxy, or alone; then it answers as a service would that
accepts everything.
"""

import http.client
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Self

import msgspec

PATIENCE = 10.0


class Request(NamedTuple):
    """What a client has asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages that it publishes."""
        return [msgspec.json.decode(line) for line in self.body.splitlines()]


class Reply(NamedTuple):
    """The bytes of an answer, and whether the connection ends after them, or stays silent, or says
    them for ever.
    """

    data: bytes = b""
    ends: bool = False
    hangs: bool = False
    endless: bool = False


Mood = Callable[["Moody", Request], Reply]


def says(status: int, body: bytes = b"", **headers: str) -> Mood:
    """An answer of its own."""
    return lambda _, __: Reply(response(status, body, headers))


def forwards(moody: "Moody", request: Request) -> Reply:
    """The answer of the service behind it."""
    return Reply(moody.ask(request))


def refuses(_: "Moody", __: Request) -> Reply:
    """The connection ends, and nobody has seen the request."""
    return Reply(ends=True)


def hangs(_: "Moody", __: Request) -> Reply:
    """Nothing comes, ever, and nobody has seen the request."""
    return Reply(hangs=True)


def hangs_too_late(moody: "Moody", request: Request) -> Reply:
    """The request is done, and nothing comes."""
    moody.ask(request)
    return Reply(hangs=True)


def never_ends(_: "Moody", __: Request) -> Reply:
    """An answer that goes on for ever."""
    return Reply(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65536, endless=True)


def cuts(share: float) -> Mood:
    """The request is done, and the connection ends after that share of the answer."""

    def cut(moody: Moody, request: Request) -> Reply:
        answer = moody.ask(request)
        return Reply(answer[: int(len(answer) * share)], ends=True)

    return cut


def response(status: int, body: bytes, headers: dict[str, str]) -> bytes:
    """An HTTP response."""
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


class Moody:
    """The server; `moods` are those of the next requests, and `usual` is that of all others.

    Args:
        target: the port of the service behind it; none: it accepts all messages itself.
    """

    def __init__(self, *moods: Mood, target: int = 0, usual: Mood = forwards) -> None:
        self.moods, self.usual, self._target = [*moods], usual, target
        self.requests: list[Request] = []
        self.stored: dict[str, dict[str, Any]] = {}
        self._lock, self._end = threading.Lock(), threading.Event()
        self._connections: set[socket.socket] = set()
        owner = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                owner._connections.add(self.request)
                try:
                    with suppress(OSError, ValueError):
                        while owner._answer(self):
                            pass
                finally:
                    owner._connections.discard(self.request)

        class Server(socketserver.ThreadingTCPServer):
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="moody"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._server.shutdown()
        self._thread.join()
        for each in list(self._connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages that it was asked to publish, as often as it was."""
        return [message for request in self.requests for message in request.messages]

    def ask(self, request: Request) -> bytes:
        """The answer of the service behind it, or of one that accepts everything."""
        return self._forwarded(request) if self._target else self._accepted(request)

    def _answer(self, handler: socketserver.StreamRequestHandler) -> bool:
        """Answer the next request of a connection; whether there may be another one."""
        request = _read(handler)
        if request is None:
            return False
        with self._lock:
            self.requests.append(request)
            mood = self.moods.pop(0) if self.moods else self.usual
        reply = mood(self, request)
        handler.wfile.write(reply.data)
        while reply.endless and not self._end.is_set():
            handler.wfile.write(reply.data)
        if reply.hangs:
            self._end.wait(PATIENCE * 3)
        return not (reply.ends or reply.hangs)

    def _forwarded(self, request: Request) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._target, timeout=PATIENCE)
        try:
            headers = {name: text for name, text in request.headers.items() if name != "host"}
            connection.request(request.method, request.path, request.body, headers)
            answer = connection.getresponse()
            body = answer.read()
            kept = {"Content-Type": answer.getheader("Content-Type", "")}
            if again := answer.getheader("Retry-After"):
                kept["Retry-After"] = again
            return response(answer.status, body, kept)
        finally:
            connection.close()

    def _accepted(self, request: Request) -> bytes:
        receipts = []
        with self._lock:
            for message in request.messages:
                key = f"{message['service']}/{message['id']}"
                receipts.append({"id": message["id"], "duplicate": key in self.stored})
                self.stored.setdefault(key, message)
        body: Any = receipts[0] if not request.path.endswith("/batch") else {"results": receipts}
        return response(202, msgspec.json.encode(body), {"Content-Type": "application/json"})


def _read(handler: socketserver.StreamRequestHandler) -> Request | None:
    first = handler.rfile.readline().split()
    if len(first) != 3:
        return None
    headers: dict[str, str] = {}
    while (line := handler.rfile.readline().strip()) != b"":
        name, _, text = line.decode("latin-1").partition(":")
        headers[name.lower()] = text.strip()
    body = handler.rfile.read(int(headers.get("content-length", 0)))
    return Request(first[0].decode(), first[1].decode(), headers, body)
