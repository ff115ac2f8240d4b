"""What a single process is to push, in its memory."""

from collections.abc import Sequence
from heapq import heappop, heappush

import msgspec

from msgpush.adapters.memory.outbox import MemoryOutbox
from msgpush.domain.errors import BusUnavailable, PendingFull
from msgpush.domain.message import Draft
from msgpush.domain.notification import LEASE, OVERHEAD, Sending
from msgpush.domain.outbox import Record


class MemorySendings:
    """Sendings in memory, gone at exit as the bus beside them.

    Args:
        outbox: whose room they share.
    """

    def __init__(self, outbox: MemoryOutbox) -> None:
        self._outbox = outbox
        self._sendings: dict[str, Sending] = {}
        # A heap with stale items: one counts only where `_when` says the same.
        self._due: list[tuple[int, str]] = []
        self._when: dict[str, int] = {}

    def refusal(self, draft: Draft) -> PendingFull | None:
        """The reason why a message that is to be pushed can't be stored now."""
        if draft.push is None:
            return None
        return self._outbox.no_room(draft.service, len(draft.body) + OVERHEAD)

    def accept(self, draft: Draft) -> None:
        """Keep a message that `refusal` has nothing against."""
        assert draft.push is not None
        mark, now = draft.mark, self._outbox.now()
        user, push, look = draft.push
        sending = Sending(
            key=f"{draft.service}/{draft.id}",
            user=user,
            service=draft.service,
            type=draft.type,
            body=draft.body,
            push=push,
            terms=draft.terms,
            priority=draft.priority,
            accepted_at=now,
            expires=now + draft.ttl * 1000,
            next=now + look,
        )
        assert mark is None or not mark.key or mark.key == sending.key
        self._drop(sending.key)
        self._sendings[sending.key] = sending
        self._outbox.reserve(sending.service, sending.size)
        self._look_at(sending.key, sending.next)

    async def due(
        self, limit: int, late: int = 0
    ) -> tuple[int, list[tuple[Sending, Record | None]]]:
        now = self._outbox.now()
        found: list[tuple[Sending, Record | None]] = []
        while self._due and self._due[0][0] <= now - late and len(found) < limit:
            when, key = heappop(self._due)
            if self._when.get(key) != when:
                continue
            turn = now + LEASE
            self._look_at(key, turn)
            sending = msgspec.structs.replace(self._sendings[key], turn=turn)
            found.append((sending, await self._outbox.find(key)))
        return now, found

    async def settle(self, sendings: Sequence[Sending]) -> list[bool | BusUnavailable]:
        return [self._settle(each) for each in sendings]

    def _settle(self, sending: Sending) -> bool:
        if self._when.get(sending.key) != sending.turn:
            return False
        if sending.over:
            self._drop(sending.key)
        else:
            self._sendings[sending.key] = sending
            self._look_at(sending.key, sending.next)
        return True

    def _drop(self, key: str) -> None:
        self._when.pop(key, None)
        known = self._sendings.pop(key, None)
        if known is not None:
            self._outbox.reserve(known.service, -known.size)

    def _look_at(self, key: str, when: int) -> None:
        self._when[key] = when
        heappush(self._due, (when, key))
        if len(self._due) > 1_000 + 2 * len(self._when):
            self._due = sorted((when, key) for key, when in self._when.items())
