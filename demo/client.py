"""msgpush with the standard library alone: publish until accepted, listen until told to stop."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException
from typing import Any

LONGEST_WAIT = 1.0
# Longer than the service's heartbeats are apart: a stream that is silent for so long is dead.
SILENCE = 60.0

# The service is on this machine: no proxy that the environment names is asked for it.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Stopped(Exception):
    """The demo ends; what has not been published by now isn't wanted any more."""


class Refused(Exception):
    """The service will never accept this message. Its text is the service's reason."""


class Publisher:
    """Publishes messages, each with an id of its own: so any error may be answered with a retry.

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
            Refused: the service says what is wrong with the message.
        """
        body = json.dumps(message).encode()
        wait = 0.05
        while not self._stop.is_set():
            try:
                request = urllib.request.Request(
                    self._url, body, {"Content-Type": "application/json"}
                )
                with _open(request, timeout=5):
                    return
            except urllib.error.HTTPError as error:
                with error:
                    if error.code < 500:
                        raise Refused(error.read().decode()) from None
            except (OSError, HTTPException):
                pass
            self._stop.wait(wait)
            wait = min(LONGEST_WAIT, wait * 2)
        raise Stopped


def listen(
    base: str,
    channels: str,
    *,
    on_open: Callable[[], None],
    on_reset: Callable[[], None],
    on_message: Callable[[dict[str, Any]], None],
    stop: threading.Event,
) -> None:
    """Follow channels until `stop`.

    Args:
        on_open: called each time the stream opens. From the first time on, no reset is missed.
        on_reset: called when the log was lost: what was published must be said again.
        on_message: called with each message.
    """
    last_id = ""
    while not stop.is_set():
        try:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            request = urllib.request.Request(
                f"{base}/sse/stream/{channels}?events=none", headers=headers
            )
            with _open(request, timeout=SILENCE) as stream:
                for event in events(stream):
                    last_id = event.get("id", last_id)
                    if "event" not in event:
                        on_message(json.loads(event["data"]))
                    elif event.get("event") == "msgpush.open":
                        on_open()
                    elif (
                        event.get("event") == "msgpush.gap"
                        and json.loads(event["data"])["reason"] == "reset"
                    ):
                        on_reset()
        except (OSError, HTTPException):
            pass
        except Stopped:
            return
        # Not what `retry:` asks for: that spreads a crowd, and this is one client, whom the pages
        # wait for.
        stop.wait(0.2)


def events(lines: Iterable[bytes]) -> Iterator[dict[str, str]]:
    """The blocks of a stream, each as its fields.

    What comes after the last empty line is cut off, and no event."""
    event: dict[str, str] = {}
    for line in lines:
        field, _, value = line.decode().rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if field:
            event[field] = (
                f"{event[field]}\n{value}" if field == "data" and "data" in event else value
            )
        elif event and not line.startswith(b":"):
            yield event
            event = {}
