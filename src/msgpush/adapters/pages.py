"""The pages: a start page with a live stream, the API's description, and the files that they are made of."""

from importlib import resources

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from msgpush.adapters.openapi import openapi

# Nothing from elsewhere, nothing inline but what Swagger UI sets on its own elements.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


def page_routes(version: str) -> list[BaseRoute]:
    """The routes of the pages."""
    description = openapi(version)
    folder = str(resources.files("msgpush.adapters") / "static")

    async def describe(_: Request) -> Response:
        return Response(description, media_type="application/json")

    async def start(_: Request) -> Response:
        return _page(f"{folder}/index.html")

    async def docs(_: Request) -> Response:
        return _page(f"{folder}/docs.html")

    return [
        Route("/", start),
        Route("/docs", docs),
        Route("/openapi.json", describe),
        Mount("/static", _Files(directory=folder)),
    ]


class _Files(StaticFiles):
    """Static files whose content is what their type says, and asked for anew when they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-cache"
        return response


def _page(path: str) -> Response:
    return FileResponse(path, headers={**SECURITY_HEADERS, "Cache-Control": "no-cache"})
