"""The checks of `msgpush doctor`: each says what was tried, and what to do where it is wrong."""

import base64
import binascii
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
from msgspec import Struct

from msgpush.client.errors import rejected
from msgpush.entrypoints.commands.findings import COLLECTS, Line, elapsed, judged, ok, reason, wrong
from msgpush.entrypoints.commands.remote import Remote
from msgpush.entrypoints.commands.tried_stream import Stream
from msgpush.entrypoints.commands.whereabouts import elsewhere, health_of, unreachable

SERVICE = "msgpush-doctor"
SEVERAL = "several instances without a common Redis are behind the URL; set REDIS_HOST or REDIS_URL"
NOT_ALLOWED = (
    f"the token may not use the doctor's own channel; one that may: `msgpush token issue --sub"
    f" doctor --subscribe '{SERVICE}.*' --publish '{SERVICE}.*' --publish service:{SERVICE}`"
)


class Ended(Exception):
    """Nothing further can be tried."""


class _Sent(Struct):
    id: str
    timestamp: datetime


class Examination:
    """The checks of a service, one after the other.

    Args:
        seconds: that anything may take.
    """

    def __init__(self, remote: Remote, seconds: float) -> None:
        self._remote, self._seconds = remote, seconds
        self._client = remote.client(seconds)
        self._bus = ""
        # Nobody else listens there.
        self._own = f"{SERVICE}.{secrets.token_hex(6)}"

    def close(self) -> None:
        self._client.close()

    def run(
        self, channels: Sequence[str], origin: str | None, *, websocket: bool
    ) -> Iterator[Line]:
        """Check all, as far as one thing doesn't stop the next."""
        try:
            yield from self._presence()
            yield from self._streams(channels)
            if origin is not None:
                yield from self._cors(origin)
            if websocket:
                yield from self._websocket()
        except Ended:
            return
        except httpx2.HTTPError as error:
            yield wrong(f"the connection broke: {reason(error)}; try again, or look at the proxy")

    # Is it there?

    def _presence(self) -> Iterator[Line]:
        """Whether a msgpush answers at the URL, and its clock; raises `Ended` if none does."""
        asked = time.time()
        try:
            answer = self._client.get(f"{self._remote.url}/health")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = unreachable(self._remote, error, self._seconds)
            yield wrong(f"{self._remote.shown} can't be reached: {why}")
            raise Ended from None
        health = health_of(answer)
        if health is None:
            yield wrong(elsewhere(self._client, self._remote, answer))
            raise Ended
        if health.status != "ok":
            yield wrong(f"the service is unavailable: {health.reason}; its log says more")
            raise Ended
        self._bus = health.bus
        yield ok(f"msgpush answers at {self._remote.shown} (bus: {health.bus})")
        yield from self._clock(answer.headers.get("date"), (asked + time.time()) / 2)

    def _clock(self, date: str | None, now: float) -> Iterator[Line]:
        if date is None:
            return
        try:
            ahead = parsedate_to_datetime(date).timestamp() + 0.5 - now
        except ValueError:
            yield wrong(f'the header Date is "{date}", and no date; something between sets it')
            return
        yield judged(ahead, "header Date")

    # May we listen, and does it arrive?

    def _streams(self, channels: Sequence[str]) -> Iterator[Line]:
        """Whether the channels can be listened to, and what is published arrives at once."""
        if channels:
            with self._stream(channels) as stream:
                yield stream.verdict
                if stream.verdict.kind == "wrong" and stream.status != 403:
                    return
        with self._stream([self._own]) as stream:
            if stream.status != 403:
                yield stream.verdict
                if stream.verdict.kind == "ok":
                    yield from self._message(stream)
                return
        subject = _subject(self._remote.token)
        if subject is not None and not channels:
            # To listen to its own user's channel is what every token allows.
            with self._stream([f"user:{subject}"]) as stream:
                yield stream.verdict
        yield Line("not tried", f"a message's way: {NOT_ALLOWED}")

    def _message(self, stream: Stream) -> Iterator[Line]:
        """Whether a message arrives on an open stream, and the clock that it was stamped by."""
        message = {
            "type": "custom",
            "service": SERVICE,
            "channels": [self._own],
            "metadata": {"ttl": 60},
        }
        begun = time.monotonic()
        answer = self._client.post(
            f"{self._remote.url}/api/v1/messages/send", content=msgspec.json.encode(message)
        )
        if answer.status_code == 403:
            yield Line("not tried", f"a message's way: {NOT_ALLOWED}")
            return
        if answer.status_code != 202:
            error = rejected(answer.status_code, answer.content)
            yield wrong(
                f"a message can't be published: {error}; have a proxy pass POST on as it is"
            )
            return
        sent = msgspec.json.decode(answer.content, type=_Sent)
        yield judged(sent.timestamp.timestamp() - time.time(), "a message's timestamp")
        if stream.hears(sent.id):
            yield ok(f"a message arrives {elapsed(begun)} after it is published")
        else:
            apart = f"; or {SEVERAL}" if self._bus == "memory" else ""
            yield wrong(
                f"a message was published, and didn't arrive in {self._seconds:g} s, though the"
                f" stream is open: {COLLECTS}{apart}"
            )

    def _stream(self, channels: Sequence[str]) -> Stream:
        return Stream(self._client, self._remote, channels, self._seconds)

    # May a page?

    def _cors(self, origin: str) -> Iterator[Line]:
        """Whether the origin's pages may use it."""
        parts = urlsplit(self._remote.url)
        if origin == f"{parts.scheme}://{parts.netloc}":
            yield ok(f"{origin} is its own origin: its pages may use it")
            return
        answer = self._client.head(
            f"{self._remote.url}/sse/stream/{self._own}", headers={"Origin": origin}
        )
        preflight = self._client.options(
            f"{self._remote.url}/api/v1/messages/send",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            },
        )
        name = "access-control-allow-origin"
        allowed = [each.headers.get_list(name) for each in (answer, preflight)]
        if any(len(each) > 1 for each in allowed):
            yield wrong(
                f"{name} is there twice, which browsers refuse: have the proxy add no CORS headers"
                " of its own"
            )
        elif all(each in ([origin], ["*"]) for each in allowed) and preflight.is_success:
            yield ok(f"pages of {origin} may use it")
        elif allowed[0] in ([origin], ["*"]):
            yield wrong(
                f"pages of {origin} may listen, and not publish or send a token: the preflight"
                f" (OPTIONS) is answered with {preflight.status_code}; have the proxy pass it on"
            )
        else:
            yield wrong(
                f"pages of {origin} may not use it (no {name} for them): add it to the service's"
                f""" CORS_ORIGINS, as in CORS_ORIGINS='["{origin}"]'"""
            )

    # And a WebSocket?

    def _websocket(self) -> Iterator[Line]:
        from websockets.exceptions import InvalidStatus, WebSocketException  # noqa: PLC0415
        from websockets.sync.client import connect  # noqa: PLC0415 - few ask for it

        url = f"ws{self._remote.url.removeprefix('http')}/ws"
        begun = time.monotonic()
        try:
            with connect(
                url, additional_headers=self._remote.headers, open_timeout=self._seconds
            ) as opened:
                told = msgspec.json.decode(opened.recv(self._seconds), type=dict[str, Any])
                yield (
                    ok(f"a WebSocket opens in {elapsed(begun)}")
                    if told.get("event") == "msgpush.open"
                    else wrong(f"a WebSocket is closed again: {told.get('data')}")
                )
        except InvalidStatus as refused:
            yield wrong(
                f"a WebSocket doesn't open ({refused.response.status_code}): have the proxy pass on"
                " the headers Upgrade and Connection, over HTTP/1.1, for /ws"
            )
        except (WebSocketException, OSError, msgspec.DecodeError) as error:
            yield wrong(f"a WebSocket doesn't open: {reason(error)}; have the proxy pass /ws on")


def _subject(token: str | None) -> str | None:
    """Whom a token is for, unverified."""
    parts = (token or "").split(".")
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=="), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error):
        return None
    subject = claims.get("sub")
    return subject if isinstance(subject, str) else None
