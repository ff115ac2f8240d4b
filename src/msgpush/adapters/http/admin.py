"""The operator's page, `/admin/`: the files that it is made of. Its data comes from the API."""

from importlib import resources
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from msgpush.adapters.http.operation import Operation, content, parameter

FOLDER = Path(str(resources.files("msgpush.adapters.http"))) / "static" / "admin"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with that, a page's own POST may carry `Origin: null`, as a stranger's does.
    "Referrer-Policy": "same-origin",
    # Kept, and asked for anew by its ETag: a new release is a new page at once.
    "Cache-Control": "no-cache",
}

OPERATIONS = (
    Operation(
        "GET",
        "/admin",
        tag="Pages",
        id="adminEntrance",
        summary="To the operator's page",
        answers={308: {"description": "It is `/admin/`."}},
        problems=[405],
    ),
    Operation(
        "GET",
        "/admin/",
        tag="Pages",
        id="admin",
        summary="The operator's page",
        answers={
            200: {
                "description": "The page.",
                "content": content("text/html", {"type": "string"}),
            },
            304: {"description": "It is as it was."},
        },
        problems=[405],
    ),
    Operation(
        "GET",
        "/admin/{file}",
        tag="Pages",
        id="adminFile",
        summary="What the operator's page is made of",
        answers={
            200: {"description": "The file.", "content": {"*/*": {}}},
            304: {"description": "It is as it was."},
        },
        problems=[404, 405],
        parameters=[parameter("file", "The file's path.", "path", examples=["main.js"])],
    ),
)


def admin_routes() -> list[BaseRoute]:
    """The routes of the page and its files; other paths below `/admin/` are left to others."""
    files = _Files(directory=FOLDER)
    shipped = frozenset(
        path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()
    )

    async def enter(_: Request) -> Response:
        # Relative, so that it is right whatever stands before it.
        return Response(status_code=308, headers={"Location": "admin/"})

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    async def file(request: Request) -> Response:
        return await files.get_response(request.path_params["file"], request.scope)

    return [
        Route("/admin", enter),
        Route("/admin/", page),
        _Shipped("/admin/{file:path}", file, shipped),
    ]


class _Shipped(Route):
    """The route of files that there are: any other path may be another's."""

    def __init__(self, path: str, endpoint: object, shipped: frozenset[str]) -> None:
        super().__init__(path, endpoint)  # type: ignore[arg-type]
        self._shipped = shipped

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is Match.NONE or child["path_params"]["file"] not in self._shipped:
            return Match.NONE, {}
        return match, child


class _Files(StaticFiles):
    """Files with the headers of a page: any of them may be opened as one."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response
