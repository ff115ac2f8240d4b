"""Acknowledged delivery as users have it: real processes, real sockets, on both buses."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPException
from typing import Any

import msgspec
import pytest

from msgpush.adapters.redis.records import DUE, pending_key, record_key
from tests.support.asking import body_of, key
from tests.support.client import PATIENCE, Response, SseClient, request
from tests.support.eventsource import Event
from tests.support.proxy import CuttingProxy
from tests.support.redis_servers import RedisServer, SentinelGroup, info
from tests.support.service import ServiceProcess, eventually

ASKED = "/api/v1/messages/tests/{id}/delivery"


@pytest.fixture(scope="module", params=["memory", "redis"])
def service(request: pytest.FixtureRequest) -> Iterator[ServiceProcess]:
    with ExitStack() as stack:
        if request.param == "redis":
            process = ServiceProcess(REDIS_URL=stack.enter_context(RedisServer()).url)
        else:
            process = ServiceProcess()
        yield stack.enter_context(Ready(process))


class Ready:
    """A process, once it takes messages."""

    def __init__(self, process: ServiceProcess) -> None:
        self._process = process

    def __enter__(self) -> ServiceProcess:
        service = self._process.__enter__()
        eventually(lambda: request(service.port, "GET", "/health/ready").status == 200)
        return service

    def __exit__(self, *exc: object) -> None:
        self._process.__exit__(*exc)


def publish(port: int, id: str, **options: Any) -> None:
    answer = request(port, "POST", "/api/v1/messages/send", body_of(id, **options))
    assert answer.status == 202, answer.body


def acknowledge(port: int, user: str, *ids: str) -> Response:
    body = msgspec.json.encode({"keys": [key(id) for id in ids]})
    return request(port, "POST", f"/api/v1/users/{user}/acknowledgements", body)


def delivery(port: int, id: str) -> dict[str, Any]:
    answer = request(port, "GET", ASKED.format(id=id))
    assert answer.status == 200, answer.body
    told: dict[str, Any] = answer.json()
    return told


def state(port: int, id: str) -> str:
    found: str = delivery(port, id)["state"]
    return found


def listen(port: int, path: str) -> SseClient:
    stream = SseClient(port, path)
    assert stream.next().type == "msgpush.open"
    return stream


def next_of(stream: SseClient, *types: str, seconds: float = PATIENCE) -> Event:
    """The next event of a type."""
    while (event := stream.next(seconds)).type not in types:
        pass
    return event


def message(stream: SseClient) -> dict[str, Any]:
    """The next message."""
    told: dict[str, Any] = msgspec.json.decode(next_of(stream, "message").data)
    return told


def quiet(stream: SseClient, seconds: float) -> None:
    """Nothing but heartbeats comes for so long."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            event = stream.next(left)
        except TimeoutError:
            return
        assert event.type == "msgpush.heartbeat", event


def receipts_of(stream: SseClient, number: int) -> list[tuple[str, str]]:
    """What the next receipts say: keys and states."""
    found = [message(stream)["data"] for _ in range(number)]
    return [(each["key"], each["state"]) for each in found]


def receipts_in(port: int) -> set[str]:
    """The keys of the receipts in their channel's history."""
    answer = request(port, "GET", "/api/v1/channels/receipts:tests/messages").json()
    return {each["data"]["key"] for each in answer["messages"]}


def test_a_message_is_accepted_written_acknowledged_and_the_other_devices_are_told(
    service: ServiceProcess,
) -> None:
    port = service.port
    publish(port, "m1", user="bob", priority="high")
    assert state(port, "m1") == "accepted"
    with (
        listen(port, "/sse/user/bob") as phone,
        listen(port, "/sse/user/bob") as laptop,
        listen(port, "/sse/user/ann") as another,
    ):
        for each in (phone, laptop):
            event = next_of(each, "message")
            assert msgspec.json.decode(event.data)["id"] == "m1"
        eventually(lambda: state(port, "m1") == "written")
        answer = acknowledge(port, "bob", "m1").json()
        assert answer == {"acknowledged": [key("m1")], "unknown": []}
        for each in (phone, laptop):
            told = msgspec.json.decode(next_of(each, "msgpush.acknowledged").data)
            assert told == {"keys": [key("m1")], "state": "acknowledged"}
        assert state(port, "m1") == "acknowledged"
        quiet(another, 0.1)
    with listen(port, "/sse/user/bob") as later:
        quiet(later, 0.3)


def test_an_unacknowledged_message_comes_again_until_it_is_acknowledged(
    service: ServiceProcess,
) -> None:
    port = service.port
    with listen(port, "/sse/user/eve") as stream:
        publish(port, "again", user="eve", deadline=1)
        assert message(stream)["metadata"]["retry_count"] == 0
        told = message(stream)
        assert (told["id"], told["metadata"]["retry_count"]) == ("again", 1)
        assert 86_000 < told["metadata"]["ttl"] <= 86_400, "what is left, in whole seconds"
        # Reported some moments after it was written.
        eventually(lambda: delivery(port, "again")["deliveries"] == 2)
        assert acknowledge(port, "eve", "again").status == 200
        assert next_of(stream, "msgpush.acknowledged")
        quiet(stream, 2.8)
    assert delivery(port, "again")["deliveries"] == 2


def test_what_is_given_up_withdrawn_and_acknowledged_is_told_its_publisher_once_each(
    service: ServiceProcess,
) -> None:
    port = service.port
    with (
        listen(port, "/sse/stream/receipts:tests") as receipts,
        listen(port, "/sse/user/kim") as stream,
    ):
        publish(port, "dies", user="kim", deadline=1, deliveries=1, receipt=True)
        publish(port, "back", user="kim", receipt=True)
        publish(port, "quiet", user="kim")
        assert [message(stream)["id"] for _ in range(3)] == ["dies", "back", "quiet"]
        assert request(port, "DELETE", ASKED.format(id="back")).status == 204
        word = msgspec.json.decode(next_of(stream, "msgpush.acknowledged").data)
        assert word == {"keys": [key("back")], "state": "withdrawn"}
        assert acknowledge(port, "kim", "back", "quiet").json() == {
            "acknowledged": [key("quiet")],
            "unknown": [key("back")],
        }
        assert receipts_of(receipts, 2) == [(key("back"), "withdrawn"), (key("dies"), "dead")]
        assert delivery(port, "dies")["reason"] == "deliveries"
        letters = request(port, "GET", "/api/v1/dead-letters?service=tests").json()
        assert [each["message"]["id"] for each in letters["dead_letters"]] == ["dies"]
        again = request(port, "POST", "/api/v1/dead-letters/tests/dies/redeliver")
        assert again.status == 202
        assert message(stream)["metadata"]["retry_count"] == 1
        assert acknowledge(port, "kim", "dies").status == 200
        assert receipts_of(receipts, 1) == [(key("dies"), "acknowledged")]
        quiet(receipts, 0.5)


def test_on_holiday_only_the_newest_of_those_that_collapse_waits(service: ServiceProcess) -> None:
    port = service.port
    for n in range(20):
        publish(port, f"state{n}", user="lou", collapse="state", priority="low")
    publish(port, "urgent", user="lou", priority="urgent")
    pending = request(port, "GET", "/api/v1/users/lou/pending").json()
    assert [each["id"] for each in pending["messages"]] == ["urgent", "state19"]
    assert pending["total"] == 2
    with listen(port, "/sse/user/lou") as stream:
        events = [next_of(stream, "message") for _ in range(2)]
        assert [msgspec.json.decode(each.data)["id"] for each in events] == ["urgent", "state19"]
        quiet(stream, 0.3)


def ids_within(stream: SseClient, seconds: float) -> list[str]:
    """The messages that come until nothing has come for so long."""
    found = []
    with suppress(TimeoutError):
        while True:
            event = stream.next(seconds)
            if event.type == "message":
                found.append(msgspec.json.decode(event.data)["id"])
    return found


def test_however_many_tabs_open_reload_and_come_back_each_has_each_pending_message_once(
    service: ServiceProcess,
) -> None:
    port, path = service.port, "/sse/user/tab"
    before, meanwhile = [f"before{n}" for n in range(5)], [f"meanwhile{n}" for n in range(10)]
    for id in before:
        publish(port, id, user="tab", deadline=3600)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(10))
        tabs = []
        for id in meanwhile:
            # Each tab opens beside messages that are on their way.
            published = pool.submit(publish, port, id, user="tab", deadline=3600)
            tabs.append(stack.enter_context(listen(port, path)))
            published.result()
        for each in pool.map(lambda tab: ids_within(tab, 0.5), tabs):
            assert sorted(each) == sorted(before + meanwhile), Counter(each).most_common(3)
        with listen(port, path) as device:
            assert ids_within(device, 0.5) == [*before, *meanwhile], "the oldest first"
        assert acknowledge(port, "tab", "before0", "meanwhile9").status == 200
        left = [*before[1:], *meanwhile[:-1]]
        reloaded = [stack.enter_context(listen(port, path)) for _ in range(5)]
        for each in pool.map(lambda tab: ids_within(tab, 0.5), reloaded):
            assert each == left
        cursors = [tab.last_event_id for tab in tabs]
    publish(port, "after", user="tab", deadline=3600)
    for cursor in (cursors[0], cursors[9]):
        with SseClient(port, path, {"Last-Event-ID": cursor}) as back:
            assert ids_within(back, 0.3) == ["after"], "it had all the others"
            last = back.last_event_id
        with SseClient(port, path, {"Last-Event-ID": last}) as back:
            assert ids_within(back, 0.3) == []


class Device:
    """A client behind a bad network: it forgets, repeats and mixes up its acknowledgements.

    It resumes where it was cut, drops what it has had, and acknowledges again what comes again."""

    def __init__(self, port: int, user: str, seed: int) -> None:
        self._port, self._user = port, user
        self._chance = random.Random(seed)
        self.had: Counter[str] = Counter()
        self.answered: set[str] = set()
        self.unknown: set[str] = set()
        self.streams = 0
        self.careless = True
        self.stopping = False
        self._held: list[str] = []
        self._thread = threading.Thread(target=self._run, name=f"device of {user}")

    def __enter__(self) -> "Device":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        self._thread.join(20)

    def _run(self) -> None:
        last = ""
        while not self.stopping:
            self.streams += 1
            headers = {"Last-Event-ID": last} if last and self._chance.random() < 0.9 else {}
            try:
                with SseClient(self._port, f"/sse/user/{self._user}", headers) as stream:
                    until = time.monotonic() + self._chance.uniform(0.2, 1.5)
                    while time.monotonic() < until and not self.stopping:
                        with suppress(TimeoutError):
                            self._take(stream.next(0.1))
                        last = stream.last_event_id
                        self._acknowledge()
            except (OSError, AssertionError, ValueError, IndexError):
                continue  # cut

    def _take(self, event: Event) -> None:
        if event.type != "message":
            return
        told = msgspec.json.decode(event.data)
        self.had[told["id"]] += 1
        for _ in range(self._chance.choice((0, 1, 1, 2)) if self.careless else 1):
            self._held.append(told["id"])

    def _acknowledge(self) -> None:
        if self.careless and self._chance.random() < 0.5:
            return
        self._chance.shuffle(self._held)
        some, self._held = self._held[:4], self._held[4:]
        if not some:
            return
        answer = None
        with suppress(OSError, HTTPException, msgspec.DecodeError):  # cut: it may have been done
            answer = acknowledge(self._port, self._user, *some)
        if answer is None or answer.status != 200:
            if not self.careless or self._chance.random() < 0.7:
                self._held += some
            return
        self.unknown.update(answer.json()["unknown"])
        self.answered.update(some)


@pytest.mark.parametrize("seed", [1, 2])
def test_behind_a_network_that_cuts_everything_each_message_is_acknowledged_in_the_end(
    service: ServiceProcess, seed: int
) -> None:
    chance = random.Random(seed)
    users = [f"chaos{seed}.{n}" for n in range(3)]
    ids = {user: [f"{user}.m{n}" for n in range(15)] for user in users}
    with ExitStack() as stack:
        proxy = stack.enter_context(CuttingProxy(service.port, chance, 0.8))
        receipts = stack.enter_context(listen(service.port, "/sse/stream/receipts:tests"))
        devices = [
            stack.enter_context(Device(proxy.port, user, seed * 100 + n))
            for n, user in enumerate([*users, *users])
        ]
        for n in range(15):
            for user in users:
                publish(
                    service.port, ids[user][n], user=user, deadline=1, deliveries=20, receipt=True
                )
            time.sleep(chance.uniform(0, 0.1))
        eventually(lambda: sum(len(each.answered) for each in devices) >= 20 and proxy.cut > 3, 30)
        proxy.cutting = False
        for each in devices:
            each.careless = False
        everything = [id for own in ids.values() for id in own]
        eventually(lambda: all(state(service.port, id) == "acknowledged" for id in everything), 40)
        for each in devices:
            each.stopping = True
        told = Counter(receipts_of(receipts, len(everything)))
        assert told == Counter({(key(id), "acknowledged"): 1 for id in everything})
        quiet(receipts, 0.3)
    assert not any(each.unknown for each in devices)
    for user in users:
        had: Counter[str] = sum((each.had for each in devices if each._user == user), Counter())
        assert set(had) == set(ids[user]), "none is lost, and none is another's"
        total = request(service.port, "GET", f"/api/v1/users/{user}/pending").json()["total"]
        assert total == 0


@pytest.mark.long
def test_when_an_instance_that_delivers_again_is_killed_another_does_within_fifteen_seconds() -> (
    None
):
    with RedisServer() as server, ExitStack() as stack:
        one, two = [
            stack.enter_context(Ready(ServiceProcess(REDIS_URL=server.url))) for _ in range(2)
        ]
        with listen(two.port, "/sse/user/bob") as stream:
            ids = [f"m{n}" for n in range(150)]
            for id in ids:
                publish(one.port, id, deadline=2, deliveries=20)
            assert [message(stream)["id"] for _ in ids] == ids
            # Half of what is due is the first instance's at any moment.
            counted: Counter[str] = Counter()
            while sum(counted.values()) < 60:
                counted[message(stream)["id"]] += 1
            one.signal(signal.SIGKILL)
            one.wait()
            began = time.monotonic()
            while len(counted) < len(ids):
                counted[message(stream)["id"]] += 1
                assert time.monotonic() - began < 15 + 5, "its lease, the next deadline, some slack"
        assert set(counted) == set(ids)


@pytest.mark.long
def test_what_was_left_to_an_instance_that_is_killed_is_delivered_by_another() -> None:
    with RedisServer() as server, ExitStack() as stack:
        one, two = [
            stack.enter_context(Ready(ServiceProcess(REDIS_URL=server.url))) for _ in range(2)
        ]
        admin = stack.enter_context(server.client())
        stream = stack.enter_context(listen(two.port, "/sse/user/bob"))
        ids = [f"m{n}" for n in range(100)]
        for id in ids:
            publish(one.port, id, deadline=5)
        assert [message(stream)["id"] for _ in ids] == ids
        eventually(lambda: all(state(one.port, id) == "written" for id in ids))

        def all_taken() -> bool:
            now, _ = admin.time()
            return bool(admin.zcount(DUE, "-inf", (now + 8) * 1000) == 0)

        # Both take what is due, and neither can append it; then one of them is no more.
        admin.execute_command("ACL", "SETUSER", "default", "-xadd")
        eventually(all_taken)
        one.signal(signal.SIGKILL)
        one.wait()
        admin.execute_command("ACL", "SETUSER", "default", "+xadd")
        began = time.monotonic()
        came = Counter[str]()
        while set(came) < set(ids):
            came[msgspec.json.decode(next_of(stream, "message", seconds=20).data)["id"]] += 1
        assert time.monotonic() - began < 15 + 3, "a lease, and some slack"


@pytest.mark.long
def test_an_acknowledgement_that_a_failover_has_lost_is_asked_for_again_and_no_other() -> None:
    with SentinelGroup() as group, ExitStack() as stack:
        one, two = [
            stack.enter_context(Ready(ServiceProcess(REDIS_URL=group.url))) for _ in range(2)
        ]
        replica = stack.enter_context(group.replica.client())
        stream = stack.enter_context(listen(two.port, "/sse/user/bob"))
        kept, lost = [f"kept{n}" for n in range(5)], [f"lost{n}" for n in range(5)]
        for id in (*kept, *lost):
            publish(one.port, id, deadline=4, receipt=True)
        assert [message(stream)["id"] for _ in range(10)] == [*kept, *lost]
        eventually(lambda: all(state(one.port, id) == "written" for id in lost))
        assert acknowledge(one.port, "bob", *kept).status == 200
        # The replica has it all, but for what comes after the cut.
        eventually(lambda: replica.zcard(pending_key("bob")) == len(lost))
        group.relay.cut()
        assert acknowledge(one.port, "bob", *lost).status == 200
        publish(one.port, "gone", deadline=4)
        assert message(stream)["id"] == "gone"
        group.fail_over()

        assert msgspec.json.decode(next_of(stream, "msgpush.gap").data)["reason"] == "reset"
        again = Counter[str]()
        while set(again) < set(lost):
            told = message(stream)
            again[told["id"]] += 1
        assert set(again) == set(lost), "what stayed acknowledged isn't asked for again"
        assert [state(one.port, id) for id in kept] == ["acknowledged"] * 5
        # A client that knows its keys says it once more.
        answer = acknowledge(two.port, "bob", *lost, "gone").json()
        assert answer == {"acknowledged": [key(id) for id in lost], "unknown": [key("gone")]}
        publish(one.port, "gone", deadline=4)
        assert message(stream)["id"] == "gone"
        assert acknowledge(two.port, "bob", "gone").json()["unknown"] == []
        with listen(one.port, "/sse/user/bob") as later:
            assert ids_within(later, 0.3) == []
        eventually(lambda: receipts_in(one.port) == {key(id) for id in (*kept, *lost)})


def test_an_acknowledgement_is_answered_once_as_many_replicas_have_it_as_are_asked_for() -> None:
    with ExitStack() as stack:
        at_once = ("--repl-diskless-sync-delay", "0")
        master = stack.enter_context(RedisServer(extra=at_once))
        source = ("--replicaof", "127.0.0.1", str(master.port))
        replica = stack.enter_context(RedisServer(extra=source))
        eventually(lambda: info(replica)["master_link_status"] == "up")
        process = ServiceProcess(REDIS_URL=master.url, REDIS_WAIT_REPLICAS="1")
        port = stack.enter_context(Ready(process)).port
        stream = stack.enter_context(listen(port, "/sse/user/bob"))
        for id in ("m1", "m2"):
            publish(port, id)
            assert message(stream)["id"] == id
        assert acknowledge(port, "bob", "m1").status == 200
        with replica.client() as client:
            assert client.hget(record_key(key("m1")), "s") == b"acknowledged"
        replica.pause()
        began = time.monotonic()
        assert acknowledge(port, "bob", "m2").status == 503
        assert time.monotonic() - began < 2.0 + 0.5, "two seconds, and slack for a busy machine"
        replica.resume()
        eventually(lambda: acknowledge(port, "bob", "m2").status == 200)
        with replica.client() as client:
            assert client.hget(record_key(key("m2")), "s") == b"acknowledged"


def test_redis_away_is_told_within_two_seconds_and_what_waits_goes_on_when_it_is_back() -> None:
    with (
        RedisServer(appendonly=True, extra=("--appendfsync", "always")) as server,
        Ready(ServiceProcess(REDIS_URL=server.url)) as service,
        listen(service.port, "/sse/user/bob") as stream,
    ):
        publish(service.port, "m1", deadline=1)
        publish(service.port, "m2", deadline=1)
        assert [message(stream)["id"] for _ in range(2)] == ["m1", "m2"]
        eventually(lambda: state(service.port, "m1") == "written")
        server.pause()
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(acknowledge, service.port, "bob", "m1"),
                pool.submit(request, service.port, "GET", "/api/v1/users/bob/pending"),
                pool.submit(request, service.port, "GET", ASKED.format(id="m1")),
                pool.submit(request, service.port, "DELETE", ASKED.format(id="m2")),
            ]
            answers = [each.result() for each in asked]
        assert time.monotonic() - began < 2.0 + 0.5, "two seconds, and slack for a busy machine"
        assert {each.status for each in answers} == {503}
        assert all(int(each.headers["retry-after"]) >= 1 for each in answers)
        server.resume()
        # Whatever had been done of it: once it is answered 200, it is acknowledged.
        eventually(lambda: acknowledge(service.port, "bob", "m1").status == 200)
        eventually(lambda: request(service.port, "DELETE", ASKED.format(id="m2")).status == 204)
        assert state(service.port, "m1") == "acknowledged"
        assert state(service.port, "m2") == "withdrawn"
        publish(service.port, "m3", deadline=1)
        server.restart()
        seen: list[str] = []
        while seen.count("m3") < 2:
            # Whatever was under way when it went is another's after fifteen seconds.
            event = stream.next(25)
            if event.type == "message":
                seen.append(msgspec.json.decode(event.data)["id"])


def test_with_redis_full_publishing_is_refused_and_acknowledging_makes_room() -> None:
    with RedisServer() as server, Ready(ServiceProcess(REDIS_URL=server.url)) as service:
        data = {"text": "x" * 20_000}
        for n in range(30):
            publish(service.port, f"m{n}", data=data)
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"])
        body = body_of("more", data=data)
        answer = request(service.port, "POST", "/api/v1/messages/send", body)
        assert (answer.status, answer.headers["retry-after"].isdigit()) == (503, True)
        assert acknowledge(service.port, "bob", *(f"m{n}" for n in range(29))).status == 200
        assert request(service.port, "DELETE", ASKED.format(id="m29")).status == 204
        assert state(service.port, "m0") == "acknowledged"
        eventually(
            lambda: request(service.port, "POST", "/api/v1/messages/send", body).status == 202
        )
