"""What every store of credentials promises. Its own test module derives from this and says how to
open one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from msgpush.domain.credentials import MOST, Revocation, Ticket
from msgpush.domain.ports import Credentials

LIFETIME = 1_000.0
NAMES = ["a", "kb:ü", "user:*x"]


class Opened(NamedTuple):
    """The same credentials at one instance or more, the time by their clock, and a way to let it
    pass.
    """

    instances: list[Credentials]
    now: Callable[[], float]
    wait: Callable[[float], Awaitable[None]]


async def claim(
    credentials: Credentials, digest: str, connection: str, before: str, until: float
) -> bool:
    return await credentials.claim(digest, "bob", connection=connection, before=before, until=until)


class CredentialsContract:
    """Subclass it, and say how credentials are opened."""

    def open(self) -> AbstractAsyncContextManager[Opened]:
        raise NotImplementedError

    async def test_a_ticket_is_found_as_it_was_made_at_every_instance(self) -> None:
        async with self.open() as opened:
            made = Ticket("bob", ("a", "kb:ü"), opened.now() + 100.5, 12.5, "t1")
            await opened.instances[0].add_ticket("d1", made, 60)
            anonymous = Ticket(None, ("a",), opened.now() + 100, None, None)
            await opened.instances[0].add_ticket("d2", anonymous, 60)
            acting = Ticket("bob", ("a", "user:bob"), opened.now() + 100, None, None, True)
            await opened.instances[0].add_ticket("d4", acting, 60)
            for credentials in opened.instances:
                assert await credentials.ticket("d1") == made
                assert await credentials.ticket("d2") == anonymous
                assert await credentials.ticket("d4") == acting
                assert await credentials.ticket("d3") is None

    async def test_an_unused_ticket_is_void_after_its_time(self) -> None:
        async with self.open() as opened:
            first, *_, last = [*opened.instances, *opened.instances]
            await first.add_ticket("d", Ticket("bob", ("a",), opened.now() + 100, None, None), 0.3)
            assert await last.ticket("d") is not None
            await opened.wait(0.31)
            assert await last.ticket("d") is None
            assert await last.holder("d") is None
            assert not await claim(last, "d", "c1", "", opened.now() + 100)

    async def test_a_used_ticket_lives_until_its_tokens_end_and_no_longer(self) -> None:
        async with self.open() as opened:
            first, *_, last = [*opened.instances, *opened.instances]
            await first.add_ticket("d", Ticket("bob", ("a",), opened.now() + 0.6, None, None), 0.2)
            end = opened.now() + 0.6
            assert await last.holder("d") == ""
            assert await claim(last, "d", "c1", "", end)
            await opened.wait(0.3)
            assert await first.ticket("d") is not None
            assert await first.holder("d") == "c1"
            assert await claim(first, "d", "c2", "c1", end)
            await opened.wait(0.35)
            assert await last.ticket("d") is None
            assert not await claim(last, "d", "c3", "c2", end)

    async def test_of_many_who_claim_a_ticket_at_once_one_gets_it(self) -> None:
        async with self.open() as opened:
            await opened.instances[0].add_ticket(
                "d", Ticket("bob", ("a",), opened.now() + 100, None, None), 60
            )
            end = opened.now() + 100
            instances = opened.instances
            for before in ("", None):
                known = await instances[0].holder("d") if before is None else before
                assert known is not None
                names = [f"{known}c{number}" for number in range(20)]
                claims = [
                    claim(instances[n % len(instances)], "d", name, known, end)
                    for n, name in enumerate(names)
                ]
                won = [
                    name
                    for name, got in zip(names, await asyncio.gather(*claims), strict=True)
                    if got
                ]
                assert len(won) == 1
                assert await instances[-1].holder("d") == won[0]

    async def test_of_a_subject_s_tickets_the_oldest_go_that_are_too_many(self) -> None:
        async with self.open() as opened:
            first, end = opened.instances[0], opened.now() + 100
            await first.add_ticket("other", Ticket("alice", ("a",), end, None, None), 50)
            for number in range(MOST + 3):
                await first.add_ticket(f"d{number}", Ticket("bob", ("a",), end, None, None), 60)
                if number == 0:
                    assert await claim(first, "d0", "c", "", end)
            found = [await opened.instances[-1].ticket(f"d{number}") for number in range(99)]
            assert sum(each is None for each in found) == 3
            assert await first.ticket(f"d{MOST + 2}") is not None
            assert await first.ticket("other") is not None

    async def test_a_new_ticket_is_good_however_many_used_ones_its_subject_has(self) -> None:
        async with self.open() as opened:
            first, end = opened.instances[0], opened.now() + 1_000
            for start in range(0, MOST, 500):
                digests = [f"d{number:05}" for number in range(start, start + 500)]
                made = Ticket("bob", ("a",), end, None, None)
                await asyncio.gather(*(first.add_ticket(digest, made, 60) for digest in digests))
                assert all(
                    await asyncio.gather(
                        *(claim(first, digest, "c", "", end) for digest in digests)
                    )
                )
            for digest in ("new", "newer"):
                await first.add_ticket(digest, Ticket("bob", ("a",), end, None, None), 60)
            for digest in ("new", "newer", f"d{MOST - 1:05}"):
                assert await opened.instances[-1].ticket(digest) is not None, digest

    async def test_tickets_do_not_touch_one_another(self) -> None:
        async with self.open() as opened:
            first = opened.instances[0]
            for digest in ("d1", "d2"):
                await first.add_ticket(
                    digest, Ticket(digest, ("a",), opened.now() + 100, None, None), 60
                )
            assert await claim(first, "d1", "c1", "", opened.now() + 100)
            assert await claim(first, "d2", "c2", "", opened.now() + 100)

    async def test_revocations_are_known_to_every_instance(self) -> None:
        async with self.open() as opened:
            made = [
                Revocation("subject", "bob", opened.now()),
                Revocation("subject", "a:b *ü\n", opened.now()),
                Revocation("jti", "bob", opened.now()),
                Revocation("issued_before", "", opened.now() - 5),
            ]
            for revocation in made:
                await opened.instances[0].revoke(revocation)
            for credentials in opened.instances:
                found = {
                    (each.kind, each.value): each.at for each in await credentials.revocations()
                }
                assert found.keys() == {(each.kind, each.value) for each in made}
                for each in made:
                    # Never earlier, or what was issued in between would be accepted again.
                    assert 0 <= found[each.kind, each.value] - each.at < 0.002

    async def test_an_earlier_revocation_does_not_replace_a_later_one(self) -> None:
        async with self.open() as opened:
            now = opened.now()
            for at in (now - 1, now, now - 2):
                await opened.instances[0].revoke(Revocation("subject", "bob", at))
            (found,) = await opened.instances[-1].revocations()
            assert 0 <= found.at - now < 0.002

    async def test_revocations_that_no_token_can_outlive_are_forgotten(self) -> None:
        async with self.open() as opened:
            credentials, now = opened.instances[0], opened.now()
            for number in range(2_000):
                await credentials.revoke(Revocation("subject", f"old{number}", now - LIFETIME - 1))
            for number in range(100):
                await credentials.revoke(Revocation("subject", f"new{number}", now))
            found = {each.value for each in await credentials.revocations()}
            assert {f"new{number}" for number in range(100)} <= found
            assert len(found) < 1_200
