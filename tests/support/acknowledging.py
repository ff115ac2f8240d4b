"""Users that acknowledge, and a publisher that counts: whatever was accepted waits until it is
acknowledged or given up, and is never delivered again after that was answered.

Some users answer at once, some late, some never; some say it twice. Some messages are given up
soon. They have streams at whatever
instance is there, and lose them."""

import asyncio
import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tests.support.eventsource import Event, EventStreamParser

if TYPE_CHECKING:
    from tests.support.load import Load

SERVICE = "asking"
DEADLINE = 2
Temper = Literal["at once", "late", "never"]
TEMPERS: tuple[Temper, ...] = ("at once", "at once", "late", "never")


class Answered(NamedTuple):
    """An acknowledgement that was answered, and when, in milliseconds since 1970."""

    key: str
    at: int


class User:
    """A person with one device after the other, who acknowledges as suits their temper."""

    def __init__(self, asking: "Asking", name: str, temper: Temper) -> None:
        self.asking, self.name, self.temper = asking, name, temper
        self.answered: dict[str, Answered] = {}
        self.said: set[str] = set()  # acknowledged, answered or not
        self.received: Counter[str] = Counter()
        self.cursor: str | None = None

    async def listen(self) -> None:
        load = self.asking.load
        while not load.stopping or not self.asking.closed:
            try:
                async with asyncio.timeout(load.random.uniform(0.3, 3)):
                    await self._stream(load.random.choice(load.ports))
            except TimeoutError:
                pass
            except (OSError, asyncio.IncompleteReadError, ValueError):
                await asyncio.sleep(load.random.uniform(0.02, 0.2))

    async def _stream(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            again = self.cursor and self.asking.load.random.random() < 0.5
            resume = f"Last-Event-ID: {self.cursor}\r\n" if again else ""
            path = f"/sse/user/{self.name}?broadcast=false"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{resume}\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            parser = EventStreamParser()
            while size := int(await reader.readuntil(b"\r\n"), 16):
                for event in parser.feed((await reader.readexactly(size + 2))[:-2]):
                    self._take(event, parser)
        finally:
            writer.transport.abort()

    def _take(self, event: Event, parser: EventStreamParser) -> None:
        if event.last_event_id:
            self.cursor = event.last_event_id
        if event.type != "message":
            return
        message = json.loads(event.data)
        key = f"{message['service']}/{message['id']}"
        self.received[key] += 1
        if message["metadata"]["retry_count"]:
            self._check(key, event)
        if self.temper != "never":
            self.asking.later(self._acknowledge(key))

    def _check(self, key: str, event: Event) -> None:
        """A redelivery that has a place in the log was appended before the word was answered."""
        answered = self.answered.get(key)
        if answered is None or not event.last_event_id or self.asking.lossy:
            return
        appended = int(event.last_event_id.partition(".")[2].partition("-")[0])
        if appended > answered.at:
            self.asking.load.violation(
                f"{key} was delivered again at {appended}, acknowledged at {answered.at}", ()
            )

    async def _acknowledge(self, key: str) -> None:
        load = self.asking.load
        await asyncio.sleep(
            load.random.uniform(*((0, 0.3) if self.temper == "at once" else (1, 6)))
        )
        if load.random.random() < 0.2:
            return  # that word is lost: it comes again
        self.said.add(key)
        for _ in range(load.random.choice((1, 1, 2))):
            try:
                status, answer = await load.post(
                    f"/api/v1/users/{self.name}/acknowledgements", {"keys": [key]}
                )
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                continue
            if status == 200 and answer["acknowledged"]:
                # From before the answer was read: what is appended later is too late.
                self.answered.setdefault(key, Answered(key, int(time.time() * 1000)))


class Asking:
    """A publisher of messages that ask for acknowledgements, and the users whom it asks.

    Attributes:
        lossy: whether Redis may have lost what it had: then less is certain.
    """

    def __init__(self, load: "Load", users: int) -> None:
        self.load = load
        self.lossy = self.closed = False
        self.users = [User(self, f"asked{n}", TEMPERS[n % len(TEMPERS)]) for n in range(users)]
        self.accepted: dict[str, User] = {}
        self.given_up_soon: set[str] = set()
        self.ended: set[tuple[str, str]] = set()  # keys and states, of those that have ended
        self._under_way: set[asyncio.Task[None]] = set()

    def later(self, work: Any) -> None:
        """Do something besides."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def publish(self) -> None:
        number = 0
        while not self.load.stopping:
            number += 1
            user = self.load.random.choice(self.users)
            await self._publish(f"a{number}", user)
            await asyncio.sleep(self.load.random.expovariate(10))

    async def _publish(self, id: str, user: User) -> None:
        """Publish until it is accepted; a full mailbox is left as it is."""
        soon = self.load.random.random() < 0.2
        if soon:
            self.given_up_soon.add(f"{SERVICE}/{id}")
        ack = {"deadline": DEADLINE, "deliveries": 2 if soon else 20, "receipt": True}
        body = {
            "type": "info",
            "service": SERVICE,
            "id": id,
            "target": {"user_id": user.name},
            "metadata": {"ack": ack},
        }
        while True:
            try:
                status, answer = await self.load.post("/api/v1/messages/send", body)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                status, answer = 503, None
            if status == 202:
                self.accepted[f"{SERVICE}/{id}"] = user
                return
            if status == 409 and answer["type"] == "mailbox-full":
                return
            if status != 503:
                self.load.violation(f"publishing {id} was answered {status}: {answer}", ())
                return
            await asyncio.sleep(self.load.random.uniform(0.02, 0.2))

    async def settle(self, seconds: float) -> None:
        """See what became of every message, once those who answer have had their time."""
        until = time.monotonic() + seconds
        open = {key for key, user in self.accepted.items() if user.temper != "never"}
        while open and not self.lossy and time.monotonic() < until:
            open = {key for key in open if not await self._done(key)}
            await asyncio.sleep(0.5)
        self.closed = True
        if open and not self.lossy:
            await self._say_open(min(open), len(open))
        for key, user in self.accepted.items():
            await self._check(key, user)
        if not self.lossy:
            await self._check_receipts(until)

    async def _done(self, key: str) -> bool:
        """It has ended; whoever said so knows it, or was told that it may be done."""
        return key in self.accepted[key].answered or (
            key in self.accepted[key].said | self.given_up_soon
            and (await self._state(key))["state"] in ("acknowledged", "dead")
        )

    async def _state(self, key: str) -> dict[str, Any]:
        status, told = await self.load.get(f"/api/v1/messages/{key}/delivery")
        return told if status == 200 else {"state": str(status)}

    async def _say_open(self, key: str, number: int) -> None:
        user, told = self.accepted[key], await self._state(key)
        what = f"{number} messages never came to be acknowledged, such as {key}: {told}"
        had = f"{user.name} ({user.temper}) had it {user.received[key]} times"
        self.load.violation(f"{what}; {had}, said so: {key in user.said}", ())

    async def _check(self, key: str, user: User) -> None:
        state = (await self._state(key))["state"]
        if state in ("acknowledged", "dead"):
            self.ended.add((key, state))
        if state == "acknowledged":
            wrong = key not in user.said
        elif self.lossy:
            wrong = state not in ("accepted", "written", "404", "dead")
        else:
            wrong = key in user.answered or state not in ("accepted", "written", "dead")
        if wrong or (state == "dead" and key not in self.given_up_soon):
            self.load.violation(f"{key} is {state}; {user.temper}: {key in user.answered}", ())

    async def _check_receipts(self, until: float) -> None:
        """Each end of a message has a receipt, in the end, and no more than one."""
        until = max(until, time.monotonic() + 15)
        while True:
            _, told = await self.load.get(
                f"/api/v1/channels/receipts:{SERVICE}/messages?limit=1000"
            )
            got = Counter((each["data"]["key"], each["data"]["state"]) for each in told["messages"])
            missing = self.ended - set(got)
            all_read = len(told["messages"]) < 1000
            if not missing or not all_read or time.monotonic() > until:
                break
            await asyncio.sleep(0.5)
        if missing and all_read:
            self.load.violation(f"{len(missing)} receipts are missing, such as {min(missing)}", ())
        if twice := [each for each, number in got.items() if number > 1]:
            self.load.violation(f"{len(twice)} receipts came twice, such as {min(twice)}", ())

    def report(self) -> str:
        """The account, in words."""
        answered = sum(len(user.answered) for user in self.users)
        again = sum(sum(user.received.values()) - len(user.received) for user in self.users)
        dead = sum(state == "dead" for _, state in self.ended)
        asked = f"asked {len(self.accepted)}, acknowledged {answered}, given up {dead}"
        return f"{asked}, came again {again}"
