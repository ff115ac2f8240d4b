"""Signing in at an OpenID Connect provider: each way in which it mustn't succeed, and the one in
which it does.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp

from msgpush.adapters.auth.admission import HOME, has_claim, safe_next, where_to
from msgpush.adapters.memory.limiter import MemoryLimiter
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import Answer, AsgiDriver
from tests.support.client import Response, request
from tests.support.fakes import FakeClock
from tests.support.openid import CLIENT, SECRET, OpenIdProvider
from tests.support.tokens import (
    ED25519,
    OTHER_RSA,
    P256,
    RSA,
    b64,
    bearer,
    public_pem,
    token,
    unsigned,
)
from tests.support.tokens import SECRET as KEY

URL = "https://push.example.com"
OWN = {"Origin": URL, "Sec-Fetch-Site": "same-origin"}
COOKIE = "__Host-msgpush_admin"


@pytest.fixture
def provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider() as provider:
        provider.callback = f"{URL}/admin/callback"
        yield provider


def settings(provider: OpenIdProvider, **more: Any) -> Settings:
    return Settings(
        **{
            "jwt_secret": KEY,
            "oidc_issuer": provider.issuer,
            "oidc_client_id": CLIENT,
            "oidc_client_secret": SECRET,
            "oidc_admin_claim": "groups=ops",
            "oidc_grant": '{"subscribe":["*"],"publish":["service:ops"]}',
            "public_url": URL,
            **more,
        }
    )


class Person:
    """A browser: it keeps cookies, and goes where it is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.client = AsgiDriver(app)
        self.cookies: dict[str, str] = {}

    async def ask(
        self, target: str, headers: dict[str, str] | None = None, method: str = "GET"
    ) -> Answer:
        kept = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = {**({"Cookie": kept} if kept else {}), **(headers or {})}
        answer = await self.client.request(method, target, b"", sent)
        for line in answer.headers.get("set-cookie", "").splitlines():
            name, _, rest = line.partition("=")
            value, *attributes = rest.split("; ")
            assert {"Path=/", "HttpOnly", "SameSite=Lax", "Secure"} <= {*attributes}
            assert not any(each.startswith("Domain") for each in attributes)
            assert name.startswith("__Host-")
            assert len(line) < 4096, "browsers drop what is longer"
            if "Max-Age=0" in attributes:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        return answer

    async def begin(self, next: str | None = None) -> str:
        """Ask to sign in; the URL at the provider."""
        query = "" if next is None else f"?next={quote(next, safe='')}"
        answer = await self.ask(f"/admin/sign-in{query}")
        assert answer.status == 302, answer.body
        assert answer.headers["cache-control"] == "no-store"
        return str(answer.headers["location"])

    async def sign_in(self, next: str | None = None) -> Answer:
        """Sign in; the last answer."""
        return await self.ask(at_provider(await self.begin(next)))

    async def session(self, headers: dict[str, str] | None = None) -> dict[str, Any]:
        answer = await self.ask("/admin/session", OWN if headers is None else headers)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found


def at_provider(url: str) -> str:
    """Where the provider sends a browser back to, as a target at the service."""
    parts = urlsplit(url)
    answer: Response = request(parts.port or 0, "GET", f"{parts.path}?{parts.query}")
    assert answer.status == 302, answer.body
    back = urlsplit(answer.headers["location"])
    return f"{back.path}?{back.query}"


@pytest.fixture
async def person(provider: OpenIdProvider) -> AsyncIterator[Person]:
    app = create_app(settings(provider))
    async with lifespan(app):
        yield Person(app)


def check_page(answer: Answer, status: int, *texts: str) -> None:
    """The answer is a page that says so, without a script and without what isn't ours."""
    page = answer.body.decode()
    assert answer.status == status, page
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["cache-control"] == "no-store"
    assert "<script" not in page
    assert '<a href="./">' in page
    for text in texts:
        assert text in page, page


async def test_whoever_has_the_claim_is_signed_in_and_has_what_is_granted(
    provider: OpenIdProvider, person: Person
) -> None:
    assert await person.session() == {
        "subject": None,
        "admin": False,
        "subscribe": [],
        "publish": [],
        "users": [],
        "expires_at": None,
        "mode": None,
        "oidc": True,
    }
    answer = await person.sign_in()
    assert answer.status == 303
    assert answer.headers["location"] == f"{URL}/admin/"
    assert provider.faults == []
    assert [*person.cookies] == [COOKIE], "what was kept meanwhile is gone"
    found = await person.session()
    assert found.pop("expires_at").endswith("Z")
    assert found == {
        "subject": "oidc:ada",
        "admin": True,
        "subscribe": ["*"],
        "publish": ["service:ops"],
        "users": [],
        "mode": "oidc",
        "oidc": True,
    }
    assert (await person.ask("/api/v1/connections", OWN)).status == 200
    asked = provider.asked[0]
    assert (asked["code_challenge_method"], asked["scope"]) == ("S256", "openid")
    assert len(asked["state"]) > 20
    assert len(asked["nonce"]) > 15


async def test_a_session_has_no_channel_of_its_own_and_acts_for_nobody(
    provider: OpenIdProvider,
) -> None:
    app = create_app(settings(provider, oidc_grant="{}"))
    async with lifespan(app):
        person = Person(app)
        await person.sign_in()
        assert (await person.session())["subscribe"] == []
        for target in ("/sse/user/oidc:ada", "/sse/stream/a", "/api/v1/users/oidc:ada/pending"):
            assert (await person.ask(target, OWN)).status == 403, target


@pytest.mark.parametrize(
    ("headers", "counts"),
    [
        (OWN, True),
        ({"Origin": URL}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "https://app.example.com", "Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Origin": URL, "Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://push.example.com"}, False),
        ({"Origin": f"{URL}:8443"}, False),
        ({"Origin": f"{URL}.evil.example"}, False),
        ({"Origin": URL.upper()}, False),
        # The proxy's word for the Host is nothing that counts here.
        ({"Origin": "https://other.example", "Host": "other.example"}, False),
    ],
)
async def test_a_session_counts_for_pages_of_its_own_origin_alone(
    provider: OpenIdProvider, headers: dict[str, str], counts: bool
) -> None:
    app = create_app(settings(provider, cors_origins=("https://app.example.com",)))
    async with lifespan(app):
        person = Person(app)
        await person.sign_in()
        asked = [
            ("GET", "/api/v1/connections"),
            ("GET", "/api/v1/settings"),
            ("HEAD", "/sse/stream/demo"),
            ("DELETE", "/api/v1/connections/none"),
            ("POST", "/api/v1/messages/send"),
            ("POST", "/api/v1/revocations"),
            ("POST", "/api/v1/tickets"),
        ]
        for method, target in asked:
            status = (await person.ask(target, headers, method)).status
            assert (status != 401) is counts, (method, target, status)
        assert (await person.session(headers))["mode"] == ("oidc" if counts else None)
        kept = {"Cookie": f"{COOKIE}={person.cookies[COOKIE]}", **headers}
        async with person.client.socket("/ws?channel=demo", kept) as socket:
            if socket.denial is not None:
                assert not counts
                assert socket.denial.status == 403
            elif counts:
                assert (await socket.first())["event"] == "msgpush.open"
            else:
                assert await socket.closed() == 4401
        signed_out = await person.ask("/admin/sign-out", headers, "POST")
        assert signed_out.status == (303 if counts else 403)
        assert (COOKIE in person.cookies) is not counts


@pytest.mark.parametrize("blank", ["\xa0", "\x85", "\x1c", "\x0b", "\xa0 "])
async def test_a_cookie_whose_name_has_the_prefix_after_a_blank_of_another_kind_is_another_one(
    provider: OpenIdProvider, person: Person, blank: str
) -> None:
    # A sister domain may set those for all hosts below its parent's: browsers take only spaces and
    # tabs off before they look for the prefix.
    mallory = Person(person.client.app)
    target = at_provider(await mallory.begin())
    ((name, value),) = mallory.cookies.items()
    victim = {"Cookie": f"{blank}{name}={value}"}
    check_page(await person.ask(target, victim), 400, NOT_BEGUN)
    await mallory.sign_in()
    for tossed in (f"{blank}{COOKIE}", f"{COOKIE}{blank}"):
        given = {"Cookie": f"{tossed}={mallory.cookies[COOKIE]}", **OWN}
        assert (await person.session(given))["mode"] is None


async def test_a_token_in_the_request_wins_over_the_session(person: Person) -> None:
    await person.sign_in()
    found = await person.session({**OWN, **bearer(token("bob"))})
    assert (found["subject"], found["mode"], found["subscribe"]) == ("bob", "token", ["user:bob"])
    assert (await person.ask("/api/v1/connections", {**OWN, **bearer(token("bob"))})).status == 403
    refused = await person.ask("/admin/session", {**OWN, **bearer("x")})
    assert refused.status == 401


async def test_of_an_apps_cookie_and_a_session_the_session_counts_on_its_own_pages_alone(
    provider: OpenIdProvider,
) -> None:
    app = create_app(settings(provider, cors_origins=("https://app.example.com",)))
    async with lifespan(app):
        person = Person(app)
        await person.sign_in()
        person.cookies["msgpush_token"] = token("bob")
        assert (await person.session())["subject"] == "oidc:ada"
        foreign = {"Origin": "https://app.example.com", "Sec-Fetch-Site": "same-site"}
        assert (await person.session(foreign))["subject"] == "bob"


async def test_a_session_is_no_token_and_a_token_no_session(person: Person) -> None:
    await person.sign_in()
    text = person.cookies[COOKIE]
    assert (
        await person.client.request("GET", "/api/v1/connections", b"", bearer(text))
    ).status == 401
    stream = await person.client.request("HEAD", f"/sse/stream/a?token={text}")
    assert stream.status == 401
    in_tokens_cookie = {"Cookie": f"msgpush_token={text}", **OWN}
    assert (
        await person.client.request("GET", "/api/v1/connections", b"", in_tokens_cookie)
    ).status == 401
    for other in (token("root", admin=True), f"{text}x", text[:-1], "x", unsigned({"sub": "ada"})):
        person.cookies[COOKIE] = other
        assert (await person.ask("/api/v1/connections", OWN)).status == 401
        assert (await person.session())["mode"] is None


@pytest.mark.parametrize(
    ("user", "passes"),
    [
        ({"sub": "ada", "groups": "ops"}, True),
        ({"sub": "ada", "groups": "staff ops"}, False),
        ({"sub": "ada", "groups": ["ops"]}, True),
        ({"sub": "ada", "groups": ["staff"]}, False),
        ({"sub": "ada", "groups": "opsx"}, False),
        ({"sub": "ada", "groups": ["ops x"]}, False),
        ({"sub": "ada", "groups": {"ops": True}}, False),
        ({"sub": "ada"}, False),
        ({"sub": "ada", "groups": None}, False),
    ],
)
async def test_without_the_claim_nobody_is_signed_in_and_the_page_says_which_one(
    provider: OpenIdProvider, person: Person, user: dict[str, Any], passes: bool
) -> None:
    provider.user = user
    answer = await person.sign_in()
    if passes:
        assert answer.status == 303
        return
    check_page(answer, 403, "claim groups must have the value ops (OIDC_ADMIN_CLAIM)")
    assert person.cookies == {}


async def test_whoever_is_no_operator_does_not_go_on_as_somebody_who_was_one(
    provider: OpenIdProvider, person: Person
) -> None:
    await person.sign_in()
    provider.user = {"sub": "bob", "groups": ["staff"]}
    check_page(await person.sign_in(), 403)
    assert (await person.session())["mode"] is None
    assert person.cookies == {}


# What the provider answers


def by_hand(header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A token with a header that no library makes, and a right signature."""
    text = ".".join(
        b64(json.dumps(part)) for part in ({"alg": "RS256", "kid": "one", **header}, claims)
    )
    assert RSA.private_key is not None
    return f"{text}.{b64(RSA.private_key.sign(text.encode(), PKCS1v15(), SHA256()))}"


WRONG: dict[str, dict[str, Any]] = {
    "another nonce": {"changes": {"nonce": "x"}},
    "no nonce": {"changes": {"nonce": None}},
    "another issuer": {"changes": {"iss": "https://evil.example"}},
    "no issuer": {"changes": {"iss": None}},
    "another audience": {"changes": {"aud": "other"}},
    "several audiences, and no azp": {"changes": {"aud": [CLIENT, "other"]}},
    "another azp": {"changes": {"azp": "other"}},
    "no audience": {"changes": {"aud": None}},
    "expired": {"changes": {"exp": 1}},
    "no end": {"changes": {"exp": None}},
    "an end that is no number": {"changes": {"exp": "never"}},
    "made in the future": {"changes": {"iat": 4_000_000_000}},
    "not valid yet": {"changes": {"nbf": 4_000_000_000}},
    "no subject": {"changes": {"sub": None}},
    "an empty subject": {"changes": {"sub": ""}},
    "a subject that is no text": {"changes": {"sub": 7}},
    "another access token": {"changes": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}},
    "another key": {"key": OTHER_RSA},
    "an unknown key": {"header": {"kid": "two"}, "key": OTHER_RSA},
    "the client's secret as a key": {"key": SECRET, "header": {"alg": "HS256"}},
    "the public key as a secret": {"key": public_pem(RSA), "header": {"alg": "HS256"}},
    "our own secret": {"key": KEY, "header": {"alg": "HS256"}},
    "no signature": {"raw": unsigned},
    "no signature, in other letters": {"raw": lambda claims: unsigned(claims, "NONE")},
    "an extension": {"raw": lambda claims: by_hand({"crit": ["x"], "x": 1}, claims)},
    "no token": {"raw": lambda _: "x"},
    "a token that is no text": {"tokens": (200, b'{"access_token":"x","id_token":7}')},
    "no ID token": {"tokens": (200, b'{"access_token":"x"}')},
    "no JSON": {"tokens": (200, b"<html>")},
    "no object": {"tokens": (200, b"[1]")},
    "deep JSON": {"tokens": (200, b"[" * 100_000)},
    "nothing": {"tokens": (200, b"")},
    "more than anybody reads": {"padding": 1_100_000},
    "what grows when it is unpacked": {"padding": 1_100_000, "packed": True},
}


@pytest.mark.parametrize("case", WRONG)
async def test_an_answer_that_is_wrong_signs_nobody_in(
    provider: OpenIdProvider, person: Person, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in WRONG[case].items():
        setattr(provider, name, value)
    answer = await person.sign_in()
    check_page(answer, 502, "The sign-in provider")
    assert person.cookies == {}
    assert (await person.session())["mode"] is None
    assert any("nobody was signed in" in line for line in caplog.messages)


async def test_keys_of_a_provider_that_has_changed_them_are_found(
    provider: OpenIdProvider, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgpush.adapters.auth.keys.MIN_INTERVAL", 0.0)
    assert (await person.sign_in()).status == 303
    provider.keys, provider.key, provider.header = [(P256, "three")], P256, {"kid": "three"}
    assert (await person.sign_in()).status == 303


@pytest.mark.parametrize("alg", ["EdDSA", "Ed25519"])
async def test_a_key_on_ed25519_goes_by_two_names_and_one_hash(
    provider: OpenIdProvider, alg: str
) -> None:
    # Before the service fetches the keys: it does so as it starts, and not again for some seconds.
    provider.keys, provider.key = [(ED25519, "four")], ED25519
    provider.header = {"kid": "four", "alg": alg}
    half = b64(hashlib.sha512(b"an access token").digest()[:32])
    async with lifespan(app := create_app(settings(provider))):
        person = Person(app)
        provider.changes = {"at_hash": half}
        assert (await person.sign_in()).status == 303
        provider.changes = {"at_hash": half[::-1]}
        check_page(await person.sign_in(), 502)


async def test_a_client_that_is_public_or_sends_its_secret_in_the_body_is_one_too(
    provider: OpenIdProvider,
) -> None:
    provider.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    for secret in (SECRET, None):
        provider.public = secret is None
        app = create_app(settings(provider, oidc_client_secret=secret))
        async with lifespan(app):
            assert (await Person(app).sign_in()).status == 303


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        ("access_denied", 403, "The sign-in was refused, or given up."),
        ("login_required", 502, "The sign-in provider has refused (login_required)."),
        ("<b>bold</b>", 502, "The sign-in provider has refused (?)."),
        ("server\r\nerror", 502, "has refused (?)"),
    ],
)
async def test_what_the_provider_says_instead_is_told_and_nothing_of_its_text(
    provider: OpenIdProvider, person: Person, error: str, status: int, text: str
) -> None:
    provider.error = error
    answer = await person.sign_in()
    check_page(answer, status, text)
    assert b"alert" not in answer.body
    assert person.cookies == {}


async def test_a_code_that_the_provider_does_not_take_signs_nobody_in(
    provider: OpenIdProvider, person: Person
) -> None:
    target = at_provider(await person.begin())
    check_page(await person.ask(re.sub("code=[^&]+", "code=x", target)), 502, "(invalid_grant)")
    provider.tokens = (500, b"")
    check_page(await person.sign_in(), 503, "can&#x27;t be reached now")
    provider.tokens = (429, b"slow down")
    check_page(await person.sign_in(), 503)


async def test_an_answer_of_another_provider_is_refused(
    provider: OpenIdProvider, person: Person
) -> None:
    provider.back = {"iss": "https://evil.example"}
    check_page(await person.sign_in(), 400, "Another provider has answered")
    assert provider.seen == [], "its code went to nobody"
    provider.back = {"iss": provider.issuer}
    assert (await person.sign_in()).status == 303


async def test_a_provider_that_says_that_it_names_itself_has_to(provider: OpenIdProvider) -> None:
    provider.metadata = {"authorization_response_iss_parameter_supported": True}
    app = create_app(settings(provider))
    async with lifespan(app):
        check_page(await Person(app).sign_in(), 400, "Another provider has answered")


# State


NOT_BEGUN = "This sign-in wasn&#x27;t begun in this browser, was used before, or took too long."


async def test_a_sign_in_that_another_browser_has_begun_is_refused(
    provider: OpenIdProvider, person: Person
) -> None:
    target = at_provider(await person.begin())
    other = Person(person.client.app)
    check_page(await other.ask(target), 400, NOT_BEGUN)
    await other.begin()
    check_page(await other.ask(target), 400, NOT_BEGUN)
    assert provider.seen == []
    assert (await person.ask(target)).status == 303


async def test_a_sign_in_that_one_instance_has_begun_another_completes(
    provider: OpenIdProvider,
) -> None:
    one, other = create_app(settings(provider)), create_app(settings(provider))
    async with lifespan(one), lifespan(other):
        person = Person(one)
        target = at_provider(await person.begin())
        person.client = AsgiDriver(other)
        assert (await person.ask(target)).status == 303
        person.client = AsgiDriver(one)
        assert (await person.session())["subject"] == "oidc:ada"


async def test_a_sign_in_is_good_once(provider: OpenIdProvider, person: Person) -> None:
    target = at_provider(await person.begin())
    assert (await person.ask(target)).status == 303
    check_page(await person.ask(target), 400, NOT_BEGUN)
    assert len(provider.seen) == 1


@pytest.mark.parametrize("state", ["", "x", "é", "x" * 3000, "%00", "%0d%0a"])
async def test_a_wrong_state_is_refused(
    provider: OpenIdProvider, person: Person, state: str
) -> None:
    target = at_provider(await person.begin())
    wrong = re.sub("state=[^&]+", f"state={quote(state, safe='%')}", target)
    check_page(await person.ask(wrong), 400, NOT_BEGUN)
    check_page(await person.ask("/admin/callback"), 400, NOT_BEGUN)
    check_page(await person.ask("/admin/callback?error=access_denied"), 400, NOT_BEGUN)
    assert provider.seen == []


async def test_what_was_kept_for_one_sign_in_is_no_use_for_another(
    provider: OpenIdProvider, person: Person
) -> None:
    first = at_provider(await person.begin())
    (name,) = person.cookies
    kept = person.cookies.pop(name)
    await person.begin()
    (other,) = person.cookies
    # Under its name, but another's content; and its own, changed.
    for value in (person.cookies[other], kept[:-4] + "AAAA", "x", ""):
        person.cookies = {name: value}
        check_page(await person.ask(first), 400, NOT_BEGUN)
    person.cookies = {name: kept}
    assert (await person.ask(first)).status == 303


async def test_two_tabs_may_sign_in_at_a_time(provider: OpenIdProvider, person: Person) -> None:
    first, second = await person.begin("/admin/#one"), await person.begin("/admin/#two")
    assert (await person.ask(at_provider(second))).headers["location"] == f"{URL}/admin/#two"
    assert (await person.ask(at_provider(first))).headers["location"] == f"{URL}/admin/#one"


async def test_a_browser_that_begins_again_and_again_keeps_the_newest(
    provider: OpenIdProvider, person: Person
) -> None:
    urls = [await person.begin() for _ in range(12)]
    assert len(person.cookies) == 5
    assert (await person.ask(at_provider(urls[-1]))).status == 303
    check_page(await person.ask(at_provider(urls[0])), 400, NOT_BEGUN)


async def test_who_comes_back_too_soon_may_come_back_again(
    provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    limiter = partial(MemoryLimiter, clock=clock.now)
    monkeypatch.setattr("msgpush.entrypoints.access.MemoryLimiter", limiter)
    app = create_app(settings(provider))
    async with lifespan(app):
        person = Person(app)
        target = at_provider(await person.begin())
        while (await Person(app).ask("/admin/sign-in")).status != 429:
            pass
        check_page(await person.ask(target), 429, "try again in 1 seconds")
        clock.advance(1)
        assert (await person.ask(target)).status == 303


async def test_who_tries_too_often_has_to_wait(person: Person) -> None:
    statuses = [(await person.ask("/admin/sign-in")).status for _ in range(70)]
    assert statuses[:60] == [302] * 60
    assert statuses[-1] == 429
    check_page(await person.ask("/admin/callback?state=x"), 429, "Too many tries")


async def test_a_sign_in_that_begins_does_not_hold_up_the_others(person: Person) -> None:
    await person.ask("/admin/sign-in")
    began = time.process_time()
    for _ in range(20):
        await person.ask("/admin/sign-in")
    # Certificates that are read for each took a hundred times as long.
    assert time.process_time() - began < 20 * 0.01


# A provider that can't be used


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ({"issuer": "https://evil.example"}, 503),
        ({"issuer": None}, 503),
        ({"jwks_uri": "http://evil.example/keys"}, 503),
        ({"authorization_endpoint": "http://evil.example/authorize"}, 502),
        ({"authorization_endpoint": "javascript:alert(1)"}, 502),
        ({"authorization_endpoint": None}, 502),
        ({"token_endpoint": "ftp://127.0.0.1/"}, 502),
        ({"token_endpoint": 7}, 502),
    ],
)
async def test_metadata_that_is_wrong_is_not_used(
    provider: OpenIdProvider, metadata: dict[str, Any], status: int
) -> None:
    provider.metadata = metadata
    app = create_app(settings(provider))
    async with lifespan(app):
        check_page(await Person(app).ask("/admin/sign-in"), status)


async def test_metadata_sets_nothing_of_the_http_client(provider: OpenIdProvider) -> None:
    provider.metadata = {
        "verify": False,
        "proxy": "http://127.0.0.1:1",
        "client_id": "x",
        "timeout": 0,
        "follow_redirects": True,
    }
    app = create_app(settings(provider))
    async with lifespan(app):
        assert (await Person(app).sign_in()).status == 303


async def test_a_provider_that_is_away_stops_no_start_and_is_found_once_it_is_there(
    provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgpush.adapters.auth.keys.MIN_INTERVAL", 0.0)
    provider.away = True
    app = create_app(settings(provider))
    async with lifespan(app):
        person = Person(app)
        check_page(await person.ask("/admin/sign-in"), 503, "can&#x27;t be reached now")
        assert (await person.session())["oidc"] is True
        assert (await person.client.request("GET", "/health/ready")).status == 200
        provider.away = False
        assert (await person.sign_in()).status == 303


async def test_a_provider_that_is_slow_is_waited_for_so_long_and_no_longer(
    provider: OpenIdProvider, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgpush.adapters.auth.oidc.EXCHANGE_SECONDS", 0.2)
    provider.delay = 1.0
    check_page(await person.sign_in(), 503, "can&#x27;t be reached now")


# Signing out


async def test_signing_out_ends_the_session_everywhere_and_is_no_get(person: Person) -> None:
    await person.sign_in()
    kept = person.cookies[COOKIE]
    answer = await person.ask("/admin/sign-out", OWN)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    async with person.client.stream(
        "/sse/stream/demo", {"Cookie": f"{COOKIE}={kept}", **OWN}
    ) as stream:
        await stream.read_until(b"msgpush.open")
        answer = await person.ask("/admin/sign-out", OWN, "POST")
        assert (answer.status, answer.headers["location"]) == (303, f"{URL}/admin/")
        assert b'"reason":"revoked"' in await stream.closed()
    assert person.cookies == {}
    person.cookies[COOKIE] = kept
    assert (await person.ask("/api/v1/connections", OWN)).status == 401
    assert (await person.ask("/admin/sign-out", OWN, "POST")).status == 303, "once more"


async def test_a_revocation_of_the_subject_ends_its_sessions_and_their_streams(
    person: Person,
) -> None:
    await person.sign_in()
    kept = {"Cookie": f"{COOKIE}={person.cookies[COOKIE]}", **OWN}
    async with person.client.stream("/sse/stream/demo", kept) as stream:
        await stream.read_until(b"msgpush.open")
        revoked = await person.client.request(
            "POST",
            "/api/v1/revocations",
            b'{"subject":"oidc:ada"}',
            bearer(token("root", admin=True)),
        )
        assert revoked.status == 201
        assert b'"reason":"revoked"' in await stream.closed()
    answer = await person.ask("/api/v1/connections", OWN)
    assert (answer.status, "revoked" in answer.json()["detail"]) == (401, True)
    assert (await person.session())["mode"] is None
    await person.sign_in()
    assert (await person.session())["subject"] == "oidc:ada", "who may sign in may do so again"


async def test_a_session_ends_with_its_streams_before_its_revocation_would_be_forgotten(
    provider: OpenIdProvider,
) -> None:
    app = create_app(settings(provider, max_token_lifetime=1, jwt_leeway=0))
    async with lifespan(app):
        person = Person(app)
        await person.sign_in()
        kept = {"Cookie": f"{COOKIE}={person.cookies[COOKIE]}", **OWN}
        async with person.client.stream("/sse/stream/demo", kept) as stream:
            await stream.read_until(b"msgpush.open")
            assert b'"reason":"expired"' in await stream.closed()
        answer = await person.ask("/api/v1/connections", OWN)
        assert (answer.status, "sign in again" in answer.json()["detail"]) == (401, True)


async def test_a_ticket_that_a_session_makes_ends_with_it(person: Person) -> None:
    await person.sign_in()
    kept = {"Cookie": f"{COOKIE}={person.cookies[COOKIE]}", **OWN}
    made = await person.client.request("POST", "/api/v1/tickets", b'{"channels":["demo"]}', kept)
    target = f"/sse/stream/demo?token={made.json()['ticket']}"
    async with person.client.stream(target) as stream:
        await stream.read_until(b"msgpush.open")
        await person.ask("/admin/sign-out", OWN, "POST")
        assert b'"reason":"revoked"' in await stream.closed()
    assert (await person.client.request("HEAD", target)).status == 401


# Without a provider


async def test_without_a_provider_nobody_signs_in_and_the_session_says_the_mode() -> None:
    for chosen, mode in (
        (Settings(), "local"),
        (Settings(enable_auth=False), "open"),
        (Settings(jwt_secret=KEY), None),
    ):
        app = create_app(chosen)
        async with lifespan(app):
            client = AsgiDriver(app)
            found = (await client.request("GET", "/admin/session")).json()
            assert (found["mode"], found["oidc"]) == (mode, False)
            assert found["admin"] is (mode is not None)
            for target in ("/admin/sign-in", "/admin/callback?code=x&state=y"):
                answer = await client.request("GET", target)
                check_page(answer, 404, "OIDC_ISSUER")
            assert (await client.request("POST", "/admin/sign-out")).status == 404


# Where to


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "evil",
        "",
        "javascript:alert(1)",
        "/%2Fevil.example",
        "/%5Cevil.example",
        "/%252Fevil.example",
        "/%25255Cevil.example",
        "/admin/%0d%0aSet-Cookie:x=y",
        "/admin/%250d",
        "/admin/\n",
        "/\t/evil.example",
        "/%09/evil.example",
        "/admin/\x7f",
        "/admin/\x85",
        " /admin/",
        "/" + "x" * 1500,
        "/" + "é" * 800,
    ],
)
async def test_nobody_is_sent_elsewhere(person: Person, path: str) -> None:
    assert safe_next(path) == HOME
    answer = await person.sign_in(path)
    assert answer.headers["location"] == f"{URL}/admin/"


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/admin/", "/admin/"),
        ("/admin/?view=channels#a=b", "/admin/?view=channels#a=b"),
        ("/admin/#/channels/kb%3A1", "/admin/#/channels/kb%3A1"),
        ("/admin/é", "/admin/%C3%A9"),
        ("/", "/"),
        ("/docs?a=//b", "/docs?a=//b"),
        ("/" + "é" * 740, "/" + "%C3%A9" * 740),
    ],
)
async def test_a_path_of_the_service_is_come_back_to(
    person: Person, path: str, location: str
) -> None:
    assert (await person.sign_in(path)).headers["location"] == URL + location


@given(st.text(alphabet=st.sampled_from("/\\%25cC0aAdDfF.:@ \t\r\nev"), max_size=30))
def test_whatever_is_asked_for_leads_to_a_path_of_the_service(text: str) -> None:
    found = safe_next(text)
    assert found in (text, HOME)
    for public in (URL, f"{URL}/push"):
        url = where_to(public, found)
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc) == ("https", "push.example.com")
        assert url.isascii()
        assert url.isprintable()
    decoded = found
    for _ in range(5):
        assert decoded.startswith("/")
        assert decoded[1:2] not in ("/", "\\")
        assert decoded.isprintable() or decoded == text
        decoded = unquote(decoded)


async def test_under_a_prefix_all_is_under_it(provider: OpenIdProvider) -> None:
    provider.callback = f"{URL}/push/admin/callback"
    app = create_app(settings(provider, public_url=f"{URL}/push", root_path="/push"))
    async with lifespan(app):
        for prefix in ("", "/push"):
            person = Person(app)
            for next, location in (
                ("/admin/#x", "/push/admin/#x"),
                ("/push/admin/#x", "/push/admin/#x"),
                ("/pushed", "/push/pushed"),
            ):
                answer = await person.ask(f"{prefix}/admin/sign-in?next={quote(next)}")
                target = at_provider(answer.headers["location"])
                target = target if prefix else target.removeprefix("/push")
                answer = await person.ask(target)
                assert answer.headers["location"] == f"{URL}{location}"
            assert (await person.session())["mode"] == "oidc"


@pytest.mark.parametrize(
    ("claims", "wanted", "has"),
    [
        ({"realm_access": {"roles": ["ops"]}}, "realm_access.roles=ops", True),
        ({"realm_access": {"roles": ["dev"]}}, "realm_access.roles=ops", False),
        ({"realm_access": "roles"}, "realm_access.roles=ops", False),
        ({"https://a.example/groups": ["ops"]}, "https://a.example/groups=ops", True),
        ({"admin": True}, "admin=true", True),
        ({"admin": False}, "admin=true", False),
        ({"groups": [["ops"]]}, "groups=ops", False),
        ({"groups": ["a=b"]}, "groups=a=b", True),
        ({"n": 7}, "n=7", False),
        ({"department": "Not Ops"}, "department=Ops", False),
        ({"department": "Not Ops"}, "department=Not Ops", True),
        ({"scope": "openid ops"}, "scope=ops", True),
        ({"scope": "openid oops"}, "scope=ops", False),
    ],
)
def test_a_claim_is_found_where_providers_put_it(
    claims: dict[str, Any], wanted: str, has: bool
) -> None:
    assert has_claim(claims, wanted) is has


# What is logged


async def test_no_log_line_has_a_code_a_token_or_what_is_kept(
    provider: OpenIdProvider, person: Person, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = await person.begin()
    target = at_provider(url)
    kept = [*person.cookies.values()]
    await person.ask(target)
    session = person.cookies[COOKIE]
    provider.changes = {"nonce": "x"}
    second = at_provider(await person.begin())
    await person.ask(second)
    await person.ask("/admin/sign-out", OWN, "POST")
    secret = [session, *kept, provider.seen[0]["code_verifier"], provider.asked[0]["nonce"]]
    for each in (target, second):
        given = parse_qs(urlsplit(each).query)
        secret += [given["code"][0], given["state"][0]]
    logged = json.dumps([record.getMessage() for record in caplog.records])
    assert "signed in: " in logged
    assert "nobody was signed in" in logged
    assert "signed out: " in logged
    assert not [each for each in secret if each in logged]
