"""A rolling restart behind a real nginx that is fed from a real registry: nothing is lost, and
nobody is answered 502.
"""

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from tests.integration.test_nginx import Nginx
from tests.support.client import SseClient, request
from tests.support.redis_servers import RedisServer, free_port
from tests.support.registries import SERVERS, RegistryServer
from tests.support.service import ServiceProcess, eventually

INSTANCES = 3
PUBLISHERS = 3  # of each sort
SSE_CLIENTS = 6

pytestmark = pytest.mark.long


class Feeder:
    """Writes what a registry knows into nginx's upstream, and reloads it, as consul-template does."""

    def __init__(self, registry: RegistryServer, nginx: "FedNginx") -> None:
        self._registry, self._nginx = registry, nginx
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeder")
        self.fed: list[int] = []
        self.changes = 0
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(20)

    def _run(self) -> None:
        try:
            while not self._end.wait(0.05):
                ports = sorted(each["port"] for each in self._registry.records().values())
                if ports and ports != self.fed:
                    self._nginx.serve(ports)
                    self.fed = ports
                    self.changes += 1
        except BaseException as error:
            self.error = error
            raise


class FedNginx(Nginx):
    """The shipped configuration, whose instances change."""

    def serve(self, ports: list[int]) -> None:
        text = self._file.read_text()
        old = re.search(r"(?:server 127\.0\.0\.1:\d+ [^\n]*\n\s*)+", text)
        assert old is not None
        new = "".join(
            f"server 127.0.0.1:{port} max_fails=1 fail_timeout=2s;\n        " for port in ports
        )
        if old[0] != new:
            self.reload(old[0], new)


class Load:
    """Publishers and listeners at one port, who count.

    Attributes:
        accepted: the messages that were answered with 202.
        failures: what plain publishers, who try once, were answered else; and what those with ids
            were, who then try again.
        received: how often each client got each message.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.accepted: dict[str, list[str]] = {"plain": [], "with ids": []}
        self.failures: dict[str, Counter[int | str]] = {"plain": Counter(), "with ids": Counter()}
        self.received: dict[str, Counter[str]] = {}
        self.gaps: list[Any] = []
        self.overloads = 0
        self.streams: Counter[str] = Counter()
        self._publishing, self._listening = threading.Event(), threading.Event()
        self._publishing.set()
        self._listening.set()
        self._publishers = [
            threading.Thread(target=self._publish, args=(sort, number))
            for sort in self.accepted
            for number in range(PUBLISHERS)
        ]
        self._listeners = [
            threading.Thread(target=target, args=(f"{target.__name__.strip('_')} {number}",))
            for target, many in ((self._sse, SSE_CLIENTS), (self._ws, 1))
            for number in range(many)
        ]

    def __enter__(self) -> Self:
        for each in self._listeners:
            each.start()
        eventually(lambda: len(self.received) == len(self._listeners), 20)
        for each in self._publishers:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._publishing.clear()
        self._listening.clear()
        for each in (*self._publishers, *self._listeners):
            each.join(30)

    def finish(self) -> None:
        """Publish no more, and wait until all has come."""
        self._publishing.clear()
        for each in self._publishers:
            each.join(30)
        wanted = {id for ids in self.accepted.values() for id in ids}
        eventually(lambda: all(wanted <= got.keys() for got in self.received.values()), 30)

    def _publish(self, sort: str, number: int) -> None:
        count = 0
        while self._publishing.is_set():
            count += 1
            name = f"{sort}-{number}-{count}"
            body: dict[str, Any] = {"type": "info", "service": "s", "channels": ["a"]}
            body["data"] = {"name": name}
            if sort == "with ids":
                body["id"] = name.replace(" ", "-")
            while True:
                answer = self._answer(body)
                if answer == 202:
                    self.accepted[sort].append(name)
                    break
                self.failures[sort][answer] += 1
                if sort == "plain":
                    break
                time.sleep(0.1)
            time.sleep(0.03)

    def _answer(self, body: object) -> int | str:
        try:
            return request(
                self._port, "POST", "/api/v1/messages/send", json.dumps(body).encode()
            ).status
        except OSError as error:
            return type(error).__name__

    def _sse(self, name: str) -> None:
        cursor = ""
        while self._listening.is_set():
            self.streams[name] += 1
            try:
                with SseClient(self._port, f"/sse/stream/a?last_event_id={cursor}") as stream:
                    while self._listening.is_set():
                        event = stream.next(0.5)
                        cursor = stream.last_event_id or cursor
                        if event.type == "msgpush.close":
                            self.overloads += "overload" in event.data
                            break
                        self._take(name, event.type, event.data)
            except TimeoutError:
                continue
            except (OSError, AssertionError) as error:
                self.failures.setdefault(name, Counter())[repr(error)[:80]] += 1
                time.sleep(0.1)

    def _ws(self, name: str) -> None:
        cursor = ""
        while self._listening.is_set():
            self.streams[name] += 1
            url = f"ws://127.0.0.1:{self._port}/ws?channel=a"
            try:
                with connect(url + (f"&last_event_id={cursor}" if cursor else "")) as socket:
                    while self._listening.is_set():
                        try:
                            said = json.loads(socket.recv(0.5))
                        except TimeoutError:
                            continue
                        cursor = said.get("id") or cursor
                        self._take(name, said["event"], json.dumps(said.get("data")))
            except ConnectionClosed:
                continue
            except (OSError, WebSocketException) as error:
                self.failures.setdefault(name, Counter())[repr(error)[:80]] += 1
                time.sleep(0.1)

    def _take(self, name: str, type: str, data: str) -> None:
        got = self.received.setdefault(name, Counter())
        if type == "msgpush.gap":
            self.gaps.append((name, data))
        elif type == "message":
            got[json.loads(data)["data"]["name"]] += 1


@pytest.fixture(params=["etcd", "gateway", "consul"])
def registry(request: pytest.FixtureRequest) -> Iterator[RegistryServer]:
    with SERVERS[request.param]() as server:
        yield server


def test_a_rolling_restart_under_load_loses_nothing_and_answers_no_502(
    registry: RegistryServer, tmp_path: Path
) -> None:
    roll(registry, tmp_path, INSTANCES)


def test_a_rolling_restart_of_instances_with_workers_loses_nothing_either(tmp_path: Path) -> None:
    with SERVERS["gateway"]() as registry:
        roll(registry, tmp_path, 2, "--workers", "2")


def roll(registry: RegistryServer, tmp_path: Path, number: int, *flags: str) -> None:
    """Restart so many instances, one after the other, under load; check the account."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        start: Callable[[], ServiceProcess] = lambda: stack.enter_context(  # noqa: E731
            ServiceProcess(
                *flags,
                open_files=0,
                SERVICE_HOST="0.0.0.0",
                ADVERTISE_ADDRESS="127.0.0.1",
                ENABLE_AUTH="false",
                REDIS_URL=redis.url,
                DRAIN_SECONDS="2",
                WITHDRAW_SECONDS="1.5",
                **registry.settings(),
            )
        )
        running = [start() for _ in range(number)]
        nothing = free_port()
        nginx = stack.enter_context(FedNginx(tmp_path, nothing, nothing))
        feeder = stack.enter_context(Feeder(registry, nginx))
        eventually(lambda: len(feeder.fed) == number, 20)
        with Load(nginx.port) as load:
            for old in list(running):
                eventually_more(load)
                old.signal(signal.SIGTERM)
                assert old.wait(20) == 0
                assert old.port not in feeder.fed
                new = start()
                eventually(lambda new=new: new.port in feeder.fed, 20)  # type: ignore[misc]
            eventually_more(load)
            load.finish()
        assert feeder.error is None
        told = {sort: len(ids) for sort, ids in load.accepted.items()}
        print(told, load.failures, load.streams, feeder.changes)  # noqa: T201 - pytest shows it
        assert load.failures == {"plain": Counter(), "with ids": Counter()}
        assert load.overloads == 0
        assert not load.gaps
        for name, got in load.received.items():
            assert set(got.values()) == {1}, name
            # Each was moved at least once, or it would prove little.
            assert load.streams[name] > 1
        access = nginx.logs("access.log")
        statuses = Counter(re.findall(r'" (\d{3}) \d+ ', access))
        assert statuses.keys() <= {"200", "202", "101", "499"}, statuses
        assert feeder.changes >= 2 * number


def eventually_more(load: Load) -> None:
    """Wait for more of each sort to be accepted."""
    before = {sort: len(ids) for sort, ids in load.accepted.items()}
    eventually(lambda: all(len(ids) > before[sort] + 40 for sort, ids in load.accepted.items()), 30)
