"""Web Push's encryption, from this service to the browser: RFC 8291, by RFC 8188's `aes128gcm`.

On the primitives of `cryptography`: it is two dozen lines, and the RFCs' own examples are its
tests. Of the packages that do it one brings two HTTP clients along (pywebpush), and the other has
had no release for years (http-ece)."""

import hmac
import os
import struct

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

BODY = 4_096  # bytes that each push service takes (RFC 8030, section 7.2)
POINT = 65  # bytes of an uncompressed point on P-256
SALT, AUTH, TAG, DELIMITER = 16, 16, 16, 1
HEADER = SALT + 4 + 1 + POINT
LARGEST = BODY - HEADER - TAG - DELIMITER  # bytes that can be said in one

_CURVE = ec.SECP256R1()


def browser_key(point: bytes) -> ec.EllipticCurvePublicKey:
    """The public key that a browser's `p256dh` is.

    Raises:
        ValueError: it is no uncompressed point on P-256.
    """
    if len(point) != POINT or point[0] != 4:
        raise ValueError(f"it is no uncompressed point of {POINT} bytes")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, point)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it is no point on the curve P-256") from None


def encrypt(
    plaintext: bytes,
    p256dh: bytes,
    auth: bytes,
    *,
    sender: ec.EllipticCurvePrivateKey | None = None,
    salt: bytes | None = None,
) -> bytes:
    """Encrypt what only a browser with this subscription can read (RFC 8291, section 3.4).

    Args:
        sender: a key and `salt` are made anew for each message, unless a test gives them.

    Raises:
        ValueError: it is longer than `LARGEST`, or the subscription's keys are no keys.
    """
    if len(plaintext) > LARGEST:
        raise ValueError(f"{len(plaintext)} bytes are more than the {LARGEST} that fit")
    if len(auth) != AUTH:
        raise ValueError(f"auth has {len(auth)} bytes, not {AUTH}")
    receiver = browser_key(p256dh)
    sender = sender or ec.generate_private_key(_CURVE)
    own = sender.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    shared = hmac.digest(auth, sender.exchange(ec.ECDH(), receiver), "sha256")
    keying = hmac.digest(shared, b"WebPush: info\0" + p256dh + own + b"\1", "sha256")
    return seal(plaintext, keying, salt or os.urandom(SALT), own)


def seal(plaintext: bytes, keying: bytes, salt: bytes, key_id: bytes) -> bytes:
    """Encrypt a single record, the last one (RFC 8188, section 2)."""
    secret = hmac.digest(salt, keying, "sha256")
    key = hmac.digest(secret, b"Content-Encoding: aes128gcm\0\1", "sha256")[:16]
    nonce = hmac.digest(secret, b"Content-Encoding: nonce\0\1", "sha256")[:12]
    sealed = AESGCM(key).encrypt(nonce, plaintext + b"\2", None)
    return salt + struct.pack("!IB", BODY, len(key_id)) + key_id + sealed
