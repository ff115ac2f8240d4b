"""The devices of a single process keep the contract."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgpush.adapters.memory.credentials import MemoryCredentials
from msgpush.adapters.memory.devices import MemoryDevices
from tests.contracts import devices
from tests.contracts.credentials import LIFETIME
from tests.support.fakes import FakeClock


class TestMemoryDevices(devices.DevicesContract):
    @asynccontextmanager
    async def open(self) -> AsyncIterator[devices.Opened]:
        clock = FakeClock()

        async def wait(seconds: float) -> None:
            clock.advance(seconds)

        kept = MemoryDevices(clock=clock.now)
        credentials = MemoryCredentials(lifetime=LIFETIME, clock=clock.now, devices=kept)
        yield devices.Opened([kept], credentials, clock.now, wait)

    async def test_nothing_is_kept_of_what_was_removed(self) -> None:
        kept = MemoryDevices()
        for number in range(100):
            await kept.register(f"u{number}", devices.web_push(number), None)
            await kept.remove(f"u{number}")
        assert not kept._by_user
        assert not kept._owner
