"""The floors: what the sockets alone cost, and what the HTTP server alone costs.

`python -m bench.floors loop PORT CURSOR` is a bare epoll send loop; `python -m bench.floors app
PORT` a bare ASGI app. Both speak just enough of the service's HTTP for the same load client to
drive them."""

import json
import select
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Event = MutableMapping[str, Any]

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-store,"
    b" no-transform\r\nx-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\n"
)
_ANSWER = json.dumps(
    {
        "id": "msg_1753859400123_0000001",
        "timestamp": "2025-07-30T15:10:00.123Z",
        "channels": ["bench", "service:bench"],
        "cursor": "k3Jd9s.1753859400123-12",
        "duplicate": False,
    },
    separators=(",", ":"),
).encode()
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-length: %d\r\n\r\n%s" % (len(_ANSWER), _ANSWER)
_HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BareLoop:
    """For each message, one send() of the same frame to every stream, and nothing else.

    No history, no check, no resume; a socket that is full holds everybody up.
    """

    def __init__(self, port: int, cursor: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=2048)
        self._listener.setblocking(False)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._peers: dict[int, socket.socket] = {}
        self._streams: dict[int, socket.socket] = {}
        self._frame_head = b"event: progress\nid: " + cursor.encode() + b"\ndata: "
        self._opening = _STREAM_HEAD + _chunk(
            b'retry: 2750\nevent: msgpush.open\nid: 0\ndata: {"heartbeat":30}\n\n'
        )

    def run(self) -> None:
        """Serve until killed."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    self._read(fd)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            peer.setblocking(False)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[peer.fileno()] = peer
            self._poll.register(peer, select.EPOLLIN)

    def _read(self, fd: int) -> None:
        """Read a request, which has come whole, and answer it."""
        peer = self._peers[fd]
        try:
            request = peer.recv(65536)
        except ConnectionError:
            request = b""
        if request.startswith(b"POST "):
            self._publish(request[request.index(b'"data":') + len(b'"data":') : -1])
            peer.send(_ACCEPTED)
        elif request.startswith(b"GET /sse/"):
            peer.send(self._opening)
            self._streams[fd] = peer
        else:
            if request:
                peer.send(_HEALTHY)
            self._streams.pop(fd, None)
            del self._peers[fd]
            peer.close()

    def _publish(self, data: bytes) -> None:
        frame = _chunk(self._frame_head + data + b"\n\n")
        size = len(frame)
        for stream in self._streams.values():
            try:
                sent = stream.send(frame)
            except BlockingIOError:
                sent = 0
            if sent < size:
                _send_rest(stream, frame[sent:])


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def _send_rest(stream: socket.socket, rest: bytes) -> None:
    # The one place where the loop waits: to skip the stream would lose a message.
    stream.setblocking(True)
    stream.sendall(rest)
    stream.setblocking(False)


async def bare_app(
    scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
) -> None:
    """Read the body, answer 202 with a fixed answer as long as the service's."""
    body = b""
    more = True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_ANSWER))]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": _ANSWER})


def main(arguments: list[str]) -> None:
    """Serve the floor that the arguments name."""
    if arguments[0] == "loop":
        BareLoop(int(arguments[1]), arguments[2]).run()
    else:
        import uvicorn  # noqa: PLC0415 (the loop does without)

        uvicorn.run(
            bare_app,
            host="127.0.0.1",
            port=int(arguments[1]),
            http="httptools",
            loop="uvloop",
            lifespan="off",
            log_level="warning",
            access_log=False,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
