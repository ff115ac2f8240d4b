"""What is to be pushed, in Redis: `append.lua` puts it there, together with the message."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from msgpush.adapters.redis.batching import Batcher
from msgpush.adapters.redis.link import TIMEOUT, Link, RedisCommand, Script, SharedLink, lua
from msgpush.adapters.redis.records import (
    FIELDS,
    OUTBOX,
    PUSHES,
    Pushed,
    mailbox_key,
    read_record,
    record_key,
    redo,
    sending_key,
)
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.marks import Push
from msgpush.domain.notification import LEASE, Sending, Try
from msgpush.domain.outbox import AT_ONCE, Record

REDONE_AT_MOST = 8  # changes that were stopped halfway, before one of ours
TAKE, SETTLE = lua("pushes"), lua("outbox") + lua("sendings")

_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_decode_said = msgspec.json.Decoder(Pushed).decode
_decode_left = msgspec.json.Decoder(dict[str, Try] | None).decode


class RedisSendings:
    """Sendings in Redis.

    Args:
        now_ms: the time, or 0 for Redis's own.
    """

    def __init__(self, target: RedisTarget, *, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._link = Link(target, "msgpush-pushes")
        self._reader = SharedLink(target, "msgpush-pushing")
        self._take, self._settle = Script(TAKE), Script(SETTLE)
        self._together: Batcher[Sending, bool] = Batcher(
            self._settle_all, AT_ONCE, ended="nothing is pushed any more"
        )
        self.settle = self._together.all

    async def close(self) -> None:
        """Push nothing more."""
        await self._together.close()
        await self._link.close()
        await self._reader.close()

    async def due(
        self, limit: int, late: int = 0
    ) -> tuple[int, list[tuple[Sending, Record | None]]]:
        args = [self._now_ms(), limit, LEASE, late]
        found, *named = await self._reader.script(self._take, [PUSHES], args)
        now, keys = int(found), [each.decode() for each in named]
        if not keys:
            return now, []
        sendings: list[RedisCommand] = [
            ("HMGET", sending_key(key), "at", "x", "d", "l", "m") for key in keys
        ]
        records: list[RedisCommand] = [("HMGET", record_key(key), *FIELDS) for key in keys]
        replies = await self._reader.calls([*sendings, *records])
        pairs: list[tuple[Sending, Record | None]] = []
        gone, over = [], []
        for key, fields, of_record in zip(
            keys, replies[: len(keys)], replies[len(keys) :], strict=True
        ):
            try:
                pairs.append((_read(key, fields, now + LEASE), read_record(key, of_record)))
            except (msgspec.MsgspecError, ValueError, LookupError, TypeError):
                # Of a release to come, which sees to it, or touched by somebody.
                if not any(fields):
                    gone.append(key)
                elif _end(fields) <= now:
                    over.append(_nothing_left(key, now + LEASE))
        if gone:
            await self._reader.call("ZREM", PUSHES, *gone)
        if over:
            await self.settle(over)
        await self._mark_superseded([record for _, record in pairs if record is not None])
        return now, pairs

    async def _mark_superseded(self, records: Sequence[Record]) -> None:
        asking = [each for each in records if each.terms.collapse and each.state == "pending"]
        if asking:
            found = await self._reader.calls(
                [("HEXISTS", mailbox_key(each.user), f"r:{each.key}") for each in asking]
            )
            for record, superseded in zip(asking, found, strict=True):
                record.superseded = bool(superseded)

    async def _settle_all(self, sendings: Sequence[Sending]) -> list[bool]:
        planned = [_planned(each) for each in sendings]
        keys = [OUTBOX, PUSHES, *dict.fromkeys(name for name, *_ in planned)]
        args = [_pack((self._now_ms(), planned))]
        until = time.monotonic() + TIMEOUT
        for _ in range(REDONE_AT_MOST):
            (answer,) = await self._link.script_until(until, self._settle, keys, args)
            if answer:
                return [bool(each) for each in answer]
            await redo(self._reader)
        raise BusUnavailable("a change of the outbox that was stopped halfway can't be completed")


def _planned(sending: Sending) -> tuple[Any, ...]:
    left = "" if sending.over else _encode(sending.left).decode()
    name = sending_key(sending.key)
    return (name, sending.key, sending.service, sending.turn, left, sending.next)


def _read(key: str, fields: Sequence[bytes | None], turn: int) -> Sending:
    """A sending from its fields. Raises ValueError where it isn't whole, or can't be read."""
    accepted, expires, said, left, body = fields
    if accepted is None or expires is None or said is None or body is None:
        raise ValueError
    known = _decode_said(said)
    return Sending(
        key=key,
        user=known.user,
        service=known.service,
        type=known.type,
        body=body,
        push=known.push,
        terms=known.terms,
        priority=known.priority,
        accepted_at=int(accepted),
        expires=int(expires),
        next=turn,
        left=_decode_left(left) if left else None,
        turn=turn,
    )


def _end(fields: Sequence[bytes | None]) -> int:
    """When the time of a sending is over that can't be read."""
    expires = fields[1] or b"0"
    return int(expires) if expires.isdigit() else 0


def _nothing_left(key: str, turn: int) -> Sending:
    """A sending that can't be read, as it is forgotten."""
    service = key.partition("/")[0]
    return Sending(key, "", service, "", b"", Push(), None, 0, 0, 0, turn, {}, turn)
