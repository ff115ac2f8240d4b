"""Sessions of operators who have signed in: a signed cookie, and what becomes of it.

A session is no token: its key is another one, made from a secret for this alone (HKDF, RFC 5869).
So none is accepted where the other is asked for.
"""

import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jwe, jws
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from msgspec import Struct
from starlette.types import Scope

from msgpush.adapters.auth.tokens import MsgpushClaim
from msgpush.adapters.http.callers import cookie
from msgpush.adapters.http.origins import sent_origin
from msgpush.adapters.http.requests import header
from msgpush.domain.errors import Unauthorized
from msgpush.domain.grant import Grant, Patterns

LIFETIME = 8 * 3600  # seconds
COOKIE = "msgpush_admin"
SUBJECT = "oidc:"  # before the name that the provider has for somebody

_TYPE = "msgpush-session"
_ENDED = "the session has ended: sign in again"


class Session(Struct, frozen=True):
    """What the cookie says: who has signed in, where, by which claim, since when and until when."""

    iss: str
    aud: str
    claim: str
    sub: str
    iat: float
    exp: float
    jti: str


_session = msgspec.json.Decoder(Session).decode
_encode = msgspec.json.Encoder().encode


def derived_key(secret: str, label: str) -> OctKey:
    """A key for one purpose, which says nothing of the secret nor of the keys for others."""
    raw = secret.encode(errors="surrogateescape")
    made = HKDF(SHA256(), 32, salt=None, info=f"msgpush {label} 1".encode()).derive(raw)
    return OctKey.import_key(made)


class CookieJar:
    """Writes the cookies of one origin.

    Args:
        origin: as browsers write it. Only over http, on this machine alone, do they come without
            `Secure` and without the prefix that keeps other hosts' cookies out (RFC 6265bis).
    """

    def __init__(self, origin: str) -> None:
        self._secure = origin.startswith("https://")

    def name(self, name: str) -> str:
        """The name of a cookie as it is sent."""
        return f"__Host-{name}" if self._secure else name

    def keep(self, name: str, value: str, seconds: float) -> str:
        """The header `Set-Cookie` that has a browser keep it for so long."""
        secure = "; Secure" if self._secure else ""
        return (
            f"{self.name(name)}={value}; Path=/; Max-Age={int(seconds)}; HttpOnly;"
            f" SameSite=Lax{secure}"
        )

    def drop(self, name: str) -> str:
        """The header `Set-Cookie` that has a browser forget it."""
        return self.keep(name, "", 0)


class Sessions:
    """Opens sessions, and reads them from requests.

    Args:
        secret: what keys are made from.
        issuer: the provider that those who have a session have signed in at. Those of another end.
        origin: the service's own; whatever pages of others ask, a session doesn't count.
        claim: what has made them operators, as `groups=ops`. Where that changes, they sign in anew.
        given: what those who have signed in may do, besides being admins.
        lifetime: seconds.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        secret: str,
        *,
        issuer: str,
        origin: str,
        claim: str,
        given: MsgpushClaim,
        lifetime: float = LIFETIME,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = derived_key(secret, "session")
        self._issuer, self._origin = issuer, origin
        self._claim, self._given = claim, given
        self._lifetime, self._clock = lifetime, clock
        self._jar = CookieJar(origin)

    def open(self, sub: str) -> tuple[Grant, str]:
        """Begin a session of whom the provider calls so; returns its header `Set-Cookie`, too."""
        now = self._clock()
        session = Session(
            self._issuer,
            self._origin,
            self._claim,
            sub,
            now,
            now + self._lifetime,
            f"session_{secrets.token_urlsafe(16)}",
        )
        header = {"alg": "HS256", "typ": _TYPE}
        text = jws.serialize_compact(header, _encode(session), self._key)
        return self._grant(session), self._jar.keep(COOKIE, text, self._lifetime)

    def shown(self, scope: Scope) -> str | None:
        """The cookie of a session that a request has; None: none, or it doesn't count here."""
        text = cookie(scope, self._jar.name(COOKIE))
        return text if text is not None and self.is_own(scope) else None

    def is_own(self, scope: Scope) -> bool:
        """True if the browser says that a page of the service itself has made a request.

        A cookie also comes along with what pages of sister domains ask (they are of the same site).
        Without a word from the browser it might be one of those."""
        origin, site = header(scope, b"origin"), header(scope, b"sec-fetch-site")
        if origin is not None:
            return sent_origin(origin) == self._origin and site in (None, "same-origin")
        return site == "same-origin"

    def read(self, text: str) -> Grant:
        """The permissions that a session gives.

        Raises:
            Unauthorized: it has ended, or it is none.
        """
        try:
            signed = jws.deserialize_compact(text.encode("ascii"), self._key, ["HS256"])
            session = _session(signed.payload)
        except (JoseError, msgspec.MsgspecError, ValueError, RecursionError):
            raise Unauthorized(_ENDED) from None
        ours = (signed.headers().get("typ"), session.iss, session.aud, session.claim)
        wanted = (_TYPE, self._issuer, self._origin, self._claim)
        if ours != wanted or session.exp <= self._clock():
            raise Unauthorized(_ENDED)
        return self._grant(session)

    def closing(self) -> str:
        """The header `Set-Cookie` that ends a session in its browser."""
        return self._jar.drop(COOKIE)

    def _grant(self, session: Session) -> Grant:
        given = self._given
        return Grant(
            SUBJECT + session.sub,
            subscribe=Patterns(*given.subscribe),
            publish=Patterns(*given.publish),
            users=Patterns(*given.users),
            admin=True,
            expires=session.exp,
            issued_at=session.iat,
            id=session.jti,
        )


class Sealed:
    """Values that only this service can read and make: encrypted (AES-256 in GCM), and dated."""

    def __init__(
        self, secret: str, label: str, lifetime: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = derived_key(secret, label)
        self._lifetime, self._clock = lifetime, clock

    def seal(self, value: dict[str, Any]) -> str:
        content = _encode({"exp": self._clock() + self._lifetime, "value": value})
        return jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM"}, content, self._key)

    def open(self, text: str) -> dict[str, Any] | None:
        """What was sealed; None: it is too old, or something else."""
        try:
            opened = jwe.decrypt_compact(text.encode("ascii"), self._key, ["dir", "A256GCM"])
            content = msgspec.json.decode(opened.plaintext or b"")
        except (JoseError, msgspec.MsgspecError, ValueError, RecursionError):
            return None
        value: dict[str, Any] = content["value"]
        return value if content["exp"] > self._clock() else None
