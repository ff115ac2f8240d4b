"""The alerts and the dashboard, at real services that a real Prometheus watches: each alert comes
when its cause is made, and goes with it."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.client import SseClient, request
from tests.support.prometheus import (
    ALERTS,
    DASHBOARD,
    PROMETHEUS,
    Prometheus,
    alert_names,
    dashboard_queries,
    hastened,
    promtool,
)
from tests.support.redis_servers import RedisServer, free_port
from tests.support.service import ServiceProcess, eventually
from tests.support.tokens import SECRET
from tests.support.web import answer

TESTS = ALERTS.with_name("alerts_test.yml")
SEND = "/api/v1/messages/send"
WAITING, WINDOWS = 60, 40  # a minute's wait is a second here, and five minutes' window 7.5 seconds
PATIENCE = 60.0
STARTING = threading.Lock()

pytestmark = pytest.mark.skipif(PROMETHEUS is None and "CI" not in os.environ, reason="prometheus")


def test_promtool_takes_the_rules_and_their_tests_pass() -> None:
    promtool("check", "rules", ALERTS)
    promtool("test", "rules", TESTS)


def test_prometheus_takes_the_configuration_of_compose(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("none")
    text = ALERTS.with_name("prometheus.yml").read_text()
    assert "/run/metrics-token\n" in text
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/run/metrics-token\n", f"{tmp_path}/token\n"))
    (tmp_path / ALERTS.name).write_text(ALERTS.read_text())
    promtool("check", "config", "--lint=all", file)


def test_each_alert_is_tested_with_its_cause_and_without() -> None:
    evaluated = re.findall(r"alertname: (\w+)\n( +exp_alerts:)?", TESTS.read_text())
    for name in alert_names():
        assert {bool(fires) for each, fires in evaluated if each == name} == {True, False}, name


@pytest.mark.long
def test_the_tests_of_the_rules_notice_what_is_changed_in_them(tmp_path: Path) -> None:
    rules = ALERTS.read_text()
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    for shipped, changed in (
        ("> 0.01", "> 0.2"),
        ("> 0.8\n", "> 0.9\n"),
        (">= 20) < 0.5", ">= 1) < 0.5"),
        ("for: 1m", "for: 20m"),
        (" and message_push_draining == 0", ""),
        ("offset 15m", "offset 1m"),
    ):
        assert shipped in rules
        (tmp_path / ALERTS.name).write_text(rules.replace(shipped, changed))
        with pytest.raises(AssertionError, match="FAILED"):
            promtool("test", "rules", tmp_path / TESTS.name)


def test_prometheus_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    queries = [query.replace("$__rate_interval", "1m") for query in dashboard_queries()]
    rules = [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_bytes(msgspec.json.encode({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", file)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("go") is None and "CI" not in os.environ, reason="needs go")
def test_grafanas_own_schema_takes_the_dashboard(tmp_path: Path) -> None:
    program = tmp_path / "check"
    folder = Path(__file__).parents[1] / "dashboard"
    subprocess.run(["go", "build", "-o", program, "."], cwd=folder, check=True)

    def says(board: str) -> str:
        (tmp_path / "board.json").write_text(board)
        command = [program, tmp_path / "board.json"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    board = DASHBOARD.read_text()
    assert says(board) == "accepted\n"
    # It would say so of an unknown field of a panel, and of one of another type.
    assert "unexpected field 'showDots'" in says(board.replace("showPoints", "showDots"))
    assert "cannot unmarshal number" in says(board.replace('"unit": "s"', '"unit": 3'))


class Scene:
    """One deployment of those that the Prometheus watches: its instances, and its alerts.

    Args:
        redis: its bus.
        database: of that server, so that deployments may share one.
        ports: of its instances, by their names.
        environ: of all of them.
    """

    def __init__(
        self,
        namespace: str,
        redis: RedisServer,
        database: int,
        instances: Sequence[str],
        **environ: str,
    ) -> None:
        url = f"redis://127.0.0.1:{redis.port}/{database}"
        self.namespace, self.redis = namespace, redis
        self._environ = {"REDIS_URL": url, **environ}
        self.ports = {name: free_port() for name in instances}
        self.fired: set[str] = set()
        self.prometheus: Prometheus

    @contextmanager
    def instance(self, name: str, **environ: str) -> Iterator[ServiceProcess]:
        port = str(self.ports[name])
        settings = {**self._environ, **environ}
        with ExitStack() as stack:
            # One after the other: all at once are slow to start.
            with STARTING:
                # The port is a flag, since a process that is started anew has the same one.
                service = ServiceProcess("--service-port", port, open_files=0, **settings)
                stack.enter_context(service)
            yield service

    def is_quiet(self) -> None:
        """All instances answer for a while, and nothing fires."""
        up = f'count(min_over_time(up{{namespace="{self.namespace}"}}[3s]) == 1)'

        def found() -> bool:
            counted = [each["value"][1] for each in self.prometheus.query(up)]
            alerts = self.prometheus.alerts(self.namespace)
            return counted == [str(len(self.ports))] and not alerts

        eventually(found, PATIENCE)

    def fires(self, *alerts: str) -> None:
        eventually(lambda: {*alerts} <= self.prometheus.alerts(self.namespace), PATIENCE)
        self.fired |= {*alerts}

    def stops(self, *alerts: str) -> None:
        eventually(lambda: not {*alerts} & self.prometheus.alerts(self.namespace), PATIENCE)


@contextmanager
def repeated(what: Callable[[], object], pause: float) -> Iterator[None]:
    """Do something again and again meanwhile; what isn't answered is no matter."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(pause):
            with contextlib.suppress(OSError, http.client.HTTPException):
                what()

    thread = threading.Thread(target=run, name="repeated")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def publish(port: int, target: dict[str, Any], **more: Any) -> int:
    message = {"type": "info", "service": "test", "target": target, "data": {}} | more
    return request(port, "POST", SEND, msgspec.json.encode(message)).status


def availability(scene: Scene) -> None:
    """Instances are killed, Redis is away, an instance starts meanwhile."""
    with ExitStack() as stack:
        for name in ("first", "second"):
            stack.enter_context(scene.instance(name))
        scene.is_quiet()
    scene.fires("MsgpushDown", "MsgpushInstanceDown")
    with scene.instance("first") as first:
        scene.stops("MsgpushDown")
        with scene.instance("second"):
            scene.stops("MsgpushInstanceDown")
            with repeated(lambda: publish(first.port, {"user_id": "1"}), 0.1):
                scene.redis.kill()
                scene.fires("MsgpushNotWorking", "MsgpushPublishingFails")
        scene.fires("MsgpushInstanceDown")
        # It has never reached Redis, and waits for it.
        with scene.instance("second"):
            scene.fires("MsgpushNotReady")
            scene.redis.start()
            with repeated(lambda: publish(first.port, {"user_id": "1"}), 0.1):
                scene.stops("MsgpushNotReady", "MsgpushNotWorking", "MsgpushPublishingFails")


def restarts(scene: Scene) -> None:
    """An instance that is killed and started, until it is let alone."""
    series = f'message_push_start_time_seconds{{namespace="{scene.namespace}"}}'
    starts: set[str] = set()

    def seen_anew() -> bool:
        found = {each["value"][1] for each in scene.prometheus.query(series)} - starts
        starts.update(found)
        return bool(found)

    for _ in range(4):
        with scene.instance("first"):
            eventually(seen_anew, PATIENCE)
    with scene.instance("first"):
        scene.fires("MsgpushRestarts")
        scene.stops("MsgpushRestarts")


def slowness(scene: Scene) -> None:
    """An instance and Redis that are stopped for moments."""

    def stop_and_go(stop: Callable[[], object], go: Callable[[], object], seconds: float) -> None:
        stop()
        time.sleep(seconds)
        go()

    with scene.instance("first") as first, scene.instance("second") as second:
        scene.is_quiet()
        with (
            SseClient(second.port, "/sse/user/1"),
            repeated(lambda: publish(first.port, {"user_id": "1"}), 0.02),
        ):
            stop, go = (
                lambda: second.signal(signal.SIGSTOP),
                lambda: second.signal(signal.SIGCONT),
            )
            with repeated(lambda: stop_and_go(stop, go, 1.3), 0.7):
                scene.fires("MsgpushDeliverySlow", "MsgpushLoopLag")
            scene.stops("MsgpushDeliverySlow", "MsgpushLoopLag")
            with repeated(lambda: stop_and_go(scene.redis.pause, scene.redis.resume, 0.8), 0.4):
                scene.fires("MsgpushPublishingSlow")
            scene.stops("MsgpushPublishingSlow")


def limits(scene: Scene) -> None:
    """Streams near the limit, and half of them gone; a log that is short for the rate."""
    batch = [
        {"type": "info", "service": "test", "target": {"user_id": "2"}, "data": {"n": n}}
        for n in range(100)
    ]
    body = msgspec.json.encode({"messages": batch})
    with scene.instance("first") as first:
        scene.is_quiet()
        with ExitStack() as streams:
            for _ in range(10):
                streams.enter_context(SseClient(first.port, "/sse/user/1"))
            with ExitStack() as more:
                for _ in range(18):
                    more.enter_context(SseClient(first.port, "/sse/user/1"))
                scene.fires("MsgpushStreamsNearLimit")
                batches = "/api/v1/messages/batch"
                assert request(first.port, "POST", batches, body).status == 202
                with repeated(lambda: request(first.port, "POST", batches, body), 0.1):
                    scene.fires("MsgpushLogShort")
                scene.stops("MsgpushLogShort")
            scene.fires("MsgpushStreamsLost")
            scene.stops("MsgpushStreamsNearLimit", "MsgpushStreamsLost")


def acknowledge_another(port: int) -> None:
    """A message that is acknowledged at once."""
    id = f"m{time.monotonic_ns()}"
    publish(port, {"user_id": "1"}, id=id, metadata={"ack": True})
    keys = msgspec.json.encode({"keys": [f"test/{id}"]})
    request(port, "POST", "/api/v1/users/1/acknowledgements", keys)


def messages(scene: Scene) -> None:
    """Messages that are refused, that nobody acknowledges, and too many that wait."""
    with scene.instance("first") as first:
        scene.is_quiet()
        with SseClient(first.port, "/sse/user/1"):
            ack = {"ack": {"deadline": 1, "deliveries": 2}}
            assert publish(first.port, {"user_id": "1"}, metadata=ack) == 202
            too_large = {"data": {"text": "x" * 300_000}}
            with (
                repeated(lambda: publish(first.port, {"nobody": "1"}), 0.1),
                repeated(lambda: publish(first.port, {"user_id": "1"}, **too_large), 0.5),
                repeated(lambda: acknowledge_another(first.port), 0.5),
            ):
                scene.fires("MsgpushPublishingRefused", "MsgpushDeadLetters")
        large = {"metadata": {"ack": True}, "data": {"text": "x" * 200_000}}
        with repeated(lambda: publish(first.port, {"user_id": "3"}, **large), 0.1):
            scene.fires("MsgpushPendingFull")
        scene.stops("MsgpushPublishingRefused", "MsgpushPendingFull", "MsgpushDeadLetters")


def drain(scene: Scene) -> None:
    """An instance that takes long to end."""
    with scene.instance("first", DRAIN_SECONDS="15") as first:
        scene.is_quiet()
        with ExitStack() as streams:
            for _ in range(15):
                streams.enter_context(SseClient(first.port, "/sse/user/1"))
            first.signal(signal.SIGTERM)
            scene.fires("MsgpushDrainHangs")
            assert first.wait(30) == 0
        scene.stops("MsgpushDrainHangs")


class Gateway(BaseHTTPRequestHandler):
    """A registry that takes whoever comes."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer(self, b"")

    def do_DELETE(self) -> None:
        answer(self, b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


def registration(scene: Scene) -> None:
    """A registry that isn't there, and then is."""
    port = free_port()
    with scene.instance("first", GATEWAY_URL=f"http://127.0.0.1:{port}"):
        scene.fires("MsgpushUnregistered")
        with ThreadingHTTPServer(("127.0.0.1", port), Gateway) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="gateway")
            thread.start()
            try:
                scene.stops("MsgpushUnregistered")
            finally:
                server.shutdown()
                thread.join()


@pytest.mark.long
def test_each_alert_comes_with_its_cause_and_goes_with_it() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(RedisServer()) for _ in range(3)]
        small = {"LOG_LENGTH": "1000", "MAX_CONNECTIONS": "30", "PENDING_BYTES": str(8 << 20)}
        reached = {"SERVICE_HOST": "0.0.0.0", "JWT_SECRET": SECRET}
        plays = {
            availability: Scene("availability", servers[0], 0, ["first", "second"]),
            restarts: Scene("restarts", servers[1], 0, ["first"]),
            slowness: Scene("slowness", servers[2], 0, ["first", "second"]),
            limits: Scene("limits", servers[1], 1, ["first"], **small),
            messages: Scene("messages", servers[1], 2, ["first"], **small),
            drain: Scene("drain", servers[1], 3, ["first"]),
            registration: Scene("registration", servers[1], 4, ["first"], **reached),
        }
        rules = hastened(ALERTS.read_text(), WAITING, WINDOWS)
        targets = {scene.namespace: [*scene.ports.values()] for scene in plays.values()}
        prometheus = stack.enter_context(Prometheus(rules, targets))
        for scene in plays.values():
            scene.prometheus = prometheus
        with ThreadPoolExecutor(len(plays)) as threads:
            ends = [threads.submit(play, scene) for play, scene in plays.items()]
        errors = [error for each in ends if isinstance(error := each.exception(), Exception)]
        if errors:
            raise ExceptionGroup("some alerts", errors)
        fired = set[str]().union(*(scene.fired for scene in plays.values()))
        assert fired == {*alert_names()}
        empty = [
            query
            for query in dashboard_queries()
            if not prometheus.seen(
                query.replace("$job", "msgpush")
                .replace("$instance", ".*")
                .replace("$__rate_interval", "5s"),
                120,
            )
        ]
        assert not empty, "\n".join(empty)
