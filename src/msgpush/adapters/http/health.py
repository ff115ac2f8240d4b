"""`/health*` and `/metrics`: what a supervisor, a proxy and Prometheus ask."""

import asyncio
import time

from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import has_token
from msgpush.adapters.http.operation import Json, Operation, content, fields, json_answer
from msgpush.adapters.http.responses import json_response
from msgpush.adapters.metrics.collector import Metrics
from msgpush.adapters.metrics.text import CONTENT_TYPE
from msgpush.domain.errors import BusUnavailable, Unauthorized
from msgpush.domain.service import Push

KNOWN_SECONDS = 1.0
_OK = {"status": "ok"}


SCHEMAS: Json = {
    "Health": fields(status={"const": "ok"}) | {"examples": [{"status": "ok"}]},
    "Unhealthy": fields(status={"const": "unavailable"}, reason={"type": "string"}),
    "Details": fields(
        status={"const": "ok"},
        bus={"type": "string"},
        connections={"type": "integer", "description": "Streams that are open here."},
    ),
}


def _healthy(path: str, id: str, summary: str, schema: str = "Health") -> Operation:
    answers = {200: json_answer("Yes.", schema), 503: json_answer("No, and why.", "Unhealthy")}
    return Operation("GET", path, "Operate", id, summary, answers, [405])


OPERATIONS = (
    _healthy("/health", "health", "Whether the service does its work", "Details"),
    _healthy("/health/live", "live", "Whether the process works"),
    _healthy("/health/ready", "ready", "Whether new requests should come here"),
    Operation(
        "GET",
        "/metrics",
        tag="Operate",
        id="metrics",
        summary="Metrics",
        answers={
            200: {
                "description": "In Prometheus's text format.",
                "content": content("text/plain", {"type": "string"}),
            }
        },
        problems=[401, 405],
    ),
)


class HealthApi:
    """Serves the state of health, and the metrics.

    Args:
        bus: the bus's name.
        metrics_token: what who asks for the metrics has to show; None: nothing.
    """

    def __init__(
        self, push: Push, metrics: Metrics, *, bus: str, metrics_token: str | None = None
    ) -> None:
        self._push, self._metrics, self._metrics_token = push, metrics, metrics_token
        self._bus = bus
        self._asking = asyncio.Lock()
        self._known_until = 0.0
        self._bus_trouble: str | None = None

    async def health(self, _: Request) -> Response:
        """Tell whether the service does its work."""
        if (reason := await self._trouble()) is not None:
            return _unavailable(reason)
        details = {
            "status": "ok",
            "bus": self._bus,
            "connections": len(self._push.connections),
        }
        return json_response(details)

    async def live(self, _: Request) -> Response:
        """Tell whether the process works; where it doesn't, only a restart helps."""
        return json_response(_OK) if self._push.alive else _unavailable("delivery has stopped")

    async def ready(self, _: Request) -> Response:
        """Tell whether new requests should come here."""
        if (reason := self._push.unready) is None:
            return json_response(_OK)
        if not self._push.draining and not self._push.leaving and self._push.alive:
            # It may say why.
            reason = await self._trouble() or reason
        return _unavailable(reason)

    async def metrics(self, request: Request) -> Response:
        """The metrics, in Prometheus's text format."""
        if self._metrics_token is not None and not has_token(request.scope, self._metrics_token):
            raise Unauthorized(
                "the metrics need their own token (METRICS_TOKEN): `Authorization: Bearer <token>`"
            )
        return Response(await self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _trouble(self) -> str | None:
        if (reason := self._push.trouble) is not None:
            return reason
        # The bus is asked once a second, however many ask.
        async with self._asking:
            if time.monotonic() >= self._known_until:
                self._bus_trouble = await self._ask_bus()
                self._known_until = time.monotonic() + KNOWN_SECONDS
            return self._bus_trouble

    async def _ask_bus(self) -> str | None:
        try:
            await self._push.ask_bus()
        except BusUnavailable as error:
            return error.public
        return None


def _unavailable(reason: str) -> Response:
    return json_response({"status": "unavailable", "reason": reason}, 503)
