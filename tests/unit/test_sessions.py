"""Sessions of operators: how long they are good, and what they are made from."""

from typing import Any

import pytest
from joserfc.jwk import OctKey

from msgpush.adapters.auth.keys import Keys, secret_key
from msgpush.adapters.auth.sessions import (
    COOKIE,
    LIFETIME,
    CookieJar,
    Sealed,
    Sessions,
    derived_key,
)
from msgpush.adapters.auth.tokens import MsgpushClaim, Tokens, read_claim
from msgpush.domain.errors import Unauthorized
from tests.support.fakes import FakeClock
from tests.support.tokens import OTHER_SECRET, SECRET, signed

URL = "https://push.example.com"
ISSUER = "https://id.example.com"


def sessions(clock: FakeClock, secret: str = SECRET, **changes: Any) -> Sessions:
    given: dict[str, Any] = {
        "issuer": ISSUER,
        "origin": URL,
        "claim": "groups=ops",
        "given": MsgpushClaim(),
        **changes,
    }
    return Sessions(secret, clock=clock.now, **given)


def value(set_cookie: str) -> str:
    return set_cookie.partition("=")[2].partition(";")[0]


def test_a_session_is_good_for_eight_hours() -> None:
    clock = FakeClock()
    ours = sessions(clock)
    began = clock.now()
    grant, cookie = ours.open("ada")
    assert cookie.endswith("; Path=/; Max-Age=28800; HttpOnly; SameSite=Lax; Secure")
    assert (grant.subject, grant.issued_at, grant.expires) == ("oidc:ada", began, began + 8 * 3600)
    assert (grant.admin, grant.user, grant.channels) == (True, None, frozenset())
    assert ours.read(value(cookie)) == grant
    clock.advance(LIFETIME - 1)
    assert ours.read(value(cookie)) == grant
    clock.advance(1)
    with pytest.raises(Unauthorized, match="sign in again"):
        ours.read(value(cookie))


def test_each_session_has_a_name_of_its_own() -> None:
    ours = sessions(FakeClock())
    assert ours.open("ada")[0].id != ours.open("ada")[0].id


def test_a_session_gives_what_is_granted_now_not_what_was_when_it_began() -> None:
    clock = FakeClock()
    given = read_claim('{"subscribe":["a*"],"publish":["b"],"users":["u"],"admin":false}')
    text = value(sessions(clock).open("ada")[1])
    grant = sessions(clock, given=given).read(text)
    assert (tuple(grant.subscribe), tuple(grant.publish), tuple(grant.users)) == (
        ("a*",),
        ("b",),
        ("u",),
    )
    assert grant.admin


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": OTHER_SECRET},
        {"issuer": "https://other.example.com"},
        {"origin": "https://other.example.com"},
        {"claim": "groups=security"},
    ],
)
def test_a_session_of_another_secret_provider_service_or_claim_is_none(
    changes: dict[str, Any],
) -> None:
    clock = FakeClock()
    text = value(sessions(clock).open("ada")[1])
    with pytest.raises(Unauthorized):
        sessions(clock, **changes).read(text)


def test_only_what_was_signed_as_a_session_is_one() -> None:
    clock = FakeClock()
    now = clock.now()
    who = {"iss": ISSUER, "aud": URL, "claim": "groups=ops", "sub": "x"}
    claims = {**who, "iat": now, "exp": now + 60, "jti": "x"}
    key = derived_key(SECRET, "session")
    assert isinstance(key, OctKey)
    ours = sessions(clock)
    made = signed_by(key, claims, "msgpush-session")
    assert ours.read(made).subject == "oidc:x"
    wrong = [
        signed_by(key, claims, "JWT"),
        signed_by(key, claims | {"sub": 7}, "msgpush-session"),
        signed_by(key, [], "msgpush-session"),
        signed_by(derived_key(SECRET, "sign-in"), claims, "msgpush-session"),
        signed(claims, SECRET, typ="msgpush-session"),
        made[:-1],
        f"{made}.x",
        "é",
        "\ud800",
        "",
    ]
    for text in wrong:
        with pytest.raises(Unauthorized):
            ours.read(text)


def signed_by(key: OctKey, claims: object, kind: str) -> str:
    from joserfc import jws
    from msgspec import json

    return jws.serialize_compact({"alg": "HS256", "typ": kind}, json.encode(claims), key)


async def test_a_session_is_no_token_even_where_both_are_made_from_one_secret() -> None:
    text = value(sessions(FakeClock()).open("ada")[1])
    with pytest.raises(Unauthorized, match="signature is wrong"):
        await Tokens(Keys([secret_key(SECRET)])).read(text)


@pytest.mark.parametrize(
    ("origin", "name", "secure"),
    [(URL, "__Host-msgpush_admin", True), ("http://127.0.0.1:8089", "msgpush_admin", False)],
)
def test_on_loopback_a_cookie_has_neither_the_prefix_nor_secure(
    origin: str, name: str, secure: bool
) -> None:
    jar = CookieJar(origin)
    text = jar.keep(COOKIE, "x", 10.9)
    assert text == f"{name}=x; Path=/; Max-Age=10; HttpOnly; SameSite=Lax" + "; Secure" * secure
    assert jar.drop(COOKIE).startswith(f"{name}=; Path=/; Max-Age=0;")


def test_what_was_sealed_is_read_by_the_same_service_in_time_alone() -> None:
    clock = FakeClock()
    sealed = Sealed(SECRET, "sign-in", 600, clock.now)
    text = sealed.seal({"code_verifier": "hush"})
    assert "hush" not in text
    assert sealed.open(text) == {"code_verifier": "hush"}
    others = [Sealed(OTHER_SECRET, "sign-in", 600, clock.now), Sealed(SECRET, "x", 600, clock.now)]
    assert [other.open(text) for other in others] == [None, None]
    head, *rest = text.split(".")
    for changed in ("", "x", text[:-3] + "AAA", ".".join([head, *reversed(rest)]), "é", "\ud800"):
        assert sealed.open(changed) is None
    clock.advance(600)
    assert sealed.open(text) is None
