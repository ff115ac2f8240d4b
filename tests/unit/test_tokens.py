"""Tokens: which are accepted, which are refused and why, and with which keys."""

import asyncio
import base64
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

from msgpush import __version__
from msgpush.adapters.auth.issuers import discovered, fetch
from msgpush.adapters.auth.keys import (
    MIN_INTERVAL,
    FetchedKeys,
    Keys,
    LeftOut,
    key_set,
    private_key,
    public_key,
    secret_key,
)
from msgpush.adapters.auth.tokens import Tokens
from msgpush.domain.errors import KeysUnavailable, MsgpushError, Unauthorized
from msgpush.domain.grant import Grant, Patterns
from tests.support.fakes import FakeClock
from tests.support.tokens import (
    ED448,
    ED25519,
    OTHER_RSA,
    OTHER_SECRET,
    P256,
    P384,
    P521,
    RSA,
    SECRET,
    AsymmetricKey,
    KeyServer,
    b64,
    claims,
    private_pem,
    public_jwk,
    public_pem,
    signed,
    token,
    unsigned,
)

ASYMMETRIC: list[AsymmetricKey] = [RSA, P256, P384, P521, ED25519, ED448]
# The algorithms of each kind of key; the first is what tokens are issued with.
ALGORITHMS: list[tuple[AsymmetricKey, list[str]]] = [
    (RSA, ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
    (P256, ["ES256"]),
    (P384, ["ES384"]),
    (P521, ["ES512"]),
    (ED25519, ["Ed25519", "EdDSA"]),
    (ED448, ["Ed448", "EdDSA"]),
]
EVERY_ALGORITHM = sorted({name for _, names in ALGORITHMS for name in names})
BY_ALGORITHM = [(key, name) for key, names in ALGORITHMS for name in names]
DAY = 86_400
with pytest.warns(SecurityWarning):
    SHORT_RSA = RSAKey.generate_key(1024)


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
    given = claims(
        "bob",
        subscribe=["kb:*", "imports"],
        publish=["service:a", "user:*"],
        users=["team-a.*"],
        admin=True,
        jti="t1",
    )
    assert await by_secret().read(signed(given)) == Grant(
        "bob",
        frozenset({"user:bob"}),
        Patterns("imports", "kb:*"),
        Patterns("service:a", "user:*"),
        True,
        given["exp"],
        given["iat"],
        "t1",
        user="bob",
        users=Patterns("team-a.*"),
    )


async def test_a_token_without_permissions_may_listen_to_its_own_channel_alone() -> None:
    grant = await by_secret().read(token("bob"))
    assert (grant.channels, grant.subscribe, grant.publish, grant.admin) == (
        frozenset({"user:bob"}),
        Patterns(),
        Patterns(),
        False,
    )
    assert grant.acts_for("bob")
    assert not grant.acts_for("bobby")


@pytest.mark.parametrize(("key", "algorithm"), BY_ALGORITHM, ids=[name for _, name in BY_ALGORITHM])
async def test_a_key_verifies_what_was_signed_with_it_by_each_algorithm_of_its_kind(
    key: AsymmetricKey, algorithm: str
) -> None:
    text = signed(claims("bob"), key, algorithm, kid="one")
    assert (await by_public_key(key).read(text)).subject == "bob"
    for jwk in (public_jwk(key, "one"), public_jwk(key, "one", alg=algorithm, use="sig")):
        assert (await Tokens(Keys(key_set(text_of(jwk)))).read(text)).subject == "bob"


@pytest.mark.parametrize("key", ASYMMETRIC, ids=[names[0] for _, names in ALGORITHMS])
async def test_a_key_verifies_by_no_algorithm_of_another_kind(key: AsymmetricKey) -> None:
    # All kinds of keys are there, so that it is this one that refuses, not the list of what is
    # accepted.
    tokens = Tokens(
        Keys(key_set(text_of(public_jwk(key, "one"), *(public_jwk(each) for each in ASYMMETRIC))))
    )
    own = next(names for each, names in ALGORITHMS if each is key)
    head, payload, signature = signed(claims("bob"), key, kid="one").split(".")
    for name in {*EVERY_ALGORITHM} - {*own}:
        head = b64(json.dumps({"alg": name, "kid": "one"}))
        assert await refusal(tokens, f"{head}.{payload}.{signature}")
    for name in ("HS256", "HS384", "none", "ES256K"):
        head = b64(json.dumps({"alg": name, "kid": "one"}))
        assert f'algorithm is "{name}"' in await refusal(tokens, f"{head}.{payload}.{signature}")


async def test_the_alg_of_a_key_narrows_what_it_verifies() -> None:
    issuer = Issuer(public_jwk(RSA, "one", alg="PS256"))
    tokens = Tokens(Keys((), issuer.keys()))
    assert (await tokens.read(signed(claims("bob"), RSA, "PS256", kid="one"))).subject == "bob"
    for name in ("RS256", "PS384"):
        told = await refusal(tokens, signed(claims("bob"), RSA, name, kid="one"))
        assert (
            f'key "one" for {name} is not known: in the set of JWKS_URL it is a key for PS256'
            in told
        )


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
    (unsigned(claims("bob")), 'algorithm is "none"; accepted are HS256'),
    (unsigned(claims("bob"), "None"), 'algorithm is "None"; accepted are HS256'),
    (unsigned(claims("bob"), "HS256"), "signature is wrong"),
    (signed(claims("bob"), SECRET, "HS384"), 'algorithm is "HS384"; accepted are HS256'),
    (signed(claims("bob"), SECRET, "HS512"), 'algorithm is "HS512"; accepted are HS256'),
    (token("bob", RSA), 'algorithm is "RS256"; accepted are HS256'),
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
    (
        signed(claims("bob") | {"sub": 7}),
        "claims are wrong: Expected `string`, got `whole number` - at `$.sub`",
    ),
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
    (token("bob", aud="msgpush"), 'its aud is "msgpush", and no JWT_AUDIENCE is set'),
    (token("bob", aud=[]), "its aud is"),
    (token("bob", aud=7), "claims are wrong"),
    (token("bob", jti=7), "claims are wrong"),
]


@pytest.mark.parametrize(
    ("text", "why"), REFUSED, ids=[f"{n}: {why}" for n, (_, why) in enumerate(REFUSED)]
)
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
async def test_permissions_of_another_shape_are_refused_not_passed_over(
    permissions: object,
) -> None:
    assert "claims are wrong" in await refusal(
        by_secret(), signed(claims("bob") | {"msgpush": permissions})
    )


async def test_a_public_key_is_no_secret_of_hs256() -> None:
    # What an attacker has is the public key, in any of the forms that it is handed out.
    for key in ASYMMETRIC:
        for secret in (public_pem(key), public_pem(key).strip(), json.dumps(public_jwk(key))):
            assert 'algorithm is "HS256"' in await refusal(by_public_key(key), token("bob", secret))


@pytest.mark.parametrize(
    ("key", "algorithm", "other"),
    [
        (RSA, "RS384", None),
        (RSA, "PS256", OTHER_RSA),
        (RSA, "RS256", OTHER_RSA),
        (P256, "ES256", None),
    ],
)
async def test_a_key_verifies_by_its_own_algorithms_alone(
    key: Any, algorithm: str, other: Any
) -> None:
    trusted = RSA if other is not None else (P256 if key is RSA else RSA)
    text = signed(claims("bob"), other or key, algorithm)
    assert await refusal(by_public_key(trusted), text)


async def test_an_audience_that_is_set_must_be_named() -> None:
    tokens = by_secret(audience="msgpush")
    for accepted in ("msgpush", ["msgpush"], ["other", "msgpush"]):
        assert (await tokens.read(token("bob", aud=accepted))).subject == "bob"
    for refused in ("other", "msgpush2", ["other"], []):
        assert "not this service's audience" in await refusal(tokens, token("bob", aud=refused))
    assert "its aud is null" in await refusal(tokens, token("bob"))
    assert 'its aud is ["other"]' in await refusal(tokens, token("bob", aud=["other"]))


async def test_a_claim_that_is_json_as_text_is_told_as_that() -> None:
    told = await refusal(by_secret(), signed(claims("bob") | {"msgpush": '{"subscribe":["a"]}'}))
    assert r'msgpush is the text "{\"subscribe\":[\"a\"]}", and must be an object' in told
    assert "write the claim as JSON" in told


async def test_of_several_audiences_one_must_be_named() -> None:
    tokens = by_secret(audience=("msgpush", "https://api"))
    for accepted in (
        "msgpush",
        "https://api",
        ["other", "https://api"],
        ["msgpush", "https://api"],
    ):
        assert (await tokens.read(token("bob", aud=accepted))).subject == "bob"
    for refused in ("other", "msg", ["https://api/"], [], "msgpush https://api"):
        assert "not this service's audience" in await refusal(tokens, token("bob", aud=refused))


async def test_the_audience_may_stand_in_another_claim() -> None:
    tokens = by_secret(audience="app1", audience_claim="client_id")
    assert (await tokens.read(token("bob", client_id="app1"))).subject == "bob"
    assert (await tokens.read(token("bob", client_id=["x", "app1"]))).subject == "bob"
    for refused in ("app2", ["app2"], None, 7, {"app1": 1}, [7], True):
        told = await refusal(tokens, token("bob", client_id=refused))
        assert "its client_id is" in told
        assert "not this service's audience" in told
    # Such as an ID token, which is for the page and has no such claim.
    assert "its client_id is null" in await refusal(tokens, token("bob", aud="app1"))


async def test_an_aud_counts_beside_another_claim_of_the_audience() -> None:
    tokens = by_secret(audience=("app1", "https://api"), audience_claim="client_id")
    for accepted in ("app1", "https://api", ["https://api", "x"]):
        assert (await tokens.read(token("bob", client_id="app1", aud=accepted))).subject == "bob"
    assert 'its aud is "other"' in await refusal(
        tokens, token("bob", client_id="app1", aud="other")
    )
    assert "no JWT_AUDIENCE is set" in await refusal(
        by_secret(audience_claim="client_id"), token("bob", aud="x")
    )


async def test_an_issuer_that_is_set_must_be_the_tokens() -> None:
    tokens = by_secret(issuer="https://id.example")
    assert (await tokens.read(token("bob", iss="https://id.example"))).subject == "bob"
    for refused in (
        {},
        {"iss": "https://id.example/"},
        {"iss": ["https://id.example"]},
        {"iss": 7},
    ):
        assert "not the issuer that is trusted here" in await refusal(
            tokens, token("bob", **refused)
        )


@pytest.mark.parametrize("path", ["", "/realms/app"])
async def test_an_issuer_that_differs_by_the_slash_at_its_end_is_told_as_just_that(
    path: str,
) -> None:
    one, two = f"https://id.example{path}", f"https://id.example{path}/"
    for trusted, named in ((one, two), (two, one)):
        told = await refusal(by_secret(issuer=trusted), token("bob", iss=named))
        assert f'iss is "{named}"' in told
        assert f'JWT_ISSUER is "{trusted}", and they differ by the slash at the end alone' in told
    assert "slash" not in await refusal(by_secret(issuer=one), token("bob", iss=f"{two}/"))


async def test_clocks_may_differ_by_the_leeway_and_no_more() -> None:
    clock = FakeClock()
    tokens, now = by_secret(clock=clock.now, leeway=30), clock.now()
    for accepted in (
        {"exp": now - 29},
        {"exp": now + 9, "nbf": now + 29},
        {"exp": now + 9, "iat": now + 29},
    ):
        assert (await tokens.read(signed({"sub": "bob", **accepted}))).subject == "bob"
    for refused in (
        {"exp": now - 31},
        {"exp": now + 99, "nbf": now + 31},
        {"exp": now + 99, "iat": now + 31},
    ):
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
    for key, names in ALGORITHMS:
        signing = private_key(private_pem(key))
        assert (signing.algorithm, sorted(signing.verifying.algorithms)) == (
            names[0],
            sorted(names),
        )
        assert signing.public_pem == public_pem(key)
    for text in ("", "x", public_pem(RSA)):
        with pytest.raises(ValueError, match="no private RSA key"):
            private_key(text)


def text_of(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def read_set(*keys: object) -> tuple[list[str | None], dict[str | None, str]]:
    """The ids of the keys that are taken, and by the ids of the others why they are left out."""
    left: list[LeftOut] = []
    taken = [key.id for key in key_set(text_of(*keys), left.append)]
    return taken, dict(left)


def padded(member: str, front: bytes = b"") -> str:
    raw = front + base64.urlsafe_b64decode(member + "=" * (-len(member) % 4))
    return base64.b64encode(raw).decode()


ODD: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
    lambda jwk: jwk | {"use": None},
    lambda jwk: jwk | {"x5c": None, "x5t": None, "x5u": None},
    lambda jwk: jwk | {"alg": None, "key_ops": None},
    lambda jwk: jwk | {"use": "", "alg": "", "key_ops": []},
    lambda jwk: (
        jwk
        | {
            "use": "sig",
            "key_ops": ["sign", "verify"],
            "ext": True,
            "exp": 1,
            "x5c": ["MII"],
            "issuer": 7,
        }
    ),
    lambda jwk: (
        jwk
        | {name: jwk[name] + "=" * (-len(jwk[name]) % 4) for name in ("n", "x", "y") if name in jwk}
    ),
    lambda jwk: jwk | {name: padded(jwk[name]) for name in ("n", "e", "x", "y") if name in jwk},
    # As what writes numbers with their sign does.
    lambda jwk: (
        jwk if "e" not in jwk else jwk | {name: padded(jwk[name], b"\0") for name in ("n", "e")}
    ),
]


@pytest.mark.parametrize("odd", range(len(ODD)))
@pytest.mark.parametrize("key", ASYMMETRIC, ids=[names[0] for _, names in ALGORITHMS])
async def test_what_issuers_write_oddly_makes_no_key_useless(key: AsymmetricKey, odd: int) -> None:
    jwk = ODD[odd](public_jwk(key, "one"))
    assert read_set(jwk) == (["one"], {})
    tokens = Tokens(Keys(key_set(text_of(jwk))))
    assert (await tokens.read(signed(claims("bob"), key, kid="one"))).subject == "bob"


LEFT: list[tuple[Any, str]] = [
    (public_jwk(RSA, use="enc", alg="RSA-OAEP"), 'is for encryption: its use is "enc", not "sig"'),
    (public_jwk(RSA, use="tls"), 'is not for signatures: its use is "tls", not "sig"'),
    (public_jwk(RSA, use=["sig"]), 'is not for signatures: its use is ["sig"]'),
    (
        public_jwk(RSA, key_ops=["encrypt"]),
        'is not for signatures: its key_ops are ["encrypt"], without "verify"',
    ),
    (public_jwk(RSA, key_ops=1), 'its key_ops are 1, without "verify"'),
    ({"kty": "oct", "k": b64(SECRET)}, "is a secret (kty oct)"),
    ({"kty": "AKP", "pub": "x"}, 'is of the kty "AKP", and RSA, EC, OKP are known'),
    ({"kty": ["RSA"]}, 'is of the kty ["RSA"]'),
    ({}, "is of the kty null"),
    ({"kty": "RSA", "e": "AQAB"}, "has no n"),
    (public_jwk(RSA, n=None), "has no n"),
    (public_jwk(RSA, n=7), "can't be read: its n is no text"),
    (public_jwk(RSA, n="\u00e4"), "can't be read: its n is no base64url"),
    (public_jwk(RSA, n=""), "has no n"),
    (public_jwk(RSA, e="AA"), "can't be read: its n and e make no RSA key"),
    (public_jwk(P256, y="AQ"), "can't be read: its x and y make no EC key"),
    (public_jwk(ED25519, x="AQ"), "can't be read: its x make no OKP key"),
    (public_jwk(P256, crv="Ed25519"), "can't be read"),
    (public_jwk(SHORT_RSA), "is an RSA key of 1024 bits, and 2048 are the least"),
    (
        public_jwk(ECKey.generate_key("secp256k1")),
        'is on the curve "secp256k1", and P-256, P-384, P-521, Ed25519',
    ),
    (public_jwk(OKPKey.generate_key("X25519")), 'is on the curve "X25519"'),
    (public_jwk(P256, crv=None), "is on the curve null"),
    (
        public_jwk(P256, alg="ES384"),
        'is for the algorithm "ES384", and one of its kind verifies ES256',
    ),
    (
        public_jwk(RSA, alg="RSA-OAEP"),
        'is for the algorithm "RSA-OAEP", and one of its kind verifies RS256, RS384',
    ),
    (
        public_jwk(ED448, alg="Ed25519"),
        'is for the algorithm "Ed25519", and one of its kind verifies Ed448, EdDSA',
    ),
    (public_jwk(RSA, alg=["RS256"]), 'is for the algorithm ["RS256"]'),
]


@pytest.mark.parametrize(("jwk", "why"), LEFT, ids=[why for _, why in LEFT])
def test_a_key_that_is_left_out_is_left_out_alone_and_with_its_reason(
    jwk: dict[str, Any], why: str
) -> None:
    taken, left = read_set(public_jwk(RSA, "one"), jwk | {"kid": "odd"}, public_jwk(P256, "two"))
    assert taken == ["one", "two"]
    assert left["odd"].startswith(why) or why in left["odd"]


def test_what_is_no_key_at_all_leaves_the_others_in_the_set() -> None:
    good = json.dumps(public_jwk(RSA, "one")).encode()
    for odd in (b"7", b"null", b"[]", b'"x"', b'{"kid":"odd","exp":1e999}', b'{"kid":"\xff"}'):
        left: list[LeftOut] = []
        try:
            keys = key_set(b'{"keys":[%b,%b]}' % (odd, good), left.append)
        except ValueError:
            assert odd == b'{"kid":"\xff"}', "which makes the whole of it no JSON"
            continue
        assert [key.id for key in keys] == ["one"]
        assert len(left) == 1


async def test_what_is_left_out_is_logged_once_for_each_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "msgpush.auth")
    encryption = public_jwk(RSA, "enc", use="enc")
    issuer = Issuer(public_jwk(RSA, "one"), encryption, {"kty": "oct", "k": "x", "kid": "s"})
    keys = issuer.keys()

    async def told() -> list[str]:
        caplog.clear()
        await keys.refresh()
        return [text for text in caplog.messages if "left out" in text]

    assert await told() == [
        'a key of JWKS_URL is left out: "enc" is for encryption: its use is "enc", not "sig"',
        'a key of JWKS_URL is left out: "s" is a secret (kty oct), which doesn\'t belong in a set',
    ]
    assert await told() == []
    issuer.text = text_of(public_jwk(P256, "two"), encryption)
    assert await told() == [
        'a key of JWKS_URL is left out: "enc" is for encryption: its use is "enc", not "sig"'
    ]
    issuer.text = text_of(public_jwk(RSA, "one"), encryption)
    assert await told() == []


async def test_a_token_whose_key_was_left_out_is_told_why() -> None:
    issuer = Issuer(public_jwk(RSA, "enc", use="enc"), public_jwk(P256, "two"))
    tokens = Tokens(Keys((), issuer.keys()))
    told = await refusal(tokens, signed(claims("bob"), RSA, kid="enc"))
    assert (
        'key "enc" for RS256 is not known: in the set of JWKS_URL it is for encryption: its use is "enc"'
        in told
    )
    told = await refusal(tokens, signed(claims("bob"), RSA, kid="none"))
    assert told.endswith('key "none" for RS256 is not known: the set of JWKS_URL has "two"')


async def test_a_set_without_a_usable_key_says_why_of_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    issuer = Issuer(public_jwk(RSA, "enc", use="enc"))
    keys = issuer.keys()
    await keys.refresh()
    assert (
        keys.problem
        == 'it has no key that can be used: "enc" is for encryption: its use is "enc", not "sig"'
    )
    assert keys.problem in caplog.text


def test_of_a_key_set_only_keys_that_verify_tokens_are_taken() -> None:
    good = [
        public_jwk(RSA, "r"),
        public_jwk(P256, "e"),
        public_jwk(ED25519, "o", alg="EdDSA", use="sig"),
    ]
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
        ("r", sorted(ALGORITHMS[0][1])),
        ("e", ["ES256"]),
        ("o", ["Ed25519", "EdDSA"]),
    ]
    assert len(key_set(text_of(public_jwk(RSA, key_ops=None, alg=None)))) == 1


@pytest.mark.parametrize(
    "text", [b"", b"x", b"[]", b'{"keys":7}', b'{"keys":[7]}', b"{}", b"[" * 9_000, b"\xff"]
)
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
        assert threading.current_thread() is not threading.main_thread(), (
            "it must not block the loop"
        )
        if self.error is not None:
            raise self.error
        return self.text

    def keys(self, **settings: Any) -> FetchedKeys:
        return FetchedKeys(
            "https://id.example/jwks", fetch=self.fetch, monotonic=self.clock.monotonic, **settings
        )


# Discovery


METADATA = "/.well-known/openid-configuration"


class Web:
    """What an issuer has at its URLs."""

    def __init__(self, name: str, keys: str, at: str, **changes: object) -> None:
        self.asked: list[str] = []
        self.found: dict[str, object] = {
            at: {"issuer": name, "jwks_uri": keys} | changes,
            keys: PUBLISHED,
        }

    def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        if url not in self.found:
            raise OSError("the answer's status is 404")
        found = self.found[url]
        return found if isinstance(found, bytes) else json.dumps(found).encode()


PUBLISHED = {"keys": [public_jwk(RSA, "one")]}


@pytest.mark.parametrize(
    ("issuer", "at"),
    [
        ("https://id.example", f"https://id.example{METADATA}"),
        ("https://id.example/", f"https://id.example{METADATA}"),
        ("https://id.example:8443/realms/app", f"https://id.example:8443/realms/app{METADATA}"),
        ("https://id.example/a/v2.0/", f"https://id.example/a/v2.0{METADATA}"),
        ("http://127.0.0.1:8080/realms/app", f"http://127.0.0.1:8080/realms/app{METADATA}"),
        ("http://localhost", f"http://localhost{METADATA}"),
        ("http://[::1]:80", f"http://[::1]:80{METADATA}"),
    ],
)
def test_an_issuers_keys_are_found_by_its_name(issuer: str, at: str) -> None:
    keys = f"{issuer.rstrip('/')}/certs"
    web = Web(issuer, keys, at)
    assert json.loads(discovered(issuer, web.fetch)) == PUBLISHED
    assert web.asked == [at, keys]


def test_what_metadata_says_of_logins_need_not_be_right() -> None:
    web = Web(
        "https://id",
        "https://keys.elsewhere/k",
        f"https://id{METADATA}",
        authorization_endpoint="http://x",
    )
    assert json.loads(discovered("https://id", web.fetch)) == PUBLISHED


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"issuer": "https://evil"}, 'is that of the issuer "https://evil", not of "https://id"'),
        (
            {"issuer": "https://id/"},
            "they differ by the slash at the end alone, so set JWT_ISSUER=https://id/",
        ),
        ({"issuer": "https://ID"}, 'is that of the issuer "https://ID"'),
        ({"issuer": None}, "is that of the issuer null"),
        ({"issuer": ["https://id"]}, 'is that of the issuer ["https://id"]'),
        ({"jwks_uri": None}, "jwks_uri"),
        ({"jwks_uri": 7}, "jwks_uri"),
        ({"jwks_uri": ""}, "jwks_uri"),
        ({"jwks_uri": "http://id/certs"}, "jwks_uri"),
        ({"jwks_uri": "http://127.0.0.1/certs"}, "jwks_uri"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri"),
        ({"jwks_uri": "https:///certs"}, "jwks_uri"),
        ({"jwks_uri": "/certs"}, "jwks_uri"),
    ],
)
def test_metadata_of_another_or_that_leads_nowhere_safe_is_refused(
    changes: dict[str, object], why: str
) -> None:
    web = Web("https://id", "https://id/certs", f"https://id{METADATA}", **changes)
    with pytest.raises(ValueError, match=re.escape(why)):
        discovered("https://id", web.fetch)
    assert web.asked == [f"https://id{METADATA}"]


def test_a_variable_of_authlib_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")
    web = Web("https://id", "https://id/certs", f"https://id{METADATA}", jwks_uri="http://id/certs")
    with pytest.raises(ValueError, match='its jwks_uri is "http://id/certs", not https'):
        discovered("https://id", web.fetch)


@pytest.mark.parametrize("text", [b"", b"x", b"[]", b"<html>", b"[" * 9_000, b"\xff"])
def test_what_is_no_metadata_is_told_with_where_it_was_looked_for(text: bytes) -> None:
    web = Web("https://id", "https://id/certs", f"https://id{METADATA}")
    web.found[f"https://id{METADATA}"] = text
    with pytest.raises(ValueError, match=re.escape(f"https://id{METADATA} is no JSON object")):
        discovered("https://id", web.fetch)


def test_which_of_the_two_cannot_be_had_is_told() -> None:
    web = Web("https://id", "https://id/certs", f"https://id{METADATA}")
    del web.found["https://id/certs"]
    with pytest.raises(OSError, match=r"its keys at https://id/certs: the answer's status is 404"):
        discovered("https://id", web.fetch)
    web.found.clear()
    with pytest.raises(
        OSError, match=r"its metadata at https://id/\.well-known/openid-configuration: .* 404"
    ):
        discovered("https://id", web.fetch)


async def test_where_the_keys_are_is_looked_up_anew(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    web = Web("https://id", "https://id/old", f"https://id{METADATA}")
    keys = FetchedKeys(
        "https://id",
        setting="JWT_ISSUER",
        fetch=lambda issuer: discovered(issuer, web.fetch),
        monotonic=clock.monotonic,
    )
    tokens = Tokens(Keys((), keys), issuer="https://id")
    assert (
        await tokens.read(signed(claims("bob", iss="https://id"), RSA, kid="one"))
    ).subject == "bob"
    web.found = Web("https://id", "https://id/new", f"https://id{METADATA}").found
    web.found["https://id/new"] = {"keys": [public_jwk(P256, "two")]}
    clock.advance(MIN_INTERVAL)
    assert (
        await tokens.read(signed(claims("bob", iss="https://id"), P256, kid="two"))
    ).subject == "bob"
    # What was found stays in use while nothing can be.
    web.found.clear()
    clock.advance(MIN_INTERVAL)
    await refusal(tokens, signed(claims("bob", iss="https://id"), RSA, kid="one"))
    assert (
        await tokens.read(signed(claims("eve", iss="https://id"), P256, kid="two"))
    ).subject == "eve"
    assert (
        "the keys of JWT_ISSUER can't be fetched: its metadata at https://id/.well-known"
        in caplog.text
    )


def test_whoever_is_asked_for_keys_is_told_who_asks() -> None:
    with KeyServer(public_jwk(RSA, "one")) as keys:
        fetch(keys.url)
        keys.documents[METADATA] = {"issuer": keys.origin, "jwks_uri": keys.url}
        discovered(keys.origin)
        assert (keys.agents, keys.fetches) == ({f"msgpush/{__version__}"}, 3)
        keys.status = 302
        with pytest.raises(
            OSError, match="the answer's status is 302, and redirects aren't followed"
        ):
            fetch(keys.url)


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
        assert f'key "none{number}" for RS256 is not known' in await refusal(tokens, text)
    assert issuer.fetches == 1
    issuer.clock.advance(MIN_INTERVAL)
    await refusal(tokens, signed(claims("bob"), OTHER_RSA, kid="none"))
    assert issuer.fetches == 2


async def test_keys_stay_in_use_when_they_cannot_be_fetched_again() -> None:
    issuer = Issuer(public_jwk(RSA, "one"))
    tokens = Tokens(Keys((), issuer.keys()))
    await tokens.read(signed(claims("bob"), RSA, kid="one"))
    for text, error in (
        (b"", None),
        (b'{"keys":[]}', None),
        (b"", OSError("gone")),
        (b"", RuntimeError("odd")),
    ):
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
    assert 'algorithm is "none"' in await refusal(tokens, unsigned(claims("bob")))
    assert 'algorithm is "HS256"' in await refusal(tokens, token("bob"))


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
async def test_a_key_that_was_rotated_under_the_same_name_or_none_is_found(
    header: dict[str, str],
) -> None:
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
    assert 'key "one" for RS256 is not known' in await refusal(tokens, text)


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
    assert 'algorithm is "HS256"' in await refusal(
        Tokens(Keys((), issuer.keys())), signed(claims("bob"), kid="s")
    )


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


@pytest.mark.parametrize(
    "odd",
    ['{"kty":"RSA","kid":"\\ud83d"}', '{"x":' + "[" * 2000 + "]" * 2000 + "}", "7", '"\\ud83d"'],
)
async def test_a_key_that_cannot_even_be_parsed_is_left_out_alone(odd: str) -> None:
    good = json.dumps(public_jwk(P256, kid="good"))
    left: list[LeftOut] = []
    (key,) = key_set(f'{{"keys":[{odd},{good}]}}'.encode(), left.append)
    assert key.id == "good"
    assert len(left) == 1
    assert "recursion" not in left[0].reason
