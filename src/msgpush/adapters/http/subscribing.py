"""Requests for a stream: the query, the client, the limits, and where it begins.

The same for whatever carries the stream."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct
from starlette.types import Scope

from msgpush.adapters.http.addresses import limited_address, with_port
from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import CHANNEL, CURSOR, Json, parameter, repeatable
from msgpush.adapters.http.requests import Query, header
from msgpush.domain.channel import BROADCAST, MAX_LISTENED, check_channel
from msgpush.domain.connection import Start, Subscription
from msgpush.domain.credentials import users_named
from msgpush.domain.errors import (
    BusUnavailable,
    KeysUnavailable,
    Malformed,
    Overloaded,
    Refusal,
)
from msgpush.domain.grant import Grant
from msgpush.domain.marks import PRIORITIES
from msgpush.domain.message import TYPES
from msgpush.domain.ports import ClientInfo, View
from msgpush.domain.position import TERMINAL, check_cursor, is_cursor
from msgpush.domain.quoting import short_repr
from msgpush.domain.service import Push

# In their order. A client adds the first ones by itself when it reconnects, to a URL that may have
# the last one from the start: Yaffle's polyfill, others like it, and amvtek's where it can't set
# the header.
CURSORS = ("lastEventId", "lastEventID", "evs_last_event_id", "last_event_id")

NOBODY: frozenset[str] = frozenset()  # one for all: most streams are nobody's own

# Why no stream can be served now, as their `reason` says.
REFUSED = (Overloaded, BusUnavailable, KeysUnavailable)

# What is told to a client whose stream is refused so.
ADVICE: Mapping[Refusal, str] = {
    "connections": "this process has as many streams as MAX_CONNECTIONS allows",
    "subject": (
        "this subject has as many streams as MAX_CONNECTIONS_PER_SUBJECT allows: close one first"
    ),
    "address": (
        "this address has as many streams as MAX_CONNECTIONS_PER_ADDRESS allows: close one first"
    ),
    "draining": "this process is about to end: the next try may reach another",
    "bus": "the bus can't be reached now",
    "keys": "the keys that tokens are verified with can't be fetched now",
}

_RESUME = (
    "Continue after this cursor. `earliest`: all that is retained; `latest`, or none: from now."
)
_RESUME_AGAIN = "As last_event_id, and wins over it: as clients add it on a reconnect."
_TYPE = "|".join(TYPES)
TYPES_PATTERN = f"({_TYPE})(,({_TYPE}))*"


def stream_parameters(*own: Json) -> list[Json]:
    """Describe the parameters of a stream's request, with those of one endpoint alone."""
    return [
        parameter("Last-Event-ID", f"{_RESUME} It wins over the query.", "header", pattern=CURSOR),
        parameter("last_event_id", _RESUME, pattern=CURSOR),
        parameter("lastEventId", _RESUME_AGAIN, pattern=CURSOR),
        parameter("lastEventID", _RESUME_AGAIN, pattern=CURSOR),
        repeatable("channel", "A further channel.", CHANNEL),
        parameter("types", "Only these types, separated by commas.", pattern=f"^{TYPES_PATTERN}$"),
        parameter("priority", "Only messages of at least this priority.", enum=[*PRIORITIES]),
        parameter(
            "passive",
            "Whether the stream only looks on: what is written here doesn't count as written to the"
            " user, and it isn't shown what waits for an acknowledgement.",
            type="boolean",
            default=False,
        ),
        *own,
        parameter(
            "broadcast", "Whether to listen to broadcasts, too.", type="boolean", default=True
        ),
        parameter("token", "A token, or a ticket, for who can't send the header Authorization."),
    ]


class Wanted(Struct, frozen=True):
    """A stream, as a request asks for it."""

    channels: frozenset[str]
    types: frozenset[str] | None
    least: int
    passive: bool
    cursor: str | None
    token: str | None

    def subscription(self, view: View, grant: Grant) -> Subscription:
        """The same as a subscription, of a client that is shown it in this way."""
        users = NOBODY if self.passive else users_served(self.channels, grant)
        return Subscription(self.channels, view, self.types, self.least, users)


class Admitted(NamedTuple):
    """A stream that may begin, once it has come in."""

    grant: Grant
    client: ClientInfo
    subscription: Subscription
    start: Start


class StreamQuery(Query):
    """The parameters of a request for a stream."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self._header = header(scope, b"last-event-id")

    def last_event_id(self) -> str | None:
        """The last id that the client has seen, by its header or else its parameters."""
        given = [self.same(name) for name in CURSORS]
        return self._header or next(filter(None, given), None)

    def cursor(self) -> str | None:
        """The same, which has to be a cursor."""
        if asked := self.last_event_id():
            check_cursor(asked)
        return asked

    def least(self) -> int:
        """The least priority that is wanted, as its place among all of them."""
        text = self.one("priority")
        if text is None:
            return 0
        if text not in PRIORITIES:
            raise Malformed(
                f"the parameter priority has {short_repr(text)}: allowed are"
                f" {', '.join(PRIORITIES)}"
            )
        return PRIORITIES.index(text)

    def wanted(self, named: Iterable[str]) -> Wanted:
        """All that any stream's request may say; `named`: channels that stand elsewhere in it."""
        cursor, token, passive = self.cursor(), self.one("token"), self.flag("passive", False)
        channels, types = self.channels(named), self.one("types")
        kinds = None if types is None else read_types("types", types)
        return Wanted(channels, kinds, self.least(), passive, cursor, token)

    def channels(self, named: Iterable[str]) -> frozenset[str]:
        """The channels that the path has named, those of the query, and broadcasts."""
        further = self.all("channel")
        for channel in further:
            check_channel(channel)
        wanted = {*named, *further}
        if self.flag("broadcast", True):
            wanted.add(BROADCAST)
        if len(wanted - {BROADCAST}) > MAX_LISTENED:
            raise Malformed(
                f"{len(wanted - {BROADCAST})} channels; a stream has at most {MAX_LISTENED}"
            )
        return frozenset(wanted)


def users_served(channels: Iterable[str], grant: Grant) -> frozenset[str]:
    """The users whose stream this is, of those whose channels it listens to."""
    served = frozenset(user for user in users_named(channels) if grant.acts_for(user))
    return served or NOBODY


def read_types(name: str, text: str, also: str = "") -> frozenset[str]:
    """The types in a list of types; `also` says what else the parameter may be.

    Raises:
        Malformed: something else.
    """
    types = frozenset(text.split(","))
    for each in types:
        if each not in TYPES:
            raise Malformed(
                f"the parameter {name} has {short_repr(each)}: allowed are {', '.join(TYPES)}{also}"
            )
    return types


def is_over(scope: Scope) -> bool:
    """True if a request's client was told never to come back, whatever else is wrong with it."""
    try:
        asked = StreamQuery(scope).last_event_id()
    except Malformed:
        asked = header(scope, b"last-event-id")
    return asked is not None and asked.endswith(TERMINAL) and is_cursor(asked)


async def permitted(auth: Authenticator, scope: Scope, wanted: Wanted) -> Grant:
    """The permissions of a request for a stream.

    Raises:
        Unauthorized, Denied: they aren't enough, or there are none.
        KeysUnavailable, BusUnavailable: that can't be found out now.
    """
    grant = await auth.authenticate(scope, wanted.token)
    grant.check_listen(wanted.channels)
    return grant


async def admit(
    push: Push, scope: Scope, grant: Grant, wanted: Wanted, *, view: View, transport: str
) -> Admitted:
    """Admit a client's stream, and find where it begins to read; nothing of it is kept here.

    Raises:
        Overloaded: no stream can be served now, or none of this client's.
        BusUnavailable: the bus can't be asked now.
    """
    client = read_client(scope, grant, transport)
    push.admit(client, grant.ticket)
    start = await push.start_at(wanted.cursor)
    push.admit(client, grant.ticket)
    return Admitted(grant, client, wanted.subscription(view, grant), start)


async def come_in(
    push: Push, admitted: Admitted, connection: str, has_gone: Callable[[], Awaitable[bool]]
) -> bool:
    """Take a stream's place, and claim its ticket; it must be subscribed right after this.

    The ticket is claimed last of all: that ends its older stream for good.

    Args:
        has_gone: finds out whether the client is known to have gone by now.

    Returns:
        False: it has.

    Raises:
        Overloaded: there is no place any more.
        Unauthorized: the ticket is valid no longer.
        BusUnavailable: that can't be found out now.
    """
    ticket = admitted.grant.ticket
    with push.place(admitted.client, ticket):
        if ticket is not None:
            if await has_gone():
                return False
            await push.claim(admitted.grant, connection)
    return True


def read_client(scope: Scope, grant: Grant, transport: str) -> ClientInfo:
    """The client that has sent a request."""
    host, port = scope.get("client") or ("", 0)
    # A proxy that is trusted doesn't always say the port.
    remote = with_port(host, port) if port else host
    user_agent = (header(scope, b"user-agent") or "")[:256]
    return ClientInfo(
        grant.subject, transport, remote, user_agent, time.time(), limited_address(host)
    )
