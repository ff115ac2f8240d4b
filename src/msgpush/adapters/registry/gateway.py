"""A gateway that is told of instances over HTTP: PUT again and again, and DELETE at the end."""

from urllib.parse import quote

from msgpush.adapters.registry.ports import Instance, Refused, Unavailable
from msgpush.adapters.registry.requests import Answer, Server

TOKEN_UNFIT = {
    True: "check GATEWAY_TOKEN, and what it may do there",
    False: "set GATEWAY_TOKEN",
}


class Gateway:
    """A `Registry` with one resource for each instance.

    Args:
        token: shown to it (RFC 6750); None: it asks for none.
    """

    kind = "gateway"

    def __init__(self, url: str, token: str | None = None) -> None:
        self._server, self._token = Server(url), token
        self.url = url

    async def announce(self, instance: Instance) -> None:
        answer = await self._ask("PUT", instance, instance.record())
        if not answer.ok:
            raise Unavailable(f"its answer's status is {answer.status}: {self._told(answer)}")

    async def renew(self, instance: Instance) -> bool:
        # The whole again: a gateway that comes back empty needs to be told no more than that.
        await self.announce(instance)
        return True

    async def withdraw(self, instance: Instance) -> None:
        answer = await self._ask("DELETE", instance)
        if not answer.ok and answer.status not in (404, 410):
            raise Unavailable(f"its answer's status is {answer.status}: {self._told(answer)}")

    async def _ask(self, method: str, instance: Instance, body: object = None) -> Answer:
        path = f"/services/{quote(instance.name, '')}/instances/{quote(instance.id, '')}"
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        answer = await self._server.ask(method, path, body, headers)
        if answer.status in (401, 403):
            advice = TOKEN_UNFIT[self._token is not None]
            raise Refused(f"it refuses us ({answer.status}: {self._told(answer)}): {advice}")
        return answer

    def _told(self, answer: Answer) -> str:
        return answer.text((self._token,) if self._token else ()) or "no text"
