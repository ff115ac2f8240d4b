"""Where a token comes from: a text, a function, or an OAuth 2.0 server."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio.to_thread

if TYPE_CHECKING:
    from authlib.integrations.httpx_client import OAuth2Client

RENEWED_EARLY = 60.0  # seconds before its end, or a quarter of its life if that is less
TRIED_AGAIN = 5.0
TIMEOUT = 10.0


class OAuth2:
    """Tokens of an OAuth 2.0 server, by client credentials (RFC 6749, section 4.4).

    A token is kept until shortly before its end, and asked for anew when the service refuses it.

    Args:
        token_url: the server's token endpoint.
        scope: what to ask for, if the server wants to be told.
        parameters: further ones of the request, such as `audience="https://push.example.com"`.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        token_url: str,
        *,
        scope: str | None = None,
        **parameters: str,
    ) -> None:
        self._id, self._secret, self._url = client_id, client_secret, token_url
        self._scope, self._parameters = scope, parameters
        self._lock = threading.Lock()
        self._token, self._until, self._end = "", 0.0, 0.0

    def __call__(self) -> str:
        """A token that is good for a while; blocks while the server is asked."""
        with self._lock:
            asked = time.monotonic()
            if asked >= self._until:
                try:
                    self._renew(asked)
                except Exception:
                    if asked >= self._end:
                        raise
                    self._until = asked + TRIED_AGAIN  # this one is still good
            return self._token

    def forget(self) -> None:
        """Ask for another one the next time: this one was refused."""
        with self._lock:
            self._until = self._end = 0.0

    def forked(self) -> None:
        """This is another process now: who held the lock is in its parent."""
        self._lock = threading.Lock()

    def _renew(self, asked: float) -> None:
        with self._client() as client:
            answer: dict[str, Any] = client.fetch_token(
                self._url, grant_type="client_credentials", **self._parameters
            )
        life = float(answer.get("expires_in") or 3600)
        self._token = _text(answer["access_token"])
        self._end = asked + life
        self._until = self._end - min(RENEWED_EARLY, life / 4)

    def _client(self) -> OAuth2Client:
        from authlib.integrations.httpx_client import OAuth2Client  # noqa: PLC0415 - 0.2 s

        return OAuth2Client(self._id, self._secret, scope=self._scope, timeout=TIMEOUT)


TokenSource = str | Callable[[], str] | OAuth2 | None
AsyncTokenSource = TokenSource | Callable[[], Awaitable[str]]


class Tokens:
    """The present token of a source: a function is asked once, and again when it was refused."""

    def __init__(self, source: AsyncTokenSource) -> None:
        self._source = source
        self._kept = _text(source) if isinstance(source, str) and source else ""

    @property
    def renewable(self) -> bool:
        """Whether another one may be had after this."""
        return callable(self._source)

    @property
    def waits(self) -> bool:
        """Whether the source is a coroutine function."""
        return inspect.iscoroutinefunction(self._source)

    def forget(self) -> None:
        """The token was refused: the next one comes from the source again."""
        if isinstance(self._source, OAuth2):
            self._source.forget()
        if callable(self._source):
            self._kept = ""

    def forked(self) -> None:
        """This is another process now."""
        if isinstance(self._source, OAuth2):
            self._source.forked()

    def get(self) -> str:
        """A token, or nothing; blocks while the source is asked."""
        if isinstance(self._source, OAuth2):
            return self._source()  # it knows when its token ends
        if not self._kept and callable(self._source):
            self._kept = _text(self._source())
        return self._kept

    async def aget(self) -> str:
        """The same, for a program that must not be blocked."""
        if isinstance(self._source, OAuth2):
            return await anyio.to_thread.run_sync(self._source)
        if not self._kept and callable(self._source):
            token = self._source()
            self._kept = _text(await token if inspect.isawaitable(token) else token)
        return self._kept


def _text(token: object) -> str:
    if not isinstance(token, str):
        raise TypeError(f"the token is {type(token).__name__}, and no text")
    token = token.strip()  # a file's last line has an end
    if not (token and token.isascii() and token.isprintable()):
        raise ValueError("the token is no text for a header")
    return token
