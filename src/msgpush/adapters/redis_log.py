"""How the log's entries are written in Redis, and how a reader knows that none is missing.

An entry of a stream has two fields. `m` is made by the publishing instance: a header line and the message's body.
`p` is made by the script: in the log, the *link* to the entry before it; in a history, its channel's position before
it. A link is a position and a tag, eight random characters of the call that wrote the entry. The tag tells two entries
apart that two servers have given the same position: one that a failover has lost, and one that came in its place.
"""

import os
from base64 import b64encode
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from msgpush.domain.history import Linked
from msgpush.domain.message import Draft, Entry
from msgpush.domain.position import ZERO, Position

TAG = 8
NO_TAG: Final = b"--------"
CALLS = 16_384  # as many calls are remembered, to find what the log still holds of them
HEADERS = 8_192

EPOCH = "epoch"


class Mark(NamedTuple):
    """An entry as links name it: where it stands, and the call that wrote it."""

    position: Position
    tag: bytes

    def names(self, entry: "Mark") -> bool:
        """Whether this is the mark of an entry, as far as it is known."""
        return self.position == entry.position and (self.tag == entry.tag or NO_TAG in (self.tag, entry.tag))


def new_tag() -> bytes:
    """A tag that no other call has: 48 random bits, in characters among which there is no dash."""
    return b64encode(os.urandom(6))


def payload(tag: bytes, draft: Draft) -> bytes:
    """A message as it is stored."""
    header = f" {draft.ttl} {draft.type} {draft.service} {','.join(draft.channels)}\n"
    return b"".join((tag, header.encode(), draft.body))


def id_of(position: Position) -> str:
    """A position as Redis writes it."""
    return f"{position.ms}-{position.seq}"


def position_of(id: bytes) -> Position:
    """A position that Redis has written."""
    ms, _, seq = id.partition(b"-")
    return Position(int(ms), int(seq))


class _Header(NamedTuple):
    ttl: int
    type: str
    service: str
    channels: tuple[str, ...]


class Decoder:
    """Reads entries. Publishers say the same few things again and again: each header is read once."""

    def __init__(self) -> None:
        self._headers: dict[bytes, _Header] = {}

    def log(self, items: Iterable[Any], mark: Mark) -> tuple[list[Entry], list[Mark], Mark]:
        """Entries of the log, as XREAD and XRANGE give them.

        Args:
            mark: what the reader has read last.

        Returns:
            the entries, the last mark of each call in them, and the mark that the first links to.
        """
        entries: list[Entry] = []
        marks: list[Mark] = []
        prev, tag = mark
        first: Mark | None = None
        link = b"%d-%d-%b" % (prev.ms, prev.seq, tag)
        for id, (_, before, _, stored) in items:
            if before != link:
                # Only the first one, unless someone else writes to the log.
                prev, tag = linked = read_link(before)
                first = first or linked
            position = position_of(id)
            mine = stored[:TAG]
            entries.append(self._entry(position, prev, stored))
            if mine == tag and marks:
                marks[-1] = Mark(position, mine)
            else:
                marks.append(Mark(position, mine))
            prev, tag = position, mine
            link = b"%b-%b" % (id, mine)
        return entries, marks, first or mark

    def history(self, items: Iterable[Any]) -> list[Linked]:
        """Entries of a channel's history."""
        return [
            Linked(prev := position_of(before), self._entry(position_of(id), prev, stored))
            for id, (_, before, _, stored) in items
        ]

    def _entry(self, position: Position, prev: Position, stored: bytes) -> Entry:
        text, _, body = stored.partition(b"\n")
        header = self._headers.get(text[TAG:])
        if header is None:
            header = self._read(text[TAG:])
        return Entry(
            position, prev, header.channels, header.type, header.service, position.ms + header.ttl * 1000, body
        )

    def _read(self, text: bytes) -> _Header:
        _, ttl, type, service, channels = text.decode().split(" ")
        if len(self._headers) >= HEADERS:
            self._headers.clear()
        header = _Header(int(ttl), type, service, tuple(channels.split(",")) if channels else ())
        self._headers[text] = header
        return header


def read_link(text: bytes) -> Mark:
    """The entry that a link names."""
    return Mark(position_of(text[: -TAG - 1]), text[-TAG:])


class Chain:
    """The log as this instance has seen it: what it has read, and what it was told is written.

    Both must be true of the log from then on. Where they aren't, as after a failover to a replica that lacked the
    newest entries, the log has lost its end.
    """

    def __init__(self, head: Mark) -> None:
        self.begin(head)

    def begin(self, head: Mark) -> None:
        """Go on after `head`; nothing else is known."""
        self.head = head
        self.known = head  # the newest that is known to be in the log, read or written
        self._read: list[Mark] = []  # the last entry of each call
        self._unseen = head.position  # not all up to here has been read
        self._written: deque[Mark] = deque()  # the same, of our own calls that haven't been read yet

    def skip(self, to: Mark) -> None:
        """What comes next follows on `to`: what was between the head and that has been trimmed, unread."""
        self._unseen = to.position
        while self._written and self._written[0].position <= to.position:
            self._written.popleft()

    def read(self, marks: Sequence[Mark]) -> bool:
        """Take what was read after the head; False, with nothing taken, where that lacks what we have written."""
        end = marks[-1].position if marks else self.head.position
        while self._written and self._written[0].position <= end:
            mark = self._written[0]
            if not (_has(marks, mark) if mark.position > self.head.position else self._saw(mark)):
                return False
            self._written.popleft()
        if marks:
            if self._read and self._read[-1].tag == marks[0].tag:
                self._read.pop()
            self._read += marks
            self.head = marks[-1]
            self.known = max(self.known, self.head)
            if len(self._read) > 2 * CALLS:
                del self._read[:CALLS]
        return True

    def written(self, mark: Mark) -> None:
        """A call of ours has been answered: its last entry is in the log."""
        self._written.append(mark)
        self.known = max(self.known, mark)

    @property
    def unread(self) -> list[Mark]:
        """What we have written and not read yet."""
        return [mark for mark in self._written if mark.position > self.head.position]

    def marks(self) -> list[Mark]:
        """What was read and is remembered, the oldest first."""
        return self._read or [self.head]

    def _saw(self, mark: Mark) -> bool:
        if mark.position <= self._unseen or not self._read or mark.position < self._read[0].position:
            return True  # nobody can say
        return _has(self._read, mark)


def _has(marks: Sequence[Mark], mark: Mark) -> bool:
    index = bisect_left(marks, mark.position, key=itemgetter(0))
    return index < len(marks) and marks[index] == mark


ORIGIN = Mark(ZERO, NO_TAG)
