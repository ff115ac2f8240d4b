"""Devices: where a person can be reached whose page is closed.

What names a device to its provider (an endpoint, a token) lets anybody who has it send to it, and
is shown to nobody. A device's id is made of it, so that the same device has the same id whoever
registers it, and however often."""

import hashlib
import hmac
from typing import Literal

from msgspec import Struct

Kind = Literal["webpush", "fcm", "apns"]

KINDS: tuple[Kind, ...] = ("webpush", "fcm", "apns")
SKEW = 60.0  # seconds by which clocks differ: what is registered later outlives a revocation
MAX_DEVICES = 20  # of one user; the longest unused goes
MAX_LABEL = 64


class WebPush(Struct, frozen=True, tag="webpush"):
    """A browser's subscription (RFC 8030, RFC 8291).

    Attributes:
        endpoint: the URL at the browser's own push service.
        p256dh: the browser's public key, an uncompressed point of 65 bytes.
        auth: 16 bytes that only it and this service know.
    """

    endpoint: str
    p256dh: bytes
    auth: bytes

    def __repr__(self) -> str:
        return "WebPush(...)"


class Fcm(Struct, frozen=True, tag="fcm"):
    """An app's registration at Firebase Cloud Messaging; `proof` is the digest of its secret."""

    token: str
    proof: bytes

    def __repr__(self) -> str:
        return "Fcm(...)"


class Apns(Struct, frozen=True, tag="apns"):
    """An app's device token at Apple's service, and the app's topic; likewise."""

    token: str
    topic: str
    proof: bytes

    def __repr__(self) -> str:
        return "Apns(...)"


Address = WebPush | Fcm | Apns


class Device(Struct, frozen=True):
    """A device of a user.

    Attributes:
        label: what its user calls it, if anything.
        created_at: when this user registered it, and `registered_at`, for the last time; `used_at`,
            when it was sent to, or registered: in milliseconds since 1970.
    """

    id: str
    user: str
    address: Address
    label: str | None
    created_at: int
    registered_at: int
    used_at: int

    @property
    def kind(self) -> Kind:
        return kind_of(self.address)


def kind_of(address: Address) -> Kind:
    """The kind of an address."""
    match address:
        case WebPush():
            return "webpush"
        case Fcm():
            return "fcm"
        case Apns():
            return "apns"


def device_id(address: Address) -> str:
    """The id of the device that has an address: the same for all who register it."""
    match address:
        case WebPush(endpoint=endpoint):
            name = endpoint
        case Fcm(token=token):
            name = token
        case Apns(token=token, topic=of):
            name = f"{of} {token}"
    name = f"{kind_of(address)} {name}"
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def proof_of(secret: bytes) -> bytes:
    """What is kept of an app's secret. It is random, so no more than a digest is needed."""
    return hashlib.sha256(secret).digest()


def proves(stored: Address, given: Address) -> bool:
    """True if who registers an address knows what only the device of the stored one does."""
    return hmac.compare_digest(_known_to(stored), _known_to(given))


def _known_to(address: Address) -> bytes:
    return address.p256dh + address.auth if isinstance(address, WebPush) else address.proof
