"""The two ways to fill the domain's ports: this process's memory, or a Redis that many share."""

from collections.abc import Callable
from typing import NamedTuple

from msgpush.adapters.memory.bus import MemoryBus
from msgpush.adapters.memory.credentials import MemoryCredentials
from msgpush.adapters.memory.devices import MemoryDevices
from msgpush.adapters.memory.limiter import MemoryLimiter
from msgpush.adapters.memory.outbox import MemoryOutbox
from msgpush.adapters.memory.roster import MemoryRoster
from msgpush.adapters.memory.statistics import MemoryStatistics
from msgpush.adapters.redis.bus import RedisBus
from msgpush.adapters.redis.credentials import RedisCredentials
from msgpush.adapters.redis.devices import RedisDevices
from msgpush.adapters.redis.limiter import RedisLimiter
from msgpush.adapters.redis.roster import RedisRoster
from msgpush.adapters.redis.statistics import RedisStatistics
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.ports import (
    Bus,
    Credentials,
    Devices,
    InstanceState,
    Limiter,
    Roster,
    Statistics,
)
from msgpush.domain.service import Push
from msgpush.entrypoints.settings import Settings

HOUR = 3_600  # seconds


class Backend(NamedTuple):
    """The ports' adapters that belong together. Those that are context managers have to be opened.

    Attributes:
        name: as it is told.
        roster: makes that of a `Push`, at an instance that has this name, and tells this of itself.
        limiter: None where publishing has no rate.
    """

    name: str
    bus: Bus
    credentials: Credentials
    devices: Devices
    roster: Callable[[Push, str, Callable[[], InstanceState]], Roster]
    statistics: Statistics
    limiter: Limiter | None


def backend_of(settings: Settings) -> Backend:
    """The backend that these settings name."""
    return _memory(settings) if settings.redis is None else _redis(settings, settings.redis)


def _memory(settings: Settings) -> Backend:
    rate, devices = settings.publish_rate, MemoryDevices()
    return Backend(
        name="memory",
        bus=MemoryBus(
            history_length=settings.history_length,
            size=settings.memory_bus_bytes,
            outbox=MemoryOutbox(
                size=settings.memory_bus_bytes // 2,
                dead_letter_size=min(settings.dead_letter_bytes, settings.memory_bus_bytes // 4),
                max_pending=settings.max_pending,
                dead_letter_ttl=settings.dead_letter_ttl,
            ),
        ),
        credentials=MemoryCredentials(lifetime=_revocation_lifetime(settings), devices=devices),
        devices=devices,
        roster=lambda push, node, report: MemoryRoster(push.listing(node), report),
        statistics=MemoryStatistics(),
        limiter=MemoryLimiter(rate) if rate else None,
    )


def _redis(settings: Settings, target: RedisTarget) -> Backend:
    rate = settings.publish_rate
    return Backend(
        name="redis",
        bus=RedisBus(
            target,
            log_length=settings.log_length,
            history_length=settings.history_length,
            wait_replicas=settings.redis_wait_replicas,
            max_pending=settings.max_pending,
            pending_bytes=settings.pending_bytes,
            dead_letter_bytes=settings.dead_letter_bytes,
            dead_letter_ttl=settings.dead_letter_ttl,
        ),
        credentials=RedisCredentials(target, lifetime=_revocation_lifetime(settings)),
        devices=RedisDevices(target),
        roster=lambda push, node, report: RedisRoster(
            target, push.listing(node), push.command, report
        ),
        statistics=RedisStatistics(target),
        limiter=RedisLimiter(target, rate) if rate else None,
    )


def _revocation_lifetime(settings: Settings) -> float:
    # No shorter than at the instances, whose clocks may differ, or they would put back what has had
    # its time.
    return settings.max_token_lifetime + 2 * settings.jwt_leeway + HOUR
