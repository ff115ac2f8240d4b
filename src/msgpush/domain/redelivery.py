"""Acknowledged delivery: what clients and publishers ask of the outbox, and the tasks around it.

    report    tells the outbox what streams of their users have taken
    open      shows such streams what is pending, once they are live
    repeat    delivers again what is due, gives up what was tried often enough
    follow    tells the user's streams, and the publisher, what became of a message

`outbox` decides what is done; here it is done. `Delivery` owns the tasks."""

import asyncio
import hashlib
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Struct

from msgpush.domain.catch_up import CATCH_UP_CHUNK
from msgpush.domain.channel import OWN_SERVICE, RECEIPTS, USER
from msgpush.domain.connection import Connection
from msgpush.domain.errors import BusUnavailable, MsgpushError, NotDue
from msgpush.domain.hub import Hub
from msgpush.domain.marks import Mark, key_of
from msgpush.domain.message import Draft, delivered_again, format_ms
from msgpush.domain.observer import Observer
from msgpush.domain.openings import Opening
from msgpush.domain.outbox import (
    AT_ONCE,
    Acknowledge,
    Change,
    DeadLetters,
    Forget,
    GiveUp,
    Outcome,
    Owed,
    Park,
    Pending,
    Place,
    Record,
    Told,
    Wake,
    Withdraw,
    decide,
    next_mark,
)
from msgpush.domain.ports import Bus, Stored

REPORT = 0.25  # seconds between two reports of what was written
OPEN = 0.1  # seconds between two looks for what is pending of the users whose streams have opened
REPEAT = 1.0  # seconds between two looks for what is due, or somewhat less
USERS = 1_000  # whose pending messages one look is for
PAGE = 64  # pending messages that are read at once
SHOWING = 32  # streams that are shown pages at once: what they are shown waits in memory
TOLD_TOGETHER = 100  # keys of one word to a user's streams
FOLLOWED = 10_000  # endings that wait to be told; receipts of others are made up for later

log = logging.getLogger("msgpush.delivery")

_encode = msgspec.json.Encoder().encode
_random = random.Random()
_place = attrgetter("place")


class Acknowledged(Struct, frozen=True):
    """The keys that are acknowledged by now, and those of no message of this user."""

    acknowledged: list[str]
    unknown: list[str]


class _Ended(Struct, frozen=True):
    """Word to a user's streams that they needn't show these messages any longer."""

    keys: list[str]
    state: str


class _ReceiptData(Struct, frozen=True):
    key: str
    state: str
    reason: str | None
    user_id: str
    deliveries: int
    at: str


class Redelivery:
    """Messages that want acknowledgements, over a bus and the outbox beside it.

    Args:
        receipt_ttl: seconds that a receipt lives.
        observer: told what happens.
    """

    def __init__(self, bus: Bus, hub: Hub, *, receipt_ttl: int, observer: Observer) -> None:
        self._bus, self._outbox, self._hub = bus, bus.outbox, hub
        self._receipt_ttl, self._observer = receipt_ttl, observer
        self._endings: deque[Record] = deque(maxlen=FOLLOWED)
        self._ended = asyncio.Event()
        self._showing = asyncio.Semaphore(SHOWING)
        self._opened: list[tuple[Connection, Opening]] = []
        self._tasks: dict[Connection, set[asyncio.Task[None]]] = {}
        # What `Delivery` runs.
        self.works: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (
            self._report,
            self._open,
            self._repeat,
            self._follow,
        )

    # What clients and publishers ask

    async def acknowledge(self, user: str, keys: Sequence[str]) -> Acknowledged:
        """Acknowledge messages for their user: none of them is appended again once this returns.

        Raises:
            BusUnavailable: some may be acknowledged, others not; it may be repeated.
        """
        unique = dict.fromkeys(keys)
        # Reported first: who answers at once acknowledges what isn't known to be written yet.
        written = self._hub.reports.take_of(user, unique)
        changes: list[Change] = [*written, *(Acknowledge(user, key) for key in unique)]
        try:
            outcomes = (await self._change(changes))[len(written) :]
        except BusUnavailable:
            self._hub.reports.put_back(written)
            raise
        known = dict(zip(unique, (each.result != "unknown" for each in outcomes), strict=True))
        return Acknowledged(
            [key for key in known if known[key]], [key for key in known if not known[key]]
        )

    async def pending(self, user: str, after: Place | None, limit: int, size: int) -> Pending:
        """A page of what waits for a user's acknowledgement. Raises BusUnavailable."""
        return await self._outbox.page(user, after, limit, size)

    async def find(self, service: str, id: str) -> Record | None:
        """The record of a message; None: it asked for nothing, or that was too long ago.

        Raises BusUnavailable."""
        return await self._outbox.find(key_of(service, id))

    async def withdraw(self, record: Record) -> Outcome:
        """Take a message back: it is never tried again. Raises BusUnavailable."""
        (outcome,) = await self._change([Withdraw(record.user, record.key)])
        return outcome

    async def dead_letters(
        self, service: str, after: str | None, limit: int, size: int
    ) -> DeadLetters:
        """A page of what was given up of a service. Raises BusUnavailable."""
        return await self._outbox.dead_letters(service, after, limit, size)

    async def revive(self, record: Record) -> Stored:
        """Deliver a dead letter again, at once, as often as a new message, for its whole ttl.

        Raises:
            NotDue: it is none, or no longer.
            MailboxFull, PendingFull: it has no room among those that wait.
            BusUnavailable: nothing is known to be done.
        """
        draft = _again(record, record.ttl)
        draft = msgspec.structs.replace(draft, terms=record.terms)
        (result,) = await self._bus.append([draft])
        if isinstance(result, MsgpushError):
            raise result
        self._observer.redelivered([draft])
        return result

    async def forget(self, record: Record) -> Outcome:
        """Throw a dead letter away, after its publisher was told of it. Raises BusUnavailable."""
        if record.owed and not await self._tell([record]):
            raise BusUnavailable("its publisher can't be told yet that it was given up")
        (outcome,) = await self._change([Forget(record.user, record.key)])
        return outcome

    async def replace(self, replaced: Sequence[tuple[str, str]]) -> None:
        """Withdraw messages, by users and keys, in whose place newer ones have come."""
        try:
            await self._change([Withdraw(user, key) for user, key in replaced])
        except BusUnavailable as error:
            # It isn't delivered again all the same, and is soon due to be withdrawn.
            log.warning("a message that was replaced can't be withdrawn yet: %s", error)

    # Changes

    async def _change(self, changes: Sequence[Change]) -> list[Outcome]:
        """Make changes, and see to what follows from them.

        Raises:
            BusUnavailable: one of them isn't known to be made.
        """
        results = await self._outbox.change(changes)
        outcomes = []
        failed: BusUnavailable | None = None
        for change, result in zip(changes, results, strict=True):
            if isinstance(result, BusUnavailable):
                failed = result
            else:
                outcomes.append(result)
                if result.result == "made" and result.record is not None:
                    self._note(change, result.record)
        if failed is not None:
            raise failed.as_value()
        return outcomes

    def _note(self, change: Change, record: Record) -> None:
        """Have counted and told what has become of a message."""
        match change:
            case Acknowledge():
                took = (record.ended_at or 0) - record.accepted_at
                self._observer.acknowledged(record.service, record.type, max(0, took) / 1000)
            case GiveUp():
                self._observer.died(record.service, record.type, change.reason)
            case Forget():
                self._observer.buried(record.service)
                return
            case Withdraw():
                pass
            case _:
                return
        self._endings.append(record)
        self._ended.set()

    # The tasks

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT)
            await self.report()

    async def report(self) -> None:
        """Tell the outbox what streams of their users have taken."""
        reports = self._hub.reports
        while len(reports):
            taken = reports.take(AT_ONCE)
            results = await self._outbox.change(taken)
            failed = [
                report
                for report, result in zip(taken, results, strict=True)
                if isinstance(result, BusUnavailable)
            ]
            if failed:
                reports.put_back(failed)
                return

    async def _open(self) -> None:
        while True:
            await asyncio.sleep(OPEN)
            await self.open()

    async def open(self) -> None:
        """Begin to show what is pending to the streams that have become live."""
        self._opened = [
            each for each in (*self._opened, *self._hub.take_opened()) if each[0].attached
        ]
        users: dict[str, bool] = {}
        asking, later = [], []
        for connection, opening in self._opened:
            own = _users_of(connection) & (opening.users or frozenset())
            if len(users.keys() | own) <= USERS or not users:
                users.update(dict.fromkeys(own, False))
                asking.append((connection, opening, own))
            else:
                later.append((connection, opening))
        if not users:
            return
        try:
            found = await self._outbox.waiting(list(users))
        except BusUnavailable as error:
            log.debug("what is pending can't be looked up yet: %s", error)
            return
        self._opened = later
        users = dict(zip(users, found, strict=True))
        for connection, opening, own in asking:
            for user in own:
                if users[user] and connection.attached:
                    self._show_soon(connection, opening, user)

    def _show_soon(self, connection: Connection, opening: Opening, user: str) -> None:
        task = asyncio.create_task(
            self._show(connection, opening, user), name=f"msgpush pending {connection.id}"
        )
        own = self._tasks.setdefault(connection, set())
        own.add(task)

        def done(task: asyncio.Task[None]) -> None:
            own.discard(task)
            if not own:
                self._tasks.pop(connection, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("what is pending can't be shown", exc_info=error)

        task.add_done_callback(done)

    def stop(self, connection: Connection) -> None:
        """Show a connection nothing more."""
        for task in self._tasks.pop(connection, ()):
            task.cancel()

    async def close(self) -> None:
        """Show nobody anything more, and report what was taken, if that is possible."""
        tasks = [task for own in self._tasks.values() for task in own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.report()

    async def _show(self, connection: Connection, opening: Opening, user: str) -> None:
        """Show a stream what is pending of a user, a page at a time, as its socket drains."""
        after: Place | None = None
        while connection.attached:
            try:
                # A page that can't be taken isn't kept: it is read again.
                async with self._showing:
                    page = await self._outbox.page(user, after, PAGE, CATCH_UP_CHUNK)
                    wakes = self._hub.show(connection, opening, page.records)
            except BusUnavailable as error:
                await asyncio.sleep(error.retry_after * _random.uniform(0.5, 1.5))
                continue
            await self._wake(connection, wakes or ())
            if wakes is None:
                if not await connection.sink.drained():
                    return
            elif page.next is None:
                return
            else:
                after = page.next
                await asyncio.sleep(0)

    async def _wake(self, connection: Connection, wakes: Sequence[Wake]) -> None:
        """Have attempts repeated that a stream of the user missed, while it is there."""
        while wakes and connection.attached:
            results = await self._outbox.change(wakes)
            pairs = zip(wakes, results, strict=True)
            wakes = [wake for wake, result in pairs if isinstance(result, BusUnavailable)]
            if wakes:
                await asyncio.sleep(_random.uniform(0.5, 1.5))

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(REPEAT * _random.uniform(0.5, 1))
            try:
                while await self.repeat():
                    pass
            except BusUnavailable as error:
                log.debug("what is due can't be looked up now: %s", error)
                await asyncio.sleep(error.retry_after)

    async def repeat(self) -> bool:
        """Do what is due; True: there may be more. Raises BusUnavailable."""
        now, due = await self._outbox.due(AT_ONCE)
        due.sort(key=_place)
        drafts: list[Draft] = []
        changes: list[Change] = []
        for record in due:
            match decide(record, now):
                case "send":
                    left = -(-(record.expires - now) // 1000)
                    drafts.append(_again(record, left))
                case "park":
                    changes.append(Park(record.user, record.key, record.attempt))
                case "give up":
                    give_up = GiveUp(record.user, record.key, record.attempt, "deliveries")
                    changes.append(give_up)
                case "expire":
                    changes.append(GiveUp(record.user, record.key, record.attempt, "expired"))
                case "withdraw":
                    changes.append(Withdraw(record.user, record.key))
                case "forget":
                    changes.append(Forget(record.user, record.key))
                case "tell":
                    self._endings.append(record)
                    self._ended.set()
        if drafts:
            results = await self._bus.append(drafts)
            pairs = list(zip(drafts, results, strict=True))
            self._observer.redelivered([draft for draft, each in pairs if isinstance(each, Stored)])
            changes += [
                Withdraw(draft.mark.user, draft.mark.key)
                for draft, each in pairs
                if isinstance(each, NotDue) and each.superseded and draft.mark is not None
            ]
        if changes:
            await self._change(changes)
        # Of dead letters that are too many some are given out at a time.
        return len(due) >= AT_ONCE or any(isinstance(each, Forget) for each in changes)

    async def _follow(self) -> None:
        while True:
            await self._ended.wait()
            self._ended.clear()
            while self._endings:
                await self.follow()

    async def follow(self) -> None:
        """Tell what has become of some messages.

        Word to a user's streams that is lost is made up for when they open again; receipts are owed
        until they are in the bus."""
        some = [self._endings.popleft() for _ in range(min(AT_ONCE, len(self._endings)))]
        await self._tell(some)

    async def _tell(self, records: Sequence[Record]) -> bool:
        """Give receipts, and word to the users' streams; False: a receipt is still owed."""
        owed = [(record, receipt) for record in records for receipt in record.owed]
        drafts = [_receipt(record, receipt, self._receipt_ttl) for record, receipt in owed]
        results = await self._bus.append([*drafts, *_word(records)])
        told: list[Change] = [
            Told(record.user, record.key, receipt)
            for (record, receipt), result in zip(owed, results, strict=False)
            if isinstance(result, Stored)
        ]
        if told:
            await self._outbox.change(told)
        return len(told) == len(owed)


def _users_of(connection: Connection) -> frozenset[str]:
    cohort = connection.cohort
    return frozenset() if cohort is None else cohort.subscription.acts_for


def _again(record: Record, ttl: int) -> Draft:
    """The next attempt to deliver a message, which lives for so many seconds."""
    body = delivered_again(record.body, record.attempt + 1, ttl)
    channels, mark = (USER + record.user,), next_mark(record)
    return Draft(record.id, "", channels, record.type, record.service, ttl, body, None, mark)


def _word(records: Iterable[Record]) -> list[Draft]:
    """Word to the users' streams of what they need to show no longer."""
    keys: dict[tuple[str, str], list[str]] = {}
    for record in records:
        # Once more, where only the receipt was missing: that does no harm.
        if record.state in ("acknowledged", "withdrawn"):
            keys.setdefault((record.user, record.state), []).append(record.key)
    return [
        _draft_word(user, _Ended(own[start : start + TOLD_TOGETHER], state))
        for (user, state), own in keys.items()
        for start in range(0, len(own), TOLD_TOGETHER)
    ]


def _draft_word(user: str, ended: _Ended) -> Draft:
    mark = Mark(kind="acknowledged", user=user)
    # A channel that no client can name, and that no release routes which doesn't know the mark.
    channels = (f"/acknowledged:{user}",)
    return Draft("", "", channels, "status", OWN_SERVICE, 60, _encode(ended), None, mark)


def _receipt(record: Record, receipt: Owed, ttl: int) -> Draft:
    """The receipt of what became of a message: the same, however often it is made."""
    at = format_ms(receipt.at)
    name = f"{record.key} {receipt.state} {receipt.at}".encode()
    digest = hashlib.blake2b(name, digest_size=16)
    id = f"receipt_{digest.hexdigest()}"
    type = "error" if receipt.state == "dead" else "status"
    channel = RECEIPTS + record.service
    body = {
        "id": id,
        "timestamp": at,
        "type": type,
        "service": OWN_SERVICE,
        "channels": [channel],
        "data": _ReceiptData(
            record.key, receipt.state, receipt.reason, record.user, receipt.deliveries, at
        ),
        "metadata": {"priority": "normal", "ttl": ttl, "retry_count": 0},
    }
    return Draft(id, at, (channel,), type, OWN_SERVICE, ttl, _encode(body), digest.digest())
