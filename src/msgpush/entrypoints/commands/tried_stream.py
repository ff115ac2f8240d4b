"""A stream that `msgpush doctor` tries: whether it opens, and events arrive in time."""

import time
from collections.abc import Iterator, Sequence
from typing import Self
from urllib.parse import quote

import httpx2
import msgspec
from msgspec import Struct

from msgpush.client.errors import rejected
from msgpush.entrypoints.commands.findings import COLLECTS, Line, elapsed, ok, wrong
from msgpush.entrypoints.commands.remote import Remote


class _Opened(Struct):
    channels: tuple[str, ...] = ()


class _Closed(Struct):
    reason: str = ""


class Stream:
    """A stream that is tried; a context manager, which has its verdict when it is entered.

    Args:
        seconds: that anything of it may take.
    """

    def __init__(
        self, client: httpx2.Client, remote: Remote, channels: Sequence[str], seconds: float
    ) -> None:
        self._client, self._remote, self._channels = client, remote, channels
        self._seconds, self._begun = seconds, time.monotonic()
        self._answer: httpx2.Response | None = None
        self._events: Iterator[httpx2.ServerSentEvent] = iter(())
        self.status = 0
        self.verdict = ok("")

    def __enter__(self) -> Self:
        names = ",".join(quote(each, safe=":") for each in self._channels)
        query = "passive=true&events=none&broadcast=false"
        url = f"{self._remote.url}/sse/stream/{names}?{query}"
        request = self._client.build_request("GET", url, headers={"Accept": "text/event-stream"})
        try:
            self._answer = self._client.send(request, stream=True)
            self.status = self._answer.status_code
            self.verdict = self._judge(self._answer)
        except httpx2.TimeoutException:
            missing = "its first event doesn't" if self.status else "nothing of it does"
            self.verdict = wrong(
                f"a stream doesn't open: {missing} arrive in {self._seconds:g} s, while other"
                f" answers come at once: {COLLECTS}"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._answer is not None:
            self._answer.close()

    def hears(self, id: str) -> bool:
        """Whether a message comes in time."""
        until = time.monotonic() + self._seconds
        try:
            while time.monotonic() < until:
                event = next(self._events)
                if event.event == "message" and f'"id":"{id}"' in event.data.replace(": ", ":"):
                    return True
        except (StopIteration, httpx2.HTTPError):
            pass
        return False

    def _judge(self, answer: httpx2.Response) -> Line:
        if answer.status_code != 200:
            return self._refused(answer)
        kind = answer.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            return wrong(
                f'a stream\'s Content-Type is "{kind}", and no text/event-stream; something between'
                " answers in the service's place: have it pass /sse/ on"
            )
        self._events = iter(httpx2.EventSource(answer))
        event = next(self._events, None)
        if event is None:
            return wrong("a stream ends before its first event; have the proxy pass it on as it is")
        if event.event == "msgpush.close":
            reason = msgspec.json.decode(event.data, type=_Closed).reason
            return wrong(
                f"the service takes no stream now ({reason}); see its log and /health, and"
                " MAX_CONNECTIONS"
            )
        if event.event != "msgpush.open":
            return wrong(
                f'a stream begins with "{event.event}": it is no msgpush\'s; correct the URL'
            )
        if encoding := answer.headers.get("content-encoding"):
            return wrong(
                f"a proxy compresses streams ({encoding}), and holds events back for that; have it"
                " leave text/event-stream alone"
            )
        channels = msgspec.json.decode(event.data, type=_Opened).channels
        return ok(f"a stream on {', '.join(channels)} opens in {elapsed(self._begun)}")

    def _refused(self, answer: httpx2.Response) -> Line:
        error = rejected(answer.status_code, answer.read())
        names = ", ".join(self._channels)
        if answer.status_code == 401 and self._remote.token is None:
            return wrong(f"{error.detail}; give one by MSGPUSH_TOKEN or --token-file")
        if answer.status_code == 401:
            return wrong(
                f"the token is refused: {error.detail}; `msgpush token inspect`, with the service's"
                " settings, says more"
            )
        if answer.status_code == 403:
            return wrong(
                f"{error.detail}; issue a token whose msgpush.subscribe has {names}, or try another"
                " channel"
            )
        return wrong(f"a stream on {names} is refused: {error}")
