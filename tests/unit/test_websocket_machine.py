"""Any order of subscribing, publishing, acknowledging, renewing, stalling, cutting and resuming gives
each client of a WebSocket, for each channel, exactly what was published between joining and leaving.

A model that knows no hub says what that is, by places in the log alone. A channel is joined
somewhere between the cursor that the client knew when it asked and the log's end when it was
answered, and left at once.
"""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import msgspec
import pytest

from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import AsgiDriver, Socket
from tests.support.tokens import SECRET, bearer, token

TOPICS = ("a", "b", "c")
USERS = ("alice", "bob")
STEPS = 150

Place = tuple[int, int]


def place_of(cursor: str) -> Place:
    """The place in the log that a cursor names."""
    ms, _, seq = cursor.rpartition(".")[2].partition("-")
    return int(ms), int(seq)


class Published(NamedTuple):
    place: Place
    id: str
    channels: frozenset[str]


class Span(NamedTuple):
    """A time in which a client listens to a channel: what comes after `joined` is its own for sure,
    what comes at or before `asked` isn't.
    """

    asked: Place
    joined: Place


class Client:
    """One user's client: it remembers its channels and its cursor, and comes back with them."""

    def __init__(self, walk: "Walk", user: str) -> None:
        self.walk, self.user = walk, user
        self.subscribed: dict[str, Span] = {}
        self.left: dict[str, list[tuple[Span, Place]]] = {}  # and the cursor when it was left
        self.lifetime = 600.0
        self.rights = [*TOPICS]
        self.socket: Socket
        self.read = 0
        self.cursor = ""
        self.got: dict[str, Place] = {}

    async def open(self) -> None:
        last = f"&last_event_id={self.cursor}" if self.cursor and self.subscribed else ""
        if not last:
            self.cursor = ""
        query = "&".join(f"channel={each}" for each in self.subscribed)
        self.socket = self.walk.driver.begin(
            f"/ws?broadcast=false&{query}{last}", bearer(self.token())
        )
        self.read = 0
        opening = await self.socket.first()
        assert opening["event"] == "msgpush.open", opening
        if not last:
            here = place_of(opening["id"])
            self.subscribed = {each: Span(here, self.walk.end) for each in self.subscribed}
        self.look()

    def token(self) -> str:
        return token(self.user, lifetime=self.lifetime, subscribe=self.rights, publish=["*"])

    def look(self) -> None:
        """Check what has come since the last time."""
        for frame in self.socket.frames[self.read :]:
            self.take(frame)
        self.read = len(self.socket.frames)

    def take(self, frame: dict[str, Any]) -> None:
        assert frame.get("event") not in ("msgpush.gap", "msgpush.close"), frame
        if frame.get("event") == "message":
            message = self.walk.by_id[frame["data"]["id"]]
            if "id" not in frame:
                assert message.id not in self.walk.acknowledged, "it waits no longer"
                return
            assert frame["data"]["metadata"]["retry_count"] == 0
            assert place_of(frame["id"]) == message.place
            assert message.id not in self.got, "once"
            assert not self.cursor or message.place > place_of(self.cursor), "in order"
            assert self.may_get(message), (self.user, message, self.subscribed)
            self.got[message.id] = message.place
        if "id" in frame:
            self.cursor = frame["id"]
            self.has_all(place_of(self.cursor))

    def may_get(self, message: Published) -> bool:
        return any(
            span.asked < message.place
            for channel, span in self.subscribed.items()
            if channel in message.channels
        )

    def has_all(self, upto: Place) -> None:
        """With a cursor everything up to it has come."""
        for message in self.walk.published:
            if message.place > upto or message.id in self.got:
                continue
            for channel, span in self.subscribed.items():
                assert not (channel in message.channels and span.joined < message.place), (
                    f"{self.user} lacks {message} up to {upto}"
                )

    # What it does

    async def subscribe(self, channel: str) -> None:
        asked = place_of(self.cursor or self.socket.opening["id"])
        allowed = channel in self.rights or channel == f"user:{self.user}"
        if channel not in self.subscribed and allowed:
            # Its messages may come before the answer is seen.
            self.subscribed[channel] = Span(asked, (1 << 60, 0))
        answer = await self.socket.ask(subscribe=[channel])
        if not allowed:
            assert answer["error"]["status"] == 403
            return
        assert answer["ok"] == {"channels": sorted(self.subscribed)}
        span = self.subscribed[channel]
        if span.joined[0] == 1 << 60:
            self.subscribed[channel] = span._replace(joined=self.walk.end)
        self.look()

    async def unsubscribe(self, channel: str) -> None:
        ref = f"leave-{len(self.socket.frames)}"
        self.socket.say({"ref": ref, "unsubscribe": [channel]})
        await self.socket.answer(ref)
        self.leave([channel], ref)

    def leave(self, channels: list[str], ref: object) -> None:
        """Take what has come before an answer with these channels, and the rest without them."""
        for frame in self.socket.frames[self.read :]:
            if frame.get("ref") == ref:
                for channel in channels:
                    self.subscribed.pop(channel, None)
            self.take(frame)
        self.read = len(self.socket.frames)

    async def renew(self, rights: list[str]) -> None:
        self.lifetime += 1
        self.rights = rights
        ref = f"token-{self.lifetime}"
        self.socket.say({"ref": ref, "token": self.token()})
        answer = await self.socket.answer(ref)
        own = {*rights, f"user:{self.user}"}
        left = sorted(each for each in self.subscribed if each not in own)
        kept = sorted(each for each in self.subscribed if each in own)
        assert answer["ok"] == {"channels": kept, "left": left}
        self.leave(left, ref)

    async def publish(self, message: dict[str, Any]) -> None:
        self.walk.add(message, await self.socket.do(publish=message))

    async def acknowledge(self) -> None:
        own = [each for each in self.walk.asking if f"user:{self.user}" in each.channels]
        if own:
            message = self.walk.random.choice(own)
            done = await self.socket.do(acknowledge=[f"s/{message.id}"])
            assert done == {"acknowledged": [f"s/{message.id}"], "unknown": []}
            for each in self.walk.clients:
                each.look()  # what was shown before
            self.walk.acknowledged.add(message.id)

    async def come_back(self) -> None:
        self.look()
        await self.go()
        await self.open()

    async def go(self) -> None:
        await self.socket.disconnect()


class Walk:
    """Random steps over one service."""

    def __init__(self, driver: AsgiDriver, seed: int) -> None:
        self.driver, self.random = driver, random.Random(seed)
        self.published: list[Published] = []
        self.asking: list[Published] = []
        self.by_id: dict[str, Published] = {}
        self.acknowledged: set[str] = set()
        self.end: Place = (0, 0)
        self.clients: list[Client] = []

    def add(self, message: dict[str, Any], receipt: dict[str, Any]) -> None:
        self.end = max(self.end, place_of(receipt["cursor"]))
        self.by_id[message["id"]] = self.by_id[message["id"]]._replace(
            place=place_of(receipt["cursor"])
        )
        self.published.append(self.by_id[message["id"]])
        if "metadata" in message:
            self.asking.append(self.by_id[message["id"]])

    def message(self) -> dict[str, Any]:
        """A new message: to topics, or to a user, who may have to acknowledge it."""
        id = f"m{len(self.by_id)}"
        made: dict[str, Any] = {"id": id, "type": "info", "service": "s"}
        if self.random.random() < 0.3:
            user = self.random.choice(USERS)
            made["target"] = {"user_id": user}
            channels = {f"user:{user}"}
            if self.random.random() < 0.5:
                made["metadata"] = {"ack": True}
        else:
            channels = {*self.random.sample(TOPICS, self.random.randint(1, 2))}
            made["channels"] = sorted(channels)
        self.by_id[id] = Published((1 << 60, 0), id, frozenset(channels))
        return made

    async def publish(self) -> None:
        message = self.message()
        answer = await self.driver.send(
            msgspec.json.encode(message), **bearer(token("importer", publish=["*"]))
        )
        assert answer.status == 202, answer.body
        self.add(message, answer.json())

    async def step(self) -> None:
        client = self.random.choice(self.clients)
        channel = self.random.choice((*TOPICS, *(f"user:{user}" for user in USERS)))
        match self.random.randrange(12):
            case 0 | 1:
                await client.subscribe(channel)
            case 2:
                await client.unsubscribe(channel)
            case 3:
                await client.renew(self.random.sample(TOPICS, self.random.randint(1, 3)))
            case 4:
                await client.acknowledge()
            case 5:
                await client.come_back()
            case 6:
                client.socket.fill()
                for _ in range(self.random.randint(1, 5)):
                    await self.publish()
                await asyncio.sleep(0)
                client.socket.drain()
            case 7 | 8:
                message = self.message()
                await client.publish(message)
            case _:
                await self.publish()
        for each in self.clients:
            each.look()

    async def settle(self) -> None:
        """Have all come that is on its way, and see that nothing is missing."""
        for client in self.clients:
            client.socket.drain()
        for channel in (*TOPICS, *(f"user:{user}" for user in USERS)):
            message = {"id": f"last-{channel}", "type": "info", "service": "s"}
            message["channels"] = [channel]  # type: ignore[assignment]
            self.by_id[f"last-{channel}"] = Published(
                (1 << 60, 0), f"last-{channel}", frozenset({channel})
            )
            answer = await self.driver.send(
                msgspec.json.encode(message), **bearer(token("importer", publish=["*"]))
            )
            self.add(message, answer.json())
        for client in self.clients:
            for channel in client.subscribed:
                await client.socket.message(f"last-{channel}")
            client.look()
            client.has_all(self.end if client.subscribed else (0, 0))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("wire", [True, False], ids=["wire", "send"])
async def test_a_client_gets_what_was_published_between_joining_and_leaving(
    wire: bool, seed: int
) -> None:
    async with AsyncExitStack() as stack:
        app = create_app(Settings(jwt_secret=SECRET))
        await stack.enter_async_context(lifespan(app))
        walk = Walk(AsgiDriver(app, wire=wire), seed)
        await walk.publish()
        walk.clients = [Client(walk, user) for user in ("alice", "alice", "bob")]
        for client in walk.clients:
            await client.open()
            stack.push_async_callback(client.go)
        for _ in range(STEPS):
            await walk.step()
        await walk.settle()
        assert sum(len(client.got) for client in walk.clients) > STEPS / 6
