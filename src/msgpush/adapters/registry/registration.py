"""An instance's registration: announced when it is ready, renewed while it is, withdrawn before it
drains.

Nothing of the service waits for a registry, but for a moment at the end."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from msgspec import Struct

from msgpush.adapters.registry.ports import Instance, Refused, Registry, Unavailable

WITHDRAWAL_SECONDS = 2.0  # that the end waits for a registry, whatever that does
READY_SECONDS = 0.2  # from one look at the service's readiness to the next
ANSWER_SECONDS = 5.0  # that a registry may take to answer
FIRST_RETRY = 0.5  # seconds; twice as long each time, up to a renewal
REFUSED_RETRY = 30.0  # seconds: somebody has to change something first

OURS = "an error of ours, which the log has"

State = Literal["registered", "trying", "withdrawn"]

log = logging.getLogger("msgpush.registry")


class Report(Struct, frozen=True):
    """How a registration stands.

    Attributes:
        since: seconds since 1970 of the state's beginning.
        error: why it is no better.
        failures: attempts that failed, since the start.
    """

    kind: str
    state: State
    since: float
    error: str | None = None
    failures: int = 0


class Registration:
    """Keeps an instance known to a registry, from `begin` until `end`.

    Args:
        locate: the instance as that registry is to know it; None: its address isn't known. It is
            asked again until it is.
        ready: whether requests should come here.
        ttl: seconds after which a registry forgets what isn't renewed.
        changed: told that the report has.
        clock: seconds since 1970.
        chance: a number from 0 to 1, at random: instances that started together don't renew
            together.
        refused_retry: seconds to wait where other credentials are wanted.
    """

    def __init__(
        self,
        registry: Registry,
        locate: Callable[[], Awaitable[Instance | None]],
        ready: Callable[[], bool],
        *,
        ttl: float,
        changed: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        refused_retry: float = REFUSED_RETRY,
    ) -> None:
        self._registry, self._locate, self._ready, self._ttl = registry, locate, ready, ttl
        self._changed, self._clock, self._chance = changed, clock, chance
        self._refused_retry = refused_retry
        self.report = Report(registry.kind, "trying", clock())
        self._instance: Instance | None = None
        self._told = False  # whether the registry may know the instance
        self._known = False  # whether it has said that it does
        self._failed = 0  # attempts in a row
        self._refused = False  # whether the last of them was
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Announce the instance as soon as it is ready, and keep it known."""
        if self._task is None and not self._ending.is_set():
            self._task = asyncio.create_task(self._run(), name=f"msgpush {self._registry.kind}")

    def hold(self) -> None:
        """Announce and renew nothing from now on: the end is near."""
        self._ending.set()

    async def end(self) -> bool:
        """Withdraw it, within two seconds; returns whether others knew it."""
        self.hold()
        until = asyncio.get_running_loop().time() + WITHDRAWAL_SECONDS
        if self._task is not None:
            # What is under way could come after the withdrawal, and be taken for the newer word.
            await asyncio.wait((self._task,), timeout=WITHDRAWAL_SECONDS / 2)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if not self._told or self._instance is None:
            self._tell("withdrawn")
            return False
        try:
            async with asyncio.timeout_at(until):
                await self._registry.withdraw(self._instance)
        except (Unavailable, Refused, TimeoutError) as error:
            self._fail(error, "withdrawn")
            if self._known:
                log.warning(
                    "%s: can't withdraw %s, which it forgets after %g seconds: %s",
                    self._registry.kind,
                    self._instance.id,
                    self._ttl,
                    self.report.error,
                )
        except Exception:
            # Whatever it is, the drain comes next.
            log.exception("%s: can't withdraw %s", self._registry.kind, self._instance.id)
            self._fail(OURS, "withdrawn")
        else:
            self._tell("withdrawn")
            log.info("%s: withdrawn %s", self._registry.kind, self._instance.id)
        return self._known

    async def _run(self) -> None:
        while not self._ending.is_set():
            try:
                wait = await self._step()
            except Exception:
                log.exception("%s: a registration has failed", self._registry.kind)
                wait = self._retry(OURS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._ending.wait()

    async def _step(self) -> float:
        """Do what is due; returns the seconds until the next time."""
        if not self._ready():
            return await self._stand_back()
        try:
            async with asyncio.timeout(min(ANSWER_SECONDS, self._ttl)):
                await self._keep()
        except Refused as error:
            self._fail(error)
            return self._spread(self._refused_retry)
        except (Unavailable, TimeoutError) as error:
            return self._retry(error)
        return self._spread(self._ttl / 3)

    async def _keep(self) -> None:
        instance = self._instance
        if instance is None:
            instance = self._instance = await self._locate()
        if instance is None:
            raise Unavailable(
                "this machine's address for others can't be found: set ADVERTISE_ADDRESS"
            )
        if self.report.state == "registered":
            if await self._registry.renew(instance):
                return
            log.warning("%s: it had forgotten %s", self._registry.kind, instance.id)
        told, self._told = self._told, True
        try:
            await self._registry.announce(instance)
        except Refused:
            self._told = told
            raise
        self._known, self._failed = True, 0
        self._tell("registered")
        log.info(
            "%s: registered %s at %s port %d as %s",
            self._registry.kind,
            instance.name,
            instance.address,
            instance.port,
            instance.id,
        )

    async def _stand_back(self) -> float:
        """Have nobody sent here while the service isn't ready."""
        if self._told and self._instance is not None:
            try:
                async with asyncio.timeout(min(ANSWER_SECONDS, self._ttl)):
                    await self._registry.withdraw(self._instance)
            except (Unavailable, Refused, TimeoutError) as error:
                return self._retry(error)
            self._told = self._known = False
            log.warning("%s: withdrawn, since the service isn't ready", self._registry.kind)
        self._tell("trying", "the service isn't ready")
        return READY_SECONDS

    def _retry(self, error: Exception | str) -> float:
        """Count a failure; returns the seconds to wait."""
        self._fail(error)
        # No longer than a renewal: a registry that is back soon knows all who are there.
        return self._spread(min(FIRST_RETRY * 2 ** min(self._failed - 1, 10), self._ttl / 3))

    def _fail(self, error: Exception | str, state: State = "trying") -> None:
        reason = "it doesn't answer in time" if isinstance(error, TimeoutError) else str(error)
        self._failed += 1
        self._tell(state, reason, failures=1)
        # Once for each outage, though what is said of it may change.
        refused, self._refused = self._refused, isinstance(error, Refused)
        if state == "trying" and (self._failed == 1 or refused != self._refused):
            log.warning(
                "%s: not registered: %s; tried again, and the service goes on meanwhile",
                self._registry.kind,
                reason,
            )

    def _tell(self, state: State, error: str | None = None, *, failures: int = 0) -> None:
        before = self.report
        since = before.since if state == before.state else self._clock()
        self.report = Report(before.kind, state, since, error, before.failures + failures)
        if self.report != before:
            self._changed()

    def _spread(self, seconds: float) -> float:
        return seconds * (0.7 + 0.3 * self._chance())


class Registrations:
    """All registrations of an instance.

    Args:
        grace: seconds that are waited after the withdrawal, until whoever follows a registry knows.
    """

    def __init__(self, *registrations: Registration, grace: float = 0.0) -> None:
        self._all, self._grace = registrations, grace

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def reports(self) -> list[Report]:
        """How each stands now."""
        return [each.report for each in self._all]

    def begin(self) -> None:
        """See `Registration.begin`."""
        for each in self._all:
            each.begin()

    def hold(self) -> None:
        """See `Registration.hold`."""
        for each in self._all:
            each.hold()

    async def end(self) -> None:
        """Withdraw the instance everywhere, within two seconds; wait for the grace after that."""
        known = await asyncio.gather(*(each.end() for each in self._all))
        if any(known):
            await asyncio.sleep(self._grace)
