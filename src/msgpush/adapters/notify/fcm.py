"""Firebase Cloud Messaging: notices to apps, by its HTTP v1 interface. It reads what it carries."""

import re
from typing import Any, Self
from urllib.parse import quote

import msgspec
from msgspec import Struct

from msgpush.adapters.notify.exchange import Exchange, Reply, Unanswered
from msgpush.adapters.notify.fitting import fitting
from msgpush.adapters.notify.oauth import AccessTokens
from msgpush.domain.devices import Address, Fcm, Kind
from msgpush.domain.marks import NORMAL
from msgpush.domain.notification import Answer, Notice, answer_of

BASE = "https://fcm.googleapis.com"
LONGEST_TTL = 28 * 86_400  # seconds: it takes no more
LARGEST = 4_096  # bytes: what it takes of a notification and data, without what is around them

_encode = msgspec.json.Encoder().encode


class FcmNotifier:
    """A Notifier for apps that are registered at FCM. An async context manager.

    Args:
        project: the id of the Firebase project.
        base: where its service is.
    """

    kind: Kind = "fcm"

    def __init__(
        self, project: str, tokens: AccessTokens, exchange: Exchange, *, base: str = BASE
    ) -> None:
        self._tokens, self._exchange = tokens, exchange
        self._url = f"{base.rstrip('/')}/v1/projects/{quote(project, safe='')}/messages:send"

    async def __aenter__(self) -> Self:
        await self._exchange.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._exchange.__aexit__(*failure)

    async def send(self, address: Address, notice: Notice) -> Answer:
        assert isinstance(address, Fcm)
        body = payload(address.token, notice)
        try:
            token = await self._tokens.get()
            reply = await self._post(token, body)
            if reply.status == 401:  # it has run out meanwhile, whatever was said of it
                token = await self._tokens.get(instead_of=token)
                reply = await self._post(token, body)
        except Unanswered as error:
            return Answer("later" if error.again else "failed", error.reason)
        return answer(reply)

    async def _post(self, token: str, body: bytes) -> Reply:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return await self._exchange.post(self._url, headers, body)


def payload(token: str, notice: Notice) -> bytes:
    """The notice as FCM wants it: the key, the title, and a text that was given for this."""
    if not notice.own_text or notice.text is None:
        return _message(token, notice, {})
    room = LARGEST + len(token)
    return fitting(lambda text: _message(token, notice, {"body": text}), notice.text, room)


def _message(token: str, notice: Notice, more: dict[str, str]) -> bytes:
    shown = {"title": notice.title} | more
    urgent = notice.priority > NORMAL
    ttl = max(0, min(notice.ttl, LONGEST_TTL))
    android: dict[str, Any] = {"priority": "HIGH" if urgent else "NORMAL", "ttl": f"{ttl}s"}
    if notice.collapse is not None:
        android["collapse_key"] = notice.collapse
    data = {"key": notice.key}
    message = {"token": token, "notification": shown, "data": data, "android": android}
    return _encode({"message": message})


class _Detail(Struct):
    errorCode: str | None = None


class _Error(Struct):
    details: list[_Detail] = []


class _Refused(Struct):
    error: _Error


def answer(reply: Reply) -> Answer:
    """What an answer of FCM means, by the code that it gives.

    A device is gone only where it says so: a wrong path has the status 404, too."""
    if 200 <= reply.status < 300:
        return answer_of(reply.status)
    code = ""
    try:
        details = msgspec.json.decode(reply.body, type=_Refused).error.details
        code = next((each.errorCode for each in details if each.errorCode), "")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    if code == "UNREGISTERED":
        return Answer("gone", code)
    if reply.status == 401:
        return Answer("later", "its access token was refused")
    found = answer_of(reply.status, reply.retry_after)
    reason = f"{found.reason} {code}" if re.fullmatch("[A-Z_]{1,40}", code) else found.reason
    return Answer("failed" if found.outcome == "gone" else found.outcome, reason, found.retry_after)
