"""`POST /api/v1/tokens/explain`: what a token may do, or why it is refused."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import Answer, AsgiDriver
from tests.support.tokens import OTHER_SECRET, SECRET, bearer, claims, signed, token, unsigned

ROOT = bearer(token("root", admin=True))


@pytest.fixture
async def client() -> AsyncIterator[AsgiDriver]:
    app = create_app(Settings(jwt_secret=SECRET, jwt_leeway=0))
    async with lifespan(app):
        yield AsgiDriver(app)


async def ask(client: AsgiDriver, body: object, headers: dict[str, str] | None = None) -> Answer:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = ROOT if headers is None else headers
    return await client.request("POST", "/api/v1/tokens/explain", sent, given)


async def explained(client: AsgiDriver, text: str) -> dict[str, Any]:
    answer = await ask(client, {"token": text})
    assert answer.status == 200, answer.body
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


async def test_of_a_token_that_is_accepted_all_that_it_allows_is_told(client: AsgiDriver) -> None:
    given = claims("a/b", subscribe=["kb:*"], publish=["x"], users=["acme-*"], jti="one")
    text = signed(given)
    found = await explained(client, f" {text}\n")
    moments = [found.pop(name) for name in ("issued_at", "expires_at")]
    assert all(moment.endswith("Z") for moment in moments)
    assert found == {
        "accepted": True,
        "reason": None,
        "revoked": False,
        "subject": "a/b",
        "subscribe": ["broadcast", "user:a%2Fb", "kb:*"],
        "publish": ["x"],
        "users": ["a%2Fb", "acme-*"],
        "admin": False,
        "jti": "one",
        "said": {"header": {"alg": "HS256", "typ": "JWT"}, "claims": given},
    }


async def test_half_of_a_surrogate_pair_in_a_token_is_told_as_what_can_be_sent(
    client: AsgiDriver,
) -> None:
    found = await explained(client, signed(claims("bob") | {"x\ud800": ["\udc00"]}, kid="\ud83d"))
    assert found["said"]["header"]["kid"] == "?"
    assert found["said"]["claims"]["x?"] == ["?"]


REFUSED = [
    (token("bob", lifetime=-60), "the token has expired"),
    (token("bob", OTHER_SECRET), "signature is wrong"),
    (token("bob", aud="others"), "the token is for others"),
    (token("bob", subscribe="*"), "claims are wrong"),
    (unsigned(claims("bob")), 'algorithm is "none"'),
    ("x", "no signed JSON Web Token"),
    ("é.x", "is no signed JSON Web Token"),
    ("ticket_abc", "it is a ticket, not a token"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
async def test_of_one_that_is_refused_the_reason_is_told_and_what_it_says(
    client: AsgiDriver, text: str, reason: str
) -> None:
    found = await explained(client, text)
    assert found["accepted"] is found["revoked"] is found["admin"] is False
    assert reason in found["reason"]
    assert (found["said"] is None) is (text.count(".") != 2)
    if found["said"]:
        assert found["said"]["claims"]["sub"] == "bob"


async def test_of_one_that_was_revoked_that_is_told_with_what_it_allowed(
    client: AsgiDriver,
) -> None:
    text = token("bob", publish=["x"])
    await client.request("POST", "/api/v1/revocations", b'{"subject":"bob"}', ROOT)
    found = await explained(client, text)
    assert (found["accepted"], found["revoked"], found["publish"]) == (False, True, ["x"])
    assert "revoked" in found["reason"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x", 400),
        (b"[]", 422),
        ({}, 422),
        ({"token": ""}, 422),
        ({"token": "  "}, 422),
        ({"token": 7}, 422),
        ({"token": ["hush-hush"]}, 422),
        ({"token": "hush-hush", "more": "hush-hush"}, 422),
        ({"token": "x" * 70_000}, 413),
    ],
)
async def test_a_body_that_has_no_token_is_refused_and_nothing_of_it_is_told(
    client: AsgiDriver, body: object, status: int
) -> None:
    answer = await ask(client, body)
    assert answer.status == status
    assert b"hush-hush" not in answer.body


async def test_only_an_admin_may_ask(client: AsgiDriver) -> None:
    assert (await ask(client, {"token": "x"}, {})).status == 401
    assert (await ask(client, {"token": "x"}, bearer(token("bob", publish=["*"])))).status == 403


async def test_no_log_line_has_the_token(
    client: AsgiDriver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for text in (token("bob"), token("bob", OTHER_SECRET), "hush-hush"):
        await explained(client, text)
        assert text not in caplog.text


@pytest.mark.parametrize("settings", [Settings(), Settings(enable_auth=False)])
async def test_where_nobody_is_asked_for_a_token_whoever_asks_may_do_everything(
    settings: Settings,
) -> None:
    app = create_app(settings)
    async with lifespan(app):
        found = await explained(AsgiDriver(app), token("bob"))
    assert (found["accepted"], found["admin"], found["publish"]) == (True, True, ["*"])
    assert found["said"]["claims"]["sub"] == "bob"
