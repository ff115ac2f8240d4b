"""Two instances of an earlier release become two of this one, under load, behind a real nginx, by
the steps of docs/operations.md; and one goes back.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.integration.test_nginx import NGINX, Nginx
from tests.support.client import PATIENCE, request
from tests.support.load import Load
from tests.support.outbox_audit import audit
from tests.support.redis_servers import RedisServer
from tests.support.releases import LAST, earlier_process, earlier_source, run_earlier
from tests.support.service import ServiceProcess, eventually

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(NGINX is None and "CI" not in os.environ, reason="needs nginx"),
]
SETTINGS = {"ENABLE_AUTH": "false", "DRAIN_SECONDS": "1", "HEARTBEAT_INTERVAL": "1"}


class Socket:
    """A WebSocket that comes back with its cursor whenever it was closed, and keeps what came."""

    def __init__(self, port: int, channel: str) -> None:
        self.numbers: list[int] = []
        self.others: list[str] = []
        self.sockets = 0
        self._port, self._channel, self._last = port, channel, "earliest"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sockets += 1
            query = f"channel={self._channel}&broadcast=false&last_event_id={self._last}"
            with connect(f"ws://127.0.0.1:{self._port}/ws?{query}") as socket:
                try:
                    while not self._stop.is_set():
                        self._take(msgspec.json.decode(socket.recv(PATIENCE)))
                except ConnectionClosed:
                    pass

    def _take(self, told: dict[str, object]) -> None:
        if told.get("id"):
            self._last = str(told["id"])
        if told["event"] == "message":
            message = told["data"]
            assert isinstance(message, dict)
            self.numbers.append(message["data"]["number"])
        elif told["event"] not in ("msgpush.open", "msgpush.heartbeat"):
            data = told["data"]
            assert isinstance(data, dict)
            self.others.append(f"{told['event']} {data.get('reason')}")


class Pair:
    """Two instances behind nginx, each of which may be replaced by another release."""

    def __init__(self, stack: ExitStack, directory: Path, redis: RedisServer, source: Path) -> None:
        self._stack, self._redis, self._source = stack, redis, source
        self.instances = [self._start("earlier", 0), self._start("earlier", 0)]
        self.replaced: list[ServiceProcess] = []
        first, second = self.instances
        self.nginx = stack.enter_context(Nginx(directory, first.port, second.port))

    def replace(self, number: int, release: str) -> None:
        """The steps of docs/operations.md, "Upgrade without dropping a message"."""
        old = self.instances[number]
        up, down = f"server 127.0.0.1:{old.port} max", f"server 127.0.0.1:{old.port} down max"
        self.nginx.reload(up, down)
        old.signal(signal.SIGTERM)
        assert old.wait() == 0
        self.replaced.append(old)
        new = self.instances[number] = self._start(release, old.port)
        eventually(lambda: request(new.port, "GET", "/health/ready").status == 200)
        self.nginx.reload(down, up)

    def _start(self, release: str, port: int) -> ServiceProcess:
        settings: dict[str, Any] = SETTINGS | {"SERVICE_PORT": str(port)}
        made = (
            earlier_process(self._source, self._redis.url, **settings)
            if release == "earlier"
            else ServiceProcess(REDIS_URL=self._redis.url, **settings)
        )
        return self._stack.enter_context(made)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    source = earlier_source(tmp_path / "earlier", LAST)
    assert str(source) in run_earlier(source, "import msgpush; print(msgpush.__file__)")
    (tmp_path / "nginx").mkdir()
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(appendonly=True))
        yield Pair(stack, tmp_path / "nginx", redis, source)
        with redis.client() as client:
            audit(client)


def test_an_upgrade_one_by_one_and_a_downgrade_lose_and_double_nothing_and_no_502_is_seen(
    pair: Pair,
) -> None:
    port = pair.nginx.port
    with (
        Load([port], rate=30, subscribers=6, users=4, stay=(0.5, 8), fickle=0.2) as load,
        Socket(port, load.channels[0]) as socket,
    ):
        load.run(2)
        for number, release in ((0, "this"), (1, "this"), (0, "earlier")):
            before = load.accepted
            pair.replace(number, release)
            load.run(2)
            load.wait(lambda before=before: load.accepted > before + 50)  # type: ignore[misc]
        load.settle()  # nothing lost, doubled or out of order, nothing given up that was acknowledged
        published = [each.number for each in load.publishers[0].accepted]
        eventually(lambda: socket.numbers[-1:] == published[-1:])

    assert socket.numbers == published
    assert socket.sockets > 1
    assert set(socket.others) <= {"msgpush.close drain", "msgpush.close overload"}
    assert not load.gaps
    assert not load.refused, "no publisher had to try again"
    statuses = set(re.findall(r'HTTP/1\.1" (\d{3}) ', pair.nginx.logs("access.log")))
    assert statuses <= {"200", "202", "101", "204"}, "499 is a client that went before its answer"
    for each in (*pair.instances, *pair.replaced):
        assert [line for line in each.log if line.get("level") in ("error", "critical")] == []
        assert "Traceback" not in str(each.log)
