"""The load client's part that asks for metrics, as Prometheus does, and looks at what that does to
others."""

import select
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from bench.load import Result, Spoiled, Streams

_SERVICES, _TYPES = 100, ("info", "status", "error", "success", "warning", "custom", "progress")
_BUSY = 10  # services that publish between two scrapes
_REST = 0.05  # seconds between two scrapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Scraped(Result):
    """What scrapes took, in ms, and what another client's requests took beside them."""

    streams: int
    lines: int
    p50: float
    most: float
    beside: float
    """Of requests while a scrape was under way: the median of the longest of each."""
    alone: float
    """The same, while none was, over as long a time."""


def scrape(port: int, count: int, rounds: int) -> Scraped:
    """Ask for the metrics while `count` streams are open, and every service and type was counted.

    Another connection asks for something small meanwhile, one request after the other: how long
    that has to wait is how long the loop was held up, at the most.
    """
    with ExitStack() as opened:
        streams = Streams(opened.enter_context(select.epoll()), port)
        streams.open(count)
        # Not before: a connection that is silent at first is closed after some seconds.
        scraper, other = (opened.enter_context(_Asker(port)) for _ in range(2))
        other.once()
        with _Asker(port) as reader:
            reader.ask(b"GET /sse/stream/few")
            for number in range(_SERVICES):
                for type in _TYPES:
                    scraper.publish(number, type)
                    reader.discard()
        took, beside, alone = [], [], []
        lines = 0
        for _ in range(rounds):
            seconds, longest, body = _together(scraper, other)
            took.append(seconds)
            beside.append(longest)
            alone.append(other.longest(seconds))
            lines = body.count(b"\n")
            for number in range(_BUSY):
                scraper.publish(number, _TYPES[0])
            time.sleep(_REST)
        return Scraped(
            streams=count,
            lines=lines,
            p50=1e3 * median(took),
            most=1e3 * max(took),
            beside=1e3 * median(beside),
            alone=1e3 * median(alone),
        )


def _together(scraper: "_Asker", other: "_Asker") -> tuple[float, float, bytes]:
    """A scrape's seconds, the longest of the other's requests meanwhile, and the metrics."""
    began = time.perf_counter()
    scraper.ask(b"GET /metrics")
    longest = 0.0
    while not scraper.readable():
        longest = max(longest, other.once())
    body = scraper.answer()
    return time.perf_counter() - began, longest, body


class _Asker:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def __enter__(self) -> "_Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, line: bytes, body: bytes = b"") -> None:
        head = b"%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (line, len(body))
        self._socket.sendall(head + body)

    def discard(self) -> None:
        """Wait for something, and pass it over."""
        self._more()

    def readable(self) -> bool:
        """True once something has come of the answer."""
        return bool(self._poll.poll(0))

    def answer(self) -> bytes:
        """The body of the whole answer."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if not head.startswith(b"HTTP/1.1 2"):
            raise Spoiled(f"the answer was {head[:80]!r}")
        parts, left = [body], size - len(body)
        while left > 0:
            parts.append(self._more())
            left -= len(parts[-1])
        return b"".join(parts)

    def once(self) -> float:
        """Seconds that a small request takes."""
        began = time.perf_counter()
        self.ask(b"GET /health/live")
        self.answer()
        return time.perf_counter() - began

    def longest(self, seconds: float) -> float:
        """The same, of the longest of those that fit into so many seconds; of one at least."""
        until, longest = time.perf_counter() + seconds, 0.0
        while not longest or time.perf_counter() < until:
            longest = max(longest, self.once())
        return longest

    def publish(self, service: int, type: str) -> None:
        """Have one message of a service and type counted, and its delivery."""
        data = '{"progress":1}' if type == "progress" else "{}"
        text = f'{{"type":"{type}","service":"s{service}","channels":["few"],"data":{data}}}'
        self.ask(b"POST /api/v1/messages/send", text.encode())
        self.answer()

    def _more(self) -> bytes:
        if not (more := self._socket.recv(1 << 20)):
            raise Spoiled("the server has closed the connection")
        return more
