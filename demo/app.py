"""The demo's service: msgpush mounted in an application of its own, beside the demo's page."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from msgpush.adapters.logs import configure
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.server import run
from msgpush.entrypoints.settings import Settings

PAGE = Path(__file__).parent / "page"


def create_demo(settings: Settings) -> Starlette:
    """The whole service, and the page at `/demo/`."""
    service = create_app(settings)

    @asynccontextmanager
    async def run_service(app: Starlette) -> AsyncIterator[None]:
        async with lifespan(service):
            yield

    async def to_page(_: Request) -> RedirectResponse:
        return RedirectResponse("demo/")

    app = Starlette(
        routes=[
            Route("/demo", to_page),
            Mount("/demo", StaticFiles(directory=PAGE, html=True)),
            Mount("/", service),
        ],
        lifespan=run_service,
    )
    app.state.push = service.state.push
    return app


def main() -> int:
    """Serve until a signal; returns the exit status."""
    settings = Settings.from_environ(os.environ)
    configure("warning", settings.log_format)
    app = create_demo(settings)
    return run(
        app,
        host=settings.service_host,
        port=settings.service_port,
        drain=lambda: app.state.push.drain(settings.drain_seconds),
        drain_seconds=settings.drain_seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
