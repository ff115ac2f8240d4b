"""Web Push's encryption and VAPID: the RFCs' own examples, and implementations of others."""

import json
import os

import http_ece
import py_vapid
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import ECKey

from msgpush.adapters.notify.encryption import BODY, LARGEST, encrypt, seal
from msgpush.adapters.notify.vapid import (
    Vapid,
    base64url,
    new_key,
    private_text,
    public_text,
    unbase64url,
    vapid_key,
)
from msgpush.adapters.notify.web_push import payload, topic
from msgpush.domain.notification import Notice
from tests.support.subscriptions import Browser
from tests.support.tokens import P256, P384, RSA, private_pem, public_pem


def private(text: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(unbase64url(text)), ec.SECP256R1())


def test_the_example_of_rfc_8291() -> None:
    """Section 5, and appendix A."""
    browser = (
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
    )
    encrypted = encrypt(
        b"When I grow up, I want to be a watermelon",
        unbase64url(browser),
        unbase64url("BTBZMqHH6r4Tts7J_aSIgg"),
        sender=private("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"),
        salt=unbase64url("DGv6ra1nlYgDCS1FRnbzlw"),
    )
    assert base64url(encrypted) == (
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml"
        "mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
        "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )


def test_the_example_of_rfc_8188() -> None:
    """Section 3.1, which has no key id."""
    sealed = seal(
        b"I am the walrus",
        unbase64url("yqdlZ-tYemfogSmv7Ws5PQ"),
        unbase64url("I1BsxtFttlv3u_Oo94xnmw"),
        b"",
    )
    assert base64url(sealed) == (
        "I1BsxtFttlv3u_Oo94xnmwAAEAAA-NAVub2qFgBEuQKRapoZu-IxkIva3MEB1PD-ly8Thjg"
    )


@pytest.mark.parametrize("size", [0, 1, 15, 16, 1_000, LARGEST - 1, LARGEST])
def test_another_implementation_reads_it(size: int) -> None:
    browser, plain = Browser(), os.urandom(size)
    body = encrypt(plain, browser.p256dh, browser.auth)
    assert browser.decrypt(body) == plain
    assert len(body) == size + BODY - LARGEST


def test_what_fits_is_4_096_bytes_and_a_byte_more_is_refused() -> None:
    browser = Browser()
    assert len(encrypt(b"x" * LARGEST, browser.p256dh, browser.auth)) == 4_096
    with pytest.raises(ValueError, match="3994 bytes are more than the 3993"):
        encrypt(b"x" * (LARGEST + 1), browser.p256dh, browser.auth)


def test_nothing_is_the_same_twice_and_no_other_browser_reads_it() -> None:
    browser, other = Browser(), Browser()
    one, two = (encrypt(b"x", browser.p256dh, browser.auth) for _ in range(2))
    assert one[:16] != two[:16]
    assert one[21:86] != two[21:86]
    with pytest.raises(http_ece.ECEException):
        other.decrypt(one)


@pytest.mark.parametrize(
    "point",
    [b"", b"\4" + bytes(64), b"\4" + bytes(63), b"\2" + bytes(32), b"\4" + b"\xff" * 64],
)
def test_a_key_that_is_none_is_refused(point: bytes) -> None:
    with pytest.raises(ValueError, match=r"no uncompressed point|no point on the curve"):
        encrypt(b"x", point, bytes(16))
    with pytest.raises(ValueError, match="auth has 15 bytes"):
        encrypt(b"x", Browser().p256dh, bytes(15))


# VAPID


def test_the_token_of_rfc_8292_is_verified_by_the_key_beside_it() -> None:
    """Section 2.4: what we make a public text of is what is written there, and verifies."""
    token = (
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9.eyJhdWQiOiJodHRwczovL3B1c2guZXhhbXBsZS5uZXQiLCJleHAi"
        "OjE0NTM1MjM3NjgsInN1YiI6Im1haWx0bzpwdXNoQGV4YW1wbGUuY29tIn0.i3CYb7t4xfxCDquptFOepC9GAu_HL"
        "GkMlMuCGSK2rpiUfnK9ojFwDXb1JrErtmysazNjjvW2L9OkSSHzvoD1oA"
    )
    k = "BA1Hxzyi1RUM1b5wjxsn7nGxAszw2u61m164i3MrAIxHF6YK5h4SDYic-dRuU_RCPCfA5aq9ojSwk5Y2EmClBPs"
    raw = unbase64url(k)
    members = {"x": base64url(raw[1:33]), "y": base64url(raw[33:])}
    key = ECKey.import_key({"kty": "EC", "crv": "P-256", **members})
    assert public_text(key) == k
    claims = jwt.decode(token, key, algorithms=["ES256"]).claims
    assert claims == {
        "aud": "https://push.example.net",
        "exp": 1453523768,
        "sub": "mailto:push@example.com",
    }


def test_another_implementation_verifies_what_is_signed() -> None:
    vapid = Vapid(P256, "mailto:ops@example.com")
    assert py_vapid.Vapid02.verify(vapid.authorization("https://push.example.net"))


def test_the_token_names_the_push_service_and_is_renewed_in_time() -> None:
    now = [1_000_000.0]
    vapid = Vapid(P256, "mailto:ops@example.com", clock=lambda: now[0])

    def token() -> tuple[str, dict[str, object]]:
        header = vapid.authorization("https://push.example.net")
        t, k = header.removeprefix("vapid t=").split(",k=")
        assert k == vapid.public_key
        decoded = jwt.decode(t, P256, algorithms=["ES256"])
        assert decoded.header == {"typ": "JWT", "alg": "ES256"}
        return t, decoded.claims

    first, claims = token()
    assert claims == {
        "aud": "https://push.example.net",
        "exp": 1_000_000 + 43_200,
        "sub": "mailto:ops@example.com",
    }
    now[0] += 20_000
    assert token()[0] == first
    now[0] += 2_000
    later, claims = token()
    assert later != first
    # A clock that is set back has tokens that are good for too long replaced.
    now[0] -= 10_000
    assert token()[0] != later
    assert vapid.authorization("https://other.example") != vapid.authorization("https://a.example")


def test_however_many_origins_there_are_not_all_tokens_are_kept() -> None:
    vapid = Vapid(P256, "mailto:ops@example.com")
    for number in range(1_100):
        vapid.authorization(f"https://{number}.example")
    assert len(vapid._made) <= 1_000


def test_keys_are_read_as_pem_and_as_other_tools_write_them() -> None:
    key = new_key()
    text = private_text(key)
    for given in (
        text,
        text + "=",
        f" {text}\n",
        private_pem(key),
        private_pem(key).replace("\n", "\\n"),
    ):
        assert public_text(vapid_key(given)) == public_text(key)
    assert len(unbase64url(public_text(key))) == 65
    # One that the other implementation has made.
    other = py_vapid.Vapid02()
    other.generate_keys()
    raw = other.public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert public_text(vapid_key(other.private_pem().decode())) == base64url(raw)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "%%%",
        base64url(bytes(32)),
        base64url(b"\xff" * 32),
        base64url(bytes(31) + b"\1")[:-4],
        private_pem(P384),
        private_pem(RSA),
        public_pem(P256),
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no private key on P-256"):
        vapid_key(text)


# What is encrypted


def notice(**more: object) -> Notice:
    given: dict[str, object] = {"user": "a/b", "key": "s/1", "title": "Title"} | more
    return Notice(**given)  # type: ignore[arg-type]


def test_the_message_is_there_whole_or_not_at_all() -> None:
    fits = notice(message=b'{"data":"' + b"x" * 3_900 + b'"}')
    assert json.loads(payload(fits))["message"] == {"data": "x" * 3_900}
    larger = notice(message=b'{"data":"' + b"x" * 3_950 + b'"}')
    assert json.loads(payload(larger)) == {"key": "s/1", "title": "Title"}


def test_a_word_comes_with_where_to_say_it() -> None:
    said = json.loads(payload(notice(word="w")))
    assert said["acknowledge"] == {"url": "/api/v1/users/a%2Fb/acknowledgements", "word": "w"}


@pytest.mark.parametrize("character", ["x", "é", "語", "😀", "\0"])
def test_a_text_that_is_too_long_is_cut(character: str) -> None:
    body = payload(notice(text=character * 5_000, message=b'"' + b"m" * 5_000 + b'"'))
    assert LARGEST - 20 <= len(body) <= LARGEST
    said = json.loads(body)
    assert said["body"].endswith("…")
    assert set(said["body"][:-1]) == {character}
    assert "message" not in said


def test_however_long_all_of_it_is_something_is_shown() -> None:
    long = notice(
        user="\N{GRINNING FACE}" * 195,
        key="s" * 64 + "/" + "k" * 128,
        title="\0" * 200,
        text="t" * 1_000,
        url="/" + "u" * 1_023,
        icon="/" + "i" * 1_023,
        collapse="\0" * 64,
        word="1234567890." + "w" * 32,
    )
    body = payload(long)
    assert len(body) <= LARGEST
    said = json.loads(body)
    assert said.keys() == {"key", "title", "url", "collapse", "body"}
    assert "icon" in json.loads(payload(notice(icon="/i", text="t" * 5_000)))


def test_a_topic_is_what_push_services_take_and_tells_nothing() -> None:
    assert topic("a") != topic("b")
    for text in ("a", "x" * 64, "語" * 64):
        made = topic(text)
        assert len(made) == 32
        assert set(made) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
