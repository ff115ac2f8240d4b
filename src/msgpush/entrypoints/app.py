"""The composition root: everything is made and wired here, and nowhere else."""

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route

from msgpush import __version__
from msgpush.adapters.auth import LocalOnly, OpenAuthenticator
from msgpush.adapters.channels import Channels
from msgpush.adapters.connections import Connections
from msgpush.adapters.memory_bus import MemoryBus
from msgpush.adapters.memory_roster import MemoryRoster
from msgpush.adapters.metrics import Gauges, Metrics
from msgpush.adapters.operations import Operations
from msgpush.adapters.pages import page_routes
from msgpush.adapters.publish import Publish, PublishBatch
from msgpush.adapters.redis_bus import RedisBus
from msgpush.adapters.redis_link import RedisTarget
from msgpush.adapters.redis_roster import RedisRoster
from msgpush.adapters.streams import Streams
from msgpush.adapters.web import ClientGone, on_client_gone, on_crash, on_error, on_http_exception
from msgpush.domain.errors import MsgpushError
from msgpush.domain.ports import Bus, Roster
from msgpush.domain.service import Push
from msgpush.entrypoints.settings import Settings


def create_app(settings: Settings) -> Starlette:
    """The whole service as an ASGI application, with a lifespan; `app.state.push` is its facade.

    An application that mounts it must enter `lifespan(app)` in its own lifespan: Starlette runs that of the outermost
    application alone.
    """
    # What has to be opened, in this order, and closed again.
    resources: list[AbstractAsyncContextManager[object]] = []
    bus: Bus
    roster: Roster
    # No other process has this name, nor has this one had it before it was started anew.
    node = f"{socket.gethostname()}-{secrets.token_hex(3)}"
    target = settings.redis
    if target is None:
        bus = MemoryBus(history_length=settings.history_length, size=settings.memory_bus_bytes)
        push = _push(settings, bus)
        roster = MemoryRoster(push.hub, node)
        resources = [push]
    else:
        bus = _redis_bus(settings, target)
        push = _push(settings, bus)
        roster = RedisRoster(target, push.hub, push.command, node=node)
        resources = [bus, push, roster]
    metrics = Metrics()
    push.hub.on_delivered = metrics.delivered
    metrics.registry.register(
        Gauges(
            connections=lambda: {"sse": len(push.hub.connections)}, bus_length=lambda: bus.length, up=lambda: push.alive
        )
    )
    app = Starlette(
        routes=_routes(settings, push, roster, metrics),
        middleware=_middleware(settings),
        exception_handlers={
            MsgpushError: on_error,
            HTTPException: on_http_exception,
            ClientGone: on_client_gone,
            Exception: on_crash,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.push, app.state.resources = push, resources
    return app


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Runs the service while it is open."""
    async with AsyncExitStack() as opened:
        for resource in app.state.resources:
            await opened.enter_async_context(resource)
        yield


def _redis_bus(settings: Settings, target: RedisTarget) -> RedisBus:
    return RedisBus(
        target,
        log_length=settings.log_length,
        history_length=settings.history_length,
        wait_replicas=settings.redis_wait_replicas,
    )


def _push(settings: Settings, bus: Bus) -> Push:
    return Push(
        bus,
        message_ttl=settings.message_ttl,
        heartbeat=settings.heartbeat_interval,
        write_timeout=settings.write_timeout,
        max_connections=settings.max_connections,
    )


def _routes(settings: Settings, push: Push, roster: Roster, metrics: Metrics) -> list[BaseRoute]:
    auth = OpenAuthenticator()
    events = settings.default_events
    one = settings.max_message_bytes
    channels = Channels(push, auth)
    connections = Connections(roster, auth)
    operations = Operations(push, metrics, __version__)
    api = "/api/v1"
    # The hot endpoints first, and as ASGI applications: that saves a Request and a wrapper each time.
    return [
        Route(f"{api}/messages/send", Publish(push, auth, metrics, max_bytes=one), methods=["POST"]),
        Route(
            f"{api}/messages/broadcast", Publish(push, auth, metrics, max_bytes=one, broadcast=True), methods=["POST"]
        ),
        Route(
            f"{api}/messages/batch",
            PublishBatch(push, auth, metrics, max_message_bytes=one, max_batch_bytes=settings.max_batch_bytes),
            methods=["POST"],
        ),
        Route("/sse/stream/{channel:path}", Streams("stream", push, auth, default_events=events)),
        Route("/sse/user/{user_id:path}", Streams("user", push, auth, default_events=events)),
        Route("/sse/service/{service_name:path}", Streams("service", push, auth, default_events=events)),
        Route(f"{api}/channels/{{channel:path}}/messages", channels.messages),
        Route(f"{api}/connections", connections.list),
        Route(f"{api}/connections/stats", connections.stats),
        Route(f"{api}/connections/{{id}}", connections.close, methods=["DELETE"]),
        Route("/health", operations.health),
        Route("/health/live", operations.live),
        Route("/health/ready", operations.ready),
        Route("/metrics", operations.metrics),
        *page_routes(__version__),
    ]


def _middleware(settings: Settings) -> list[Middleware]:
    middleware = []
    if settings.mode == "local":
        middleware.append(Middleware(LocalOnly, origins=settings.cors_origins))
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_credentials=True,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
                expose_headers=["Retry-After"],
                max_age=600,
            )
        )
    return middleware
