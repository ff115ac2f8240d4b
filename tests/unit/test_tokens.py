"""Tokens: which are accepted, which are refused and why, and with which keys."""

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgpush.adapters.keys import MIN_INTERVAL, FetchedKeys, Keys, key_set, private_key, public_key, secret_key
from msgpush.adapters.tokens import Tokens
from msgpush.adapters.web import KeysUnavailable
from msgpush.domain.errors import MsgpushError, Unauthorized
from msgpush.domain.grant import Grant, Patterns
from tests.support.fakes import FakeClock
from tests.support.tokens import (
    ED25519,
    OTHER_RSA,
    OTHER_SECRET,
    P256,
    RSA,
    SECRET,
    AsymmetricKey,
    SigningKey,
    b64,
    claims,
    private_pem,
    public_jwk,
    public_pem,
    signed,
    token,
    unsigned,
)

ASYMMETRIC: list[AsymmetricKey] = [RSA, P256, ED25519]
DAY = 86_400


def by_secret(**settings: Any) -> Tokens:
    return Tokens(Keys([secret_key(SECRET)]), **settings)


def by_public_key(key: Any, **settings: Any) -> Tokens:
    return Tokens(Keys([public_key(public_pem(key))]), **settings)


async def refusal(tokens: Tokens, text: str) -> str:
    """Why a token is refused."""
    with pytest.raises(Unauthorized) as caught:
        await tokens.read(text)
    told = str(caught.value)
    assert text not in told or not text
    return told


# What is accepted


async def test_a_token_grants_what_its_claims_say() -> None:
    given = claims("bob", subscribe=["kb:*", "imports"], publish=["service:a", "user:*"], admin=True, jti="t1")
    assert await by_secret().read(signed(given)) == Grant(
        "bob",
        frozenset({"user:bob"}),
        Patterns("imports", "kb:*"),
        Patterns("service:a", "user:*"),
        True,
        given["exp"],
        given["iat"],
        "t1",
    )


async def test_a_token_without_permissions_may_listen_to_its_own_channel_alone() -> None:
    grant = await by_secret().read(token("bob"))
    assert (grant.channels, grant.subscribe, grant.publish, grant.admin) == (
        frozenset({"user:bob"}),
        Patterns(),
        Patterns(),
        False,
    )


@pytest.mark.parametrize("key", ASYMMETRIC, ids=["RS256", "ES256", "Ed25519"])
async def test_a_public_key_in_pem_verifies_what_its_private_key_has_signed(key: SigningKey) -> None:
    assert (await by_public_key(key).read(token("bob", key))).subject == "bob"


async def test_both_names_of_ed25519_are_accepted() -> None:
    for name in ("Ed25519", "EdDSA"):
        assert (await by_public_key(ED25519).read(signed(claims("bob"), ED25519, name))).subject == "bob"


async def test_a_secret_and_a_public_key_may_be_used_side_by_side() -> None:
    tokens = Tokens(Keys([secret_key(SECRET), public_key(public_pem(RSA))]))
    for key in (SECRET, RSA):
        assert (await tokens.read(token("bob", key))).subject == "bob"


async def test_a_token_is_read_again_without_its_signature_but_never_beyond_its_end() -> None:
    clock = FakeClock()
    tokens = by_secret(clock=clock.now, leeway=30)
    text = signed({"sub": "bob", "exp": clock.now() + 100})
    assert await tokens.read(text) is await tokens.read(text)
    clock.advance(129)
    await tokens.read(text)
    clock.advance(2)
    assert "has expired" in await refusal(tokens, text)


async def test_thousands_of_tokens_are_forgotten_again() -> None:
    tokens = by_secret()
    for number in range(5_000):
        await tokens.read(token(f"user{number}"))
    assert len(tokens._known) < 5_000


# What isn't, and why


REFUSED = [
    ("", "no signed JSON Web Token"),
    ("x", "no signed JSON Web Token"),
    ("a.b.c", "no signed JSON Web Token"),
    ("é.é.é", "no signed JSON Web Token"),
    ("..", "no signed JSON Web Token"),
    ("{}.{}.{}", "no signed JSON Web Token"),
    (f"{b64('[]')}.{b64('{}')}.{b64('')}", "no signed JSON Web Token"),
    (f"{b64('{}')}.{b64('{}')}.{b64('')}", "no signed JSON Web Token"),
    (f"{b64('[' * 5_000)}.{b64('{}')}.{b64('')}", "no signed JSON Web Token"),
    (token("bob") + "x", "signature is wrong"),
    (token("bob")[:-4], "signature is wrong"),
    (token("bob").rpartition(".")[0] + ".", "signature is wrong"),
    (token("bob", OTHER_SECRET), "signature is wrong"),
    (unsigned(claims("bob")), "algorithm is 'none'; accepted are HS256"),
    (unsigned(claims("bob"), "None"), "algorithm is 'None'; accepted are HS256"),
    (unsigned(claims("bob"), "HS256"), "signature is wrong"),
    (signed(claims("bob"), SECRET, "HS384"), "algorithm is 'HS384'; accepted are HS256"),
    (signed(claims("bob"), SECRET, "HS512"), "algorithm is 'HS512'; accepted are HS256"),
    (token("bob", RSA), "algorithm is 'RS256'; accepted are HS256"),
    (signed(claims("bob"), crit=["exp"], exp=1), "extensions (crit)"),
    (signed(claims("bob"), crit=["b64"], b64=False), "extensions (crit)"),
    (signed(claims("bob"), crit=[]), "extensions (crit)"),
    (signed(claims("bob"), kid=["x"]), "no signed JSON Web Token"),
    (signed([]), "claims are wrong"),
    (signed(b"\xff"), "claims are wrong"),
    (signed(b'{"sub":"bob","exp":' + b"[" * 9_000), "claims are wrong"),
    (signed(b'{"sub":"bob","exp":1e999}'), "claims are wrong"),
    (signed({"exp": 1}), "claims are wrong: Object missing required field `sub`"),
    (signed({"sub": "bob"}), "claims are wrong: Object missing required field `exp`"),
    (signed(claims("bob") | {"sub": 7}), "claims are wrong: Expected `str`, got `int` - at `$.sub`"),
    (signed(claims("bob") | {"sub": None}), "claims are wrong"),
    (signed(claims("")), "sub is empty"),
    (signed(claims("bob") | {"exp": "1"}), "claims are wrong"),
    (signed(claims("bob") | {"exp": True}), "claims are wrong"),
    (signed(claims("bob") | {"exp": None}), "claims are wrong"),
    (signed(claims("bob") | {"exp": -1}), "no moment of the years 1970 to 9999"),
    (signed(claims("bob") | {"exp": 10**15}), "no moment of the years 1970 to 9999"),
    (token("bob", lifetime=-60), "has expired: its exp is 20"),
    (token("bob", nbf=9_999_999_999), "not valid yet (nbf)"),
    (token("bob", iat=9_999_999_999), "issued in the future (iat)"),
    (token("bob", lifetime=31 * DAY), "valid for longer than 2592000 seconds (MAX_TOKEN_LIFETIME)"),
    (signed({"sub": "bob", "exp": claims(lifetime=31 * DAY)["exp"]}), "valid for longer than"),
    (token("bob", iat=claims()["iat"] - 20 * DAY, lifetime=11 * DAY), "valid for longer than"),
    (token("bob", aud="msgpush"), "its aud is 'msgpush', and no JWT_AUDIENCE is set"),
    (token("bob", aud=[]), "its aud is"),
    (token("bob", aud=7), "claims are wrong"),
    (token("bob", jti=7), "claims are wrong"),
]


@pytest.mark.parametrize(("text", "why"), REFUSED, ids=[f"{n}: {why}" for n, (_, why) in enumerate(REFUSED)])
async def test_a_token_that_is_not_accepted_is_refused_with_the_reason(text: str, why: str) -> None:
    assert why in await refusal(by_secret(), text)


@pytest.mark.parametrize(
    "permissions",
    [
        None,
        [],
        "admin",
        {"admin": "true"},
        {"admin": 1},
        {"admin": None},
        {"subscribe": "kb:*"},
        {"subscribe": None},
        {"subscribe": [1]},
        {"subscribe": [""]},
        {"subscribe": ["a*b"]},
        {"subscribe": ["**"]},
        {"subscribe": ["a,b"]},
        {"subscribe": ["a b"]},
        {"publish": ["a/b"]},
        {"publish": ["a\n"]},
        {"publish": {"a": 1}},
        {"subscribes": ["a"]},
        {"Admin": True},
    ],
)
async def test_permissions_of_another_shape_are_refused_not_passed_over(permissions: object) -> None:
    assert "claims are wrong" in await refusal(by_secret(), signed(claims("bob") | {"msgpush": permissions}))


async def test_a_public_key_is_no_secret_of_hs256() -> None:
    # What an attacker has is the public key, in any of the forms that it is handed out.
    for key in ASYMMETRIC:
        for secret in (public_pem(key), public_pem(key).strip(), json.dumps(public_jwk(key))):
            assert "algorithm is 'HS256'" in await refusal(by_public_key(key), token("bob", secret))


@pytest.mark.parametrize(
    ("key", "algorithm", "other"),
    [(RSA, "RS384", None), (RSA, "PS256", None), (RSA, "RS256", OTHER_RSA), (P256, "ES256", None)],
)
async def test_a_key_verifies_by_its_own_algorithms_alone(key: Any, algorithm: str, other: Any) -> None:
    trusted = RSA if other is not None else (P256 if key is RSA else RSA)
    text = signed(claims("bob"), other or key, algorithm)
    assert await refusal(by_public_key(trusted), text)


async def test_an_audience_that_is_set_must_be_named() -> None:
    tokens = by_secret(audience="msgpush")
    for accepted in ("msgpush", ["msgpush"], ["other", "msgpush"]):
        assert (await tokens.read(token("bob", aud=accepted))).subject == "bob"
    for refused in ("other", "msgpush2", ["other"], []):
        assert "not this service's audience" in await refusal(tokens, token("bob", aud=refused))
    assert "its aud is None" in await refusal(tokens, token("bob"))


async def test_an_issuer_that_is_set_must_be_the_tokens() -> None:
    tokens = by_secret(issuer="https://id.example")
    assert (await tokens.read(token("bob", iss="https://id.example"))).subject == "bob"
    for refused in ({}, {"iss": "https://id.example/"}, {"iss": ["https://id.example"]}, {"iss": 7}):
        assert "not the issuer that is trusted here" in await refusal(tokens, token("bob", **refused))


async def test_clocks_may_differ_by_the_leeway_and_no_more() -> None:
    clock = FakeClock()
    tokens, now = by_secret(clock=clock.now, leeway=30), clock.now()
    for accepted in ({"exp": now - 29}, {"exp": now + 9, "nbf": now + 29}, {"exp": now + 9, "iat": now + 29}):
        assert (await tokens.read(signed({"sub": "bob", **accepted}))).subject == "bob"
    for refused in ({"exp": now - 31}, {"exp": now + 99, "nbf": now + 31}, {"exp": now + 99, "iat": now + 31}):
        assert await refusal(tokens, signed({"sub": "bob", **refused}))


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_no_text_does_more_than_to_be_refused(text: str) -> None:
    with pytest.raises(Unauthorized):
        asyncio.run(by_secret().read(text))


@given(st.integers(0, 10_000), st.characters(codec="utf-8"))
def test_a_token_that_was_changed_anywhere_is_refused(place: int, character: str) -> None:
    text = TOKEN
    place %= len(text)
    changed = text[:place] + character + text[place + 1 :]
    # The last characters of base64 have bits that mean nothing.
    if changed == text or place in {len(part) - 1 for part in PREFIXES}:
        return
    with pytest.raises(Unauthorized):
        asyncio.run(by_secret().read(changed))


TOKEN = token("bob", lifetime=20 * DAY)
PREFIXES = [TOKEN.split(".")[0], ".".join(TOKEN.split(".")[:2]), TOKEN]


# Keys


def test_what_stands_for_a_secret_must_be_one() -> None:
    for text in ("s" * 31, public_pem(RSA), private_pem(RSA)):
        with pytest.raises(ValueError, match="it is"):
            secret_key(text)


def test_a_private_key_signs_by_its_algorithm() -> None:
    assert [private_key(private_pem(key)).algorithm for key in ASYMMETRIC] == ["RS256", "ES256", "Ed25519"]
    for text in ("", "x", public_pem(RSA)):
        with pytest.raises(ValueError, match="no private RSA key"):
            private_key(text)


def text_of(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_of_a_key_set_only_keys_that_verify_tokens_are_taken() -> None:
    good = [public_jwk(RSA, "r"), public_jwk(P256, "e"), public_jwk(ED25519, "o", alg="EdDSA", use="sig")]
    secret = {"kty": "oct", "k": b64(SECRET), "kid": "s"}
    bad: list[object] = [
        secret,
        {},
        {"kty": "RSA"},
        {"kty": "RSA", "n": "x", "e": "AQAB"},
        {"kty": "RSA", "n": 7, "e": None},
        {"kty": ["RSA"]},
        {"kty": "AKP", "pub": "x"},
        public_jwk(RSA, use="enc"),
        public_jwk(RSA, alg="RS512"),
        public_jwk(RSA, alg="HS256"),
        public_jwk(RSA, key_ops=["encrypt"]),
        public_jwk(RSA, key_ops=1),
        public_jwk(RSA, alg=[]),
        public_jwk(RSA, alg={"RS256": 1}),
        public_jwk(RSA, use=["sig"]),
        public_jwk(P256, crv="P-384"),
        public_jwk(ED25519, crv="Ed448"),
    ]
    assert [(key.id, sorted(key.algorithms)) for key in key_set(text_of(*good, *bad))] == [
        ("r", ["RS256"]),
        ("e", ["ES256"]),
        ("o", ["Ed25519", "EdDSA"]),
    ]
    assert len(key_set(text_of(public_jwk(RSA, key_ops=None, alg=None)))) == 1


@pytest.mark.parametrize("text", [b"", b"x", b"[]", b'{"keys":7}', b'{"keys":[7]}', b"{}", b"[" * 9_000, b"\xff"])
def test_what_is_no_key_set_is_told_apart(text: bytes) -> None:
    with pytest.raises(ValueError, match="no JWK Set"):
        key_set(text)


class Issuer:
    """A key set at a URL, which a test changes, breaks and holds up."""

    def __init__(self, *keys: object) -> None:
        self.clock = FakeClock()
        self.text = text_of(*keys)
        self.error: Exception | None = None
        self.fetches = 0
        self.hold = threading.Event()
        self.hold.set()

    def fetch(self, url: str) -> bytes:
        assert url == "https://id.example/jwks"
        self.fetches += 1
        assert self.hold.wait(5)
        assert threading.current_thread() is not threading.main_thread(), "it must not block the loop"
        if self.error is not None:
            raise self.error
        return self.text

    def keys(self, **settings: Any) -> FetchedKeys:
        return FetchedKeys("https://id.example/jwks", fetch=self.fetch, monotonic=self.clock.monotonic, **settings)


def reading(keys: FetchedKeys) -> Callable[[str], Any]:
    return Tokens(Keys((), keys)).read


async def test_a_key_that_is_not_known_yet_is_fetched() -> None:
    issuer = Issuer(public_jwk(RSA, "one"))
    read = reading(issuer.keys())
    assert (await read(signed(claims("bob"), RSA, kid="one"))).subject == "bob"
    issuer.text = text_of(public_jwk(RSA, "one"), public_jwk(P256, "two"))
    issuer.clock.advance(MIN_INTERVAL)
    assert (await read(signed(claims("bob"), P256, kid="two"))).subject == "bob"
    assert issuer.fetches == 2


async def test_a_key_set_is_fetched_once_however_many_wait_for_it() -> None:
    issuer = Issuer(public_jwk(RSA, "one"))
    issuer.hold.clear()
    read = reading(issuer.keys())
    waiting = [asyncio.create_task(read(token(f"user{n}", RSA))) for n in range(50)]
    await asyncio.sleep(0.05)
    waiting.pop().cancel()
    issuer.hold.set()
    assert [(await each).subject for each in waiting] == [f"user{n}" for n in range(49)]
    assert issuer.fetches == 1


async def test_unknown_keys_make_no_more_than_one_fetch_in_the_shortest_interval() -> None:
    issuer = Issuer(public_jwk(RSA, "one"))
    tokens = Tokens(Keys((), issuer.keys()))
    for number in range(20):
        text = signed(claims("bob"), OTHER_RSA, kid=f"none{number}")
        assert f"key 'none{number}' for RS256 is not known" in await refusal(tokens, text)
    assert issuer.fetches == 1
    issuer.clock.advance(MIN_INTERVAL)
    await refusal(tokens, signed(claims("bob"), OTHER_RSA, kid="none"))
    assert issuer.fetches == 2


async def test_keys_stay_in_use_when_they_cannot_be_fetched_again() -> None:
    issuer = Issuer(public_jwk(RSA, "one"))
    tokens = Tokens(Keys((), issuer.keys()))
    await tokens.read(signed(claims("bob"), RSA, kid="one"))
    for text, error in ((b"", None), (b'{"keys":[]}', None), (b"", OSError("gone")), (b"", RuntimeError("odd"))):
        issuer.text, issuer.error = text, error
        issuer.clock.advance(MIN_INTERVAL)
        await refusal(tokens, signed(claims("bob"), RSA, kid="two"))
        assert (await tokens.read(signed(claims("eve"), RSA, kid="one"))).subject == "eve"
    assert issuer.fetches == 5


async def test_keys_that_were_never_fetched_are_no_reason_to_refuse_a_token() -> None:
    issuer = Issuer()
    issuer.error = OSError("gone")
    tokens = Tokens(Keys((), issuer.keys()))
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await tokens.read(token("bob", RSA))
    assert issuer.fetches == 1, "no more often than the shortest interval allows"
    # What no key could verify is refused all the same.
    assert "algorithm is 'none'" in await refusal(tokens, unsigned(claims("bob")))
    assert "algorithm is 'HS256'" in await refusal(tokens, token("bob"))


async def test_a_fetch_that_does_not_end_holds_nobody_up_for_long() -> None:
    issuer = Issuer(public_jwk(RSA, "one"))
    read = reading(issuer.keys(patience=0.01))
    issuer.hold.clear()
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await read(token("bob", RSA))
        issuer.clock.advance(MIN_INTERVAL)
    issuer.hold.set()
    while True:
        with suppress(KeysUnavailable):
            assert (await read(token("bob", RSA))).subject == "bob"
            break
    assert issuer.fetches == 1, "all waited for the same"


@pytest.mark.parametrize("header", [{}, {"kid": "one"}])
async def test_a_key_that_was_rotated_under_the_same_name_or_none_is_found(header: dict[str, str]) -> None:
    issuer = Issuer(public_jwk(OTHER_RSA, header.get("kid")))
    tokens = Tokens(Keys((), issuer.keys()))
    old, new = signed(claims("bob"), OTHER_RSA, **header), signed(claims("bob"), RSA, **header)
    await tokens.read(old)
    issuer.text = text_of(public_jwk(RSA, header.get("kid")))
    assert "signature is wrong" in await refusal(tokens, new), "it has just been looked for"
    issuer.clock.advance(MIN_INTERVAL)
    assert (await tokens.read(new)).subject == "bob"
    assert "signature is wrong" in await refusal(tokens, old)
    assert issuer.fetches == 2


async def test_a_key_that_was_withdrawn_verifies_nothing_any_more() -> None:
    issuer = Issuer(public_jwk(RSA, "one"), public_jwk(P256, "two"))
    keys = issuer.keys()
    tokens = Tokens(Keys((), keys))
    text = signed(claims("bob"), RSA, kid="one")
    await tokens.read(text)
    issuer.text = text_of(public_jwk(P256, "two"))
    issuer.clock.advance(MIN_INTERVAL)
    await keys.refresh()
    assert "key 'one' for RS256 is not known" in await refusal(tokens, text)


async def test_keys_that_are_the_same_again_leave_what_is_known_of_tokens() -> None:
    issuer = Issuer(public_jwk(RSA, "one"))
    keys = issuer.keys()
    await keys.refresh()
    generation = keys.generation
    await keys.refresh()
    assert (keys.generation, issuer.fetches) == (generation, 2)
    issuer.text = text_of(public_jwk(P256, "one"))
    await keys.refresh()
    assert keys.generation > generation


async def test_a_token_that_names_no_key_is_verified_by_any_of_its_kind() -> None:
    issuer = Issuer(public_jwk(OTHER_RSA, "one"), public_jwk(RSA, "two"), public_jwk(P256))
    tokens = Tokens(Keys((), issuer.keys()))
    assert (await tokens.read(token("bob", RSA))).subject == "bob"
    assert (await tokens.read(token("bob", P256))).subject == "bob"
    assert "signature is wrong" in await refusal(tokens, signed(claims("bob"), RSA, kid="one"))


async def test_a_secret_in_a_key_set_verifies_nothing() -> None:
    issuer = Issuer({"kty": "oct", "k": b64(SECRET), "kid": "s", "alg": "HS256"}, public_jwk(RSA))
    assert "algorithm is 'HS256'" in await refusal(Tokens(Keys((), issuer.keys())), signed(claims("bob"), kid="s"))


async def test_keys_are_fetched_before_anybody_asks_for_one() -> None:
    issuer = Issuer(public_jwk(RSA, "one"))
    async with issuer.keys() as keys:
        await asyncio.sleep(0)
        assert keys.fetching
        assert [key.id for key in await keys.find(None, "RS256")] == ["one"]
    assert issuer.fetches == 1


async def test_a_fixed_key_serves_while_others_cannot_be_fetched() -> None:
    issuer = Issuer()
    issuer.error = OSError("gone")
    tokens = Tokens(Keys([secret_key(SECRET), public_key(public_pem(RSA))], issuer.keys()))
    for key in (SECRET, RSA):
        assert (await tokens.read(token("bob", key))).subject == "bob"
    with pytest.raises(MsgpushError):
        await tokens.read(token("bob", P256))
