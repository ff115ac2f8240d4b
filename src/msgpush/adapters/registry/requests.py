"""Requests to a registry: bounded in time and size, to its own host alone, past any proxy.

Python's own client for HTTP does: a few small requests a minute need no connection pool, and the
service has no other client among what it depends on."""

import contextlib
import http.client
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from msgpush import __version__
from msgpush.adapters.blocking import in_daemon
from msgpush.adapters.registry.ports import Unavailable

SECONDS = 5.0  # that the server may be silent
ANSWER_BYTES = 64 * 1024
TOLD = 120  # characters of an answer that are told


class Answer(NamedTuple):
    """A response with its whole body."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def text(self, secrets: tuple[str, ...] = ()) -> str:
        """What it says of itself, on one line and short; secrets that it repeats are left out."""
        text = self.body.decode(errors="replace")
        for secret in secrets:
            text = text.replace(secret, "...")
        return re.sub(r"[^\x20-\x7e]+", " ", text).strip()[:TOLD]


class Server:
    """A registry's HTTP server, at a base URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self._path, self._tls = parts.path.rstrip("/"), parts.scheme == "https"
        # Always with a port: Python's client would take a part of an IPv6 address for it.
        self.host, self._port = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._context: ssl.SSLContext | None = None

    async def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer to a request; redirects aren't followed: they would take the token along.

        Args:
            body: sent as JSON; None: none is sent.

        Raises:
            Unavailable: there is no answer, or one that is no use to anybody."""
        connection = self._connection()
        content = None if body is None else msgspec.json.encode(body)
        sent = {
            "User-Agent": f"msgpush/{__version__}",
            "Accept": "application/json",
            "Connection": "close",
            **({} if content is None else {"Content-Type": "application/json"}),
            **(headers or {}),
        }

        opened: list[socket.socket] = []
        given_up = False

        def exchange() -> Answer:
            with contextlib.closing(connection):
                connection.connect()
                opened.append(connection.sock)
                if given_up:
                    # What is sent now could come after a later request, and undo it.
                    raise TimeoutError
                connection.request(method, self._path + path, content, sent)
                # Its file would keep the socket open, however the reading ends.
                with connection.getresponse() as response:
                    received = response.read(ANSWER_BYTES + 1)
                if len(received) > ANSWER_BYTES:
                    raise OSError(f"its answer is larger than {ANSWER_BYTES} bytes")
                return Answer(response.status, received)

        try:
            answer = await in_daemon(exchange, "msgpush registry")
        except http.client.HTTPException as error:
            raise Unavailable(f"its answer can't be read: {type(error).__name__}") from None
        except OSError as error:
            raise Unavailable(reason_of(error)) from None
        except UnicodeError:
            raise Unavailable("its host's name is none that can be looked up") from None
        finally:
            # Whoever waits no longer ends the thread, too.
            given_up = True
            for each in opened:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        if 300 <= answer.status < 400:
            raise Unavailable(
                f"it answers with the redirect {answer.status}, which isn't followed: name the"
                " place that it leads to"
            )
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self.host, self._port, timeout=SECONDS)
        if self._context is None:
            self._context = ssl.create_default_context()
        return http.client.HTTPSConnection(
            self.host, self._port, timeout=SECONDS, context=self._context
        )


def reason_of(error: OSError) -> str:
    """What an error of the network says, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't good: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "it doesn't answer in time"
    return error.strerror or str(error) or type(error).__name__


def decoded(answer: Answer, type: type[Any]) -> Any:
    """A body read as JSON of this type.

    Raises:
        Unavailable: it is something else, so this is no such registry, or a broken one.
    """
    try:
        return msgspec.json.decode(answer.body, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable("its answer is not the JSON that such a registry gives") from None
