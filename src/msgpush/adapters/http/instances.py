"""`GET /api/v1/instances`: what each instance tells of itself."""

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import GUARDED, Operation, json_answer
from msgpush.adapters.http.requests import Query
from msgpush.adapters.http.responses import json_response
from msgpush.domain.ports import InstanceState, Roster


class InstanceList(Struct):
    """All instances that live."""

    instances: list[InstanceState]


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/instances",
        tag="Operate",
        id="instances",
        summary="What each instance tells of itself, about once a second",
        answers={200: json_answer("Those that live.", InstanceList)},
        problems=(*GUARDED, 503),
    ),
)


class InstancesApi:
    """Serves the operator's view of the instances."""

    def __init__(self, roster: Roster, auth: Authenticator) -> None:
        self._roster, self._auth = roster, auth

    async def list(self, request: Request) -> Response:
        Query(request.scope).done()
        grant = await self._auth.authenticate(request.scope)
        grant.check_admin()
        return json_response(InstanceList(await self._roster.instances()))
