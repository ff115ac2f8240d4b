"""The port: what a registry is told, and how it may fail."""

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct

from msgpush.adapters.http.addresses import with_port
from msgpush.domain.errors import MsgpushError


class Instance(Struct, frozen=True, kw_only=True):
    """An instance of the service, as registries are told of it.

    Args:
        name: the service's.
        id: no other start of a process has had it.
        address, port, scheme: where it is reached.
        prefix: stands before its paths: ROOT_PATH.
        weight: how much it serves, compared with others.
        ttl: seconds after which a registry forgets it, unless it is renewed.
        metadata: what else is known.
    """

    name: str
    id: str
    address: str
    port: int
    version: str
    ttl: int
    scheme: str = "http"
    prefix: str = ""
    weight: int = 1
    metadata: Mapping[str, str] = {}

    @property
    def routes(self) -> list[str]:
        """The paths that it serves for clients and publishers; `*` stands for all that follows."""
        return [self.prefix + path for path in ("/sse/*", "/ws", "/api/v1/*")]

    @property
    def health(self) -> str:
        """The path that answers 200 while requests should come here."""
        return f"{self.prefix}/health/ready"

    @property
    def health_url(self) -> str:
        return f"{self.scheme}://{with_port(self.address, self.port)}{self.health}"

    def record(self) -> dict[str, Any]:
        """The whole, as JSON has it."""
        return {
            "address": self.address,
            "port": self.port,
            "scheme": self.scheme,
            "health": self.health,
            "routes": self.routes,
            "weight": self.weight,
            "ttl": self.ttl,
            "version": self.version,
            "metadata": dict(self.metadata),
        }


class Registry(Protocol):
    """What knows the instances of services, for those who look for one.

    Its methods raise `Unavailable` and `Refused`. They may take any time: whoever calls them says
    how long to wait."""

    @property
    def kind(self) -> str:
        """The word for it in metrics and logs."""

    @property
    def url(self) -> str:
        """Where it is; of several places the one that answered last."""

    async def announce(self, instance: Instance) -> None:
        """Have an instance known from now on, for its ttl; what was known of it is replaced."""

    async def renew(self, instance: Instance) -> bool:
        """Have it known for its ttl once more; False: the registry knows it no longer."""

    async def withdraw(self, instance: Instance) -> None:
        """Have it forgotten; no error where it is unknown."""


class Unavailable(MsgpushError):
    """A registry can't be asked now; its text says why, and has no secret."""


class Refused(MsgpushError):
    """A registry wants other credentials; its text says what to do, and has no secret."""
