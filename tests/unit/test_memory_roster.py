"""The roster of a single process keeps the contract."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgpush.adapters.memory.roster import MemoryRoster
from msgpush.domain.listing import Listing
from tests.contracts.roster import Opened, RosterContract
from tests.support.driver import Driver
from tests.support.fakes import reporting


class TestMemoryRoster(RosterContract):
    @asynccontextmanager
    async def open(self) -> AsyncIterator[Opened]:
        hub = Driver().hub
        yield Opened(MemoryRoster(Listing(hub, "here"), reporting("here")), [hub])
