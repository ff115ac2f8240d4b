"""WebSockets of clients that mean harm, and ends that come unasked, at the real service: whatever
happens to one, the others are served as before, and nothing of it is left.

What breaks the protocol byte by byte is in test_websocket_protocol.py."""

import contextlib
import gc
import json
import os
import random
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.protocol import Protocol as Frames

from msgpush.adapters.http.sinks import WireSink
from msgpush.adapters.websocket.commands import UNDER_WAY, Conversation
from msgpush.domain.connection import Connection
from msgpush.domain.errors import MsgpushError
from msgpush.entrypoints.exchange import Exchange
from msgpush.entrypoints.protocol import Protocol
from msgpush.entrypoints.websocket import SocketWire, WebSocket
from tests.integration.test_hostile import (
    MIB,
    besiege,
    memory,
    open_files,
    plain_socket,
    publish,
)
from tests.support.client import RawConnection, SseClient, request
from tests.support.frames import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    Got,
    RawWebSocket,
    asking,
    closing,
    frame,
)
from tests.support.redis_servers import RedisServer, free_port
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token

ATTACKED = "/ws?channel=attacked&broadcast=false"
MAX_MESSAGE = 64 * 1024
LONG = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def _open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    with ServiceProcess(
        ENABLE_AUTH="false",
        HEADER_TIMEOUT="1",
        BODY_TIMEOUT="1",
        WRITE_TIMEOUT="0.5",
        HEARTBEAT_INTERVAL="0.5",  # and a ping, in whose place a full socket is noticed
        MAX_MESSAGE_BYTES=str(MAX_MESSAGE),
        HISTORY_LENGTH="100",
        MEMORY_BUS_BYTES=str(8 * MIB),
    ) as running:
        yield running


def says(command: dict[str, Any] | str) -> bytes:
    """A command, as its frame."""
    return frame(TEXT, (command if isinstance(command, str) else json.dumps(command)).encode())


def data(got: Got) -> dict[str, Any]:
    """What a text frame has."""
    assert (got.opcode, got.fin) == (TEXT, True), got
    found: dict[str, Any] = json.loads(got.payload)
    return found


def told(websocket: RawWebSocket, seconds: float = 10.0) -> dict[str, Any]:
    """The next text that is no heartbeat; pings are answered."""
    while True:
        got = websocket.next(seconds)
        if got.opcode == PING:
            websocket.send(frame(PONG, got.payload))
        elif (found := data(got)).get("event") != "msgpush.heartbeat":
            return found


def opened(port: int, target: str = ATTACKED, **options: Any) -> RawWebSocket:
    """A WebSocket that has been told that it is open."""
    websocket = RawWebSocket(port, target, **options)
    assert told(websocket)["event"] == "msgpush.open"
    return websocket


def end_of(websocket: RawWebSocket, *, last: str | None = None) -> tuple[int, str]:
    """The code and reason that a WebSocket ends with; before it comes `msgpush.close`.

    Args:
        last: the reason in that; None: nothing is said before.
    """
    frames = []
    while (got := websocket.next()).opcode != CLOSE:
        if got.opcode == TEXT:
            frames.append(data(got))
    websocket.send(closing(got.code))
    websocket.is_over()
    reasons = [each["data"]["reason"] for each in frames if each.get("event") == "msgpush.close"]
    assert reasons == ([last] if last else [])
    return got.code, got.payload[2:].decode()


def message(**fields: Any) -> dict[str, Any]:
    return {"type": "info", "service": "s", "channels": ["attacked"], **fields}


# Who doesn't read


def test_who_never_reads_is_cut_and_delays_nobody(service: ServiceProcess) -> None:
    def attack() -> None:
        files = open_files(service)
        stalled = [opened(service.port, receive_buffer=4096) for _ in range(100)]
        with opened(service.port) as reader, SseClient(service.port, "/sse/stream/attacked") as sse:
            sse.next()
            for n in range(40):
                fields = {"id": f"n{time.monotonic_ns()}", "data": {"n": n, "x": "y" * 20_000}}
                assert publish(service, "attacked", **fields) == 202
                assert told(reader)["data"]["data"]["n"] == n
                while (event := sse.next()).type != "message":
                    pass
                assert json.loads(event.data)["data"]["n"] == n
        eventually(lambda: open_files(service) <= files)
        for each in stalled:
            each.__exit__()

    besiege(service, attack)


FLOODS = {
    "subscribe": [{"subscribe": [f"{'x' * 180}{n}" for n in range(64)]}],
    "changing": [{"subscribe": ["a", "user:b"]}, {"unsubscribe": ["a", "user:b"]}],
    "ping": [{"ping": 1}],
    "publish": [{"publish": message(data={"x": "y" * 2000}, metadata={"ttl": 60})}],
    "acknowledge": [{"acknowledge": ["s/1"] * 100, "user": "b"}],
    "refused": [{"subscribe": ["no name"] * 60}, {"no": "command"}, {"publish": 1}],
}


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(each, id=name, marks=() if name == "publish" else LONG)
        for name, each in FLOODS.items()
    ],
)
def test_who_floods_and_reads_no_answers_is_no_longer_read_and_then_cut(
    service: ServiceProcess, commands: list[dict[str, Any]]
) -> None:
    one = b"".join(map(says, commands))
    flood = one * (4 * MIB // len(one))

    def attack() -> None:
        before, files = memory(service), open_files(service)
        with contextlib.ExitStack() as stack:
            sockets = [
                stack.enter_context(plain_socket(service, receive_buffer=4096)) for _ in range(20)
            ]
            pour(sockets, asking(ATTACKED) + flood)
            assert unread(service) > 200_000, "reading has paused, and the kernel keeps the rest"
            assert memory(service) - before < 16 * MIB
            with opened(service.port, "/ws?channel=others") as other:
                assert publish(service, "others") == 202
                assert told(other)["event"] == "message"
            eventually(lambda: open_files(service) <= files)

    besiege(service, attack)


def pour(sockets: list[socket.socket], data: bytes) -> None:
    """Send as much of some bytes to each as is taken, until nothing has been for a while."""
    taken = [0] * len(sockets)
    last = time.monotonic()
    while time.monotonic() - last < 0.2:
        for n, each in enumerate(sockets):
            with contextlib.suppress(BlockingIOError, ConnectionError):
                if sent := each.send(data[taken[n] : taken[n] + 256 * 1024]):
                    taken[n] += sent
                    last = time.monotonic()
        time.sleep(0.005)


def unread(service: ServiceProcess) -> int:
    """Bytes that have come for a service, and that it hasn't read."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = [row for row in rows if row[1].endswith(f":{service.port:04X}") and row[3] == "01"]
    return sum(int(row[4].partition(":")[2], 16) for row in own)


def test_who_floods_and_reads_has_each_command_answered_in_order(service: ServiceProcess) -> None:
    number = 1000

    def attack() -> None:
        commands: list[dict[str, Any]] = []
        for n in range(number):
            commands += [
                {"ping": 1},
                {"subscribe": [f"c{n % 20}"]},
                {"unsubscribe": [f"c{n % 30}"]},
                {"publish": message(data={"n": n})},
                {"subscribe": 1},
            ]
        sent = b"".join(says({**each, "ref": ref}) for ref, each in enumerate(commands))
        with opened(service.port) as websocket:
            sender = threading.Thread(target=websocket.send, args=(sent,))
            sender.start()
            answers: list[int] = []
            numbers: list[int] = []
            while len(answers) + len(numbers) < len(commands) + number:
                found = told(websocket)
                if "ref" in found:
                    assert ("error" in found) is (found["ref"] % 5 == 4)
                    answers.append(found["ref"])
                else:
                    numbers.append(found["data"]["data"]["n"])
            sender.join()
        assert numbers == list(range(number))
        # Those that wait for the bus are answered when they are done, all others at once.
        for waits in (True, False):
            some = [ref for ref in answers if (ref % 5 == 3) is waits]
            assert some == [ref for ref in range(len(commands)) if (ref % 5 == 3) is waits]

    besiege(service, attack)


# Who says what makes no sense


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (frame(TEXT, length=1 << 30)[:14], 1009, None),
        (frame(TEXT, length=(1 << 63) - 1)[:14], 1009, None),
        (frame(TEXT, b"x" * (MAX_MESSAGE + 1)), 1009, None),
        (frame(TEXT, b"x", fin=False) + frame(CONT, b"x" * 9000, fin=False) * 8, 1009, None),
        (frame(TEXT, b'"\xff"'), 1007, None),
        (frame(TEXT, b"\xed\xa0\x80", fin=False) + frame(CONT, b""), 1007, None),
        (frame(BINARY, b"{}"), 1003, "binary"),
        (frame(BINARY, b""), 1003, "binary"),
        (frame(TEXT, b""), 4400, "malformed"),
        (says("[1]"), 4400, "malformed"),
        (says("{" * 60_000), 4400, "malformed"),
        (says('{"ping": 1}{"ping": 2}'), 4400, "malformed"),
        (frame(3), 1002, None),
        (frame(TEXT, b"{}", masked=False), 1002, None),
        (frame(TEXT, b"{}", reserved=4), 1002, None),
        (frame(CONT, b"{}"), 1002, None),
        (frame(PING, b"x" * 126), 1002, None),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 1002, None),
    ],
)
def test_what_makes_no_sense_ends_it_with_a_code_that_says_so(
    service: ServiceProcess, sent: bytes, code: int, reason: str | None
) -> None:
    def attack() -> None:
        for _ in range(10):
            with opened(service.port) as websocket:
                websocket.send(sent)
                assert end_of(websocket, last=reason)[0] == code

    besiege(service, attack)


@pytest.mark.parametrize("piece", [b"", b"x"])
def test_fragments_for_ever_come_to_an_end(service: ServiceProcess, piece: bytes) -> None:
    more = frame(CONT, piece, fin=False) * 100 + frame(PONG)

    def attack() -> None:
        with opened(service.port) as websocket:
            stop = threading.Event()

            def send() -> None:
                with contextlib.suppress(OSError):
                    websocket.send(frame(TEXT, b"{", fin=False))
                    while not stop.is_set():
                        websocket.send(more)
                        time.sleep(0.01)

            sender = threading.Thread(target=send)
            sender.start()
            while (got := websocket.next()).opcode != CLOSE:
                pass
            stop.set()
            sender.join()
            assert got.code in ((1008,) if piece == b"" else (1008, 1009))

    besiege(service, attack)


def test_garbage_instead_of_frames_does_no_harm(service: ServiceProcess) -> None:
    def attack() -> None:
        chance = random.Random(3)
        for n in range(200):
            with opened(service.port) as websocket, contextlib.suppress(ConnectionError):
                garbage = chance.randbytes(chance.choice((1, 14, 200, 5000)))
                websocket.send(garbage)
                if n % 2:
                    websocket.half_close()
                    websocket.read_all()
                else:
                    websocket.reset()

    besiege(service, attack)


def test_who_half_closes_has_ended_and_what_it_said_before_is_done(service: ServiceProcess) -> None:
    def attack() -> None:
        with opened(service.port) as reader:
            for n in range(20):
                with opened(service.port, "/ws?channel=others") as websocket:
                    websocket.send(says({"publish": message(data={"n": n})}))
                    websocket.half_close()
                    websocket.read_all()
                assert told(reader)["data"]["data"] == {"n": n}

    besiege(service, attack)


def test_commands_right_behind_the_handshake_are_answered(service: ServiceProcess) -> None:
    def attack() -> None:
        for number in (1, 10, 1000):
            sent = b"".join(says({"ping": 1, "ref": n}) for n in range(number))
            behind = sent + says({"publish": message(), "ref": "published"})
            with opened(service.port, behind=behind) as websocket:
                assert [told(websocket)["ref"] for _ in range(number)] == [*range(number)]
                frames = [told(websocket), told(websocket)]
                assert {each.get("ref", each.get("event")) for each in frames} == {
                    "published",
                    "message",
                }

    besiege(service, attack)


# Nothing is left


LIVES: dict[str, tuple[str, list[bytes]]] = {
    "nothing": (ATTACKED, []),
    "no channel": ("/ws?broadcast=false", []),
    "changes": (
        ATTACKED,
        [says({"subscribe": [f"c{n}", f"user:u{n}"]}) for n in range(20)]
        + [says({"unsubscribe": ["c3"]})],
    ),
    "resuming": ("/ws?channel=attacked&last_event_id=earliest", [says({"subscribe": ["b"]})]),
    "publishes": (ATTACKED, [says({"publish": message(data={"n": n})}) for n in range(20)]),
    "acknowledges": (ATTACKED, [says({"acknowledge": ["s/1"], "user": "u"})]),
    "closes": (ATTACKED, [closing(1000)]),
    "malformed": (ATTACKED, [says("[]")]),
    "refused commands": (ATTACKED, [says({"subscribe": ["a b"]}), says({"x": 1})]),
    "no UTF-8": (ATTACKED, [frame(TEXT, b"\xff")]),
    "half a message": (ATTACKED, [frame(TEXT, b"{", fin=False)]),
    "binary": (ATTACKED, [frame(BINARY, b"x")]),
    "refused": ("/ws?channel=a%20b", []),
    "over": ("/ws?channel=a&last_event_id=x.1-0~end", []),
}


@pytest.mark.parametrize(("target", "sent"), LIVES.values(), ids=LIVES)
def test_an_ended_websocket_leaves_nothing_to_the_garbage_collector(
    target: str, sent: list[bytes]
) -> None:
    with ThreadedService(enable_auth=False) as threaded:
        leave(threaded, target, sent, reset=False)
        gc.collect()
        gc.disable()
        try:
            before = alive()
            for n in range(10):
                leave(threaded, target, sent, reset=n % 2 == 0)
            eventually(lambda: alive() <= before)
        finally:
            gc.enable()


def alive() -> int:
    """How many objects of connections, and errors, are in memory, be they garbage or not."""
    kinds = (WebSocket, SocketWire, Frames, Protocol, Exchange)
    kinds += (Connection, Conversation, WireSink, MsgpushError)  # type: ignore[assignment]
    return sum(isinstance(each, kinds) for each in gc.get_objects())


def leave(threaded: ThreadedService, target: str, sent: list[bytes], *, reset: bool) -> None:
    """Open, say this, and go when what is answered at once has come."""
    tasks = threaded.tasks()
    websocket = RawWebSocket(threaded.port, target, behind=b"".join(sent))
    with contextlib.suppress(TimeoutError):
        websocket.receive(0.02)
    if reset:
        websocket.reset()
    websocket.__exit__()
    eventually(lambda: threaded.tasks() <= tasks)


def test_who_goes_while_it_is_refused_adds_nothing_to_the_log(service: ServiceProcess) -> None:
    def attack() -> None:
        for target, sent in (LIVES["refused"], LIVES["over"], LIVES["malformed"], LIVES["binary"]):
            for _ in range(50):
                connection = RawConnection(service.port)
                connection.send(asking(target) + b"".join(sent))
                connection.reset()

    besiege(service, attack)


def test_a_thousand_that_were_open_and_went_leave_nothing_behind() -> None:
    target = "/ws?channel=witness&broadcast=false"
    with ThreadedService(enable_auth=False) as threaded, opened(threaded.port, target) as witness:

        async def leftovers() -> int:
            return threaded.push._hub.leftovers()

        def go(number: int) -> None:
            lives = list(LIVES.values())
            for start in range(0, number, 50):
                some = [
                    RawWebSocket(threaded.port, target, behind=b"".join(sent))
                    for target, sent in (lives[n % len(lives)] for n in range(start, start + 50))
                ]
                for n, each in enumerate(some):
                    if n % 2:
                        each.reset()
                    each.__exit__()
            eventually(lambda: len(threaded.push.connections) == 1)

        tasks, files = threaded.tasks(), len(os.listdir("/proc/self/fd"))
        go(100)
        eventually(lambda: threaded.tasks() <= tasks)
        go(1000)
        eventually(lambda: threaded.tasks() <= tasks)
        eventually(lambda: threaded.call(leftovers) < 20)
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= files)
        body = json.dumps(message(channels=["witness"])).encode()
        assert request(threaded.port, "POST", "/api/v1/messages/send", body).status == 202
        assert told(witness)["event"] == "message"


# Ends that are told


def test_at_the_end_what_was_published_before_it_comes_first() -> None:
    with ServiceProcess(ENABLE_AUTH="false", DRAIN_SECONDS="0.5") as draining:
        with opened(draining.port) as websocket:
            websocket.send(says({"publish": message(id="itself")}))
            assert publish(draining, "attacked", id="before") == 202
            draining.signal(signal.SIGTERM)
            frames = []
            while (got := websocket.next()).opcode != CLOSE:
                frames.append(data(got))
        ids = {each["data"]["id"] for each in frames if each.get("event") == "message"}
        assert ids == {"itself", "before"}
        assert (frames[-1]["event"], got.code) == ("msgpush.close", 1001)
        assert frames[-1]["data"]["reason"] == "drain"
        assert frames[-1]["data"]["reconnect"] is True
        assert draining.wait() == 0


def test_a_process_with_two_hundred_of_them_ends_in_time() -> None:
    with (
        ServiceProcess(ENABLE_AUTH="false", DRAIN_SECONDS="1") as draining,
        contextlib.ExitStack() as stack,
    ):
        polite = [stack.enter_context(opened(draining.port)) for _ in range(100)]
        for _ in range(90):
            stack.enter_context(opened(draining.port))  # these answer no Close
        for _ in range(10):
            target = "/ws?channel=unread&broadcast=false"
            stack.enter_context(opened(draining.port, target, receive_buffer=4096))
        for _ in range(20):  # and the last ones don't even read
            assert publish(draining, "unread", data={"x": "y" * 60_000}) == 202
        draining.signal(signal.SIGTERM)
        began = time.monotonic()
        for each in polite:
            last = told(each)
            assert (last["event"], last["data"]["reason"]) == ("msgpush.close", "drain")
            assert each.next().code == 1001
        assert draining.wait() == 0
        assert time.monotonic() - began < 5


def test_it_ends_with_its_token_or_before_that_when_that_is_revoked() -> None:
    short = token("alice", lifetime=2)
    ops = bearer(token("ops", admin=True))
    with ThreadedService(jwt_secret=SECRET, jwt_leeway=0.0) as threaded:
        with opened(threaded.port, f"/ws?token={short}") as websocket:
            assert end_of(websocket, last="expired") == (4401, "expired")
        with opened(threaded.port, "/ws", headers=bearer(token("alice"))) as websocket:
            body = b'{"subject": "alice"}'
            revoked = request(threaded.port, "POST", "/api/v1/revocations", body, ops)
            assert revoked.status == 201
            assert end_of(websocket, last="revoked") == (4403, "revoked")
        refused(threaded, f"/ws?token={short}", 4401, "unauthorized")


@pytest.mark.parametrize(("again", "code"), [("true", 1001), ("false", 4410)])
def test_an_operator_ends_it_for_now_or_for_good(again: str, code: int) -> None:
    with ThreadedService() as threaded:
        with opened(threaded.port) as websocket:
            (id,) = threaded.push.connections
            path = f"/api/v1/connections/{id}?reconnect={again}"
            assert request(threaded.port, "DELETE", path).status == 204
            last = told(websocket)
            assert last["data"]["reconnect"] is (again == "true")
            assert end_of(websocket) == (code, "disconnected")
        if again == "false":
            assert last["id"].endswith("~end")
            refused(threaded, f"{ATTACKED}&last_event_id={last['id']}", 4410, "disconnected")
        else:
            assert "id" not in last
            opened(threaded.port).__exit__()


def refused(
    threaded: ThreadedService | ServiceProcess,
    target: str,
    code: int,
    reason: str,
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What is told to a client that isn't served, and that comes so that a page can read it."""
    with RawWebSocket(threaded.port, target, headers) as websocket:
        last = told(websocket)
        assert (last["event"], last["data"]["reason"]) == ("msgpush.close", reason)
        assert end_of(websocket) == (code, reason)
    found: dict[str, Any] = last["data"]
    return found


def test_who_is_not_served_is_told_why_and_whether_to_come_back() -> None:
    given = bearer(token("alice", subscribe=["a"]))
    with ThreadedService(jwt_secret=SECRET) as threaded:
        for target, headers, code, reason in [
            ("/ws?channel=a", None, 4401, "unauthorized"),
            ("/ws?token=no.to.ken", None, 4401, "unauthorized"),
            ("/ws?channel=b", given, 4403, "denied"),
            ("/ws?channel=a%20b", given, 4400, "malformed"),
            ("/ws?last_event_id=earliest", given, 4400, "malformed"),
            ("/ws?no=such", given, 4400, "malformed"),
        ]:
            assert refused(threaded, target, code, reason, headers)["reconnect"] is False
        assert threaded.push.connections == {}


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"max_connections": 1}, "MAX_CONNECTIONS"),
        ({"max_connections_per_address": 1}, "MAX_CONNECTIONS_PER_ADDRESS"),
        ({"max_connections_per_subject": 1}, "MAX_CONNECTIONS_PER_SUBJECT"),
    ],
)
def test_one_too_many_is_told_which_limit_it_is(limits: dict[str, Any], name: str) -> None:
    given = bearer(token("alice"))
    with ThreadedService(jwt_secret=SECRET, **limits) as threaded:
        with opened(threaded.port, "/ws", headers=given):
            last = refused(threaded, "/ws", 1013, "overload", given)
            assert last["reconnect"] is True
            assert f"{name} " in last["detail"]
        eventually(lambda: not threaded.push.connections)
        opened(threaded.port, "/ws", headers=given).__exit__()


def test_before_redis_is_there_nobody_is_served_and_all_may_come_back() -> None:
    with ThreadedService(redis_url=f"redis://127.0.0.1:{free_port()}/0") as early:
        last = refused(early, "/ws?channel=a", 1013, "overload")
        assert last["reconnect"] is True
        assert "bus" in last["detail"]


# Whose client goes


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_publish_under_way_is_finished_though_its_client_goes(reset: bool) -> None:
    with RedisServer() as redis, ThreadedService(redis_url=redis.url) as threaded:
        eventually(lambda: request(threaded.port, "GET", "/health/ready").status == 200)
        tasks, some = threaded.tasks(), UNDER_WAY - 1
        websocket = opened(threaded.port, "/ws")
        redis.pause()
        try:
            for n in range(some):
                websocket.send(says({"publish": message(data={"n": n})}))
            eventually(lambda: threaded.tasks() >= tasks + some)
            if reset:
                websocket.reset()
            websocket.__exit__()
            eventually(lambda: not threaded.push.connections)
        finally:
            redis.resume()
        eventually(lambda: threaded.tasks() <= tasks)
        history = request(threaded.port, "GET", "/api/v1/channels/attacked/messages").json()
        assert [each["data"]["n"] for each in history["messages"]] == [*range(some)]
