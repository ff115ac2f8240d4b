"""Who reads: subscriptions, connections, and the cohorts of those that share a subscription, and so their bytes."""

from msgspec import Struct

from msgpush.domain.history import Gap, Replay
from msgpush.domain.message import Entry
from msgpush.domain.ports import UNKNOWN, ClientInfo, Sink, View
from msgpush.domain.position import ZERO, Position

FRAMES = 16 * 1024 * 1024


class Subscription(Struct, frozen=True):
    """What a connection listens to, and how it is shown: connections with equal subscriptions share their bytes."""

    channels: frozenset[str]
    view: View
    types: frozenset[str] | None = None

    def wants(self, entry: Entry) -> bool:
        return self.types is None or entry.type in self.types


class Start(Struct, frozen=True):
    """Where a connection begins to read.

    `asked` is the cursor as the client gave it; without one it begins now. `after` None is the earliest retained.
    `reset` says that the log didn't make this cursor, which the reader is told.
    """

    asked: str | None = None
    after: Position | None = None
    reset: bool = False


NOW = Start()


class Connection:
    """One reader."""

    __slots__ = (
        "asked",
        "bytes_sent",
        "cohort",
        "cursor",
        "gaps",
        "id",
        "info",
        "live",
        "messages_sent",
        "replay",
        "sink",
        "written",
    )

    def __init__(self, id: str, sink: Sink, info: ClientInfo = UNKNOWN) -> None:
        self.id = id
        self.sink = sink
        self.info = info
        self.cohort: Cohort | None = None
        self.live = False
        self.cursor: Position = ZERO
        self.asked: str | None = None  # the cursor it came with, until it has moved on
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

    __slots__ = ("_made", "_size", "view")

    def __init__(self, view: View) -> None:
        self.view = view
        self.clear()

    def clear(self) -> None:
        self._made: dict[Entry, bytes] = {}
        self._size = 0

    def of(self, entry: Entry, prefix: str) -> bytes:
        """The frame of an entry; `prefix` is what its cursor begins with."""
        frame = self._made.get(entry)
        if frame is None:
            position = entry.position
            frame = self.view.message(entry, f"{prefix}{position.ms}-{position.seq}")
            if self._size > FRAMES:
                self.clear()
            self._made[entry] = frame
            self._size += len(frame)
        return frame


class Cohort:
    """All connections with one subscription."""

    __slots__ = ("behind", "frames", "live", "marked", "pending", "since", "subscription", "written")

    def __init__(self, subscription: Subscription, frames: Frames) -> None:
        self.subscription = subscription
        self.frames = frames
        self.live: dict[Connection, None] = {}
        self.behind: set[Connection] = set()
        self.pending: list[Entry] = []
        self.since = ZERO  # everything up to here isn't pending; holds while anything is
        self.marked = False
        self.written = 0.0
