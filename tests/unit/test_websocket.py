"""The WebSocket's contract, in process: with the server's wire extension and without."""

import asyncio
import gc
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import Message, Scope

from msgpush.adapters.auth.authenticator import OpenAuthenticator, TokenAuthenticator
from msgpush.adapters.auth.keys import Keys, secret_key
from msgpush.adapters.auth.tokens import Tokens
from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.dispatch import Service
from msgpush.adapters.memory.credentials import MemoryCredentials
from msgpush.adapters.websocket import endpoint
from msgpush.adapters.websocket.commands import UNDER_WAY, Conversation, Means
from msgpush.adapters.websocket.endpoint import Sockets
from msgpush.adapters.websocket.frames import CODES
from msgpush.domain.connection import Connection
from msgpush.domain.credentials import Revocation
from msgpush.domain.errors import KeysUnavailable, MsgpushError, Rejection
from msgpush.domain.grant import Grant
from msgpush.domain.message import Draft, parse
from msgpush.domain.ports import Limiter, Stored
from msgpush.domain.rates import Allowance
from msgpush.domain.service import Push
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import WAIT, Answer, AsgiDriver, Socket
from tests.support.asking import body_of
from tests.support.fakes import FakeClock
from tests.support.streams import SlightBus, SlightOutbox
from tests.support.tokens import SECRET, bearer, claims, signed, token

HOUR = 3_600.0
LEEWAY = 30.0
APP = "https://app.example"
PUBLISHER = token("importer", publish=["*"])


# The service


@pytest.fixture(params=["wire", "send"])
def wire(request: pytest.FixtureRequest) -> bool:
    """Whether the server has its wire extension."""
    return bool(request.param == "wire")


@asynccontextmanager
async def serving(wire: bool, **settings: Any) -> AsyncIterator[AsgiDriver]:
    async with lifespan(app := create_app(Settings(**settings))):
        yield AsgiDriver(app, wire=wire)


@pytest.fixture
async def client(wire: bool) -> AsyncIterator[AsgiDriver]:
    """Asks nobody for a token."""
    async with serving(wire) as client:
        yield client


@pytest.fixture
async def guarded(wire: bool) -> AsyncIterator[AsgiDriver]:
    """Asks for tokens, and knows the pages of one other origin."""
    async with serving(wire, jwt_secret=SECRET, cors_origins=(APP,)) as client:
        yield client


class SlowBus(SlightBus):
    """The embedded bus, which may take its time: messages wait while it is `held`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.began: list[str] = []  # the messages that it was given
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | Rejection]:
        messages = [draft.id for draft in drafts if draft.channels and draft.service != ""]
        self.began += messages
        if messages:
            await self.open.wait()
        return await super().append(drafts)


class SlowLimiter:
    """Allows all, each when a test says so."""

    rate, burst = 1.0, 1

    def __init__(self) -> None:
        self.asked = 0
        self.turns = asyncio.Semaphore(0)

    async def take(self, subject: str, wanted: int) -> Allowance:
        self.asked += 1
        await self.turns.acquire()
        return Allowance(wanted, 1, 0.0, 1.0, 1)


class NoKeys:
    """Has no keys to verify tokens with."""

    async def authenticate(
        self, scope: Scope, token: str | None = None, *, by_ticket: bool = False
    ) -> Grant:
        raise KeysUnavailable("no keys yet")

    async def read(self, token: str) -> Grant:
        raise KeysUnavailable("no keys yet")


class Clocked:
    """The endpoint over the embedded bus, whose time a test moves. An async context manager."""

    def __init__(
        self,
        *,
        wire: bool = True,
        tokens: bool = False,
        auth: Authenticator | None = None,
        publishing: Limiter | None = None,
        max_bytes: int = 256 * 1024,
        **limits: Any,
    ) -> None:
        self.clock = FakeClock(float(int(time.time())))
        now = self.clock.now
        self.bus = SlowBus(clock=now, outbox=SlightOutbox(clock=now, monotonic=now))
        self.credentials = MemoryCredentials(lifetime=HOUR, clock=now)
        self.push = Push(
            self.bus,
            clock=now,
            monotonic=self.clock.monotonic,
            credentials=self.credentials,
            leeway=LEEWAY,
            max_token_lifetime=HOUR,
            **limits,
        )
        self.push.redelivery.works = ()
        if auth is None and tokens:
            reader = Tokens(Keys([secret_key(SECRET)]), leeway=LEEWAY, clock=now)
            auth = TokenAuthenticator(reader, self.push)
        self.auth = auth or OpenAuthenticator()
        self.errors: list[MsgpushError] = []
        means = Means(self.push, self.auth, publishing, None, max_bytes, self.errors.append)
        sockets = Sockets(self.push, means, ())
        app = Service(
            [WebSocketRoute("/ws", sockets)], [], lifespan, hot={}, on_error=self.errors.append
        )
        self.client = AsgiDriver(app, wire=wire)

    async def __aenter__(self) -> "Clocked":
        await self.push.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.bus.open.set()
        await self.push.__aexit__(*exc)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.push._hub.beat()

    async def rest(self) -> None:
        """Let all that is closing be closed."""
        self.pass_time(2)
        await self.push.redelivery.open()
        await settle()
        self.errors.clear()  # they keep the frames that they came through

    async def publish(self, *messages: dict[str, Any]) -> None:
        for each in messages:
            await self.push.publish(parse(msgspec.json.encode(each)))
        await settle()

    def token(self, sub: str = "alice", *, lifetime: float = 600, **more: Any) -> str:
        """A token that was issued now."""
        now = self.clock.now()
        return token(sub, **{"iat": now, "exp": now + lifetime, **more})


def app_of(client: AsgiDriver) -> Starlette:
    assert isinstance(client.app, Starlette)
    return client.app


def push_of(client: AsgiDriver) -> Push:
    push: Push = app_of(client).state.push
    return push


def message(id: str | None = "m1", *channels: str, **fields: Any) -> dict[str, Any]:
    given = {"id": id, "type": "info", "service": "s", "channels": channels or ("a",)}
    return {name: value for name, value in {**given, **fields}.items() if value is not None}


async def publish(client: AsgiDriver, *ids: str, to: Sequence[str] = ("a",), **fields: Any) -> None:
    for id in ids:
        body = msgspec.json.encode(message(id, *to, **fields))
        answer = await client.send(body, **bearer(PUBLISHER))
        assert answer.status == 202, answer.body
    await settle()  # the hub has it


async def new_ticket(client: AsgiDriver, *channels: str, by: str, **fields: Any) -> str:
    body = msgspec.json.encode({"channels": channels, **fields})
    answer = await client.request("POST", "/api/v1/tickets", body, bearer(by))
    assert answer.status == 201, answer.body
    ticket: str = answer.json()["ticket"]
    return ticket


async def refused(
    client: AsgiDriver, target: str = "/ws", headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """How a handshake was refused: the code, and the data of the only frame."""
    async with client.socket(target, headers) as socket:
        code = await socket.closed()
        assert socket.accepted, socket.denial
        assert len(socket.frames) == 1
        return code, socket.closing


async def denied(
    client: AsgiDriver, target: str = "/ws", headers: Mapping[str, str] | None = None, **scope: Any
) -> Answer:
    """The answer instead of a WebSocket."""
    async with client.socket(target, headers, **scope) as socket:
        await socket.closed()
        assert not socket.accepted
        assert socket.denial is not None
        return socket.denial


async def opened(socket: Socket) -> dict[str, Any]:
    """The data of the first frame."""
    await socket.event("msgpush.open")
    data: dict[str, Any] = socket.opening["data"]
    return data


async def settle(turns: int = 50) -> None:
    """Let everything happen that can without any time passing."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 - any turn of the loop may make it true
            await asyncio.sleep(0)


# The handshake


async def test_it_opens_with_the_connection_its_channels_and_a_cursor(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=b&user=1&service=s&channel=a&service=s2") as socket:
        data = await opened(socket)
        assert set(socket.opening) == {"event", "id", "data"}
        assert re.fullmatch(r"1\w{8}\.\d+-\d+", socket.opening["id"])
        assert re.fullmatch(r"\w{16}", data.pop("connection"))
        channels = ["a", "b", "broadcast", "service:s", "service:s2", "user:1"]
        assert data == {"channels": channels, "resumed": False, "heartbeat": 30}
    assert len(socket.texts) == 1


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["msgpush.v1"], "msgpush.v1"),
        (["other", "msgpush.v1"], "msgpush.v1"),
        (["other", "msgpush.v2"], None),
    ],
)
async def test_the_subprotocol_is_chosen_where_it_is_offered(
    client: AsgiDriver, offered: list[str], chosen: str | None
) -> None:
    async with client.socket(subprotocols=offered) as socket:
        await opened(socket)
        assert socket.subprotocol == chosen


@pytest.mark.parametrize(
    ("method", "status"),
    [("GET", 426), ("HEAD", 426), ("POST", 405), ("OPTIONS", 405), ("DELETE", 405)],
)
async def test_a_request_without_an_upgrade_is_told_what_is_missing(
    client: AsgiDriver, method: str, status: int
) -> None:
    answer = await client.request(method, "/ws?channel=a")
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    if status == 426:
        assert answer.headers["upgrade"] == "websocket"
    else:
        assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    ["/", "/ws/", "/ws/x", "/sse/stream/a", "/api/v1/messages/send", "/static/icon.svg", "/static"],
)
async def test_no_other_path_has_a_websocket(client: AsgiDriver, path: str) -> None:
    answer = await denied(client, path)
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "/ws" in answer.json()["detail"]


async def test_a_server_that_can_deny_nothing_is_told_to_close(client: AsgiDriver) -> None:
    for target, headers in (("/nothing", {}), ("/ws", {"origin": "https://evil.example"})):
        assert (await denied(client, target, headers, extensions={})).status == 403


@pytest.mark.parametrize("path", ["/push/ws", "/ws"])
async def test_it_is_there_under_the_prefix_that_a_proxy_leaves_in_the_path(
    wire: bool, path: str
) -> None:
    async with serving(wire, root_path="/push") as client:
        async with client.socket(f"{path}?channel=a") as socket:
            await publish(client, "m1")
            await socket.message("m1")
        assert (await client.request("GET", path)).status == 426
        for nowhere in ("/push/nothing", "/push/static/icon.svg", "/push"):
            assert (await denied(client, nowhere)).status == 404


# The query


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("channel=a*", "a*"),
        ("channel=", "channel name"),
        ("user=a,b", "user:a,b"),
        ("user=", "user"),
        ("user=1&user=", "user"),
        ("service=", "service"),
        ("service=a%20b", "service:a b"),
        ("channel=%ff", "UTF-8"),
        ("&".join(f"channel=c{n}" for n in range(65)), "64"),
        ("&".join(f"{k}={n}" for k in ("user", "service") for n in range(33)), "64"),
        ("chanel=b", "chanel"),
        ("channels=b", "channels"),
        ("events=*", "events"),
        ("r=1", "r"),
        ("types=", "types"),
        ("types=news", "news"),
        ("priority=top", "top"),
        ("broadcast=no", "broadcast"),
        ("passive=1", "passive"),
        ("token=a&token=b", "token"),
        ("channel=a&last_event_id=a%20b", "cursor"),
        ("channel=a&last_event_id=" + "x" * 129, "cursor"),
        ("channel=a&last_event_id=x&last_event_id=y", "last_event_id"),
        ("last_event_id=earliest", "last_event_id"),
        ("broadcast=false&last_event_id=earliest", "last_event_id"),
    ],
)
async def test_a_query_that_makes_no_sense_closes_with_4400_and_says_why(
    client: AsgiDriver, query: str, wrong: str
) -> None:
    code, data = await refused(client, f"/ws?{query}")
    assert (code, data["reason"], data["reconnect"]) == (4400, "malformed", False)
    assert wrong in data["detail"]


async def test_64_channels_besides_broadcast_are_allowed_and_what_begins_with_an_underscore(
    client: AsgiDriver,
) -> None:
    names = "&".join(f"channel=c{n}" for n in range(62))
    target = f"/ws?{names}&user=1&service=s&channel=c1&channel=broadcast&_=1&_x=&_x="
    async with client.socket(target) as socket:
        assert len((await opened(socket))["channels"]) == 65


async def test_without_any_channel_it_is_live_at_the_head_and_subscribes_later(
    client: AsgiDriver,
) -> None:
    async with client.socket("/ws?broadcast=false") as socket:
        data = await opened(socket)
        assert data["channels"] == []
        await publish(client, "before")
        (connection,) = push_of(client).connections.values()
        assert connection.live
        await socket.do(subscribe=["a"])
        await publish(client, "after")
        await socket.message("after")
        assert socket.ids == ["after"]


async def test_types_and_priorities_that_are_not_wanted_dont_come(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=a&types=status,error&priority=high") as socket:
        await opened(socket)
        high: dict[str, Any] = {"metadata": {"priority": "high"}}
        await publish(client, "type", type="info", **high)
        await publish(client, "priority", type="status")
        await socket.do(subscribe=["b"])
        await publish(client, "type2", to=("b",), **high)
        await publish(client, "wanted", to=("b",), type="error", **high)
        await socket.message("wanted")
        assert socket.ids == ["wanted"]


async def test_a_broadcast_reaches_all_but_those_that_declined(client: AsgiDriver) -> None:
    async with (
        client.socket("/ws") as one,
        client.socket("/ws?broadcast=false&channel=a") as two,
        client.socket("/ws?broadcast=false&channel=broadcast") as three,
    ):
        for socket in (one, two, three):
            await opened(socket)
        body = msgspec.json.encode({"id": "all", "type": "info", "service": "s"})
        assert (await client.send(body, "/api/v1/messages/broadcast")).status == 202
        await publish(client, "a")
        await one.message("all")
        await three.message("all")
        await two.message("a")
        assert two.ids == ["a"]
        await two.do(subscribe=["broadcast"])
        assert (await client.send(body.replace(b"all", b"2"), "/api/v1/messages/broadcast")).status
        await two.message("2")


# Messages


@pytest.mark.parametrize("type", ["info", "progress", "error"])
async def test_a_message_comes_whole_whatever_its_type(client: AsgiDriver, type: str) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        body = b'{"id":"m1","type":"%b","service":"s","channels":["a"],\r\n"data":{"progress":1.50,\n"e":1e400}}'
        receipt = (await client.send(body % type.encode())).json()
        frame = await socket.message("m1")
        assert list(frame) == ["event", "id", "data"]
        assert (frame["event"], frame["id"]) == ("message", receipt["cursor"])
        assert set(frame["data"]) == {
            *("id", "timestamp", "type", "service", "channels", "data", "metadata")
        }
        assert '"data":{"progress":1.50,"e":1e400}' in socket.texts[-1], "digits as they were sent"


async def test_the_bytes_of_a_frame_are_made_once_for_all_its_readers() -> None:
    async with (
        serving(True) as client,
        client.socket("/ws?channel=a") as one,
        client.socket("/ws?channel=a") as two,
        client.socket("/ws?channel=a&channel=b") as three,
    ):
        for socket in (one, two, three):
            await opened(socket)
        await publish(client, "m1")
        for socket in (one, two, three):
            await socket.message("m1")
        assert one.wire.written is two.wire.written
        assert one.wire.written is three.wire.written


async def test_a_message_of_several_of_its_channels_comes_once(client: AsgiDriver) -> None:
    target = "/ws?channel=a&channel=b&service=s"
    async with client.socket(target) as live:
        await opened(live)
        await publish(client, "m1", "m2", to=("a", "b"))
        await live.message("m2")
        assert live.ids == ["m1", "m2"]
    async with client.socket(f"{target}&last_event_id=earliest") as replay:
        await replay.message("m2")
        assert replay.ids == ["m1", "m2"]


async def test_after_an_interval_without_a_write_a_heartbeat_comes_with_the_cursor(
    wire: bool,
) -> None:
    async with (
        Clocked(wire=wire) as service,
        service.client.socket("/ws?channel=a") as socket,
    ):
        await opened(socket)
        await socket.do(publish=message("other", "b"))
        service.pass_time(29)
        await settle()
        assert socket.events("msgpush.heartbeat") == []
        service.pass_time(5)
        beat = await socket.event("msgpush.heartbeat")
        assert (beat["id"], beat["data"]) != (socket.opening["id"], {})
        assert beat["id"] == (await socket.answers(1))[0]["ok"]["cursor"]
        service.pass_time(20)
        await socket.do(publish=message("m1"))
        await socket.message("m1")
        service.pass_time(20)
        await settle()
        assert len(socket.events("msgpush.heartbeat")) == 1


@pytest.mark.parametrize("spelling", ["last_event_id", "lastEventId", "lastEventID"])
async def test_it_continues_after_a_cursor_without_a_seam(
    client: AsgiDriver, spelling: str
) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        await publish(client, "m1", "m2")
        await socket.message("m2")
        first = socket.events("message")[0]["id"]
    await publish(client, "m3")
    async with client.socket(f"/ws?channel=a&{spelling}={first}") as socket:
        assert (await opened(socket))["resumed"]
        assert socket.opening["id"] == first
        await publish(client, "m4")
        await socket.message("m4")
        assert socket.ids == ["m2", "m3", "m4"]
        assert socket.events("msgpush.gap") == []
    async with client.socket(
        "/ws?channel=a&last_event_id=earliest", {"Last-Event-ID": first}
    ) as socket:
        await socket.message("m4")
        assert socket.ids == ["m2", "m3", "m4"], "the header wins"


async def test_earliest_is_all_that_is_retained_and_latest_or_none_from_now(
    client: AsgiDriver,
) -> None:
    await publish(client, "m1")
    async with client.socket("/ws?channel=a&last_event_id=earliest") as socket:
        await socket.message("m1")
        assert socket.opening["data"]["resumed"]
    for target in ("/ws?channel=a&last_event_id=latest", "/ws?channel=a&last_event_id=", "/ws"):
        async with client.socket(target) as socket:
            assert not (await opened(socket))["resumed"]
    async with client.socket("/ws?last_event_id=latest") as socket:
        await opened(socket)


async def test_broadcasts_that_are_named_are_continued_like_any_channel(client: AsgiDriver) -> None:
    body = b'{"id":"all","type":"info","service":"s"}'
    await client.send(body, "/api/v1/messages/broadcast")
    async with client.socket("/ws?channel=broadcast&last_event_id=earliest") as socket:
        await socket.message("all")


async def test_a_terminal_id_ends_with_4410_before_anything_else(client: AsgiDriver) -> None:
    over = "last_event_id=1abcdefgh.5-0~end"
    for target in (f"/ws?channel=a&{over}", f"/ws?{over}", f"/ws?channel=a*&chanel=x&{over}"):
        code, data = await refused(client, target)
        assert (code, data["reason"], data["reconnect"]) == (4410, "disconnected", False)


async def test_what_is_missing_is_told_before_what_remains(wire: bool) -> None:
    async with Clocked(wire=wire) as service:
        async with service.client.socket("/ws?channel=a") as socket:
            await opened(socket)
            start = socket.cursor
        await service.publish(message("m1", metadata={"ttl": 1}), message("m2"))
        service.pass_time(2)
        async with service.client.socket(f"/ws?channel=a&last_event_id={start}") as socket:
            await socket.message("m2")
            gap = {"channel": "a", "after": start, "reason": "expired"}
            assert socket.frames[1] == {"event": "msgpush.gap", "data": gap}, "it has no id"
            assert socket.ids == ["m2"]
        async with service.client.socket("/ws?channel=a&last_event_id=whatever") as socket:
            await socket.message("m2")
            reset = {"channel": None, "after": "whatever", "reason": "reset"}
            assert socket.frames[1] == {"event": "msgpush.gap", "data": reset}


async def test_a_stalled_reader_catches_up_in_order_and_delays_nobody(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=a") as slow, client.socket("/ws?channel=a") as quick:
        await opened(slow)
        await opened(quick)
        slow.fill()
        ids = [f"m{n}" for n in range(300)]
        await publish(client, *ids, data={"x": "y" * 1000})
        await quick.message("m299")
        assert slow.ids == []
        slow.drain()
        await slow.message("m299")
        assert slow.ids == ids


async def test_a_reader_that_takes_nothing_is_told_so_and_cut(wire: bool) -> None:
    async with (
        Clocked(wire=wire) as service,
        service.client.socket("/ws?channel=a") as socket,
    ):
        await opened(socket)
        socket.fill()
        for part in range(3):
            texts = (f"m{part}-{n}" for n in range(100))
            await service.publish(*(message(each, data={"x": "y" * 1000}) for each in texts))
        service.pass_time(29)
        await settle()
        assert not socket.ended.is_set()
        service.pass_time(2)
        assert service.push.connections == {}
        service.pass_time(2)
        # Over plain ASGI nothing but the end of the application cuts it.
        assert await socket.closed() == (1013 if wire else 1011)


# Its end


async def test_a_drain_gives_what_was_published_and_then_says_so(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        await publish(client, "m1")
        await push_of(client).drain(0.1)
        assert await socket.closed() == 1001
        assert socket.ids == ["m1"]
        assert (socket.closing["reason"], socket.closing["reconnect"]) == ("drain", True)
        assert socket.closing["detail"]
        assert "id" not in socket.frames[-1]


@pytest.mark.parametrize(("reconnect", "code"), [(True, 1001), (False, 4410)])
async def test_an_operator_closes_it_for_now_or_for_good(
    client: AsgiDriver, reconnect: bool, code: int
) -> None:
    async with client.socket("/ws?channel=a") as socket:
        id = (await opened(socket))["connection"]
        target = f"/api/v1/connections/{id}" + ("" if reconnect else "?reconnect=false")
        assert (await client.request("DELETE", target)).status == 204
        assert await socket.closed() == code
        assert set(socket.closing) == {"reason", "reconnect", "detail"}
        assert socket.closing["reason"] == socket.reason == "disconnected"
        assert socket.closing["reconnect"] == reconnect
        assert socket.cursor == socket.opening["id"] + ("" if reconnect else "~end")
    if not reconnect:
        code, data = await refused(client, f"/ws?channel=a&last_event_id={socket.cursor}")
        assert (code, data["reconnect"]) == (4410, False)


async def test_it_ends_when_its_token_does_and_may_come_back_with_another(wire: bool) -> None:
    async with Clocked(wire=wire, tokens=True) as service:
        credentials = bearer(service.token(lifetime=100))
        async with service.client.socket("/ws?user=alice", credentials) as socket:
            await opened(socket)
            service.pass_time(100 + LEEWAY - 1)
            await socket.do(ping=1)
            service.pass_time(2)
            assert await socket.closed() == 4401
            assert (socket.closing["reason"], socket.closing["reconnect"]) == ("expired", True)


async def test_it_ends_for_good_when_its_token_is_revoked(wire: bool) -> None:
    async with Clocked(wire=wire, tokens=True) as service:
        credentials = bearer(service.token("alice"))
        async with service.client.socket("/ws?user=alice", credentials) as socket:
            await opened(socket)
            await service.push.revoke(Revocation("subject", "alice", service.clock.now()))
            assert await socket.closed() == 4403
            assert (socket.closing["reason"], socket.closing["reconnect"]) == ("revoked", False)
            assert socket.cursor.endswith("~end")


async def test_a_binary_frame_ends_it_with_1003(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        socket.say(b'{"ping":1}')
        assert await socket.closed() == 1003
        assert socket.closing["reason"] == "binary"
        assert len(socket.frames) == 2


NO_OBJECTS = [
    *("", " ", "x", "{", '{"ping":1', "{'ping':1}", '{"ping":1}x', '{"ping":1}{"ping":1}', "NaN"),
    *("[]", "3", "null", "true", '"ping"', '[{"ping":1}]', "\ufeff", '{"ping":01}', '{"a":\n}'),
    '{"ping":' + "[" * 100_000 + "]" * 100_000 + "}",
    "[" * 100_000,
]


@pytest.mark.parametrize("text", NO_OBJECTS, ids=[text[:20] for text in NO_OBJECTS])
async def test_what_is_no_json_object_ends_it_with_4400(client: AsgiDriver, text: str) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        socket.say(text)
        assert await socket.closed() == 4400
        assert socket.closing["reason"] == "malformed"
        assert 10 < len(socket.closing["detail"]) < 300
        assert socket.closing["detail"].isprintable()
        assert len(socket.frames) == 2
        assert push_of(client).connections == {}


@pytest.mark.parametrize("end", ["disconnected", "malformed"])
async def test_what_is_said_after_the_end_isnt_done(client: AsgiDriver, end: str) -> None:
    async with client.socket("/ws?channel=a") as socket:
        connection = (await opened(socket))["connection"]
        if end == "malformed":
            socket.say("x")
        else:
            hub = push_of(client)._hub
            hub.close(hub.connections[connection], "disconnected", reconnect=True)
        socket.say({"publish": message("m1")})
        await socket.closed()
        assert len(socket.frames) == 2
        history = await client.request("GET", "/api/v1/channels/a/messages")
        assert history.json()["messages"] == []


async def test_whoever_makes_a_mistake_and_reads_nothing_keeps_nothing(
    wire: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "LAST_WORD", 0.02)
    async with Clocked(wire=wire) as service, service.client.socket("/ws?channel=a") as socket:
        await opened(socket)
        service.bus.open.clear()
        socket.say({"publish": message("m1")})
        await until(lambda: service.bus.began)
        socket.fill()
        await fill_up(service)
        service.bus.open.set()
        socket.say(b"binary")
        await socket.closed()
        assert service.push.connections == {}


def test_each_reason_has_the_code_of_the_contract() -> None:
    assert CODES == {
        "drain": 1001,
        "binary": 1003,
        "overload": 1013,
        "slow": 1013,
        "malformed": 4400,
        "unauthorized": 4401,
        "expired": 4401,
        "denied": 4403,
        "revoked": 4403,
        "disconnected": 4410,
    }


# Refusals of the handshake


@pytest.mark.parametrize(
    ("query", "headers", "code", "reason"),
    [
        ("", {}, 4401, "unauthorized"),
        ("", bearer("x"), 4401, "unauthorized"),
        ("?token=x", {}, 4401, "unauthorized"),
        (f"?token={token('alice', lifetime=-60)}", {}, 4401, "unauthorized"),
        ("?token=ticket_unknown", {}, 4401, "unauthorized"),
        ("", {"cookie": "msgpush_token=x"}, 4401, "unauthorized"),
        ("?channel=x", bearer(token("alice", subscribe=["a"])), 4403, "denied"),
        ("?user=bob", bearer(token("alice")), 4403, "denied"),
        ("", {"cookie": f"msgpush_token={token('a')}", "sec-fetch-site": "cross-site"}, 4403, "denied"),
        ("?chanel=x", {}, 4400, "malformed"),
    ],
)  # fmt: skip
async def test_who_may_not_is_told_so_and_not_to_come_back(
    guarded: AsgiDriver, query: str, headers: dict[str, str], code: int, reason: str
) -> None:
    got, data = await refused(guarded, f"/ws{query}", headers)
    assert (got, data["reason"], data["reconnect"]) == (code, reason, False)
    assert len(data["detail"]) > 15
    assert push_of(guarded).connections == {}


async def test_a_refusal_chooses_the_subprotocol_as_well(guarded: AsgiDriver) -> None:
    async with guarded.socket("/ws", subprotocols=["msgpush.v1"]) as socket:
        assert await socket.closed() == 4401
        assert socket.subprotocol == "msgpush.v1", "or a browser would fail the connection"


@pytest.mark.parametrize("wrong", ["connections", "subject", "address", "draining", "bus", "keys"])
async def test_who_cant_be_served_now_is_told_why_and_comes_back(wire: bool, wrong: str) -> None:
    limits: dict[str, Any] = {
        "connections": {"max_connections": 1},
        "subject": {"max_connections_per_subject": 1},
        "address": {"max_connections_per_address": 1},
    }.get(wrong, {})
    auth = NoKeys() if wrong == "keys" else None
    async with Clocked(wire=wire, tokens=True, auth=auth, **limits) as service:
        client, credentials = service.client, bearer(service.token())
        async with AsyncExitStack() as others:
            if limits:
                await opened(await others.enter_async_context(client.socket("/ws", credentials)))
            service.push.draining = wrong == "draining"
            service.bus.reachable = wrong != "bus"
            for _ in range(2):
                code, data = await refused(client, "/ws", credentials)
                assert (code, data["reason"], data["reconnect"]) == (1013, "overload", True)
                words = {"draining": "end", "bus": "bus", "keys": "keys"}
                assert words.get(wrong, "MAX_CONNECTIONS") in data["detail"]
            service.push.draining, service.bus.reachable = False, True
        if wrong != "keys":
            async with client.socket("/ws", credentials) as socket:
                await opened(socket)


async def test_a_place_that_is_gone_by_the_time_of_the_answer_isnt_given_twice(wire: bool) -> None:
    async with Clocked(wire=wire, max_connections=1) as service:
        one, two = service.client.begin(), service.client.begin()
        await one.answered.wait()
        await two.answered.wait()
        await settle()
        assert sorted([len(one.events("msgpush.open")), len(two.events("msgpush.open"))]) == [0, 1]
        await one.disconnect()
        await two.disconnect()


# Origins


@pytest.mark.parametrize(
    ("origin", "welcome"),
    [
        (None, True),
        ("http://localhost", True),
        ("http://localhost:80", True),
        (APP, True),
        ("https://localhost", False),
        ("http://localhost:8080", False),
        ("https://evil.example", False),
        ("https://app.example.evil.example", False),
        ("null", False),
        ("", False),
        ("chrome-extension://abcdef", False),
    ],
)
@pytest.mark.parametrize("credentials", ["header", "cookie", "query", "ticket", "nothing"])
async def test_a_page_of_another_origin_opens_none_whatever_it_has(
    guarded: AsgiDriver, origin: str | None, welcome: bool, credentials: str
) -> None:
    shown = token("alice")
    ticket = await new_ticket(guarded, "user:alice", by=shown)
    ways: dict[str, tuple[dict[str, str], str]] = {
        "header": (bearer(shown), ""),
        "cookie": ({"cookie": f"msgpush_token={shown}"}, ""),
        "query": ({}, f"&token={shown}"),
        "ticket": ({}, f"&token={ticket}"),
        "nothing": ({}, ""),
    }
    shown_by, query = ways[credentials]
    headers = shown_by | ({} if origin is None else {"origin": origin})
    target = f"/ws?user=alice{query}"
    if not welcome:
        answer = await denied(guarded, target, headers)
        assert answer.status == 403
        assert "CORS_ORIGINS" in answer.json()["detail"]
        assert push_of(guarded).connections == {}
    elif credentials == "nothing":
        assert (await refused(guarded, target, headers))[0] == 4401
    else:
        async with guarded.socket(target, headers) as socket:
            await opened(socket)


async def test_the_log_says_once_for_each_origin_what_to_set(
    guarded: AsgiDriver, caplog: pytest.LogCaptureFixture
) -> None:
    for origin in ("https://one.example", "https://two.example", "https://one.example", "null"):
        await denied(guarded, "/ws?token=secret", {"origin": origin})
    lines = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(lines) == 3
    for line, origin in zip(lines, ("https://one.example", "https://two", "null"), strict=True):
        assert origin in line
        assert "CORS_ORIGINS" in line
        assert "secret" not in line


async def test_strangers_fill_neither_the_log_nor_the_memory(
    guarded: AsgiDriver, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(300):
        origin = f"https://{'x' * 1000}{number}\x1b[2J"
        await denied(guarded, "/ws", {"origin": origin})
    lines = [each.getMessage() for each in caplog.records]
    assert len(lines) <= 100
    assert all(line.isprintable() and len(line) < 500 for line in lines)


@pytest.mark.parametrize(
    ("proto", "origin", "welcome"),
    [
        ("https", "https://push.example", True),
        ("https", "http://push.example", False),
        ("http", "http://push.example", True),
        ("wss", "https://push.example", True),
        ("ws", "http://push.example", True),
        ("ftp", "http://push.example", True),
        (None, "https://push.example", False),
    ],
)
async def test_behind_a_trusted_proxy_the_scheme_is_what_that_says(
    wire: bool, proto: str | None, origin: str, welcome: bool
) -> None:
    proxies = Settings.from_environ({"TRUSTED_PROXIES": '["127.0.0.1"]'}).trusted_proxies
    headers = {"host": "push.example", "origin": origin, "x-forwarded-for": "192.0.2.7"}
    headers |= {} if proto is None else {"x-forwarded-proto": proto}
    async with serving(wire, enable_auth=False, trusted_proxies=proxies) as client:
        if welcome:
            async with client.socket("/ws", headers) as socket:
                await opened(socket)
                (connection,) = push_of(client).connections.values()
                assert connection.info.remote == "192.0.2.7"
        else:
            assert (await denied(client, "/ws", headers)).status == 403
    async with serving(wire, enable_auth=False) as client:
        secure = {**headers, "origin": "https://push.example"}
        assert (await denied(client, "/ws", secure)).status == 403, "nobody trusts that proxy"
        async with client.socket("/ws", secure, scheme="wss") as socket:
            await opened(socket)


async def test_an_open_service_asks_for_nothing_but_a_page_of_its_own(wire: bool) -> None:
    async with serving(wire, enable_auth=False, cors_origins=(APP,)) as client:
        host = {"host": "push.example", "forwarded": "for=192.0.2.7"}
        for headers in (host, host | {"origin": "http://push.example"}, host | {"origin": APP}):
            async with client.socket("/ws?channel=a", headers) as socket:
                await opened(socket)
        for origin in ("https://evil.example", "null", "http://localhost"):
            assert (await denied(client, "/ws", host | {"origin": origin})).status == 403


@pytest.mark.parametrize(
    ("headers", "welcome"),
    [
        ({}, True),
        ({"origin": "http://localhost:3000"}, True),
        ({"origin": "https://[::1]"}, True),
        ({"host": "127.0.0.1:8089"}, True),
        ({"origin": APP}, True),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"host": "push.example"}, False),
        ({"host": "push.example", "origin": "http://push.example"}, False),
        ({"forwarded": "for=192.0.2.7"}, False),
        ({"x-forwarded-for": "192.0.2.7"}, False),
        ({"x-forwarded-proto": "https"}, False),
        ({"x-real-ip": "192.0.2.7"}, False),
        ({"via": "1.1 proxy"}, False),
    ],
)
async def test_local_mode_serves_this_machine_alone(
    wire: bool, headers: dict[str, str], welcome: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(wire, cors_origins=(APP,)) as client:
        if welcome:
            async with client.socket("/ws?channel=a", headers) as socket:
                await opened(socket)
            return
        for _ in range(2):
            answer = await denied(client, "/ws?channel=a", headers)
            assert answer.status == 403
            assert "JWT_SECRET" in answer.json()["detail"]
            assert push_of(client).connections == {}
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "JWT_SECRET" in line, "a browser tells its page only that it failed"


# Tickets


async def test_a_ticket_serves_one_connection_and_a_newer_one_ends_the_older(
    guarded: AsgiDriver,
) -> None:
    alice = token("alice", subscribe=["kb:*"])
    ticket = await new_ticket(guarded, "user:alice", "kb:1", by=alice)
    target = f"/ws?user=alice&token={ticket}"
    async with guarded.socket(target) as older, guarded.socket(target) as newer:
        await opened(newer)
        assert await older.closed() == 4410
        assert (older.closing["reason"], older.closing["reconnect"]) == ("disconnected", False)
        assert older.cursor.endswith("~end")
        assert (await newer.do(subscribe=["kb:1"]))["channels"][1:] == ["kb:1", "user:alice"]
        problem = await newer.fail(subscribe=["kb:2"])
        assert (problem["status"], '"kb:2"' in problem["detail"]) == (403, True)
    code, data = await refused(guarded, f"/ws?user=bob&token={ticket}")
    assert (code, data["reason"]) == (4403, "denied")


async def test_a_connection_of_a_ticket_cant_be_renewed(guarded: AsgiDriver) -> None:
    alice = token("alice")
    ticket = await new_ticket(guarded, "user:alice", by=alice)
    async with guarded.socket(f"/ws?user=alice&token={ticket}") as socket:
        await opened(socket)
        for shown in (token("alice", lifetime=900), ticket, alice):
            problem = await socket.fail(token=shown)
            assert problem["status"] == 403
            assert "reconnect" in problem["detail"]
        await socket.do(ping=1)


async def test_a_ticket_in_a_header_is_no_token(guarded: AsgiDriver) -> None:
    ticket = await new_ticket(guarded, "user:alice", by=token("alice"))
    assert (await refused(guarded, "/ws?user=alice", bearer(ticket)))[0] == 4401


async def test_a_client_that_has_gone_isnt_given_the_claim_of_its_ticket(
    guarded: AsgiDriver,
) -> None:
    ticket = await new_ticket(guarded, "user:alice", by=token("alice"))
    target = f"/ws?user=alice&token={ticket}"
    async with guarded.socket(target) as older:
        await opened(older)
        gone = guarded.begin(target)
        gone.incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})
        assert gone.task is not None
        await gone.task
        await settle()
        assert not older.ended.is_set()
        await older.do(ping=1)


async def test_a_client_of_whose_going_the_loop_knows_isnt_given_the_claim_either(
    guarded: AsgiDriver,
) -> None:
    ticket = await new_ticket(guarded, "user:alice", by=token("alice"))
    target = f"/ws?user=alice&token={ticket}"
    async with guarded.socket(target) as older:
        await opened(older)
        gone = guarded.begin(target)
        send = gone.send

        async def accept(message: Message) -> None:
            await send(message)
            asyncio.get_running_loop().call_soon(gone.go)

        gone.send = accept  # type: ignore[method-assign]
        assert gone.task is not None
        await gone.task
        await settle()
        assert not older.ended.is_set()


async def test_what_a_client_says_while_its_ticket_is_claimed_is_heard_in_order(
    guarded: AsgiDriver,
) -> None:
    ticket = await new_ticket(guarded, "user:alice", "b", by=token("alice", subscribe=["b"]))
    socket = guarded.begin(f"/ws?user=alice&token={ticket}")
    for text in ('"subscribe":["b"]', '"unsubscribe":["b"]', '"ping":1'):
        socket.say(f'{{"ref":{socket.incoming.qsize()},{text}}}')
    answers = await socket.answers(3)
    assert [each["ref"] for each in answers] == [1, 2, 3]
    assert [len(each["ok"].get("channels", ())) for each in answers] == [3, 2, 0]
    await socket.disconnect()


async def test_a_ticket_that_is_no_longer_valid_when_it_is_claimed_opens_nothing(
    wire: bool,
) -> None:
    async with Clocked(wire=wire, tokens=True) as service:
        grant = await service.auth.read(service.token("alice"))
        ticket, _ = await service.push.new_ticket(grant, ["user:alice"])
        ends = service.credentials.holder

        async def holder(digest: str) -> str | None:
            service.clock.advance(61)
            return await ends(digest)

        service.credentials.holder = holder  # type: ignore[method-assign]
        code, data = await refused(service.client, f"/ws?user=alice&token={ticket}")
        assert (code, data["reason"], data["reconnect"]) == (4401, "unauthorized", False)
        assert service.push.connections == {}


# Commands


REFS = [
    *('""', '"a"', f'"{"x" * 64}"', '"' + "\\u00e9" * 64 + '"', '"\U0001f9d1\\ud83d\\ude00\\n\\""'),
    *("0", "-1", "1.50", "1e400", "-1E+2", "123456789012345678901234567890", "1" * 64),
]  # fmt: skip


@pytest.mark.parametrize("ref", REFS, ids=[ref[:20] for ref in REFS])
async def test_a_ref_comes_back_as_it_was_sent(client: AsgiDriver, ref: str) -> None:
    async with client.socket() as socket:
        await opened(socket)
        socket.say(f'{{"ping":1, "ref" : {ref} }}')
        socket.say(f'{{ "ref":{ref},"nothing":1}}')
        await socket.answers(2)
        assert socket.texts[1] == f'{{"ref":{ref},"ok":{{}}}}'
        assert socket.texts[2].startswith(f'{{"ref":{ref},"error":{{')


@pytest.mark.parametrize("given", ["", '"ref":null,'])
async def test_without_a_ref_the_answer_has_none(client: AsgiDriver, given: str) -> None:
    async with client.socket() as socket:
        await opened(socket)
        socket.say(f'{{{given}"ping":1}}')
        await socket.answers(1)
        assert socket.texts[1] == '{"ok":{}}'


@pytest.mark.parametrize(
    "ref",
    [f'"{"x" * 65}"', "true", "false", "[]", "{}", "[1]", "1" * 65, '"\\ud800"', '"\\ude00\\ud83d"'],
)  # fmt: skip
async def test_another_ref_is_refused_and_the_command_not_done(
    client: AsgiDriver, ref: str
) -> None:
    async with client.socket() as socket:
        await opened(socket)
        socket.say(f'{{"ref":{ref},"subscribe":["a"]}}')
        (answer,) = await socket.answers(1)
        assert list(answer) == ["error"]
        assert answer["error"]["status"] == 422
        assert answer["error"]["errors"][0]["pointer"] == "/ref"
        assert (await socket.do(unsubscribe=["x"]))["channels"] == ["broadcast"]


LONG = "x" * 201
# What is said, the status of its refusal, and where that points.
WRONG: list[tuple[str, int, list[str]]] = [
    ("{}", 422, [""]),
    ('{"user":"bob"}', 422, [""]),
    ('{"foo":1}', 422, ["/foo"]),
    ('{"Ping":1}', 422, ["/Ping"]),
    ('{"a/b~":1}', 422, ["/a~1b~0"]),
    ('{"foo":1,"ping":1}', 422, ["/foo"]),
    ('{"ping":1,"foo":1}', 422, ["/foo"]),
    ('{"ping":1,"subscribe":["x"]}', 422, ["/subscribe"]),
    ('{"subscribe":["x"],"unsubscribe":["a"]}', 422, ["/unsubscribe"]),
    ('{"subscribe":["x"],"user":"bob"}', 422, ["/user"]),
    ('{"publish":{"type":"info","service":"s","channels":["x"]},"user":"b"}', 422, ["/user"]),
    *(
        (f'{{"{command}":{value}}}', 422, [f"/{command}{pointer}"])
        for command in ("subscribe", "unsubscribe")
        for value, pointer in (
            ("null", ""),
            ("true", ""),
            ("3", ""),
            ('"x"', ""),
            ("[]", ""),
            ("{}", ""),
            ("[1]", "/0"),
            ("[null]", "/0"),
            ('["x","b c"]', "/1"),
            ('["x*"]', "/0"),
            ('[""]', "/0"),
            ('["x,y"]', "/0"),
            (f'["x","{LONG}"]', "/1"),
            ('["x","\\ud800"]', "/1"),
            ("[" + ",".join(f'"c{n}"' for n in range(66)) + "]", ""),
        )
    ),
    ('{"subscribe":["x","b c","y",3]}', 422, ["/subscribe/1", "/subscribe/3"]),
    *(
        (f'{{"acknowledge":{value}}}', 422, [f"/acknowledge{pointer}"])
        for value, pointer in (
            ("null", ""),
            ('"s/m1"', ""),
            ("[]", ""),
            ("{}", ""),
            ("[3]", "/0"),
            ('["s/m1",""]', "/1"),
            (f'["{LONG}"]', "/0"),
            ('["\\ud800"]', "/0"),
            ("[" + ",".join(f'"s/{n}"' for n in range(1001)) + "]", ""),
        )
    ),
    *(
        (f'{{"acknowledge":["s/m1"],"user":{user}}}', 422, ["/user"])
        for user in ("3", "[]", '""', '"a b"', '"a/b"', f'"{LONG}"', '"\\ud800"')
    ),
    ('{"acknowledge":["s/m1"]}', 422, ["/user"]),
    ('{"acknowledge":["s/m1"],"user":null}', 422, ["/user"]),
    ('{"acknowledge":["s/m1"],"users":"bob"}', 422, ["/users"]),
    ('{"publish":null}', 422, [""]),
    ('{"publish":3}', 422, [""]),
    ('{"publish":[]}', 422, [""]),
    ('{"publish":{}}', 422, ["/type"]),
    ('{"publish":{"type":"news","service":"s"}}', 422, ["/type"]),
    ('{"publish":{"type":"info","service":"s","chanels":["a"]}}', 422, ["/chanels"]),
    ('{"publish":{"type":"info","service":"s","channels":["a","b c"]}}', 422, ["/channels/1"]),
    ('{"publish":{"type":"progress","service":"s","data":{}}}', 422, ["/data/progress"]),
    ('{"publish":{"type":"info","service":"s","data":{"a":["\\ud800"]}}}', 422, ["/data/a/0"]),
    ('{"publish":{"type":"info","service":"msgpush"}}', 403, []),
    ('{"token":null}', 422, ["/token"]),
    ('{"token":3}', 422, ["/token"]),
    ('{"token":["x"]}', 422, ["/token"]),
    ('{"token":"\\ud800"}', 422, ["/token"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "status", "pointers"), WRONG, ids=[text[:60] for text, _, _ in WRONG]
)
async def test_a_command_that_is_wrong_is_refused_and_changes_and_closes_nothing(
    client: AsgiDriver, text: str, status: int, pointers: list[str]
) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        socket.say('{"ref":7,' + text[1:] if text != "{}" else '{"ref":7}')
        answer = await socket.answer(7)
        problem = answer["error"]
        assert problem["status"] == status, answer
        assert {"type", "title", "detail"} <= problem.keys()
        if pointers:
            assert [each["pointer"] for each in problem["errors"]] == pointers, problem
        assert (await socket.do(subscribe=["z"]))["channels"] == ["a", "broadcast", "z"]
        await publish(client, "last")
        await socket.message("last")
        assert socket.ids == ["last"]


async def test_of_a_name_that_comes_twice_the_last_counts(client: AsgiDriver) -> None:
    async with client.socket() as socket:
        await opened(socket)
        socket.say('{"ref":1,"subscribe":["a"],"ref":2,"subscribe":["b"]}')
        answer = await socket.answer(2)
        assert answer["ok"]["channels"] == ["b", "broadcast"]


async def test_half_a_surrogate_pair_in_a_name_is_refused_and_closes_nothing(
    client: AsgiDriver,
) -> None:
    async with client.socket() as socket:
        await opened(socket)
        socket.say('{"\\ud800":1}')
        (answer,) = await socket.answers(1)
        assert answer["error"]["status"] == 422
        await socket.do(ping=1)


async def test_a_ping_is_answered_whatever_it_has(client: AsgiDriver) -> None:
    async with client.socket() as socket:
        await opened(socket)
        values: list[object] = [1, None, "x", [], {"a": 1}]
        for value in values:
            assert await socket.do(ping=value) == {}


# Subscribing


async def test_channels_are_added_from_here_on_and_taken_away(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        await publish(client, "early", to=("b",))
        channels = ["a", "b", "broadcast", "user:1"]
        assert await socket.do(subscribe=["user:1", "b"]) == {"channels": channels}
        assert await socket.do(subscribe=["b", "b", "a"]) == {"channels": channels}
        await publish(client, "m1", to=("b",))
        await publish(client, "m2", to=("a", "b"))
        await socket.message("m2")
        assert await socket.do(unsubscribe=["b", "none"]) == {
            "channels": ["a", "broadcast", "user:1"]
        }
        await publish(client, "late", to=("b",))
        await publish(client, "m3", target={"user_id": "1"}, to=("c",))
        await socket.message("m3")
        assert socket.ids == ["m1", "m2", "m3"]
        assert await socket.do(unsubscribe=["a", "broadcast", "user:1"]) == {"channels": []}
        await publish(client, "none")
        assert await socket.do(subscribe=["a"]) == {"channels": ["a"]}
        await publish(client, "m4")
        await socket.message("m4")
        assert socket.ids == ["m1", "m2", "m3", "m4"]


async def test_what_was_published_before_the_command_was_said_is_before_it(
    client: AsgiDriver,
) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        for n in range(20):
            await socket.do(subscribe=["b"])
            socket.say({"publish": message(f"in{n}", "b")})
            await socket.message(f"in{n}")
            await socket.do(unsubscribe=["b"])
            await publish(client, f"out{n}", to=("b",))
        await publish(client, "last")
        await socket.message("last")
        assert socket.ids == [*(f"in{n}" for n in range(20)), "last"]


async def test_one_that_is_behind_replays_an_added_channel_from_its_cursor_too(
    client: AsgiDriver,
) -> None:
    async with client.socket("/ws?channel=a") as first:
        start = (await opened(first)) and first.opening["id"]
    await publish(client, *(f"a{n}" for n in range(100)), data={"x": "y" * 2000})
    await publish(client, "b0", to=("b",))
    socket = client.begin(f"/ws?channel=a&last_event_id={start}")
    await socket.answered.wait()
    socket.fill()
    await settle()
    assert "a99" not in socket.ids
    socket.say({"ref": 1, "subscribe": ["b"]})
    await settle()
    socket.drain()
    assert (await socket.answer(1))["ok"]["channels"] == ["a", "b", "broadcast"]
    await publish(client, "b1", to=("b",))
    await socket.message("b1")
    assert socket.ids == [*(f"a{n}" for n in range(100)), "b0", "b1"]
    assert socket.events("msgpush.gap") == []
    await socket.disconnect()


async def test_64_channels_are_the_most_with_those_that_it_has(client: AsgiDriver) -> None:
    names = [f"c{n:02}" for n in range(64)]
    async with client.socket("/ws?channel=c00") as socket:
        await opened(socket)
        problem = await socket.fail(subscribe=[*names, "more"])
        assert problem["status"] == 422
        assert problem["errors"][0]["pointer"] == "/subscribe"
        assert "64" in problem["detail"]
        assert len((await socket.do(subscribe=[*names, "broadcast"]))["channels"]) == 65
        assert (await socket.fail(subscribe=["more"]))["status"] == 422
        await socket.do(unsubscribe=["c63"])
        assert len((await socket.do(subscribe=["more"]))["channels"]) == 65


async def test_each_channel_must_be_allowed_by_the_connections_own_grant(
    guarded: AsgiDriver,
) -> None:
    async with guarded.socket("/ws", bearer(token("alice", subscribe=["kb:*"]))) as socket:
        await opened(socket)
        problem = await socket.fail(subscribe=["kb:1", "x", "user:bob"])
        assert problem["status"] == 403
        assert '"user:bob", "x"' in problem["detail"]
        channels = ["broadcast", "kb:1", "user:alice"]
        assert await socket.do(subscribe=["kb:1", "user:alice", "broadcast"]) == {
            "channels": channels
        }
        assert await socket.do(unsubscribe=["kb:1"]) == {"channels": ["broadcast", "user:alice"]}
        await publish(guarded, "x", to=("x",), target={"user_id": "bob"})
        await publish(guarded, "mine", target={"user_id": "alice"})
        await socket.message("mine")
        assert socket.ids == ["mine"]


# Acknowledging


async def ask_for(client: AsgiDriver, id: str, user: str = "bob") -> None:
    """Publish a message that asks a user for an acknowledgement."""
    answer = await client.send(body_of(id, user=user), **bearer(PUBLISHER))
    assert answer.status == 202, answer.body


async def test_a_token_acknowledges_for_its_own_user_without_naming_it(
    guarded: AsgiDriver,
) -> None:
    async with guarded.socket("/ws?user=bob", bearer(token("bob"))) as socket:
        await opened(socket)
        await ask_for(guarded, "m1")
        await ask_for(guarded, "m2")
        done = await socket.do(acknowledge=["tests/m1", "tests/none"])
        assert done == {"acknowledged": ["tests/m1"], "unknown": ["tests/none"]}
        assert (await socket.do(acknowledge=["tests/m2"], user="bob"))["acknowledged"]
        assert (await socket.fail(acknowledge=["tests/m2"], user="ann"))["status"] == 403
        await socket.event("msgpush.acknowledged", 2)
        told = [each["data"] for each in socket.events("msgpush.acknowledged")]
        assert told == [{"keys": [f"tests/{id}"], "state": "acknowledged"} for id in ("m1", "m2")]


async def test_a_subject_that_is_no_name_acknowledges_as_the_user_that_is_made_of_it(
    guarded: AsgiDriver,
) -> None:
    async with guarded.socket("/ws", bearer(token("acme/ann lee"))) as socket:
        await opened(socket)
        await ask_for(guarded, "m1", user="acme%2Fann%20lee")
        assert (await socket.do(acknowledge=["tests/m1"]))["acknowledged"] == ["tests/m1"]


async def test_who_has_the_claim_users_acknowledges_for_them(guarded: AsgiDriver) -> None:
    async with guarded.socket("/ws", bearer(token("desk", users=["bo*"]))) as socket:
        await opened(socket)
        await ask_for(guarded, "m1")
        assert (await socket.do(acknowledge=["tests/m1"]))["unknown"] == ["tests/m1"], "desk's own"
        done = await socket.do(acknowledge=["tests/m1"], user="bob")
        assert done["acknowledged"] == ["tests/m1"]
        assert (await socket.fail(acknowledge=["tests/m1"], user="ann"))["status"] == 403


async def test_a_ticket_acknowledges_where_it_was_made_for_that(guarded: AsgiDriver) -> None:
    for acknowledge in (True, False):
        ticket = await new_ticket(guarded, "user:bob", by=token("bob"), acknowledge=acknowledge)
        async with guarded.socket(f"/ws?user=bob&token={ticket}") as socket:
            await opened(socket)
            await ask_for(guarded, "m1")
            for command in (
                {"acknowledge": ["tests/m1"]},
                {"acknowledge": ["tests/m1"], "user": "bob"},
            ):
                answer = await socket.ask(**command)
                assert ("ok" in answer) == acknowledge
                assert acknowledge or answer["error"]["status"] == 403


async def test_where_nobody_is_asked_for_a_token_the_user_is_named(client: AsgiDriver) -> None:
    async with client.socket("/ws?user=bob") as socket:
        await opened(socket)
        await ask_for(client, "m1")
        problem = await socket.fail(acknowledge=["tests/m1"])
        assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "/user")
        done = await socket.do(acknowledge=["tests/m1"], user="bob")
        assert done["acknowledged"] == ["tests/m1"]


async def test_acknowledgements_have_a_rate(wire: bool) -> None:
    async with (
        serving(wire, jwt_secret=SECRET, ack_rate=0.001) as client,
        client.socket("/ws", bearer(token("bob"))) as socket,
    ):
        await opened(socket)
        await socket.do(acknowledge=[f"s/{n}" for n in range(990)])
        problem = await socket.fail(acknowledge=[f"s/{n}" for n in range(11)])
        assert problem["status"] == 429
        await socket.do(acknowledge=[f"s/{n}" for n in range(10)])
        assert (await socket.fail(acknowledge=["s/0"]))["status"] == 429


async def test_what_is_pending_is_shown_to_a_stream_of_its_user_unless_it_is_passive(
    guarded: AsgiDriver,
) -> None:
    await ask_for(guarded, "m1")
    bob = bearer(token("bob"))
    async with (
        guarded.socket("/ws?user=bob", bob) as own,
        guarded.socket("/ws", bob) as later,
        guarded.socket("/ws?user=bob&passive=true", bob) as passive,
        guarded.socket("/ws?passive=true", bob) as passive_later,
        guarded.socket("/ws?user=bob", bearer(token("eve", subscribe=["user:*"]))) as other,
    ):
        every = (own, later, passive, passive_later, other)
        for socket in every:
            await opened(socket)
        await later.do(subscribe=["user:bob"])
        await passive_later.do(subscribe=["user:bob"])
        await passive_later.do(token=token("bob", lifetime=900))
        await push_of(guarded).redelivery.open()
        for socket in (own, later):
            frame = await socket.message("m1")
            assert list(frame) == ["event", "data"], "it has no place in the log"
        await publish(guarded, "last", target={"user_id": "bob"})
        for socket in every:
            await socket.message("last")
        assert [each.ids for each in (passive, passive_later, other)] == [["last"]] * 3
        acting = {
            each.id: set(each.cohort.subscription.acts_for) if each.cohort else None
            for each in push_of(guarded).connections.values()
        }
        ids = [each.opening["data"]["connection"] for each in every]
        assert [acting[id] for id in ids] == [{"bob"}, {"bob"}, set(), set(), set()]
        await own.do(unsubscribe=["user:bob"])
        connection = push_of(guarded).connections[ids[0]]
        assert connection.cohort is not None
        assert connection.cohort.subscription.acts_for == frozenset()


# Publishing


async def test_a_publish_is_answered_with_its_receipt(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        target = {"user_id": "u"}
        receipt = await socket.do(publish=message("m1", "a", "a", target=target))
        assert set(receipt) == {"id", "timestamp", "channels", "cursor", "duplicate"}
        assert receipt["channels"] == ["user:u", "a", "service:s"]
        frame = await socket.message("m1")
        assert frame["id"] == receipt["cursor"]
        again = await socket.do(publish=message("m1", "a", "a", target=target))
        assert again == receipt | {"duplicate": True}
        conflict = await socket.fail(publish=message("m1", "b"))
        assert conflict["status"] == 409
        made = await socket.do(publish=message(None))
        assert made["id"].startswith("msg_")
        await socket.message(made["id"])
        assert socket.ids == ["m1", made["id"]]


async def test_what_is_published_may_have_line_ends_between_its_tokens(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        text = msgspec.json.encode({"ref": 1, "publish": message("m1", data={"a": [1, {"b": 2}]})})
        socket.say(msgspec.json.format(text, indent=2).decode().replace("\n", "\r\n"))
        assert "ok" in await socket.answer(1)
        assert (await socket.message("m1"))["data"]["data"] == {"a": [1, {"b": 2}]}


async def test_every_channel_of_a_message_must_be_allowed(guarded: AsgiDriver) -> None:
    headers = bearer(token("importer", publish=["service:s", "a"]))
    async with guarded.socket("/ws", headers) as socket:
        await opened(socket)
        await socket.do(publish=message("m1"))
        problem = await socket.fail(publish=message("m2", "a", "b"))
        assert problem["status"] == 403
        assert '"b"' in problem["detail"]
        assert (await socket.fail(publish=message("m2", service="t")))["status"] == 403
        await socket.do(publish=message("m2"))


async def test_publishing_has_a_rate(wire: bool) -> None:
    async with serving(wire, publish_rate=2) as client, client.socket() as socket:
        await opened(socket)
        for n in range(2):
            await socket.do(publish=message(f"m{n}"))
        problem = await socket.fail(publish=message("m2"))
        assert problem["status"] == 429
        assert "seconds" in problem["detail"]
        await socket.do(ping=1)


async def test_a_message_that_is_too_large_is_refused_as_send_refuses_it(wire: bool) -> None:
    async with Clocked(wire=wire, max_bytes=1000) as service, service.client.socket() as socket:
        await opened(socket)
        problem = await socket.fail(publish=message("m1", data={"x": "y" * 1000}))
        assert problem["status"] == 413
        await socket.do(publish=message("m1", data={"x": "y" * 800}))
    async with serving(wire) as client, client.socket() as socket:
        await opened(socket)
        channels = [f"c{n}" for n in range(32)]
        problem = await socket.fail(publish=message("m1", *channels, data={"x": "y" * 200_000}))
        assert problem["status"] == 413, "its size times its channels"


async def test_while_the_bus_is_away_a_publish_is_answered_with_503(wire: bool) -> None:
    async with Clocked(wire=wire) as service, service.client.socket("/ws?channel=a") as socket:
        await opened(socket)
        service.bus.refused = None
        assert (await socket.fail(publish=message("m1")))["status"] == 503
        await socket.do(subscribe=["b"])
        service.bus.refused = frozenset()
        assert not (await socket.do(publish=message("m1")))["duplicate"]
        await socket.message("m1")


async def test_a_mistake_of_the_services_own_is_answered_and_closes_nothing(
    wire: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class BrokenBus(SlowBus):
        async def append(self, drafts: Sequence[Draft]) -> list[Stored | Rejection]:
            if any(draft.channels for draft in drafts):
                raise ZeroDivisionError("a secret")
            return await super().append(drafts)

    service = Clocked(wire=wire)
    service.bus.__class__ = BrokenBus
    async with service, service.client.socket("/ws?channel=a") as socket:
        await opened(socket)
        answer = await socket.ask(publish=message("m1"))
        assert answer["error"]["status"] == 500
        assert "secret" not in socket.texts[-1]
        await socket.do(ping=1)
    assert any(each.exc_info for each in caplog.records)


async def test_pipelined_publishes_keep_their_order_though_the_limiter_waits(wire: bool) -> None:
    limiter = SlowLimiter()
    async with (
        Clocked(wire=wire, publishing=limiter) as service,
        service.client.socket("/ws?channel=a") as socket,
    ):
        await opened(socket)
        for n in range(8):
            socket.say({"ref": n, "publish": message(f"m{n}")})
        await until(lambda: limiter.asked)
        await settle()
        assert limiter.asked == 1, "one after the other"
        for n in range(8):
            limiter.turns.release()
            await socket.answer(n)
        await socket.message("m7")
        assert socket.ids == [f"m{n}" for n in range(8)]


async def test_pipelined_publishes_and_acknowledgements_begin_in_their_order(wire: bool) -> None:
    async with (
        Clocked(wire=wire) as service,
        service.client.socket("/ws?channel=a") as socket,
    ):
        await opened(socket)
        service.bus.open.clear()
        for n in range(10):
            socket.say({"ref": n, "publish": message(f"m{n}")})
        await until(lambda: len(service.bus.began) == 10)
        assert service.bus.began == [f"m{n}" for n in range(10)]
        assert await socket.answers(0) == []
        service.bus.open.set()
        await socket.answers(10)
        await socket.message("m9")
        assert socket.ids == [f"m{n}" for n in range(10)]


async def test_acknowledgements_begin_behind_the_publishes_before_them(wire: bool) -> None:
    limiter = SlowLimiter()
    async with (
        Clocked(wire=wire, publishing=limiter) as service,
        service.client.socket() as socket,
    ):
        await opened(socket)
        asking = message("m1", target={"user_id": "bob"}, metadata={"ack": True})
        socket.say({"ref": 0, "publish": asking})
        socket.say({"ref": 1, "acknowledge": ["s/m1"], "user": "bob"})
        await settle()
        assert await socket.answers(0) == []
        limiter.turns.release()
        assert "ok" in await socket.answer(0)
        # The one that begins first needn't be the first to be done.
        assert set((await socket.answer(1))["ok"]) == {"acknowledged", "unknown"}


# What waits


async def test_however_much_a_client_says_others_have_their_turn(wire: bool) -> None:
    async with Clocked(wire=wire) as service, service.client.socket() as socket:
        await opened(socket)
        for n in range(200):
            socket.say({"ref": n, "ping": 1})
        await settle(10)
        assert 1 < socket.taken < 50
        await socket.answer(199)


async def test_publishes_under_way_hold_up_neither_a_token_nor_a_ping(wire: bool) -> None:
    async with Clocked(wire=wire, tokens=True) as service:
        first = service.token("importer", publish=["*"])
        async with service.client.socket("/ws", bearer(first)) as socket:
            await opened(socket)
            service.bus.open.clear()
            for n in range(UNDER_WAY - 1):
                socket.say({"ref": n, "publish": message(f"m{n}")})
            await socket.do(ping=1)
            await socket.do(token=service.token("importer", publish=["*"], lifetime=900))
            await socket.do(subscribe=["user:importer"])
            assert len(await socket.answers(3)) == 3
            service.bus.open.set()
            for n in range(UNDER_WAY - 1):
                assert "ok" in await socket.answer(n)


async def test_with_16_under_way_nothing_more_is_read_until_one_is_done(wire: bool) -> None:
    assert UNDER_WAY == 16
    async with Clocked(wire=wire) as service, service.client.socket() as socket:
        await opened(socket)
        service.bus.open.clear()
        for n in range(40):
            socket.say({"ref": n, "publish": message(f"m{n}")})
        await until(lambda: len(service.bus.began) == 16)
        await settle()
        assert len(service.bus.began) == 16
        assert socket.taken == 1 + 16, "its request, and what it said"
        service.bus.open.set()
        for n in range(40):
            assert "ok" in await socket.answer(n)


async def test_while_an_answer_waits_for_the_socket_nothing_more_is_read(wire: bool) -> None:
    async with Clocked(wire=wire) as service, service.client.socket() as socket:
        await opened(socket)
        socket.fill()
        # Over plain ASGI 64 KiB wait for the server before the sink is full.
        for n in range(600):
            socket.say({"ref": n, "nothing": 1})
        await settle(1500)
        taken = socket.taken
        assert taken == (2 if wire else taken) < 400
        await settle()
        assert socket.taken == taken
        socket.drain()
        assert [each["ref"] for each in await socket.answers(600)] == [*range(600)]


async def test_while_a_publishs_answer_waits_for_the_socket_nothing_more_is_read(
    wire: bool,
) -> None:
    async with Clocked(wire=wire) as service, service.client.socket() as socket:
        await opened(socket)
        service.bus.open.clear()
        for n in range(3):
            socket.say({"ref": n, "publish": message(f"m{n}")})
        await until(lambda: len(service.bus.began) == 3)
        socket.fill()
        await fill_up(service)
        service.bus.open.set()
        await settle()
        # What was waited for when it filled up may be taken yet.
        for ref in ("taken", "left", "left too"):
            socket.say({"ref": ref, "publish": message(ref.replace(" ", "-"))})
        await settle()
        assert socket.incoming.qsize() == 2
        socket.drain()
        assert ["ok" in each for each in await socket.answers(6)] == [True] * 6


async def fill_up(service: Clocked) -> None:
    """Have the sink of a full socket take nothing more."""
    (connection,) = service.push.connections.values()
    assert connection.cohort is not None
    view = connection.cohort.subscription.view
    while connection.sink.offer(view.heartbeat("1abcdefgh.0-0")):
        pass


async def test_a_publish_that_has_begun_is_finished_though_its_client_goes(wire: bool) -> None:
    async with Clocked(wire=wire) as service:
        async with service.client.socket("/ws?channel=a") as socket:
            await opened(socket)
            service.bus.open.clear()
            for n in range(3):
                socket.say({"publish": message(f"m{n}")})
            await until(lambda: len(service.bus.began) == 3)
            socket.go()
            await until(lambda: not service.push.connections)
            await settle()
            assert socket.task is not None
            assert not socket.task.done()
            service.bus.open.set()
        (page,) = await service.bus.history(["a"], None, 10)
        assert len(page.entries) == 3


async def test_what_a_client_said_before_it_went_is_done(wire: bool) -> None:
    async with Clocked(wire=wire) as service:
        async with service.client.socket() as socket:
            await opened(socket)
            for n in range(3):
                socket.say({"publish": message(f"m{n}")})
            socket.go()
        assert service.bus.began == ["m0", "m1", "m2"]


async def test_a_client_that_goes_while_answers_wait_for_its_socket_leaves_nothing(
    wire: bool,
) -> None:
    async with Clocked(wire=wire) as service:
        async with service.client.socket("/ws?channel=a") as socket:
            await opened(socket)
            service.bus.open.clear()
            socket.say({"publish": message("m1")})
            await until(lambda: service.bus.began)
            socket.fill()
            await fill_up(service)
            service.bus.open.set()
            await settle()
            socket.full = True  # the server's `send` hangs, whatever the client does
            socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})
            if wire:
                socket.go()
            async with asyncio.timeout(WAIT):
                assert socket.task is not None
                await socket.task
        assert service.push.connections == {}


# Checked each time


COMMANDS: list[dict[str, Any]] = [
    {"subscribe": ["user:alice"]},
    {"unsubscribe": ["user:alice"]},
    {"acknowledge": ["s/m1"]},
    {"publish": message("m1")},
    {"ping": 1},
]


@pytest.mark.parametrize("command", COMMANDS, ids=[next(iter(each)) for each in COMMANDS])
@pytest.mark.parametrize("end", ["expired", "revoked"])
async def test_each_command_is_refused_once_its_token_has_ended(
    wire: bool, command: dict[str, Any], end: str
) -> None:
    async with Clocked(wire=wire, tokens=True) as service:
        shown = service.token("alice", publish=["*"], lifetime=100)
        async with service.client.socket("/ws?user=alice", bearer(shown)) as socket:
            await opened(socket)
            await socket.do(**command)
            if end == "expired":
                service.clock.advance(100 + LEEWAY)
            else:
                revocation = Revocation("subject", "alice", service.clock.now())
                service.push._permissions.revocations.add(revocation, service.clock.now())
            problem = await socket.fail(**command)
            assert problem["status"] == 401
            assert end in problem["detail"]
            await settle()
            assert not socket.ended.is_set(), "the hub does that"


async def test_a_publish_that_waited_for_its_turn_too_long_is_refused(wire: bool) -> None:
    limiter = SlowLimiter()
    async with Clocked(wire=wire, tokens=True, publishing=limiter) as service:
        shown = service.token("alice", publish=["*"], lifetime=100)
        async with service.client.socket("/ws", bearer(shown)) as socket:
            await opened(socket)
            socket.say({"ref": 0, "publish": message("m0")})
            socket.say({"ref": 1, "publish": message("m1")})
            await until(lambda: limiter.asked)
            service.clock.advance(100 + LEEWAY)
            limiter.turns.release()
            assert "ok" in await socket.answer(0)
            assert (await socket.answer(1))["error"]["status"] == 401


# A new token


async def test_a_later_token_takes_the_place_of_the_connections(wire: bool) -> None:
    async with Clocked(wire=wire, tokens=True) as service:
        headers = bearer(service.token("alice", lifetime=100))
        async with service.client.socket("/ws?user=alice", headers) as socket:
            await opened(socket)
            later = service.token("alice", lifetime=300, subscribe=["kb:1"], publish=["*"])
            assert (await socket.fail(subscribe=["kb:1"]))["status"] == 403
            channels = ["broadcast", "user:alice"]
            assert await socket.do(token=later) == {"channels": channels, "left": []}
            assert await socket.do(subscribe=["kb:1"]) == {
                "channels": ["broadcast", "kb:1", "user:alice"]
            }
            await socket.do(publish=message("m1", "kb:1"))
            await socket.message("m1")
            for _ in range(4):
                service.pass_time(100 + LEEWAY - 68)
            await socket.do(ping=1)  # the former end is 148 seconds ago
            for _ in range(4):
                service.pass_time(20)
            await socket.do(ping=1)
            service.pass_time(4)
            assert await socket.closed() == 4401
            assert socket.closing["reason"] == "expired"


async def test_channels_that_a_new_token_doesnt_allow_are_left_and_named(
    guarded: AsgiDriver,
) -> None:
    wide = token("alice", subscribe=["*"], publish=["*"], lifetime=600)
    narrow = token("alice", subscribe=["kb:1"], lifetime=700)
    target = "/ws?user=alice&user=bob&channel=kb:1&channel=kb:2"
    async with guarded.socket(target, bearer(wide)) as socket:
        await opened(socket)
        assert await socket.do(token=narrow) == {
            "channels": ["broadcast", "kb:1", "user:alice"],
            "left": ["kb:2", "user:bob"],
        }
        await publish(guarded, "m1", to=("kb:2",), target={"user_id": "bob"})
        await publish(guarded, "m2", to=("kb:1",))
        await socket.message("m2")
        assert socket.ids == ["m2"]
        assert (await socket.fail(subscribe=["kb:2"]))["status"] == 403
        assert (await socket.fail(publish=message("m3")))["status"] == 403
        assert await socket.do(token=token("alice", lifetime=800)) == {
            "channels": ["broadcast", "user:alice"],
            "left": ["kb:1"],
        }


async def test_a_new_token_changes_for_whom_the_connection_acts(guarded: AsgiDriver) -> None:
    async with guarded.socket("/ws?user=bob", bearer(token("desk", subscribe=["*"]))) as socket:
        await opened(socket)
        await ask_for(guarded, "m1")
        await socket.message("m1")
        assert (await socket.fail(acknowledge=["tests/m1"], user="bob"))["status"] == 403
        acting = token("desk", subscribe=["*"], users=["bob"], lifetime=700)
        assert (await socket.do(token=acting))["left"] == []
        (connection,) = push_of(guarded).connections.values()
        assert connection.cohort is not None
        assert connection.cohort.subscription.acts_for == {"bob"}
        done = await socket.do(acknowledge=["tests/m1"], user="bob")
        assert done["acknowledged"] == ["tests/m1"]
        await socket.event("msgpush.acknowledged")


async def test_any_other_token_is_refused_and_the_connection_stays_as_it_was(
    guarded: AsgiDriver,
) -> None:
    now = int(time.time())
    first = signed(claims("alice", msgpush={"subscribe": ["kb:*"]}) | {"exp": now + 600})
    async with guarded.socket("/ws?channel=kb:1", bearer(first)) as socket:
        await opened(socket)
        for shown, status in (
            (first, 422),
            (signed(claims("alice") | {"exp": now + 600}), 422),
            (signed(claims("alice") | {"exp": now + 599}), 422),
            (token("bob", lifetime=900), 403),
            (token("Alice", lifetime=900), 403),
            (token("alice", lifetime=-60), 401),
            (token("alice", "x" * 32, lifetime=900), 401),
            ("", 401),
            ("x", 401),
            ("\u00e9", 401),
            (await new_ticket(guarded, "kb:1", by=first), 401),
        ):
            problem = await socket.fail(token=shown)
            assert problem["status"] == status, problem
            assert shown not in problem["detail"] or len(shown) < 2
        assert await socket.do(subscribe=["kb:2"]) == {"channels": ["broadcast", "kb:1", "kb:2"]}
        (connection,) = push_of(guarded).connections.values()
        assert connection.grant.expires == now + 600


async def test_a_new_token_that_was_revoked_is_refused(wire: bool) -> None:
    async with Clocked(wire=wire, tokens=True) as service:
        first, later = service.token("alice"), service.token("alice", lifetime=900, jti="t2")
        async with service.client.socket("/ws", bearer(first)) as socket:
            await opened(socket)
            await service.push.revoke(Revocation("jti", "t2", service.clock.now()))
            assert (await socket.fail(token=later))["status"] == 401
            await socket.do(ping=1)


async def test_a_revocation_of_the_former_token_alone_doesnt_end_it_but_the_new_ones_does(
    wire: bool,
) -> None:
    async with Clocked(wire=wire, tokens=True) as service:
        first = service.token("alice", jti="t1")
        async with service.client.socket("/ws", bearer(first)) as socket:
            await opened(socket)
            await socket.do(token=service.token("alice", lifetime=900, jti="t2"))
            await service.push.revoke(Revocation("jti", "t1", service.clock.now()))
            await socket.do(ping=1)
            await service.push.revoke(Revocation("jti", "t2", service.clock.now()))
            assert await socket.closed() == 4403


async def test_while_there_are_no_keys_a_new_token_is_answered_with_503(wire: bool) -> None:
    async with (
        Clocked(wire=wire) as service,
        service.client.socket() as socket,
    ):
        await opened(socket)
        service.auth.read = NoKeys().read  # type: ignore[method-assign]
        assert (await socket.fail(token=token("alice")))["status"] == 503
        await socket.do(ping=1)


# What operators see


async def test_it_is_listed_with_its_channels_as_they_are_now(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=a", {"user-agent": "tests"}) as socket:
        id = (await opened(socket))["connection"]
        await socket.do(subscribe=["user:1"])
        await socket.do(unsubscribe=["a"])
        (row,) = (await listed(client, "")).values()
        assert (row["id"], row["transport"], row["state"]) == (id, "ws", "live")
        assert (row["remote"], row["user_agent"]) == ("127.0.0.1:50000", "tests")
        assert row["channels"] == ["broadcast", "user:1"]
        assert id in await listed(client, "?user=1")
        assert id not in await listed(client, "?channel=a")
        async with client.stream("/sse/stream/a"):
            stats = (await client.request("GET", "/api/v1/connections/stats")).json()
        assert stats["by_transport"] == {"sse": 1, "ws": 1}
        assert stats["by_channel_kind"].get("user") == 1
    assert await listed(client, "") == {}


async def listed(client: AsgiDriver, query: str) -> dict[str, dict[str, Any]]:
    answer = await client.request("GET", f"/api/v1/connections{query}")
    return {each["id"]: each for each in answer.json()["connections"]}


async def test_what_it_was_sent_is_counted(client: AsgiDriver) -> None:
    async with client.socket("/ws?channel=a") as socket:
        await opened(socket)
        (connection,) = push_of(client).connections.values()
        before = connection.bytes_sent
        await publish(client, "m1", "m2")
        await socket.message("m2")
        await settle()
        assert connection.messages_sent == 2
        size = sum(len(text.encode()) for text in socket.texts[1:])
        assert size <= connection.bytes_sent - before <= size + 8
        await socket.do(ping=1)
        assert connection.messages_sent == 2
        size = sum(len(text.encode()) for text in socket.texts[1:])
        assert size <= connection.bytes_sent - before <= size + 12


async def test_the_metrics_count_it_by_its_transport_and_its_refusals(guarded: AsgiDriver) -> None:
    async def value(name: str, **labels: str) -> float:
        text = (await guarded.request("GET", "/metrics")).body.decode()
        told = ",".join(f'{label}="{each}"' for label, each in labels.items())
        found = re.search(rf"^{name}{{{re.escape(told)}}} (\S+)$", text, re.MULTILINE)
        return 0.0 if found is None else float(found[1])

    name = "message_push_connections_total"
    assert await value(name, transport="ws") == 0
    async with guarded.socket("/ws", bearer(token("alice"))) as socket:
        await opened(socket)
        assert await value(name, transport="ws") == 1
        assert await value(name, transport="sse") == 0
    assert await value(name, transport="ws") == 0
    name = "message_push_refused_total"
    await refused(guarded, "/ws?channel=x", bearer(token("alice")))
    assert await value(name, reason="denied") == 1
    async with guarded.socket("/ws", bearer(token("alice"))) as socket:
        await socket.fail(subscribe=["x"])
        await socket.fail(publish=message("m1"))
    assert await value(name, reason="denied") == 3
    await denied(guarded, "/ws", {"origin": "https://evil.example"})
    assert await value(name, reason="denied") == 4
    push_of(guarded).draining = True
    await refused(guarded, "/ws", bearer(token("alice")))
    assert await value(name, reason="draining") == 1
    assert await value(name, reason="denied") == 4


# What is left


def kept(*kinds: type) -> int:
    return sum(isinstance(each, kinds) for each in gc.get_objects())


async def test_connections_that_are_gone_leave_nothing(wire: bool) -> None:
    async with Clocked(wire=wire, tokens=True) as service:
        client, shown = service.client, service.token("alice", publish=["*"], subscribe=["*"])
        target, headers = "/ws?user=alice&channel=a", bearer(shown)

        async def visit(end: str) -> None:
            async with client.socket(target, headers) as socket:
                await opened(socket)
                await socket.do(subscribe=["b"])
                await socket.do(publish=message(None, "b"))
                await socket.do(acknowledge=["s/m1"])
                await socket.fail(subscribe=["c d"])
                await socket.fail(publish={})
                await socket.do(unsubscribe=["b"])
                if end == "close":
                    hub = service.push._hub
                    (connection,) = hub.connections.values()
                    hub.close(connection, "disconnected", reconnect=True)
                elif end == "mistake":
                    socket.say("x")
                if end != "go":
                    await socket.closed()

        await visit("go")
        await refused(client, "/ws")
        await service.rest()
        tasks, leftovers = asyncio.all_tasks(), service.push._hub.leftovers()
        gc.collect()
        gc.disable()
        try:
            before = kept(Conversation, Connection)
            for end in ("go", "close", "mistake") * 3:
                await visit(end)
                await refused(client, "/ws?chanel=x")
                await refused(client, "/ws")
            await service.rest()
            assert service.push.connections == {}
            assert service.push._hub.leftovers() == leftovers
            assert asyncio.all_tasks() == tasks
            assert kept(Conversation, Connection) == before, "nothing waits for the collector"
        finally:
            gc.enable()
