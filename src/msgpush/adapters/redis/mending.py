"""Calls that Redis stopped halfway, and how they are completed.

Redis lets nothing in between a script's commands, but when it refuses one of them, for want of a
right, say, it keeps what the script wrote before. So `append.lua` says in the head that a call is
under way, from before its first write to after its last. Whoever finds that word, or a log that
ends after its head, completes the call: what is in the log gets into its histories, its ids are
remembered, and the head moves to the log's end. Forward and not back, since readers may have had it
already. `mend.lua` looks before each step whether it was done, so that mending may be stopped, too.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from msgpush.adapters.redis.link import HASH_TAG, Link, Script, lua
from msgpush.adapters.redis.log import (
    HEAD,
    LOG,
    Decoder,
    Head,
    StoredMessage,
    Unfinished,
    id_of,
    keys_of,
    position_of,
)
from msgpush.adapters.redis.records import outbox_keys, redo
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.position import Position

MENDED_AT_MOST = 100  # calls that were stopped halfway, in one go
READ_AT_ONCE = 256  # as many as a call has at most
BROKEN_TOLD = 100
HALFWAY = "a message that was stored halfway can't be completed now"

log = logging.getLogger("msgpush.redis")

_pack = msgspec.msgpack.Encoder().encode
MEND = lua("outbox") + lua("mend")


class Mender:
    """Completes calls that were stopped halfway.

    Args:
        link: what the log is asked over.
        now_ms: the time, or 0 for Redis's own.
    """

    def __init__(self, link: Link, decoder: Decoder, now_ms: Callable[[], int]) -> None:
        self._link, self._decoder, self._now_ms = link, decoder, now_ms
        self._script = Script(MEND)
        self._broken: set[str] = set()

    async def mend(self) -> None:
        """Complete all that there are.

        Raises:
            BusUnavailable: what is missing can't be written now either.
        """
        await redo(self._link)
        for _ in range(MENDED_AT_MOST):
            # The newest first: what comes in between has moved the head when that is read.
            newest = await self._link.call("XREVRANGE", LOG, "+", "-", "COUNT", 1)
            head = await Head.read(self._link)
            ahead = bool(newest) and position_of(newest[0][0]) > head.end.position
            if not head.epoch or not (ahead or head.unfinished):
                return
            end, call = head.end.position, head.unfinished
            first = Position(end.ms, end.seq + 1)
            if call is not None:
                first = min(call.first, first)
            items = await self._link.call("XRANGE", LOG, id_of(first), "+", "COUNT", READ_AT_ONCE)
            left = [
                each
                for each in self._decoder.stored(items)
                if each.ref.position > end or (call is not None and each.ref.tag == call.tag)
            ]
            if not left and call is None:
                return  # somebody else has written there
            await self._complete(end, call, left)
        raise BusUnavailable(HALFWAY)

    async def _complete(
        self, end: Position, call: Unfinished | None, messages: Sequence[StoredMessage]
    ) -> None:
        """Do what is missing of a call that was stopped halfway."""
        channels: dict[str, int] = {}
        ids: dict[str, int] = {}
        plan = []
        asks: list[list[Any]] = []
        pushes: list[tuple[str, list[Any]]] = []
        for ref, ttl, service, names, id, mark in messages:
            accepted = None if call is None else call.accepted.get(f"{service}:{id}")
            number, value = 0, ""
            if accepted is not None:
                number = ids.setdefault(f"{HASH_TAG}:id:{service}:{id}", len(ids) + 1)
                value = f"{accepted[0]}{id_of(ref.position)} {accepted[1]}"
            mine = [channels.setdefault(channel, len(channels) + 1) for channel in names]
            place = (id_of(ref.position), ref.position.ms, ref.position.seq, ref.tag.decode())
            ask = None if call is None or mark is None else call.asks.get((mark.key, mark.attempt))
            if ask is not None:
                asks.append(ask)
                value += " a" if value else ""
            push = None if call is None else call.pushes.get(f"{service}:{id}")
            if push is not None:
                pushes.append((place[0], push))
            planned = (*place, ttl * 1000, number, value, mine)
            plan.append(planned if ask is None else (*planned, ask))
        more = outbox_keys(asks, [plan for _, plan in pushes])
        histories = (key for channel in channels for key in keys_of(channel))
        keys = [HEAD, LOG, *histories, *ids, *more]
        seen = (end.ms, end.seq, "" if call is None else call.name)
        args = [_pack((*seen, self._now_ms(), len(more), pushes, plan))]
        answer = await self._link.script(self._script, keys, args)
        if not answer:
            return  # another instance was first
        if answer[0]:
            log.warning(
                "Redis had stopped a call halfway; it has been completed, with %d messages",
                answer[0],
            )
        self.tell_broken(keys_of([*channels][number - 1])[0] for number in answer[1:])

    def tell_broken(self, histories: Iterable[str]) -> None:
        """Log, once each, the histories that can't be written."""
        for history in histories:
            if history not in self._broken and len(self._broken) < BROKEN_TOLD:
                self._broken.add(history)
                log.error("a history can't be written, since its key is no stream: %s", history)
