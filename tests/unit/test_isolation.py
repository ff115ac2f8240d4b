"""User A never receives user B's message: whatever anybody asks for, against a model of who may
listen to what.

The model is the contract's section "Who may do what", written down anew: nothing here asks the
service's own rules. What everybody receives must be exactly what the model says, so that neither a
message nor a refusal too many passes.

Some messages ask for an acknowledgement. Only who may act for their user acknowledges them, sees
them among what is pending, is shown them as a stream opens, and is told that they are
acknowledged."""

import asyncio
import itertools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from msgpush.domain.redelivery import Redelivery
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import WAIT, Answer, AsgiDriver, Exchange, Socket
from tests.support.tokens import SECRET, bearer, token

T = TypeVar("T")

# Each is nearly another one, as a name, as a pattern, or once it has been decoded, folded or
# normalized.
LONGEST = "x" * 195
SUBJECTS = (
    *(
        "bob",
        "bobby",
        "bo",
        "BOB",
        "bob*",
        "*",
        "b*b",
        "b?b",
        "bob ",
        "bob,alice",
        "alice",
        "a",
        "a/b",
        "../bob",
    ),
    *(
        "user:bob",
        "bob:x",
        ":bob",
        "user:",
        "broadcast",
        "service:s",
        "s",
        "b%6fb",
        "%2A",
        "bob+",
        "bob&",
        "bob;x",
    ),
    *(
        "bj\u00f6rn",
        "bjo\u0308rn",
        "\uff42\uff4f\uff42",
        "b\u043eb",
        "bob\u200b",
        "\u202ebob",
        "bob\0",
        "\u2400bob",
    ),
    *("bob\n", "\U0001f9d1", LONGEST, LONGEST + "x", "y" * 3000),
)
NAMES = (
    *(
        "user:bob",
        "user:bobby",
        "user:bo",
        "user:BOB",
        "user:alice",
        "user:user:bob",
        "user:bob:x",
        "user::bob",
    ),
    *(
        "user:",
        "user",
        "users",
        "bob",
        "kb:1",
        "kb:12",
        "kb:",
        "kb",
        "imports",
        "import",
        "broadcast",
        "broadcasts",
    ),
    *(
        "service:s",
        "service:s2",
        "service:",
        "user%3Abob",
        "user:b%6fb",
        "user:%2A",
        "user:bob+",
        "user:bob&",
    ),
    *(
        "user:bob%2A",
        "user:%252A",
        "user:b%256fb",
        "user:a%2Fb",
        "user:bob%00",
        "user:bob%0A",
        "user:..%2Fbob",
    ),
    *(
        "user:bj\u00f6rn",
        "user:bjo\u0308rn",
        "user:\uff42\uff4f\uff42",
        "user:b\u043eb",
        "user:bob\u200b",
    ),
    *(
        "\uff55\uff53\uff45\uff52:bob",
        "user:\u202ebob",
        "user:\u2400bob",
        "user:\U0001f9d1",
        f"user:{LONGEST}",
    ),
)
NO_NAMES = (
    "",
    "*",
    "user:*",
    "user:bob*",
    "user:bob\0",
    "user:bob ",
    "user:a/b",
    "bob?x",
    "a#b",
    "\u2028",
    LONGEST * 2,
)
PATTERNS = (
    *NAMES,
    "*",
    "user:*",
    "user:b*",
    "user:bob*",
    "user:bob:*",
    "u*",
    "us*",
    "kb:*",
    "kb:1*",
    "k*",
    "service:*",
)
USER_PATTERNS = ("bob", "bobby", "b*", "bob*", "bob:*", "b%6fb", "user:*", "user:bob", "alice", "*")
ACK = {"ack": {"deadline": 86_400}}  # none is delivered again meanwhile
SERVICES = ("s", "s2", "bob")
FAR = 9_999_999_999_999

Position = tuple[int, int]


class Listener(NamedTuple):
    """Who holds a token or a ticket: what it names, and its patterns.

    `users` are those that it may act for by name, `user_patterns` those by a pattern."""

    names: frozenset[str]
    patterns: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    users: frozenset[str] = frozenset()
    user_patterns: tuple[str, ...] = ()


class Person(NamedTuple):
    subject: str
    subscribe: tuple[str, ...]
    publish: tuple[str, ...]
    users: tuple[str, ...]
    token: str
    expired: str

    @property
    def user(self) -> str:
        return own_name(self.subject).removeprefix("user:")

    @property
    def listener(self) -> Listener:
        own = frozenset({own_name(self.subject)})
        return Listener(own, self.subscribe, self.publish, frozenset({self.user}), self.users)

    def __repr__(self) -> str:
        return (
            f"{self.subject!a}: subscribe {self.subscribe!a}, publish {self.publish!a},"
            f" users {self.users!a}"
        )


def own_name(subject: str) -> str:
    """The channel of a subject: what can't stand in a name, and what looks percent-encoded, is
    percent-encoded.
    """
    written = ""
    for place, character in enumerate(subject):
        follows = subject[place + 1 : place + 3]
        encoded = character == "%" and len(follows) == 2 and {*follows} <= {*string.hexdigits}
        foreign = (
            character in ",*/?#" or character.isspace() or unicodedata.category(character) == "Cc"
        )
        written += quote(character, safe="") if encoded or foreign else character
    return f"user:{written}"


class Published(NamedTuple):
    position: Position
    id: str
    type: str
    channels: frozenset[str]


class Important:
    """A message that asks for an acknowledgement.

    `ended` is the moment at which it was acknowledged or withdrawn."""

    def __init__(self, message: Published, service: str, user: str) -> None:
        self.message, self.service, self.user = message, service, user
        self.key = f"{service}/{message.id}"
        self.state = "pending"
        self.ended: int | None = None


class Asking(NamedTuple):
    """A request's credentials, and who they make of it; None: nobody."""

    headers: dict[str, str]
    query: list[tuple[str, str]]
    listener: Listener | None
    ticket: str | None = None


def is_name(text: str) -> bool:
    allowed = not any(c in ",*/?#" or c.isspace() or unicodedata.category(c) == "Cc" for c in text)
    return allowed and 1 <= len(text) <= 200


def is_cursor(text: str | None) -> bool:
    return text is None or re.fullmatch(r"[A-Za-z0-9_.~-]{1,128}", text) is not None


def covered(name: str, patterns: Iterable[str]) -> bool:
    for pattern in patterns:
        size = len(pattern) - 1
        if name == pattern or (pattern[size] == "*" and name[:size] == pattern[:size]):
            return True
    return False


def may_listen(listener: Listener, channel: str) -> bool:
    return (
        channel == "broadcast" or channel in listener.names or covered(channel, listener.patterns)
    )


def may_act(listener: Listener, user: str) -> bool:
    return user in listener.users or covered(user, listener.user_patterns)


def position_of(cursor: str, epoch: str) -> Position:
    """Where a reader with this cursor goes on; what this log has not made is as good as none."""
    found = re.fullmatch(r"1(\w{8})\.([0-9]+)-([0-9]+)", cursor)
    if found is None or found[1] != epoch or int(found[2]) >= FAR:
        return (0, 0)
    return int(found[2]), int(found[3])


# Spellings of one request


def spelled(text: str, spelling: str) -> str:
    if spelling in ("plain", "bare"):
        return quote(text, safe=":@!$'()~;=" if spelling == "bare" else "")
    return "".join(
        (f"%{byte:02X}" if spelling == "all" else f"%{byte:02x}") for byte in text.encode()
    )


spellings = st.sampled_from(["plain", "bare", "all", "small"])
commas = st.sampled_from([",", ",", "%2C", "%2c"])


class Reading:
    """An open stream: what it may bring, and what it has brought.

    `past` is what it had brought when its channels were changed last, and `after` where that was;
    `checked` is what has been looked at already."""

    exchange: Exchange | Socket

    def __init__(
        self, exchange: Exchange | Socket, channels: frozenset[str], types: frozenset[str] | None
    ) -> None:
        self.exchange, self.channels, self.types = exchange, channels, types
        self.after: Position = (0, 0)
        self.ticket: str | None = None
        self.listener = Listener(frozenset())
        self.subject: str | None = None
        self.opened = 0
        self.fresh = False
        self.ended = False
        self.past: list[str] = []
        self.checked: set[str] = set()

    def cursors(self) -> list[str]:
        return [id for _, id, _ in self.blocks() if id]

    def got(self) -> list[str]:
        """The messages that the log has brought, each for the first time."""
        return [id for id, again in self.messages() if not again]

    def shown(self) -> set[str]:
        """The messages that were pending as it opened, or were delivered again."""
        return {id for id, again in self.messages() if again}

    def messages(self) -> Iterable[tuple[str, bool]]:
        """Each message's id, and whether it may have come before."""
        for type, id, data in self.blocks():
            if type.startswith("msgpush."):
                continue
            # A named event has the message's data alone.
            again = not id or data.get("metadata", {}).get("retry_count", 0) > 0
            yield (data["data"]["n"] if "data" in data else data["n"]), again

    def told(self) -> set[str]:
        """The keys of which it was told that they needn't be shown any longer."""
        told = [data["keys"] for type, _, data in self.blocks() if type == "msgpush.acknowledged"]
        return set(itertools.chain(*told))

    def blocks(self) -> Iterable[tuple[str, str, Any]]:
        """Each event's type, its own id, if it has one, and its data."""
        if isinstance(self.exchange, Socket):
            for frame in self.exchange.frames:
                if "event" in frame:
                    yield frame["event"], frame.get("id", ""), frame["data"]
            return
        for block in self.exchange.body.split(b"\n\n")[:-1]:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
            type, id = (fields.get(name, b"").decode() for name in (b"event", b"id"))
            yield type or "message", id, msgspec.json.decode(fields[b"data"])

    async def first(self) -> tuple[frozenset[str], str]:
        """The channels and the cursor that it has begun with."""
        if isinstance(self.exchange, Socket):
            await self.exchange.event("msgpush.open")
        else:
            await self.exchange.read_until(b"\n\n")
        _, id, data = next(iter(self.blocks()))
        return frozenset(data["channels"]), id

    async def wait(self, id: str) -> None:
        """Wait for a message."""
        if isinstance(self.exchange, Socket):
            await self.exchange.message(id)
        else:
            await self.exchange.read_until(b'"%b"' % id.encode())

    def is_for(self, wanted: Important) -> bool:
        """True if it is a stream of the message's user, and wants it."""
        passes = self.types is None or wanted.message.type in self.types
        return (
            passes
            and f"user:{wanted.user}" in self.channels
            and may_act(self.listener, wanted.user)
        )


class IsolationMachine(RuleBasedStateMachine):
    seen: Counter[str]

    @initialize(data=st.data(), number=st.integers(2, 4), wire=st.booleans())
    def begin(self, data: st.DataObject, number: int, wire: bool) -> None:
        self.runner = asyncio.Runner()
        self.open = AsyncExitStack()
        app = create_app(Settings(jwt_secret=SECRET))
        self.run(self.open.enter_async_context(lifespan(app)))
        self.client = AsgiDriver(app, wire=wire)
        self.redelivery: Redelivery = app.state.push.redelivery
        self.epoch: str = app.state.push._bus.epoch
        self.numbers, self.moments = itertools.count(), itertools.count()
        self.lifetimes = itertools.count(601)
        self.published: list[Published] = []
        self.important: dict[str, Important] = {}
        self.cursors: list[tuple[str, str]] = []  # with whose they are
        self.tickets: list[tuple[str, Listener]] = []
        self.readings: list[Reading] = []
        self.root = token("root", subscribe=["*"], publish=["*"], users=["*"])
        # A few of the names, or hardly anybody would ever ask for what somebody else has published.
        names = data.draw(st.sets(st.sampled_from(NAMES), min_size=4, max_size=8))
        self.people = [self.person(data, names) for _ in range(number)]
        subjects = [f"user:{person.subject}" for person in self.people]
        self.names = sorted({"broadcast", "service:s", *names, *filter(is_name, subjects)})
        self.publish_message(self.root, ("*",), {"channels": ["kb:1"]}, "send")
        for person in self.people:
            if is_name(own_name(person.subject)):
                fields = {"target": {"user_id": person.user}, "metadata": ACK}
                self.publish_message(self.root, ("*",), fields, "send")

    def person(self, data: st.DataObject, names: set[str]) -> Person:
        subject = data.draw(st.sampled_from(SUBJECTS))
        patterns = st.lists(st.sampled_from([*PATTERNS, *sorted(names)]), max_size=4, unique=True)
        subscribe, publish = data.draw(patterns), data.draw(patterns)
        if data.draw(st.booleans()):
            publish.append("service:*")
        users = data.draw(st.lists(st.sampled_from(USER_PATTERNS), max_size=1))
        permit = partial(token, subject, subscribe=subscribe, publish=publish, users=users)
        permissions = (tuple(subscribe), tuple(publish), tuple(users))
        return Person(subject, *permissions, permit(), permit(lifetime=-60))

    def run(self, awaitable: Awaitable[T]) -> T:
        async def wait() -> T:
            return await awaitable

        return self.runner.run(wait())

    def count(self, what: str, number: int = 1) -> None:
        self.seen[what] += number

    # Publishing

    @rule(data=st.data(), number=st.integers(1, 4), root=st.booleans())
    def publish(self, data: st.DataObject, number: int, root: bool) -> None:
        for _ in range(number):
            self.publish_one(
                data, data.draw(st.integers(0, 4)), batch=data.draw(st.booleans()), root=root
            )

    def publish_one(self, data: st.DataObject, broadcast: int, *, batch: bool, root: bool) -> None:
        names = st.sampled_from(self.names)
        fields: dict[str, Any] = {"channels": data.draw(st.lists(names, max_size=3, unique=True))}
        person = data.draw(st.sampled_from(self.people))
        to = self.user(data)
        kind = "broadcast" if broadcast == 0 else "batch" if batch else "send"
        if kind != "broadcast" and is_name(f"user:{to}") and data.draw(st.booleans()):
            fields["target"] = {"user_id": to}
            if data.draw(st.integers(0, 3)):
                fields["metadata"] = ACK
        if not root and data.draw(st.booleans()):
            # Where a person may publish at all, it is seldom by chance.
            fields["channels"] = [
                name for name in fields["channels"] if covered(name, person.publish)
            ]
        by, patterns = (self.root, ("*",)) if root else (person.token, person.publish)
        self.publish_message(
            by, patterns, fields | {"service": data.draw(st.sampled_from(SERVICES))}, kind
        )

    def user(self, data: st.DataObject) -> str:
        """Somebody's subject, or the user that is made of it."""
        person = data.draw(st.sampled_from(self.people))
        return data.draw(st.sampled_from([person.subject, person.user]))

    def publish_message(
        self, by: str, patterns: tuple[str, ...], fields: dict[str, Any], kind: str
    ) -> None:
        message, channels = self.message(fields)
        channels |= {"broadcast"} if kind == "broadcast" else set()
        body = msgspec.json.encode([message] if kind == "batch" else message)
        answer = self.run(self.client.request("POST", f"/api/v1/messages/{kind}", body, bearer(by)))
        allowed = all(covered(channel, patterns) for channel in channels)
        assert answer.status == (202 if allowed else 403), (channels, patterns)
        self.count("published" if allowed else "refused publish")
        if allowed:
            receipt = answer.json()["results"][0] if kind == "batch" else answer.json()
            self.accepted(message, channels, receipt)

    def message(self, fields: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """A message, and the channels that it goes to."""
        number = next(self.numbers)
        id, type = f"m{number}", ("info", "progress", "status")[number % 3]
        message = {
            "service": "s",
            "id": id,
            "type": type,
            "data": {"n": id, "progress": 1},
        } | fields
        channels = {*fields.get("channels", ()), f"service:{message['service']}"}
        return message, channels | {f"user:{each}" for each in fields.get("target", {}).values()}

    def accepted(
        self, message: dict[str, Any], channels: set[str], receipt: dict[str, Any]
    ) -> None:
        """A message is published."""
        assert set(receipt["channels"]) == channels
        position = position_of(receipt["cursor"], self.epoch)
        assert all(each.position < position for each in self.published)
        id, type = message["id"], message["type"]
        self.published.append(Published(position, id, type, frozenset(channels)))
        if "metadata" in message:
            user, service = message["target"]["user_id"], message["service"]
            wanted = Important(self.published[-1], service, user)
            self.important[wanted.key] = wanted
            self.count("asked for acknowledgements")
        self.cursors.append((receipt["cursor"], ""))

    # Asking

    def ticket(self, data: st.DataObject) -> tuple[str, Listener]:
        """Mostly one that a stream uses already: the rule for those is the subtle one."""
        used = {reading.ticket for reading in self.readings}
        again = [each for each in self.tickets if each[0] in used]
        return data.draw(st.sampled_from(self.tickets + again * 4))

    def asking(
        self, data: st.DataObject, *, stream: bool = False, acknowledges: bool = False
    ) -> Asking:
        """Credentials in one place mostly, and now and then in several, of which the first counts."""
        places = ("header", "query", "cookie") if stream or acknowledges else ("header", "cookie")
        for_tickets = ("header", "query") if acknowledges else ("query",) if stream else ()
        single = [(place,) for place in places] * 4 + (
            [("query",)] * 8 if for_tickets and self.tickets else []
        )
        chosen = data.draw(st.sampled_from([*single, places, ()]))
        headers: dict[str, str] = {}
        query: list[tuple[str, str]] = []
        decided: list[tuple[Listener | None, str | None]] = []
        for place in places:
            if place not in chosen:
                continue
            text, listener, ticket = self.credential(data, by_ticket=place in for_tickets)
            decided.append((listener, ticket))
            if place == "header":
                headers["Authorization"] = (
                    f"{data.draw(st.sampled_from(['Bearer', 'bearer', 'BEARER']))} {text}"
                )
            elif place == "cookie":
                headers["Cookie"] = f"theme=dark; msgpush_token={text}"
            else:
                query.append(("token", text))
        listener, ticket = decided[0] if decided else (None, None)
        return Asking(headers, query, listener, ticket)

    def credential(
        self, data: st.DataObject, *, by_ticket: bool
    ) -> tuple[str, Listener | None, str | None]:
        kinds = (
            ["token"] * 12
            + ["expired", "changed", "unknown"]
            + (["ticket"] * (24 if by_ticket else 4) if self.tickets else [])
        )
        kind = data.draw(st.sampled_from(kinds))
        person = data.draw(st.sampled_from(self.people))
        if kind == "token":
            return person.token, person.listener, None
        if kind == "ticket":
            ticket, listener = self.ticket(data)
            # Elsewhere it stands for nothing.
            return (ticket, listener, ticket) if by_ticket else (ticket, None, None)
        if kind == "unknown":
            return f"ticket_{'x' * 43}", None, None
        head, _, rest = person.token.partition(".")
        other = self.people[0].token.split(".")[1]  # its claims, under this signature
        changed = f"{head}.{other}.{rest.partition('.')[2]}"
        if kind == "changed" and changed != person.token:
            return changed, None, None
        return person.expired, None, None

    def wanted(self, data: st.DataObject, listener: Listener | None, most: int) -> list[str]:
        """Channels to ask for: most often only those that may be listened to, or are named."""
        allowed = [
            name for name in self.names if listener is not None and may_listen(listener, name)
        ]
        own = sorted(filter(is_name, listener.names)) if listener is not None else []
        kind = data.draw(st.sampled_from(["any", "any", "allowed", "own"]))
        pool = {"allowed": allowed, "own": own}.get(kind) or self.names
        names = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=most))
        if data.draw(st.integers(0, 15)) == 0:
            names[-1] = data.draw(st.sampled_from(NO_NAMES))
        return names

    def cursor(self, data: st.DataObject, listener: Listener | None) -> tuple[str | None, str]:
        forged = [
            *(
                "latest",
                "whatever",
                f"1{self.epoch}.0-0",
                f"1{self.epoch}.5-7",
                f"1{self.epoch}.{FAR}-0",
            ),
            *(
                "1abcdefgh.0-0",
                f"1abcdefgh.{FAR}-0",
                f"2{self.epoch}.0-0",
                f"1{self.epoch}.5-7~end",
                "user:bob",
                "a b",
            ),
        ]
        kind = data.draw(
            st.sampled_from(["none", "earliest", "taken", "taken", "foreign", "foreign", "forged"])
        )
        foreign = [each for each in self.cursors if each[1] not in ("", str(listener))]
        if kind == "foreign" and foreign:
            return data.draw(st.sampled_from(foreign))
        if kind in ("none", "earliest"):
            return None if kind == "none" else "earliest", ""
        return (
            data.draw(st.sampled_from(self.cursors))
            if kind != "forged"
            else (data.draw(st.sampled_from(forged)), "")
        )

    @rule(
        data=st.data(),
        spelling=spellings,
        comma=commas,
        method=st.sampled_from(["GET", "GET", "GET", "HEAD"]),
    )
    def listen(self, data: st.DataObject, spelling: str, comma: str, method: str) -> None:
        self.open_stream(data, self.asking(data, stream=True), spelling, comma, method)

    @rule(data=st.data(), spelling=spellings, comma=commas)
    def come_back(self, data: st.DataObject, spelling: str, comma: str) -> None:
        self.open_stream(data, self.asking(data, stream=True), spelling, comma, "GET")

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), spelling=spellings, comma=commas)
    def use_ticket(self, data: st.DataObject, spelling: str, comma: str) -> None:
        ticket, listener = self.ticket(data)
        asking = Asking({}, [("token", ticket)], listener, ticket)
        self.open_stream(data, asking, spelling, comma, "GET")

    def open_stream(
        self, data: st.DataObject, asking: Asking, spelling: str, comma: str, method: str
    ) -> None:
        kind = data.draw(st.sampled_from(["stream", "stream", "user", "service"]))
        names = self.wanted(data, asking.listener, 4)
        spell = partial(spelled, spelling=spelling)
        query = list(asking.query)
        if kind == "stream":
            inside = data.draw(st.integers(1, len(names)))
            path, more = comma.join(map(spell, names[:inside])), names[inside:]
        else:
            own = names[0].removeprefix(f"{kind}:")
            path, more = spell(own), names[1:]
            names = [f"{kind}:{own}", *more]
        query += [("channel", name) for name in more]
        broadcast = data.draw(st.booleans())
        query += [] if broadcast else [("broadcast", "false")]
        types = data.draw(st.sampled_from([None, None, None, frozenset({"info", "status"})]))
        query += [("types", ",".join(types))] if types else []
        query += [("events", "*")] if data.draw(st.booleans()) else []
        cursor, whose = self.cursor(data, asking.listener)
        if cursor is not None:
            by_header = data.draw(st.booleans()) and cursor.isascii()
            asking.headers.update({"Last-Event-ID": cursor} if by_header else {})
            query += [] if by_header else [("last_event_id", cursor)]
        target = f"/sse/{kind}/{path}"
        if query:
            target += "?" + "&".join(f"{spell(name)}={spell(value)}" for name, value in query)

        channels = frozenset(names) | ({"broadcast"} if broadcast else set())
        path_names = names if kind == "stream" else [names[0].removeprefix(f"{kind}:"), *names]
        status = self.status(asking.listener, channels, terminal=(cursor or "").endswith("~end"))
        if status != 204 and (
            not all(map(is_name, names)) or not path_names[0] or not is_cursor(cursor)
        ):
            status = 400
        if method == "HEAD":
            answer = self.run(self.client.request("HEAD", target, b"", asking.headers))
            assert (answer.status, answer.body if status == 200 else b"") == (status, b"")
            return
        exchange = self.run(
            self.open.enter_async_context(self.client.stream(target, asking.headers))
        )
        assert exchange.status == status, (target, asking, exchange.body)
        self.count(f"streams: {status}")
        if status != 200:
            self.run(exchange.closed())
            nothing(exchange)
            return
        self.count("a cursor of somebody else's", whose not in ("", str(asking.listener)))
        self.opened(Reading(exchange, channels, types), asking, cursor)

    @staticmethod
    def status(
        listener: Listener | None, channels: Iterable[str], *, terminal: bool = False
    ) -> int:
        if terminal:
            return 204
        if listener is None:
            return 401
        return 200 if all(may_listen(listener, channel) for channel in channels) else 403

    def opened(self, reading: Reading, asking: Asking, cursor: str | None) -> None:
        channels, first = self.run(reading.first())
        assert channels == reading.channels
        reading.after = position_of(first, self.epoch)
        reading.opened, reading.fresh = next(self.moments), cursor in (None, "latest")
        assert asking.listener is not None
        reading.listener = asking.listener
        reading.subject = next(
            (
                each.subject
                for each in self.people
                if own_name(each.subject) in reading.listener.names
            ),
            None,
        )
        if cursor is not None and cursor != "latest":
            assert first == cursor
            reading.after = position_of(cursor, self.epoch)
        if asking.ticket is not None:
            reading.ticket = asking.ticket
            for other in self.readings:
                if other.ticket == asking.ticket and not other.ended:
                    self.run(other.exchange.closed())
                    other.ended = True
                    self.count("tickets used again")
                    self.check_ended(other)
            self.count("tickets used")
        self.cursors += [(each, str(asking.listener)) for each in reading.cursors()]
        self.readings = [each for each in self.readings if not each.ended] + [reading]

    # WebSockets

    @rule(data=st.data(), spelling=spellings)
    def connect(self, data: st.DataObject, spelling: str) -> None:
        self.open_socket(data, self.asking(data, stream=True), spelling)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), spelling=spellings)
    def connect_by_ticket(self, data: st.DataObject, spelling: str) -> None:
        ticket, listener = self.ticket(data)
        asking = Asking({}, [("token", ticket)], listener, ticket)
        self.open_socket(data, asking, spelling)

    def open_socket(self, data: st.DataObject, asking: Asking, spelling: str) -> None:
        names = self.wanted(data, asking.listener, 4) if data.draw(st.integers(0, 3)) else []
        spell = partial(spelled, spelling=spelling)
        query = list(asking.query)
        for name in names:
            kind, _, rest = name.partition(":")
            by_kind = kind in ("user", "service") and rest and data.draw(st.booleans())
            query.append((kind, rest) if by_kind else ("channel", name))
        broadcast = data.draw(st.booleans())
        query += [] if broadcast else [("broadcast", "false")]
        types = data.draw(st.sampled_from([None, None, None, frozenset({"info", "status"})]))
        query += [("types", ",".join(types))] if types else []
        cursor, whose = self.cursor(data, asking.listener)
        query += [] if cursor is None else [("last_event_id", cursor)]
        page = data.draw(st.sampled_from([None, None, None, "http://localhost", "https://evil.ex"]))
        asking.headers.update({} if page is None else {"Origin": page})
        target = "/ws?" + "&".join(f"{spell(name)}={spell(value)}" for name, value in query)

        channels = frozenset(names) | ({"broadcast"} if broadcast else set())
        status = self.status(asking.listener, channels, terminal=(cursor or "").endswith("~end"))
        pointless = cursor not in (None, "latest") and not names
        if status != 204 and (not all(map(is_name, names)) or not is_cursor(cursor) or pointless):
            status = 400
        socket = self.run(self.open.enter_async_context(self.client.socket(target, asking.headers)))
        if page == "https://evil.ex":
            self.run(socket.closed())
            assert socket.denial is not None
            assert (socket.denial.status, socket.texts) == (403, [])
            nothing(socket.denial)
            return
        if status != 200:
            code = {204: 4410, 400: 4400, 401: 4401, 403: 4403}[status]
            assert self.run(socket.closed()) == code, (target, asking, socket.texts)
            assert list(socket.frames[0]["data"]) == ["reason", "reconnect", "detail"]
            assert len(socket.frames) == 1
        self.count(f"sockets: {status}")
        if status == 200:
            self.count("a cursor of somebody else's", whose not in ("", str(asking.listener)))
            self.opened(Reading(socket, channels, types), asking, cursor)

    def socket(self, data: st.DataObject) -> tuple[Reading, Socket]:
        """One that is open: mostly one of a token, which listens to more than its own channel."""
        open_ = [each for each in self.readings if isinstance(each.exchange, Socket)]
        several = [each for each in open_ if each.ticket is None and len(each.channels) > 2]
        reading = data.draw(st.sampled_from(several * 3 + open_))
        assert isinstance(reading.exchange, Socket)
        return reading, reading.exchange

    @precondition(lambda self: self.has_socket)
    @rule(data=st.data())
    def subscribe(self, data: st.DataObject) -> None:
        reading, _ = self.socket(data)
        self.add(reading, self.wanted(data, reading.listener, 3))

    def add(self, reading: Reading, names: list[str]) -> None:
        new = set(names) - reading.channels
        status = 422 if not all(map(is_name, names)) else self.status(reading.listener, new)
        self.finish(reading)
        assert isinstance(reading.exchange, Socket)
        answer = self.run(reading.exchange.ask(subscribe=names))
        self.count(f"subscriptions: {status}")
        self.changed(reading, answer, status, reading.channels | set(names))

    @precondition(lambda self: self.has_socket)
    @rule(data=st.data())
    def unsubscribe(self, data: st.DataObject) -> None:
        reading, socket = self.socket(data)
        pool = st.sampled_from([*sorted(reading.channels), *self.names])
        names = data.draw(st.lists(pool, min_size=1, max_size=3))
        self.finish(reading)
        answer = self.run(socket.ask(unsubscribe=names))
        self.changed(reading, answer, 200, reading.channels - set(names))

    @precondition(lambda self: self.has_socket)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """A connection gets another token: mostly one of its own, which allows more, or less."""
        reading, _ = self.socket(data)
        own = [each for each in self.people if each.subject == reading.subject]
        person = data.draw(st.sampled_from([*own * 7, *self.people]))
        kind = data.draw(st.sampled_from(["later", "later", "later", "earlier", "expired"]))
        subscribe = data.draw(st.sampled_from([(), person.subscribe[:1], ("*",)]))
        if person in own and reading.ticket is None and data.draw(st.booleans()):
            self.give(reading, person, ("*",), "later")
            some = st.lists(st.sampled_from(self.names), min_size=1, max_size=3)
            self.add(reading, data.draw(some))
        self.give(reading, person, subscribe, kind)

    def give(self, reading: Reading, person: Person, subscribe: tuple[str, ...], kind: str) -> None:
        """Give a connection a token of somebody."""
        lifetime = next(self.lifetimes) if kind == "later" else 300
        shown = token(person.subject, subscribe=subscribe, lifetime=lifetime)
        shown = person.expired if kind == "expired" else shown
        self.finish(reading)
        assert isinstance(reading.exchange, Socket)
        answer = self.run(reading.exchange.ask(token=shown))
        if reading.ticket is not None:
            status = 403
        elif kind == "expired":
            status = 401
        elif person.subject != reading.subject:
            status = 403
        else:
            status = 200 if kind == "later" else 422
        self.count(f"renewals: {status}")
        left = set[str]()
        if status == 200:
            own = frozenset({own_name(person.subject)})
            reading.listener = Listener(own, subscribe, users=frozenset({person.user}))
            left = {each for each in reading.channels if not may_listen(reading.listener, each)}
            assert answer["ok"]["left"] == sorted(left)
            self.count("left", len(left))
        self.changed(reading, answer, status, reading.channels - left)

    def changed(
        self, reading: Reading, answer: dict[str, Any], status: int, channels: Iterable[str]
    ) -> None:
        """A command that changes channels was answered, after all had come that should."""
        if status != 200:
            assert answer["error"]["status"] == status, (answer, reading.channels)
            return
        assert answer["ok"]["channels"] == sorted(channels)
        reading.past = reading.got()
        reading.after = self.published[-1].position
        reading.channels = frozenset(channels)

    @precondition(lambda self: self.has_socket)
    @rule(data=st.data())
    def publish_by_socket(self, data: st.DataObject) -> None:
        reading, socket = self.socket(data)
        patterns = reading.listener.publish
        names = [each for each in self.names if covered(each, patterns)] or self.names
        fields = {"channels": data.draw(st.lists(st.sampled_from(names), max_size=2, unique=True))}
        message, channels = self.message(fields)
        answer = self.run(socket.ask(publish=message))
        allowed = all(covered(channel, patterns) for channel in channels)
        self.count("published" if allowed else "refused publish")
        if allowed:
            self.accepted(message, channels, answer["ok"])
        else:
            assert answer["error"]["status"] == 403, (channels, patterns)

    @precondition(lambda self: self.has_socket)
    @rule(data=st.data())
    def acknowledge_by_socket(self, data: st.DataObject) -> None:
        reading, socket = self.socket(data)
        acting = [each.user for each in self.people if may_act(reading.listener, each.user)]
        user = data.draw(st.sampled_from([*acting * 3, *(each.user for each in self.people)]))
        pool = st.sampled_from([*self.important, "s/none", "s/m0"])
        keys = data.draw(st.lists(pool, min_size=1, max_size=4, unique=True))
        answer = self.run(socket.ask(acknowledge=keys, user=user))
        status = 422 if not is_name(f"user:{user}") else 200
        if status == 200 and not may_act(reading.listener, user):
            status = 403
        self.count(f"acknowledged by socket: {status}")
        if status != 200:
            assert answer["error"]["status"] == status
            return
        known = [key for key in keys if self.is_acknowledged_for(user, key)]
        unknown = [key for key in keys if key not in known]
        assert answer["ok"] == {"acknowledged": known, "unknown": unknown}

    @property
    def has_socket(self) -> bool:
        return any(isinstance(each.exchange, Socket) for each in self.readings)

    @rule(data=st.data(), spelling=spellings)
    def read_history(self, data: st.DataObject, spelling: str) -> None:
        asking = self.asking(data, stream=False)
        (name,) = self.wanted(data, asking.listener, 1)
        cursor, _ = self.cursor(data, asking.listener)
        spell = partial(spelled, spelling=spelling)
        target = f"/api/v1/channels/{spell(name)}/messages?limit=1000"
        if cursor is not None:
            target += f"&after={spell(cursor)}"
        answer = self.run(self.client.request("GET", target, b"", asking.headers))
        status = self.status(asking.listener, [name]) if is_name(name) else 400
        if status == 200 and not is_cursor(cursor):
            status = 400
        assert answer.status == status, (target, asking, answer.body)
        self.count(f"histories: {status}")
        if status == 200:
            after = (FAR, 0) if cursor == "latest" else position_of(cursor or "", self.epoch)
            told = answer.json()
            assert [each["id"] for each in told["messages"]] == self.due({name}, after)
            self.cursors.append((told["cursor"], str(asking.listener)))
            self.count("read in histories", len(told["messages"]))
        else:
            nothing(answer)

    @rule(data=st.data())
    def make_ticket(self, data: st.DataObject) -> None:
        asking = self.asking(data, stream=False)
        asking.headers["Origin"] = (
            "http://localhost"  # of a page of ours: or the cookie would not count
        )
        names = self.wanted(data, asking.listener, 4)
        acknowledge = data.draw(st.booleans())
        body = msgspec.json.encode({"channels": names, "acknowledge": acknowledge})
        answer = self.run(self.client.request("POST", "/api/v1/tickets", body, asking.headers))
        status = self.status(asking.listener, names)
        if asking.listener is not None and not all(map(is_name, names)):
            status = 422
        users = frozenset(name.removeprefix("user:") for name in names if name[:5] == "user:")
        if status == 200 and acknowledge and asking.listener is not None:
            status = 200 if all(may_act(asking.listener, user) for user in users) else 403
        assert answer.status == (201 if status == 200 else status), (names, asking, answer.body)
        if status == 200:
            users = users if acknowledge else frozenset()
            listener = Listener(frozenset(names), users=users)
            self.tickets.append((answer.json()["ticket"], listener))
            self.count("tickets made")
            self.count("tickets that acknowledge", bool(users))

    # Acknowledging

    def acting(self, data: st.DataObject, what: str, spelling: str) -> tuple[Asking, str, str]:
        """Who asks, for which user, and where; most often for one of whom something is wanted."""
        asking = self.asking(data, acknowledges=True)
        asking.headers["Origin"] = "http://localhost"
        names = sorted(asking.listener.names) if asking.listener is not None else []
        named = [name[5:] for name in names if name.startswith("user:")] * 2
        wanted = [each.user for each in self.important.values()]
        user = data.draw(st.sampled_from([*wanted, *named])) if wanted or named else "bob"
        if data.draw(st.integers(0, 3)) == 0 or not is_name(f"user:{user}") or not user:
            user = data.draw(st.sampled_from(self.people)).user
        target = f"/api/v1/users/{spelled(user, spelling)}/{what}"
        if asking.query:
            target += f"?token={spelled(asking.query[0][1], spelling)}"
        return asking, user, target

    def acting_status(self, listener: Listener | None, user: str) -> int:
        if not is_name(f"user:{user}"):
            return 400
        if listener is None:
            return 401
        return 200 if may_act(listener, user) else 403

    @rule(data=st.data(), spelling=spellings)
    def acknowledge(self, data: st.DataObject, spelling: str) -> None:
        asking, user, target = self.acting(data, "acknowledgements", spelling)
        # Everybody's keys, and some of nobody's.
        pool = st.sampled_from([*self.important, "s/none", "s/m0"])
        keys = data.draw(st.lists(pool, min_size=1, max_size=4, unique=True))
        body = msgspec.json.encode({"keys": keys})
        answer = self.run(self.client.request("POST", target, body, asking.headers))
        status = self.acting_status(asking.listener, user)
        assert answer.status == status, (target, asking, answer.body)
        self.count(f"acknowledgements: {status}")
        if status != 200:
            nothing(answer)
            return
        known = [key for key in keys if self.is_acknowledged_for(user, key)]
        unknown = [key for key in keys if key not in known]
        assert answer.json() == {"acknowledged": known, "unknown": unknown}
        self.count("others' keys", sum(key in self.important for key in unknown))

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def acknowledge_for(self, data: st.DataObject) -> None:
        """A back end acknowledges for the users whose channels a stream listens to."""
        channels = data.draw(st.sampled_from(self.readings)).channels
        for wanted in self.important.values():
            channel = f"user:{wanted.user}"
            if wanted.state != "pending" or channel not in channels:
                continue
            target = f"/api/v1/users/{spelled(wanted.user, 'plain')}/acknowledgements"
            body = msgspec.json.encode({"keys": [wanted.key]})
            answer = self.run(self.client.request("POST", target, body, bearer(self.root)))
            assert answer.json()["acknowledged"] == [wanted.key]
            assert self.is_acknowledged_for(wanted.user, wanted.key)
            others = [each for each in self.readings if channel in each.channels]
            self.count("not told", sum(not each.is_for(wanted) for each in others))

    def is_acknowledged_for(self, user: str, key: str) -> bool:
        """True if the key is the user's own, and acknowledged from now on."""
        wanted = self.important.get(key)
        if wanted is None or wanted.user != user or wanted.state == "withdrawn":
            return False
        if wanted.state == "pending":
            wanted.state, wanted.ended = "acknowledged", next(self.moments)
            self.count("acknowledged")
        return True

    @rule(data=st.data(), spelling=spellings)
    def read_pending(self, data: st.DataObject, spelling: str) -> None:
        asking, user, target = self.acting(data, "pending", spelling)
        answer = self.run(self.client.request("GET", target, b"", asking.headers))
        status = self.acting_status(asking.listener, user)
        assert answer.status == status, (target, asking, answer.body)
        self.count(f"pending: {status}")
        if status != 200:
            nothing(answer)
            return
        pending = [
            each.message.id
            for each in self.important.values()
            if each.user == user and each.state == "pending"
        ]
        told = answer.json()
        assert [each["id"] for each in told["messages"]] == pending
        assert (told["total"], told["next"]) == (len(pending), None)
        self.count("read among pending", len(pending))

    @rule(data=st.data(), withdraw=st.booleans())
    def ask_about(self, data: st.DataObject, withdraw: bool) -> None:
        """A publisher asks what has become of a message, or takes it back."""
        asking = self.asking(data)
        asking.headers["Origin"] = "http://localhost"
        wanted = data.draw(st.sampled_from([*self.important.values()] * 4 + [None]))
        key = "s/none" if wanted is None else wanted.key
        target = f"/api/v1/messages/{key}/delivery"
        method = "DELETE" if withdraw else "GET"
        answer = self.run(self.client.request(method, target, b"", asking.headers))
        status = self.about_status(asking.listener, wanted, withdraw=withdraw)
        assert answer.status == status, (target, asking, answer.body)
        self.count(f"deliveries: {status}")
        if status >= 400 or wanted is None:
            nothing(answer)
        elif withdraw:
            wanted.ended = wanted.ended or next(self.moments)
            wanted.state = "withdrawn"
        else:
            told = answer.json()
            state = "pending" if told["state"] in ("accepted", "written") else told["state"]
            assert (told["key"], told["user_id"], state) == (key, wanted.user, wanted.state)

    @staticmethod
    def about_status(listener: Listener | None, wanted: Important | None, *, withdraw: bool) -> int:
        service = "s" if wanted is None else wanted.service
        if listener is None:
            return 401
        if not covered(f"service:{service}", listener.publish):
            return 403
        if wanted is None:
            return 404
        if not withdraw:
            return 200
        return 409 if wanted.state == "acknowledged" else 204

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        reading = self.readings.pop(data.draw(st.integers(0, len(self.readings) - 1)))
        self.finish(reading)
        self.run(reading.exchange.disconnect())

    # What has come

    def due(
        self, channels: Iterable[str], after: Position, types: frozenset[str] | None = None
    ) -> list[str]:
        wanted = set(channels)
        return [
            each.id
            for each in self.published
            if each.position > after
            and each.channels & wanted
            and (types is None or each.type in types)
        ]

    def all_due(self, reading: Reading) -> list[str]:
        return reading.past + self.due(reading.channels, reading.after, reading.types)

    def finish(self, reading: Reading) -> None:
        """All that has been published so far has come, once and in order, and nothing else."""
        if reading.ended:
            return
        while reading.channels:
            # The last message that is for it: behind it nothing can be that shouldn't.
            self.publish_message(self.root, ("*",), {"channels": [min(reading.channels)]}, "send")
            if reading.types is None or self.published[-1].type in reading.types:
                self.run(reading.wait(self.published[-1].id))
                break
        got = reading.got()
        assert got == self.all_due(reading), reading.channels
        self.count("delivered", len(got) - 1)
        self.run(self.all_shown(reading))
        self.check_shown(reading)
        self.cursors += [(cursor, "") for cursor in reading.cursors()[-2:]]

    async def all_shown(self, reading: Reading) -> None:
        """What is pending has been shown to a stream, if it is to be."""
        missing = {
            each.message.id
            for each in self.important.values()
            if reading.is_for(each)
            and reading.fresh
            and each.state == "pending"
            and each.message.position <= reading.after
            and each.message.id not in reading.past
        }
        async with asyncio.timeout(WAIT):
            await self.redelivery.open()
            for _ in range(5):
                await asyncio.sleep(0)  # whatever would be shown wrongly has the time for it
            while not missing <= reading.shown():
                await self.redelivery.open()
                await asyncio.sleep(0.001)

    def check_shown(self, reading: Reading) -> None:
        """It was shown, and told of, nothing but what its user's messages are."""
        by_id = {each.message.id: each for each in self.important.values()}
        shown = reading.shown()
        for id in shown - reading.checked:
            wanted = by_id[id]
            assert reading.is_for(wanted), (id, wanted.user, reading.listener)
            assert wanted.ended is None or wanted.ended > reading.opened, id
        told = reading.told()
        for key in told - reading.checked:
            wanted = self.important[key]
            assert wanted.ended is not None and wanted.ended > reading.opened, key  # noqa: PT018
            assert f"user:{wanted.user}" in reading.channels, key
            assert may_act(reading.listener, wanted.user), (key, reading.listener)
        self.count("shown", len(shown - reading.checked))
        self.count("told", len(told - reading.checked))
        reading.checked |= shown | told

    def check_ended(self, reading: Reading) -> None:
        """One that was closed has got what was due, up to some message."""
        got = reading.got()
        assert got == self.all_due(reading)[: len(got)], reading.channels
        self.check_shown(reading)

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        try:
            for reading in self.readings:
                self.finish(reading)
        finally:
            self.run(self.open.aclose())
            self.runner.close()


def nothing(refusal: Answer | Exchange) -> None:
    """A refusal brings no message, and says nothing of any."""
    if refusal.body:
        assert refusal.headers["content-type"] == "application/problem+json"
        assert set(msgspec.json.decode(refusal.body)) <= {"type", "title", "status", "detail"}


def test_everybody_receives_exactly_what_they_may_listen_to() -> None:
    seen: Counter[str] = Counter()
    IsolationMachine.seen = seen
    run_state_machine_as_test(
        IsolationMachine,
        settings=settings(
            max_examples=300,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            phases=[
                Phase.generate
            ],  # what it would take minutes to make smaller is small enough to be read
            suppress_health_check=list(HealthCheck),
        ),
    )
    # So that nothing above has been true of nothing.
    least = Counter(
        {
            "published": 500,
            "refused publish": 100,
            "delivered": 150,
            "read in histories": 5,
            "sockets: 200": 40,
            "sockets: 400": 30,
            "sockets: 401": 20,
            "sockets: 403": 20,
            "subscriptions: 200": 20,
            "subscriptions: 403": 3,
            "renewals: 200": 5,
            "renewals: 401": 1,
            "renewals: 403": 3,
            "left": 1,
            "acknowledged by socket: 200": 5,
            "acknowledged by socket: 403": 2,
            "streams: 200": 100,
            "streams: 204": 2,
            "streams: 400": 30,
            "streams: 401": 100,
            "streams: 403": 100,
            "histories: 200": 100,
            "histories: 401": 50,
            "histories: 403": 50,
            "tickets made": 50,
            "tickets used": 30,
            "tickets used again": 1,
            "tickets that acknowledge": 10,
            "asked for acknowledgements": 100,
            "acknowledgements: 200": 50,
            "acknowledgements: 401": 30,
            "acknowledgements: 403": 50,
            "acknowledged": 20,
            "others' keys": 20,
            "pending: 200": 50,
            "pending: 401": 30,
            "pending: 403": 50,
            "read among pending": 20,
            "deliveries: 200": 20,
            "deliveries: 204": 10,
            "deliveries: 401": 30,
            "deliveries: 403": 30,
            "deliveries: 404": 1,
            "deliveries: 409": 1,
            "shown": 5,
            "told": 5,
            "not told": 1,
            "a cursor of somebody else's": 5,
        }
    )
    assert not least - seen, (least - seen, seen)
