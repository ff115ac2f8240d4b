"""VAPID: who sends Web Pushes says so to the push service (RFC 8292)."""

import base64
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

LIFETIME = 12 * 3_600  # seconds: a day is the most (section 2)
RENEWED = LIFETIME // 2  # seconds after which the next one is made
MOST = 1_000  # origins whose tokens are kept


class Vapid:
    """Makes the Authorization header of requests to push services.

    Args:
        key: on P-256; browsers are told its public part as they subscribe.
        subject: whom push services write to where something is wrong: mailto: or https.
        clock: seconds since 1970.
    """

    def __init__(self, key: ECKey, subject: str, *, clock: Callable[[], float] = time.time) -> None:
        self._key, self._subject, self._clock = key, subject, clock
        self.public_key = public_text(key)
        self._made: dict[str, tuple[float, str]] = {}

    def authorization(self, origin: str) -> str:
        """The header for a push service, by its origin: kept, and renewed in time."""
        now = self._clock()
        made, header = self._made.get(origin, (0.0, ""))
        # A clock that was set back made tokens that are too good.
        if not 0 <= now - made < RENEWED:
            claims = {"aud": origin, "exp": int(now) + LIFETIME, "sub": self._subject}
            token = jwt.encode({"typ": "JWT", "alg": "ES256"}, claims, self._key)
            header = f"vapid t={token},k={self.public_key}"
            if len(self._made) >= MOST:
                self._made.clear()
            self._made[origin] = now, header
        return header


def vapid_key(text: str) -> ECKey:
    """The private key that a setting has: in PEM, or the 32 bytes of it in base64url, as most tools
    for Web Push write it.

    Raises:
        ValueError: it is something else; its text continues "it".
    """
    text = text.replace("\\n", "\n").strip()
    try:
        key = ECKey.import_key(text + "\n" if "-----BEGIN" in text else _of_scalar(text))
    except (JoseError, ValueError, TypeError):
        key = None
    if key is None or not key.is_private or key.curve_name != "P-256":
        raise ValueError(
            "is no private key on P-256, in PEM or as 32 bytes in base64url: msgpush push keys"
            " makes one"
        )
    return key


def new_key() -> ECKey:
    """A new private key."""
    return ECKey.generate_key("P-256")


def private_text(key: ECKey) -> str:
    """A private key as `vapid_key` reads it, on one line."""
    return str(_members(key, private=True)["d"])


def public_text(key: ECKey) -> str:
    """A key's public part: what browsers call the applicationServerKey, in base64url."""
    members = _members(key, private=False)
    return base64url(b"\4" + unbase64url(members["x"]) + unbase64url(members["y"]))


def _members(key: ECKey, *, private: bool) -> dict[str, Any]:
    return dict(key.as_dict(private=private))


def _of_scalar(text: str) -> dict[str, Any]:
    raw = unbase64url(text)
    if len(raw) != 32:
        raise ValueError
    key = ec.derive_private_key(int.from_bytes(raw), ec.SECP256R1())
    public = key.public_key().public_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "d": base64url(raw),
        "x": base64url(public.x.to_bytes(32)),
        "y": base64url(public.y.to_bytes(32)),
    }


def base64url(raw: bytes) -> str:
    """Bytes in base64url without padding, as all of Web Push writes them (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unbase64url(text: str) -> bytes:
    """The bytes that a text in base64url names, padded or not. Raises ValueError."""
    text = text.rstrip("=").replace("+", "-").replace("/", "_")
    return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
