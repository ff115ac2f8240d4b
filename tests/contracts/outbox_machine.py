"""Any sequence of publishes, reports, acknowledgements and rounds of what is due, by instances that
may die or stall in between, against a model that is written from the promises alone.

    nothing is appended again once an acknowledgement, or that it was withdrawn, has been answered
    nothing that is pending is forgotten before its ttl
    nothing is acknowledged unless a client of its user said so, and each is counted once
    totals are nothing when nothing is left
"""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from math import inf
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from msgpush.domain.errors import BusUnavailable, Conflict, MailboxFull, NotDue, PendingFull
from msgpush.domain.message import Draft
from msgpush.domain.outbox import (
    OVERHEAD,
    Acknowledge,
    Change,
    Forget,
    GiveUp,
    Outcome,
    Park,
    Record,
    Told,
    Wake,
    Withdraw,
    Written,
    decide,
)
from msgpush.domain.ports import Bus, Stored
from msgpush.domain.position import Position
from tests.contracts.outbox import Limits, Opened
from tests.support.asking import again, ask, key, revived

USERS, SERVICES = ("bob", "eve"), ("a", "b")
RANKS = ("low", "normal", "high", "urgent")
SMALL = Limits(
    pending_bytes=24_000, dead_letter_bytes=5_000, max_pending=3, dead_letter_ttl=100_000
)
LEASE, UNREPORTED, DAY = 15_000, 10_000, 86_400_000  # milliseconds
TAKEN = 3  # rounds that instances have begun and not finished

Open = Callable[[Limits], AbstractAsyncContextManager[Opened]]


@dataclass(eq=False)
class Known:
    """What the model knows of a message; moments in milliseconds."""

    draft: Draft
    position: Position
    user: str
    service: str
    rank: int
    size: int
    deadline: int
    most: int
    receipt: bool
    collapse: str | None
    ttl: int
    expires: int
    state: str = "pending"  # or acknowledged, withdrawn, dead, gone
    phase: str = "parked"  # or sent, waiting
    attempts: int = 1
    counted: int = 0
    deliveries: int = 0
    next: int = 0
    written: bool = False
    superseded: bool = False
    owed: list[tuple[str, int]] = field(default_factory=list)  # states and when: the receipts owed
    ended: int = 0
    looked: int = 0  # when it is left to whoever has taken it no longer
    touched: bool = False  # since then: then it may be given out earlier
    acknowledged: int = 0  # how often that was counted

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How Hypothesis shows it."""
        printer.text(f"<{self.key} of {self.user}: {self.state}, {self.phase}>")

    @property
    def key(self) -> str:
        return key(self.draft.id, self.service)

    @property
    def due(self) -> bool:
        """Whether it is pending, and may be tried again now as far as its phase goes."""
        return self.state == "pending" and self.phase == "waiting"

    def moment(self, limits: Limits) -> int:
        """When something is to be done about it."""
        if self.state == "pending":
            return self.expires if self.phase == "parked" else min(self.next, self.expires)
        if self.owed:
            return self.ended + LEASE
        return self.ended + (limits.dead_letter_ttl * 1000 if self.state == "dead" else DAY)

    def forgettable(self, now: int, crowded: bool = False) -> bool:
        """Whether it may be forgotten at any moment: in time, or for want of room."""
        ended = self.state in ("acknowledged", "withdrawn") and not self.owed
        return ended and (crowded or now >= self.ended + DAY)

    def end(self, state: str, now: int) -> None:
        self.state, self.ended = state, now
        self.owed += [(state, now)] * self.receipt
        self.touched = True


@dataclass
class Taken:
    """What an instance has taken of what was due, and has still to do."""

    now: int
    records: list[Record] = field(default_factory=list)


class OutboxMachine(RuleBasedStateMachine):
    """Subclass it with `open_outbox`, and with `totals` where an adapter can tell them."""

    open_outbox: Open
    most_ended: float = inf  # beyond it some that have ended may be forgotten sooner

    @staticmethod
    def totals(bus: Bus) -> list[int]:
        """Whatever has to be nothing when no message is left."""
        return [bus.outbox.pending]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.opening = self.open_outbox(SMALL)
        self.known: list[Known] = []
        self.newest: dict[tuple[str, str, str], Known] = {}  # of those that collapse
        self.taken: list[Taken] = []
        self.numbers = itertools.count()

    @initialize()
    def begin(self) -> None:
        self.opened = self.runner.run(self.opening.__aenter__())

    # What the model answers

    @property
    def now(self) -> int:
        return self.opened.now()

    def present(self, *states: str) -> list[Known]:
        return [each for each in self.known if each.state in states]

    def pending_of(self, user: str, service: str) -> list[Known]:
        return [
            each for each in self.present("pending") if (each.user, each.service) == (user, service)
        ]

    def replaced(self, user: str, service: str, collapse: str | None) -> Known | None:
        """The newest message that was published with the same text, if it is pending."""
        if collapse is None:
            return None
        newest = self.newest.get((user, service, collapse))
        return newest if newest and newest.state == "pending" and newest.collapse else None

    def refusals(self, known: Known, replaced: Known | None) -> set[type]:
        """What its append may be answered."""
        box = [
            each
            for each in self.pending_of(known.user, known.service)
            if each is not replaced and not each.superseded
        ]
        if len(box) >= SMALL.max_pending:
            return {MailboxFull}
        answers: set[type] = set()
        for left in ([], [replaced] if replaced else []):
            others = [each for each in self.present("pending") if each not in left]
            total = sum(each.size for each in others) + known.size
            own = sum(each.size for each in others if each.service == known.service) + known.size
            fits = total <= SMALL.pending_bytes and own <= SMALL.pending_bytes // 4
            answers.add(Stored if fits else PendingFull)
        return answers

    def surplus(self) -> tuple[set[str], set[str]]:
        """Keys of the dead letters that have to go for want of room, and of those that may."""
        dead = sorted(self.present("dead"), key=lambda each: each.ended)
        over = sum(each.size for each in dead) - SMALL.dead_letter_bytes
        last = -1
        for each in dead:
            if over <= 0:
                break
            over -= each.size
            last = each.ended
        # Of those that died in the same moment any may go first.
        must = {each.key for each in dead if each.ended < last}
        return must, {each.key for each in dead if each.ended <= last}

    # Publishers

    @rule(
        user=st.sampled_from(USERS),
        service=st.sampled_from(SERVICES),
        rank=st.sampled_from([1, 1, 0, 3]),
        ttl=st.sampled_from([5, 60, 3_600, 200_000]),
        deadline=st.sampled_from([1, 30]),
        most=st.sampled_from([1, 2, 5]),
        receipt=st.booleans(),
        collapse=st.sampled_from([None, None, "c"]),
        length=st.sampled_from([10, 10, 2_000]),
        dies=st.booleans(),
    )
    def publish(
        self,
        *,
        user: str,
        service: str,
        rank: int,
        ttl: int,
        deadline: int,
        most: int,
        receipt: bool,
        collapse: str | None,
        length: int,
        dies: bool,
    ) -> None:
        draft = ask(
            f"m{next(self.numbers)}",
            user=user,
            service=service,
            priority=RANKS[rank],
            ttl=ttl,
            deadline=deadline,
            deliveries=most,
            receipt=receipt,
            collapse=collapse,
            data={"x": "y" * length},
        )
        size = len(draft.body) + OVERHEAD
        known = Known(
            draft,
            Position(0, 0),
            user,
            service,
            rank,
            size,
            deadline,
            most,
            receipt,
            collapse,
            ttl,
            self.now + ttl * 1000,
        )
        replaced = self.replaced(user, service, collapse)
        allowed = self.refusals(known, replaced)
        (result,) = self.append(draft)
        assert type(result) in allowed
        if not isinstance(result, Stored):
            return
        assert not result.duplicate
        assert result.replaces == (replaced.key if replaced else None)
        known.position = result.position
        self.known.append(known)
        if collapse is not None:
            self.newest[user, service, collapse] = known
        if replaced is not None:
            replaced.superseded = True
            if not dies:
                self.make(Withdraw(user, replaced.key))

    @precondition(lambda self: self.present("pending", "acknowledged", "withdrawn", "dead"))
    @rule(data=st.data(), same=st.booleans())
    def publish_again(self, data: st.DataObject, same: bool) -> None:
        known = self.choose(data, "pending", "acknowledged", "withdrawn", "dead")
        if self.now >= (known.expires if known.state == "pending" else known.ended) + DAY:
            return  # what should have been done about it a day ago isn't promised anything
        # Another may be as large as it likes: it isn't looked at.
        other = ask(known.draft.id, user=known.user, service=known.service, data={"other": 1})
        (result,) = self.append(known.draft if same else other)
        if same:
            assert isinstance(result, Stored)
            assert (result.position, result.duplicate) == (known.position, True)
            assert result.replaces is None
        else:
            assert isinstance(result, Conflict)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(self.known))
        self.make(Withdraw(known.user, known.key))

    @precondition(lambda self: self.present("dead"))
    @rule(data=st.data())
    def revive(self, data: st.DataObject) -> None:
        known = self.choose(data, "dead")
        record = self.find(known.key)
        assert record is not None
        allowed = self.refusals(known, None)
        (result,) = self.append(revived(record))
        assert type(result) in allowed
        if isinstance(result, Stored):
            known.state, known.deliveries, known.written = "pending", 0, False
            known.expires = self.now + known.ttl * 1000
            # It is wanted, whatever comes, or came, in its place.
            known.collapse, known.superseded = None, False
            self.sent(known)

    @precondition(lambda self: self.present("dead"))
    @rule(data=st.data())
    def throw_away(self, data: st.DataObject) -> None:
        known = self.choose(data, "dead")
        self.make(Forget(known.user, known.key))

    # Clients

    @precondition(lambda self: self.known)
    @rule(data=st.data(), shown=st.booleans(), age=st.sampled_from([0, 0, 4_000]))
    def report(self, data: st.DataObject, shown: bool, age: int) -> None:
        known = data.draw(st.sampled_from(self.known))
        attempt = 0 if shown else data.draw(st.integers(1, known.attempts))
        self.make(Written(known.user, known.key, attempt, age))

    @precondition(lambda self: self.present("pending"))
    @rule(data=st.data())
    def report_the_newest(self, data: st.DataObject) -> None:
        known = self.choose(data, "pending")
        self.make(Written(known.user, known.key, known.attempts))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(self.known))
        self.make(Wake(known.user, known.key))

    @precondition(lambda self: self.known)
    @rule(data=st.data(), user=st.sampled_from(USERS))
    def acknowledge(self, data: st.DataObject, user: str) -> None:
        known = data.draw(st.sampled_from(self.known))
        self.make(Acknowledge(user, known.key))

    @rule(user=st.sampled_from(USERS), name=st.sampled_from(["a/never", "a", "", "b/m"]))
    def acknowledge_nothing(self, user: str, name: str) -> None:
        (result,) = self.change(Acknowledge(user, name))
        assert result.result == "unknown"

    # Time, and what is done in it

    @rule(seconds=st.sampled_from([0.5, 1, 5, 10, 15, 30, 60, 4_000, 100_000]))
    def wait(self, seconds: float) -> None:
        self.opened.advance(seconds)

    @rule(limit=st.sampled_from([256, 256, 1]))
    def take(self, limit: int) -> None:
        """An instance takes what is due; it may do it at once, later, or never."""
        self.taken.append(self.take_due(limit))
        del self.taken[:-TAKEN]

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """An instance does what it has taken, however long ago that was."""
        self.do(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @rule()
    def round(self) -> None:
        """An instance does what is due."""
        self.do(self.take_due(256))

    def take_due(self, limit: int) -> Taken:
        now, records = self.runner.run(self.opened.bus.outbox.due(limit))
        assert now == self.now
        found = {record.key for record in records}
        must, may = self.surplus()
        for known in self.known:
            if known.state == "pending" and (known.owed or known.superseded):
                may.add(known.key)  # the receipt of its death, or its withdrawal, at some moment
            if known.state == "gone" or known.moment(SMALL) > now:
                continue
            if known.state in ("acknowledged", "withdrawn") and not known.owed:
                continue  # it is forgotten
            if known.looked <= now:
                must.add(known.key)
            if known.looked <= now or known.touched:
                may.add(known.key)
        assert found <= may
        assert limit < 256 or must <= found
        for record in records:
            known = self.by_key(record.key)
            known.looked, known.touched = now + LEASE, False
            self.compare(known, record)
        return Taken(now, records)

    def do(self, taken: Taken) -> None:
        changes: list[Change] = []
        for record in taken.records:
            user, name, attempt = record.user, record.key, record.attempt
            match decide(record, taken.now):
                case "send":
                    self.send(record, taken.now)
                case "park":
                    changes.append(Park(user, name, attempt))
                case "give up":
                    changes.append(GiveUp(user, name, attempt, "deliveries"))
                case "expire":
                    changes.append(GiveUp(user, name, attempt, "expired"))
                case "withdraw":
                    assert self.by_key(name).superseded
                    changes.append(Withdraw(user, name))
                case "tell":
                    changes += [Told(user, name, receipt) for receipt in record.owed]
                case "forget":
                    changes.append(Forget(user, name))
        for each in changes:
            self.make(each)

    def send(self, record: Record, now: int) -> None:
        known = self.by_key(record.key)
        is_next = (
            known.due
            and known.deliveries < known.most
            and known.attempts == record.attempt
            and known.next <= self.now < known.expires
        )
        (result,) = self.append(again(record, now))
        if is_next and not known.superseded:
            assert isinstance(result, Stored)
            assert result.position > known.position
            self.sent(known)
        else:
            assert isinstance(result, NotDue)
            if is_next:
                assert result.superseded
                self.make(Withdraw(known.user, known.key))

    # The model's changes

    def make(self, change: Change) -> None:
        """Make a change there and in the model, and compare what came of it."""
        known = self.by_key(change.key)
        if known.forgettable(self.now):
            return
        expected = self.model(known, change)
        (made,) = self.change(change)
        if expected is not None:
            assert made.result == expected, (change, known)
        assert (made.record is None) == (made.result == "unknown")

    def model(self, known: Known, change: Change) -> str | None:
        """What becomes of a change; None: nothing, and whatever is answered is right."""
        now, pending = self.now, known.state == "pending"
        newest = isinstance(change, Park | GiveUp) and change.attempt == known.attempts
        match change:
            case Acknowledge(user=user):
                if user != known.user or known.state in ("withdrawn", "gone"):
                    return "unknown"
                if known.state == "acknowledged":
                    return "before"
                known.end("acknowledged", now)
                known.acknowledged += 1
            case Withdraw():
                if known.state == "gone":
                    return "unknown"
                if known.state in ("withdrawn", "acknowledged"):
                    return "before" if known.state == "withdrawn" else "acknowledged"
                known.end("withdrawn", now)
            case Written(attempt=attempt, age=age) if pending:
                known.touched = True
                if 0 < attempt < known.attempts:
                    return None
                self.write(known, attempt, now - age)
            case Wake() if pending and known.counted < known.attempts:
                known.touched = True
                if known.phase == "parked":
                    known.next = now
                known.phase = "waiting"
            case Park() if pending and newest and known.phase == "sent":
                known.phase, known.touched = "parked", True
            case GiveUp() if pending and newest and now >= known.moment(SMALL):
                known.end("dead", now)
            case Told(receipt=receipt) if (receipt.state, receipt.at) in known.owed:
                known.owed.remove((receipt.state, receipt.at))
                known.touched, known.looked = True, now
            case Forget() if known.state == "dead":
                known.state, known.owed = "gone", []
            case _:
                return "unknown"
        return "made"

    def write(self, known: Known, attempt: int, at: int) -> None:
        counts = attempt == known.attempts and known.counted < attempt
        if counts:
            known.counted = attempt
            known.deliveries += 1
        if counts or known.phase != "waiting":
            wait = known.deadline
            for _ in range(known.deliveries - 1):
                wait = min(2 * wait, 3_600)
            known.phase, known.next = "waiting", at + wait * 1000
        known.written = True

    def sent(self, known: Known) -> None:
        known.attempts += 1
        known.phase, known.next, known.touched = "sent", self.now + UNREPORTED, True

    # Looking

    @invariant()
    def each_user_has_what_is_pending(self) -> None:
        if not hasattr(self, "opened"):
            return
        outbox = self.opened.bus.outbox
        waiting = self.runner.run(outbox.waiting(USERS))
        for user, waits in zip(USERS, waiting, strict=True):
            own = [each for each in self.present("pending") if each.user == user]
            own.sort(key=lambda each: (-each.rank, each.position))
            page = self.runner.run(outbox.page(user, None, 100, 1_000_000))
            assert [record.key for record in page.records] == [each.key for each in own]
            assert (page.total, page.next, waits) == (len(own), None, bool(own))
            for known, record in zip(own, page.records, strict=True):
                self.compare(known, record)

    @invariant()
    def each_is_remembered_as_what_it_is(self) -> None:
        crowded = len(self.present("acknowledged", "withdrawn")) > self.most_ended
        for known in self.present("acknowledged", "withdrawn", "dead", "gone"):
            record = self.find(known.key)
            if known.state == "gone":
                assert record is None
            elif record is None:
                assert known.forgettable(self.now, crowded)
                known.state = "gone"
            else:
                self.compare(known, record)
            assert known.acknowledged == (known.state == "acknowledged") or known.state == "gone"

    def compare(self, known: Known, record: Record) -> None:
        assert (record.state, record.user) == (known.state, known.user)
        assert [(receipt.state, receipt.at) for receipt in record.owed] == known.owed
        assert (record.attempt, record.deliveries) == (known.attempts, known.deliveries)
        assert (record.written_at is not None) == known.written
        if known.state == "pending":
            assert (record.phase, record.expires) == (known.phase, known.expires)
            assert record.phase == "parked" or record.next == known.next
            assert record.body == known.draft.body
            assert known.deliveries <= known.most
        else:
            assert record.ended_at == known.ended

    def teardown(self) -> None:
        try:
            if hasattr(self, "opened"):
                self.end_all()
        finally:
            if hasattr(self, "opened"):
                self.runner.run(self.opening.__aexit__(None, None, None))
            self.runner.close()

    def end_all(self) -> None:
        """Nothing is left, and nothing counts, once all has ended and its time is over."""
        for n, known in enumerate(self.present("pending")):
            self.make((Acknowledge, Withdraw)[n % 2](known.user, known.key))
        for known in self.present("dead"):
            self.make(Forget(known.user, known.key))
        self.opened.advance(15)
        self.round()
        self.opened.advance(86_400)
        self.round()
        for known in self.known:
            assert self.find(known.key) is None
        assert self.totals(self.opened.bus) == [0] * len(self.totals(self.opened.bus))
        # Then there is room again for as much as at first.
        for service in SERVICES:
            number = 0
            while True:
                name, large = f"last{next(self.numbers)}", {"x": "y" * 1_000}
                draft = ask(name, user=f"u{number}", service=service, data=large)
                (result,) = self.append(draft)
                if not isinstance(result, Stored):
                    break
                number += 1
            assert number == SMALL.pending_bytes // 4 // (len(draft.body) + OVERHEAD)

    # The outbox itself

    def append(self, *drafts: Draft) -> list[object]:
        return [*self.runner.run(self.opened.bus.append(drafts))]

    def change(self, *changes: Change) -> list[Outcome]:
        results = self.runner.run(self.opened.bus.outbox.change(changes))
        outcomes = [each for each in results if not isinstance(each, BusUnavailable)]
        assert len(outcomes) == len(changes)
        return outcomes

    def find(self, name: str) -> Record | None:
        return self.runner.run(self.opened.bus.outbox.find(name))

    def by_key(self, name: str) -> Known:
        return next(each for each in self.known if each.key == name)

    def choose(self, data: st.DataObject, *states: str) -> Known:
        return data.draw(st.sampled_from(self.present(*states)))


def run_outbox_machine(
    open: Open,
    *,
    examples: int,
    totals: Callable[[Bus], list[int]] | None = None,
    most_ended: float = inf,
) -> None:
    """Try many sequences on an adapter, each from an empty keyspace.

    Args:
        open: as `OutboxContract.open`.
        totals: what the adapter counts, which has to be nothing in the end.
        most_ended: how many that have ended the adapter remembers at least.
    """
    names: dict[str, object] = {"open_outbox": staticmethod(open), "most_ended": most_ended}
    if totals is not None:
        names["totals"] = staticmethod(totals)
    run_state_machine_as_test(
        type("Machine", (OutboxMachine,), names),
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
