"""Writes messages into the log: what waits is committed together, by one call of `append.lua`.

What the server has refused without doing it is sent again while there is time; what may have been
done is not, since a publisher knows whether its message has an id."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from msgpush.adapters.redis.batching import Batcher
from msgpush.adapters.redis.epochs import Epochs
from msgpush.adapters.redis.link import (
    HASH_TAG,
    TIMEOUT,
    Link,
    NotExecuted,
    RedisCommand,
    RetryDelay,
    Script,
    lua,
    no_answer,
    translated,
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
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.control import CHANNEL
from msgpush.domain.errors import BusUnavailable, Conflict
from msgpush.domain.message import Draft
from msgpush.domain.ports import Stored
from msgpush.domain.position import Position

GROUP_MESSAGES = 256
GROUP_BYTES = 1024 * 1024
GROUP_CHANNELS = 1_000
WAIT_MS = 1000

log = logging.getLogger("msgpush.redis")

_body, _channels = attrgetter("body"), attrgetter("channels")
_pack = msgspec.msgpack.Encoder().encode
APPEND = lua("append")


class Writer:
    """Appends to the log.

    Args:
        log_length, history_length, wait_replicas: as `RedisBus`.
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
        now_ms: Callable[[], int],
    ) -> None:
        self.link = Link(target, "msgpush-writer")
        self._target, self._epochs, self._mender = target, epochs, mender
        self._lengths = (log_length, history_length)
        self._wait_replicas = wait_replicas
        self._now_ms = now_ms
        self._script = Script(APPEND)
        self._together: Batcher[Draft, Stored | Conflict] = Batcher(
            self._commit_safely, GROUP_MESSAGES, _room, "the bus is closed"
        )
        self.append = self._together.all

    async def close(self) -> None:
        await self._together.close()
        await self.link.close()

    async def _commit_safely(self, group: Sequence[Draft]) -> list[Stored | Conflict]:
        try:
            return await self._commit(group)
        except BusUnavailable:
            raise
        except Exception:
            # Publishing must outlive a mistake.
            log.exception("a group of messages can't be stored")
            raise BusUnavailable("the messages can't be stored") from None

    async def _commit(self, group: Sequence[Draft]) -> list[Stored | Conflict]:
        """Store a group in one call; what another call left halfway is mended before."""
        tag, until = new_tag(), time.monotonic() + TIMEOUT
        keys, args = self._plan(group, tag)
        answer, *confirmed = await self._send_until(until, keys, args)
        while answer[0] == b"open":
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._mender.mend()
            except TimeoutError:
                raise BusUnavailable(HALFWAY) from None
            answer, *confirmed = await self._send_until(until, keys, args)
        if answer[0] != b"ok":
            self._epochs.doubt = True
            raise BusUnavailable(
                "the log has begun anew, or has lost its end: this instance is finding out which"
            )
        self._epochs.length = answer[3]
        self._mender.tell_broken(keys[2 * -number] for number in answer[4::2] if number < 0)
        results = _results(group, answer)
        if confirmed and confirmed[0] < self._wait_replicas:
            raise BusUnavailable(
                f"only {confirmed[0]} of {self._wait_replicas} replicas have confirmed the message"
            )
        for last in reversed(results):
            if isinstance(last, Stored) and not last.duplicate:
                self._epochs.chain.written(EntryRef(last.position, tag))
                break
        return results

    async def _send_until(self, until: float, keys: list[str], args: list[bytes]) -> list[Any]:
        """Call the script until it has been executed, or the time is up."""
        delay = RetryDelay()
        # Over the same connection, or it would wait for nothing.
        wait: list[RedisCommand] = (
            [("WAIT", self._wait_replicas, WAIT_MS)] if self._wait_replicas else []
        )
        refused: NotExecuted | None = None
        try:
            async with asyncio.timeout(until - time.monotonic()):
                while True:
                    try:
                        return await self.link.try_script(self._script, keys, args, *wait)
                    except NotExecuted as error:
                        refused = error
                    await delay.pause()
        except TimeoutError:
            with translated:
                raise refused or no_answer(self._target) from None

    def _plan(self, group: Sequence[Draft], tag: bytes) -> tuple[list[str], list[bytes]]:
        """The script's keys and arguments for a group: each key once, by its number."""
        channels: dict[str, int] = {}
        ids: dict[str, int] = {}
        messages: list[object] = []
        stored: list[bytes] = []
        # Messages of a group are much alike: what those are planned as that are is made once.
        alike: dict[object, tuple[bytes, int, list[int], object]] = {}
        for draft in group:
            shape = (draft.channels, draft.ttl, draft.type, draft.service)
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
        end = self._epochs.chain.known
        # All of it text: Redis's MessagePack knows no binary.
        seen = (end.position.ms, end.position.seq, end.tag.decode())
        head = (self._epochs.epoch, tag.decode(), *seen)
        # Commands, without which a full Redis would keep whoever fills it from being stopped.
        urgent = CHANNEL in channels and any(draft.channels == (CHANNEL,) for draft in group)
        waits = self._wait_replicas > 0
        all = _pack((*head, *self._lengths, self._now_ms(), waits, urgent, messages))
        return keys, [all, *stored]


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


def _results(group: Sequence[Draft], answer: list[Any]) -> list[Stored | Conflict]:
    """The results of a group, from the script's answer: those known before are repetitions."""
    _, ms, seq, _, *known = answer
    if not known:
        numbers = range(seq, seq + len(group))
        return [
            Stored(Position(ms, number), draft.timestamp, False)
            for number, draft in zip(numbers, group, strict=True)
        ]
    before = dict(zip(known[::2], known[1::2], strict=True))
    results: list[Stored | Conflict] = []
    for number, draft in enumerate(group, 1):
        found = before.get(number)
        if found is None:
            results.append(Stored(Position(ms, seq), draft.timestamp, False))
            seq += 1
        elif found:
            id, _, timestamp = found.partition(b" ")
            results.append(Stored(position_of(id), timestamp.decode(), True))
        else:
            results.append(Conflict(draft.service, draft.id))
    return results
