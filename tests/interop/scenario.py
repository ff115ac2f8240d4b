"""What every client goes through, all of them at the same time, each behind a proxy of its own:
messages, cuts, a restart, an overload, and a close for good.
"""

import asyncio
import contextlib
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any

from tests.interop.programs import Pages, browsing, running
from tests.interop.proxy import Proxy
from tests.interop.registry import CHECKS, Client
from tests.support.client import RawConnection, request
from tests.support.redis_servers import RedisServer
from tests.support.service import ServiceProcess

TYPES = ("progress", "status", "error", "success", "warning", "info", "custom")
TEXTS = (
    "plain",
    "two\nlines\r\nand\rmore",
    "line\u2028and paragraph\u2029separators, next\u0085line",
    "\U0001f642 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001d11e",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u202eturned\u202c",
    'data: x\n\nid: y\n "quoted" \\ back, \ttab, \u0000, \ufeff',
    " blanks around ",
    "",
)
LONG = "ünïcödé \U0001f642 " * 12_000  # more than 200 KB
LONG_AT = 20  # which message has it, of each hundred
CUTS = 5  # of either sort
AWAY = 3.0  # seconds without a service: long enough for most to try, and be refused
STARTED = 60.0  # seconds in which all programs must have started
BACK = 20.0  # seconds in which a client must be back after a cut: it waits 2 to 5, or backs off
BACK_AFTER_OVERLOAD = 50.0  # it is asked to wait 10 to 30
QUIET = 3.0  # seconds without a request, after it has said that none follows
EXACT, STOPS, UNTRIED = "exact", "stops", "-"
CHANNEL = "interop"
Outcome = dict[str, str]


def fields(n: int) -> dict[str, Any]:
    """The `data` of message n."""
    text = LONG if n % 100 == LONG_AT else TEXTS[n % len(TEXTS)]
    return {"n": n, "text": text, "progress": 50}


async def until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether a condition has become true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


class Publisher:
    """Publishes numbered messages, ten each second at most, until it is cancelled."""

    def __init__(self, port: int) -> None:
        self.newest = -1
        self._port = port

    async def run(self) -> None:
        for n in itertools.count():
            message = {
                "id": f"m{n}",
                "type": TYPES[n % len(TYPES)],
                "service": "interop",
                "channels": [CHANNEL],
                "data": fields(n),
            }
            body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
            path = "/api/v1/messages/send"
            answer = await asyncio.to_thread(request, self._port, "POST", path, body)
            assert answer.status == 202, answer.body
            self.newest = n
            await asyncio.sleep(0.1)


class Trial:
    """A running program, and what has been observed of it so far.

    Args:
        outcome: where the verdict on each check goes.
    """

    def __init__(
        self, client: Client, proxy: Proxy, publisher: Publisher, outcome: Outcome
    ) -> None:
        self.client, self.proxy = client, proxy
        self.numbers: list[int] = []
        self.garbled: list[str] = []
        self.connections: list[str] = []
        self.closings: list[str] = []
        self.refusals = 0  # since the overload began
        self.gave_up = ""
        self.exited: dict[str, Any] = {}
        self.gone = False  # it hasn't come back: nothing more is asked of it
        self._publisher = publisher
        self._outcome = outcome
        self._judged = 0  # of `numbers`, how many
        self._last = -1

    def __str__(self) -> str:
        found = self.garbled[:3] or "nothing garbled"
        how = self.gave_up or self.exited or "at work"
        answers = Counter(self.proxy.statuses)
        told = f"{len(self.numbers)} messages; {found}; {how}; {self.closings}; {dict(answers)}"
        return f"{self.client.name}: {told}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}/sse/stream/{CHANNEL}"

    def told(self, line: dict[str, Any]) -> None:
        """Take a line that the program has printed; called by a thread of it."""
        if "gave_up" in line:
            self.gave_up = line["gave_up"] or "for no reason"
        elif "exited" in line:
            self.exited = line
        else:
            try:
                self._take(line["event"], json.loads(line["data"]))
            except (ValueError, KeyError, TypeError):
                self.garbled.append(str(line)[:200])

    def _take(self, event: str, data: dict[str, Any]) -> None:
        match event:
            case "msgpush.open":
                self.connections.append(data["connection"])
            case "msgpush.close":
                self.closings.append(data["reason"])
                self.refusals += data["reason"] == "overload"
            case "msgpush.gap":
                self.garbled.append(f"a gap: {data}")
            case "message" | "progress":
                found = data if event == "progress" else data["data"]
                n = found["n"]
                kind = event if event == "progress" else data["type"]
                if found != fields(n) or kind != TYPES[n % len(TYPES)]:
                    self.garbled.append(f"message {n}: {str(data)[:100]}")
                self.numbers.append(n)

    async def messages(self) -> None:
        """All types, all texts and a long one, in order and unchanged."""
        await until(lambda: self._publisher.newest > LONG_AT, BACK)
        await self._judge("messages")

    async def cuts(self) -> None:
        """Cut it, again and again, and see what it gets."""
        for kind in [*("end", "reset") * CUTS, "last"]:
            if not self.gone:
                await self._returns(kind, self.proxy.cut(kind))

    async def restart(self, another: asyncio.Event) -> None:
        """Its service ends, and is away until there is another."""
        # One that is quick meets the old service while it drains: that is an overload, too.
        await self._returns("restart", another.wait(), BACK_AFTER_OVERLOAD)
        if "drain" not in self.closings:
            self._outcome["restart"] = "isn't told"

    async def overload(self, room: asyncio.Event) -> None:
        """Its service has no room, until there is some."""

        async def refused() -> None:
            await self.proxy.cut("end")
            await room.wait()

        await self._returns("overload", refused(), BACK_AFTER_OVERLOAD)
        if not self.refusals:
            self._outcome["overload"] = "isn't told"

    async def stop(self, port: int) -> None:
        """Its stream is closed for good: no further request follows."""
        target = f"/api/v1/connections/{self.connections[-1]}?reconnect=false"
        answer = await asyncio.to_thread(request, port, "DELETE", target)
        assert answer.status == 204, answer.body
        stopped = await until(lambda: self.gave_up, BACK)
        asked = len(self.proxy.statuses)
        await asyncio.sleep(QUIET)
        quiet = len(self.proxy.statuses) == asked
        self._outcome["stop"] = STOPS if stopped and quiet else "asks for ever"

    @property
    def _over(self) -> bool:
        return bool(self.gave_up or self.exited)

    async def _returns(
        self, check: str, happens: Coroutine[Any, Any, object], seconds: float = BACK
    ) -> None:
        """Something happens that ends its stream; judge it when it is back."""
        opened = len(self.connections)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(happens, seconds)  # it may have no stream that could be cut
        await until(lambda: len(self.connections) > opened or self._over, seconds)
        await self._judge(check)

    async def _judge(self, check: str) -> None:
        """See whether it has come to what is published so far, and how."""
        newest = self._publisher.newest
        there = await until(lambda: newest in self.numbers[self._judged :] or self._over, BACK)
        got = self.numbers[self._judged :]
        lost = set(range(self._last + 1, newest + 1)) - set(got)
        doubled = len(set(got)) < len(got) or min(got, default=newest) <= self._last
        self.gone = self._over or not there
        verdict = (
            ("gives up" if self._over else "stays away" if self.gone else "")
            or ("loses" if lost else "doubles" if doubled else "")
            or ("garbles" if self.garbled or got != sorted(got) else EXACT)
        )
        self._judged, self._last = self._judged + len(got), max(got, default=self._last)
        if self._outcome[check] in (UNTRIED, EXACT):
            self._outcome[check] = verdict


async def try_all(clients: Sequence[Client]) -> tuple[list[Outcome], list[Trial]]:
    """What is found of each client, and the trials that it was found by.

    Each client's program runs twice: one of them is cut, while the other one's service is
    restarted, is overloaded, and closes its stream for good.
    """
    outcomes = [dict.fromkeys(CHECKS, UNTRIED) for _ in clients]
    async with contextlib.AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        pages = stack.enter_context(Pages())
        settings = {
            "REDIS_URL": redis.url,
            "HISTORY_LENGTH": "10000",
            "DRAIN_SECONDS": "1",
            "CORS_ORIGINS": json.dumps([pages.origin]),
        }
        steady = stack.enter_context(_service(settings))
        moved = stack.enter_context(_service(settings))
        publisher = Publisher(steady.port)

        async def trials(port: int) -> list[Trial]:
            return [
                Trial(
                    client,
                    await stack.enter_async_context(Proxy(port).serving()),
                    publisher,
                    outcome,
                )
                for client, outcome in zip(clients, outcomes, strict=True)
            ]

        cut, other = await trials(steady.port), await trials(moved.port)
        everyone = [*cut, *other]
        _start(stack, everyone, pages.origin)
        await until(lambda: all(each.connections for each in everyone), STARTED)
        publishing = asyncio.create_task(publisher.run())
        stack.push_async_callback(_cancel, publishing)

        await asyncio.gather(_cut(cut), _move(stack, other, moved, settings))
        assert not publishing.done(), publishing.exception()
    return outcomes, everyone


async def _cut(trials: Sequence[Trial]) -> None:
    await _each(trials, lambda trial: trial.messages())
    await _each(trials, lambda trial: trial.cuts())


async def _move(
    stack: contextlib.AsyncExitStack,
    trials: Sequence[Trial],
    first: ServiceProcess,
    settings: dict[str, str],
) -> None:
    await until(lambda: all(each.numbers for each in trials), BACK)
    another, room = asyncio.Event(), asyncio.Event()
    restarting = asyncio.create_task(_each(trials, lambda trial: trial.restart(another)))
    first.signal(signal.SIGTERM)
    await asyncio.to_thread(first.wait)
    for each in trials:
        await each.proxy.refuse()
    await asyncio.sleep(AWAY)
    second = stack.enter_context(await asyncio.to_thread(_service, settings))
    for each in trials:
        each.proxy.target = second.port
        await each.proxy.allow()
    another.set()
    await restarting

    third = stack.enter_context(
        await asyncio.to_thread(_service, {**settings, "MAX_CONNECTIONS": str(len(trials))})
    )
    there = [each for each in trials if not each.gone]
    async with _occupied(third.port, len(trials)):
        for each in there:
            each.proxy.target = third.port
            each.refusals = 0
        overloading = asyncio.create_task(_each(there, lambda trial: trial.overload(room)))
        await until(lambda: all(each.refusals for each in there), BACK)
    room.set()
    await overloading

    await _each(trials, lambda trial: trial.stop(third.port))


def _service(settings: dict[str, str]) -> ServiceProcess:
    return ServiceProcess(open_files=0, **settings)


async def _each(trials: Iterable[Trial], act: Callable[[Trial], Coroutine[Any, Any, None]]) -> None:
    """Every program that is still there does something, at the same time."""
    await asyncio.gather(*(act(each) for each in trials if not each.gone))


def _start(stack: contextlib.AsyncExitStack, trials: Sequence[Trial], origin: str) -> None:
    shown = [(each.client, each.url, each.told) for each in trials if each.client.kind == "page"]
    if shown:
        stack.enter_context(browsing(origin, shown))
    for each in trials:
        if each.client.kind != "page":
            stack.enter_context(running(each.client, each.url, each.told))


@contextlib.asynccontextmanager
async def _occupied(port: int, number: int) -> AsyncIterator[None]:
    """All the room of a service is taken."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            taken = stack.enter_context(RawConnection(port))
            taken.send(b"GET /sse/stream/elsewhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        yield


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
