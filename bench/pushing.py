"""Web Pushes to many devices at once: how many a second, and what the streams beside them see.

The push service is of this bench's own, over TLS, a process on the load client's core."""

import asyncio
import base64
import datetime
import gc
import json
import multiprocessing
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bench.load import Result, Spoiled

VAPID = base64.urlsafe_b64encode(bytes(range(1, 33))).rstrip(b"=").decode()
RATE = 50  # messages a second to the streams, while devices are pushed to
BATCH = 100
REGISTERING = 32  # connections
MOST_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed(Result):
    """A burst of pushes, beside streams.

    Attributes:
        per_second: from the first to the last.
        quiet, publishing, during: milliseconds that a message took to the streams: p50, p99 and the
            most, before the burst, while its messages were published, and from then to its end.
        lasted: seconds.
    """

    per_second: float
    lasted: float
    quiet: tuple[float, float, float]
    publishing: tuple[float, float, float]
    during: tuple[float, float, float]


@contextmanager
def push_service(directory: Path, cores: set[int]) -> Iterator[tuple[int, int]]:
    """A push service that takes everything: its port, and one that tells how many it has taken."""
    certificate(directory)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(directory, there, cores), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


def certificate(directory: Path) -> None:
    """Write a key, and its certificate for localhost, into a directory."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    alternative = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(alternative, critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "certificate.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


class _Taker(asyncio.Protocol):
    """Answers each request with 201."""

    taken = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._received = transport, b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(self._received) < end + 4 + size:
                return
            self._received = self._received[end + 4 + size :]
            _Taker.taken += 1
            self._transport.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")


def _serve(directory: Path, line: Connection, cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)
    asyncio.run(_serve_for_ever(directory, line))


async def _serve_for_ever(directory: Path, line: Connection) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Taker, "127.0.0.1", 0, ssl=tls)

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % _Taker.taken)
        writer.close()

    telling = await asyncio.start_server(tell, "127.0.0.1", 0)
    line.send(tuple(each.sockets[0].getsockname()[1] for each in (server, telling)))
    await asyncio.Event().wait()


def settings(directory: Path, port: int) -> dict[str, str]:
    """What a service needs to push there."""
    return {
        "VAPID_PRIVATE_KEY": VAPID,
        "VAPID_SUBJECT": "mailto:bench@example.com",
        "PUSH_ENDPOINTS": json.dumps([f"localhost:{port}"]),
        "SSL_CERT_FILE": str(directory / "certificate.pem"),
        "PENDING_BYTES": str(1 << 30),
        "MEMORY_BUS_BYTES": str(1 << 31),
    }


def register(port: int, push_port: int, devices: int) -> None:
    """Register a device for each of so many users, with endpoints as long as browsers' are."""
    asyncio.run(_register(port, push_port, devices))


async def _register(port: int, push_port: int, devices: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    keys = {"p256dh": _base64url(point), "auth": _base64url(bytes(16))}
    numbers = iter(range(devices))

    async def some() -> None:
        async with _Client(port) as client:
            for number in numbers:
                endpoint = f"https://localhost:{push_port}/{number:0>165}"
                body = json.dumps({"webpush": {"endpoint": endpoint, "keys": keys}}).encode()
                await client.post(f"/api/v1/users/u{number}/devices", body)

    await asyncio.gather(*(some() for _ in range(REGISTERING)))


def burst(port: int, telling: int, devices: int, streams: int, seconds: float) -> Pushed:
    """Publish a message to each user, and watch the streams: for some seconds before, and during.

    The users are those that `register` has made."""
    gc.freeze()
    return asyncio.run(_burst(port, telling, devices, streams, seconds))


async def _burst(port: int, telling: int, devices: int, streams: int, seconds: float) -> Pushed:
    opened = [await _stream(port) for _ in range(streams)]
    latencies: list[int] = []
    tasks = [asyncio.create_task(_listen(reader, latencies)) for reader, _ in opened]
    ending = asyncio.Event()
    sending = asyncio.create_task(_publish(port, ending))
    await asyncio.sleep(1)
    latencies.clear()
    await asyncio.sleep(seconds)
    quiet = _spread(latencies)
    used, before, began = time.process_time(), await _taken(telling), time.monotonic()
    latencies.clear()
    async with _Client(port) as client:
        for start in range(0, devices, BATCH):
            some = range(start, min(start + BATCH, devices))
            await client.post("/api/v1/messages/batch", json.dumps([*map(_message, some)]).encode())
    publishing = _spread(latencies)
    latencies.clear()
    while (taken := await _taken(telling) - before) < devices:
        await asyncio.sleep(0.05)
        if time.monotonic() - began > MOST_SECONDS:
            raise Spoiled(f"of {devices} pushes {taken} came")
    took, used = time.monotonic() - began, time.process_time() - used
    during = _spread(latencies)
    ending.set()
    await sending
    for task, (_, writer) in zip(tasks, opened, strict=True):
        task.cancel()
        writer.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Pushed(
        per_second=devices / took,
        lasted=took,
        quiet=quiet,
        publishing=publishing,
        during=during,
        surplus=max(0, taken - devices),
        busy=used / took,
    )


async def _taken(telling: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", telling)
    try:
        return int(await reader.read())
    finally:
        writer.close()


def _message(number: int) -> dict[str, object]:
    return {
        "type": "info",
        "service": f"bench{number % 8}",
        "target": {"user_id": f"u{number}"},
        "data": {"message": "Your import has ended: 1,042 rows, no errors."},
        "metadata": {"push": {"title": "Import", "url": "/imports/42"}},
    }


async def _stream(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /sse/stream/bench HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head:
        raise Spoiled(f"the answer was {head[:80]!r}")
    return reader, writer


async def _listen(reader: asyncio.StreamReader, latencies: list[int]) -> None:
    async for line in reader:
        _, found, rest = line.partition(b'"at":')
        if found:
            latencies.append(time.monotonic_ns() - int(rest.partition(b"}")[0]))


async def _publish(port: int, ending: asyncio.Event) -> None:
    async with _Client(port) as client:
        while not ending.is_set():
            said = {"type": "info", "service": "bench", "channels": ["bench"]}
            body = json.dumps(said | {"data": {"at": time.monotonic_ns()}}, separators=(",", ":"))
            await client.post("/api/v1/messages/send", body.encode())
            await asyncio.sleep(1 / RATE)


def _spread(latencies: list[int]) -> tuple[float, float, float]:
    if not latencies:
        raise Spoiled("the streams have got nothing")
    ordered = sorted(latencies)
    at = (0.5, 0.99, 1.0)
    p50, p99, most = (ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in at)
    return p50 / 1e6, p99 / 1e6, most / 1e6


class _Client:
    """One connection that requests are made on."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> "_Client":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def post(self, path: str, body: bytes) -> None:
        """Post something that has to be taken."""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        size = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        said = await self._reader.readexactly(size)
        if not answer.startswith(b"HTTP/1.1 2"):
            raise Spoiled(f"the answer was {answer[:40]!r} {said[:200]!r}")


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
