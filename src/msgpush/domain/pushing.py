"""Pushing: what is due to be shown on devices is sent, beside everything else.

`notification` decides; here it is done. Nothing is claimed that can't be begun at once, and what is
claimed and not done in time, since this instance dies, is given to another."""

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from msgpush.domain.channel import OWN_SERVICE, RECEIPTS
from msgpush.domain.devices import Device, Kind, kind_of
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.message import Draft, format_ms
from msgpush.domain.notification import (
    ABANDONED,
    BEGINS,
    OFF,
    Answer,
    Later,
    Notice,
    Sending,
    after,
    decide,
    notice_of,
    wanted,
)
from msgpush.domain.observer import Observer
from msgpush.domain.outbox import AT_ONCE
from msgpush.domain.ports import Bus, Devices, Notifier
from msgpush.domain.words import Words

LOOK = 1.0  # seconds between two looks for what is due, or somewhat less
CLEAR = 60.0  # the same, for what nobody pushes
PACE = 600  # begun a second at most, each of which takes the loop and its threads a millisecond
SLACK = 0.02  # seconds by which what is late may catch up
LEAVING = 1.0  # seconds in which what is under way may still be answered
GATHER = 0.02  # seconds in which others may end, too, before more are claimed
FRESH = 1.0  # seconds for which it is known what became of a message
CONCURRENCY = 50
# Seconds in which a provider has to have answered, whatever it takes: a token that is waited for,
# and another try with a new one, too.
ANSWERED = 10.0
SETTLED = 3  # tries to say what became of a sending

log = logging.getLogger("msgpush.push")

_encode = msgspec.json.Encoder().encode
_random = random.Random()


class Pushing:
    """Sends what is to be pushed.

    Args:
        devices: whom it goes to, and `notifiers`, by what.
        words: acknowledge without a page; without them nothing does.
        concurrency: under way at most for each notifier.
        receipt_ttl: seconds that a receipt lives.
        observer: told what happens.
        monotonic: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        bus: Bus,
        devices: Devices,
        notifiers: Sequence[Notifier],
        *,
        words: Words | None,
        concurrency: int = CONCURRENCY,
        receipt_ttl: int,
        observer: Observer,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus, self._sendings, self.devices = bus, bus.sendings, devices
        self._notifiers = {each.kind: each for each in notifiers}
        self._slots = {kind: asyncio.Semaphore(concurrency) for kind in self._notifiers}
        self._most = max(1, concurrency * len(self._notifiers))
        self.words, self._receipt_ttl = words, receipt_ttl
        self._observer, self._monotonic = observer, monotonic
        self._asked, self._free = asyncio.Event(), asyncio.Event()
        self._closing = False
        self._next = 0.0  # when one more may begin, by the loop's clock
        self._tasks: set[asyncio.Task[None]] = set()
        # What `Delivery` runs.
        self.works: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (
            (self._push,) if self._notifiers else (self._clear,)
        )

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of devices that are sent to."""
        return frozenset(self._notifiers)

    def wake(self) -> None:
        """Look soon: something was stored that is to be pushed at once."""
        self._asked.set()

    async def close(self) -> None:
        """Begin nothing more. What is under way has a moment to end; else it is sent again by
        another, in a minute."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LEAVING)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._closing = False

    async def send(self, device: Device, notice: Notice) -> Answer:
        """Send a notice to a device, and say what its provider has answered."""
        notifier = self._notifiers.get(device.kind)
        return OFF if notifier is None else await notifier.send(device.address, notice)

    async def _push(self) -> None:
        while True:
            try:
                more = await self.push()
            except BusUnavailable as error:
                log.debug("what is to be pushed can't be looked up now: %s", error)
                await asyncio.sleep(error.retry_after)
                continue
            except Exception as error:
                # Streams must outlive a mistake; its text might have an address.
                log.error("what is to be pushed can't be seen to: %s", type(error).__name__)
                more = False
            if not more:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK * _random.uniform(0.5, 1)):
                        await self._asked.wait()
                self._asked.clear()

    async def _clear(self) -> None:
        while True:
            more = False
            try:
                more = await self.clear()
            except BusUnavailable as error:
                log.debug("what is to be pushed can't be looked up now: %s", error)
            except Exception as error:
                log.error("what is to be pushed can't be seen to: %s", type(error).__name__)
            if not more:
                await asyncio.sleep(CLEAR * _random.uniform(0.5, 1))

    async def clear(self) -> bool:
        """Forget what is over, and nobody sees to any more: nothing is pushed from anywhere.

        True: there may be more. Raises BusUnavailable."""
        now, due = await self._sendings.due(AT_ONCE, ABANDONED)
        over = [each for each, _ in due if now >= each.expires]
        if over:
            await self._sendings.settle([msgspec.structs.replace(each, left={}) for each in over])
        return len(due) >= AT_ONCE

    async def push(self) -> bool:
        """Begin to send what is due; True: there may be more. Raises BusUnavailable."""
        while len(self._tasks) >= self._most:
            self._free.clear()
            await self._free.wait()
            # So that several are claimed in one call.
            await asyncio.sleep(GATHER)
        limit = min(AT_ONCE, self._most - len(self._tasks))
        now, due = await self._sendings.due(limit)
        claimed = self._monotonic()
        settled, sent = [], []
        for sending, record in due:
            verdict = decide(sending, record, now)
            if verdict == "send":
                sent.append(sending)
            elif isinstance(verdict, Later):
                settled.append(msgspec.structs.replace(sending, next=verdict.at))
            else:
                settled.append(msgspec.structs.replace(sending, left={}))
        if settled:
            # What isn't is looked at again.
            await self._sendings.settle(settled)
        if sent:
            devices = await self.devices.of([each.user for each in sent])
            for sending, own in zip(sent, devices, strict=True):
                self._begin(self._send_all(sending, own, now, claimed))
        return len(due) >= limit

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="msgpush push")
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._free.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a push has failed: %s", type(error).__name__)

        task.add_done_callback(done)

    async def _send_all(
        self, sending: Sending, devices: Sequence[Device], now: int, claimed: float
    ) -> None:
        """Send a message to those of its user's devices that are due."""
        word = None
        if self.words is not None and sending.terms is not None:
            word = self.words.make(sending.user, sending.key, sending.expires // 1000 + 1)
        notice = notice_of(sending, now, word)
        sends = [
            self._send(sending, device, notice, claimed) for device in wanted(sending, devices, now)
        ]
        answers = [each for each in await asyncio.gather(*sends) if each is not None]
        now += int((self._monotonic() - claimed) * 1000)
        answers = await self._tell(sending, answers, now)
        left = after(sending, devices, answers, now)
        done = msgspec.structs.replace(
            sending, left=left, next=min((each.next for each in left.values()), default=now)
        )
        await self._note(answers)
        await self._settle(done)

    async def _tell(
        self, sending: Sending, answers: Sequence[tuple[Device, Answer]], now: int
    ) -> list[tuple[Device, Answer]]:
        """Give the publisher receipts of what has failed for good, where they are wanted.

        Returns:
            the answers; those of which nothing could be told come again, so that none is lost."""
        terms = sending.terms
        failed = [device for device, answer in answers if answer.outcome == "failed"]
        if terms is None or not terms.receipt or not failed:
            return list(answers)
        told = await self._bus.append([self._receipt(sending, each, now) for each in failed])
        untold = {
            device.id
            for device, result in zip(failed, told, strict=True)
            if isinstance(result, BusUnavailable)
        }
        later = Answer("later", "its receipt can't be given now")
        return [(device, later if device.id in untold else answer) for device, answer in answers]

    async def _send(
        self, sending: Sending, device: Device, notice: Notice, claimed: float
    ) -> tuple[Device, Answer] | None:
        """Send a message to a device; None: it was too late for that, and is done by another."""
        kind = kind_of(device.address)
        if kind not in self._notifiers:
            return device, OFF
        async with self._slots[kind]:
            await self._take_turn()
            if self._closing:
                return None  # another may have it at once
            waited = self._monotonic() - claimed
            if waited * 1000 > BEGINS or await self._is_over(sending, waited):
                return None
            began = self._monotonic()
            try:
                async with asyncio.timeout(ANSWERED):
                    answer = await self._notifiers[kind].send(device.address, notice)
            except TimeoutError:
                answer = Answer("later", "no answer in time")
            except Exception as error:
                # Its text, and what it came through, might have an address.
                log.error("a push by %s has failed: %s", kind, type(error).__name__)
                answer = Answer("later", type(error).__name__)
        took = self._monotonic() - began
        self._observer.pushed(sending.service, sending.type, kind, answer.outcome, took)
        if answer.outcome == "failed":
            log.warning("a push of %s by %s is not taken: %s", sending.key, kind, answer.reason)
        return device, answer

    async def _take_turn(self) -> None:
        """Wait until it may begin: a burst is spread, or streams would wait behind it."""
        now = asyncio.get_running_loop().time()
        at = self._next = max(self._next + 1 / PACE, now - SLACK)
        if at > now:
            await asyncio.sleep(at - now)

    async def _is_over(self, sending: Sending, waited: float) -> bool:
        """True if a message was acknowledged, or withdrawn, while its sending waited."""
        if sending.terms is None or waited <= FRESH:
            return False
        try:
            record = await self._bus.outbox.find(sending.key)
        except BusUnavailable:
            return False
        return record is None or record.state in ("acknowledged", "withdrawn")

    async def _note(self, answers: Sequence[tuple[Device, Answer]]) -> None:
        """Remember which devices were sent to, and forget those that are gone."""
        gone = [device for device, answer in answers if answer.outcome == "gone"]
        used = [device for device, answer in answers if answer.outcome == "sent"]
        try:
            if gone:
                await self.devices.gone(gone)
            if used:
                await self.devices.used(used)
        except BusUnavailable as error:
            log.debug("devices can't be changed now: %s", error)

    async def _settle(self, sending: Sending) -> None:
        for number in range(SETTLED):
            (settled,) = await self._sendings.settle([sending])
            if not isinstance(settled, BusUnavailable):
                return
            await asyncio.sleep(_random.uniform(0.5, 1.5) * (number + 1))

    def _receipt(self, sending: Sending, device: Device, now: int) -> Draft:
        """Word to its publisher that a message won't reach a device."""
        at = format_ms(now)
        name = f"{sending.key} push_failed {device.id} {sending.accepted_at}"
        digest = hashlib.blake2b(name.encode(), digest_size=16)
        id, channel = f"receipt_{digest.hexdigest()}", RECEIPTS + sending.service
        body = {
            "id": id,
            "timestamp": at,
            "type": "error",
            "service": OWN_SERVICE,
            "channels": [channel],
            "data": {
                "key": sending.key,
                "state": "push_failed",
                "kind": device.kind,
                "at": at,
            },
            "metadata": {"priority": "normal", "ttl": self._receipt_ttl, "retry_count": 0},
        }
        ttl = self._receipt_ttl
        text = _encode(body)
        return Draft(id, at, (channel,), "error", OWN_SERVICE, ttl, text, digest.digest())
