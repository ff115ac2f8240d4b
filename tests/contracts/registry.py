"""What every registry promises. Its own test module derives from `RegistryContract` and says how to
open one.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import msgspec
import pytest

from msgpush.adapters.registry.ports import Instance, Refused, Registry, Unavailable
from tests.support.registries import Records

TTL = 3


@dataclass
class Opened:
    """A server, and what asks and changes it.

    Attributes:
        unfit: the same registry, with a token that isn't good.
        records: what it knows, by the instances' ids.
        stall: it takes requests from now on, and answers none until it is called again.
    """

    registry: Registry
    unfit: Registry
    records: Callable[[], Records]
    empty: Callable[[], None]
    kill: Callable[[], None]
    restart: Callable[[], None]
    stall: Callable[[], None]


def instance(id: str = "host-1", **changes: object) -> Instance:
    usual = Instance(
        name="msgpush", id=id, address="127.0.0.1", port=8089, version="1.2.3", ttl=TTL
    )
    return msgspec.structs.replace(usual, **changes)


async def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it is asked of another process
            await asyncio.sleep(0.02)


class RegistryContract:
    """Subclass it, and say how a registry is opened."""

    port = 8089  # where the instance is, for those that look

    def one(self, id: str = "host-1", **changes: object) -> Instance:
        return instance(id, **{"port": self.port, **changes})

    def open(self) -> AbstractContextManager[Opened]:
        raise NotImplementedError

    async def test_what_is_announced_is_known_as_it_was_told(self) -> None:
        with self.open() as opened:
            one = self.one(prefix="/push", weight=4, metadata={"bus": "redis"})
            await opened.registry.announce(one)
            known = opened.records()["host-1"]
            wanted = {
                "address": "127.0.0.1",
                "port": self.port,
                "scheme": "http",
                "health": "/push/health/ready",
                "routes": ["/push/sse/*", "/push/ws", "/push/api/v1/*"],
                "weight": 4,
                "version": "1.2.3",
            }
            assert {name: known[name] for name in wanted} == wanted

    async def test_what_is_announced_again_is_replaced(self) -> None:
        with self.open() as opened:
            await opened.registry.announce(self.one())
            await opened.registry.announce(self.one(port=1))
            assert [each["port"] for each in opened.records().values()] == [1]

    async def test_what_is_renewed_outlives_its_ttl_and_what_is_not_is_forgotten(self) -> None:
        with self.open() as opened:
            await opened.registry.announce(self.one())
            for _ in range(5):
                await asyncio.sleep(TTL / 4)
                assert await opened.registry.renew(self.one())
            assert opened.records().keys() == {"host-1"}
            await eventually(lambda: not opened.records(), TTL * 2.5)

    async def test_what_is_withdrawn_is_gone_and_others_stay(self) -> None:
        with self.open() as opened:
            await opened.registry.announce(self.one())
            other = self.another(opened)
            await other.announce(self.one("host-2"))
            await opened.registry.withdraw(self.one())
            assert opened.records().keys() == {"host-2"}

    async def test_what_is_unknown_can_be_withdrawn(self) -> None:
        with self.open() as opened:
            await opened.registry.withdraw(self.one())
            await opened.registry.announce(self.one())
            await opened.registry.withdraw(self.one())
            await opened.registry.withdraw(self.one())
            assert not opened.records()

    async def test_one_that_was_emptied_says_so_or_knows_it_again(self) -> None:
        with self.open() as opened:
            for empty in (opened.empty, opened.restart):
                await opened.registry.announce(self.one())
                empty()
                if not await opened.registry.renew(self.one()):
                    await opened.registry.announce(self.one())
                assert opened.records().keys() == {"host-1"}

    async def test_one_that_is_down_is_unavailable_and_then_good_again(self) -> None:
        with self.open() as opened:
            await opened.registry.announce(self.one())
            opened.kill()
            for ask in (opened.registry.announce, opened.registry.renew, opened.registry.withdraw):
                with pytest.raises(Unavailable, match="refused"):
                    await ask(self.one())
            opened.restart()
            await opened.registry.announce(self.one())
            assert opened.records().keys() == {"host-1"}

    async def test_one_that_stalls_holds_up_nobody_who_does_not_want_to_wait(self) -> None:
        with self.open() as opened:
            await opened.registry.announce(self.one())
            opened.stall()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await opened.registry.announce(self.one())
            opened.stall()
            await opened.registry.announce(self.one())

    async def test_a_token_that_is_not_good_is_refused_with_what_to_do_and_not_shown(self) -> None:
        with self.open() as opened:
            with pytest.raises(Refused) as caught:
                await opened.unfit.announce(self.one())
            assert "check " in str(caught.value)
            assert "wrong-one" not in str(caught.value)
            assert not opened.records()

    def another(self, opened: Opened) -> Registry:
        """What another instance has: nothing in common but the server."""
        raise NotImplementedError
