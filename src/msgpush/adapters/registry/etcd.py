"""etcd, over the JSON form of its v3 API: https://etcd.io/docs/latest/dev-guide/api_grpc_gateway/

An instance is a key with a lease, `/services/{name}/{id}`, whose value is its record: who watches
the prefix sees instances come and go."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from msgpush.adapters.registry.ports import Instance, Refused, Unavailable
from msgpush.adapters.registry.requests import SECONDS, Answer, Server, decoded

ADVICE = "check ETCD_USER, ETCD_PASSWORD, and that its role may write /services/"

# What gRPC's codes say (https://grpc.io/docs/guides/status-codes/).
INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, UNAUTHENTICATED = 3, 5, 7, 16


class _Error(Struct):
    code: int = 0


class _Lease(Struct):
    # 64 bits are a text in JSON, and what is 0 is left out.
    id: str = msgspec.field(name="ID", default="")
    ttl: str = msgspec.field(name="TTL", default="0")


class _Kept(Struct):
    result: _Lease


class _Found(Struct):
    count: str = "0"


class _Session(Struct):
    token: str


class Etcd:
    """A `Registry`: a cluster of etcd.

    Args:
        urls: its members; the next one is asked where one doesn't answer.
        user, password: those of etcd's own authentication, where that is on.
    """

    kind = "etcd"

    def __init__(
        self, urls: Sequence[str], user: str | None = None, password: str | None = None
    ) -> None:
        self._servers = [Server(url) for url in urls]
        self._user, self._password = user, password
        self._session: str | None = None
        self._lease: str | None = None

    @property
    def url(self) -> str:
        return self._servers[0].url

    async def announce(self, instance: Instance) -> None:
        # A session of a cluster that is no more isn't refused by the next one: that waits for a
        # change which the session says it has seen, and so doesn't answer.
        self._session = None
        granted = await self._ask("/lease/grant", {"TTL": instance.ttl}, _Lease)
        self._lease = granted.id
        value = msgspec.json.encode(instance.record())
        put = {"key": _key(instance), "value": _text(value), "lease": self._lease}
        await self._ask("/kv/put", put, dict)

    async def renew(self, instance: Instance) -> bool:
        if self._lease is None:
            return False
        kept = await self._ask("/lease/keepalive", {"ID": self._lease}, _Kept)
        if kept.result.ttl == "0":
            return False
        # A key that somebody has deleted leaves its lease behind.
        wanted = {"key": _key(instance), "count_only": True}
        found = await self._ask("/kv/range", wanted, _Found)
        return bool(found.count != "0")

    async def withdraw(self, instance: Instance) -> None:
        # By its key: the lease alone would leave what an earlier lease of ours still holds.
        await self._ask("/kv/deleterange", {"key": _key(instance)}, dict)
        lease, self._lease = self._lease, None
        if lease is not None:
            await self._ask("/lease/revoke", {"ID": lease}, dict, missing={})

    async def _ask(self, path: str, body: object, type: type[Any], missing: object = None) -> Any:
        """The answer of this type.

        Args:
            missing: returned where what was asked for isn't there, unless it is None."""
        if self._session is None and self._user is not None:
            await self._sign_in()
        answer = await self._post(path, body, self._headers())
        if answer.status == 401 and self._user is not None:
            # A session ends by itself, and with the member that began it.
            await self._sign_in()
            answer = await self._post(path, body, self._headers())
        if answer.ok:
            return decoded(answer, type)
        code = _code(answer)
        if code == NOT_FOUND and missing is not None:
            return missing
        # Where a user is wanted and none is given, that is an invalid argument.
        if code in (INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED) or answer.status == 403:
            self._session = None
            raise Refused(f"it refuses us ({answer.status}: {self._told(answer)}): {ADVICE}")
        raise Unavailable(f"its answer's status is {answer.status}: {self._told(answer)}")

    async def _sign_in(self) -> None:
        given = {"name": self._user, "password": self._password or ""}
        answer = await self._post("/auth/authenticate", given, {})
        if not answer.ok:
            self._session = None
            if answer.status == 412:
                self._session = ""  # authentication is off there: it takes whatever it is told
                return
            if answer.status in (400, 401, 403):
                raise Refused(f"it refuses us ({answer.status}: {self._told(answer)}): {ADVICE}")
            raise Unavailable(f"its answer's status is {answer.status}: {self._told(answer)}")
        self._session = decoded(answer, _Session).token

    async def _post(self, path: str, body: object, headers: Mapping[str, str]) -> Answer:
        """Ask the members, beginning with the one that answered last."""
        for _ in self._servers[1:]:
            try:
                return await self._asked(self._servers[0], path, body, headers)
            except Unavailable:
                self._servers.append(self._servers.pop(0))
        return await self._asked(self._servers[0], path, body, headers)

    async def _asked(
        self, server: Server, path: str, body: object, headers: Mapping[str, str]
    ) -> Answer:
        try:
            # One that is silent leaves the others their time.
            async with asyncio.timeout(SECONDS / len(self._servers)):
                answer = await server.ask("POST", f"/v3{path}", body, headers)
        except TimeoutError:
            raise Unavailable("it doesn't answer in time") from None
        if answer.status >= 500:
            # As a member answers that is cut off from the others.
            raise Unavailable(f"its answer's status is {answer.status}: {self._told(answer)}")
        return answer

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._session} if self._session else {}

    def _told(self, answer: Answer) -> str:
        secrets = tuple(each for each in (self._password, self._session) if each)
        try:
            said = msgspec.json.decode(answer.body, type=dict[str, Any]).get("error")
        except (msgspec.MsgspecError, UnicodeDecodeError):
            said = None
        told = answer._replace(body=said.encode()) if isinstance(said, str) else answer
        return told.text(secrets) or "no text"


def _key(instance: Instance) -> str:
    return _text(f"/services/{instance.name}/{instance.id}".encode())


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _code(answer: Answer) -> int:
    try:
        return msgspec.json.decode(answer.body, type=_Error).code
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0
