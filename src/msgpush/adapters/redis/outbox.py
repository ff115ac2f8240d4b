"""The outbox in Redis: what waits for an acknowledgement, the same for all instances.

Each change is made by a script that looks first; many are sent together. What was stopped halfway
is done once more before anything else (`redo`). Nothing is searched for: a user's messages, what is
due and a service's dead letters each have a set of their own, and of a user that has nothing
pending there is no key."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from msgpush.adapters.redis.batching import Batcher
from msgpush.adapters.redis.link import (
    TIMEOUT,
    WAIT_MS,
    Link,
    RedisCommand,
    Script,
    SharedLink,
    lua,
)
from msgpush.adapters.redis.records import (
    DEAD,
    DUE,
    FIELDS,
    OUTBOX,
    dead_key,
    id_key,
    mailbox_key,
    owed_text,
    pending_key,
    read_owed,
    read_record,
    record_key,
    redo,
)
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.marks import Terms
from msgpush.domain.outbox import (
    AT_ONCE,
    LEASE,
    UNKNOWN,
    Acknowledge,
    Change,
    DeadLetters,
    Forget,
    GiveUp,
    Outcome,
    Park,
    Pending,
    Place,
    Reason,
    Record,
    Result,
    State,
    Told,
    Wake,
    Withdraw,
    Written,
    jitter,
)
from msgpush.domain.position import ZERO

READ_AT_ONCE = 16  # records whose bodies are read together
REDONE_AT_MOST = 8  # changes that were stopped halfway, before one of ours
SAME = 64  # messages that commonly have the same place, at most
RANK, WITHIN = 2**51, 512  # see `outbox.lua`

SETTLE = lua("outbox") + lua("settle")
TAKE_DUE = lua("due")

log = logging.getLogger("msgpush.redis")

_pack = msgspec.msgpack.Encoder().encode
_KINDS: dict[type[Change], str] = {
    Acknowledge: "acknowledge",
    Withdraw: "withdraw",
    Written: "written",
    Wake: "wake",
    Park: "park",
    GiveUp: "giveup",
    Told: "told",
    Forget: "forget",
}


class RedisOutbox:
    """Records in Redis.

    Args:
        dead_letter_size: bytes of all dead letters; beyond it the oldest go.
        dead_letter_ttl: seconds for which a dead letter is kept.
        wait_replicas: replicas that must have a change before it counts as made.
        now_ms: the time, or 0 for Redis's own.
        jitter: a factor for the time until the next delivery.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        dead_letter_size: int,
        dead_letter_ttl: int,
        wait_replicas: int,
        now_ms: Callable[[], int],
        jitter: Callable[[], float] = jitter,
    ) -> None:
        self.pending = 0
        self._told = False  # that a record can't be read
        self._dead_letter_size, self._dead_letter_ttl = dead_letter_size, dead_letter_ttl * 1000
        self._wait_replicas = wait_replicas
        self._now_ms, self._jitter = now_ms, jitter
        self._wait: list[RedisCommand] = [("WAIT", wait_replicas, WAIT_MS)] if wait_replicas else []
        self._link = Link(target, "msgpush-outbox")
        self._reader = SharedLink(target, "msgpush-pending")
        self._settle, self._take_due = Script(SETTLE), Script(TAKE_DUE)
        self._together: Batcher[Change, Outcome] = Batcher(
            self._change_safely, AT_ONCE, ended="the outbox is closed"
        )
        self.change = self._together.all

    async def close(self) -> None:
        """Change nothing more."""
        await self._together.close()
        await self._link.close()
        await self._reader.close()

    # Changes

    async def _change_safely(self, changes: Sequence[Change]) -> list[Outcome]:
        try:
            return await self._change(changes)
        except BusUnavailable:
            raise
        except Exception:
            # Acknowledging must outlive a mistake.
            log.exception("the outbox can't be changed")
            raise BusUnavailable("the outbox can't be changed") from None

    async def _change(self, changes: Sequence[Change]) -> list[Outcome]:
        """Make changes in one call; what another call left halfway is done first."""
        planned = [self._planned(each) for each in changes]
        names = dict.fromkeys(name for each in planned for name in each[1:6])
        waits = self._wait_replicas > 0
        args = [_pack((self._now_ms(), self._dead_letter_ttl, waits, planned))]
        until = time.monotonic() + TIMEOUT
        for _ in range(REDONE_AT_MOST):
            answer, *confirmed = await self._link.script_until(
                until, self._settle, [OUTBOX, DUE, DEAD, *names], args, *self._wait
            )
            if answer:
                break
            await redo(self._reader)
        else:
            raise BusUnavailable(
                "a change of the outbox that was stopped halfway can't be completed"
            )
        if confirmed and confirmed[0] < self._wait_replicas:
            raise BusUnavailable(
                f"only {confirmed[0]} of {self._wait_replicas} replicas have confirmed the change"
            )
        return [_outcome(change, told) for change, told in zip(changes, answer, strict=True)]

    def _planned(self, change: Change) -> tuple[Any, ...]:
        """A change as the script wants it."""
        user, key = change.user, change.key
        service = key.partition("/")[0]
        return (
            _KINDS[type(change)],
            record_key(key),
            pending_key(user),
            mailbox_key(user),
            dead_key(service),
            id_key(key),
            key,
            user,
            service,
            change.attempt if isinstance(change, Written | Park | GiveUp) else 0,
            change.age if isinstance(change, Written) else 0,
            _detail(change),
            self._jitter() if isinstance(change, Written) else 1.0,
        )

    # Time

    async def due(self, limit: int) -> tuple[int, list[Record]]:
        args = [self._now_ms(), limit, LEASE, self._dead_letter_size]
        now, number, surplus, due, *named = await self._link.script(
            self._take_due, [OUTBOX, DUE, DEAD], args
        )
        self.pending = int(number)
        keys = [key.decode() for key in named]
        found = await self._records(keys[:due])
        missing = [key for key, record in zip(keys, found, strict=False) if record is None]
        await self._drop_missing(DUE, missing)
        records = [each for each in found if each is not None]
        await self._mark_superseded(records)
        left = int(surplus)
        for record in await self._records(keys[due:]):
            if left <= 0 or record is None:
                break
            left -= record.size
            records.append(record)
        return int(now), records

    async def _mark_superseded(self, records: Sequence[Record]) -> None:
        """Find out which of some records were replaced, though they haven't been withdrawn yet."""
        asking = [each for each in records if each.terms.collapse and each.state == "pending"]
        if asking:
            found = await self._reader.calls(
                [("HEXISTS", mailbox_key(each.user), f"r:{each.key}") for each in asking]
            )
            for record, superseded in zip(asking, found, strict=True):
                record.superseded = bool(superseded)

    async def _drop_missing(self, place: str, keys: Sequence[str]) -> None:
        """Take those out of a set whose records somebody has removed: nothing can be done about
        them. What is only not understood here is left to a release that does.
        """
        if keys:
            there = await self._reader.calls([("EXISTS", record_key(key)) for key in keys])
            gone = [key for key, found in zip(keys, there, strict=True) if not found]
            if gone:
                await self._reader.call("ZREM", place, *gone)

    # Reading

    async def find(self, key: str) -> Record | None:
        (record,) = await self._records([key])
        return record

    async def _records(self, keys: Sequence[str]) -> list[Record | None]:
        if not keys:
            return []
        commands: list[RedisCommand] = [("HMGET", record_key(key), *FIELDS) for key in keys]
        replies = await self._reader.calls(commands)
        return [self._read_one(key, fields) for key, fields in zip(keys, replies, strict=True)]

    def _read_one(self, key: str, fields: Sequence[bytes | None]) -> Record | None:
        try:
            return read_record(key, fields)
        except (ValueError, LookupError):
            # Of a release to come, or touched by somebody: it must not stop the others.
            if not self._told:
                self._told = True
                log.warning("a record of the outbox can't be read, and is passed over: %.200s", key)
            return None

    async def waiting(self, users: Sequence[str]) -> list[bool]:
        replies = await self._reader.calls([("EXISTS", pending_key(user)) for user in users])
        return [bool(each) for each in replies]

    async def page(self, user: str, after: Place | None, limit: int, size: int) -> Pending:
        name = pending_key(user)
        begin = None if after is None else (_score(after), after.key)
        number, keys = await self._keys_after(name, begin, limit)
        records, more = await self._read(keys, limit, size, name, "pending")
        last = Place(*records[-1].place, records[-1].key) if more and records else None
        return Pending(records, number, last)

    async def dead_letters(
        self, service: str, after: str | None, limit: int, size: int
    ) -> DeadLetters:
        name, begin = dead_key(service), None
        if after is not None:
            ended_at, _, key = after.partition("-")
            begin = int(ended_at), key
        _, keys = await self._keys_after(name, begin, limit)
        records, more = await self._read(keys, limit, size, name, "dead")
        last = records[-1] if more and records else None
        return DeadLetters(records, None if last is None else f"{last.ended_at}-{last.key}")

    async def _keys_after(
        self, name: str, after: tuple[int, str] | None, limit: int
    ) -> tuple[int, list[str]]:
        """How many a sorted set has, and its keys after a place: more than `limit`, or all."""
        begin, most = "-inf" if after is None else str(after[0]), limit + SAME
        while True:
            number, found = await self._reader.calls([("ZCARD", name), _range(name, begin, most)])
            places = [
                (int(float(score)), key.decode())
                for key, score in zip(found[::2], found[1::2], strict=True)
            ]
            keys = [each[1] for each in places if after is None or each > after]
            if len(keys) > limit or len(places) < most:
                return number, keys
            most *= 4  # so many stand at the very place where it begins

    async def _read(
        self, keys: Sequence[str], limit: int, size: int, place: str, state: State
    ) -> tuple[list[Record], bool]:
        """The records of the first of some keys, and whether there are more."""
        records: list[Record] = []
        for start in range(0, len(keys), READ_AT_ONCE):
            some = keys[start : start + READ_AT_ONCE]
            found = await self._records(some)
            missing = [key for key, record in zip(some, found, strict=True) if record is None]
            await self._drop_missing(place, missing)
            for record in found:
                if record is None or record.state != state:
                    continue  # it has changed since the key was read
                if len(records) >= limit or size <= 0:
                    return records, True
                records.append(record)
                size -= record.size
        # Where some have gone meanwhile, there may be more behind those keys that were asked for.
        return records, len(keys) > limit and bool(records)


def _detail(change: Change) -> str:
    """What a change is about, besides its message."""
    if isinstance(change, GiveUp):
        return change.reason
    return owed_text(change.receipt) if isinstance(change, Told) else ""


def _range(name: str, begin: str, most: int) -> RedisCommand:
    return ("ZRANGEBYSCORE", name, begin, "+inf", "WITHSCORES", "LIMIT", 0, most)


def _score(place: Place) -> int:
    """A place as the sorted set has it: see `outbox.lua`."""
    ms, seq = place.position.ms, min(place.position.seq, WITHIN - 1)
    return (3 + place.rank) * RANK + ms * WITHIN + seq


def _outcome(change: Change, told: Sequence[Any]) -> Outcome:
    """What the script says became of a change."""
    result, state, accepted_at, ended_at, deliveries, reason, owed = told
    if result == b"unknown":
        return UNKNOWN
    service, _, id = change.key.partition("/")
    record = Record(
        key=change.key,
        user=change.user,
        service=service,
        id=id,
        type="",
        body=b"",
        terms=Terms(),
        accepted=ZERO,
        accepted_at=int(accepted_at),
        expires=0,
        ttl=0,
        state=msgspec.convert(state.decode().replace("gone", "dead"), State),
        deliveries=deliveries,
        ended_at=int(ended_at) or None,
        reason=msgspec.convert(reason.decode() or None, Reason | None),
        owed=read_owed(owed.decode()),
    )
    return Outcome(msgspec.convert(result.decode(), Result), record)
