"""The load client: opens streams, publishes, counts what arrives. Runs as a process of its own.

Raw non-blocking sockets and one epoll, because it must take more than any server under test can
give. Each function at the end of this module is one measurement, bounded in time, whose result says
how busy the client itself was: near 100 % the figure is the client's limit, not the server's."""

import gc
import os
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

CHANNEL = "bench"
MARK = b'"stage":"embedding"'
"""In every message once. One this long is found at several GB/s, `"t":` at 2."""

_BASE = 10**18  # makes every number below 19 digits, so that all messages have one length
_EDGE = len(MARK) - 1
_WITHIN = frozenset(MARK)
"""A read that cuts a mark ends with one of these bytes; blocks and frames end with none of them."""
_BUFFER = 1 << 20
_ANSWER = 1 << 16
_IN_FLIGHT = 128  # connections being opened at once: well within any listen backlog
_STREAMS_PER_ADDRESS = 5000
_READ_EVERY_SECONDS = (
    0.02  # where only the rate counts: a client that wakes for every frame is slower than a server
)
_SLICE = 32  # streams read before publishers get their turn
_IP_BIND_ADDRESS_NO_PORT = 24  # not in Python's socket module before 3.12
_STREAM_OPENING_SECONDS = 60.0
_DRAIN_SECONDS = 10.0
_WARM_UP_SECONDS = 0.5
_CONTENT_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_ACCEPTED = re.compile(rb'"accepted": *(\d+)')
_NUMBER = re.compile(rb'"t":(\d{19})')


class Spoiled(Exception):
    """The run can't give a figure: a connection was refused or closed, or nothing came in time."""


class Kind(NamedTuple):
    """What carries a stream.

    Attributes:
        path: of a stream that listens to `CHANNEL`.
        headers: what a request for it has besides.
        status: how an answer begins that opens it.
        opened: what its first block or frame ends with, and nothing before that has.
        cursor: finds those of its messages.
    """

    name: str
    path: str
    headers: bytes
    status: bytes
    opened: bytes
    cursor: re.Pattern[bytes]


SSE = Kind(
    name="SSE",
    path=f"/sse/stream/{CHANNEL}",
    headers=b"Accept: text/event-stream\r\n",
    status=b"HTTP/1.1 200 ",
    opened=b"\n\n",
    cursor=re.compile(rb"id: ?(\S+)\n"),
)
WHOLE = SSE._replace(name="SSE, whole messages", path=f"{SSE.path}?events=none")
"""Progress comes as its data alone otherwise: less than half of what a WebSocket gets."""
# The server's frames aren't masked: what is between messages is all that differs. A client that
# answers no ping is cut after a minute: servers are told to send none in a run's time.
WS = Kind(
    name="WebSockets",
    path=f"/ws?channel={CHANNEL}",
    headers=(
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    status=b"HTTP/1.1 101 ",
    opened=b"}}",
    cursor=re.compile(rb'"event":"message","id":"([^"]+)"'),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Counts beside the figures, by which these can be believed or not."""

    missing: int = 0
    """Deliveries that accepted publishes promised and that didn't come."""
    surplus: int = 0
    refused: int = 0
    """Messages."""
    refusal: str = ""
    """The first answer that wasn't a 202."""
    busy: float = 0.0
    """The client's own CPU time over the time measured, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fanout(Result):
    """Deliveries to many streams on one channel while publishers went flat out."""

    deliveries_per_second: float
    accepted: int
    gaps: int
    """Losses that the server announced, on the first stream."""
    bytes_per_delivery: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst(Result):
    """Latencies in ms of one message at a time to many streams, over all streams and rounds."""

    streams: int
    rounds: int
    p50: float
    p99: float
    max: float
    rss_per_stream: float
    """Bytes that the server grew by for each idle stream."""
    opened_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Published(Result):
    """Messages that publishers got accepted, flat out."""

    messages_per_second: float
    accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Result):
    """Latencies in ms from an acknowledgement's departure to word of it at another device."""

    rounds: int
    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Result):
    """The time until streams that came back had all that was published while they were away."""

    seconds: float
    streams: int
    live: int
    """Messages published meanwhile, which must have come as well."""


def message(number: int, channel: str = CHANNEL) -> bytes:
    """The message published: about 140 bytes of JSON, the same length for every number."""
    return (
        b'{"type":"progress","service":"bench","channels":["%b"],"data":'
        b'{"task_id":"task_abc123","progress":65,"t":%d,"stage":"embedding"}}'
        % (channel.encode(), _BASE + number)
    )


_USERS = 10_000


def asking(number: int, ack: bool, user: int | None = None) -> bytes:
    """A message to one user, likewise of one length, that asks for an acknowledgement or doesn't.

    Services take turns, since one has only a part of the room.
    """
    metadata = b'{"ack":true}' if ack else b'{"ttl":3600}'
    return (
        b'{"id":"m-%d","type":"status","service":"bench%d","target":{"user_id":"u%05d"},"data":'
        b'{"task_id":"task_abc123","progress":65,"stage":"embedding"},"metadata":%b}'
        % (_BASE + number, number % 8, number % _USERS if user is None else user, metadata)
    )


def _key(number: int) -> bytes:
    return b"bench%d/m-%d" % (number % 8, _BASE + number)


def prepare(cores: set[int]) -> None:
    """Run on these cores, and never stop to collect garbage."""
    os.sched_setaffinity(0, cores)
    gc.disable()


def _dial(port: int, index: int) -> socket.socket:
    # The source address moves on, so that ephemeral ports never run out.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((f"127.0.0.{2 + index // _STREAMS_PER_ADDRESS}", 0))
    sock.connect_ex(("127.0.0.1", port))  # a failure shows when the socket is used
    return sock


class Streams:
    """Open event streams, and how many messages each has received."""

    def __init__(self, poll: select.epoll, port: int, kind: Kind = SSE) -> None:
        self.received: Counter[int] = Counter()
        self.bytes = 0
        self.witness = bytearray()
        """Everything that the first stream received."""
        self._poll, self._port, self._kind = poll, port, kind
        self._sockets: dict[int, socket.socket] = {}
        self._buffer = bytearray(_BUFFER)
        self._cut: dict[int, bytes] = {}
        self._first = -1

    def open(
        self,
        count: int,
        path: Callable[[int], str] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """All streams are open, their opening blocks read, when this returns.

        Args:
            path: of each; None: all listen to one channel.
        """
        kind = self._kind
        path = path or (lambda _: kind.path)
        opening: dict[int, bytes] = {}
        paths: dict[int, str] = {}
        deadline = time.monotonic() + _STREAM_OPENING_SECONDS
        while len(self._sockets) < count or opening:
            while len(self._sockets) < count and len(opening) < _IN_FLIGHT:
                sock = _dial(self._port, len(self._sockets))
                paths[sock.fileno()] = path(len(self._sockets))
                self._sockets[sock.fileno()] = sock
                opening[sock.fileno()] = b""
                self._poll.register(sock, select.EPOLLOUT)
            meanwhile()
            for fd, event in self._poll.poll(1):
                if fd not in opening:
                    if fd in self.received:
                        self.read(fd)
                    continue
                if event & select.EPOLLOUT:
                    head = f"GET {paths[fd]} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
                    self._sockets[fd].send(head.encode() + kind.headers + b"\r\n")
                    self._poll.modify(fd, select.EPOLLIN)
                    continue
                came = self._sockets[fd].recv(4096)
                opening[fd] += came
                if kind.opened in opening[fd] or not came or _is_refusal(opening[fd], kind):
                    answer = opening.pop(fd)
                    _check_opened(answer, kind)
                    # What was missed may have come with it.
                    self.received[fd] = answer.count(MARK)
                    if answer[-1] in _WITHIN:
                        self._cut[fd] = answer[-_EDGE:]
            if time.monotonic() > deadline:
                raise Spoiled(
                    f"{len(self._sockets) - len(opening)} of {count} streams opened in time"
                )
        self._first = next(iter(self._sockets))

    def read(self, fd: int) -> int:
        """The number of messages in what this stream has to read; -1 when it can't be read now."""
        buffer = self._buffer
        try:
            size = self._sockets[fd].recv_into(buffer)
        except BlockingIOError:
            return -1
        except ConnectionError:
            size = 0
        if not size:
            raise Spoiled("the server closed a stream")
        found = buffer.count(MARK, 0, size)
        if fd in self._cut or buffer[size - 1] in _WITHIN:
            found += self._joined(fd, size)
        if fd == self._first:
            self.witness += buffer[:size]
        self.bytes += size
        self.received[fd] += found
        return found

    def _joined(self, fd: int, size: int) -> int:
        """The number of marks, 0 or 1, that the last read's end and this one's start make."""
        before = self._cut.pop(fd, b"")
        if self._buffer[size - 1] in _WITHIN:
            tail = bytes(self._buffer[max(0, size - _EDGE) : size])
            self._cut[fd] = (before + tail)[-_EDGE:] if size < _EDGE else tail
        return (before + self._buffer[: min(size, _EDGE)]).count(MARK) if before else 0


def _is_refusal(answer: bytes, kind: Kind) -> bool:
    return b"\r\n\r\n" in answer and not answer.startswith(kind.status)


def _check_opened(answer: bytes, kind: Kind) -> None:
    if not answer.startswith(kind.status) or b"msgpush.open" not in answer:
        told = answer[:400].decode(errors="replace")
        raise Spoiled(f"a stream did not open ({kind.name}): {told!r}")


class Publishers:
    """Keep-alive connections with at most one request under way on each."""

    def __init__(
        self,
        poll: select.epoll,
        port: int,
        path: str,
        count: int,
        length: int,
        *,
        token: str = "",
        answer: bytes = b"HTTP/1.1 202 ",
    ) -> None:
        self._expected, self._poll = answer, poll
        self.accepted = 0
        self.refused = 0
        self.refusal = ""
        """The first answer that wasn't a 202."""
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{authorization}"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()
        self._sockets: dict[int, socket.socket] = {}
        self._answers: dict[int, bytes] = {}
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), timeout=10)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)  # a batch fits whole
            self._sockets[sock.fileno()] = sock
            self._answers[sock.fileno()] = b""
            poll.register(sock, select.EPOLLIN)

    def __contains__(self, fd: int) -> bool:
        return fd in self._sockets

    def __iter__(self) -> Iterator[int]:
        return iter(self._sockets)

    def close(self) -> None:
        """Close the connections."""
        for fd, sock in self._sockets.items():
            self._poll.unregister(fd)
            sock.close()

    def send(self, fd: int, body: bytes) -> None:
        """Publish on this connection, which has no request under way."""
        request = self._head + body
        if self._sockets[fd].send(request) != len(request):
            raise Spoiled("a request did not fit an empty socket")

    def read(self, fd: int) -> int | None:
        """The number of messages that the answer accepts, 0: refused; None while it isn't whole."""
        try:
            received = self._sockets[fd].recv(_ANSWER)
        except BlockingIOError:
            return None
        except ConnectionError:
            received = b""
        if not received:
            raise Spoiled("the server closed a publisher's connection")
        answer = self._answers[fd] + received
        head, ended, body = answer.partition(b"\r\n\r\n")
        length = _CONTENT_LENGTH.search(head)
        if ended and not length:
            raise Spoiled(
                f"an answer without Content-Length: {answer[:400].decode(errors='replace')!r}"
            )
        if not length or len(body) < int(length[1]):
            self._answers[fd] = answer
            return None
        self._answers[fd] = b""
        return self._judge(answer, body)

    def _judge(self, answer: bytes, body: bytes) -> int:
        if not answer.startswith(self._expected):
            self.refused += 1
            self.refusal = self.refusal or answer[:600].decode(errors="replace")
            return 0
        accepted = _ACCEPTED.search(body)
        count = int(accepted[1]) if accepted else 1
        self.accepted += count
        return count


class _Window:
    """A rate, and the client's own load, from the end of the warm-up to the end of the time."""

    def __init__(self, seconds: float, count: Callable[[], int]) -> None:
        self._count = count
        self._opens = time.monotonic() + _WARM_UP_SECONDS
        self._closes = self._opens + seconds
        self._from: tuple[float, float, int] | None = None
        self.rate = 0.0
        self.busy = 0.0

    def running(self) -> bool:
        """Look at the clock, often; False: the time is up."""
        now = time.monotonic()
        if self._from is None:
            if now >= self._opens:
                self._from = (now, time.process_time(), self._count())
            return True
        if now < self._closes:
            return True
        since, cpu, count = self._from
        self.rate = (self._count() - count) / (now - since)
        self.busy = (time.process_time() - cpu) / (now - since)
        return False


def probe(port: int, kind: Kind = SSE) -> str:
    """The cursor of one message, published and received: the server works, and is warm."""
    with select.epoll() as poll:
        streams = Streams(poll, port, kind)
        streams.open(1)
        body = message(0)
        publishers = Publishers(poll, port, "/api/v1/messages/send", 1, len(body))
        publishers.send(next(iter(publishers)), body)
        deadline = time.monotonic() + 10
        while not (streams.received.total() and publishers.accepted):
            for fd, _ in poll.poll(0.1):
                (publishers if fd in publishers else streams).read(fd)
            if publishers.refused or time.monotonic() > deadline:
                raise Spoiled(
                    f"one message did not come through: {publishers.refusal or 'no answer'}"
                )
        cursor: bytes = kind.cursor.findall(streams.witness)[-1]
        return cursor.decode()


class _Flood:
    """Publishers that always have a message under way, until they are told to end."""

    def __init__(self, publishers: Publishers, poll: select.epoll) -> None:
        self.accepted: list[int] = []
        self.under_way: dict[int, int] = {}
        self.ending = False
        self._publishers = publishers
        self._poll = poll
        self._next = 0
        for fd in publishers:
            self._send(fd)

    def go_on(self, timeout: float) -> None:
        """Take the answers that have come, or come first, and publish again over those."""
        for fd, _ in self._poll.poll(timeout):
            messages = self._publishers.read(fd)
            if messages is None:
                continue
            sent = self.under_way.pop(fd)
            if messages:
                self.accepted.append(sent)
            if not self.ending:
                self._send(fd)

    def _send(self, fd: int) -> None:
        self._publishers.send(fd, message(self._next))
        self.under_way[fd] = self._next
        self._next += 1


def fanout(port: int, count: int, connections: int, seconds: float, *, kind: Kind = SSE) -> Fanout:
    """Publish flat out to streams on one channel.

    Every accepted message must then have reached every stream, once.
    """
    with select.epoll() as readable, select.epoll() as answered:
        streams = Streams(readable, port, kind)
        streams.open(count)
        publishers = Publishers(
            answered, port, "/api/v1/messages/send", connections, len(message(0))
        )
        flood = _Flood(publishers, answered)
        window = _Window(seconds, streams.received.total)
        deadline = time.monotonic() + _WARM_UP_SECONDS + seconds + _DRAIN_SECONDS
        while (
            not flood.ending
            or flood.under_way
            or streams.received.total() < len(flood.accepted) * count
        ):
            flood.ending = flood.ending or not window.running()
            began = time.monotonic()
            ready = readable.poll(0, count)
            for start in range(0, len(ready), _SLICE):
                for fd, _ in ready[start : start + _SLICE]:
                    streams.read(fd)
                flood.go_on(0)
            while (left := began + _READ_EVERY_SECONDS - time.monotonic()) > 0:
                flood.go_on(left)
            if began > deadline:
                break
        _read_for(readable, streams, 0.2)  # what comes beyond the promise

        missing, surplus = _difference(streams, len(flood.accepted))
        if not (missing or surplus):
            missing, surplus = _witnessed(streams.witness, flood.accepted)
        return Fanout(
            deliveries_per_second=window.rate,
            accepted=len(flood.accepted),
            refused=publishers.refused,
            missing=missing,
            surplus=surplus,
            gaps=streams.witness.count(b"msgpush.gap"),
            bytes_per_delivery=streams.bytes / max(1, streams.received.total()),
            busy=window.busy,
            refusal=publishers.refusal,
        )


def _read_for(poll: select.epoll, streams: Streams, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for fd, _ in poll.poll(left):
            if fd in streams.received:
                streams.read(fd)


def _difference(streams: Streams, promised: int) -> tuple[int, int]:
    """The numbers of deliveries that are missing, and too many."""
    counts = streams.received.values()
    return sum(max(0, promised - n) for n in counts), sum(max(0, n - promised) for n in counts)


def _witnessed(received: bytearray, accepted: list[int]) -> tuple[int, int]:
    """The same for one stream, message by message: a loss and a double don't cancel out here."""
    arrived = Counter(int(number) - _BASE for number in _NUMBER.findall(received))
    promised = Counter(accepted)
    return (promised - arrived).total(), (arrived - promised).total()


def _at(share: float, ordered: list[int]) -> float:
    """The latency, in ms, that this share of all deliveries didn't exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6 if ordered else 0.0


def burst(
    port: int, count: int, rounds: int, server: int, pause: float = 0.1, *, kind: Kind = SSE
) -> Burst:
    """Open idle streams, weigh the server, then send one message at a time to all of them."""
    with select.epoll() as poll:
        streams = Streams(poll, port, kind)
        before = _resident(server)
        began = time.monotonic()
        streams.open(count)
        opened = time.monotonic()
        _read_for(poll, streams, 1.0)
        after = _resident(server)

        # Only now: a connection that is silent at first is closed after some seconds.
        publishers = Publishers(poll, port, "/api/v1/messages/send", 1, len(message(0)))
        publisher = next(iter(publishers))
        latencies: list[int] = []
        done, cpu, waited = 0, 0.0, 0.0
        while done < rounds:
            started, used = time.monotonic(), time.process_time()
            reached = _round(poll, streams, publishers, publisher, latencies)
            waited += time.monotonic() - started
            cpu += time.process_time() - used
            done += 1
            if reached < count:
                break
            _read_for(poll, streams, pause)
        missing, surplus = _difference(streams, done)
        latencies.sort()
        return Burst(
            streams=count,
            rounds=done,
            p50=_at(0.50, latencies),
            p99=_at(0.99, latencies),
            max=_at(1, latencies),
            missing=missing,
            surplus=surplus,
            rss_per_stream=(after - before) / count,
            opened_per_second=count / (opened - began),
            busy=cpu / waited if waited else 0.0,
        )


def _round(
    poll: select.epoll,
    streams: Streams,
    publishers: Publishers,
    publisher: int,
    latencies: list[int],
) -> int:
    """Publish one message, which carries its time of departure, and read until everyone has it."""
    expected, reached, answered = len(streams.received), 0, False
    departure = time.monotonic_ns()
    publishers.send(publisher, message(departure))
    deadline = time.monotonic() + _DRAIN_SECONDS
    while reached < expected or not answered:
        for fd, _ in poll.poll(0.1):
            if fd == publisher:
                messages = publishers.read(fd)
                if messages == 0:
                    raise Spoiled(f"a publish was refused: {publishers.refusal}")
                answered = answered or messages is not None
            elif streams.read(fd) > 0:
                latencies.append(time.monotonic_ns() - departure)
                reached += 1
        if time.monotonic() > deadline:
            break
    return reached


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise Spoiled("the server has ended")


def publish(
    port: int, connections: int, batch: int, seconds: float, count: int = 0, *, token: str = ""
) -> Published:
    """Publish flat out with `count` streams open, single messages or batches."""
    body = message(0) if batch == 1 else b"[" + b",".join(message(n) for n in range(batch)) + b"]"
    path = "/api/v1/messages/send" if batch == 1 else "/api/v1/messages/batch"
    with select.epoll() as poll:
        streams = Streams(poll, port)
        if count:
            streams.open(count)
        publishers = Publishers(poll, port, path, connections, len(body), token=token)
        for fd in publishers:
            publishers.send(fd, body)
        answers_due = connections
        rejected = 0
        window = _Window(seconds, lambda: publishers.accepted)
        publishing = True
        deadline = time.monotonic() + _WARM_UP_SECONDS + seconds + _DRAIN_SECONDS
        while publishing or answers_due:
            publishing = publishing and window.running()
            for fd, _ in poll.poll(0.05):
                if fd not in publishers:
                    streams.read(fd)
                    continue
                messages = publishers.read(fd)
                if messages is None:
                    continue
                rejected += batch - messages
                answers_due -= 1
                if publishing:
                    publishers.send(fd, body)
                    answers_due += 1
            if time.monotonic() > deadline:
                raise Spoiled(f"{answers_due} publishes were not answered")
        while (
            count and any(_difference(streams, publishers.accepted)) and time.monotonic() < deadline
        ):
            _read_for(poll, streams, 0.1)
        missing, surplus = _difference(streams, publishers.accepted) if count else (0, 0)
        return Published(
            messages_per_second=window.rate,
            accepted=publishers.accepted,
            refused=rejected,
            missing=missing,
            surplus=surplus,
            busy=window.busy,
            refusal=publishers.refusal,
        )


def publish_asking(
    port: int, connections: int, seconds: float, ack: bool, count: int | None = None
) -> Published:
    """Publish flat out, each message to a user of its own, asking for acknowledgements or not.

    Args:
        count: as many messages, however long that takes; None: as many as the time allows.
    """
    with select.epoll() as poll:
        length = len(asking(0, ack))
        publishers = Publishers(poll, port, "/api/v1/messages/send", connections, length)
        first = _ASKED * ack if count is None else _WEIGHED + ack * count
        sent = 0
        for fd in publishers:
            publishers.send(fd, asking(first + sent, ack))
            sent += 1
        window = _Window(seconds, lambda: publishers.accepted)
        publishing, answers_due, rejected = True, connections, 0
        deadline = time.monotonic() + _WARM_UP_SECONDS + seconds + 6 * _DRAIN_SECONDS
        while publishing or answers_due:
            running = window.running()
            publishing = publishing and (running if count is None else sent < count)
            for fd, _ in poll.poll(0.05):
                if (messages := publishers.read(fd)) is None:
                    continue
                rejected += 1 - messages
                answers_due -= 1
                if publishing and (count is None or sent < count):
                    publishers.send(fd, asking(first + sent, ack))
                    sent += 1
                    answers_due += 1
            if time.monotonic() > deadline:
                raise Spoiled(f"{answers_due} publishes were not answered")
        return Published(
            messages_per_second=window.rate,
            accepted=publishers.accepted,
            refused=rejected,
            busy=window.busy,
            refusal=publishers.refusal,
        )


def acknowledge(port: int, connections: int, seconds: float) -> Published:
    """Acknowledge flat out, one message a request; each connection has a user of its own."""
    with select.epoll() as poll:
        numbers = _ready(port, connections, poll)
        clients: dict[int, tuple[Publishers, Iterator[int]]] = {}
        for user in range(connections):
            path = f"/api/v1/users/u{user:05}/acknowledgements"
            client = Publishers(poll, port, path, 1, len(_word(0)), answer=b"HTTP/1.1 200 ")
            (fd,) = client
            clients[fd] = client, iter(numbers[user])
            client.send(fd, _word(next(clients[fd][1])))
        window = _Window(seconds, lambda: sum(each.accepted for each, _ in clients.values()))
        due = set(clients)
        while due:
            running = window.running()
            for fd, _ in poll.poll(0.05):
                client, left = clients[fd]
                if client.read(fd) is None:
                    continue
                number = next(left, None) if running else None
                if number is None:
                    due.discard(fd)
                else:
                    client.send(fd, _word(number))
        refused = [each.refusal for each, _ in clients.values() if each.refused]
        return Published(
            messages_per_second=window.rate,
            accepted=sum(each.accepted for each, _ in clients.values()),
            refused=len(refused),
            refusal=refused[0] if refused else "",
            busy=window.busy,
        )


_MAILBOX = 8 * 190  # messages that each user has at most, of all services together
# Numbers that `publish_asking` never comes to: their ids are new.
_READY, _TOLD, _WEIGHED, _ASKED = 10**10, 2 * 10**10, 3 * 10**10, 5 * 10**9


def _ready(port: int, users: int, poll: select.epoll) -> list[range]:
    """Publish to each user as many messages as may wait; their numbers."""
    numbers = [range(_READY + n * _MAILBOX, _READY + (n + 1) * _MAILBOX) for n in range(users)]
    publishers = Publishers(poll, port, "/api/v1/messages/send", users, len(asking(0, True)))
    pairs = dict(zip(publishers, ((n, iter(own)) for n, own in enumerate(numbers)), strict=True))
    for fd, (user, own) in pairs.items():
        publishers.send(fd, asking(next(own), True, user))
    while pairs:
        for fd, _ in poll.poll(1):
            if publishers.read(fd) is None:
                continue
            user, own = pairs[fd]
            if (number := next(own, None)) is None:
                del pairs[fd]
            else:
                publishers.send(fd, asking(number, True, user))
    if publishers.refused:
        raise Spoiled(f"a publish was refused: {publishers.refusal}")
    publishers.close()
    return numbers


def _word(number: int) -> bytes:
    return b'{"keys":["%b"]}' % _key(number)


def told(port: int, rounds: int) -> Told:
    """Acknowledge one message at a time; how long until the user's other device knows."""
    latencies: list[int] = []
    with select.epoll() as poll:
        streams = Streams(poll, port)
        streams.open(2, lambda _: f"/sse/user/u{_USERS}")
        publishers = Publishers(poll, port, "/api/v1/messages/send", 1, len(asking(0, True)))
        (publisher,) = publishers
        path = f"/api/v1/users/u{_USERS}/acknowledgements"
        clients = Publishers(poll, port, path, 1, len(_word(0)), answer=b"HTTP/1.1 200 ")
        (client,) = clients
        for number in range(_TOLD, _TOLD + rounds):
            publishers.send(publisher, asking(number, True, _USERS))
            before = streams.received.total()
            answered = False
            while streams.received.total() < before + 2 or not answered:
                for fd, _ in poll.poll(5):
                    if fd == publisher:
                        answered = publishers.read(fd) is not None or answered
                    else:
                        streams.read(fd)
                if publishers.refused:
                    raise Spoiled(f"a publish was refused: {publishers.refusal}")
            departure = time.monotonic_ns()
            clients.send(client, _word(number))
            known, answered = streams.witness.count(b"msgpush.acknowledged"), False
            while streams.witness.count(b"msgpush.acknowledged") == known or not answered:
                for fd, _ in poll.poll(5):
                    if fd == client:
                        answered = clients.read(fd) is not None or answered
                        continue
                    streams.read(fd)
                    if streams.witness.count(b"msgpush.acknowledged") > known:
                        latencies.append(time.monotonic_ns() - departure)
        refused = publishers.refused + clients.refused
        refusal = publishers.refusal or clients.refusal
    latencies.sort()
    return Told(
        rounds=rounds,
        p50=_at(0.5, latencies),
        p99=_at(0.99, latencies),
        max=_at(1, latencies),
        refused=refused,
        refusal=refusal,
    )


def fill(port: int, count: int, each: int) -> str:
    """Publish some messages to each of many channels; the cursor from before them."""
    cursor = probe(port)
    with select.epoll() as poll:
        length = len(_filling(0, 0))
        publishers = Publishers(poll, port, "/api/v1/messages/batch", 4, length)
        bodies = (
            _filling(start, n) for n in range(each) for start in range(0, count, _FILLED_AT_ONCE)
        )
        under_way = 0
        for fd in publishers:
            if (body := next(bodies, None)) is not None:
                publishers.send(fd, body)
                under_way += 1
        while under_way:
            for fd, _ in poll.poll(1):
                if publishers.read(fd) is None:
                    continue
                under_way -= 1
                if (body := next(bodies, None)) is not None:
                    publishers.send(fd, body)
                    under_way += 1
        if publishers.accepted != count * each:
            raise Spoiled(
                f"{publishers.accepted} of {count * each} messages accepted: {publishers.refusal}"
            )
    return cursor


_FILLED_AT_ONCE = 100


def _channel(number: int) -> str:
    return f"c{number:06d}"


def _filling(start: int, n: int) -> bytes:
    return b"[" + b",".join(message(n, _channel(start + i)) for i in range(_FILLED_AT_ONCE)) + b"]"


def resume(port: int, cursor: str, count: int, each: int, live_rate: float) -> Resumed:
    """Open streams that all continue after one cursor, while others publish.

    Ends when each has all that is its own.
    """
    with select.epoll() as poll, select.epoll() as answered:
        streams = Streams(poll, port)
        body = message(0, _channel(0))
        publishers = Publishers(answered, port, "/api/v1/messages/send", 1, len(body))
        publisher = next(iter(publishers))
        began = time.monotonic()
        idle, sent = True, 0

        def publish(ending: bool = False) -> None:
            nonlocal idle, sent
            idle = idle or (bool(answered.poll(0)) and publishers.read(publisher) is not None)
            if idle and not ending and sent < (time.monotonic() - began) * live_rate:
                publishers.send(publisher, message(0, _channel(sent % count)))
                idle, sent = False, sent + 1

        streams.open(count, lambda n: f"/sse/stream/{_channel(n)}?last_event_id={cursor}", publish)
        deadline = began + _STREAM_OPENING_SECONDS
        promised = count * each
        while (
            streams.received.total() < promised + publishers.accepted
            and time.monotonic() < deadline
        ):
            publish()
            for fd, _ in poll.poll(0.01):
                streams.read(fd)
        took = time.monotonic() - began
        while not idle and time.monotonic() < deadline:
            publish(ending=True)
        _read_for(poll, streams, 0.2)
        got, due = streams.received.total(), promised + publishers.accepted
        return Resumed(
            seconds=took,
            streams=count,
            missing=max(0, due - got),
            surplus=max(0, got - due),
            live=publishers.accepted,
        )
