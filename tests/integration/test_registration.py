"""Registration of real instances: announced when ready, renewed, withdrawn before the drain; and
what is done about registries that fail.
"""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import SseClient, request
from tests.support.redis_servers import RedisServer
from tests.support.registries import SERVERS, EtcdServer, GatewayServer, RegistryServer
from tests.support.service import ServiceProcess, eventually

# On all addresses, as what is announced to others must be; the tests are on this machine.
REACHABLE = {
    "SERVICE_HOST": "0.0.0.0",
    "ADVERTISE_ADDRESS": "127.0.0.1",
    "ENABLE_AUTH": "false",
    "REGISTRY_TTL": "3",
    "WITHDRAW_SECONDS": "0.5",
    "DRAIN_SECONDS": "1",
}


@pytest.fixture(params=SERVERS)
def registry(request: pytest.FixtureRequest) -> Iterator[RegistryServer]:
    with SERVERS[request.param]() as server:
        yield server


def start(*flags: str, **environ: str) -> ServiceProcess:
    return ServiceProcess(*flags, open_files=0, **environ)


def registered(service: ServiceProcess, registry: RegistryServer) -> str:
    """The id that this instance is registered by, once it is."""
    return eventually(
        lambda: next(
            (id for id, each in registry.records().items() if each["port"] == service.port), ""
        )
    )


def metric(service: ServiceProcess, name: str) -> float:
    text = request(service.port, "GET", "/metrics").body.decode()
    return sum(float(each) for each in re.findall(rf"^{name}\{{.*\}} (.*)$", text, re.MULTILINE))


def logged(service: ServiceProcess, text: str) -> list[str]:
    return [line["event"] for line in service.log if text in line["event"]]


class Watcher:
    """Looks all the time, and tells when what was first seen.

    `moments` has it by name: withdrawn, unready, closed (a stream's end)."""

    def __init__(self, service: ServiceProcess, registry: RegistryServer, stream: SseClient):
        self.moments: dict[str, float] = {}
        self._service, self._registry, self._stream = service, registry, stream
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=each)
            for each in (self._watch_registry, self._watch_ready, self._watch_stream)
        ]

    def __enter__(self) -> "Watcher":
        self._stream.next()
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for each in self._threads:
            each.join(15)

    def _watch_registry(self) -> None:
        while not self._end.is_set() and "withdrawn" not in self.moments:
            if not self._registry.records():
                self.moments["withdrawn"] = time.monotonic()
            time.sleep(0.005)

    def _watch_ready(self) -> None:
        while not self._end.is_set() and "unready" not in self.moments:
            asked = time.monotonic()
            try:
                status = request(self._service.port, "GET", "/health/ready").status
            except OSError:
                return
            if status == 503:
                self.moments["unready"] = asked

    def _watch_stream(self) -> None:
        self._stream.rest(20)
        self.moments["closed"] = time.monotonic()


@pytest.mark.long
def test_an_instance_is_announced_when_ready_renewed_and_withdrawn_before_it_drains(
    registry: RegistryServer,
) -> None:
    with start(**REACHABLE, **registry.settings(), ROOT_PATH="/push") as service:
        id = registered(service, registry)
        assert request(service.port, "GET", "/health/ready").status == 200
        record = registry.records()[id]
        assert (record["address"], record["port"]) == ("127.0.0.1", service.port)
        assert record["routes"] == ["/push/sse/*", "/push/ws", "/push/api/v1/*"]
        assert request(service.port, "GET", record["health"]).status == 200
        eventually(lambda: metric(service, "message_push_registered") == 1)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            assert registry.records().keys() == {id}
            time.sleep(0.02)
        with (
            SseClient(service.port, "/sse/stream/a") as stream,
            Watcher(service, registry, stream) as watcher,
        ):
            service.signal(signal.SIGTERM)
            # Who comes meanwhile is still served.
            eventually(lambda: "withdrawn" in watcher.moments)
            with SseClient(service.port, "/sse/stream/a") as late:
                assert late.status == 200
                assert late.next().type == "msgpush.open"
            assert service.wait() == 0
        seen = watcher.moments
        # What is told of readiness is asked for in turns; it fails within the same moment.
        assert seen["unready"] < seen["withdrawn"] + 0.1
        assert seen["withdrawn"] + 0.4 < seen["closed"]


def test_each_start_of_a_process_has_an_id_of_its_own() -> None:
    with GatewayServer() as gateway:
        ids = set()
        for _ in range(2):
            environ = REACHABLE | gateway.settings() | {"WITHDRAW_SECONDS": "0"}
            with start(**environ) as service:
                ids.add(registered(service, gateway))
                service.signal(signal.SIGTERM)
                assert service.wait() == 0
        assert len(ids) == 2


def test_the_order_is_ready_fails_then_withdrawn_then_the_drain() -> None:
    class Slow(GatewayServer):
        """It looks at the instance's readiness when that withdraws."""

        seen: tuple[int, bool] | None = None

        def answer(self, method: str, path: str, *rest: object) -> tuple[int, bytes]:
            if method == "DELETE":
                ready = request(service.port, "GET", "/health/ready").status
                Slow.seen = (ready, stream.ended)
            return super().answer(method, path, *rest)  # type: ignore[arg-type]

    with (
        Slow() as gateway,
        start(**REACHABLE, **gateway.settings()) as service,
    ):
        registered(service, gateway)
        with SseClient(service.port, "/sse/stream/a") as stream:
            stream.next()
            service.signal(signal.SIGTERM)
            assert stream.rest()[-1].data == '{"reason":"drain","reconnect":true}'
        assert service.wait() == 0
        assert Slow.seen == (503, False)


@pytest.mark.long
def test_one_that_is_killed_is_forgotten_after_its_ttl(registry: RegistryServer) -> None:
    with start(**REACHABLE, **registry.settings()) as service:
        registered(service, registry)
        service.signal(signal.SIGKILL)
        service.wait()
        eventually(lambda: not registry.records(), 10)


@pytest.mark.long
def test_a_registry_that_was_down_from_the_start_and_one_that_comes_back_empty_are_told(
    registry: RegistryServer,
) -> None:
    registry.kill()
    with start(**REACHABLE, **registry.settings()) as service:
        assert request(service.port, "GET", "/health/ready").status in (200, 503)
        eventually(lambda: metric(service, "message_push_registry_failures_total") >= 2)
        assert metric(service, "message_push_registered") == 0
        assert len(logged(service, "not registered")) == 1
        body = b'{"type":"info","service":"s","channels":["a"]}'
        assert request(service.port, "POST", "/api/v1/messages/send", body).status == 202
        registry.restart()
        registered(service, registry)
        eventually(lambda: metric(service, "message_push_registered") == 1)
        for lose in (registry.empty, registry.restart):
            lose()
            began = time.monotonic()
            registered(service, registry)
            assert time.monotonic() - began < 3  # a renewal is due each second


@pytest.mark.long
def test_a_registry_that_stalls_holds_nothing_up() -> None:
    with (
        GatewayServer() as gateway,
        start(**REACHABLE, **gateway.settings()) as service,
    ):
        registered(service, gateway)
        gateway.stalls = True
        eventually(lambda: metric(service, "message_push_registry_failures_total") >= 1)
        with SseClient(service.port, "/sse/stream/a") as stream:
            stream.next()
            body = b'{"type":"info","service":"s","channels":["a"]}'
            assert request(service.port, "POST", "/api/v1/messages/send", body).status == 202
            stream.next(1)
            began = time.monotonic()
            service.signal(signal.SIGTERM)
            assert stream.rest()[-1].data == '{"reason":"drain","reconnect":true}'
            # Two seconds for the registry, half a one of grace, one of drain.
            assert time.monotonic() - began < 5
        assert service.wait() == 0
        assert logged(service, "can't withdraw")


def test_a_wrong_token_is_told_once_with_what_to_do_and_never_shown() -> None:
    with (
        GatewayServer("the-right-token") as gateway,
        start(**REACHABLE, GATEWAY_URL=gateway.url, GATEWAY_TOKEN="not-the-right-token") as service,
    ):
        eventually(lambda: logged(service, "not registered"))
        (line,) = logged(service, "not registered")
        assert "it refuses us (403" in line
        assert "check GATEWAY_TOKEN" in line
        time.sleep(2)
        assert len(gateway.requests) == 1  # tried on slowly
        assert "not-the-right-token" not in json.dumps(service.log)
        assert metric(service, "message_push_registry_failures_total") == 1
        assert "right-token" not in request(service.port, "GET", "/metrics").body.decode()
        assert request(service.port, "GET", "/health/ready").status == 200


def test_a_redirect_is_not_followed_so_nobody_else_gets_the_token() -> None:
    with GatewayServer() as other, GatewayServer("a-token") as gateway:
        gateway.redirect = other.url
        with start(**REACHABLE, **gateway.settings()) as service:
            eventually(lambda: logged(service, "redirect 307"))
            assert not other.requests


def test_the_address_is_guessed_where_it_is_not_said_and_that_is_logged() -> None:
    guessing = {name: text for name, text in REACHABLE.items() if name != "ADVERTISE_ADDRESS"}
    with (
        GatewayServer() as gateway,
        start(**guessing, **gateway.settings()) as service,
    ):
        found = eventually(
            lambda: (
                [each["address"] for each in gateway.records().values()]
                or logged(service, "set ADVERTISE_ADDRESS")
            )
        )
        # The way to the registry leads over the loopback: that is no address for others.
        assert not found[0].startswith("127.")
        assert logged(service, "ADVERTISE_ADDRESS")


def test_a_unix_socket_is_registered_by_the_address_of_its_proxy(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    environ = REACHABLE | {"SERVICE_UDS": path, "ADVERTISE_PORT": "443"}
    with (
        GatewayServer() as gateway,
        start(**environ, **gateway.settings(), ADVERTISE_SCHEME="https") as service,
    ):
        (record,) = eventually(lambda: list(gateway.records().values()))
        assert (record["scheme"], record["port"]) == ("https", 443)
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        assert not gateway.records()


@pytest.mark.long
def test_of_several_members_of_etcd_those_that_answer_are_asked() -> None:
    with EtcdServer() as one, EtcdServer() as other:
        environ = REACHABLE | {"ETCD_URL": f"{one.url},{other.url}"}
        with start(**environ) as service:
            registered(service, one)
            one.kill()
            registered(service, other)
            service.signal(signal.SIGTERM)
            assert service.wait() == 0
            assert not other.records()


@pytest.mark.long
def test_several_registries_are_told_each_for_itself() -> None:
    with (
        GatewayServer() as gateway,
        EtcdServer("a-password") as etcd,
        start(**REACHABLE, **gateway.settings(), **etcd.settings()) as service,
    ):
        assert registered(service, gateway) == registered(service, etcd)
        gateway.kill()
        eventually(lambda: metric(service, "message_push_registry_failures_total") >= 1)
        time.sleep(4)
        assert etcd.records()
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        assert not etcd.records()
        assert "a-password" not in json.dumps(service.log)


# Workers


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.long
def test_workers_are_registered_once_by_their_supervisor_and_withdrawn_before_they_drain(
    registry: RegistryServer, redis: RedisServer, tmp_path: Path
) -> None:
    environ = REACHABLE | registry.settings() | {"REDIS_URL": redis.url, "TMPDIR": str(tmp_path)}
    with start("--workers", "2", **environ) as service:
        id = registered(service, registry)
        assert registry.records()[id]["weight"] == 2
        time.sleep(4)  # longer than the ttl
        assert registry.records().keys() == {id}
        for _ in range(10):  # whichever worker answers
            assert metric(service, "message_push_registered") == 1
            assert metric(service, "message_push_registry_failures_total") == 0
        with (
            SseClient(service.port, "/sse/stream/a") as stream,
            Watcher(service, registry, stream) as watcher,
        ):
            service.signal(signal.SIGTERM)
            assert service.wait() == 0
        seen = watcher.moments
        assert seen["unready"] < seen["withdrawn"] + 0.1
        assert seen["withdrawn"] + 0.4 < seen["closed"]
        assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_workers_whose_supervisor_and_all_get_the_signal_wait_for_the_withdrawal(
    redis: RedisServer,
) -> None:
    # So systemd ends a service.
    with GatewayServer() as gateway:
        environ = REACHABLE | gateway.settings() | {"REDIS_URL": redis.url}
        with start("--workers", "2", **environ) as service:
            registered(service, gateway)
            pids = [line["pid"] for line in service.log if line["event"] == "a worker serves"]
            with (
                SseClient(service.port, "/sse/stream/a") as stream,
                Watcher(service, gateway, stream) as watcher,
            ):
                for pid in (*pids, service.pid):
                    os.kill(pid, signal.SIGTERM)
                assert service.wait() == 0
            assert watcher.moments["withdrawn"] + 0.4 < watcher.moments["closed"]


@pytest.mark.long
def test_a_worker_that_is_ended_alone_drains_and_the_others_stay_registered(
    redis: RedisServer,
) -> None:
    with GatewayServer() as gateway:
        environ = REACHABLE | gateway.settings() | {"REDIS_URL": redis.url}
        with start("--workers", "2", **environ) as service:
            registered(service, gateway)
            pid = next(line["pid"] for line in service.log if line["event"] == "a worker serves")
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: logged(service, "a worker has ended"))
            assert gateway.records()
            assert not gateway.times("DELETE", "")
            assert not logged(service, "Exception")


@pytest.mark.long
def test_a_supervisor_shows_in_its_workers_metrics_that_a_registry_is_down(
    redis: RedisServer,
) -> None:
    with GatewayServer() as gateway:
        environ = REACHABLE | gateway.settings() | {"REDIS_URL": redis.url}
        with start("--workers", "2", **environ) as service:
            registered(service, gateway)
            gateway.kill()
            eventually(lambda: metric(service, "message_push_registered") == 0)
            eventually(lambda: metric(service, "message_push_registry_failures_total") >= 2)
            gateway.restart()
            registered(service, gateway)
            eventually(lambda: metric(service, "message_push_registered") == 1)
