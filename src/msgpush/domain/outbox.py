"""The outbox: messages that wait for an acknowledgement, and what is decided about them.

A message that asks for an acknowledgement is in the log as any other, and besides it has a `Record`
until a client acknowledges it. The record is in one of these states:

    pending         nobody has acknowledged it: `accepted` until a stream of the user has taken it,
                    `written` from then on
    acknowledged    a client said so
    withdrawn       its publisher took it back, or a newer one took its place
    dead            given up: written as often as it may be, or its time ran out

and while it is pending, in one of these phases:

    parked      nothing is known to be under way, and no stream of the user is known to be there:
                nothing happens until one opens, or its time runs out
    sent        it was appended to the log again, and nobody has reported yet that it was written
    waiting     it was written; it is due again at `next`

    parked -> waiting   a stream took it, or was shown it as it opened
    parked -> waiting   a stream is there that it can be sent to: it is due at once
    waiting -> sent     it is due, and was written less often than it may be
    waiting -> dead     it is due, and was written as often as it may be
    sent -> waiting     a stream took it; or a stream is there, though this attempt missed it
    sent -> parked      nobody took it for ten seconds: that uses nothing up
    any -> dead         its time runs out

Each time that it is appended is an *attempt*, counted from 1, which is the message itself. A report
of an attempt before the newest is late, and changes nothing. An attempt counts as one *delivery*,
however many streams take it.

Everything here is synchronous. Two adapters keep records (`ports.Outbox`): the one in memory calls
what is here; the one in Redis has it written down once more as a script, `settle.lua`, since it
must look and change in one step. Both run the same tests."""

import random
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from msgspec import Struct

from msgpush.domain.errors import Malformed
from msgpush.domain.marks import NORMAL, Mark, Terms
from msgpush.domain.message import ID_PATTERN, SERVICE_PATTERN, delivered_again
from msgpush.domain.position import ZERO, Position
from msgpush.domain.quoting import short_repr

State = Literal["pending", "acknowledged", "withdrawn", "dead"]
Phase = Literal["parked", "sent", "waiting"]
Reason = Literal["deliveries", "expired"]

LONGEST = 3_600  # seconds between two deliveries, where the deadline itself isn't longer
JITTER = 0.2
UNREPORTED = 10_000  # milliseconds after which an attempt that nobody has reported was in vain
KEPT = 86_400_000  # milliseconds for which one that was acknowledged or withdrawn is remembered
LEASE = 15_000  # milliseconds for which what is due is left to whoever has taken it
MAX_PENDING_BYTES = 4 * 1024 * 1024  # of one user and service
OVERHEAD = 600  # bytes that a record costs beyond its body
AT_ONCE = 256  # changes, or due records, of one call


# Its own, so that no program which embeds this finds the common one's sequence disturbed.
_random = random.Random()


def jitter() -> float:
    """A factor that keeps what was written together from being due together."""
    return _random.uniform(1 - JITTER, 1 + JITTER)


def wait_after(deadline: int, deliveries: int) -> int:
    """Seconds after so many deliveries until the next one; the first counts as one, too."""
    return max(deadline, min(deadline << max(0, deliveries - 1), LONGEST))


class Owed(NamedTuple):
    """A receipt that its publisher is still to be given: what became of a message, and when."""

    state: State
    reason: Reason | None
    at: int
    deliveries: int


class Record(Struct):
    """A message that has asked for an acknowledgement.

    All moments are milliseconds by the outbox's clock, which is one for all who read it.

    Attributes:
        accepted: its position in the log, and `newest` that of its last attempt.
        ttl: seconds that it was to live when it was accepted.
        attempt: the newest one; `counted`, the newest that was reported as written.
        deliveries: how often it was written.
        next: when it is due again; unless it is parked.
        owed: the receipts that its publisher is still to be given.
        superseded: whether a newer one has taken its place, and it is still to be withdrawn.
    """

    key: str
    user: str
    service: str
    id: str
    type: str
    body: bytes
    terms: Terms
    accepted: Position
    accepted_at: int
    expires: int
    ttl: int
    newest: Position = ZERO
    priority: int = NORMAL
    state: State = "pending"
    phase: Phase = "parked"
    attempt: int = 1
    counted: int = 0
    deliveries: int = 0
    next: int = 0
    written_at: int | None = None
    ended_at: int | None = None
    reason: Reason | None = None
    owed: tuple[Owed, ...] = ()
    superseded: bool = False

    @property
    def place(self) -> tuple[int, Position]:
        """Its place among those of its user: the most urgent first, then the oldest."""
        return -self.priority, self.accepted

    @property
    def size(self) -> int:
        """Bytes that it counts for."""
        return len(self.body) + OVERHEAD

    @property
    def message(self) -> bytes:
        """The whole message, which says how often it was tried."""
        return self.body if self.attempt == 1 else delivered_again(self.body, self.attempt)

    @property
    def due(self) -> int:
        """The moment at which something has to be done about it, while it is pending."""
        return self.expires if self.phase == "parked" else min(self.next, self.expires)

    def write(self, attempt: int, at: int, factor: float) -> None:
        """A stream of the user has taken an attempt (0: was shown it as it opened).

        Args:
            factor: what the time until the next delivery is multiplied by: see `jitter`.
        """
        if 0 < attempt < self.attempt:
            return  # late
        if self.written_at is None:
            self.written_at = at
        counts = attempt == self.attempt > self.counted
        if counts:
            self.counted = attempt
            self.deliveries += 1
        if counts or self.phase != "waiting":
            self.phase = "waiting"
            seconds = wait_after(self.terms.deadline, self.deliveries)
            self.next = at + int(seconds * 1000 * factor)

    def wake(self, now: int) -> None:
        """A stream of the user is there that has missed the newest attempt."""
        if self.phase == "parked":
            self.phase, self.next = "waiting", now
        elif self.phase == "sent":
            self.phase = "waiting"  # at the end of its ten seconds, unless somebody reports it

    def send(self, position: Position, now: int) -> None:
        """It was appended again."""
        self.attempt += 1
        self.newest = position
        self.phase, self.next = "sent", now + UNREPORTED

    def revive(self, position: Position, now: int) -> None:
        """It was given up, and is tried again from the start."""
        self.state, self.reason, self.ended_at = "pending", None, None
        self.deliveries, self.written_at = 0, None
        self.terms = self.terms._replace(collapse=None)  # it is wanted, whatever came in its place
        self.accepted_at, self.expires = now, now + self.ttl * 1000
        self.send(position, now)

    def end(self, state: State, now: int, reason: Reason | None = None) -> None:
        """Nothing is tried any more."""
        self.state, self.reason, self.ended_at = state, reason, now
        if self.terms.receipt:
            self.owed = (*self.owed, Owed(state, reason, now, self.deliveries))

    def status(self) -> "Status":
        """What its publisher may know of it."""
        pending = self.state == "pending"
        return Status(
            key=self.key,
            state=self.state if self.state != "pending" else self.progress,
            reason=self.reason,
            user_id=self.user,
            deliveries=self.deliveries,
            accepted_at=self.accepted_at,
            written_at=self.written_at,
            acknowledged_at=self.ended_at if self.state == "acknowledged" else None,
            next_at=self.next if pending and self.phase == "waiting" else None,
        )

    @property
    def progress(self) -> Literal["accepted", "written"]:
        """How far it has come, while it is pending."""
        return "accepted" if self.written_at is None else "written"


class Status(NamedTuple):
    """What became of a message, so far; moments in milliseconds since 1970."""

    key: str
    state: Literal["accepted", "written", "acknowledged", "withdrawn", "dead"]
    reason: Reason | None
    user_id: str
    deliveries: int
    accepted_at: int
    written_at: int | None
    acknowledged_at: int | None
    next_at: int | None


# What is to be done about a record that is due

Action = Literal["send", "park", "give up", "expire", "withdraw", "tell", "forget"]


def decide(record: Record, now: int) -> Action | None:
    """What is to be done about a record that an outbox has given out as due; None: nothing."""
    if record.owed:
        return "tell"
    if record.state == "dead":
        return "forget"
    if record.state != "pending":
        return None
    if record.superseded:
        return "withdraw"
    if now >= record.expires:
        return "expire"
    if record.phase == "parked" or now < record.next:
        return None
    if record.phase == "sent":
        return "park"
    return "send" if record.deliveries < record.terms.deliveries else "give up"


# Changes. Each is made in one step, which looks first whether it still applies.


class Acknowledge(Struct, frozen=True):
    """A client of the user has acknowledged it."""

    user: str
    key: str


class Withdraw(Struct, frozen=True):
    """Its publisher has taken it back."""

    user: str
    key: str


class Written(Struct, frozen=True):
    """A stream of the user has taken an attempt; 0: it was shown it as it opened.

    Attributes:
        age: milliseconds that this is ago.
    """

    user: str
    key: str
    attempt: int
    age: int = 0


class Wake(Struct, frozen=True):
    """A stream of the user is there that has missed the newest attempt."""

    user: str
    key: str


class Park(Struct, frozen=True):
    """Nobody has taken an attempt in time."""

    user: str
    key: str
    attempt: int


class GiveUp(Struct, frozen=True):
    """It was tried often enough, or its time ran out, as of an attempt."""

    user: str
    key: str
    attempt: int
    reason: Reason


class Told(Struct, frozen=True):
    """Its publisher has been given a receipt."""

    user: str
    key: str
    receipt: Owed


class Forget(Struct, frozen=True):
    """A dead letter goes."""

    user: str
    key: str


Change = Acknowledge | Withdraw | Written | Wake | Park | GiveUp | Told | Forget


Result = Literal["made", "before", "unknown", "acknowledged"]


class Outcome(Struct, frozen=True):
    """What became of a change.

    Attributes:
        result: it was made now; it had been made before; there is no such record, or no longer in
            a state in which it applies; or it stands in the way that it was acknowledged.
        record: what it is now, without its body, where it was made or had been; else None.
    """

    result: Result
    record: Record | None = None


UNKNOWN = Outcome("unknown")


def apply(change: Change, record: Record, now: int, factor: Callable[[], float]) -> Outcome:
    """Make a change to a record that is there.

    What follows from it (its place in the outbox, what is counted) is its keeper's.
    """
    pending = record.state == "pending"
    match change:
        case Acknowledge():
            if record.user != change.user or record.state == "withdrawn":
                return UNKNOWN
            if record.state == "acknowledged":
                return Outcome("before", record)
            record.end("acknowledged", now)
        case Withdraw():
            if record.state == "acknowledged":
                return Outcome("acknowledged", record)
            if record.state == "withdrawn":
                return Outcome("before", record)
            record.end("withdrawn", now)
        case Written() if pending:
            record.write(change.attempt, now - change.age, factor())
        case Wake() if pending and record.counted < record.attempt:
            record.wake(now)
        case Park() if pending and record.phase == "sent" and record.attempt == change.attempt:
            record.phase = "parked"
        case GiveUp() if pending and record.attempt == change.attempt and now >= record.due:
            record.end("dead", now, change.reason)
        case Told() if change.receipt in record.owed:
            record.owed = tuple(each for each in record.owed if each != change.receipt)
        case Forget() if record.state == "dead":
            pass
        case _:
            return UNKNOWN
    return Outcome("made", record)


def is_due(record: Record, attempt: int, now: int) -> bool:
    """True if this attempt is the next of a record, and may be appended now."""
    return (
        record.state == "pending"
        and record.phase == "waiting"
        and record.attempt == attempt - 1
        and not record.superseded
        and record.deliveries < record.terms.deliveries
        and record.next <= now < record.expires
    )


def next_mark(record: Record) -> Mark:
    """The mark of a record's next attempt."""
    return Mark(record.priority, "redelivery", record.user, record.key, record.attempt + 1)


# What waits, page by page


class Place(NamedTuple):
    """A place in a user's pending messages: the one after which a page begins."""

    rank: int
    position: Position
    key: str

    def __str__(self) -> str:
        return f"{-self.rank}.{self.position.ms}-{self.position.seq}.{self.key}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The place that a text names.

        Raises:
            Malformed: it names none.
        """
        match = _PLACE.fullmatch(text)
        if match is None:
            raise Malformed(f"{short_repr(text)} is no place that an answer has named as its next")
        return cls(-int(match[1]), Position(int(match[2]), int(match[3])), match[4])


# A position's numbers have no more digits than Redis can count.
_NUMBER, _KEY = "[0-9]{1,15}", f"{SERVICE_PATTERN}/{ID_PATTERN}"
PLACE = f"([0-3])[.]({_NUMBER})-({_NUMBER})[.]({_KEY})"
DEAD_PLACE = f"{_NUMBER}-{_KEY}"
_PLACE, _DEAD_PLACE = re.compile(PLACE), re.compile(DEAD_PLACE)


def check_dead_place(text: str) -> str:
    """The text, if it names a place among dead letters.

    Raises:
        Malformed: it names none.
    """
    if _DEAD_PLACE.fullmatch(text) is None:
        raise Malformed(f"{short_repr(text)} is no place that an answer has named as its next")
    return text


class Pending(NamedTuple):
    """A page of a user's pending messages, the most urgent first, then the oldest.

    Attributes:
        total: how many there are of the user.
        next: where the following page begins; None: there is none.
    """

    records: list[Record]
    total: int
    next: Place | None


class DeadLetters(NamedTuple):
    """A page of a service's dead letters, the oldest first; `next` is the key to go on after."""

    records: list[Record]
    next: str | None
