"""What a stream of a user is shown of what is pending, as it opens, or comes back from behind.

What the log brings by itself, it isn't shown a second time: that is what it read as it caught up,
and what is appended after it became live. The rest is shown to it alone, from the outbox, without a
place in the log."""

from typing import Literal

from msgpush.domain.outbox import Record
from msgpush.domain.position import ZERO, Position


class Opening:
    """A stream's way to its cohort's head, as far as it matters to what is pending.

    Args:
        after: where it went on reading; None: it is new, or reads all that is retained.

    Attributes:
        users: those whose messages are meant; None: all for whom the stream acts once it is live.
        added: those among them for whom it has come to act after it had begun: it is new to them.
        upto: where it became live.
        given: the attempts that it was given as it caught up, by their keys.
        lost: whether it is told that messages are missing.
    """

    __slots__ = ("added", "after", "given", "lost", "upto", "users")

    def __init__(self, after: Position | None) -> None:
        self.after = after
        self.users: frozenset[str] | None = None
        self.added: frozenset[str] = frozenset()
        self.upto = ZERO
        self.given: dict[str, int] = {}
        self.lost = False

    def brings(self, record: Record) -> Literal["show", "count", "wake"] | None:
        """What has to be done about a pending message that the stream wants.

        It is shown to the stream; or the stream has it, by an attempt whose report came too late to
        count; or it missed the newest attempt, which nobody has taken, and is there for another.
        """
        if record.newest > self.upto:
            return None  # it comes by itself
        given = self.given.get(record.key)
        if given is not None:
            return "count" if given < record.attempt else None
        if self.after is None or record.user in self.added:
            return "show"
        if self.lost and record.newest > self.after:
            return "show"
        if record.written_at is None and record.newest <= self.after:
            return "show"
        return "wake" if record.counted < record.attempt else None
