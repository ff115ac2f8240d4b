"""Web Push: notices to browsers, which nobody between can read (RFC 8030, 8291, 8292)."""

import asyncio
import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self
from urllib.parse import quote, urlsplit

import msgspec

from msgpush.adapters.notify.encryption import LARGEST, encrypt
from msgpush.adapters.notify.exchange import Exchange, Unanswered
from msgpush.adapters.notify.fitting import fitting
from msgpush.adapters.notify.places import Places
from msgpush.adapters.notify.vapid import Vapid
from msgpush.domain.devices import Address, Kind, WebPush
from msgpush.domain.notification import Answer, Notice, answer_of

URGENCIES = ("low", "normal", "high", "high")  # by the priority's place (RFC 8030, section 5.3)

_encode = msgspec.json.Encoder().encode


class WebPushNotifier:
    """A Notifier for browsers. An async context manager.

    Args:
        places: where endpoints may be; looked at again for each sending, since settings change.
    """

    kind: Kind = "webpush"

    def __init__(self, vapid: Vapid, places: Places, exchange: Exchange) -> None:
        self._vapid, self._places, self._exchange = vapid, places, exchange
        # Encryption goes on beside the loop, which a burst of thousands would else hold up; and in
        # one thread, since each further one has the loop wait for its turn at the interpreter.
        self._thread = ThreadPoolExecutor(1, "msgpush encryption")

    async def __aenter__(self) -> Self:
        await self._exchange.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._exchange.__aexit__(*failure)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def send(self, address: Address, notice: Notice) -> Answer:
        assert isinstance(address, WebPush)
        try:
            endpoint = self._places.check(address.endpoint)
            loop, said = asyncio.get_running_loop(), payload(notice)
            body = await loop.run_in_executor(
                self._thread, encrypt, said, address.p256dh, address.auth
            )
        except ValueError:
            return Answer("failed", "not to be sent")
        headers = self._headers(endpoint, notice)
        try:
            reply = await self._exchange.post(endpoint, headers, body)
        except Unanswered as error:
            return Answer("later" if error.again else "failed", error.reason)
        return answer_of(reply.status, reply.retry_after)

    def _headers(self, endpoint: str, notice: Notice) -> dict[str, str]:
        headers = {
            "Authorization": self._vapid.authorization(f"https://{urlsplit(endpoint).netloc}"),
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(max(0, notice.ttl)),
            "Urgency": URGENCIES[notice.priority],
        }
        if notice.collapse is not None:
            headers["Topic"] = topic(notice.collapse)
        return headers


def topic(collapse: str) -> str:
    """What notices have in common that replace one another: at most 32 characters of base64url.

    It goes unencrypted (RFC 8030, section 5.4), so it is a digest."""
    digest = hashlib.blake2b(collapse.encode(), digest_size=24).digest()
    return base64.urlsafe_b64encode(digest).decode()


def payload(notice: Notice) -> bytes:
    """What the service worker gets: as much as fits, the message whole or not at all.

    `push-worker.ts` reads it."""
    said: dict[str, Any] = {"key": notice.key, "title": notice.title}
    more = {
        "body": notice.text,
        "url": notice.url,
        "icon": notice.icon,
        "collapse": notice.collapse,
    }
    said |= {name: value for name, value in more.items() if value is not None}
    if notice.word is not None:
        user = quote(notice.user, safe="")
        said["acknowledge"] = {
            "url": f"/api/v1/users/{user}/acknowledgements",
            "word": notice.word,
        }
    whole = _encode(said | {"message": msgspec.Raw(notice.message)})
    if len(whole) <= LARGEST:
        return whole
    for name in ("icon", "acknowledge"):
        # A text can be cut, but what stands beside it is there or isn't.
        if len(_encode(said | {"body": "\N{HORIZONTAL ELLIPSIS}"})) > LARGEST:
            said.pop(name, None)
    if notice.text is None:
        return _encode(said)
    return fitting(lambda text: _encode(said | {"body": text}), notice.text, LARGEST)
