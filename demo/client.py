"""msgpush with the standard library alone: publish until it is accepted, listen until it is told to stop."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any

LONGEST_WAIT = 2.0


class Stopped(Exception):
    """The demo ends; what has not been published by now isn't wanted any more."""


class Publisher:
    """Publishes messages, each with an id of its own: so any error may be answered with another try.

    Args:
        base: where the service is, as in `http://127.0.0.1:8089`.
        stop: set when the demo ends.
    """

    def __init__(self, base: str, stop: threading.Event) -> None:
        self._url = f"{base}/api/v1/messages/send"
        self._stop = stop

    def publish(self, message: dict[str, Any]) -> None:
        """Return once the message is accepted, however long the service is away.

        Raises:
            Stopped: the demo has ended first.
            ValueError: the service refuses the message.
        """
        body = json.dumps(message).encode()
        wait = 0.05
        while not self._stop.is_set():
            try:
                request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=5):
                    return
            except urllib.error.HTTPError as error:
                with error:
                    if error.code < 500:
                        raise ValueError(error.read().decode()) from None
            except (OSError, HTTPException):
                pass
            self._stop.wait(wait)
            wait = min(LONGEST_WAIT, wait * 2)
        raise Stopped


def listen(base: str, channel: str, on_reset: Callable[[], None], stop: threading.Event) -> None:
    """Follow a channel until `stop`, and call back when the log was lost: what was published must be said again."""
    last_id = ""
    while not stop.is_set():
        try:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            request = urllib.request.Request(f"{base}/sse/stream/{channel}?events=none", headers=headers)
            with urllib.request.urlopen(request, timeout=60) as stream:
                for event in _events(stream):
                    last_id = event.get("id", last_id)
                    if event.get("event") == "msgpush.gap" and json.loads(event["data"])["reason"] == "reset":
                        on_reset()
                    if stop.is_set():
                        return
        except (OSError, HTTPException):
            pass
        time.sleep(0.2)


def _events(stream: Any) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for raw in stream:
        line = raw.decode().rstrip("\n")
        if not line:
            yield event
            event = {}
        else:
            field, _, value = line.partition(": ")
            event[field] = value
