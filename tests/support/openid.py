"""An OpenID Connect provider of the tests' own, on a real socket, which checks what it is asked.

It signs in whoever comes, as its fields say; a test has it answer wrongly, slowly or not at all.
"""

import base64
import gzip
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from msgpush.adapters.auth.keys import Asymmetric
from tests.support.tokens import RSA, SigningKey, b64, public_jwk, signed
from tests.support.web import WebServer, answer

CLIENT, SECRET = "operators-page", "the client's own: a+secret/with%signs"
LIFETIME = 300


class OpenIdProvider(WebServer):
    """A provider with one client.

    Attributes:
        client: the client's id.
        callback: where it sends browsers back to; another one is refused.
        user: the claims of whoever signs in.
        changes: of the ID token's claims; None takes one away.
        header: of the ID token, besides `kid`.
        metadata: changes of its metadata.
        error: what it says instead of signing somebody in.
        back: parameters of the way back, besides those that belong there.
        page: whether it shows a page with a button first, as people see it.
        tokens: its answer to a code: status and body; None: the right one.
        padding: bytes of white space behind that.
        packed: whether that is compressed, whatever was asked for.
        raw: makes the ID token of its claims, instead of signing them with `key`.
        delay: seconds before that answer.
        public: whether its client has no secret.
        away: whether it answers nothing but 503.
        seen: the requests for tokens.
        asked: what authorization was asked with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.issuer = f"{self.origin}/realms/ops"
        self.callback, self.client = "", CLIENT
        self.user: dict[str, Any] = {"sub": "ada", "groups": ["staff", "ops"]}
        self.changes: dict[str, Any] = {}
        self.header: dict[str, Any] = {"kid": "one"}
        self.key: SigningKey = RSA
        self.keys: list[tuple[Asymmetric, str]] = [(RSA, "one")]
        self.metadata: dict[str, Any] = {}
        self.error: str | None = None
        self.back: dict[str, str] = {}
        self.page = False
        self.tokens: tuple[int, bytes] | None = None
        self.padding, self.packed = 0, False
        self.raw: Callable[[dict[str, Any]], str] | None = None
        self.delay = 0.0
        self.public = False
        self.away = False
        self.asked: list[dict[str, str]] = []
        self.seen: list[dict[str, str]] = []
        self.faults: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        url = urlsplit(exchange.path)
        given = {name: values[0] for name, values in parse_qs(url.query).items()}
        match url.path:
            case _ if self.away:
                answer(exchange, b"", status=503)
            case "/realms/ops/.well-known/openid-configuration":
                _json(exchange, 200, self._metadata())
            case "/realms/ops/keys":
                _json(exchange, 200, {"keys": [public_jwk(key, kid) for key, kid in self.keys]})
            case "/realms/ops/authorize" if self.page and "agreed" not in given:
                link = f"authorize?{urlencode({**given, 'agreed': 'yes'})}".replace("&", "&amp;")
                page = f"<!doctype html><title>Provider</title><a id=go href='{link}'>Sign in</a>"
                answer(exchange, page.encode(), ("Content-Type", "text/html"))
            case "/realms/ops/authorize":
                self._authorize(exchange, given)
            case _:
                answer(exchange, b"", status=404)

    def post(self, exchange: BaseHTTPRequestHandler) -> None:
        length = int(exchange.headers["Content-Length"])
        text = exchange.rfile.read(length).decode()
        given = {name: values[0] for name, values in parse_qs(text).items()}
        self.seen.append(given)
        time.sleep(self.delay)
        if self.tokens is not None:
            status, body = self.tokens
        else:
            status, answered = self._exchanged(given, exchange.headers["Authorization"] or "")
            body = json.dumps(answered).encode()
        body += b" " * self.padding
        headers = [("Content-Type", "application/json")]
        if self.packed:
            body = gzip.compress(body)
            headers.append(("Content-Encoding", "gzip"))
        with suppress(OSError):  # nobody reads so much
            answer(exchange, body, *headers, status=status)

    def _metadata(self) -> dict[str, Any]:
        found = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            "code_challenge_methods_supported": ["S256"],
        } | self.metadata
        return {name: value for name, value in found.items() if value is not None}

    def _authorize(self, exchange: BaseHTTPRequestHandler, given: dict[str, str]) -> None:
        self.asked.append(given)
        wanted = {
            "response_type": "code",
            "client_id": self.client,
            "redirect_uri": self.callback,
            "code_challenge_method": "S256",
        }
        wrong = [f"{name}={given.get(name)}" for name in wanted if given.get(name) != wanted[name]]
        wrong += [name for name in ("state", "nonce", "code_challenge") if not given.get(name)]
        if wrong or "openid" not in given.get("scope", "").split():
            self.faults += wrong or ["scope"]
            answer(exchange, b"wrong request", status=400)
            return
        back = {"state": given["state"]} | self.back
        if self.error is not None:
            back |= {"error": self.error, "error_description": "<script>alert(1)</script>"}
        else:
            code = secrets.token_urlsafe(16)
            self._codes[code] = given
            back |= {"code": code}
        location = f"{self.callback}?{urlencode(back)}"
        answer(exchange, b"", ("Location", location), status=302)

    def _exchanged(self, given: dict[str, str], header: str) -> tuple[int, dict[str, Any]]:
        if not self._is_client(given, header):
            return 401, {"error": "invalid_client"}
        asked = self._codes.pop(given.get("code", ""), None)
        if asked is None or given.get("grant_type") != "authorization_code":
            return 400, {"error": "invalid_grant"}
        verifier = given.get("code_verifier", "")
        challenge = b64(hashlib.sha256(verifier.encode()).digest())
        if challenge != asked["code_challenge"] or len(verifier) < 43:
            return 400, {"error": "invalid_grant", "error_description": "PKCE"}
        if given.get("redirect_uri") != asked["redirect_uri"]:
            return 400, {"error": "invalid_grant", "error_description": "redirect_uri"}
        return 200, {
            "access_token": "an access token",
            "token_type": "Bearer",
            "expires_in": LIFETIME,
            "id_token": self._id_token(asked["nonce"]),
        }

    def _is_client(self, given: dict[str, str], header: str) -> bool:
        if self.public:
            return not header and given.get("client_id") == self.client
        if "client_secret_post" in self.metadata.get("token_endpoint_auth_methods_supported", ()):
            return not header and (given.get("client_id"), given.get("client_secret")) == (
                self.client,
                SECRET,
            )
        scheme, _, text = header.partition(" ")
        if scheme != "Basic":
            return False
        # Each form-urlencoded first (RFC 6749, section 2.3.1); some clients leave that out.
        name, _, secret = base64.b64decode(text).decode().partition(":")
        return name == self.client and SECRET in (secret, unquote(secret))

    def _id_token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": self.client,
            "iat": now,
            "exp": now + LIFETIME,
            "nonce": nonce,
            **self.user,
        }
        claims = {
            name: value for name, value in (claims | self.changes).items() if value is not None
        }
        return self.raw(claims) if self.raw is not None else signed(claims, self.key, **self.header)


def _json(exchange: BaseHTTPRequestHandler, status: int, body: object) -> None:
    answer(exchange, json.dumps(body).encode(), ("Content-Type", "application/json"), status=status)
