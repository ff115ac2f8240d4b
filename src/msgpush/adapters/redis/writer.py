"""Writes messages into the log: what waits is committed together, by one call of `append.lua`.

What the server has refused without doing it is sent again while there is time; what may have been
done is not, since a publisher knows whether its message has an id."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec

from msgpush.adapters.redis.batching import Batcher
from msgpush.adapters.redis.epochs import Epochs
from msgpush.adapters.redis.link import (
    HASH_TAG,
    TIMEOUT,
    WAIT_MS,
    Link,
    RedisCommand,
    Script,
    lua,
)
from msgpush.adapters.redis.log import (
    HEAD,
    LOG,
    EntryRef,
    header_line,
    keys_of,
    new_tag,
    position_of,
)
from msgpush.adapters.redis.mending import HALFWAY, Mender
from msgpush.adapters.redis.records import Room, ask_of, outbox_keys, push_of
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.control import CHANNEL
from msgpush.domain.errors import BusUnavailable, Conflict, NotDue, PendingFull, Rejection
from msgpush.domain.message import Draft
from msgpush.domain.ports import Stored
from msgpush.domain.position import Position

GROUP_MESSAGES = 256
GROUP_BYTES = 1024 * 1024
GROUP_CHANNELS = 1_000

log = logging.getLogger("msgpush.redis")

_body, _channels = attrgetter("body"), attrgetter("channels")
_pack = msgspec.msgpack.Encoder().encode
APPEND = lua("outbox") + lua("append")


class Writer:
    """Appends to the log.

    Args:
        log_length, history_length, wait_replicas: as `RedisBus`.
        room: for messages that ask for an acknowledgement.
        now_ms: the time, or 0 for Redis's own.
    """

    def __init__(
        self,
        target: RedisTarget,
        epochs: Epochs,
        mender: Mender,
        *,
        log_length: int,
        history_length: int,
        wait_replicas: int,
        room: Room,
        now_ms: Callable[[], int],
    ) -> None:
        self.link = Link(target, "msgpush-writer")
        self._pending_room = room
        self._epochs, self._mender = epochs, mender
        self._lengths = (log_length, history_length)
        self._wait_replicas = wait_replicas
        self._now_ms = now_ms
        self._script = Script(APPEND)
        self._together: Batcher[Draft, Stored | Rejection] = Batcher(
            self._commit_safely, GROUP_MESSAGES, _room, "the bus is closed"
        )
        self.append = self._together.all

    async def close(self) -> None:
        await self._together.close()
        await self.link.close()

    async def _commit_safely(self, group: Sequence[Draft]) -> list[Stored | Rejection]:
        try:
            return await self._commit(group)
        except BusUnavailable:
            raise
        except Exception:
            # Publishing must outlive a mistake.
            log.exception("a group of messages can't be stored")
            raise BusUnavailable("the messages can't be stored") from None

    async def _commit(self, group: Sequence[Draft]) -> list[Stored | Rejection]:
        """Store a group in one call; what another call left halfway is mended before."""
        tag, until = new_tag(), time.monotonic() + TIMEOUT
        keys, args = self._plan(group, tag)
        # Over the same connection, or it would wait for nothing.
        wait: list[RedisCommand] = (
            [("WAIT", self._wait_replicas, WAIT_MS)] if self._wait_replicas else []
        )
        send = partial(self.link.script_until, until, self._script, keys, args, *wait)
        answer, *confirmed = await send()
        while answer[0] == b"open":
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._mender.mend()
            except TimeoutError:
                raise BusUnavailable(HALFWAY) from None
            answer, *confirmed = await send()
        if answer[0] != b"ok":
            self._epochs.doubt = True
            raise BusUnavailable(
                "the log has begun anew, or has lost its end: this instance is finding out which"
            )
        self._epochs.length = answer[3]
        self._mender.tell_broken(keys[2 * -number] for number in answer[4::2] if number < 0)
        results = self._results(group, answer)
        if confirmed and confirmed[0] < self._wait_replicas:
            raise BusUnavailable(
                f"only {confirmed[0]} of {self._wait_replicas} replicas have confirmed the message"
            )
        for last in reversed(results):
            if isinstance(last, Stored) and not last.duplicate:
                self._epochs.chain.written(EntryRef(last.position, tag))
                break
        return results

    def _plan(self, group: Sequence[Draft], tag: bytes) -> tuple[list[str], list[bytes]]:
        """The script's keys and arguments for a group: each key once, by its number."""
        channels: dict[str, int] = {}
        ids: dict[str, int] = {}
        messages: list[object] = []
        stored: list[bytes] = []
        # Messages of a group are much alike: what those are planned as that are is made once.
        alike: dict[object, tuple[bytes, int, list[int], object]] = {}
        asks: list[list[Any]] = []
        pushes: list[tuple[int, str, list[Any]]] = []
        for place, draft in enumerate(group, 1):
            if draft.push is not None:
                name = f"{draft.service}:{draft.id}"
                pushes.append((place, name, push_of(draft, draft.push)))
            if draft.mark is not None and draft.mark.user:
                line, plan = self._plan_asking(draft, tag, channels, ids, asks)
                messages.append(plan)
                stored.append(line + draft.body)
                continue
            shape = (draft.channels, draft.ttl, draft.type, draft.service, draft.mark)
            if (known := alike.get(shape)) is None:
                ttl = draft.ttl * 1000
                mine = [channels.setdefault(each, len(channels) + 1) for each in draft.channels]
                anonymous = (ttl, 0, "", "", mine, "")
                known = alike[shape] = (header_line(tag, draft), ttl, mine, anonymous)
            line, ttl, mine, plan = known
            if draft.digest is not None:
                name = f"{draft.service}:{draft.id}"
                number = ids.setdefault(f"{HASH_TAG}:id:{name}", len(ids) + 1)
                plan = (ttl, number, draft.digest.hex(), draft.timestamp, mine, name)
            messages.append(plan)
            stored.append(line + draft.body)
        keys = [HEAD, LOG]
        for channel in channels:
            keys += keys_of(channel)
        keys += ids
        limits: object = 0
        if asks or pushes:
            more = outbox_keys(asks, [each[2] for each in pushes])
            keys += more
            limits = (len(more), *self._pending_room.limits)
        end = self._epochs.chain.known
        # All of it text: Redis's MessagePack knows no binary.
        seen = (end.position.ms, end.position.seq, end.tag.decode())
        head = (self._epochs.epoch, tag.decode(), *seen)
        # Commands, without which a full Redis would keep whoever fills it from being stopped.
        urgent = CHANNEL in channels and any(draft.channels == (CHANNEL,) for draft in group)
        waits = self._wait_replicas > 0
        times = (self._now_ms(), waits, urgent)
        all = _pack((*head, *self._lengths, *times, pushes, limits, messages))
        return keys, [all, *stored]

    def _plan_asking(
        self,
        draft: Draft,
        tag: bytes,
        channels: dict[str, int],
        ids: dict[str, int],
        asks: list[list[Any]],
    ) -> tuple[bytes, object]:
        """Plan a message that asks for an acknowledgement, or tells of one; its header first."""
        mark, number = draft.mark, 0
        assert mark is not None
        kept = draft.channels if mark.kind == "message" else ()
        mine = [channels.setdefault(each, len(channels) + 1) for each in kept]
        name = f"{draft.service}:{draft.id}"
        if draft.digest is not None:
            number = ids.setdefault(f"{HASH_TAG}:id:{name}", len(ids) + 1)
        digest = (draft.digest or b"").hex()
        plan = (draft.ttl * 1000, number, digest, draft.timestamp, mine, name)
        line = header_line(tag, draft)
        if not mark.key:
            return line, plan
        ask = ask_of(draft, mark)
        asks.append(ask)
        return line, (*plan, ask)

    def _results(self, group: Sequence[Draft], answer: list[Any]) -> list[Stored | Rejection]:
        """The results of a group, from the script's answer."""
        _, ms, seq, _, *known = answer
        if not known:
            numbers = range(seq, seq + len(group))
            return [
                Stored(Position(ms, number), draft.timestamp, False)
                for number, draft in zip(numbers, group, strict=True)
            ]
        told = dict(zip(known[::2], known[1::2], strict=True))
        results: list[Stored | Rejection] = []
        for number, draft in enumerate(group, 1):
            found = told.get(number)
            if found is None or found.startswith(b"C:"):
                replaces = None if found is None else found[2:].decode()
                results.append(Stored(Position(ms, seq), draft.timestamp, False, replaces))
                seq += 1
            else:
                results.append(self._refused(draft, found))
        return results

    def _refused(self, draft: Draft, told: bytes) -> Stored | Rejection:
        """What the script's word says of a message that it hasn't stored."""
        mark = draft.mark
        match told:
            case b"":
                return Conflict(draft.service, draft.id)
            case b"F:pending":
                return PendingFull()
            case b"F:mailbox" if mark is not None:
                return self._pending_room.mailbox_full(draft.service, mark.user)
            case b"F:due" | b"F:old" if mark is not None:
                return NotDue(mark.key, superseded=told == b"F:old")
        id, _, timestamp = told.partition(b" ")
        return Stored(position_of(id), timestamp.decode(), True)


def _room() -> Callable[[Sequence[Draft]], int]:
    left_bytes, left_channels = GROUP_BYTES, GROUP_CHANNELS

    def take(drafts: Sequence[Draft]) -> int:
        nonlocal left_bytes, left_channels
        while True:
            size = sum(map(len, map(_body, drafts)))
            channels = sum(map(len, map(_channels, drafts)))
            if size <= left_bytes and channels <= left_channels:
                left_bytes -= size
                left_channels -= channels
                return len(drafts)
            drafts = drafts[: len(drafts) // 2]

    return take
