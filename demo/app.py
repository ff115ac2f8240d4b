"""The demo's service: msgpush mounted in an application of its own, beside the demo's page.

Takes the flags of `msgpush serve`. Says on stdout when it is ready.
"""

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
from msgpush.adapters.notify.vapid import new_key, private_text
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.protocol import Limits
from msgpush.entrypoints.server import run
from msgpush.entrypoints.settings import Settings

PAGE = Path(__file__).parent / "page"


def create_demo(settings: Settings) -> Starlette:
    """The whole service, and the page at `/demo/`."""
    service = create_app(settings)

    @asynccontextmanager
    async def run_service(app: Starlette) -> AsyncIterator[None]:
        # Starlette runs the lifespan of the outermost application alone.
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


def main(argv: list[str]) -> int:
    """Serve until a signal; returns the exit status."""
    # The environment is left out: what a user has set there is meant for a service of theirs.
    # Keys of its own: a browser that was asked to subscribes anew after a restart.
    keys = {
        "VAPID_PRIVATE_KEY": private_text(new_key()),
        "VAPID_SUBJECT": "mailto:demo@example.com",
    }
    settings = Settings.from_environ(keys, argv)
    configure("warning", settings.log_format)
    app = create_demo(settings)
    return run(
        app,
        host=settings.service_host,
        port=settings.service_port,
        limits=Limits(header_timeout=settings.header_timeout, body_timeout=settings.body_timeout),
        drain=lambda: app.state.push.drain(settings.drain_seconds),
        drain_seconds=settings.drain_seconds,
        on_ready=lambda host, port: print(f"ready on {host} port {port}", flush=True),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
