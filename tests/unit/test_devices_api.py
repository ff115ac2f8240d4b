"""`/api/v1/push` and devices over HTTP, in process; acknowledging by a word."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette

from msgpush.adapters.notify.vapid import base64url, public_text, vapid_key
from msgpush.domain.devices import MAX_DEVICES
from msgpush.domain.service import Push
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import Answer, AsgiDriver
from tests.support.asking import body_of
from tests.support.pushes import push_body
from tests.support.subscriptions import Browser
from tests.support.tokens import SECRET, bearer, token

VAPID = base64url(bytes(range(1, 33)))
ON = {"vapid_private_key": VAPID, "vapid_subject": "mailto:ops@example.com"}
BOBS = "/api/v1/users/bob/devices"
ENDPOINT = "https://fcm.googleapis.com/fcm/send/a-secret-path"
APP_SECRET = "0123456789abcdef012345"
BOB = bearer(token("bob"))


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[AsgiDriver]:
    async with lifespan(app := create_app(Settings(**settings))):
        yield AsgiDriver(app)


@pytest.fixture
async def client() -> AsyncIterator[AsgiDriver]:
    async with serving(jwt_secret=SECRET, **ON) as client:
        yield client


def push_of(client: AsgiDriver) -> Push:
    assert isinstance(client.app, Starlette)
    push: Push = client.app.state.push
    return push


def subscription(browser: Browser | None = None, endpoint: str = ENDPOINT) -> dict[str, Any]:
    return {"webpush": (browser or Browser()).as_json(endpoint)}


async def register(
    client: AsgiDriver, given: object, path: str = BOBS, headers: dict[str, str] = BOB
) -> Answer:
    return await client.request("POST", path, json.dumps(given).encode(), headers)


async def test_what_is_on_is_told_to_everybody() -> None:
    async with serving(jwt_secret=SECRET, **ON) as client:
        answer = await client.request("GET", "/api/v1/push")
        assert answer.json() == {
            "webpush": {"public_key": public_text(vapid_key(VAPID))},
            "fcm": False,
            "apns": False,
        }
    async with serving() as client:
        answer = await client.request("GET", "/api/v1/push")
        assert answer.json() == {"webpush": None, "fcm": False, "apns": False}


async def test_a_browser_is_registered_listed_and_forgotten(client: AsgiDriver) -> None:
    browser = Browser()
    made = await register(client, subscription(browser) | {"label": "My desk"})
    assert made.status == 201
    device = made.json()
    assert (device["kind"], device["label"]) == ("webpush", "My desk")
    again = await register(client, subscription(browser))
    assert (again.status, again.json()) == (200, device)
    listed = await client.request("GET", BOBS, b"", BOB)
    assert listed.json() == {"devices": [device]}
    for secret in ("a-secret-path", "p256dh", base64url(browser.auth)):
        assert secret not in listed.body.decode() + made.body.decode()
    removed = await client.request("DELETE", f"{BOBS}/{device['device']}", b"", BOB)
    assert (removed.status, removed.body) == (204, b"")
    assert (await client.request("DELETE", f"{BOBS}/{device['device']}", b"", BOB)).status == 204
    assert (await client.request("GET", BOBS, b"", BOB)).json() == {"devices": []}


async def test_all_of_a_user_are_forgotten_at_once_and_no_more_than_there_is_room_for(
    client: AsgiDriver,
) -> None:
    for number in range(MAX_DEVICES + 5):
        assert (await register(client, subscription(endpoint=f"{ENDPOINT}{number}"))).status == 201
    listed = await client.request("GET", BOBS, b"", BOB)
    assert len(listed.json()["devices"]) == MAX_DEVICES
    assert (await client.request("DELETE", BOBS, b"", BOB)).status == 204
    assert (await client.request("GET", BOBS, b"", BOB)).json() == {"devices": []}


async def test_a_device_moves_to_another_user_only_with_what_it_alone_knows(
    client: AsgiDriver,
) -> None:
    browser, eves = Browser(), "/api/v1/users/eve/devices"
    eve = bearer(token("eve"))
    device = (await register(client, subscription(browser))).json()
    stolen = await register(client, subscription(Browser()), eves, eve)
    assert stolen.status == 409
    assert "a-secret-path" not in stolen.body.decode()
    # Nor can she use, list or delete it.
    assert (await client.request("GET", BOBS, b"", eve)).status == 403
    assert (await client.request("DELETE", f"{BOBS}/{device['device']}", b"", eve)).status == 403
    assert (await client.request("DELETE", f"{eves}/{device['device']}", b"", eve)).status == 204
    assert (await client.request("GET", BOBS, b"", BOB)).json()["devices"] == [device]
    assert (await register(client, subscription(browser), eves, eve)).status == 201
    assert (await client.request("GET", BOBS, b"", BOB)).json() == {"devices": []}


async def test_an_endpoint_is_the_same_device_however_it_is_written(client: AsgiDriver) -> None:
    assert (await register(client, subscription())).status == 201
    other = ENDPOINT.replace("https://fcm.googleapis.com", "HTTPS://FCM.googleapis.com:443")
    eve = bearer(token("eve"))
    stolen = await register(
        client, subscription(endpoint=other + "#"), "/api/v1/users/eve/devices", eve
    )
    assert stolen.status == 409


async def test_a_ticket_registers_nothing(client: AsgiDriver) -> None:
    body = b'{"channels":["user:bob"],"acknowledge":true}'
    ticket = (await client.request("POST", "/api/v1/tickets", body, BOB)).json()["ticket"]
    assert (await register(client, subscription(), headers=bearer(ticket))).status == 401
    assert (await register(client, subscription(), f"{BOBS}?token={ticket}", {})).status == 400


async def test_a_revocation_of_its_user_takes_a_device_along(client: AsgiDriver) -> None:
    await register(client, subscription())
    admin = bearer(token("root", admin=True))
    body = b'{"subject":"bob"}'
    assert (await client.request("POST", "/api/v1/revocations", body, admin)).status == 201
    (own,) = await push_of(client).pushing.devices.of(["bob"])  # type: ignore[union-attr]
    assert own == []


async def test_a_kind_that_is_off_is_refused_as_such() -> None:
    fcm = {"fcm": {"token": "t", "secret": APP_SECRET}}
    apns = {"apns": {"token": "ab" * 32, "topic": "com.example", "secret": APP_SECRET}}
    async with serving(jwt_secret=SECRET, **ON) as client:
        for given in (fcm, apns):
            answer = await register(client, given)
            assert (answer.status, answer.json()["type"]) == (409, "push-off")
    async with serving(jwt_secret=SECRET) as client:
        answer = await register(client, subscription())
        assert (answer.status, answer.json()["type"]) == (409, "push-off")


KEYS = Browser().as_json(ENDPOINT)["keys"]
WRONG: list[tuple[object, str]] = [
    ([], ""),
    ({}, ""),
    ({"webpush": None}, ""),
    ({"label": "x"}, ""),
    (subscription() | {"fcm": {"token": "t", "secret": APP_SECRET}}, ""),
    (subscription() | {"name": "x"}, "/name"),
    (subscription() | {"label": "x" * 65}, "/label"),
    (subscription() | {"label": 7}, "/label"),
    ({"webpush": "x"}, "/webpush"),
    ({"webpush": {"keys": KEYS}}, "/webpush/endpoint"),
    ({"webpush": {"endpoint": 7, "keys": KEYS}}, "/webpush/endpoint"),
    *(
        ({"webpush": {"endpoint": endpoint, "keys": KEYS}}, "/webpush/endpoint")
        for endpoint in (
            "",
            "x",
            "http://fcm.googleapis.com/x",
            "https://fcm.googleapis.com:444/x",
            "https://evil.example/x",
            "https://fcm.googleapis.com.evil.example/x",
            "https://u:p@fcm.googleapis.com/x",
            "https://127.0.0.1/x",
            "https://169.254.169.254/latest",
            "https://[::1]/x",
            "https://localhost/x",
            "https://fcm.googleapis.com/" + "x" * 1_000,
        )
    ),
    ({"webpush": {"endpoint": ENDPOINT}}, "/webpush/keys"),
    ({"webpush": {"endpoint": ENDPOINT, "keys": []}}, "/webpush/keys"),
    ({"webpush": {"endpoint": ENDPOINT, "keys": {}}}, "/webpush/keys/p256dh"),
    ({"webpush": {"endpoint": ENDPOINT, "keys": KEYS | {"p256dh": "x"}}}, "/webpush/keys/p256dh"),
    (
        {"webpush": {"endpoint": ENDPOINT, "keys": KEYS | {"p256dh": base64url(bytes(65))}}},
        "/webpush/keys/p256dh",
    ),
    (
        {
            "webpush": {
                "endpoint": ENDPOINT,
                "keys": KEYS | {"p256dh": base64url(b"\4" + bytes(64))},
            }
        },
        "/webpush/keys/p256dh",
    ),
    ({"webpush": {"endpoint": ENDPOINT, "keys": KEYS | {"auth": "%%"}}}, "/webpush/keys/auth"),
    ({"webpush": {"endpoint": ENDPOINT, "keys": KEYS | {"auth": "YQ"}}}, "/webpush/keys/auth"),
]


@pytest.mark.parametrize(("given", "pointer"), WRONG)
async def test_what_is_wrong_is_told_by_its_place_and_not_repeated(
    client: AsgiDriver, given: object, pointer: str
) -> None:
    answer = await register(client, given)
    assert answer.status == 422, answer.body
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == pointer
    assert "evil" not in answer.body.decode()
    assert "latest" not in answer.body.decode()


async def test_apps_are_checked_too(tmp_path: Any) -> None:
    from tests.unit.test_settings import APPLE_KEY, SERVICE_ACCOUNT

    settings = {
        "fcm_credentials": SERVICE_ACCOUNT,
        "apns_key": APPLE_KEY,
        "apns_key_id": "K",
        "apns_team_id": "T",
        "apns_topic": "com.example.app",
    }
    async with serving(jwt_secret=SECRET, **settings) as client:
        told = await client.request("GET", "/api/v1/push")
        assert told.json() == {"webpush": None, "fcm": True, "apns": True}
        fcm = {"token": "a:b-c", "secret": APP_SECRET}
        apns = {"token": "AB" * 32, "topic": "com.example.app", "secret": APP_SECRET}
        assert (await register(client, {"fcm": fcm})).status == 201
        assert (await register(client, {"apns": apns})).status == 201
        for kind, given, wrong in (
            ("fcm", fcm, {"token": ""}),
            ("fcm", fcm, {"token": "a b"}),
            ("fcm", fcm, {"secret": "x" * 21}),
            ("fcm", fcm, {"secret": "x" * 513}),
            ("fcm", fcm, {"secret": None}),
            ("apns", apns, {"token": "../../etc"}),
            ("apns", apns, {"topic": "com.example.other"}),
        ):
            answer = await register(client, {kind: given | wrong})
            assert answer.status == 422
            (name,) = wrong
            assert answer.json()["errors"][0]["pointer"] == f"/{kind}/{name}"
        assert (await register(client, {"fcm": fcm | {"more": 1}})).status == 422
        eve = bearer(token("eve"))
        eves = "/api/v1/users/eve/devices"
        guess = {"fcm": fcm | {"secret": "f" * 22}}
        assert (await register(client, guess, eves, eve)).status == 409
        assert (await register(client, {"fcm": fcm}, eves, eve)).status == 201


# What is asked for


async def test_a_message_is_pushed_only_where_that_is_on() -> None:
    publisher = bearer(token("importer", publish=["*"]))
    async with serving(jwt_secret=SECRET) as client:
        answer = await client.send(push_body("m1"), **publisher)
        assert answer.status == 422
        assert answer.json()["errors"][0]["pointer"] == "/metadata/push"
    async with serving(jwt_secret=SECRET, **ON) as client:
        assert (await client.send(push_body("m1"), **publisher)).status == 202
        broadcast = b'{"type":"info","service":"tests","metadata":{"push":true}}'
        answer = await client.request("POST", "/api/v1/messages/broadcast", broadcast, publisher)
        assert answer.status == 422
        assert answer.json()["errors"][0]["pointer"] == "/metadata/push"


# Words


async def test_a_word_acknowledges_its_key_without_any_token(client: AsgiDriver) -> None:
    publisher = bearer(token("importer", publish=["*"]))
    for id in ("m1", "m2"):
        assert (await client.send(body_of(id), **publisher)).status == 202
    pushing = push_of(client).pushing
    assert pushing is not None
    assert pushing.words is not None
    word = pushing.words.make("bob", "tests/m1", 4_000_000_000)
    acknowledge = "/api/v1/users/bob/acknowledgements"

    async def say(keys: object, said: object = word, path: str = acknowledge) -> Answer:
        body = json.dumps({"keys": keys, "word": said}).encode()
        return await client.request("POST", path, body, {"Content-Type": "text/plain"})

    for refused in (
        await say(["tests/m2"]),
        await say(["tests/m1", "tests/m2"]),
        await say([]),
        await say("tests/m1"),
        await say(["tests/m1"], path="/api/v1/users/eve/acknowledgements"),
        await say(["tests/m1"], pushing.words.make("bob", "tests/m1", 1)),
        await say(["tests/m1"], word + "x"),
        await say(["tests/m1"], 7),
        await say(["tests/m1"], "x" * 2_000),
        await client.request("POST", acknowledge, b'{"keys":["tests/m1"]}'),
        await client.request("POST", acknowledge, b"{"),
    ):
        assert refused.status == 401
        assert "www-authenticate" in refused.headers
    done = await say(["tests/m1"])
    assert (done.status, done.json()) == (200, {"acknowledged": ["tests/m1"], "unknown": []})
    pending = await client.request("GET", "/api/v1/users/bob/pending", b"", BOB)
    assert [each["id"] for each in pending.json()["messages"]] == ["m2"]
    # Who has a token may send it along.
    both = json.dumps({"keys": ["tests/m1"], "word": word}).encode()
    assert (await client.request("POST", acknowledge, both, BOB)).status == 200
    assert (await client.request("POST", acknowledge, both, bearer(token("eve")))).status == 200


async def test_who_says_a_word_again_and_again_is_limited_as_its_user_is() -> None:
    async with serving(jwt_secret=SECRET, ack_rate=0.001, **ON) as client:
        pushing = push_of(client).pushing
        assert pushing is not None
        assert pushing.words is not None
        word = pushing.words.make("bob", "tests/m1", 4_000_000_000)
        by_word = json.dumps({"keys": ["tests/m1"], "word": word}).encode()
        many = json.dumps({"keys": [f"tests/{n}" for n in range(999)]}).encode()
        path = "/api/v1/users/bob/acknowledgements"
        assert (await client.request("POST", path, many, BOB)).status == 200
        assert (await client.request("POST", path, by_word)).status == 200
        assert (await client.request("POST", path, by_word)).status == 429
