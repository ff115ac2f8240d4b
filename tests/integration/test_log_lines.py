"""The log of a real server: what its lines tell of requests and streams, and never tell."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import websockets.sync.client
from websockets.exceptions import WebSocketException

from tests.support.client import RawConnection, Response, SseClient, request
from tests.support.service import ServiceProcess, eventually
from tests.support.tokens import SECRET, bearer, token

MARK = "hunter2"
SEND = "/api/v1/messages/send"
# A service in which storing a message, and showing a history, is a mistake: so that it crashes where it holds
# a whole message, and a whole request.
BROKEN = """
import os, sys
from msgpush.domain.service import Push
from msgpush.entrypoints.commands.serve import serve_with

store = Push.store

async def broken(self, drafts):
    if b"crash" in drafts[0].body:
        raise RuntimeError("a mistake")
    return await store(self, drafts)

async def history(self, channel, after, limit):
    raise RuntimeError("another mistake")

Push.store, Push.history = broken, history
sys.exit(serve_with([], os.environ))
"""


class Broken(ServiceProcess):
    """The service with mistakes in it."""

    command = ("-c", BROKEN)

    def logged(self, event: str, number: int = 1) -> list[dict[str, Any]]:
        """The lines that tell this, which come in time."""

        def found() -> list[dict[str, Any]]:
            lines = [line for line in self.log if line["event"] == event]
            return lines if len(lines) >= number else []

        return eventually(found)


@pytest.fixture(scope="module")
def json() -> Iterator[Broken]:
    with Broken(JWT_SECRET=SECRET) as service:
        yield service


EVERYTHING = token("root", publish=["*"], subscribe=["*"], admin=True)


def message(**more: object) -> bytes:
    return msgspec.json.encode({"type": "info", "service": "s", "channels": ["a"], **more})


def test_a_line_of_a_request_has_the_id_that_the_answer_tells(json: Broken) -> None:
    headers = {**bearer(EVERYTHING), "X-Request-Id": "from-the-proxy.1"}
    answer = request(json.port, "POST", SEND, message(data={"text": "crash"}), headers)
    assert (answer.status, answer.headers["x-request-id"]) == (500, "from-the-proxy.1")
    (line,) = json.logged("the application has failed")
    assert line["request_id"] == "from-the-proxy.1"
    made = request(json.port, "GET", "/api/v1/channels/a/messages", None, bearer(EVERYTHING))
    assert made.status == 500
    (_, other) = json.logged("the application has failed", 2)
    assert other["request_id"] == made.headers["x-request-id"] != "from-the-proxy.1"


@pytest.mark.parametrize(
    "asked",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_what_is_no_request_is_answered_with_an_id_too(json: Broken, asked: bytes) -> None:
    with RawConnection(json.port) as connection:
        connection.send(asked)
        head = connection.read_until(b"\r\n\r\n").lower()
    assert head.count(b"\r\nx-request-id: ") == 1


def test_a_stream_is_logged_as_it_opens_and_as_it_ends(json: Broken) -> None:
    headers = {**bearer(EVERYTHING), "X-Request-Id": "stream.7"}
    with SseClient(json.port, "/sse/stream/a,b,c?broadcast=false", headers) as stream:
        id = msgspec.json.decode(stream.next().data)["connection"]
        assert stream.headers["x-request-id"] == "stream.7"
        request(json.port, "POST", SEND, message(), bearer(EVERYTHING))
        stream.next()
    lines = [each for each in json.logged("a stream has ended") if each["connection"] == id]
    (opened,) = [e for e in json.logged("a stream has opened") if e["connection"] == id]
    (ended,) = lines
    same = {"subject": "root", "channels": 3, "transport": "sse", "level": "info"}
    assert opened.items() >= {"request_id": "stream.7", **same}.items()
    assert ended.items() >= {"reason": "gone", "messages": 1, **same}.items()
    assert 0 <= ended["seconds"] < 10


def test_a_websocket_is_logged_with_its_request_and_its_end(json: Broken) -> None:
    url = f"ws://127.0.0.1:{json.port}/ws?channel=a"
    named = {**bearer(EVERYTHING), "X-Request-Id": "socket.7"}
    with websockets.sync.client.connect(url, additional_headers=named) as socket:
        assert socket.response is not None
        assert socket.response.headers["X-Request-Id"] == "socket.7"
        id = msgspec.json.decode(socket.recv(10))["data"]["connection"]
        path = f"/api/v1/connections/{id}"
        assert request(json.port, "DELETE", path, None, bearer(EVERYTHING)).status < 300
    found = eventually(
        lambda: [e for e in json.logged("a stream has ended") if e["connection"] == id]
    )
    assert found[0].items() >= {"reason": "disconnected", "transport": "ws"}.items()
    (opened,) = [e for e in json.logged("a stream has opened") if e["connection"] == id]
    assert opened["request_id"] == "socket.7"


def test_a_stampede_has_few_lines_and_nobody_is_left_uncounted() -> None:
    number = 150
    with Broken() as service:
        for _ in range(number):
            SseClient(service.port, "/sse/stream/a").close()
        told = "more streams have opened or ended than are logged"
        events = ("a stream has opened", "a stream has ended")

        def counted() -> bool:
            single: int = sum(line["event"] in events for line in service.log)
            more = [line for line in service.log if line["event"] == told]
            assert not any("request_id" in line for line in more)
            left_out: int = sum(line["opened"] + line["closed"] for line in more)
            return single + left_out == 2 * number

        eventually(counted)


# What no line tells


@pytest.mark.parametrize("format", ["console", "json"])
def test_no_line_has_a_token_a_ticket_a_cookie_or_a_body(format: str) -> None:
    with Broken(JWT_SECRET=SECRET, LOG_LEVEL="debug", LOG_FORMAT=format) as service:
        secrets = drive(service)
        eventually(lambda: [line for line in service.log if "another mistake" in str(line)])
        text = "\n".join(str(line) for line in service.log)
    assert "a mistake" in text
    assert "a stream has opened" in text
    assert len(secrets) >= 10
    for secret in (*secrets, MARK, SECRET):
        assert secret not in text, secret


def drive(service: Broken) -> set[str]:
    """Ask everything in every wrong way; returns the parts of what is secret in the questions."""
    port = service.port
    given = [
        EVERYTHING,
        token("alice", subscribe=["a"]),
        token("alice", lifetime=-900),
        token("alice", "other-secret-" * 4),
        f"{MARK}.{MARK}.{MARK}",
        f"ticket_{MARK}",
    ]
    body = msgspec.json.encode({"channels": ["a"]})
    made = request(port, "POST", "/api/v1/tickets", body, bearer(given[1])).json()["ticket"]
    bodies = [
        message(data={"text": MARK}),
        message(data={"text": f"crash {MARK}"}),
        message(data={"text": MARK}, id="same"),
        message(data={"text": f"{MARK} changed"}, id="same"),
        message(**{MARK: 1}),
        message(type=MARK),
        message(metadata={"priority": MARK}),
        message(channels=[f"{MARK} {MARK}"]),
        message(target={"user_id": [MARK]}),
        message(data={"text": MARK})[:-2],
        f'{{"{MARK}'.encode() + b"\xff",
        f"[{MARK}]".encode(),
        b"",
        MARK.encode() * 50_000,
    ]
    told: list[Response] = []
    for each in (*given, made):
        for headers in (bearer(each), {"Cookie": f"msgpush_token={each}"}):
            for sent in bodies:
                for path in ("send", "broadcast", "batch"):
                    with suppress(OSError):
                        told.append(
                            request(port, "POST", f"/api/v1/messages/{path}", sent, headers)
                        )
            told.append(request(port, "GET", "/api/v1/channels/a/messages", None, headers))
            told.append(request(port, "GET", "/api/v1/connections", None, headers))
            told += [
                request(port, "POST", f"/api/v1/{path}", bodies[0], headers)
                for path in ("tickets", "revocations", "users/alice/acknowledgements")
            ]
        for name in ("token", "access_token", "ticket"):
            target = f"/sse/stream/a?{name}={each}"
            with suppress(AssertionError, TimeoutError), SseClient(port, target) as stream:
                stream.next(0.1)
            converse(f"ws://127.0.0.1:{port}/ws?channel=a&{name}={each}", {}, each)
        converse(f"ws://127.0.0.1:{port}/ws?channel=a", bearer(each), each)
        with RawConnection(port) as connection:
            connection.send(
                f"GET /sse/stream/a?token={each} HTTP/9.9\r\nX: {each}\r\n\r\n".encode()
            )
            connection.read_all()
    statuses = {answer.status for answer in told}
    assert statuses >= {200, 202, 400, 401, 403, 409, 413, 422, 500}
    return {part for text in (*given, made) for part in text.split(".")[-2:] if len(part) > 8}


def converse(url: str, headers: dict[str, str], token: str) -> None:
    """Say everything on a WebSocket, as far as it opens."""
    said = [
        {"publish": {"type": "info", "service": "s", "channels": ["a"], "data": {"text": MARK}}},
        {"publish": {"type": "info", "service": "s", "data": {"text": f"crash {MARK}"}}},
        {"publish": {"type": MARK}},
        {"token": token, "ref": MARK},
        {"acknowledge": [f"s/{MARK}"]},
        {MARK: MARK},
    ]
    with (
        suppress(WebSocketException, OSError),
        websockets.sync.client.connect(url, additional_headers=headers) as socket,
    ):
        for each in said:
            socket.send(msgspec.json.encode(each).decode())
        socket.send(f'{{"{MARK}')
        with suppress(TimeoutError):
            while True:
                socket.recv(0.2)
