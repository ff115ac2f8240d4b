"""The ports: all that the domain needs from outside."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from msgpush.domain.credentials import Revocation, Ticket
from msgpush.domain.devices import Address, Device, Kind
from msgpush.domain.errors import BusUnavailable, Rejection
from msgpush.domain.history import Gap, Page
from msgpush.domain.message import Draft, Entry
from msgpush.domain.notification import Answer, Notice, Sending
from msgpush.domain.outbox import Change, DeadLetters, Outcome, Pending, Place, Record
from msgpush.domain.position import Cursor, Position
from msgpush.domain.rates import Allowance

if TYPE_CHECKING:
    # They are of what a tally counts, which uses this module.
    from msgpush.domain.counts import Counts, Step


class Stored(Struct, frozen=True, gc=False):
    """A message that is in the bus.

    Where, when it was accepted first, and whether this was a repetition.

    Attributes:
        replaces: the key of an older message that it takes the place of, which is still to be
            withdrawn.
    """

    position: Position
    timestamp: str
    duplicate: bool
    replaces: str | None = None


class Cut(Struct, frozen=True):
    """The log goes on as `epoch` after `end`; what was read after that is no longer part of it."""

    epoch: str
    end: Position


class Bus(Protocol):
    """One append-only log, and each channel's history."""

    @property
    def epoch(self) -> str:
        """The log's name, part of every cursor; empty before the bus was reached."""

    @property
    def cut(self) -> Cursor | None:
        """The last position that this log shares with its predecessor, as that one's cursor."""

    @property
    def reachable(self) -> bool:
        """True if the log could be read, the last time it was tried."""

    @property
    def trouble(self) -> str | None:
        """The reason why the log couldn't be read the last time, as strangers may know it."""

    @property
    def length(self) -> int:
        """Messages retained, as far as is known without asking."""

    @property
    def unknown(self) -> int:
        """Entries of the log that were passed over: of a kind that only a later release knows."""

    @property
    def outbox(self) -> "Outbox":
        """Those of its messages that ask for an acknowledgement, until they have it."""

    @property
    def sendings(self) -> "Sendings":
        """Those of its messages that are to be pushed to devices, until they were."""

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | Rejection]:
        """Store messages in this order, each by itself; returns one result each.

        Readable by all once this returns. One that asks for an acknowledgement is in the outbox
        from the same moment on. One whose mark says that it is delivered again gets into no
        history, and is stored only where that attempt is the next one and due; with terms, only
        where it is a dead letter, which waits again from then on. Word of an acknowledgement gets
        into no history either."""

    def tail(self, after: Position) -> AsyncGenerator[Sequence[Entry] | Cut, None]:
        """All entries of the log after a position, as they come.

        For ever, however long the bus is away meanwhile.

        A first entry whose `prev` is later than the position last given means that the log no
        longer has those between. A `Cut` means that the log has lost its end; the entries after it
        follow."""

    async def history(
        self, channels: Sequence[str], after: Position | None, limit: int
    ) -> list[Page]:
        """A page of each channel's history, of at most `limit` entries, after a position.

        None: from the earliest."""

    async def newest(self, channel: str, before: Position | None, limit: int) -> list[Entry]:
        """A channel's newest entries before a position, the newest first, expired ones included.

        None: all that there are. Fewer than `limit`: there are no more."""

    async def end(self) -> Position:
        """The log's newest position. Raises BusUnavailable where the bus doesn't answer now."""


class Outbox(Protocol):
    """The messages that wait for an acknowledgement, and what became of those that did.

    The bus puts them there. Each method raises BusUnavailable, but `change`, which answers it."""

    @property
    def pending(self) -> int:
        """The number that waits, as far as is known without asking."""

    async def change(self, changes: Sequence[Change]) -> list[Outcome | BusUnavailable]:
        """Make changes, each by itself and in one step, in their order."""

    async def due(self, limit: int) -> tuple[int, list[Record]]:
        """The time by its clock, and records about which something is to be done.

        They are left to the caller for some seconds; what it hasn't done by then is due again. Dead
        letters that have had their time, or for which there is no room, are among them."""

    async def find(self, key: str) -> Record | None:
        """A record in whatever state; None: there is none, or no longer."""

    async def waiting(self, users: Sequence[str]) -> list[bool]:
        """For each of some users, whether anything is pending."""

    async def page(self, user: str, after: Place | None, limit: int, size: int) -> Pending:
        """What is pending of a user, after a place; at most so many, and about so many bytes."""

    async def dead_letters(
        self, service: str, after: str | None, limit: int, size: int
    ) -> DeadLetters:
        """Dead letters of a service, in the order of their deaths, after a place that a former page
        has named; likewise."""


class Sendings(Protocol):
    """The messages that are to be pushed to their users' devices.

    The bus puts them there. What waits there counts with what waits for acknowledgements."""

    async def due(
        self, limit: int, late: int = 0
    ) -> tuple[int, list[tuple[Sending, Record | None]]]:
        """The time by their clock, and sendings that are due, with what the outbox has of each.

        They are left to the caller for `notification.LEASE`.

        Args:
            late: milliseconds for which they have been due.

        Raises:
            BusUnavailable: they can't be looked up.
        """

    async def settle(self, sendings: Sequence[Sending]) -> list[bool | BusUnavailable]:
        """Keep sendings as they are now, or forget those that nothing is left of: see `over`.

        False: it was given to somebody else meanwhile, or is no longer there."""


class View(Protocol):
    """A way of showing the log to a kind of client. Equal views share all bytes made for them."""

    def opening(
        self,
        connection: str,
        channels: frozenset[str],
        cursor: str,
        *,
        resumed: bool,
        heartbeat: float,
    ) -> bytes:
        """The first block of a connection; `heartbeat` is in seconds."""

    def message(self, entry: Entry, cursor: str) -> bytes:
        """One message, as this client gets it."""

    def pending(self, body: bytes) -> bytes:
        """A message that waits for its acknowledgement, without a place in the log."""

    def acknowledged(self, body: bytes) -> bytes:
        """Word that messages were acknowledged, or withdrawn, by which they are known."""

    def gap(self, gap: Gap) -> bytes:
        """Word that messages are missing."""

    def heartbeat(self, cursor: str) -> bytes:
        """A sign of life, with the reader's cursor."""

    def close(self, reason: str, reconnect: bool, cursor: str) -> bytes:
        """Word that the server ends the stream."""

    def chunk(self, frames: Sequence[bytes]) -> bytes:
        """Frames joined to what a sink takes in one piece."""


class Sink(Protocol):
    """The place where a connection's bytes go. Nothing here waits, but `drained`."""

    @property
    def writable(self) -> bool:
        """True if a chunk offered now would be taken."""

    @property
    def backlog(self) -> int:
        """Bytes taken and not passed on yet; it falls with whatever its reader takes."""

    def offer(self, chunk: bytes) -> bool:
        """Take a chunk whole, or nothing of it: False, and try again once `drained`."""

    def finish(self, chunk: bytes) -> None:
        """Take the last bytes, whatever the backlog, and end the stream after them."""

    def abort(self) -> None:
        """Cut the stream at once."""

    async def drained(self) -> bool:
        """Wait until the sink is writable again: True; or gone: False."""


class ClientInfo(Struct, frozen=True):
    """The reader of a stream, as far as it is known.

    Attributes:
        connected_at: in seconds since 1970.
        address: what limits for each address count by; empty where that isn't known.
    """

    subject: str | None
    transport: str
    remote: str
    user_agent: str
    connected_at: float
    address: str = ""


UNKNOWN = ClientInfo(None, "embedded", "", "", 0.0)


class ConnectionState(Struct, frozen=True):
    """A live connection, as the operator sees it.

    Attributes:
        connected_at: RFC 3339.
        lag: milliseconds of the log that it has still to be given.
    """

    id: str
    node: str
    subject: str | None
    transport: str
    channels: tuple[str, ...]
    remote: str
    user_agent: str
    connected_at: str
    messages_sent: int
    bytes_sent: int
    state: Literal["live", "behind"]
    lag: int


class ConnectionFilter(Struct, frozen=True):
    """The connections meant: those to all of `channels`, of this subject, at this node."""

    channels: frozenset[str] = frozenset()
    subject: str | None = None
    node: str | None = None

    def matches(self, state: ConnectionState) -> bool:
        return (
            self.channels.issubset(state.channels)
            and self.subject in (None, state.subject)
            and self.node in (None, state.node)
        )


class ConnectionStats(Struct, frozen=True):
    """The number of connections that there are, and the most that there have been."""

    total: int
    peak: int
    by_node: dict[str, int]
    by_transport: dict[str, int]
    by_channel_kind: dict[str, int]
    by_state: dict[str, int]


class InstanceStreams(Struct, frozen=True):
    """The number of streams of an instance, by their state."""

    live: int
    behind: int


class RecentLatency(Struct, frozen=True):
    """Milliseconds from a message's acceptance to its writing, of the last ten seconds or so.

    None: there was no message."""

    p50: float | None
    p99: float | None


class RegistryState(Struct, frozen=True):
    """Whether an instance is announced where others look for it.

    Attributes:
        since: RFC 3339.
        error: why it isn't, the last time that it was tried.
    """

    kind: str
    state: Literal["registered", "trying", "withdrawn"]
    since: str
    error: str | None = None


class InstanceState(Struct, frozen=True):
    """An instance, as the operator sees it.

    Attributes:
        started_at, at: RFC 3339; when this was told.
        ready: whether new requests should go there.
        reason: why they shouldn't, or what else is wrong.
        limit: streams that it serves at most.
        published: and the next four: messages, since its start.
        loop_lag_ms: the most by which its event loop was late, of the last ten seconds or so.
        registry: None: there is none.
    """

    node: str
    version: str
    started_at: str
    ready: bool
    reason: str | None
    draining: bool
    bus: str
    streams: InstanceStreams
    transports: dict[str, int]
    limit: int
    published: int
    failed: int
    delivered: int
    acknowledged: int
    dead: int
    latency_ms: RecentLatency
    loop_lag_ms: float
    at: str
    registry: RegistryState | None


class Roster(Protocol):
    """The live connections of all instances."""

    async def connections(
        self, wanted: ConnectionFilter, limit: int, after: str | None
    ) -> tuple[list[ConnectionState], str | None]:
        """Connections in the order of their ids, after one, and where to continue, if anywhere."""

    async def stats(self) -> ConnectionStats:
        """Totals over all instances."""

    async def close(self, id: str, *, reconnect: bool) -> bool:
        """Close a connection wherever it is; False: there is none of this id."""

    async def instances(self) -> list[InstanceState]:
        """What each instance that lives has told of itself last, in the order of their names."""


class Statistics(Protocol):
    """What became of messages at all instances, by minutes for a day and by hours for a month.

    Of the services that are named in that time 100 are told apart, the rest is `other`."""

    async def add(self, source: str, number: int, minutes: Mapping[int, "Counts"]) -> None:
        """Add what happened at an instance, by the minutes (since 1970) in which it did.

        It is counted once, however often it is asked for by the same number. Raises BusUnavailable:
        it may be counted, and is to be asked for again, as it was.

        Args:
            source: the instance, by a name that no other has.
            number: more than that of what it has added before.
        """

    async def read(self, step: "Step", first: int, last: int) -> "dict[int, Counts]":
        """What became of messages in steps (since 1970), where anything did. Raises BusUnavailable.

        Args:
            step: seconds.
            last: the last one is part of it.
        """


class Credentials(Protocol):
    """Tickets and standing revocations, the same for all instances.

    Each method raises BusUnavailable, too."""

    async def add_ticket(self, digest: str, ticket: Ticket, seconds: float) -> None:
        """Keep a ticket, for so long unless it is claimed.

        Of a subject's tickets the oldest go that are too many."""

    async def ticket(self, digest: str) -> Ticket | None:
        """A ticket that is still valid."""

    async def holder(self, digest: str) -> str | None:
        """The connection that used a ticket last, or an empty text; None: it is valid no longer."""

    async def claim(
        self, digest: str, subject: str | None, *, connection: str, before: str, until: float
    ) -> bool:
        """Keep a ticket until a moment, in seconds since 1970, for a connection to use.

        Args:
            subject: whose ticket it is.
            before: the holder that is known; False, and nothing done, where that is another by now.
        """

    async def revoke(self, *revocations: Revocation) -> None:
        """Let revocations stand, for all that begin later, even where nothing else has room.

        A subject's devices that were registered until then go in the same step."""

    async def revocations(self) -> list[Revocation]:
        """All that stand, and perhaps some that need to no longer."""


class Limiter(Protocol):
    """A rate for each subject, the same for all instances: a token bucket of `burst` tokens."""

    rate: float
    burst: int

    async def take(self, subject: str, wanted: int) -> Allowance:
        """Take as many tokens as there are, `wanted` at most. Raises BusUnavailable."""


class Devices(Protocol):
    """Where users can be reached whose pages are closed, the same for all instances.

    A device is one user's at a time. Each method raises BusUnavailable, too. A revocation of a
    subject removes its devices: `Credentials` sees to that, in the same step."""

    async def register(
        self, user: str, address: Address, label: str | None, *, issued_at: float | None = None
    ) -> tuple[Device, bool]:
        """Have a device for a user from now on, and say whether it is new to them.

        Of more than `MAX_DEVICES` the longest unused goes. Registered again it keeps its label,
        unless there is another.

        Args:
            issued_at: when the user's own token was issued that it is registered with, in seconds
                since 1970; None: it is with another one.

        Raises:
            DeviceTaken: it is another user's, and this isn't known to that very device.
            Unauthorized: that token was revoked, which this instance may not have heard yet: the
                device would be left after the revocation.
        """

    async def of(self, users: Sequence[str]) -> list[list[Device]]:
        """The devices of each of some users, the newest last."""

    async def remove(self, user: str, device: str | None = None) -> None:
        """Forget a device of a user, if it is there, or all of them."""

    async def used(self, devices: Sequence[Device]) -> None:
        """Devices were sent to."""

    async def gone(self, devices: Sequence[Device]) -> None:
        """Forget devices that there are no more, unless they were registered with another address
        or other keys meanwhile."""


class Notifier(Protocol):
    """A provider's service that shows notices on devices of one kind."""

    @property
    def kind(self) -> Kind:
        """The devices that it reaches."""

    async def send(self, address: Address, notice: Notice) -> Answer:
        """Send a notice to a device; whatever the provider does is an answer, within seconds."""
