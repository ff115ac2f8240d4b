"""The collector: gathers the figures when Prometheus asks, and shares them with other workers."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Self

from msgpush.adapters.metrics.families import Figures
from msgpush.adapters.metrics.shared import Shared, add_up
from msgpush.adapters.metrics.text import Texts

WRITE = 1.0  # seconds between two words of a worker to the others

log = logging.getLogger("msgpush.metrics")


class Metrics:
    """The service's metrics. An async context manager: while it is open, a worker tells the others
    its own.

    Nothing is counted here: whatever is told where it happens is plain integers, and these are read
    when somebody asks.

    Args:
        sources: each gives its figures.
        shared: what the worker shares with the others; its metrics are those of all workers.
    """

    def __init__(self, *sources: Callable[[], Figures], shared: Shared | None = None) -> None:
        self._sources, self._shared = sources, shared
        self._common: list[Callable[[], Figures]] = []
        self._texts = Texts()
        self._took = 0.0
        self._writing: asyncio.Task[None] | None = None
        self._failing = False

    async def __aenter__(self) -> Self:
        if self._shared is not None:
            self._writing = asyncio.create_task(self._write(self._shared), name="msgpush metrics")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._shared is not None and self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
            self._share(self._shared, self.figures())

    def add(self, source: Callable[[], Figures]) -> None:
        """Take in what is told of the service as a whole, not of this worker alone."""
        self._common.append(source)

    def figures(self) -> Figures:
        """The figures of this process."""
        found: Figures = {"message_push_scrape_seconds": {(): self._took}}
        for source in self._sources:
            found |= source()
        return found

    async def text(self) -> bytes:
        """The metrics of all workers, as Prometheus reads them."""
        began = time.perf_counter()
        figures: Figures = {"message_push_scrape_seconds": {(): self._took}}
        for source in self._sources:
            figures |= source()
            await asyncio.sleep(0)
        if self._shared is not None:
            figures = await self._of_all(self._shared, figures)
        for source in self._common:
            figures |= source()
        text = await self._texts.render(figures)
        self._took = time.perf_counter() - began
        return text

    async def _of_all(self, shared: Shared, own: Figures) -> Figures:
        # Before the others are read, so that none of them ever tells less than was told here.
        self._share(shared, own)
        total: Figures = {}
        for figures in shared.of_all():
            await asyncio.sleep(0)
            total = add_up((total, figures))
            await asyncio.sleep(0)
        return total

    async def _write(self, shared: Shared) -> None:
        while True:
            self._share(shared, self.figures())
            await asyncio.sleep(WRITE)

    def _share(self, shared: Shared, figures: Figures) -> None:
        failed, self._failing = self._failing, False
        try:
            shared.write(figures)
        except Exception as error:
            self._failing = True
            if not failed:  # once for each outage
                broken = not isinstance(error, OSError)
                log.warning("a worker's metrics can't be shared: %s", error, exc_info=broken)
