"""What can go wrong with Redis and with instances, under load: what was accepted arrives once, in
order, or is told.
"""

import asyncio
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx2 as httpx
import pytest

from msgpush.adapters.redis.link import HASH_TAG
from msgpush.adapters.redis.log import LOG
from msgpush.domain import delivery
from msgpush.domain.errors import BusUnavailable
from tests.support.client import SseClient
from tests.support.load import Load
from tests.support.redis_servers import (
    ClusterGroup,
    RedisServer,
    SentinelGroup,
    free_port,
    redis_binary,
    valkey_binary,
)
from tests.support.service import ServiceProcess, ThreadedService, eventually


@pytest.fixture(params=["valkey", pytest.param("redis", marks=pytest.mark.long)])
def redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    binary = valkey_binary() if request.param == "valkey" else redis_binary()
    with RedisServer(binary, appendonly=True) as server:
        yield server


@pytest.fixture
def valkey() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def instances(stack: ExitStack, url: str, number: int = 2) -> list[ServiceProcess]:
    return [stack.enter_context(ServiceProcess(REDIS_URL=url)) for _ in range(number)]


def under_load(url: str, disturb: Callable[[Load], None], *, seconds: float = 1.0) -> Load:
    """Two instances under load, disturbed; it must then go on, and the account agree."""
    with ExitStack() as stack:
        ports = [each.port for each in instances(stack, url)]
        with Load(ports) as load:
            load.run(seconds)
            disturb(load)
            before = load.accepted
            load.wait(lambda: load.accepted > before + 20)
            load.run(seconds)
            load.settle()
    assert load.received > load.accepted
    return load


@pytest.mark.long
def test_streams_that_wander_between_instances_miss_nothing(redis: RedisServer) -> None:
    load = under_load(redis.url, lambda load: load.run(2))
    assert not load.gaps
    assert not load.refused


def test_redis_killed_and_restarted_with_what_it_had_loses_nothing(redis: RedisServer) -> None:
    load = under_load(redis.url, lambda _: redis.restart())
    assert not load.gaps


def test_redis_killed_and_restarted_empty_is_told_as_a_reset(redis: RedisServer) -> None:
    load = under_load(redis.url, lambda _: redis.restart(empty=True))
    assert set(load.gaps) == {"reset"}
    assert load.gaps["reset"] >= len(load.subscribers)


@pytest.mark.long
def test_redis_that_hangs_for_five_seconds_makes_refusals_within_two_and_loses_nothing(
    redis: RedisServer,
) -> None:
    def hang(load: Load) -> None:
        redis.pause()
        load.run(5)
        redis.resume()

    load = under_load(redis.url, hang)
    assert not load.gaps
    assert load.refused[503] > 0
    assert load.slowest < 2.0 + 0.5


@pytest.mark.long
def test_connections_that_are_cut_at_random_cost_nobody_a_message(valkey: RedisServer) -> None:
    def cut(load: Load) -> None:
        with valkey.client() as client:
            for _ in range(40):
                mine = [each for each in client.client_list() if each["name"].startswith("msgpush")]
                for each in random.sample(mine, min(2, len(mine))):
                    client.client_kill_filter(_id=each["id"])
                load.run(0.05)

    load = under_load(valkey.url, cut)
    assert not load.gaps


def test_a_log_that_is_trimmed_past_an_instance_is_made_up_for_from_the_histories(
    valkey: RedisServer,
) -> None:
    def trim(load: Load) -> None:
        with valkey.client() as client:
            for _ in range(40):
                client.xtrim(LOG, maxlen=0, approximate=False)
                load.run(0.02)

    load = under_load(valkey.url, trim)
    assert not load.gaps


def test_a_log_whose_name_has_gone_is_told_as_a_reset(valkey: RedisServer) -> None:
    load = under_load(valkey.url, lambda _: _forget_head(valkey))
    assert set(load.gaps) == {"reset"}


def _forget_head(server: RedisServer) -> None:
    with server.client() as client:
        client.delete(f"{HASH_TAG}:head")


def test_an_instance_that_is_killed_takes_nothing_along(valkey: RedisServer) -> None:
    with ExitStack() as stack:
        one, two = instances(stack, valkey.url)
        with Load([one.port, two.port]) as load:
            load.run(1)
            one.signal(signal.SIGKILL)
            one.wait()
            load.ports = [two.port]
            load.run(1)
            load.settle()
    assert not load.gaps


def test_an_instance_whose_tail_is_held_back_still_gives_everything_in_order(
    valkey: RedisServer,
) -> None:
    with (
        ThreadedService(redis_url=valkey.url) as slow,
        ServiceProcess(REDIS_URL=valkey.url) as other,
    ):
        link = slow.push._bus._tail_link  # type: ignore[attr-defined]
        call = link.call

        async def late(*command: str | bytes | int) -> object:
            await asyncio.sleep(random.uniform(0.0, 0.5))
            return await call(*command)

        link.call = late
        with Load([slow.port, other.port]) as load:
            load.run(4)
            load.settle()
    assert not load.gaps


@pytest.mark.parametrize("binary", ["valkey", pytest.param("redis", marks=pytest.mark.long)])
@pytest.mark.long
def test_a_failover_that_loses_accepted_messages_is_told_as_a_reset(binary: str) -> None:
    with SentinelGroup(valkey_binary() if binary == "valkey" else redis_binary()) as group:

        def fail_over(load: Load) -> None:
            group.relay.cut()
            lost = load.accepted
            load.wait(lambda: load.accepted > lost + 50)
            group.fail_over()

        load = under_load(group.url, fail_over)
    assert set(load.gaps) == {"reset"}
    assert load.gaps["reset"] >= len(load.subscribers)
    assert load.refused[503] > 0


@pytest.mark.long
def test_a_failover_that_loses_nothing_is_not_even_noticed_by_readers() -> None:
    with SentinelGroup(relayed=False) as group:
        load = under_load(group.url, lambda _: group.demote())
    # What was accepted within the blink of the change may be lost; then it is told.
    assert set(load.gaps) <= {"reset"}


@pytest.mark.long
def test_a_cluster_whose_primary_is_killed_goes_on_with_its_replica() -> None:
    with ClusterGroup(key=HASH_TAG) as cluster:
        load = under_load(cluster.url, lambda _: cluster.fail_over())
    assert set(load.gaps) <= {"reset"}
    assert load.refused[503] > 0


def test_a_slot_that_moves_while_publishing_loses_nothing() -> None:
    with ClusterGroup(key=HASH_TAG) as cluster:
        load = under_load(cluster.url, lambda _: cluster.migrate())
    assert not load.gaps


def test_streams_stay_open_and_heartbeat_while_redis_is_away(valkey: RedisServer) -> None:
    with ServiceProcess(REDIS_URL=valkey.url, HEARTBEAT_INTERVAL="0.3") as service:
        base = f"http://127.0.0.1:{service.port}"
        with SseClient(service.port, "/sse/stream/a") as stream:
            opening = stream.next()
            eventually(lambda: httpx.get(f"{base}/health/ready").status_code == 200)
            valkey.kill()
            began = time.monotonic()
            refused = httpx.post(
                f"{base}/api/v1/messages/send", json={"type": "info", "service": "s"}
            )
            assert refused.status_code == 503
            assert 1 <= int(refused.headers["retry-after"]) <= 5
            assert time.monotonic() - began < 2
            assert httpx.get(f"{base}/health").status_code == 503
            assert httpx.get(f"{base}/health/ready").status_code == 200, (
                "or every instance would leave the proxy"
            )
            assert httpx.get(f"{base}/health/live").status_code == 200
            assert [stream.next().type for _ in range(3)] == ["msgpush.heartbeat"] * 3
            assert 10_000 <= (eventually(lambda: _refusal(service.port)) or 0) <= 30_000
            valkey.start()
            back = time.monotonic()
            eventually(lambda: httpx.get(f"{base}/health").status_code == 200)
            assert time.monotonic() - back < 5
            message = {"type": "info", "service": "s", "channels": ["a"], "id": "m1"}
            eventually(
                lambda: httpx.post(f"{base}/api/v1/messages/send", json=message).status_code == 202
            )
            types = []
            while "message" not in types:
                types.append(stream.next().type)
            assert set(types) <= {"msgpush.heartbeat", "msgpush.gap", "message"}
            assert stream.last_event_id != opening.last_event_id


def _refusal(port: int) -> int | None:
    """How long a new stream is told to stay away; None where it was served."""
    with SseClient(port, "/sse/stream/a") as stream:
        return stream.retry if stream.next().type == "msgpush.close" else None


def test_a_start_without_redis_waits_for_it_and_says_so() -> None:
    port = free_port()
    with ServiceProcess(REDIS_URL=f"redis://127.0.0.1:{port}/0") as service:
        base = f"http://127.0.0.1:{service.port}"
        health = httpx.get(f"{base}/health")
        assert health.status_code == 503
        assert health.json()["reason"] == "Redis can't be reached"
        assert httpx.get(f"{base}/health/ready").status_code == 503
        assert any("waiting for it" in line["event"] for line in service.log)
        assert f"127.0.0.1:{port}" in json.dumps(service.log), "the log names the address"
        message = {"type": "info", "service": "s"}
        answers = [
            httpx.post(f"{base}/api/v1/messages/send", json=message),
            httpx.post(f"{base}/api/v1/messages/batch", json=[message]),
            httpx.get(f"{base}/api/v1/channels/a/messages"),
            httpx.get(f"{base}/api/v1/connections"),
            httpx.post(f"{base}/api/v1/tickets", json={"channels": ["a"]}),
            httpx.post(f"{base}/api/v1/revocations", json={"subject": "bob"}),
        ]
        assert {answer.status_code for answer in answers} == {503}
        for answer in (health, httpx.get(f"{base}/health/ready"), *answers):
            assert str(port) not in answer.text, "strangers learn no address"
            assert "127.0.0.1" not in answer.text
        assert _refusal(service.port)
        with RedisServer(port=port):
            eventually(lambda: httpx.get(f"{base}/health/ready").status_code == 200)
            answer = httpx.post(
                f"{base}/api/v1/messages/send", json={"type": "info", "service": "s"}
            )
            assert answer.status_code == 202


def test_an_instance_that_reads_nothing_back_is_not_ready(valkey: RedisServer) -> None:
    with ThreadedService(redis_url=valkey.url) as service:
        assert httpx.get(f"http://127.0.0.1:{service.port}/health/ready").status_code == 200
        probing = service.push._delivery
        eventually(lambda: probing._probed is None)
        probing._probed = (
            time.monotonic() - 16
        )  # a probe that was taken 16 seconds ago, and hasn't come back
        answer = httpx.get(f"http://127.0.0.1:{service.port}/health/ready")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "what is published doesn't come back from the bus"


WRITES_REFUSED = {
    "too few replicas": (
        "CONFIG SET min-replicas-to-write 1",
        "CONFIG SET min-replicas-to-write 0",
    ),
    "full": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    "no right": ("ACL SETUSER default -xadd", "ACL SETUSER default +xadd"),
    "a replica": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "no right to read": ("ACL SETUSER default -xread", "ACL SETUSER default +xread"),
}
OWN_WORDS = {
    "too few replicas": "Not enough good replicas to write",
    "full": "maxmemory",
    "no right": "'xadd'",
    "a replica": "replica",
    "no right to read": "xread",
}


@pytest.mark.parametrize("refusal", WRITES_REFUSED)
def test_a_redis_that_answers_and_refuses_to_write_is_told_by_health_metrics_and_log(
    valkey: RedisServer,
    refusal: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(delivery, "PROBE_INTERVAL", 0.1)
    monkeypatch.setattr(delivery, "PROBE_AGAIN", 0.1)
    forbid, allow = WRITES_REFUSED[refusal]
    caplog.set_level("INFO", "msgpush")
    # What can't be read either says so in its own way.
    unread = refusal in ("a replica", "no right to read")
    well_again = "reading the log of Redis" if unread else "the bus takes messages again"

    def logged(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    with valkey.client() as client, ThreadedService(redis_url=valkey.url) as service:
        base = f"http://127.0.0.1:{service.port}"

        def status(path: str) -> int:
            return httpx.get(f"{base}{path}").status_code

        def up() -> bool:
            return "message_push_up 1.0" in httpx.get(f"{base}/metrics").text

        eventually(lambda: status("/health/ready") == 200)
        assert (status("/health"), up()) == (200, True)
        client.execute_command(*forbid.split())
        eventually(lambda: status("/health") == 503)
        assert OWN_WORDS[refusal] in httpx.get(f"{base}/health").json()["reason"]
        assert not up()
        assert (status("/health/ready"), status("/health/live")) == (200, 200), (
            "as if it could not be reached"
        )
        eventually(lambda: logged(OWN_WORDS[refusal]) == 1)
        before = logged(well_again)
        client.execute_command(*allow.split())
        eventually(lambda: status("/health") == 200)
        eventually(up)
        eventually(lambda: logged(well_again) == before + 1)
        assert logged(OWN_WORDS[refusal]) == 1


def test_an_instance_whose_redis_has_never_taken_a_message_is_not_ready(
    valkey: RedisServer,
) -> None:
    with valkey.client() as client, ThreadedService(redis_url=valkey.url):
        client.config_set("min-replicas-to-write", "1")
    with ServiceProcess(REDIS_URL=valkey.url) as service:
        assert httpx.get(f"http://127.0.0.1:{service.port}/health/ready").status_code == 503
        assert httpx.get(f"http://127.0.0.1:{service.port}/health/live").status_code == 200
        with valkey.client() as client:
            client.config_set("min-replicas-to-write", "0")
        eventually(
            lambda: httpx.get(f"http://127.0.0.1:{service.port}/health/ready").status_code == 200
        )


def test_a_close_that_is_sent_while_an_instance_has_lost_redis_reaches_it(
    valkey: RedisServer,
) -> None:
    with ExitStack() as stack:
        cut_off = stack.enter_context(ThreadedService(redis_url=valkey.url))
        other = stack.enter_context(ServiceProcess(REDIS_URL=valkey.url))
        stream = stack.enter_context(SseClient(cut_off.port, "/sse/stream/a"))
        id = json.loads(stream.next().data)["connection"]
        base = f"http://127.0.0.1:{other.port}/api/v1/connections"
        eventually(lambda: any(each["id"] == id for each in httpx.get(base).json()["connections"]))
        # Its connection is down; a command is sent; the connection comes back.
        link = cut_off.push._bus._tail_link  # type: ignore[attr-defined]
        call, back = link.call, threading.Event()

        async def cut(*command: str | bytes | int) -> object:
            if not back.is_set():
                await link.drop()
                raise BusUnavailable("cut off")
            return await call(*command)

        link.call = cut
        eventually(lambda: not cut_off.push._bus.reachable)
        assert httpx.delete(f"{base}/{id}", params={"reconnect": "false"}).status_code == 204
        back.set()
        last = stream.rest()[-1]
        assert (last.type, json.loads(last.data)) == (
            "msgpush.close",
            {"reason": "disconnected", "reconnect": False},
        )
        assert last.last_event_id.endswith("~end")
