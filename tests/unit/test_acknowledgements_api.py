"""Acknowledgements, pending messages, deliveries and dead letters over HTTP, in process."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from msgpush.adapters.auth.authenticator import TokenAuthenticator
from msgpush.adapters.auth.keys import Keys, secret_key
from msgpush.adapters.auth.tokens import Tokens
from msgpush.adapters.http.acknowledgements import MAX_KEYS, USERS, AcknowledgementsApi
from msgpush.adapters.http.dispatch import Service
from msgpush.adapters.memory.limiter import MemoryLimiter
from msgpush.domain.outbox import GiveUp
from msgpush.domain.service import Push
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import Answer, AsgiDriver
from tests.support.asking import body_of
from tests.support.tokens import SECRET, bearer, token

ACKNOWLEDGE = "/api/v1/users/bob/acknowledgements"
TICKETS = "/api/v1/tickets"
BATCH = "/api/v1/messages/batch"


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[AsgiDriver]:
    async with lifespan(app := create_app(Settings(**settings))):
        yield AsgiDriver(app)


@pytest.fixture
async def client() -> AsyncIterator[AsgiDriver]:
    async with serving() as client:
        yield client


@pytest.fixture
async def guarded() -> AsyncIterator[AsgiDriver]:
    async with serving(jwt_secret=SECRET) as client:
        yield client


def push_of(client: AsgiDriver) -> Push:
    assert isinstance(client.app, Starlette)
    push: Push = client.app.state.push
    return push


async def publish(client: AsgiDriver, id: str, **options: Any) -> Answer:
    answer = await client.send(body_of(id, **options), **bearer(publisher()))
    assert answer.status == 202, answer.body
    return answer


def publisher() -> str:
    return token("importer", publish=["*"])


async def acknowledge(
    client: AsgiDriver, keys: Sequence[str], headers: dict[str, str] | None = None, query: str = ""
) -> Answer:
    body = msgspec.json.encode({"keys": keys})
    return await client.request("POST", ACKNOWLEDGE + query, body, headers)


async def delivery(client: AsgiDriver, id: str) -> dict[str, Any]:
    answer = await client.request("GET", f"/api/v1/messages/tests/{id}/delivery")
    assert answer.status == 200
    told: dict[str, Any] = answer.json()
    return told


async def die(client: AsgiDriver, id: str) -> None:
    """Have a message given up, as if it had been delivered in vain often enough."""
    outbox = push_of(client).redelivery
    record = await outbox.find("tests", id)
    assert record is not None
    record.next = record.expires = 0
    kept = push_of(client)._bus.outbox._records[record.key]  # type: ignore[attr-defined]
    kept.phase, kept.next = "waiting", 0
    (outcome,) = await outbox._change([GiveUp("bob", record.key, 1, "deliveries")])
    assert outcome.result == "made"


# Acknowledging


async def test_a_message_is_acknowledged_and_stays_so(client: AsgiDriver) -> None:
    await publish(client, "m1")
    for _ in range(2):
        answer = await acknowledge(client, ["tests/m1", "tests/m2", "other/m1"])
        assert answer.status == 200
        assert answer.json() == {
            "acknowledged": ["tests/m1"],
            "unknown": ["tests/m2", "other/m1"],
        }
    told = await delivery(client, "m1")
    assert told["state"] == "acknowledged"
    assert told["acknowledged_at"] is not None


async def test_the_same_key_twice_is_acknowledged_once(client: AsgiDriver) -> None:
    await publish(client, "m1")
    answer = await acknowledge(client, ["tests/m1", "tests/m1"])
    assert answer.json() == {"acknowledged": ["tests/m1"], "unknown": []}


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain;charset=UTF-8", "", "multipart/form-data"]
)
async def test_whatever_type_a_beacon_says_its_keys_are_read(
    client: AsgiDriver, content_type: str
) -> None:
    await publish(client, "m1")
    answer = await acknowledge(client, ["tests/m1"], {"Content-Type": content_type})
    assert answer.json()["acknowledged"] == ["tests/m1"]


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"\xff", 400, None),
        (b"[" * 5000, 400, None),
        (b"[]", 422, ""),
        (b'"tests/m1"', 422, ""),
        (b"{}", 422, "/keys"),
        (b'{"keys":[]}', 422, "/keys"),
        (b'{"keys":"tests/m1"}', 422, "/keys"),
        (b'{"keys":null}', 422, "/keys"),
        (b'{"keys":["tests/m1",1]}', 422, "/keys/1"),
        (b'{"keys":[""]}', 422, "/keys/0"),
        (b'{"keys":["%b"]}' % (b"x" * 194), 422, "/keys/0"),
        (b'{"keys":["a"],"state":"read"}', 422, "/state"),
        (msgspec.json.encode({"keys": ["a/b"] * (MAX_KEYS + 1)}), 422, "/keys"),
        (b'{"keys":["%b"]}' % (b"x" * 600_000), 413, None),
    ],
)
async def test_what_names_no_keys_is_refused_with_its_place(
    client: AsgiDriver, body: bytes, status: int, pointer: str | None
) -> None:
    answer = await client.request("POST", ACKNOWLEDGE, body)
    assert answer.status == status
    if pointer is not None:
        assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


async def test_pages_of_known_origins_acknowledge_and_read_the_answer() -> None:
    async with serving(cors_origins=("https://app.example",)) as client:
        origin = {"Origin": "https://app.example"}
        await publish(client, "m1")
        answer = await acknowledge(client, ["tests/m1"], origin | {"Content-Type": "text/plain"})
        assert answer.json()["acknowledged"] == ["tests/m1"]
        assert answer.headers["access-control-allow-origin"] == origin["Origin"]
        pending = await client.request("GET", "/api/v1/users/bob/pending", b"", origin)
        assert pending.headers["access-control-allow-origin"] == origin["Origin"]
        for method, target in (
            ("POST", ACKNOWLEDGE),
            ("DELETE", "/api/v1/messages/tests/m1/delivery"),
        ):
            asked = {"Access-Control-Request-Method": method}
            asked["Access-Control-Request-Headers"] = "authorization,content-type"
            assert (await client.request("OPTIONS", target, b"", origin | asked)).status == 200
        stranger = {"Origin": "https://other.example"}
        refused = await acknowledge(client, ["tests/m1"], stranger)
        assert "access-control-allow-origin" not in refused.headers


async def test_a_thousand_keys_are_acknowledged_in_one_request(client: AsgiDriver) -> None:
    keys = [f"s{number % 8}/{number}" for number in range(MAX_KEYS)]
    for start in range(0, MAX_KEYS, 100):
        batch = b",".join(
            body_of(key.partition("/")[2], service=key.partition("/")[0])
            for key in keys[start : start + 100]
        )
        assert (await client.send(b"[%b]" % batch, "/api/v1/messages/batch")).status == 202
    answer = await acknowledge(client, keys)
    assert answer.json() == {"acknowledged": keys, "unknown": []}
    assert (await client.request("GET", "/api/v1/users/bob/pending")).json()["total"] == 0


async def test_another_users_message_is_unknown(client: AsgiDriver) -> None:
    await publish(client, "m1", user="ann")
    assert (await acknowledge(client, ["tests/m1"])).json()["unknown"] == ["tests/m1"]
    assert (await delivery(client, "m1"))["state"] == "accepted"


@pytest.mark.parametrize("path", ["/api/v1/users//pending", "/api/v1/users/a%20b/pending"])
async def test_a_path_that_names_no_user_is_refused(client: AsgiDriver, path: str) -> None:
    assert (await client.request("GET", path.replace("%20", " "))).status == 400


async def test_a_user_whose_name_needs_encoding_in_a_path_has_what_is_pending(
    client: AsgiDriver,
) -> None:
    await publish(client, "m1", user="a:b@c%2Fd")
    answer = await client.request("GET", "/api/v1/users/a:b@c%252Fd/pending")
    assert answer.json()["total"] == 1


async def test_acknowledging_has_a_rate_for_each_subject() -> None:
    async with serving(jwt_secret=SECRET, ack_rate=0.5) as client:
        keys = [f"tests/{n}" for n in range(MAX_KEYS)]
        bob = bearer(token("bob"))
        assert (await acknowledge(client, keys, bob)).status == 200
        refused = await acknowledge(client, keys[:2], bob)
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 2
        desk = bearer(token("desk", users=["bob"]))
        assert (await acknowledge(client, keys[:2], desk)).status == 200


async def test_who_waits_as_long_as_a_refusal_says_acknowledges_then() -> None:
    now = 0.0
    async with serving(jwt_secret=SECRET) as client:
        push = push_of(client)
        auth = TokenAuthenticator(Tokens(Keys([secret_key(SECRET)])), push)
        api = AcknowledgementsApi(push, auth, MemoryLimiter(100, MAX_KEYS, clock=lambda: now))
        routes = [Route(f"{USERS}{{user_id}}/acknowledgements", api.acknowledge, methods=["POST"])]
        limited = AsgiDriver(Service(routes, [], lifespan, hot={}, on_error=lambda error: None))
        keys = [f"tests/{n}" for n in range(MAX_KEYS)]
        bob = bearer(token("bob"))
        assert (await acknowledge(limited, keys, bob)).status == 200
        for now in (1.0, 5.0, 9.5):  # too early, which uses up nothing of what comes in
            refused = await acknowledge(limited, keys, bob)
            assert refused.status == 429
            assert 10.0 <= now + int(refused.headers["retry-after"]) <= 11.0
        now = 10.0
        assert (await acknowledge(limited, keys, bob)).status == 200


# Who may


async def test_only_who_may_act_for_a_user_acknowledges_and_sees_what_is_pending(
    guarded: AsgiDriver,
) -> None:
    await publish(guarded, "m1")
    for credentials, allowed in (
        (token("bob"), True),
        (token("desk", users=["bo*"]), True),
        (token("desk", users=["*"]), True),
        (token("ann"), False),
        (token("bobby"), False),
        (token("desk", subscribe=["user:*"], publish=["*"]), False),
        (token("root", admin=True), False),
        (token("desk", users=["bobby*"]), False),
    ):
        headers = bearer(credentials)
        answer = await acknowledge(guarded, ["tests/none"], headers)
        assert answer.status == (200 if allowed else 403)
        pending = await guarded.request("GET", "/api/v1/users/bob/pending", b"", headers)
        assert pending.status == (200 if allowed else 403)
    assert (await acknowledge(guarded, ["tests/none"])).status == 401


async def new_ticket(client: AsgiDriver, body: dict[str, Any], credentials: str) -> Answer:
    return await client.request("POST", TICKETS, msgspec.json.encode(body), bearer(credentials))


async def test_a_ticket_acknowledges_only_where_it_was_made_for_that(guarded: AsgiDriver) -> None:
    await publish(guarded, "m1")
    channels = {"channels": ["user:bob", "imports"]}
    bob = token("bob", subscribe=["imports"])
    acting = (await new_ticket(guarded, channels | {"acknowledge": True}, bob)).json()["ticket"]
    listening = (await new_ticket(guarded, channels, bob)).json()["ticket"]
    # Of a ticket the channels alone count, and not whose it is.
    other = (await new_ticket(guarded, {"channels": ["imports"], "acknowledge": True}, bob)).json()[
        "ticket"
    ]
    for ticket, status in ((acting, 200), (listening, 403), (other, 403), (acting + "x", 401)):
        assert (await acknowledge(guarded, ["tests/m2"], bearer(ticket))).status == status
        assert (await acknowledge(guarded, ["tests/m2"], query=f"?token={ticket}")).status == status
    assert (await acknowledge(guarded, ["tests/m1"], bearer(acting))).json()["acknowledged"]


async def test_who_may_not_act_for_each_user_makes_no_ticket_that_acknowledges(
    guarded: AsgiDriver,
) -> None:
    body = {"channels": ["user:bob", "user:ann"], "acknowledge": True}
    listener = token("desk", subscribe=["user:*"])
    assert (await new_ticket(guarded, {"channels": body["channels"]}, listener)).status == 201
    assert (await new_ticket(guarded, body, listener)).status == 403
    one = token("desk", subscribe=["user:*"], users=["bob"])
    assert (await new_ticket(guarded, body, one)).status == 403
    both = token("desk", subscribe=["user:*"], users=["bob", "ann"])
    assert (await new_ticket(guarded, body, both)).status == 201
    wrong = await new_ticket(guarded, body | {"acknowledge": "yes"}, both)
    assert wrong.status == 422
    assert wrong.json()["errors"][0]["pointer"] == "/acknowledge"


async def test_acknowledging_neither_claims_a_ticket_nor_ends_its_stream(
    guarded: AsgiDriver,
) -> None:
    body = {"channels": ["user:bob"], "acknowledge": True}
    ticket = (await new_ticket(guarded, body, token("bob"))).json()["ticket"]
    async with guarded.stream(f"/sse/user/bob?token={ticket}") as stream:
        await stream.read_until(b"\n\n")
        await publish(guarded, "m1")
        await stream.read_until(b'"m1"')
        assert (await acknowledge(guarded, ["tests/m1"], bearer(ticket))).status == 200
        got = await stream.read_until(b"event: msgpush.acknowledged")
        assert b"msgpush.close" not in got


async def test_a_claim_of_users_that_names_none_is_refused(guarded: AsgiDriver) -> None:
    for users in (["a b"], ["a/b"], "bob", [1], ["*x"]):
        answer = await acknowledge(guarded, ["a/b"], bearer(token("desk", users=users)))
        assert answer.status == 401


# Pending


async def test_what_is_pending_comes_whole_page_by_page_most_urgent_first(
    client: AsgiDriver,
) -> None:
    for id, priority in (("a", "low"), ("b", "normal"), ("c", "urgent"), ("d", "urgent")):
        await publish(client, id, priority=priority, data={"n": id})
    got, query, pages = list[str](), "?limit=3", 0
    while query:
        page = (await client.request("GET", f"/api/v1/users/bob/pending{query}")).json()
        assert page["total"] == 4
        got += [each["id"] for each in page["messages"]]
        assert all(each["data"] == {"n": each["id"]} for each in page["messages"])
        query, pages = f"?limit=3&next={page['next']}" if page["next"] else "", pages + 1
    assert (got, pages) == (["c", "d", "b", "a"], 2)


@pytest.mark.parametrize("next", ["x", "1", "4.1-0.a/b", "1.1-0.ab", "1.1-.a/b", "1.1-0.a/b\n"])
async def test_a_place_that_no_answer_has_named_is_refused(client: AsgiDriver, next: str) -> None:
    target = f"/api/v1/users/bob/pending?next={next}".replace("\n", "%0A")
    assert (await client.request("GET", target)).status == 400


async def test_an_answer_with_what_is_pending_ends_after_four_mib() -> None:
    async with serving(max_message_bytes=2**21, memory_bus_bytes=2**28) as client:
        for number in range(12):
            await publish(client, f"m{number}", service=f"s{number}", data={"x": "x" * 2**19})
        page = (await client.request("GET", "/api/v1/users/bob/pending")).json()
        assert 8 <= len(page["messages"]) < 12
        assert page["next"] is not None


# Deliveries


async def test_what_became_of_a_message_is_told_in_full(client: AsgiDriver) -> None:
    await publish(client, "m1")
    told = await delivery(client, "m1")
    assert re.fullmatch(r"\d{4}-.*Z", told.pop("accepted_at"))
    assert told == {
        "key": "tests/m1",
        "state": "accepted",
        "reason": None,
        "user_id": "bob",
        "deliveries": 0,
        "written_at": None,
        "acknowledged_at": None,
        "next_at": None,
    }
    async with client.stream("/sse/user/bob") as stream:
        await stream.read_until(b'"m1"')
        await push_of(client).redelivery.report()
    told = await delivery(client, "m1")
    assert told["state"] == "written"
    assert told["written_at"] is not None
    assert told["next_at"] is not None


async def test_nothing_is_known_of_a_message_that_asked_for_nothing(client: AsgiDriver) -> None:
    await client.send(b'{"id":"m1","type":"info","service":"tests","target":{"user_id":"bob"}}')
    for method in ("GET", "DELETE"):
        assert (await client.request(method, "/api/v1/messages/tests/m1/delivery")).status == 404


async def test_a_message_is_withdrawn_and_the_users_streams_are_told(client: AsgiDriver) -> None:
    async with client.stream("/sse/user/bob") as stream:
        await stream.read_until(b"\n\n")
        await publish(client, "m1")
        for _ in range(2):
            answer = await client.request("DELETE", "/api/v1/messages/tests/m1/delivery")
            assert answer.status == 204
        got = await stream.read_until(b"msgpush.acknowledged")
        assert b'{"keys":["tests/m1"],"state":"withdrawn"}' in got
    assert (await delivery(client, "m1"))["state"] == "withdrawn"
    assert (await acknowledge(client, ["tests/m1"])).json()["unknown"] == ["tests/m1"]


async def test_what_was_acknowledged_cant_be_withdrawn(client: AsgiDriver) -> None:
    await publish(client, "m1")
    await acknowledge(client, ["tests/m1"])
    answer = await client.request("DELETE", "/api/v1/messages/tests/m1/delivery")
    assert answer.status == 409


# Dead letters


async def test_dead_letters_are_listed_revived_and_thrown_away(client: AsgiDriver) -> None:
    for id in ("m1", "m2", "m3"):
        await publish(client, id)
        await die(client, id)
    page = (await client.request("GET", "/api/v1/dead-letters?service=tests&limit=2")).json()
    assert [each["message"]["id"] for each in page["dead_letters"]] == ["m1", "m2"]
    assert page["dead_letters"][0]["reason"] == "deliveries"
    assert page["dead_letters"][0]["died_at"].endswith("Z")
    rest = await client.request(
        "GET", f"/api/v1/dead-letters?service=tests&limit=2&next={page['next']}"
    )
    assert [each["message"]["id"] for each in rest.json()["dead_letters"]] == ["m3"]
    assert rest.json()["next"] is None

    async with client.stream("/sse/user/bob") as stream:
        await stream.read_until(b"\n\n")
        answer = await client.request("POST", "/api/v1/dead-letters/tests/m1/redeliver")
        assert answer.status == 202
        assert answer.json()["key"] == "tests/m1"
        got = await stream.read_until(b'"m1"')
        assert b'"retry_count":1' in got
        assert answer.json()["cursor"].encode() in got
    assert (await delivery(client, "m1"))["state"] in ("accepted", "written")
    assert (await client.request("DELETE", "/api/v1/dead-letters/tests/m2")).status == 204
    for method, target in (
        ("POST", "/api/v1/dead-letters/tests/m1/redeliver"),
        ("DELETE", "/api/v1/dead-letters/tests/m2"),
        ("DELETE", "/api/v1/dead-letters/tests/m1"),
    ):
        assert (await client.request(method, target)).status == 404
    assert (await acknowledge(client, ["tests/m3"])).json()["acknowledged"] == ["tests/m3"]
    page = (await client.request("GET", "/api/v1/dead-letters?service=tests")).json()
    assert page == {"dead_letters": [], "next": None}


async def test_dead_letters_show_content_to_listeners_and_obey_publishers(
    guarded: AsgiDriver,
) -> None:
    await publish(guarded, "m1")
    await die(guarded, "m1")
    listener = bearer(token("eve", subscribe=["service:tests"]))
    half = bearer(token("importer", publish=["service:tests"]))
    letters = "/api/v1/dead-letters?service=tests"
    revive = "/api/v1/dead-letters/tests/m1/redeliver"
    assert (await guarded.request("GET", letters, b"", listener)).status == 200
    assert (await guarded.request("GET", letters, b"", bearer(publisher()))).status == 403
    assert (await guarded.request("POST", revive, b"", listener)).status == 403
    # It goes to the user's channel: that has to be allowed, too.
    assert (await guarded.request("POST", revive, b"", half)).status == 403
    assert (await guarded.request("POST", revive, b"", bearer(publisher()))).status == 202


@pytest.mark.parametrize(
    "query", ["", "?service=", "?service=a%20b", "?service=a&next=x", "?service=a&limit=0"]
)
async def test_a_list_of_dead_letters_says_whose_it_wants(client: AsgiDriver, query: str) -> None:
    answer = await client.request("GET", f"/api/v1/dead-letters{query}")
    assert answer.status == 400


# Publishing


async def test_a_full_mailbox_refuses_that_message_alone() -> None:
    async with serving(max_pending=2) as client:
        messages = [body_of(f"m{n}", user=user) for n, user in enumerate(["bob"] * 3 + ["ann"])]
        answer = await client.send(b"[%b]" % b",".join(messages), "/api/v1/messages/batch")
        assert answer.status == 202
        results = answer.json()["results"]
        assert [each.get("id") for each in results] == ["m0", "m1", None, "m3"]
        assert results[2]["error"]["status"] == 409
        assert results[2]["error"]["type"] == "mailbox-full"
        refused = await client.send(body_of("m9"))
        assert (refused.status, refused.json()["type"]) == (409, "mailbox-full")
        assert (await client.send(body_of("m9", service="other"))).status == 202
        await acknowledge(client, ["tests/m0"])
        assert (await client.send(body_of("m9"))).status == 202


async def test_without_room_for_what_waits_a_publisher_is_told_to_come_back() -> None:
    async with serving(memory_bus_bytes=8 * 2**20, max_pending=1000) as client:
        answers = [
            await client.send(body_of(f"m{n}", user=f"u{n}", data={"x": "x" * 200_000}))
            for n in range(8)
        ]
        refused = answers[-1]
        assert answers[0].status == 202
        assert (refused.status, refused.json()["type"]) == (503, "pending-full")
        assert refused.headers["retry-after"] == "60"
        plain = b'{"type":"info","service":"tests","channels":["a"]}'
        assert (await client.send(plain)).status == 202


async def test_a_batch_of_which_none_has_room_is_told_to_come_back_as_late_as_one_message() -> None:
    async with serving(memory_bus_bytes=8 * 2**20, max_pending=1000) as client:
        large = {"x": "x" * 200_000}
        messages = [body_of(f"m{n}", user=f"u{n}", data=large) for n in range(8)]
        assert (await client.send(b"[%b]" % b",".join(messages), BATCH)).status == 202
        refused = await client.send(b"[%b]" % messages[-1], BATCH)
        assert (refused.status, refused.json()["type"]) == (503, "pending-full")
        assert refused.headers["retry-after"] == "60"
        (result,) = refused.json()["results"]
        assert result["error"]["type"] == "pending-full"


async def test_a_message_that_is_known_is_a_duplicate_whatever_became_of_it(
    client: AsgiDriver,
) -> None:
    await publish(client, "m1")
    await acknowledge(client, ["tests/m1"])
    assert (await publish(client, "m1")).json()["duplicate"]
    assert (await client.send(body_of("m1", deadline=7))).status == 409
    assert (await acknowledge(client, ["tests/m1"])).json()["acknowledged"] == ["tests/m1"]


@pytest.mark.parametrize(
    "message",
    [
        {"service": "msgpush", "type": "info"},
        {"service": "tests", "type": "info", "channels": ["a", "receipts:tests"]},
        {"service": "tests", "type": "info", "target": {"receipts_id": "tests"}},
    ],
)
async def test_nobody_publishes_what_would_pass_for_the_services_own(
    client: AsgiDriver, message: dict[str, Any]
) -> None:
    body = msgspec.json.encode(message)
    assert (await client.send(body)).status == 403
    batch = await client.send(b"[%b]" % body, "/api/v1/messages/batch")
    assert batch.status == 403


async def test_a_receipt_tells_the_publisher_once_what_became_of_it(client: AsgiDriver) -> None:
    async with client.stream("/sse/stream/receipts:tests") as receipts:
        await receipts.read_until(b"\n\n")
        await publish(client, "m1", receipt=True)
        await publish(client, "m2")
        await acknowledge(client, ["tests/m1", "tests/m2"])
        await acknowledge(client, ["tests/m1"])
        got = await receipts.read_until(b'"tests/m1"')
    assert got.count(b"data: {") == 2, "its opening and one receipt"
    history = await client.request("GET", "/api/v1/channels/service:msgpush/messages")
    assert history.json()["messages"] == []
    (receipt,) = (await client.request("GET", "/api/v1/channels/receipts:tests/messages")).json()[
        "messages"
    ]
    assert (receipt["service"], receipt["type"]) == ("msgpush", "status")
    data = receipt["data"]
    assert data.pop("at") == (await delivery(client, "m1"))["acknowledged_at"]
    assert data == {
        "key": "tests/m1",
        "state": "acknowledged",
        "reason": None,
        "user_id": "bob",
        "deliveries": 0,
    }
