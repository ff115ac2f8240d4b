"""A browser that can be pushed to, with a decryption that isn't this project's."""

import base64
import os
from typing import Any

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from msgpush.domain.devices import WebPush


class Browser:
    """Its keys, as `PushManager.subscribe` makes them."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.p256dh = self.key.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        self.auth = os.urandom(16)

    def subscription(self, endpoint: str) -> WebPush:
        return WebPush(endpoint, self.p256dh, self.auth)

    def as_json(self, endpoint: str) -> dict[str, Any]:
        """A PushSubscription's `toJSON()`."""
        keys = {"p256dh": _text(self.p256dh), "auth": _text(self.auth)}
        return {"endpoint": endpoint, "expirationTime": None, "keys": keys}

    def decrypt(self, body: bytes) -> bytes:
        """What was encrypted for it."""
        plain: bytes = http_ece.decrypt(
            body, private_key=self.key, auth_secret=self.auth, version="aes128gcm"
        )
        return plain


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
