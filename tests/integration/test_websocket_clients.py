"""WebSocket clients as users have them, against the real service: what they say is understood, and
what is published comes to them once and in order, however often they are cut.

Skipped where there is no Chromium, or no `ws` for Node.js; CI has both."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle
from random import Random
from typing import Any

import pytest

from msgpush.entrypoints.protocol import Limits
from tests.support.client import request
from tests.support.proxy import CuttingProxy
from tests.support.redis_servers import RedisServer
from tests.support.service import ThreadedService, eventually
from tests.support.websockets import CLIENTS, Client, Closed, Listener, Websockets, needed

LONG = "ünïcödé 🙂 \u2028 " * 5000  # more than 64 KiB: a frame's length has three forms


@pytest.fixture(scope="module", params=CLIENTS)
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    needed(request.param)
    with CLIENTS[request.param](tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def frame(client: Client) -> dict[str, Any]:
    """The next frame."""
    told = client.next()
    assert isinstance(told, str), told
    found: dict[str, Any] = json.loads(told)
    return found


def answer(client: Client, command: dict[str, Any]) -> dict[str, Any]:
    """The answer to a command; nothing else comes before it."""
    client.send(json.dumps(command, ensure_ascii=False))
    return frame(client)


def message(id: str, channel: str, **fields: Any) -> dict[str, Any]:
    kind, _, user = channel.partition(":")
    where = {"target": {"user_id": user}} if kind == "user" else {"channels": [channel]}
    return {"id": id, "type": "info", "service": "demo", **where, **fields}


def publish(port: int, id: str, channel: str, **fields: Any) -> None:
    body = json.dumps(message(id, channel, **fields)).encode()
    assert request(port, "POST", "/api/v1/messages/send", body).status == 202


def is_ready(port: int) -> bool:
    return request(port, "GET", "/health/ready").status == 200


def state(port: int, id: str) -> str:
    found: str = request(port, "GET", f"/api/v1/messages/demo/{id}/delivery").json()["state"]
    return found


def test_a_conversation_from_the_opening_to_the_end(client: Client) -> None:
    with ThreadedService() as service:
        url = f"ws://127.0.0.1:{service.port}/ws"
        assert client.open(f"{url}?channel=imports") == "msgpush.v1"
        assert frame(client)["data"]["channels"] == ["broadcast", "imports"]

        channels = ["broadcast", "imports", "user:alice"]
        ok = answer(client, {"subscribe": ["user:alice"], "ref": "né 1"})
        assert ok == {"ref": "né 1", "ok": {"channels": channels}}

        given = message("m1", "user:alice", data={"text": LONG}, metadata={"ack": {}})
        receipt = answer(client, {"publish": given, "ref": 2})
        assert (receipt["ref"], receipt["ok"]["id"]) == (2, "m1")
        came = frame(client)
        assert came["data"]["data"] == {"text": LONG}
        assert came["id"] == receipt["ok"]["cursor"]

        acknowledged = answer(client, {"acknowledge": ["demo/m1"], "user": "alice", "ref": 3})
        assert acknowledged == {"ref": 3, "ok": {"acknowledged": ["demo/m1"], "unknown": []}}
        assert state(service.port, "m1") == "acknowledged"
        assert frame(client)["event"] == "msgpush.acknowledged"

        assert answer(client, {"ping": 1}) == {"ok": {}}
        refused = answer(client, {"subscribe": ["a b"], "ref": 4.5})
        assert (refused["ref"], refused["error"]["status"]) == (4.5, 422)

        left = answer(client, {"unsubscribe": ["user:alice", "imports"]})
        assert left == {"ok": {"channels": ["broadcast"]}}
        publish(service.port, "m2", "imports")
        assert answer(client, {"ping": 1, "ref": "nothing came"})["ref"] == "nothing came"

        client.close()
        eventually(lambda: not service.push.connections)

        client.open(f"{url}?channel=imports&last_event_id={came['id']}")
        assert frame(client)["data"]["resumed"] is True
        assert frame(client)["data"]["id"] == "m2"
        (id,) = service.push.connections
        path = f"/api/v1/connections/{id}?reconnect=false"
        assert request(service.port, "DELETE", path).status == 204
        last = frame(client)
        assert (last["event"], last["data"]["reconnect"]) == ("msgpush.close", False)
        assert client.next() == Closed(4410, "disconnected")
        assert last["id"].endswith("~end")
        client.open(f"{url}?channel=imports&last_event_id={last['id']}")
        assert frame(client)["data"]["reason"] == "disconnected"
        assert client.next() == Closed(4410, "disconnected")


def test_who_is_idle_answers_pings_and_stays(client: Client) -> None:
    # Who answers none is cut long before the first heartbeat, which would be a sign of life, too.
    limits = Limits(ping_interval=0.1, ping_timeout=0.2)
    with ThreadedService(limits, heartbeat_interval=1.2) as service:
        client.open(f"ws://127.0.0.1:{service.port}/ws")
        assert frame(client)["event"] == "msgpush.open"
        assert frame(client)["event"] == "msgpush.heartbeat"
        client.close()


def converse(listener: Listener, ports: list[int], number: int) -> None:
    """Publish, at each place in turn and by the listener itself; each message comes once, in order.

    Every tenth waits for its acknowledgement."""
    port = cycle(ports)
    published: list[str] = []
    assert "b" in listener.ask({"subscribe": ["b", "user:alice"]})["channels"]
    listener.channels += ["b", "user:alice"]
    for n in range(number):
        id = f"m{n}"
        if n % 10 == 9:
            publish(next(port), id, "user:alice", metadata={"ack": {}})
            while id not in asked(listener):
                listener.read()
            word = listener.ask({"acknowledge": [f"demo/{id}"], "user": "alice"})
            assert word == {"acknowledged": [f"demo/{id}"], "unknown": []}
            continue
        if n % 3 == 0:
            assert listener.ask({"publish": message(id, "ab"[n % 2])})["id"] == id
        else:
            publish(next(port), id, "ab"[n % 2], data={"text": "x" * (n % 7 * 50)})
        published.append(id)
        while len(published) - len(plain(listener)) > 5:
            listener.read()
    while len(plain(listener)) < len(published):
        listener.read()
    listener.ask({"ping": 1})
    assert plain(listener) == published
    assert set(asked(listener)) == {f"m{n}" for n in range(9, number, 10)}
    for n in range(9, number, 10):
        assert state(next(port), f"m{n}") == "acknowledged"
    assert set(listener.events) <= {"msgpush.open", "msgpush.acknowledged", "msgpush.heartbeat"}


def plain(listener: Listener) -> list[str]:
    """The ids of the messages that have come in channels."""
    return [each["id"] for each in listener.messages if "channels" in each]


def asked(listener: Listener) -> list[str]:
    """The same, of those that are a user's own."""
    return [each["id"] for each in listener.messages if "target" in each]


def test_who_is_cut_again_and_again_gets_everything_once_and_in_order(client: Client) -> None:
    with (
        ThreadedService() as service,
        CuttingProxy(service.port, Random(1), share=1) as proxy,
    ):
        listener = Listener(client, cycle([proxy.port]), "a")
        converse(listener, [service.port], 120)
        assert proxy.cut > 10
        assert listener.connections > 10
        client.close()
        eventually(lambda: not service.push.connections)


def test_who_is_cut_from_one_instance_goes_on_at_the_other() -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        ports, places = [], []
        for n in (1, 2):
            service = stack.enter_context(ThreadedService(redis_url=redis.url))
            eventually(lambda port=service.port: is_ready(port))  # type: ignore[misc]
            proxy = stack.enter_context(CuttingProxy(service.port, Random(n), share=1))
            ports.append(service.port)
            places.append(proxy.port)
        client = stack.enter_context(Websockets())
        # It opens at the first, and what is published first is published at the second.
        converse(Listener(client, cycle(places), "a"), ports[::-1], 60)
