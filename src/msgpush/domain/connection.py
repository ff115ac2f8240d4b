"""Readers: subscriptions, connections, and cohorts: those that share a subscription, and its bytes.

A connection is in one of these states:

    opening     made, and not attached yet
    live        at its cohort's head: it gets each chunk that is made for the cohort
    behind      it reads on from its own cursor, until it is at its cohort's floor
    blocked     behind, and its socket is full
    ended       nothing is written to it any more

    opening -> live         it begins now
    opening -> behind       it resumes from a cursor
    live -> behind          its sink has refused a chunk; the log has outrun its cohort, has lost
                            entries, or its end
    behind -> live          it has everything up to its cohort's floor
    live -> live, behind    it listens to something else from now on: in another cohort, at its own
    behind -> behind        cursor; live where that is the other's floor, and it was before
    behind -> blocked       its sink can take nothing
    blocked -> behind       its sink can again
    any -> ended            its client has gone, or the hub has closed it: its permissions have
                            ended, its socket was full for too long, an operator or a drain wants it

and keeps what holds in it:

    all         no id is written to it before everything of its subscription at or below it
    live        it is in `cohort.live`, and has no `replay`. It has everything up to the cohort's
                position or its own cursor, whichever is later: within a round some have the chunk,
                others don't. What comes after is in the round, or pending
    behind      it is in `cohort.behind`, and has a `replay`, which goes on from its cursor: it has
                everything up to there, and nothing after
    blocked     the same, and `liveness` knows since when: so long and no longer
    ended       it has no cohort; `end` says why where the hub has closed it
"""

from math import inf

from msgspec import Struct

from msgpush.domain.errors import Ending
from msgpush.domain.frames import Frames
from msgpush.domain.grant import EVERYTHING, Grant
from msgpush.domain.history import Gap, Replay
from msgpush.domain.log import Log
from msgpush.domain.message import Entry, priority_of
from msgpush.domain.openings import Opening
from msgpush.domain.ports import UNKNOWN, ClientInfo, Sink, View
from msgpush.domain.position import ZERO, Position

CHUNK = 128 * 1024  # bytes of frames after which no more are joined


class Subscription(Struct, frozen=True):
    """The channels and types that a connection listens to, and how it is shown them.

    Connections with equal subscriptions share their bytes.

    Attributes:
        least: only messages of at least this priority are wanted.
        acts_for: the users, among those whose channels these are, whose stream this is: what asks
            for their acknowledgement and is written here counts as written, and what is pending
            is shown to it.
    """

    channels: frozenset[str]
    view: View
    types: frozenset[str] | None = None
    least: int = 0
    acts_for: frozenset[str] = frozenset()

    def wants(self, type: str, priority: int) -> bool:
        """True if messages of this type and priority are wanted."""
        return priority >= self.least and (self.types is None or type in self.types)


class Start(Struct, frozen=True):
    """The place where a connection begins to read.

    `last_event_id` is the cursor as the client gave it; without one it begins now. `after` None is
    the earliest retained. `reset` says that the log didn't make this cursor, which the reader is
    told.
    """

    last_event_id: str | None = None
    after: Position | None = None
    reset: bool = False


NOW = Start()


class End(Struct, frozen=True):
    """The way in which a connection was closed, and the cursor from which its reader may go on."""

    reason: Ending
    reconnect: bool
    cursor: str


class Connection:
    """One reader.

    Args:
        listed: whether it counts among the clients.
        grant: the permissions that it was opened with.
        ends: until when those are good, in seconds since 1970.
    """

    __slots__ = (
        "bytes_sent",
        "cohort",
        "cursor",
        "end",
        "ends",
        "gaps",
        "grant",
        "id",
        "info",
        "last_event_id",
        "listed",
        "live",
        "messages_sent",
        "opening",
        "replay",
        "sink",
        "written",
    )

    def __init__(
        self,
        id: str,
        sink: Sink,
        info: ClientInfo = UNKNOWN,
        *,
        listed: bool = True,
        grant: Grant = EVERYTHING,
        ends: float = inf,
    ) -> None:
        self.id = id
        self.grant, self.ends = grant, ends
        self.listed = listed
        self.sink = sink
        self.info = info
        self.cohort: Cohort | None = None
        self.live = False
        self.cursor: Position = ZERO
        self.end: End | None = None  # once it has been closed
        self.last_event_id: str | None = None  # the cursor it came with, until it has moved on
        self.replay: Replay | None = None
        self.gaps: list[Gap] = []  # those that it is still to be told
        self.opening: Opening | None = None  # while it catches up, of a stream of a user
        self.messages_sent = 0
        self.bytes_sent = 0
        self.written = 0.0

    @property
    def attached(self) -> bool:
        return self.cohort is not None

    @property
    def channels(self) -> frozenset[str]:
        """The channels that it listens to."""
        return self.cohort.subscription.channels if self.cohort else frozenset()

    def position_in(self, log: Log) -> Position:
        """The position up to which it has been given everything."""
        if self.cohort is None or not self.live:
            return self.cursor
        return max(self.cursor, self.cohort.position(log.head))

    def cursor_in(self, log: Log) -> str:
        """The cursor up to which it has been given everything."""
        if self.last_event_id is not None:
            return self.last_event_id
        return log.cursor(self.position_in(log))

    def lag_in(self, log: Log) -> int:
        """Milliseconds of the log that it has still to be given; 0 where it has everything."""
        return 0 if self.live else max(0, log.head.ms - self.position_in(log).ms)

    def lose(self, log: Log) -> None:
        """Have it told that the log has lost its end."""
        if not any(gap.reason == "reset" for gap in self.gaps):
            self.gaps.append(Gap(None, self.cursor_in(log), "reset"))
        self.last_event_id = None
        if self.opening is not None:
            self.opening.lost = True

    def give(self, chunk: bytes, messages: int, now: float) -> bool:
        """Offer it a chunk that it alone gets; its gaps are part of it. False: it takes nothing."""
        if not self.sink.offer(chunk):
            return False
        self.gaps.clear()
        self.messages_sent += messages
        self.bytes_sent += len(chunk)
        self.written = now
        return True

    def show(self, chunk: bytes, messages: int, now: float) -> bool:
        """Offer it what has no place in the log, wherever it is. False: it takes nothing."""
        if not self.sink.offer(chunk):
            return False
        self.messages_sent += messages
        self.bytes_sent += len(chunk)
        self.written = max(self.written, now)
        return True

    def move_to(self, position: Position) -> None:
        """It is behind, and has everything up to here by now."""
        assert self.replay is not None
        self.last_event_id = None
        self.cursor = self.replay.after = position


class Cohort:
    """All connections with one subscription.

    What the live ones are still to be given is pending, in one list for all of them. A round is
    under way while a chunk of it has been taken, and not been offered to each of them yet."""

    __slots__ = (
        "asked",
        "behind",
        "frames",
        "live",
        "marked",
        "pending",
        "round_start",
        "since",
        "subscription",
        "written",
    )

    def __init__(self, subscription: Subscription, frames: Frames) -> None:
        self.subscription = subscription
        self.frames = frames
        self.live: dict[Connection, None] = {}
        self.behind: dict[Connection, None] = {}
        self.pending: list[Entry] = []
        self.since = ZERO  # everything up to here isn't pending; holds while anything is
        self.round_start: Position | None = None  # what a round's chunk comes after; None: no round
        self.asked = False  # whether what is pending may ask for an acknowledgement
        self.marked = False  # whether the sweep will come by
        self.written = 0.0

    @property
    def busy(self) -> bool:
        """True while a chunk is on its way to its live connections, or about to be."""
        return bool(self.pending) or self.round_start is not None

    def floor(self, head: Position) -> Position:
        """The position at which a connection may become live: what is pending comes after it."""
        return self.since if self.pending else head

    def position(self, head: Position) -> Position:
        """The position up to which all live connections have everything."""
        return self.floor(head) if self.round_start is None else self.round_start

    # Connections

    def enter(self, connection: Connection, after: Position | None, now: int) -> None:
        """Have a connection behind: it reads on after a position, or from the earliest retained.

        Args:
            now: milliseconds since 1970.
        """
        self._leave_live(connection)
        connection.cohort = self
        connection.cursor = after or ZERO
        subscription = self.subscription
        connection.replay = Replay(after, now, subscription.types, subscription.least)
        if subscription.acts_for and connection.opening is None:
            connection.opening = Opening(after)
            connection.opening.lost = bool(connection.gaps)
        self.behind[connection] = None

    def join(self, connection: Connection, floor: Position) -> None:
        """Have a connection live that has everything up to the floor."""
        self.behind.pop(connection, None)
        connection.cohort, connection.live, connection.cursor = self, True, floor
        connection.replay = connection.last_event_id = connection.opening = None
        self.live[connection] = None

    def leave(self, connection: Connection) -> None:
        """Forget a connection."""
        self._leave_live(connection)
        self.behind.pop(connection, None)
        connection.cohort = connection.replay = connection.opening = None

    def _leave_live(self, connection: Connection) -> None:
        if connection.live:
            connection.live = False
            del self.live[connection]

    # What is pending

    def mark(self, entry: Entry, head: Position) -> bool:
        """Have an entry pending, the next of the log after `head`.

        Returns:
            False: it is already, or it isn't wanted.
        """
        pending, types = self.pending, self.subscription.types
        if types is not None and entry.type not in types:
            return False
        if self.subscription.least and priority_of(entry) < self.subscription.least:
            return False
        if not pending:
            self.since = head
        elif pending[-1] is entry:
            return False
        pending.append(entry)
        return True

    def tell(self, entry: Entry, head: Position) -> None:
        """Have an entry pending that is no message, whatever is wanted; likewise."""
        if not self.pending:
            self.since = head
        self.pending.append(entry)
        self.asked = True

    def take(self, prefix: str) -> tuple[list[Entry], bytes]:
        """Begin a round: take what is pending, or the first of it, as a chunk.

        Args:
            prefix: what the log's cursors begin with.
        """
        frames, size = [], 0
        for entry in self.pending:
            frame = self.frames.of(entry, prefix)
            frames.append(frame)
            size += len(frame)
            if size >= CHUNK:
                break
        entries = self.pending[: len(frames)]
        del self.pending[: len(frames)]
        self.round_start, self.since = self.since, entries[-1].position
        return entries, self.subscription.view.chunk(frames)

    def served(self, now: float) -> None:
        """The round has come to its end."""
        self.round_start = None
        self.written = now
