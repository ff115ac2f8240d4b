"""The tasks behind the hub: the tail of the log, the sweep, the beat, the catch-ups."""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Self

from msgpush.domain.catch_up import CATCH_UP_CHUNK, Step
from msgpush.domain.connection import NOW, Connection, Subscription
from msgpush.domain.control import CHANNEL, Close, Command, Commands, Restored
from msgpush.domain.credentials import Revocation
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.hub import Hub
from msgpush.domain.liveness import CLOSING
from msgpush.domain.message import PROBE, Draft
from msgpush.domain.observer import IGNORANT, Observer
from msgpush.domain.ports import Bus, Cut
from msgpush.domain.pushing import Pushing
from msgpush.domain.redelivery import Redelivery

FAN_OUT_SECONDS = 0.005  # seconds of fan-out after which the loop gets its turn
BEAT = 0.1
PAGE = 1, 256  # entries of a channel that one read of histories asks for, at least and at most
PAGE_BYTES = (
    2 * CATCH_UP_CHUNK
)  # what a read should come to, since a step delivers no more than half of it
TYPICAL = 512  # bytes of a message, before one has been seen
PROBE_INTERVAL = 5.0
PROBE_AGAIN = 1.0  # after one that the bus hasn't taken
SILENCE = 15.0  # seconds without a probe's return after which something is wrong
READING = (
    32  # connections whose histories are read at once: what they read waits for its turn, in memory
)
LEAVING = 1.0  # seconds in which readers may still get what has been published
# Entries of the tail between two looks at the clock: each may concern every cohort.
APPENDED_AT_ONCE = 8

log = logging.getLogger("msgpush.delivery")


class Delivery:
    """Keeps a hub at the end of a bus's log while it is open.

    Args:
        prepare: finds out what has to be known before anything is served, and again where that may
            have changed; it is told whether commands may have been missed, and raises
            BusUnavailable where it can't be done now.
        obey: carries out a command to all instances.
        redelivery: what waits for acknowledgements.
        pushing: what is to be pushed to devices, if anything is.
        observer: told how long what is written takes to be read.

    Attributes:
        refusal: why the bus took nothing, in its own words, the last time that it was tried; None:
            it did."""

    def __init__(
        self,
        bus: Bus,
        hub: Hub,
        *,
        monotonic: Callable[[], float],
        prepare: Callable[[bool], Awaitable[None]],
        obey: Callable[[Close | Revocation], None],
        redelivery: Redelivery,
        pushing: Pushing | None = None,
        observer: Observer = IGNORANT,
    ) -> None:
        self._bus, self._hub, self._monotonic = bus, hub, monotonic
        self._observer = observer
        self._prepare, self._obey, self._redelivery = prepare, obey, redelivery
        self._pushing = pushing
        self._changed = asyncio.Event()
        self._missed = False
        self._work = asyncio.Event()
        self._moved = asyncio.Event()
        # However many readers catch up, one of them makes one step in a turn of the loop.
        self._turn = asyncio.Lock()
        self._reading = asyncio.Semaphore(READING)
        self._catching_up: dict[Connection, asyncio.Task[None]] = {}
        self._running: list[asyncio.Task[None]] = []
        self._control: Connection | None = None
        self.ended = False
        self._name = f"probe.{secrets.token_hex(8)}"
        self._probed: float | None = None  # since when a probe hasn't come back
        self._round_trip = 0.0  # seconds that the last one took which did
        self._taken = False  # whether one ever was
        self._told = ""  # what was logged of the bus refusing them
        self.refusal: str | None = None

    @property
    def alive(self) -> bool:
        """True while all the tasks that everything depends on run."""
        return bool(self._running) and not any(task.done() for task in self._running)

    @property
    def begun(self) -> bool:
        """True once the log has been reached: before that there is nothing to deliver."""
        return bool(self._hub.log.epoch)

    @property
    def trouble(self) -> str | None:
        """The reason for which nothing can be published or delivered; None: none is known."""
        if not self.alive:
            return "delivery has stopped"
        if self.refusal is not None:
            return self.refusal
        if self.begun and not self._bus.reachable:
            return self._bus.trouble or "the log can't be read"
        if self._probed is not None and self._monotonic() - self._probed >= SILENCE:
            return "what is published doesn't come back from the bus"
        return None

    @property
    def ready(self) -> bool:
        """True once the bus took something, while what it takes comes back."""
        return (
            self.begun
            and self._taken
            and (self._probed is None or self._monotonic() - self._probed < SILENCE)
        )

    @property
    def tail_lag(self) -> float:
        """Seconds that the newest probe took to come back, or has taken yet."""
        waited = 0.0 if self._probed is None else self._monotonic() - self._probed
        return max(waited, self._round_trip)

    async def __aenter__(self) -> Self:
        self.ended = False
        try:
            await self._begin()
        except BusUnavailable as error:
            log.warning("%s; waiting for it", error)
        self._running = [
            asyncio.create_task(work(), name=f"msgpush {work.__name__.strip('_')}")
            for work in (
                self._tail,
                self._sweep,
                self._beat,
                self._probe,
                self._resync,
                *self._redelivery.works,
                *(self._pushing.works if self._pushing is not None else ()),
            )
        ]
        for task in self._running:
            task.add_done_callback(_report)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._hub.connections:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LEAVING):
                        await self._reach_end(self._monotonic() + LEAVING)
        finally:
            self._end_all()
            tasks = [*self._running, *self._catching_up.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._pushing is not None:
                await self._pushing.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVING):
                    await self._redelivery.close()

    def _end_all(self) -> None:
        self.ended = True
        self._hub.sweep()
        for connection in list(self._hub.connections.values()):
            self._hub.close(connection, "drain", reconnect=True)
        if self._control is not None:
            self._hub.detach(self._control)
        # There is no beat any more that would cut those whose sockets are full.
        asyncio.get_running_loop().call_later(CLOSING, self._hub.cut_closing)

    def start(self, connection: Connection) -> None:
        """Serve a connection that was just attached."""
        if not connection.live:
            # Most resumes need one step, and no task.
            self._hub.advance(connection)
        self.go_on()

    def stop(self, connection: Connection) -> None:
        """Forget a connection."""
        self._hub.detach(connection)
        self._redelivery.stop(connection)
        task = self._catching_up.pop(connection, None)
        if task is not None:
            task.cancel()

    async def drain(self, seconds: float) -> None:
        """Give every connection what has been published, then close it.

        That is spread over `seconds`."""
        deadline = self._monotonic() + seconds
        await self._reach_end(deadline)
        # Most of the time is for spreading the reconnects, the rest for those that were behind.
        began, total = self._monotonic(), len(self._hub.connections)
        spread = max(deadline - seconds / 5 - began, BEAT)
        while self._hub.connections:
            await self._flush(deadline)
            now = self._monotonic()
            closed = total - len(self._hub.connections)
            due = 1 + int(total * (now - began) / spread) - closed
            ready = [
                each for each in self._hub.connections.values() if each.live or now >= deadline
            ]
            for connection in ready[: max(0, due)]:
                self._hub.close(connection, "drain", reconnect=True)
            if self._hub.connections:
                await asyncio.sleep(BEAT)

    async def _reach_end(self, deadline: float) -> None:
        try:
            end = await self._bus.end()
        except BusUnavailable:
            return
        while self._hub.log.head < end and self._monotonic() < deadline:
            await self._next_move(deadline)

    async def _flush(self, deadline: float) -> None:
        while self._hub.sweep(FAN_OUT_SECONDS):
            if self._monotonic() >= deadline:
                return
            await asyncio.sleep(0)

    async def _begin(self) -> None:
        # In this order: what is commanded after `end` is read from the log.
        end = await self._bus.end()
        await self._prepare(False)
        self._hub.begin(self._bus.epoch, end)
        commands = Commands(self._command)
        self._control = Connection("control", commands, listed=False)
        self._hub.attach(self._control, Subscription(frozenset({CHANNEL}), commands), NOW)

    def _command(self, command: Command | None) -> None:
        if command is None or isinstance(command, Restored):
            self._missed |= command is None
            self._changed.set()
        else:
            self._obey(command)

    async def _resync(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            missed, self._missed = self._missed, False
            try:
                await self._prepare(missed)
            except BusUnavailable as error:
                self._missed |= missed
                self._changed.set()
                await asyncio.sleep(error.retry_after * random.uniform(0.5, 1.5))

    async def _tail(self) -> None:
        """Give the hub the log's entries as they come, for ever."""
        while not self.begun:
            await asyncio.sleep(random.uniform(0.5, 1))
            with contextlib.suppress(BusUnavailable):
                await self._begin()
        async with aclosing(self._bus.tail(self._hub.log.head)) as tail:
            async for entries in tail:
                if isinstance(entries, Cut):
                    self._hub.cut(entries.epoch, entries.end)
                    self._work.set()
                    continue
                if self._probed is not None and any(
                    entry.service == self._name for entry in entries
                ):
                    self._round_trip = self._monotonic() - self._probed
                    self._observer.probed(self._round_trip)
                    self._probed = None
                until = self._monotonic() + FAN_OUT_SECONDS
                for start in range(0, len(entries), APPENDED_AT_ONCE):
                    self._hub.append(entries[start : start + APPENDED_AT_ONCE])
                    if self._monotonic() >= until:
                        self._work.set()
                        await asyncio.sleep(0)
                        until = self._monotonic() + FAN_OUT_SECONDS
                self._work.set()

    async def _sweep(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            more = True
            while more:
                more = self._hub.sweep(FAN_OUT_SECONDS)
                self.go_on()
                moved, self._moved = self._moved, asyncio.Event()
                moved.set()
                if more:
                    await asyncio.sleep(0)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            self._hub.beat()
            self.go_on()

    async def _probe(self) -> None:
        # An entry that goes the way of all messages, and concerns nobody.
        probe = Draft("", "", (), PROBE, self._name, 60, b"{}", None)
        while True:
            if self._probed is None:
                self._probed = self._monotonic()
            (result,) = await self._bus.append([probe])
            refused = isinstance(result, BusUnavailable)
            if refused:
                self._probed = None  # nothing comes back of what wasn't taken
            self._taken |= not refused
            self._tell(result if isinstance(result, BusUnavailable) else None)
            await asyncio.sleep(PROBE_AGAIN if refused else PROBE_INTERVAL)

    def _tell(self, refused: BusUnavailable | None) -> None:
        self.refusal = None if refused is None else refused.public
        if refused is None:
            if self._told:
                log.info("the bus takes messages again")
            self._told = ""
        elif self._bus.reachable and refused.detail != self._told:
            # One that can't be reached says so itself.
            log.warning("the bus takes no messages: %s", refused.detail)
            self._told = refused.detail

    def go_on(self) -> None:
        """Have those catch up that have fallen behind; nothing is written yet."""
        for connection in self._hub.take_newly_behind():
            self._catch_up(connection)

    def _catch_up(self, connection: Connection) -> None:
        if connection.attached and not connection.live and connection not in self._catching_up:
            task = asyncio.create_task(
                self._see_through(connection), name=f"msgpush catch-up {connection.id}"
            )
            self._catching_up[connection] = task

    async def _see_through(self, connection: Connection) -> None:
        try:
            await self._bring_to_head(connection)
        except Exception:
            log.exception("a catch-up has failed; its client will reconnect")
            self._hub.close(connection, "disconnected", reconnect=True)
        finally:
            # Not in a callback of the task: the connection may fall behind again before that would
            # run.
            self._catching_up.pop(connection, None)

    async def _bring_to_head(self, connection: Connection) -> None:
        """Take one step after the other, until a connection is live or gone."""
        size = TYPICAL
        while True:
            async with self._turn:
                step = self._hub.advance(connection)
                if step is Step.WROTE:
                    await asyncio.sleep(0)
            match step:
                case Step.LIVE | Step.GONE:
                    return
                case Step.BLOCKED:
                    if not await connection.sink.drained():
                        return
                case Step.AHEAD:
                    await self._moved.wait()
                case Step.HISTORY:
                    try:
                        async with self._reading:
                            size = await self._read_history(connection, size)
                    except BusUnavailable as error:
                        # Each at its own moment: all have failed at the same one.
                        await asyncio.sleep(error.retry_after * random.uniform(0.5, 1.5))
                        size = min(
                            2 * size, PAGE_BYTES
                        )  # it may have been too much to be read in time
                case Step.WROTE:
                    pass

    async def _read_history(self, connection: Connection, size: int) -> int:
        """Go on from the histories; returns about how large their messages are.

        Args:
            size: the same of those before.

        Raises:
            BusUnavailable: they can't be read now.
        """
        cohort, replay = connection.cohort, connection.replay
        if cohort is None or replay is None:
            return size  # it was closed, or sent back, while it waited
        limit = self._hub.floor_of(connection)
        channels = list(cohort.subscription.channels)
        number = max(PAGE[0], min(PAGE[1], PAGE_BYTES // (size * max(1, len(channels)))))
        pages = await self._bus.history(channels, replay.after, number)
        async with self._turn:
            # Else it was sent elsewhere while the bus was read.
            if connection.replay is replay:
                self._hub.deliver(connection, dict(zip(channels, pages, strict=True)), limit)
            await asyncio.sleep(0)
        sizes = [len(linked.entry.body) for page in pages for linked in page.entries]
        return sum(sizes) // len(sizes) if sizes else size

    async def _next_move(self, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - self._monotonic())):
                await self._moved.wait()
        except TimeoutError:
            pass


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%s has died", task.get_name(), exc_info=error)
