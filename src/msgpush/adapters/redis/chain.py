"""A memory of the log, to notice that it has lost its end."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from operator import itemgetter

from msgpush.adapters.redis.log import EntryRef

CALLS = 16_384  # as many calls are remembered, to find what the log still holds of them


class Chain:
    """The log as this instance has seen it: what it has read, and what it was told is written.

    Both must be true of the log from then on. Where they aren't, as after a failover to a replica
    that lacked the newest entries, the log has lost its end."""

    def __init__(self, head: EntryRef) -> None:
        self.begin(head)

    def begin(self, head: EntryRef) -> None:
        """Go on after `head`; nothing else is known."""
        self.head = head
        self.at = head.position  # read up to here, what others have written there included
        self.known = head  # the newest that is known to be in the log, read or written
        self._read: list[EntryRef] = []  # the last entry of each call
        self._unseen = head.position  # not all up to here has been read
        self._written: deque[EntryRef] = (
            deque()
        )  # the same, of our own calls that haven't been read yet

    def skip(self, to: EntryRef) -> None:
        """Go on after `to`: what was between the head and that has been trimmed, unread."""
        self._unseen = to.position
        while self._written and self._written[0].position <= to.position:
            self._written.popleft()

    def read(self, refs: Sequence[EntryRef]) -> bool:
        """Take what was read after the head; False, with nothing taken, where ours is missing."""
        end = refs[-1].position if refs else self.head.position
        while self._written and self._written[0].position <= end:
            ref = self._written[0]
            if not (_has(refs, ref) if ref.position > self.head.position else self._saw(ref)):
                return False
            self._written.popleft()
        if refs:
            if self._read and self._read[-1].tag == refs[0].tag:
                self._read.pop()
            self._read += refs
            self.head = refs[-1]
            self.known = max(self.known, self.head)
            if len(self._read) > 2 * CALLS:
                del self._read[:CALLS]
        return True

    def written(self, ref: EntryRef) -> None:
        """Take the last entry of a call of ours that was answered, and so is in the log."""
        self._written.append(ref)
        self.known = max(self.known, ref)

    @property
    def unread(self) -> list[EntryRef]:
        """The entries that we have written and not read yet."""
        return [ref for ref in self._written if ref.position > self.head.position]

    def refs(self) -> list[EntryRef]:
        """The entries read that are remembered, the oldest first."""
        return self._read or [self.head]

    def _saw(self, ref: EntryRef) -> bool:
        if ref.position <= self._unseen or not self._read or ref.position < self._read[0].position:
            return True  # nobody can say
        return _has(self._read, ref)


def _has(refs: Sequence[EntryRef], ref: EntryRef) -> bool:
    index = bisect_left(refs, ref.position, key=itemgetter(0))
    return index < len(refs) and refs[index] == ref
