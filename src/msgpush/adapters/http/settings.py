"""`/api/v1/settings`: the settings in force, and where each came from."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import Operation, json_answer
from msgpush.adapters.http.requests import Query
from msgpush.adapters.http.responses import json_response

Source = Literal["default", "environment", "flag", "file"]


class ShownSetting(Struct, frozen=True):
    """A setting in force; `value` is null where it isn't shown, since it may be secret."""

    name: str
    value: str | None
    source: Source


class SettingsInForce(Struct, frozen=True):
    """All settings, in the order of their table."""

    settings: Sequence[ShownSetting]


OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/settings",
        tag="Operate",
        id="settings",
        summary="The settings in force, without secrets, and where each came from",
        answers={200: json_answer("The settings.", SettingsInForce)},
    ),
)


class SettingsApi:
    """Serves the settings of this instance."""

    def __init__(self, auth: Authenticator, shown: Sequence[ShownSetting]) -> None:
        self._auth = auth
        self._answer = SettingsInForce(shown)

    async def settings(self, request: Request) -> Response:
        Query(request.scope).done()
        grant = await self._auth.authenticate(request.scope)
        grant.check_admin()
        return json_response(self._answer)
