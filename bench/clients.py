"""The Python client: what it publishes and hears, and what its reports cost a job."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from bench.load import CHANNEL, Published, Result
from msgpush.client import Listener, Message, MsgpushError, Publisher, SyncListener, SyncMessage

STEPS = 10_000
STEP = 5_000  # turns of a loop, about 0.3 ms
TURNS = 5
_DATA = {"stage": "embedding", "message": "document.pdf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard(Result):
    """Messages that a listener has got from its stream, flat out."""

    messages_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Result):
    """What a job took that reports each of its steps, beside the same one that says nothing."""

    silent_seconds: float
    reporting_seconds: float


def publish_buffered(port: int, seconds: float) -> Published:
    """Publish from one thread, buffered, for so long."""
    refused: list[MsgpushError] = []
    with Publisher(
        _url(port), service="bench", buffered=True, on_error=refused.append
    ) as publisher:
        publisher.send("info", channels=[CHANNEL])
        publisher.flush()
        number, began, busy = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < began + seconds:
            for _ in range(100):
                publisher.send("info", _DATA, channels=[CHANNEL])
            number += 100
        publisher.flush()
        took = time.perf_counter() - began
        busy = (time.process_time() - busy) / took
    return Published(
        messages_per_second=number / took,
        accepted=number - len(refused),
        refused=len(refused),
        refusal=str(refused[0]) if refused else "",
        busy=busy,
    )


def fill(port: int, number: int) -> None:
    """Publish so many messages, to be heard."""
    with Publisher(_url(port), service="bench", buffered=True) as publisher:
        for _ in range(number):
            publisher.send("info", _DATA, channels=[CHANNEL])
        publisher.flush()


def hear(port: int, number: int) -> Heard:
    """Hear so many messages that are there already, in an event loop."""
    return asyncio.run(_hear(port, number))


async def _hear(port: int, number: int) -> Heard:
    ids: set[str] = set()
    with _timed(number, ids) as heard:
        async with Listener(_url(port), channels=CHANNEL, since="earliest") as listener:
            async for event in listener:
                if isinstance(event, Message):
                    ids.add(event.id)
                    if len(ids) == number:
                        break
    return heard[0]


def hear_in_thread(port: int, number: int) -> Heard:
    """The same, without an event loop."""
    ids: set[str] = set()
    with _timed(number, ids) as heard:
        for event in SyncListener(_url(port), channels=CHANNEL, since="earliest"):
            if isinstance(event, SyncMessage):
                ids.add(event.id)
                if len(ids) == number:
                    break
    return heard[0]


@contextmanager
def _timed(number: int, ids: set[str]) -> Iterator[list[Heard]]:
    heard: list[Heard] = []
    began, busy = time.perf_counter(), time.process_time()
    yield heard
    took = time.perf_counter() - began
    heard.append(
        Heard(
            messages_per_second=number / took,
            missing=number - len(ids),
            busy=(time.process_time() - busy) / took,
        )
    )


def job(port: int) -> Job:
    """Work in steps, without a word and with a report of each, in turn."""
    silent: list[float] = []
    reporting: list[float] = []
    with Publisher(_url(port), service="bench") as publisher:
        _work(None)
        for _ in range(TURNS):
            silent.append(_work(None))
            reporting.append(_work(publisher))
            publisher.flush()
    return Job(silent_seconds=median(silent), reporting_seconds=median(reporting))


def _work(publisher: Publisher | None) -> float:
    began = time.perf_counter()
    if publisher is None:
        for _ in range(STEPS):
            _step()
    else:
        with publisher.task("job", channels=[CHANNEL]) as task:
            for number in range(STEPS):
                _step()
                task.progress(100 * number / STEPS, stage="counting")
    return time.perf_counter() - began


def _step() -> int:
    total = 0
    for number in range(STEP):
        total += number
    return total


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
