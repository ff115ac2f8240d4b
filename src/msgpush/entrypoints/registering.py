"""Registrations as the settings say: at which registries, and what they are told."""

import logging
import re
import secrets
import socket
from collections.abc import Callable
from functools import partial

from msgpush import __version__
from msgpush.adapters.blocking import in_daemon
from msgpush.adapters.registry.addresses import is_for_others, own_address
from msgpush.adapters.registry.consul import Consul
from msgpush.adapters.registry.etcd import Etcd
from msgpush.adapters.registry.gateway import Gateway
from msgpush.adapters.registry.ports import Instance, Registry
from msgpush.adapters.registry.registration import Registration, Registrations
from msgpush.entrypoints.settings import Settings

log = logging.getLogger("msgpush.registry")


def instance_id() -> str:
    """A name that no other process has, nor has this one had it before it was started anew."""
    host = re.sub("[^A-Za-z0-9.-]", "-", socket.gethostname())[:63] or "host"
    return f"{host}-{secrets.token_hex(3)}"


def registries_of(settings: Settings) -> list[Registry]:
    """The registries that these settings name, in the order of the table."""
    found: list[Registry] = []
    if settings.gateway_url:
        found.append(Gateway(settings.gateway_url, settings.gateway_token))
    if settings.consul_url:
        found.append(Consul(settings.consul_url, settings.consul_token))
    if settings.etcd_url:
        urls = settings.etcd_url.split(",")
        found.append(Etcd(urls, settings.etcd_user, settings.etcd_password))
    return found


def registrations_of(
    settings: Settings,
    id: str,
    listener: socket.socket,
    *,
    ready: Callable[[], bool],
    changed: Callable[[], object] = lambda: None,
) -> Registrations:
    """The registrations of the instance that serves this socket.

    Args:
        id: the instance's.
        ready: whether requests should come here.
        changed: told that a report has.
    """
    return Registrations(
        *(
            Registration(
                registry,
                partial(_locate, settings, id, listener, registry),
                ready,
                ttl=settings.registry_ttl,
                changed=changed,
            )
            for registry in registries_of(settings)
        ),
        grace=settings.withdraw_seconds,
    )


async def _locate(
    settings: Settings, id: str, listener: socket.socket, registry: Registry
) -> Instance | None:
    """The instance as a registry is to know it; None: its address can't be found."""
    port = settings.advertise_port or listener.getsockname()[1]
    address = settings.advertise_address or await _address(listener, registry)
    if address is None:
        return None
    return Instance(
        name=settings.service_name,
        id=id,
        address=address,
        port=port,
        scheme=settings.advertise_scheme,
        prefix=settings.root_path,
        # What it can serve, compared with the others.
        weight=settings.workers,
        version=__version__,
        ttl=settings.registry_ttl,
        metadata={
            "bus": "memory" if settings.redis is None else "redis",
            "workers": str(settings.workers),
        },
    )


async def _address(listener: socket.socket, registry: Registry) -> str | None:
    """The address of a listener for others; of any address, the one on the route to a registry."""
    own: str = listener.getsockname()[0]
    if is_for_others(own):
        return own
    families = [listener.family]
    if listener.family == socket.AF_INET6:
        families.insert(0, socket.AF_INET)  # both come to it
    found = await in_daemon(partial(own_address, registry.url, families), "msgpush address")
    if found is not None:
        log.info("ADVERTISE_ADDRESS is not set: %s is told of %s", registry.kind, found)
    return found
