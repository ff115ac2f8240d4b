"""Keys and tokens for the tests."""

import base64
import hashlib
import hmac
import json
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from msgpush.adapters.auth.tokens import registry_for
from tests.support.web import WebServer, answer

SECRET = "a secret of the tests, 32 bytes or more"
OTHER_SECRET = "another secret, which nobody here is to trust"

RSA = RSAKey.generate_key(2048)
OTHER_RSA = RSAKey.generate_key(2048)
P256 = ECKey.generate_key("P-256")
P384 = ECKey.generate_key("P-384")
P521 = ECKey.generate_key("P-521")
ED25519 = OKPKey.generate_key("Ed25519")
ED448 = OKPKey.generate_key("Ed448")

AsymmetricKey = RSAKey | ECKey | OKPKey
SigningKey = str | AsymmetricKey


def public_pem(key: AsymmetricKey) -> str:
    return key.as_pem(private=False).decode()


def private_pem(key: AsymmetricKey) -> str:
    return key.as_pem(private=True).decode()


def public_jwk(key: AsymmetricKey, kid: str | None = None, **more: Any) -> dict[str, Any]:
    return dict(key.as_dict(private=False)) | ({"kid": kid} if kid else {}) | more


def b64(data: bytes | str) -> str:
    raw = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(sub: str = "alice", *, lifetime: float = 600, **more: Any) -> dict[str, Any]:
    """Claims of a token that was issued just now; `msgpush` holds what isn't a claim of its own."""
    now = int(time.time())
    given: dict[str, Any] = {"sub": sub, "iat": now, "exp": now + lifetime}
    permissions = {
        name: more.pop(name) for name in ("subscribe", "publish", "users", "admin") if name in more
    }
    return given | ({"msgpush": permissions} if permissions else {}) | more


def signed(payload: object, key: SigningKey = SECRET, alg: str | None = None, **header: Any) -> str:
    """A token: with a text as its key by HS256, else by the key's own algorithm."""
    head = {"alg": alg or _algorithm(key), "typ": "JWT"} | header
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    if isinstance(key, str):
        text = f"{b64(json.dumps(head))}.{b64(body)}"
        hashes = {"HS384": hashlib.sha384, "HS512": hashlib.sha512}
        return f"{text}.{b64(hmac.new(key.encode(), text.encode(), hashes.get(head['alg'], hashlib.sha256)).digest())}"
    return jws.serialize_compact(head, body, key, registry=registry_for({head["alg"]}))


def token(
    sub: str = "alice", key: SigningKey = SECRET, *, lifetime: float = 600, **more: Any
) -> str:
    """A token for somebody, with permissions (`subscribe`, `publish`, `users`, `admin`) and claims."""
    return signed(claims(sub, lifetime=lifetime, **more), key)


def unsigned(payload: object, alg: str = "none") -> str:
    return f"{b64(json.dumps({'alg': alg}))}.{b64(json.dumps(payload))}."


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _algorithm(key: SigningKey) -> str:
    if isinstance(key, RSAKey):
        return "RS256"
    if isinstance(key, ECKey):
        return {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}[key.curve_name]
    return key.curve_name if isinstance(key, OKPKey) else "HS256"


class KeyServer(WebServer):
    """A server that hands out a key set, as an issuer does; a test changes what it says.

    `documents` are what it has at other paths; once there are any, the keys are only at their own.
    """

    def __init__(self, *keys: object) -> None:
        super().__init__()
        self.url = f"{self.origin}/jwks.json"
        self.keys: tuple[object, ...] = keys
        self.documents: dict[str, object] = {}
        self.status = 200
        self.fetches = 0
        self.agents: set[str | None] = set()
        self.endless = False

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        self.fetches += 1
        self.agents.add(exchange.headers["User-Agent"])
        if self.endless:
            with suppress(OSError):
                while self.endless:
                    exchange.wfile.write(b"H")
                    time.sleep(0.1)
            return
        known = not self.documents or exchange.path in (*self.documents, "/jwks.json")
        answer(
            exchange,
            json.dumps(self.documents.get(exchange.path, {"keys": self.keys})).encode(),
            ("Content-Type", "application/json"),
            *([("Location", "/elsewhere")] if self.status == 302 else []),
            status=self.status if known else 404,
        )
