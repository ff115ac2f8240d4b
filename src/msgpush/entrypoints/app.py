"""The composition root: everything is made and wired here, and nowhere else."""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from math import ceil

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Scope

from msgpush import __version__
from msgpush.adapters.auth.explanation import ExplainApi
from msgpush.adapters.auth.sign_in import SignInApi
from msgpush.adapters.http.acknowledgements import MAX_KEYS, AcknowledgementsApi
from msgpush.adapters.http.addresses import ProxyHeaders
from msgpush.adapters.http.admin import admin_routes
from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.connections import ConnectionsApi
from msgpush.adapters.http.cors import Cors, CorsRules
from msgpush.adapters.http.deliveries import DeliveriesApi
from msgpush.adapters.http.devices import DevicesApi
from msgpush.adapters.http.dispatch import Service
from msgpush.adapters.http.health import HealthApi
from msgpush.adapters.http.history import HistoryApi
from msgpush.adapters.http.instances import InstancesApi
from msgpush.adapters.http.local_only import LocalOnly
from msgpush.adapters.http.origins import Origins, url_origin
from msgpush.adapters.http.pages import page_routes
from msgpush.adapters.http.permissions import PermissionsApi
from msgpush.adapters.http.publish import Publish, PublishBatch
from msgpush.adapters.http.settings import SettingsApi
from msgpush.adapters.http.statistics import StatisticsApi
from msgpush.adapters.http.tracing import Tracing
from msgpush.adapters.memory.limiter import MemoryLimiter
from msgpush.adapters.metrics.collector import Metrics
from msgpush.adapters.metrics.shared import Shared
from msgpush.adapters.metrics.sources import Process, of_service, of_tally
from msgpush.adapters.openapi import openapi
from msgpush.adapters.registry.reports import Reports, of_registries, summary
from msgpush.adapters.sse.endpoint import Streams
from msgpush.adapters.stream_log import StreamLog
from msgpush.adapters.traces import traces_of
from msgpush.adapters.websocket.commands import Means
from msgpush.adapters.websocket.endpoint import Sockets
from msgpush.domain.instances import InstanceReport, Pulse
from msgpush.domain.observer import Observer, Observers
from msgpush.domain.ports import Bus, Limiter, Roster, Statistics
from msgpush.domain.service import Push
from msgpush.domain.statistics import Recording
from msgpush.domain.tally import Tally
from msgpush.entrypoints.access import access_of
from msgpush.entrypoints.backends import Backend, backend_of
from msgpush.entrypoints.notifying import Notifying, notifying_of
from msgpush.entrypoints.registering import instance_id
from msgpush.entrypoints.settings import Settings
from msgpush.entrypoints.shown import shown

API = "/api/v1"

# Of one subject, at one instance: enough for a service that asks for all of its users, and no way
# to fill the memory.
TICKETS_PER_SECOND = 200
TICKETS_AT_ONCE = 2_000


def create_app(
    settings: Settings,
    *,
    node: str = "",
    reports: Reports = tuple,
    shared: Shared | None = None,
    counted: bool = True,
) -> Service:
    """The whole service as an ASGI application, with a lifespan; `app.state.push` is its facade.

    An application that mounts it must enter `lifespan(app)` in its own lifespan: Starlette runs
    that of the outermost application alone.

    Args:
        node: the instance's name, which no other process has; empty: one is made.
        reports: how its registrations stand.
        shared: what a worker shares with the others of its supervisor.
        counted: whether what happens is counted; only to find out what that costs, it isn't.
    """
    backend = backend_of(settings)
    bus, limiter = backend.bus, backend.limiter
    tally = Tally()
    pulse = Pulse(tally)
    process = Process(pulse)
    streams = StreamLog()
    observer = Observers(tally, streams) if counted else streams
    notifying = notifying_of(settings)
    push = _push(settings, backend, notifying, observer)
    metrics = _metrics(settings, push, bus, tally, process, bus_name=backend.name, shared=shared)
    metrics.add(lambda: of_registries(reports()))
    node = node or instance_id()
    statistics = backend.statistics
    recording = Recording(tally, statistics, node)
    report = InstanceReport(
        push,
        tally,
        pulse,
        node=node,
        version=__version__,
        bus=backend.name,
        limit=settings.max_connections,
        registration=lambda: summary(reports()),
    )
    roster = backend.roster(push, node, report)
    # Opened in this order, as far as there is anything to open, and closed again in the other: what
    # happens to the last is recorded.
    resources: list[AbstractAsyncContextManager[object]] = [
        each
        for each in (
            bus,
            backend.credentials,
            backend.devices,
            *notifying.resources,
            statistics,
            recording,
            pulse,
            streams,
            push,
            roster,
            limiter,
            process,
            metrics,
        )
        if isinstance(each, AbstractAsyncContextManager)
    ]
    local = settings.mode == "local"
    rules = CorsRules(Origins(settings.cors_origins, loopback=local), settings.cors_headers)
    # Browsers find it there, whatever Host a proxy passes on.
    own = () if settings.public_url is None else (url_origin(settings.public_url),)
    pages = Origins((*settings.cors_origins, *own), loopback=local)
    access = access_of(settings, push, pages)
    resources += access.resources
    auth, tokens = access.auth, access.tokens
    traces = traces_of(os.environ)
    if traces is not None:
        resources.append(traces)
    tracing = Tracing(traces, tells=settings.trace_messages)
    publish = _publish_endpoints(settings, push, auth, limiter=limiter, tracing=tracing)
    routes = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in publish.items()),
        *_routes(
            settings,
            push,
            auth,
            limiter=limiter,
            roster=roster,
            statistics=statistics,
            metrics=metrics,
            tally=tally,
            tracing=tracing,
            bus=backend.name,
            pages=pages,
            devices=DevicesApi(push, backend.devices, auth, notifying.rules),
        ),
        *SignInApi(push, auth, settings.mode, access.sign_in).routes(),
        Route(f"{API}/settings", SettingsApi(auth, shown(settings)).settings),
        Route(
            f"{API}/tokens/explain",
            ExplainApi(push, auth, None if tokens is None else tokens.read).explain,
            methods=["POST"],
        ),
        *page_routes(openapi()),
        *admin_routes(),
    ]
    prefix = settings.root_path
    app = Service(
        [*_under(prefix, routes), *routes],
        _middleware(settings, rules),
        lifespan,
        hot=publish | {prefix + path: endpoint for path, endpoint in publish.items()},
        on_error=tally.answered,
    )
    app.state.push, app.state.resources, app.state.cors = push, resources, rules
    app.state.tally, app.state.metrics = tally, metrics
    return app


@asynccontextmanager
async def lifespan(app: Service) -> AsyncIterator[None]:
    """Runs the service while it is open."""
    async with AsyncExitStack() as opened:
        for resource in app.state.resources:
            await opened.enter_async_context(resource)
        yield


def _push(settings: Settings, backend: Backend, notifying: Notifying, observer: Observer) -> Push:
    return Push(
        backend.bus,
        credentials=backend.credentials,
        devices=backend.devices,
        notifiers=notifying.notifiers,
        words=notifying.words,
        push_delay=settings.push_delay,
        push_concurrency=settings.push_concurrency,
        observer=observer,
        message_ttl=settings.message_ttl,
        ack_ttl=settings.ack_ttl,
        heartbeat=settings.heartbeat_interval,
        write_timeout=settings.write_timeout,
        max_connections=settings.max_connections,
        max_connections_per_subject=settings.max_connections_per_subject,
        max_connections_per_address=settings.max_connections_per_address,
        leeway=settings.jwt_leeway,
        max_token_lifetime=settings.max_token_lifetime,
    )


def _metrics(
    settings: Settings,
    push: Push,
    bus: Bus,
    tally: Tally,
    process: Process,
    *,
    bus_name: str,
    shared: Shared | None,
) -> Metrics:
    limit = settings.log_length if bus_name == "redis" else 0
    return Metrics(
        lambda: of_tally(tally),
        of_service(push, bus, tally, kind=bus_name, limit=limit),
        process.figures,
        shared=shared,
    )


class _Rest(PathConvertor):
    # Starlette's own ends at a line end: a name that has one would be no such path, instead of no
    # name.
    regex = "(?s:.*)"


def _publish_endpoints(
    settings: Settings,
    push: Push,
    auth: Authenticator,
    *,
    limiter: Limiter | None,
    tracing: Tracing,
) -> dict[str, ASGIApp]:
    """The hot endpoints, by their paths."""
    one = settings.max_message_bytes
    publish = partial(Publish, push, auth, max_bytes=one, limiter=limiter, tracing=tracing)
    return {
        f"{API}/messages/send": publish(),
        f"{API}/messages/broadcast": publish(broadcast=True),
        f"{API}/messages/batch": PublishBatch(
            push,
            auth,
            max_message_bytes=one,
            max_batch_bytes=settings.max_batch_bytes,
            limiter=limiter,
            tracing=tracing,
        ),
    }


def _routes(
    settings: Settings,
    push: Push,
    auth: Authenticator,
    *,
    limiter: Limiter | None,
    roster: Roster,
    statistics: Statistics,
    metrics: Metrics,
    tally: Tally,
    tracing: Tracing,
    bus: str,
    pages: Origins,
    devices: DevicesApi,
) -> list[BaseRoute]:
    """Every path of the service, and its handler."""
    history = HistoryApi(push, auth)
    connections, instances = ConnectionsApi(roster, auth), InstancesApi(roster, auth)
    health = HealthApi(push, metrics, bus=bus, metrics_token=settings.metrics_token)
    permissions = PermissionsApi(
        push,
        auth,
        MemoryLimiter(TICKETS_PER_SECOND, TICKETS_AT_ONCE),
        max_lifetime=settings.max_token_lifetime,
        leeway=settings.jwt_leeway,
    )
    acknowledging = _ack_limiter(settings.ack_rate)
    acknowledgements = AcknowledgementsApi(push, auth, acknowledging)
    deliveries = DeliveriesApi(push, auth)
    streams = partial(Streams, push=push, auth=auth, default_events=settings.default_events)
    most = settings.max_message_bytes
    means = Means(push, auth, limiter, acknowledging, most, tally.answered, tracing)
    sockets = Sockets(push, means, pages)
    register_url_convertor("rest", _Rest())
    return [
        Route("/sse/stream/{channel:rest}", streams("stream")),
        Route("/sse/user/{user_id:rest}", streams("user")),
        Route("/sse/service/{service_name:rest}", streams("service")),
        Route("/ws", sockets),
        WebSocketRoute("/ws", sockets),
        Route(f"{API}/channels/{{channel:rest}}/messages", history.messages),
        Route(
            f"{API}/users/{{user_id:rest}}/acknowledgements",
            acknowledgements.acknowledge,
            methods=["POST"],
        ),
        Route(f"{API}/users/{{user_id:rest}}/pending", acknowledgements.pending),
        Route(f"{API}/push", devices.kinds),
        Route(
            f"{API}/users/{{user_id:rest}}/devices",
            devices.devices,
            methods=["GET", "POST", "DELETE"],
        ),
        Route(
            f"{API}/users/{{user_id:rest}}/devices/{{device}}",
            devices.device,
            methods=["DELETE"],
        ),
        Route(
            f"{API}/messages/{{service}}/{{id}}/delivery",
            deliveries.delivery,
            methods=["GET", "DELETE"],
        ),
        Route(f"{API}/dead-letters", deliveries.dead_letters),
        Route(f"{API}/dead-letters/{{service}}/{{id}}", deliveries.forget, methods=["DELETE"]),
        Route(
            f"{API}/dead-letters/{{service}}/{{id}}/redeliver", deliveries.revive, methods=["POST"]
        ),
        Route(f"{API}/connections", connections.list),
        Route(f"{API}/connections/stats", connections.stats),
        Route(f"{API}/connections/{{id}}", connections.close, methods=["DELETE"]),
        Route(f"{API}/instances", instances.list),
        Route(f"{API}/stats/messages", StatisticsApi(statistics, auth).messages),
        Route(f"{API}/tickets", permissions.ticket, methods=["POST"]),
        Route(f"{API}/revocations", permissions.revoke, methods=["POST"]),
        Route("/health", health.health),
        Route("/health/live", health.live),
        Route("/health/ready", health.ready),
        Route("/metrics", health.metrics),
    ]


def _ack_limiter(rate: float) -> MemoryLimiter | None:
    return MemoryLimiter(rate, max(MAX_KEYS, ceil(rate))) if rate else None


def _under(prefix: str, routes: list[BaseRoute]) -> list[BaseRoute]:
    """The same routes, for a proxy that leaves the prefix in the path."""
    if not prefix:
        return []

    async def enter(_: Request) -> Response:
        # Relative, so that it is right whatever stands before it.
        return Response(status_code=308, headers={"Location": prefix.rpartition("/")[2] + "/"})

    return [_Under(prefix, Router(routes, redirect_slashes=False)), Route(prefix, enter)]


class _Under(Mount):
    """A mount that leaves to others what it has no route for.

    Our own paths may begin with its prefix."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        inner = {**scope, **child}
        if match is Match.FULL and all(
            route.matches(inner)[0] is Match.NONE for route in self.routes
        ):
            return Match.NONE, {}
        return match, child


def _middleware(settings: Settings, rules: CorsRules) -> list[Middleware]:
    middleware = []
    if settings.trusted_proxies:
        # Outermost: all others see the client's own address and scheme.
        middleware.append(Middleware(ProxyHeaders, trusted=settings.trusted_proxies))
    if settings.mode == "local":
        middleware.append(Middleware(LocalOnly, rules=rules))
    if rules.origins:
        middleware.append(Middleware(Cors, rules=rules))
    return middleware
