"""Statistics of several instances add up under load, whoever dies: against a count of what was
published, received and acknowledged that knows nothing of them.
"""

import contextlib
import http.client
import json
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import msgspec
import pytest

from tests.support.client import request
from tests.support.redis_servers import RedisServer
from tests.support.service import ServiceProcess, eventually

PATH = "/api/v1/stats/messages"
FIELDS = ("published", "failed", "delivered", "acknowledged", "dead", "pushed")
FLUSHED = 25.0  # seconds within which all is added: it is every ten


class Reader:
    """A real stream in a thread; counts the messages that it brings, by service."""

    def __init__(self, port: int, target: str) -> None:
        self.received: Counter[str] = Counter()
        self.keys: list[str] = []
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.request("GET", target, headers={"Accept": "text/event-stream"})
        self._response = self._connection.getresponse()
        assert self._response.readline() != b""
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(2)
        self._thread.join(10)
        self._connection.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, AttributeError):
            while line := self._response.readline():
                if line.startswith(b"data: {"):
                    message = json.loads(line[6:])
                    if "service" in message:
                        self.received[message["service"]] += 1
                        self.keys.append(f"{message['service']}/{message['id']}")


class Publishing:
    """Publishes as a service at one instance, with ids, until each message is accepted."""

    def __init__(self, service: str) -> None:
        self.service, self.ids = service, 0
        self.accepted = self.repeated = self.refused = 0

    def publish(self, port: int, number: int, **more: Any) -> None:
        for _ in range(number):
            self.ids += 1
            body = {"type": "info", "service": self.service, "id": f"m{self.ids}", **more}
            while not self._accepted(port, msgspec.json.encode(body)):
                time.sleep(0.1)

    def _accepted(self, port: int, body: bytes) -> bool:
        answer = request(port, "POST", "/api/v1/messages/send", body)
        if answer.status == 202:
            duplicate = answer.json()["duplicate"]
            self.repeated += duplicate
            self.accepted += not duplicate
            return True
        assert answer.status == 503, answer.body
        self.refused += 1
        return False


def counted(port: int, start: int, by: str | None = "service") -> dict[str | None, dict[str, int]]:
    """What the statistics say, by the key of each series."""
    target = f"{PATH}?from={start}&step=60" + (f"&by={by}" if by else "")
    answer = request(port, "GET", target)
    assert answer.status == 200, answer.body
    return {
        each["key"]: {field: sum(each[field]) for field in FIELDS}
        for each in answer.json()["series"]
    }


def ready(service: ServiceProcess) -> None:
    eventually(lambda: request(service.port, "GET", "/health/ready").status == 200)


@pytest.mark.long
def test_statistics_of_several_instances_add_up_whatever_dies() -> None:
    start = int(time.time())
    with RedisServer(appendonly=True) as redis, ExitStack() as stack:

        def instance() -> ServiceProcess:
            started = stack.enter_context(ServiceProcess(REDIS_URL=redis.url, DRAIN_SECONDS="1"))
            ready(started)
            return started

        def streams(service: ServiceProcess, number: int = 3) -> list[Reader]:
            return [
                stack.enter_context(Reader(service.port, "/sse/stream/load")) for _ in range(number)
            ]

        one, two, three = instance(), instance(), instance()
        readers = [*streams(one), *streams(two), *streams(three)]
        (user,) = [stack.enter_context(Reader(one.port, "/sse/user/bob"))]
        publishing = {
            name: Publishing(name) for name in ("one", "two", "three", "late", "asking", "away")
        }

        def load(name: str, service: ServiceProcess, number: int, **more: Any) -> None:
            publishing[name].publish(service.port, number, **{"channels": ["load"], **more})

        def settle(name: str, number: int) -> None:
            eventually(lambda: sum(each.received[name] for each in readers) == number, 20)

        # All at once, at three instances.
        threads = [
            threading.Thread(target=load, args=(name, service, 150))
            for name, service in (("one", one), ("two", two), ("three", three))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name in ("one", "two", "three"):
            settle(name, 150 * len(readers))

        # Messages that are acknowledged, at another instance than that of their stream.
        load("asking", two, 20, channels=[], target={"user_id": "bob"}, metadata={"ack": True})
        eventually(lambda: user.received["asking"] == 20)
        for _ in range(2):
            answer = request(
                three.port,
                "POST",
                "/api/v1/users/bob/acknowledgements",
                msgspec.json.encode({"keys": user.keys}),
            )
            assert answer.status == 200
        acknowledged = len(user.keys)

        def is_counted(port: int, expected: dict[str, dict[str, int]]) -> bool:
            return counted(port, start) == expected

        # Everything is there, whoever is asked.
        expected = {
            name: {
                "published": publishing[name].accepted,
                "failed": 0,
                "delivered": sum(each.received[name] for each in (*readers, user)),
                "acknowledged": acknowledged if name == "asking" else 0,
                "dead": 0,
                "pushed": 0,
            }
            for name in ("one", "two", "three", "asking")
        }
        for service in (one, two, three):
            eventually(partial(is_counted, service.port, expected), FLUSHED)

        # One is killed right after it has published: that of ten seconds is lost, and no more.
        load("late", three, 40)
        settle("late", 40 * len(readers))
        three.signal(signal.SIGKILL)
        three.wait()

        # Another is restarted as it should be: its last seconds are not lost.
        load("two", two, 30)
        eventually(lambda: all(each.received["two"] == 180 for each in readers[:6]))
        two.signal(signal.SIGTERM)
        assert two.wait(20) == 0
        two = instance()
        again = streams(two)

        # Redis is away while it goes on, twice: it hangs, and it is killed.
        worker = threading.Thread(target=load, args=("away", one, 600))
        worker.start()
        eventually(lambda: publishing["away"].accepted > 50)
        redis.pause()
        time.sleep(4)
        redis.resume()
        eventually(lambda: publishing["away"].accepted > 200)
        redis.kill()
        time.sleep(12)  # longer than an interval: what is counted meanwhile has to wait
        redis.start()
        worker.join()
        load("away", two, 50)
        eventually(lambda: all(each.received["away"] == 650 for each in (*readers[:3], *again)), 30)

        away = publishing["away"]
        assert away.refused > 0
        expected["two"]["published"] += 30
        expected["two"]["delivered"] += 30 * 6

        def all_added() -> bool:
            found = counted(one.port, start)
            return (
                "away" in found
                and found["away"]["delivered"] == 650 * 6
                and found["away"]["published"] == away.accepted
                and found["two"] == expected["two"]
            )

        eventually(all_added, FLUSHED)
        found = counted(two.port, start)
        late = found.pop("late", dict.fromkeys(FIELDS, 0))
        rest = found.pop("away")
        # Word of one refused publish may be lost with its connection, but here none is.
        assert rest["failed"] == away.refused
        assert rest["published"] + away.repeated == 650
        assert {name: found[name] for name in expected} == expected
        assert set(found) - set(expected) == set()
        # Of the killed one: what it has published, and delivered to its own streams.
        assert late["published"] <= 40
        assert 40 * 6 <= late["delivered"] <= 40 * 9
        (totals,) = counted(one.port, start, by=None).values()
        assert totals["published"] == rest["published"] + late["published"] + sum(
            each["published"] for each in expected.values()
        )

        # It all stands in one key, which stays when all instances have ended.
        for service in (one, two):
            service.signal(signal.SIGTERM)
            assert service.wait(20) == 0
        fresh = instance()
        (kept,) = counted(fresh.port, start, by=None).values()
        assert kept["published"] == totals["published"]


@pytest.mark.long
def test_a_thousand_services_at_two_instances_do_not_grow_the_statistics() -> None:
    start = int(time.time())
    with RedisServer() as redis, ExitStack() as stack:
        pair = [stack.enter_context(ServiceProcess(REDIS_URL=redis.url)) for _ in range(2)]
        for number, service in enumerate(pair):
            ready(service)
            for begin in range(0, 500, 100):
                batch = [
                    {"type": "info", "service": f"s{number}-{n}", "channels": ["a"]}
                    for n in range(begin, begin + 100)
                ]
                body = msgspec.json.encode(batch)
                answer = request(service.port, "POST", "/api/v1/messages/batch", body)
                assert answer.json()["accepted"] == 100
        eventually(
            lambda: (
                sum(each["published"] for each in counted(pair[0].port, start).values()) == 1000
            ),
            FLUSHED,
        )
        found = counted(pair[1].port, start)
        assert len(found) == 101
        assert found["other"]["published"] == 900


def test_instances_are_listed_by_any_of_them_and_gone_when_they_end() -> None:
    with RedisServer() as redis, ExitStack() as stack:
        one, two = (
            stack.enter_context(ServiceProcess(REDIS_URL=redis.url, DRAIN_SECONDS="0"))
            for _ in range(2)
        )
        for each in (one, two):
            ready(each)
        readers = [stack.enter_context(Reader(one.port, "/sse/stream/a")) for _ in range(3)]
        Publishing("s").publish(two.port, 5, channels=["a"])
        eventually(lambda: all(each.received["s"] == 5 for each in readers))

        def told() -> list[dict[str, Any]]:
            answer = request(two.port, "GET", "/api/v1/instances")
            found: list[dict[str, Any]] = answer.json()["instances"]
            return sorted(found, key=lambda each: int(each["streams"]["live"]))

        eventually(
            lambda: [(each["published"], each["delivered"]) for each in told()] == [(5, 0), (0, 15)]
        )
        mine, other = told()
        assert (mine["bus"], mine["ready"], mine["limit"]) == ("redis", True, 10_000)
        assert other["streams"] == {"live": 3, "behind": 0}
        assert other["transports"] == {"sse": 3, "ws": 0}
        assert other["latency_ms"]["p99"] >= other["latency_ms"]["p50"] > 0
        before = other["at"]
        eventually(lambda: told()[1]["at"] > before)
        one.signal(signal.SIGTERM)
        assert one.wait() == 0
        eventually(lambda: len(told()) == 1)


@pytest.mark.long
def test_each_worker_is_an_instance_and_all_of_them_count() -> None:
    start = int(time.time())
    with (
        RedisServer() as redis,
        ServiceProcess("--workers", "2", REDIS_URL=redis.url, DRAIN_SECONDS="1") as service,
    ):
        eventually(
            lambda: all(
                request(service.port, "GET", "/health/ready").status == 200 for _ in range(20)
            )
        )
        Publishing("s").publish(service.port, 40, channels=["a"])

        def published() -> list[int]:
            answer = request(service.port, "GET", "/api/v1/instances").json()
            return [each["published"] for each in answer["instances"]]

        def each_has_its_share() -> bool:
            found = published()
            return len(found) == 2 and all(found) and sum(found) == 40

        eventually(each_has_its_share)
        eventually(
            lambda: counted(service.port, start).get("s", {}).get("published") == 40, FLUSHED
        )


def test_while_redis_is_away_both_are_put_off() -> None:
    with RedisServer() as redis, ServiceProcess(REDIS_URL=redis.url) as service:
        ready(service)
        redis.kill()
        for path in (PATH, "/api/v1/instances"):
            answer = request(service.port, "GET", path)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["detail"] == "Redis can't be reached"
        redis.start()
        eventually(lambda: request(service.port, "GET", PATH).status == 200)
        eventually(lambda: request(service.port, "GET", "/api/v1/instances").status == 200)
