"""`/api/v1/connections`: who is connected, anywhere, and the end of a connection."""

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import (
    GUARDED,
    Operation,
    json_answer,
    limit,
    parameter,
    repeatable,
)
from msgpush.adapters.http.problems import NotFound
from msgpush.adapters.http.requests import Query
from msgpush.adapters.http.responses import json_response
from msgpush.domain.ports import ConnectionFilter, ConnectionState, ConnectionStats, Roster
from msgpush.domain.quoting import short_repr


class ConnectionList(Struct):
    """A page of connections; `next` continues the list where it isn't null."""

    connections: list[ConnectionState]
    next: str | None


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/connections",
        tag="Operate",
        id="connections",
        summary="The live connections of all instances",
        answers={200: json_answer("A page of them.", ConnectionList)},
        parameters=[
            repeatable("user", "Those that listen to this user's channel."),
            repeatable("service", "Those that listen to this service's channel."),
            repeatable("channel", "Those that listen to this channel."),
            parameter("subject", "Those of this subject."),
            parameter("node", "Those at this instance."),
            limit("Connections"),
            parameter("next", "Where the last answer said that the list goes on."),
        ],
    ),
    Operation(
        "GET",
        "/api/v1/connections/stats",
        tag="Operate",
        id="connectionStats",
        summary="Totals over all instances",
        answers={200: json_answer("The totals.", ConnectionStats)},
    ),
    Operation(
        "DELETE",
        "/api/v1/connections/{id}",
        tag="Operate",
        id="closeConnection",
        summary="Close a connection, wherever it is",
        answers={204: {"description": "It is closed."}},
        problems=(*GUARDED, 404),
        parameters=[
            parameter("id", "The connection's id.", "path"),
            parameter(
                "reconnect", "Whether its client may come back.", type="boolean", default=True
            ),
        ],
    ),
)


class ConnectionsApi:
    """Serves the operator's view of the live connections."""

    def __init__(self, roster: Roster, auth: Authenticator) -> None:
        self._roster, self._auth = roster, auth

    async def list(self, request: Request) -> Response:
        query = Query(request.scope)
        channels = set(query.all("channel"))
        channels |= {f"{kind}:{value}" for kind in ("user", "service") for value in query.all(kind)}
        wanted = ConnectionFilter(frozenset(channels), query.one("subject"), query.one("node"))
        limit = query.integer("limit", 100, 1, 1000)
        after = query.one("next")
        query.done()
        await self._check(request)
        found, following = await self._roster.connections(wanted, limit, after)
        return json_response(ConnectionList(found, following))

    async def stats(self, request: Request) -> Response:
        Query(request.scope).done()
        await self._check(request)
        return json_response(await self._roster.stats())

    async def close(self, request: Request) -> Response:
        query = Query(request.scope)
        reconnect = query.flag("reconnect", True)
        query.done()
        await self._check(request)
        id = request.path_params["id"]
        if not await self._roster.close(id, reconnect=reconnect):
            raise NotFound(f"there is no connection {short_repr(id)}")
        return Response(status_code=204)

    async def _check(self, request: Request) -> None:
        grant = await self._auth.authenticate(request.scope)
        grant.check_admin()
