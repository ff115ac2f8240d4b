"""Who reads: subscriptions, connections, and the cohorts of those that share a subscription, and so
their bytes.
"""

from math import inf

from msgspec import Struct

from msgpush.domain.errors import Ending
from msgpush.domain.grant import EVERYTHING, Grant
from msgpush.domain.history import Gap, Replay
from msgpush.domain.message import Entry
from msgpush.domain.ports import UNKNOWN, ClientInfo, Sink, View
from msgpush.domain.position import ZERO, Position, cursor_text

FRAMES = 16 * 1024 * 1024  # bytes


class Subscription(Struct, frozen=True):
    """What a connection listens to, and how it is shown: connections with equal subscriptions share
    their bytes.
    """

    channels: frozenset[str]
    view: View
    types: frozenset[str] | None = None

    def wants(self, entry: Entry) -> bool:
        return self.types is None or entry.type in self.types


class Start(Struct, frozen=True):
    """Where a connection begins to read.

    `last_event_id` is the cursor as the client gave it; without one it begins now. `after` None is
    the earliest retained. `reset` says that the log didn't make this cursor, which the reader is
    told.
    """

    last_event_id: str | None = None
    after: Position | None = None
    reset: bool = False


NOW = Start()


class End(Struct, frozen=True):
    """How a connection was closed, and the cursor from which its reader may go on."""

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
        self.gaps: list[Gap] = []
        self.messages_sent = 0
        self.bytes_sent = 0
        self.written = 0.0

    @property
    def attached(self) -> bool:
        return self.cohort is not None


class Frames:
    """Messages as one view shows them, each made once while it is wanted."""

    __slots__ = ("_cache", "_made", "cohorts", "view")

    def __init__(self, view: View, cache: "FrameCache") -> None:
        self.view = view
        self.cohorts = 0
        self._cache = cache
        self._made: dict[Entry, bytes] = {}

    def of(self, entry: Entry, prefix: str) -> bytes:
        """The frame of an entry; `prefix` is what its cursor begins with."""
        frame = self._made.get(entry)
        if frame is None:
            frame = self.view.message(entry, cursor_text(prefix, entry.position))
            self._cache.make_room(len(frame))
            self._made[entry] = frame
        return frame

    def clear(self) -> None:
        self._made.clear()


class FrameCache:
    """The frames of all views that are in use, within one limit of bytes."""

    def __init__(self) -> None:
        self._by_view: dict[View, Frames] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._by_view)

    def enter(self, view: View) -> Frames:
        """The frames of a view, for one more cohort."""
        frames = self._by_view.get(view)
        if frames is None:
            frames = self._by_view[view] = Frames(view, self)
        frames.cohorts += 1
        return frames

    def leave(self, frames: Frames) -> None:
        """A cohort is gone; with the last one, the view's frames go."""
        frames.cohorts -= 1
        if not frames.cohorts:
            del self._by_view[frames.view]

    def make_room(self, size: int) -> None:
        self._size += size
        if self._size > FRAMES:
            self.clear()
            self._size = size

    def clear(self) -> None:
        if self._size:
            self._size = 0
            for frames in self._by_view.values():
                frames.clear()


class Cohort:
    """All connections with one subscription."""

    __slots__ = (
        "behind",
        "frames",
        "live",
        "marked",
        "pending",
        "since",
        "subscription",
        "written",
    )

    def __init__(self, subscription: Subscription, frames: Frames) -> None:
        self.subscription = subscription
        self.frames = frames
        self.live: dict[Connection, None] = {}
        self.behind: set[Connection] = set()
        self.pending: list[Entry] = []
        self.since = ZERO  # everything up to here isn't pending; holds while anything is
        self.marked = False
        self.written = 0.0
