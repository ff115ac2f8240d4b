"""Apple Push Notification service: notices to apps, over HTTP/2, with a token. It reads what it
carries."""

import hashlib
import time
import uuid
from collections.abc import Callable
from typing import Self

import msgspec
from joserfc import jwt
from joserfc.jwk import ECKey
from msgspec import Struct

from msgpush.adapters.notify.exchange import Exchange, Reply, Unanswered
from msgpush.adapters.notify.fitting import fitting
from msgpush.domain.devices import Address, Apns, Kind
from msgpush.domain.marks import NORMAL
from msgpush.domain.notification import Answer, Notice, answer_of

BASE = "https://api.push.apple.com"
RENEWED = 2_700  # seconds: a token is good for an hour
SOONEST = 1_200  # seconds after which one that was refused is made anew: sooner, Apple refuses it
LONGEST_COLLAPSE = 64  # bytes
LARGEST = 4_096  # bytes of a notice

_encode = msgspec.json.Encoder().encode


class ProviderToken:
    """Says who sends, and is renewed in time: more often than every 20 minutes is refused.

    Args:
        key: on P-256, from Apple; `key_id` and `team_id` come with it.
        clock: seconds since 1970.
    """

    def __init__(
        self, key: ECKey, key_id: str, team_id: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._key, self._key_id, self._team_id = key, key_id, team_id
        self._clock = clock
        self._made, self._token = 0.0, ""

    def get(self, *, instead_of: str | None = None) -> str:
        """A token that is good.

        Args:
            instead_of: one that was refused, since it ran out.
        """
        now = self._clock()
        age = now - self._made
        refused = self._token == instead_of and age >= SOONEST
        if refused or not 0 <= age < RENEWED:
            header = {"alg": "ES256", "kid": self._key_id}
            claims = {"iss": self._team_id, "iat": int(now)}
            self._made, self._token = now, jwt.encode(header, claims, self._key)
        return self._token


class ApnsNotifier:
    """A Notifier for apps on Apple's devices. An async context manager.

    Args:
        base: where the service is: another place for apps in development.
    """

    kind: Kind = "apns"

    def __init__(
        self,
        token: ProviderToken,
        exchange: Exchange,
        *,
        base: str = BASE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._token, self._exchange = token, exchange
        self._base, self._clock = base.rstrip("/"), clock

    async def __aenter__(self) -> Self:
        await self._exchange.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._exchange.__aexit__(*failure)

    async def send(self, address: Address, notice: Notice) -> Answer:
        assert isinstance(address, Apns)
        token = self._token.get()
        try:
            reply = await self._post(token, address, notice)
            if reply.status == 403 and _reason(reply) == "ExpiredProviderToken":
                renewed = self._token.get(instead_of=token)
                if renewed != token:
                    reply = await self._post(renewed, address, notice)
        except Unanswered as error:
            return Answer("later" if error.again else "failed", error.reason)
        return answer(reply)

    async def _post(self, token: str, address: Apns, notice: Notice) -> Reply:
        headers = {
            "authorization": f"bearer {token}",
            "apns-topic": address.topic,
            "apns-push-type": "alert",
            "apns-priority": "10" if notice.priority >= NORMAL else "5",
            "apns-expiration": str(int(self._clock()) + max(0, notice.ttl)),
            "apns-id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{address.token} {notice.key}")),
        }
        if notice.collapse is not None:
            headers["apns-collapse-id"] = collapse_id(notice.collapse)
        url = f"{self._base}/3/device/{address.token}"
        return await self._exchange.post(url, headers, payload(notice))


def payload(notice: Notice) -> bytes:
    """The notice as Apple wants it: the key, the title, and a text that was given for this."""

    def said(more: dict[str, str]) -> bytes:
        alert = {"title": notice.title} | more
        return _encode({"aps": {"alert": alert, "sound": "default"}, "key": notice.key})

    if not notice.own_text or notice.text is None:
        return said({})
    return fitting(lambda text: said({"body": text}), notice.text, LARGEST)


def collapse_id(collapse: str) -> str:
    """What notices have in common that replace one another, as a header can say it."""
    if collapse.isascii() and collapse.isprintable() and len(collapse) <= LONGEST_COLLAPSE:
        return collapse.strip() or "-"
    return hashlib.blake2b(collapse.encode(), digest_size=32).hexdigest()


class _Refused(Struct):
    reason: str = ""


def _reason(reply: Reply) -> str:
    try:
        said = msgspec.json.decode(reply.body, type=_Refused).reason
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return said[:40] if said.isalpha() and said.isascii() else ""


def answer(reply: Reply) -> Answer:
    """What an answer of Apple's means, by the reason that it gives."""
    reason = _reason(reply)
    if reply.status == 410 or (reply.status == 400 and reason == "BadDeviceToken"):
        return Answer("gone", reason or f"status {reply.status}")
    if reason == "ExpiredProviderToken":
        return Answer("later", reason)
    found = answer_of(reply.status, reply.retry_after)
    told = f"{found.reason} {reason}".strip()
    if found.outcome == "gone":  # 404: the path is wrong, not the device
        return Answer("failed", told)
    return Answer(found.outcome, told, found.retry_after)
