"""Publishers and subscribers that count: what was accepted with 202 is received once, in order, or
a gap says so.

Publishers number the messages of a channel and repeat each, under its id, until an instance has
accepted it. The subscribers wander between instances and change what they listen to. `Load` keeps
the account, in a loop of its own."""

import asyncio
import contextlib
import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from tests.support.acknowledging import Asking
from tests.support.eventsource import Event, EventStreamParser

HISTORY = 60


class Accepted(NamedTuple):
    """What a publisher was answered: the message's number in its channel, and where it stands in
    which log.
    """

    number: int
    epoch: str
    position: tuple[int, int]


def place(cursor: str) -> tuple[str, tuple[int, int]]:
    """A cursor's epoch and position."""
    epoch, _, position = cursor[1:].partition(".")
    ms, _, seq = position.partition("-")
    return epoch, (int(ms), int(seq))


class Publisher:
    """Publishes to one channel, one message after the other, at whatever instance answers."""

    def __init__(self, load: "Load", channel: str) -> None:
        self._load, self._channel = load, channel
        self.accepted: list[Accepted] = []
        self.refused: Counter[int | str] = Counter()
        self.slowest = 0.0

    async def run(self) -> None:
        number = 0
        while not self._load.stopping:
            number += 1
            await self.publish(number)
            await asyncio.sleep(self._load.random.expovariate(self._load.rate))

    async def publish(self, number: int) -> None:
        """Publish until it is accepted."""
        body = {
            "type": "info",
            "service": "load",
            "id": f"{self._channel}-{number}",
            "channels": [self._channel],
            "data": {"channel": self._channel, "number": number},
        }
        while True:
            began = time.monotonic()
            try:
                status, answer = await self._load.post("/api/v1/messages/send", body)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
                self.refused[type(error).__name__] += 1
            else:
                self.slowest = max(self.slowest, time.monotonic() - began)
                if status == 202:
                    self.accepted.append(Accepted(number, *place(answer["cursor"])))
                    return
                self.refused[status] += 1
                if status != 503:
                    self._load.violation(
                        f"publishing {body['id']} was answered {status}: {answer}", ()
                    )
                    return
            await asyncio.sleep(self._load.random.uniform(0.02, 0.2))


class Subscriber:
    """A client with a cursor; each of its streams is checked as it comes."""

    def __init__(self, load: "Load", name: str) -> None:
        self._load, self.name = load, name
        self.cursor = "earliest"
        self.channels: set[str] = set()
        self.received = self.duplicates = self.streams = 0
        self.gaps: Counter[str] = Counter()
        self.last: dict[str, int | None] = dict.fromkeys(load.channels, 0)
        self._joined: dict[str, str] = {}
        self._log: deque[str] = deque(maxlen=HISTORY)
        self._parser = EventStreamParser()

    async def run(self) -> None:
        while not self._load.done(self):
            self._choose()
            port = self._load.random.choice(self._load.ports)
            self.streams += 1
            stay = self._load.random.uniform(*self._load.stay)
            self._note(f"-> {port} {sorted(self.channels)} after {self.cursor}")
            try:
                async with asyncio.timeout(stay):
                    await self._listen(port)
            except TimeoutError:
                pass
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self._note(f"cut: {error!r}")
                await asyncio.sleep(self._load.random.uniform(0.01, 0.1))

    def _choose(self) -> None:
        load = self._load
        wanted = set(load.channels)
        if not load.stopping and load.random.random() < load.fickle:
            wanted = set(
                load.random.sample(load.channels, load.random.randint(1, len(load.channels)))
            )
        for channel in wanted - self.channels:
            if self.streams:
                # What it missed meanwhile counts from its cursor on; checked when the account is
                # closed.
                self.last[channel] = None
                self._joined[channel] = self.cursor
        self.channels = wanted

    async def _listen(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            path = f"/sse/stream/{quote(','.join(sorted(self.channels)))}?broadcast=false"
            head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nLast-Event-ID: {self.cursor}\r\n\r\n"
            writer.write(head.encode())
            status = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in status.split(b"\r\n")[0]:
                raise ValueError(status.split(b"\r\n")[0])
            self._parser = EventStreamParser()
            while size := int(await reader.readuntil(b"\r\n"), 16):
                chunk = (await reader.readexactly(size + 2))[:-2]
                for event in self._parser.feed(chunk):
                    self._take(event)
                if self._load.done(self):
                    return
            # The server has ended it: an EventSource waits; this one is impatient.
            await asyncio.sleep(self._load.random.uniform(0.05, 0.3))
        finally:
            writer.transport.abort()

    def _take(self, event: Event) -> None:
        self._note(f"{event.type} {event.last_event_id} {event.data[:160]}")
        if event.last_event_id:
            self.cursor = event.last_event_id
        if event.type == "message":
            data = json.loads(event.data)["data"]
            self._count(data["channel"], data["number"])
        elif event.type == "msgpush.gap":
            gap = json.loads(event.data)
            self.gaps[gap["reason"]] += 1
            for channel in self.channels if gap["channel"] is None else [gap["channel"]]:
                self.last[channel] = None
                self._joined.pop(channel, None)
            if gap["reason"] == "reset":
                # What it knew of the others belongs to the former log, too.
                self.last = dict.fromkeys(self.last, None)
                self._joined.clear()

    def _count(self, channel: str, number: int) -> None:
        self.received += 1
        last = self.last.get(channel)
        if channel not in self.channels:
            self._violation(f"{channel} {number}: it doesn't listen to that")
        elif last is None:
            if channel in self._joined:
                self._load.joined.append((self.name, channel, self._joined.pop(channel), number))
        elif number <= last:
            self.duplicates += 1
            self._violation(f"{channel} {number}: received before, the last was {last}")
        elif number > last + 1:
            self._violation(f"{channel} {number}: after {last}, and no gap was told")
        self.last[channel] = number

    def _violation(self, what: str) -> None:
        self._load.violation(f"{self.name}: {what}", self._log)

    def _note(self, text: str) -> None:
        self._log.append(f"{time.monotonic() - self._load.began:8.3f} {text}")


class Load:
    """Publishers and subscribers over some instances, in a thread.

    Args:
        ports: those of the instances; may be changed while it runs.
        rate: messages a second and channel.
        stay: how long a stream is kept, in seconds, at least and at most.
        fickle: how often a subscriber changes its channels when it reconnects.
        users: how many are asked for acknowledgements.
    """

    def __init__(
        self,
        ports: list[int],
        *,
        seed: int = 1,
        channels: int = 4,
        subscribers: int = 8,
        rate: float = 100.0,
        stay: tuple[float, float] = (0.1, 1.5),
        fickle: float = 0.5,
        users: int = 0,
    ) -> None:
        self.ports, self.rate, self.stay, self.fickle = ports, rate, stay, fickle
        self.random = random.Random(seed)
        self.channels = [f"load{n}" for n in range(channels)]
        self.began = time.monotonic()
        self.stopping = self.published = False
        self.violations: list[tuple[str, list[str]]] = []
        self.joined: list[tuple[str, str, str, int]] = []
        self.publishers = [Publisher(self, channel) for channel in self.channels]
        self.subscribers = [Subscriber(self, f"subscriber {n}") for n in range(subscribers)]
        self.asking = Asking(self, users)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load")
        self._running: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        everybody: list[Publisher | Subscriber] = [*self.publishers, *self.subscribers]
        self._running = [self._start(each.run()) for each in everybody]
        if self.asking.users:
            self._asked = self._start(self.asking.publish())
            for user in self.asking.users:
                self._start(user.listen())
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        for each in self._running:
            each.cancel()
        self._start(self._cancel()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def wait(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Let it run until something is true."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"it has not become true in time\n{self.report()}"
            time.sleep(0.02)

    def run(self, seconds: float) -> None:
        """Let it run for so long, or until something is wrong."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.violations:
            time.sleep(0.05)

    def settle(self, seconds: float = 30.0) -> None:
        """Stop publishing; then every subscriber must get the last message of each channel, and the
        account agree.
        """
        self.stopping = True
        publishing, subscribing = (
            self._running[: len(self.publishers)],
            self._running[len(self.publishers) :],
        )
        until = time.monotonic() + seconds
        for each in publishing:
            each.result(max(0.1, until - time.monotonic()))
        # One more for each channel, when everybody listens to all of them.
        self.wait(
            lambda: all(each.channels == {*self.channels} for each in self.subscribers), seconds
        )
        self.published = True
        for publisher in self.publishers:
            number = publisher.accepted[-1].number + 1 if publisher.accepted else 1
            self._start(publisher.publish(number)).result(max(0.1, until - time.monotonic()))
        try:
            for each in subscribing:
                each.result(max(0.1, until - time.monotonic()))
        except TimeoutError:
            behind = next(each for each in self.subscribers if not self.done(each))
            self.violation(f"{behind.name} never got the end: it has {behind.last}", behind._log)
        self._check_joined()
        if self.asking.users:
            self._asked.result(max(0.1, until - time.monotonic()))
            self._start(self.asking.settle(seconds)).result(2 * seconds)
        assert not self.violations, self.report()

    def done(self, subscriber: Subscriber) -> bool:
        """Whether a subscriber has everything that will ever come."""
        if not self.published:
            return False
        ends = {each._channel: each.accepted[-1].number for each in self.publishers}
        return all(subscriber.last.get(channel) == number for channel, number in ends.items())

    def violation(self, what: str, history: Any) -> None:
        self.violations.append((what, list(history)))

    @property
    def accepted(self) -> int:
        return sum(len(each.accepted) for each in self.publishers)

    @property
    def received(self) -> int:
        return sum(each.received for each in self.subscribers)

    @property
    def gaps(self) -> Counter[str]:
        return sum((each.gaps for each in self.subscribers), Counter[str]())

    @property
    def refused(self) -> Counter[int | str]:
        return sum((each.refused for each in self.publishers), Counter[int | str]())

    @property
    def slowest(self) -> float:
        """Seconds that the slowest answer to a publish took."""
        return max(each.slowest for each in self.publishers)

    def report(self) -> str:
        """The account, and the first violation with what led to it."""
        lines = [
            f"accepted {self.accepted}, received {self.received} in {sum(s.streams for s in self.subscribers)} streams,"
            f" duplicates {sum(s.duplicates for s in self.subscribers)}, gaps {dict(self.gaps)},"
            f" refused {dict(self.refused)}, slowest answer {self.slowest:.2f} s,"
            f" violations {len(self.violations)}"
        ]
        if self.asking.users:
            lines.append(self.asking.report())
        for what, history in self.violations[:1]:
            lines += [f"first violation: {what}", *history]
        return "\n".join(lines)

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        """A request to a random instance; its status, and the answer."""
        return await self._request("POST", path, json.dumps(body))

    async def get(self, path: str) -> tuple[int, Any]:
        """The same without a body, until it is answered."""
        while True:
            with contextlib.suppress(
                OSError, asyncio.IncompleteReadError, TimeoutError, ValueError
            ):
                status, answer = await self._request("GET", path, "")
                if status != 503:
                    return status, answer
            await asyncio.sleep(0.1)

    async def _request(self, method: str, path: str, text: str) -> tuple[int, Any]:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.random.choice(self.ports)
            )
            try:
                head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(text)}"
                writer.write(f"{head}\r\n\r\n{text}".encode())
                answer = await reader.read()
            finally:
                writer.transport.abort()
        head, end, content = answer.decode().partition("\r\n\r\n")
        if not end:
            raise ValueError("cut short")
        return int(head.split(" ")[1]), json.loads(content)

    def _check_joined(self) -> None:
        # Who comes back to a channel gets everything of it after the cursor, whatever it listened
        # to before.
        accepted = {each._channel: each.accepted for each in self.publishers}
        for name, channel, cursor, first in self.joined:
            if cursor == "earliest":
                continue
            epoch, position = place(cursor)
            due = [
                each.number
                for each in accepted[channel]
                if each.epoch == epoch and each.position > position
            ]
            if due and min(due) < first:
                self.violation(
                    f"{name}: {channel} after {cursor} began with {first}, not {min(due)}", ()
                )
            due = [
                each.number
                for each in accepted[channel]
                if each.epoch == epoch and each.position <= position
            ]
            if due and max(due) >= first:
                self.violation(f"{name}: {channel} after {cursor} began with {first}, again", ())

    def _start(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _cancel(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
