"""Consul, over its agent's HTTP API: https://developer.hashicorp.com/consul/api-docs/agent/service

An instance has two checks, and is healthy while both pass: Consul asks `/health/ready` itself, and
the instance says that it lives. The second is for agents that can't reach the instance fast enough
to notice its death: its time runs out."""

from typing import Any
from urllib.parse import quote

from msgpush.adapters.registry.ports import Instance, Refused, Unavailable
from msgpush.adapters.registry.requests import Answer, Server

DEREGISTER_SECONDS = 60  # after which a dead one goes from the list; Consul takes no less
CHECK_SECONDS = 2  # what /health/ready may take
TOKEN_UNFIT = {
    True: "check CONSUL_TOKEN: it needs service:write for the service's name",
    False: "set CONSUL_TOKEN: one with service:write for the service's name",
}


class Consul:
    """A `Registry`: the agent of this machine, or any other.

    Args:
        token: an ACL token; None: ACLs are off, or the anonymous token may do it.
    """

    kind = "consul"

    def __init__(self, url: str, token: str | None = None) -> None:
        self._server, self._token = Server(url), token
        self.url = url

    async def announce(self, instance: Instance) -> None:
        answer = await self._put("/register?replace-existing-checks=true", _service(instance))
        if not answer.ok:
            raise self._failure(answer)

    async def renew(self, instance: Instance) -> bool:
        check = quote(_ttl_check(instance), "")
        answer = await self._put(f"/check/pass/{check}")
        if answer.status == 404:
            return False
        if not answer.ok:
            raise self._failure(answer)
        return True

    async def withdraw(self, instance: Instance) -> None:
        answer = await self._put(f"/deregister/{quote(instance.id, '')}")
        if not answer.ok and answer.status != 404:
            raise self._failure(answer)

    async def _put(self, path: str, body: object = None) -> Answer:
        base = "/v1/agent" if path.startswith("/check/") else "/v1/agent/service"
        headers = {"X-Consul-Token": self._token} if self._token else {}
        answer = await self._server.ask("PUT", base + path, body, headers)
        if answer.status in (401, 403):
            advice = TOKEN_UNFIT[self._token is not None]
            raise Refused(f"it refuses us ({answer.status}: {self._told(answer)}): {advice}")
        return answer

    def _failure(self, answer: Answer) -> Unavailable:
        return Unavailable(f"its answer's status is {answer.status}: {self._told(answer)}")

    def _told(self, answer: Answer) -> str:
        return answer.text((self._token,) if self._token else ()) or "no text"


def _ttl_check(instance: Instance) -> str:
    return f"service:{instance.id}:ttl"


def _service(instance: Instance) -> dict[str, Any]:
    """A service definition, as the agent reads it."""
    shared = {"DeregisterCriticalServiceAfter": f"{DEREGISTER_SECONDS}s", "Status": "passing"}
    return {
        "ID": instance.id,
        "Name": instance.name,
        "Address": instance.address,
        "Port": instance.port,
        "Tags": ["msgpush", "sse", "ws"],
        "Meta": {
            "version": instance.version,
            "scheme": instance.scheme,
            "health": instance.health,
            "routes": ",".join(instance.routes),
            **instance.metadata,
        },
        "Weights": {"Passing": instance.weight, "Warning": 1},
        "Checks": [
            {
                "CheckID": f"service:{instance.id}:ready",
                "Name": "ready",
                "HTTP": instance.health_url,
                "Method": "GET",
                "Interval": f"{max(1, instance.ttl // 3)}s",
                "Timeout": f"{CHECK_SECONDS}s",
                **shared,
            },
            {
                "CheckID": _ttl_check(instance),
                "Name": "alive",
                "TTL": f"{instance.ttl}s",
                **shared,
            },
        ],
    }
