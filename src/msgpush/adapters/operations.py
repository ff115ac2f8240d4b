"""`/health*` and `/metrics`: what a supervisor, a proxy and Prometheus ask."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.metrics import CONTENT_TYPE, Metrics
from msgpush.adapters.web import encode
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.service import Push


class Operations:
    """The service's state of health."""

    def __init__(self, push: Push, metrics: Metrics, version: str) -> None:
        self._push, self._metrics, self._version = push, metrics, version

    async def health(self, _: Request) -> Response:
        """Whether the service does its work."""
        if (reason := await self._trouble()) is not None:
            return _unavailable(reason)
        details = {
            "status": "ok",
            "version": self._version,
            "bus": type(self._push.bus).__name__.removesuffix("Bus").lower(),
            "connections": len(self._push.hub.connections),
        }
        return _json(200, details)

    async def live(self, _: Request) -> Response:
        """Whether the process works; where it doesn't, only a restart helps."""
        return _json(200, {"status": "ok"}) if self._push.alive else _unavailable("delivery has stopped")

    async def ready(self, _: Request) -> Response:
        """Whether new requests should come here."""
        if self._push.draining:
            return _unavailable("draining")
        if not self._push.alive:
            return _unavailable("delivery has stopped")
        if not self._push.ready:
            return _unavailable(await self._trouble() or "what is published doesn't come back from the bus")
        return _json(200, {"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        """The metrics, in Prometheus's text format."""
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _trouble(self) -> str | None:
        if not self._push.alive:
            return "delivery has stopped"
        try:
            await self._push.bus.end()
        except BusUnavailable as error:
            return error.detail
        return None


def _json(status: int, content: Mapping[str, object]) -> Response:
    return Response(encode(content), status, {"Cache-Control": "no-store"}, "application/json")


def _unavailable(reason: str) -> Response:
    return _json(503, {"status": "unavailable", "reason": reason})
