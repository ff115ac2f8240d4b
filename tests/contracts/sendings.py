"""What every bus promises of the messages that are to be pushed."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from msgpush.domain.errors import PendingFull
from msgpush.domain.marks import Push, Terms
from msgpush.domain.notification import LEASE, OVERHEAD, Sending, Try
from msgpush.domain.outbox import Acknowledge, Record, Withdraw, Written
from msgpush.domain.ports import Stored
from tests.contracts.bus import store
from tests.contracts.outbox import Limits, Opened
from tests.support.asking import ask, key
from tests.support.fakes import make
from tests.support.pushes import push

M1 = key("m1")


class SendingsContract:
    """Subclass it, and say how a bus is opened."""

    def open(self, limits: Limits = Limits()) -> AbstractAsyncContextManager[Opened]:  # noqa: B008 - frozen
        raise NotImplementedError

    async def test_a_message_that_asks_for_it_is_due_once_its_delay_is_over(self) -> None:
        async with self.open() as opened:
            title = {"title": "Import", "collapse": "c", "url": "/x"}
            draft = push("m1", push=title, priority="high", ttl=100)
            await store(opened.bus, draft, make("m2", "user:bob"), ask("m3"))
            now = opened.now()
            assert await due(opened) == []
            opened.advance(5.9)
            assert await due(opened) == []
            opened.advance(0.2)
            ((sending, record),) = await due(opened)
            assert (sending.key, sending.user, sending.service) == (M1, "bob", "tests")
            assert (sending.type, sending.body, sending.priority) == ("info", draft.body, 2)
            assert sending.push == Push("unacknowledged", "Import", None, "/x", None, "c")
            assert sending.terms == Terms()
            assert (sending.accepted_at, sending.expires) == (now, now + 100_000)
            assert sending.left is None
            assert record is not None
            assert (record.key, record.state, record.written_at) == (M1, "pending", None)

    async def test_one_that_wants_no_acknowledgement_is_due_at_once(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, push("m1", ack=None), push(None, ack=None))
            pairs = await due(opened)
            assert [(each.key, each.terms, record) for each, record in pairs] == [
                (M1, None, None),
                ("tests/made", None, None),
            ]

    async def test_what_became_of_it_is_told_beside_it(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, *(push(f"m{number}") for number in range(3)))
            await opened.bus.outbox.change(
                [
                    Written("bob", key("m0"), 1, age=500),
                    Acknowledge("bob", key("m1")),
                    Withdraw("bob", key("m2")),
                ]
            )
            opened.advance(6)
            told = {sending.key: record for sending, record in await due(opened)}
            first, second, third = (told[key(f"m{number}")] for number in range(3))
            assert first is not None
            assert (first.state, first.written_at) == ("pending", opened.now() - 6_500)
            assert second is not None
            assert second.state == "acknowledged"
            assert third is not None
            assert third.state == "withdrawn"

    async def test_one_that_is_replaced_says_so(self) -> None:
        async with self.open() as opened:
            terms = {"collapse": "c"}
            await store(opened.bus, push("m1", ack=terms), push("m2", ack=terms))
            opened.advance(6)
            told = {sending.key: record for sending, record in await due(opened)}
            older, newer = told[M1], told[key("m2")]
            assert older is not None
            assert newer is not None
            assert (older.superseded, newer.superseded) == (True, False)

    async def test_what_is_given_out_is_left_to_whoever_has_it_for_a_minute(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, *(push(f"m{number}", ack=None) for number in range(5)))
            assert [each.key for each, _ in await due(opened, 2)] == [key("m0"), M1]
            assert len(await due(opened)) == 3
            opened.advance(LEASE / 1000 - 0.1)
            assert await due(opened) == []
            opened.advance(0.2)
            assert len(await due(opened)) == 5

    async def test_what_is_looked_for_may_be_what_nobody_sees_to(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, push("m1", ack=None))
            assert (await opened.bus.sendings.due(256, 600_000))[1] == []
            opened.advance(599)
            assert (await opened.bus.sendings.due(256, 600_000))[1] == []
            opened.advance(2)
            assert len((await opened.bus.sendings.due(256, 600_000))[1]) == 1

    async def test_what_is_kept_is_looked_at_again_with_who_is_left(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, push("m1", ack=None))
            ((sending, _),) = await due(opened)
            left = {"d1": Try(1, opened.now() + 90_000), "d2": Try(2, opened.now() + 120_000)}
            kept = msgspec.structs.replace(sending, left=left, next=opened.now() + 90_000)
            assert await opened.bus.sendings.settle([kept]) == [True]
            opened.advance(89)
            assert await due(opened) == []
            opened.advance(2)
            ((again, _),) = await due(opened)
            assert again.left == left
            assert again.body == sending.body

    async def test_one_that_nobody_has_looked_at_may_be_put_off(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, push("m1", ack=None))
            ((sending, _),) = await due(opened)
            later = msgspec.structs.replace(sending, next=opened.now() + 30_000)
            assert await opened.bus.sendings.settle([later]) == [True]
            opened.advance(30)
            ((again, _),) = await due(opened)
            assert again.left is None

    async def test_who_comes_too_late_changes_nothing(self) -> None:
        async with self.open() as opened:
            await store(opened.bus, push("m1", ack=None))
            ((slow, _),) = await due(opened)
            opened.advance(LEASE / 1000 + 1)
            ((quick, _),) = await due(opened)
            assert await opened.bus.sendings.settle([over(slow)]) == [False]
            assert await opened.bus.sendings.settle([over(quick)]) == [True]
            assert await opened.bus.sendings.settle([over(quick)]) == [False]
            opened.advance(LEASE / 1000 + 1)
            assert await due(opened) == []

    async def test_the_same_message_again_is_pushed_once(self) -> None:
        async with self.open() as opened:
            for duplicate in (False, True):
                (stored,) = await opened.bus.append([push("m1", ack=None)])
                assert isinstance(stored, Stored)
                assert stored.duplicate is duplicate
            assert len(await due(opened)) == 1

    async def test_what_waits_counts_with_what_waits_for_acknowledgements(self) -> None:
        size = len(push("m1", ack=None).body) + OVERHEAD
        async with self.open(Limits(pending_bytes=4 * size * 3 + 40)) as opened:
            await store(opened.bus, *(push(f"m{number}", ack=None) for number in range(3)))
            for refused in (push("m4", ack=None), push("m4"), ask("m4")):
                (full,) = await opened.bus.append([refused])
                assert isinstance(full, PendingFull)
            other = push("m4", ack=None, service="others")
            await store(opened.bus, other)
            pairs = await due(opened)
            first = next(sending for sending, _ in pairs if sending.key == M1)
            await opened.bus.sendings.settle([over(first)])
            await store(opened.bus, push("m5", ack=None))
            opened.advance(LEASE / 1000 + 1)
            pairs = await due(opened)
            await opened.bus.sendings.settle([over(sending) for sending, _ in pairs])
            # Nothing is left of any of them.
            await store(opened.bus, *(push(f"n{number}", ack=None) for number in range(3)))

    async def test_one_takes_the_place_of_one_that_had_the_same_key(self) -> None:
        """Its id was forgotten meanwhile."""
        size = len(push("m1", ack=None).body) + OVERHEAD
        async with self.open(Limits(pending_bytes=4 * size * 2 + 40)) as opened:
            await store(opened.bus, push("m1", ack=None, ttl=7_000))
            self.forget_ids(opened)
            await store(opened.bus, push("m1", ack=None, ttl=7_000))
            assert len(await due(opened)) == 1
            await store(opened.bus, push("m2", ack=None))

    def forget_ids(self, opened: Opened) -> None:
        """Let the ids be forgotten that were accepted."""
        opened.advance(700)


async def due(opened: Opened, limit: int = 256) -> Sequence[tuple[Sending, Record | None]]:
    now, pairs = await opened.bus.sendings.due(limit)
    assert now == opened.now()
    return pairs


def over(sending: Sending) -> Sending:
    return msgspec.structs.replace(sending, left={})
