"""`python -m bench.pushes`: Web Pushes a second, and what a burst of them does to the streams.

The service is a process of its own on one core; the push service (TLS, HTTP/1.1) and the readers
are this one, on the other."""

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import aiohttp
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.support.certificates import Authority

from bench.servers import free_port

STREAMS = 200
RATE = 50.0  # messages a second to those
TOGETHER = 20  # messages of a batch
TICK = os.sysconf("SC_CLK_TCK")
CHANNEL = "bench"


class Taking(asyncio.Protocol):
    """A connection of the push service: it takes everything, and counts it."""

    taken = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._rest = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end].lower()
            at = head.index(b"content-length: ") + 16
            whole = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
            if len(self._rest) < whole:
                return
            self._rest = self._rest[whole:]
            Taking.taken += 1
            self._transport.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")


def text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


async def register(session: aiohttp.ClientSession, base: str, origin: str, number: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    keys = {"p256dh": text(point), "auth": text(os.urandom(16))}
    given = {"webpush": {"endpoint": f"{origin}/push/{number}", "keys": keys}}
    async with session.post(f"{base}/api/v1/users/u{number}/devices", json=given) as answer:
        assert answer.status == 201, await answer.text()


def message(number: int) -> dict[str, Any]:
    return {
        "type": "info",
        "service": "bench",
        "target": {"user_id": f"u{number}"},
        "data": {"message": "Your import is done"},
        "metadata": {"push": True},
    }


class Readers:
    """Streams, and how late each message came on each."""

    def __init__(self) -> None:
        self.late: list[float] = []

    async def read(self, session: aiohttp.ClientSession, base: str) -> None:
        async with session.get(f"{base}/sse/stream/{CHANNEL}") as stream:
            async for line in stream.content:
                if line.startswith(b"data:") and (at := line.find(b'"at":')) >= 0:
                    sent = float(line[at + 5 :].split(b"}", 1)[0])
                    self.late.append(time.perf_counter() - sent)

    def p(self, which: int) -> float:
        return statistics.quantiles(self.late, n=100)[which - 1] * 1000


async def publish_on(session: aiohttp.ClientSession, base: str) -> None:
    while True:
        data = {"at": time.perf_counter()}
        body = {"type": "info", "service": "bench", "channels": [CHANNEL], "data": data}
        async with session.post(f"{base}/api/v1/messages/send", json=body) as answer:
            assert answer.status == 202
        await asyncio.sleep(1 / RATE)


async def measure(devices: int, port: int, pid: int, origin: str) -> None:
    base = f"http://127.0.0.1:{port}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        for start in range(0, devices, 50):
            some = range(start, min(devices, start + 50))
            await asyncio.gather(*(register(session, base, origin, each) for each in some))
        readers = Readers()
        tasks = [asyncio.create_task(readers.read(session, base)) for _ in range(STREAMS)]
        await asyncio.sleep(1)
        tasks.append(asyncio.create_task(publish_on(session, base)))
        await asyncio.sleep(1)
        readers.late.clear()
        await asyncio.sleep(10)
        before = readers.p(50), readers.p(99)
        idle = cpu(pid)
        await asyncio.sleep(3)
        idle = (cpu(pid) - idle) / 3
        readers.late.clear()
        began, used = time.perf_counter(), cpu(pid)
        for start in range(0, devices, TOGETHER):
            some = range(start, min(devices, start + TOGETHER))
            body = [message(each) for each in some]
            async with session.post(f"{base}/api/v1/messages/batch", json=body) as answer:
                assert answer.status == 202, await answer.text()
        while Taking.taken < devices:  # noqa: ASYNC110 - it is counted where nothing can wait
            await asyncio.sleep(0.01)
        took = time.perf_counter() - began
        used = cpu(pid) - used - idle * took
        during = readers.p(50), readers.p(99)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(
        f"{devices} devices: {devices / took:,.0f} pushes/s, {used / devices * 1e6:,.0f} us each,"
    )
    print(f"  so {devices / used:,.0f} a second and core (CPU of the service, streams left out)")
    print(f"{STREAMS} streams, {RATE:g} messages/s: p50 {before[0]:.1f} ms, p99 {before[1]:.1f} ms")
    print(
        f"  during the burst: p50 {during[0]:.1f} ms, p99 {during[1]:.1f} ms:"
        f" {during[1] / before[1]:.2f} x"
    )


async def run(devices: int) -> None:
    authority = Authority()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        Taking, "127.0.0.1", 0, ssl=authority.issue("localhost"), backlog=1_000
    )
    push_port = server.sockets[0].getsockname()[1]
    port = free_port()
    with tempfile.NamedTemporaryFile("w") as trusted:
        trusted.write(authority.pem)
        trusted.flush()
        environ = os.environ | {
            "SERVICE_PORT": str(port),
            "VAPID_PRIVATE_KEY": text(os.urandom(31) + b"\1"),
            "VAPID_SUBJECT": "mailto:bench@example.com",
            "PUSH_ENDPOINTS": json.dumps([f"localhost:{push_port}"]),
            "SSL_CERT_FILE": trusted.name,
            "LOG_LEVEL": "error",
        }
        argv = [sys.executable, "-m", "msgpush", "serve"]
        service = subprocess.Popen(argv, env=environ, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(service.pid, {cores[0]})
        os.sched_setaffinity(0, {cores[-1]})
        try:
            async with aiohttp.ClientSession() as session:
                while True:
                    try:
                        async with session.get(f"http://127.0.0.1:{port}/health/ready") as answer:
                            if answer.status == 200:
                                break
                    except aiohttp.ClientError:
                        pass
                    await asyncio.sleep(0.05)
            await measure(devices, port, service.pid, f"https://localhost:{push_port}")
        finally:
            service.terminate()
            service.wait(15)
            server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.pushes", description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    uvloop.run(run(parser.parse_args().devices))
