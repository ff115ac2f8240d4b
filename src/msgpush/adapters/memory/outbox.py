"""The outbox of a single process, in its memory, gone at exit as the bus beside it."""

import time
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

import msgspec
from msgspec import Struct

from msgpush.domain.errors import (
    BusUnavailable,
    Conflict,
    MailboxFull,
    NotDue,
    PendingFull,
)
from msgpush.domain.message import Draft
from msgpush.domain.outbox import (
    KEPT,
    LEASE,
    MAX_PENDING_BYTES,
    OVERHEAD,
    UNKNOWN,
    Acknowledge,
    Change,
    DeadLetters,
    Forget,
    GiveUp,
    Outcome,
    Pending,
    Place,
    Record,
    Withdraw,
    apply,
    is_due,
    jitter,
)
from msgpush.domain.position import Position


class _Mailbox(Struct):
    """The pending messages of one service for one user."""

    number: int = 0
    size: int = 0


class MemoryOutbox:
    """Records in memory.

    Args:
        size: bytes of all pending messages together; those of one service are a quarter at most.
        dead_letter_size: bytes of all dead letters; beyond it the oldest go.
        max_pending: messages that one service may have pending for one user.
        dead_letter_ttl: seconds for which a dead letter is kept.
        clock: seconds since 1970, asked once: from then on time is what `monotonic` says.
        monotonic: seconds of a clock that never jumps.
        jitter: a factor for the time until the next delivery.
    """

    def __init__(
        self,
        *,
        size: int = 128 * 1024 * 1024,
        dead_letter_size: int = 64 * 1024 * 1024,
        max_pending: int = 200,
        dead_letter_ttl: int = 7 * 86_400,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = jitter,
    ) -> None:
        self._size, self._dead_letter_size = size, dead_letter_size
        self._max_pending, self._dead_letter_ttl = max_pending, dead_letter_ttl * 1000
        self._jitter = jitter
        began = clock() - monotonic()
        self.now: Callable[[], int] = lambda: int((began + monotonic()) * 1000)
        self._records: dict[str, Record] = {}
        self._pending: dict[str, dict[str, Record]] = {}  # by user
        self._mailboxes: dict[tuple[str, str], _Mailbox] = {}  # by user and service
        self._newest: dict[tuple[str, str, str], str] = {}  # by user, service and what collapses
        self._ended: dict[str, Record] = {}  # acknowledged or withdrawn, the oldest first
        self._dead: dict[str, dict[str, Record]] = {}  # by service, the oldest first
        self._all_dead: dict[str, Record] = {}  # all dead letters, the oldest first
        self._by_service: dict[str, int] = {}  # bytes pending
        self._pending_size = self._dead_size = 0
        self.used = 0  # bytes that all of it costs
        # A heap with stale items: one counts only where `_when` says the same.
        self._due: list[tuple[int, str]] = []
        self._when: dict[str, int] = {}

    @property
    def pending(self) -> int:
        return sum(len(own) for own in self._pending.values())

    # What the bus puts here

    def remembers(self, key: str) -> bool:
        """True while there is a record, in whatever state."""
        return key in self._records

    def refusal(self, draft: Draft) -> Conflict | MailboxFull | PendingFull | NotDue | None:
        """The reason why a message that asks for an acknowledgement can't be stored now."""
        mark, now = draft.mark, self.now()
        assert mark is not None
        record = self._records.get(mark.key)
        if draft.terms is None:
            if record and is_due(record, mark.attempt, now):
                return None
            return NotDue(mark.key, superseded=record is not None and record.superseded)
        if mark.kind == "message":
            # It may have an id that was made here for another, of which the bus knows nothing.
            if record is not None:
                return Conflict(draft.service, draft.id)
            return self._no_room(draft, len(draft.body) + OVERHEAD, self._replaced(draft))
        if record is None or record.state != "dead" or record.attempt != mark.attempt - 1:
            return NotDue(mark.key)
        return self._no_room(draft, record.size, None)

    def _no_room(
        self, draft: Draft, size: int, replaced: str | None
    ) -> MailboxFull | PendingFull | None:
        """The reason why there is no room for so many bytes more among those that wait.

        Args:
            replaced: the key of one that gives its place to it.
        """
        assert draft.mark is not None
        user, service = draft.mark.user, draft.service
        box = self._mailboxes.get((user, service), _Mailbox())
        number, used = box.number, box.size
        if replaced is not None:
            number, used = number - 1, used - self._records[replaced].size
        if number >= self._max_pending or used + size > MAX_PENDING_BYTES:
            return MailboxFull(service, user, self._max_pending, MAX_PENDING_BYTES)
        return self.no_room(service, size)

    def no_room(self, service: str, size: int) -> PendingFull | None:
        """The reason why a service can't have so many bytes more waiting."""
        if (
            self._pending_size + size > self._size
            or self._by_service.get(service, 0) + size > self._size // 4
        ):
            return PendingFull()
        return None

    def reserve(self, service: str, size: int) -> None:
        """Count bytes that wait beside the records, or are gone where that is less than none."""
        self.used += size
        self._count(service, size)

    def _count(self, service: str, size: int) -> None:
        self._pending_size += size
        self._by_service[service] = self._by_service.get(service, 0) + size
        if not self._by_service[service]:
            del self._by_service[service]

    def accept(self, draft: Draft, position: Position) -> str | None:
        """Keep a message that `refusal` has nothing against, at its position in the log.

        Returns:
            the key of an older one that it takes the place of.
        """
        mark, now = draft.mark, self.now()
        assert mark is not None
        if mark.kind == "redelivery":
            record = self._records[mark.key]
            if draft.terms is None:
                record.send(position, now)
            else:
                self._exhume(record)
                record.revive(position, now)
                self._enter(record)
            self._schedule(record, now)
            return None
        assert draft.terms is not None
        replaced = self._replaced(draft)
        record = Record(
            key=mark.key,
            user=mark.user,
            service=draft.service,
            id=draft.id,
            type=draft.type,
            body=draft.body,
            terms=draft.terms,
            accepted=position,
            accepted_at=now,
            expires=now + draft.ttl * 1000,
            ttl=draft.ttl,
            newest=position,
            priority=mark.priority,
        )
        if replaced is not None:
            self._supersede(self._records[replaced], now)
        self._records[mark.key] = record
        self.used += record.size
        self._enter(record)
        self._schedule(record, now)
        return replaced

    def _replaced(self, draft: Draft) -> str | None:
        mark, terms = draft.mark, draft.terms
        if mark is None or terms is None or terms.collapse is None:
            return None
        return self._newest.get((mark.user, draft.service, terms.collapse))

    # Changes

    async def change(self, changes: Sequence[Change]) -> list[Outcome | BusUnavailable]:
        return [self._change(each) for each in changes]

    def _change(self, change: Change) -> Outcome:
        record, now = self._records.get(change.key), self.now()
        if record is None:
            return UNKNOWN
        was = record.state
        outcome = apply(change, record, now, self._jitter)
        if outcome.result != "made":
            return _without_body(outcome)
        match change:
            case Acknowledge() | Withdraw():
                self._leave(record, was)
                self.used -= len(record.body)
                record.body = b""
                self._keep_ended(record, now)
            case GiveUp():
                self._leave(record, was)
                self._bury(record)
                self._schedule(record, now)
            case Forget():
                self._exhume(record)
                self._when.pop(record.key, None)
                self._drop(record)
            case _:
                self._schedule(record, now)
        return _without_body(outcome)

    def _enter(self, record: Record) -> None:
        """It is pending from now on."""
        self._pending.setdefault(record.user, {})[record.key] = record
        box = self._mailboxes.setdefault((record.user, record.service), _Mailbox())
        box.number += 1
        box.size += record.size
        self._count(record.service, record.size)
        if record.terms.collapse is not None:
            self._newest[record.user, record.service, record.terms.collapse] = record.key

    def _supersede(self, record: Record, now: int) -> None:
        """Another has taken its place: it counts no more, and is soon withdrawn."""
        self._take_from_mailbox(record)
        record.superseded = True
        self._schedule(record, now)

    def _take_from_mailbox(self, record: Record) -> None:
        box = self._mailboxes[record.user, record.service]
        box.number -= 1
        box.size -= record.size
        if not box.number:
            del self._mailboxes[record.user, record.service]

    def _leave(self, record: Record, was: str) -> None:
        """It is pending, or a dead letter, no longer."""
        if was == "dead":
            self._exhume(record)
            return
        own = self._pending[record.user]
        del own[record.key]
        if not own:
            del self._pending[record.user]
        if not record.superseded:
            self._take_from_mailbox(record)
        record.superseded = False
        self._count(record.service, -record.size)
        if record.terms.collapse is not None:
            place = (record.user, record.service, record.terms.collapse)
            if self._newest.get(place) == record.key:
                del self._newest[place]

    def _bury(self, record: Record) -> None:
        self._dead.setdefault(record.service, {})[record.key] = record
        self._all_dead[record.key] = record
        self._dead_size += record.size

    def _exhume(self, record: Record) -> None:
        if self._all_dead.pop(record.key, None) is None:
            return
        own = self._dead[record.service]
        del own[record.key]
        if not own:
            del self._dead[record.service]
        self._dead_size -= record.size

    def _drop(self, record: Record) -> None:
        del self._records[record.key]
        self._ended.pop(record.key, None)
        self.used -= record.size

    def _keep_ended(self, record: Record, now: int) -> None:
        """Remember one that was acknowledged or withdrawn, within a part of the room."""
        self._ended[record.key] = record
        self._schedule(record, now)
        while len(self._ended) * OVERHEAD > self._size // 4:
            oldest = next(iter(self._ended.values()))
            if oldest.owed:
                break
            self._when.pop(oldest.key, None)
            self._drop(oldest)

    # Time

    def _schedule(self, record: Record, now: int) -> None:
        """Have it looked at when something has to be done about it."""
        if record.state == "pending":
            when = record.due
        else:
            assert record.ended_at is not None
            when = record.ended_at + (self._dead_letter_ttl if record.state == "dead" else KEPT)
        soon = record.owed or record.superseded
        self._look_at(record.key, min(when, now + LEASE) if soon else when)

    def _look_at(self, key: str, when: int) -> None:
        if self._when.get(key) == when:
            return
        self._when[key] = when
        heappush(self._due, (when, key))
        if len(self._due) > 1_000 + 2 * len(self._when):
            self._due = [(when, key) for key, when in self._when.items()]
            heapify(self._due)

    async def due(self, limit: int) -> tuple[int, list[Record]]:
        now, found = self.now(), list[Record]()
        while self._due and self._due[0][0] <= now and len(found) < limit:
            when, key = heappop(self._due)
            if self._when.get(key) != when:
                continue
            del self._when[key]
            record = self._records[key]
            if record.state in ("acknowledged", "withdrawn") and not record.owed:
                self._drop(record)
                continue
            self._look_at(key, now + LEASE)
            found.append(msgspec.structs.replace(record))
        surplus = self._dead_size - self._dead_letter_size
        for record in self._all_dead.values():
            if surplus <= 0 or len(found) >= limit:
                break
            surplus -= record.size
            found.append(msgspec.structs.replace(record))
        return now, found

    # Reading

    async def find(self, key: str) -> Record | None:
        record = self._records.get(key)
        return None if record is None else msgspec.structs.replace(record)

    async def waiting(self, users: Sequence[str]) -> list[bool]:
        return [user in self._pending for user in users]

    async def page(self, user: str, after: Place | None, limit: int, size: int) -> Pending:
        own = self._pending.get(user, {})
        places = sorted(Place(*each.place, each.key) for each in own.values())
        left = [each for each in places if after is None or each > after]
        found, next = _cut([own[place.key] for place in left], limit, size)
        return Pending(found, len(own), left[len(found) - 1] if next else None)

    async def dead_letters(
        self, service: str, after: str | None, limit: int, size: int
    ) -> DeadLetters:
        own = self._dead.get(service, {})
        places = sorted((each.ended_at or 0, each.key) for each in own.values())
        begin = (0, "")
        if after is not None:
            at, _, key = after.partition("-")
            begin = (int(at), key)
        left = [each for each in places if each > begin]
        found, more = _cut([own[key] for _, key in left], limit, size)
        next = "{}-{}".format(*left[len(found) - 1]) if more else None
        return DeadLetters(found, next)


def _cut(records: Sequence[Record], limit: int, size: int) -> tuple[list[Record], bool]:
    """The first of some records, as a page has them, and whether there are more."""
    found: list[Record] = []
    for record in records[:limit]:
        found.append(msgspec.structs.replace(record))
        size -= record.size
        if size <= 0:
            break
    return found, len(found) < len(records)


def _without_body(outcome: Outcome) -> Outcome:
    if outcome.record is None:
        return outcome
    return Outcome(outcome.result, msgspec.structs.replace(outcome.record, body=b""))
