"""A client's tokens: texts, functions, and those of an OAuth 2.0 server."""

import base64
import json
import os
import threading
from collections.abc import Awaitable, Iterator
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs

import pytest

from msgpush.client import AsyncPublisher, OAuth2, Publisher
from msgpush.client.tokens import Tokens
from tests.support.web import WebServer, answer

URL = "http://127.0.0.1:9"


class TokenServer(WebServer):
    """A token endpoint; `status` and `answer` are what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"{self.origin}/token"
        self.status, self.answer = 200, dict[str, Any](token_type="Bearer", expires_in=600)
        self.forms: list[dict[str, list[str]]] = []
        self.credentials: set[str] = set()

    def post(self, exchange: BaseHTTPRequestHandler) -> None:
        body = exchange.rfile.read(int(exchange.headers["Content-Length"])).decode()
        self.forms.append(parse_qs(body))
        scheme, _, encoded = exchange.headers["Authorization"].partition(" ")
        self.credentials.add(f"{scheme} {base64.b64decode(encoded).decode()}")
        token = {"access_token": f"token-{len(self.forms)}"} | self.answer
        given = token if self.status == 200 else {"error": "temporarily_unavailable"}
        answer(
            exchange,
            json.dumps(given).encode(),
            ("Content-Type", "application/json"),
            status=self.status,
        )


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("msgpush.client.tokens.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer() as server:
        yield server


def source(server: TokenServer, **options: str) -> OAuth2:
    return OAuth2("importer", "s3cret:/", server.url, **options)


# Texts and functions


def test_a_text_is_the_token_and_its_end_of_line_is_none_of_it() -> None:
    assert Tokens("abc").get() == "abc"
    assert Tokens(" abc\n").get() == "abc"

    def read() -> str:
        return "abc\r\n"

    assert Tokens(read).get() == "abc"
    assert not Tokens("abc").renewable
    assert Tokens(None).get() == Tokens("").get() == ""


@pytest.mark.parametrize("token", ["schlüssel", "a\nb", "a\0b", "  "])
def test_a_text_that_no_header_takes_is_told_at_once(token: str) -> None:
    with pytest.raises(ValueError, match="the token is no text for a header"):
        Publisher(URL, token=token)


@pytest.mark.parametrize("token", [None, 7, b"abc"])
def test_a_function_that_gives_no_text_is_told(token: object) -> None:
    with pytest.raises(TypeError, match="and no text"):
        Tokens(cast("Any", lambda: token)).get()


def test_a_function_is_asked_once_and_again_when_its_token_was_refused() -> None:
    given = iter(["one", "two"])

    def give() -> str:
        return next(given)

    tokens = Tokens(give)
    assert [tokens.get(), tokens.get()] == ["one", "one"]
    tokens.forget()
    assert tokens.get() == "two"


async def test_a_coroutine_function_is_awaited() -> None:
    async def give() -> str:
        return "abc"

    assert await Tokens(give).aget() == "abc"

    def plain() -> Awaitable[str]:
        return give()

    assert await Tokens(plain).aget() == "abc"
    with pytest.raises(TypeError, match="coroutine function"):
        Publisher(URL, token=cast("Any", give))


async def test_without_its_loop_a_coroutine_s_token_cannot_be_had() -> None:
    async def give() -> str:
        return "abc"

    publisher = AsyncPublisher(URL, token=give)
    assert publisher._in_loop is not None
    with pytest.raises(RuntimeError, match="the event loop of its function has ended"):
        publisher._in_loop()
    await publisher.close()


# OAuth 2.0


def test_client_credentials_are_sent_as_the_standard_says(server: TokenServer) -> None:
    assert source(server, scope="push", audience="https://push.example.com")() == "token-1"
    assert server.forms == [
        {
            "grant_type": ["client_credentials"],
            "scope": ["push"],
            "audience": ["https://push.example.com"],
        }
    ]
    assert server.credentials == {"Basic importer:s3cret:/"}


def test_a_token_is_kept_until_shortly_before_its_end(server: TokenServer, clock: Clock) -> None:
    token = source(server)
    assert token() == token() == "token-1"
    clock.now += 539
    assert token() == "token-1"
    clock.now += 2
    assert token() == "token-2"


def test_a_short_life_is_used_for_three_quarters(server: TokenServer, clock: Clock) -> None:
    server.answer["expires_in"] = 8
    token = source(server)
    assert token() == "token-1"
    clock.now += 5.9
    assert token() == "token-1"
    clock.now += 0.2
    assert token() == "token-2"


@pytest.mark.parametrize("life", [None, 0, "600"])
def test_a_life_that_is_not_told_in_a_number_is_an_hour(
    server: TokenServer, clock: Clock, life: object
) -> None:
    server.answer["expires_in"] = life
    token = source(server)
    token()
    clock.now += 500
    assert token() == "token-1"


def test_a_refused_token_is_not_used_again(server: TokenServer) -> None:
    token = source(server)
    assert token() == "token-1"
    token.forget()
    assert token() == "token-2"


def test_a_token_that_is_good_still_is_used_while_the_server_is_down(
    server: TokenServer, clock: Clock
) -> None:
    token = source(server)
    token()
    server.status = 503
    clock.now += 570
    assert token() == "token-1"
    clock.now += 1
    asked = len(server.forms)
    assert token() == "token-1"
    assert len(server.forms) == asked, "nor is the server asked with each message"
    clock.now += 30
    with pytest.raises(Exception, match=r"temporarily_unavailable|503"):
        token()
    server.status = 200
    assert token() == f"token-{len(server.forms)}"


def test_a_refused_token_is_not_used_while_the_server_is_down(server: TokenServer) -> None:
    token = source(server)
    token()
    token.forget()
    server.status = 503
    with pytest.raises(Exception, match=r"temporarily_unavailable|503"):
        token()


def test_many_threads_ask_once(server: TokenServer) -> None:
    token, got = source(server), list[str]()
    threads = [threading.Thread(target=lambda: got.append(token())) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert got == ["token-1"] * 8


async def test_the_loop_goes_on_while_the_server_is_asked(server: TokenServer) -> None:
    assert await Tokens(source(server)).aget() == "token-1"


def test_a_fork_while_the_server_is_asked_leaves_no_lock_behind(server: TokenServer) -> None:
    token = source(server)
    publisher = Publisher(URL, token=token)
    with token._lock:  # as of a thread that is asking
        child = os.fork()
        if not child:
            free = token._lock.acquire(timeout=1)
            os._exit(0 if free else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    publisher.close()
