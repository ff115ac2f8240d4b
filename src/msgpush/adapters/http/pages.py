"""The start page, the page of the API's description, and the files that they are made of."""

from importlib import resources
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from msgpush.adapters.http.operation import Json, Operation, content, parameter

_OWN = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src"
    " 'none'"
)
# Swagger UI draws its arrows from data: images; its styles it sets by script, which needs no
# permission.
_SWAGGER_UI = f"{_OWN}; img-src 'self' data:"


def _described(path: str, id: str, summary: str, media_type: str, schema: Json) -> Operation:
    answer = {"description": summary, "content": content(media_type, schema)}
    return Operation("GET", path, "Pages", id, summary, {200: answer}, [405])


OPERATIONS = (
    _described("/", "start", "The start page, with a live stream", "text/html", {"type": "string"}),
    _described("/docs", "docs", "This description, as a page", "text/html", {"type": "string"}),
    _described(
        "/openapi.json", "openapi", "This description", "application/json", {"type": "object"}
    ),
    Operation(
        "GET",
        "/static/{path}",
        tag="Pages",
        id="static",
        summary="What the pages are made of",
        answers={
            200: {"description": "The file.", "content": {"*/*": {}}},
            304: {"description": "It is as it was."},
        },
        problems=[404, 405],
        parameters=[parameter("path", "The file's path.", "path", examples=["page.css"])],
    ),
)


def page_routes(description: bytes) -> list[BaseRoute]:
    """The routes of the pages; `description` is the API's, as JSON."""
    folder = str(resources.files("msgpush.adapters.http") / "static")

    async def describe(_: Request) -> Response:
        return Response(
            description,
            media_type="application/json",
            headers={"X-Content-Type-Options": "nosniff"},
        )

    async def start(_: Request) -> Response:
        return _page(f"{folder}/index.html", _OWN)

    async def docs(_: Request) -> Response:
        return _page(f"{folder}/docs.html", _SWAGGER_UI)

    return [
        Route("/", start),
        Route("/docs", docs),
        Route("/openapi.json", describe),
        _Folder("/static", _Files(directory=folder)),
    ]


class _Folder(Mount):
    """A folder of files, of which none is a WebSocket."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if scope["type"] == "http" else (Match.NONE, {})


class _Files(StaticFiles):
    """Static files, never taken for another type, and asked for anew when they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if Path(path).parts[:1] in (("admin",), ("..",)) or path.endswith(".html"):
            raise HTTPException(404)  # pages have headers and paths of their own: see admin.py, too
        response = await super().get_response(path, scope)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-cache"
        return response


def _page(path: str, policy: str) -> Response:
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # Not no-referrer: with that, a page's own POST may carry `Origin: null`, as a stranger's
        # does.
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return FileResponse(path, headers=headers)
