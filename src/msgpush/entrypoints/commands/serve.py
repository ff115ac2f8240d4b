"""`msgpush serve`: run the service, in one process or in several."""

import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import ExitStack
from typing import get_args

import click
import msgspec
import structlog

from msgpush import __version__
from msgpush.adapters.auth.issuers import is_safe
from msgpush.adapters.http.addresses import with_port
from msgpush.adapters.http.dispatch import Service
from msgpush.adapters.logs import configure
from msgpush.adapters.metrics.shared import Shared
from msgpush.adapters.registry.registration import WITHDRAWAL_SECONDS
from msgpush.adapters.registry.reports import ReportFile, Reports
from msgpush.entrypoints.app import create_app
from msgpush.entrypoints.output import complain, say
from msgpush.entrypoints.protocol import Limits
from msgpush.entrypoints.registering import instance_id, registrations_of
from msgpush.entrypoints.server import address_of, listen, raise_open_files, run, unix_socket
from msgpush.entrypoints.settings import Settings, SettingsError, help_text
from msgpush.entrypoints.supervisor import (
    LEAVING_SECONDS,
    Supervisor,
    Worker,
    listen_together,
    worker_command,
)
from msgpush.entrypoints.table import FLAGS, SETTINGS, Format, Level

RESERVED_FILES = 128  # for publishers, health checks, the log: not for streams
HELP_WIDTH = 110  # columns; fewer where the terminal has fewer
DRAIN_GRACE = 5.0  # what a worker may take beyond DRAIN_SECONDS before it is ended

BUSES = {"memory": "from memory, which it forgets at exit", "redis": "with Redis"}
EXAMPLE = """\
Example:
  msgpush serve --service-port 8089 --heartbeat-interval 15
"""
CHOICES = {"log_level": get_args(Level), "log_format": get_args(Format)}

log = structlog.get_logger("msgpush")


class _Serve(click.Command):
    """The command whose flags are the table's settings."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing or {"--help", "-h"} & {*args}:
            return super().parse_args(ctx, args)
        # The settings read flags themselves: a value may be a key that begins with dashes, and what
        # is wrong with one is told as it is of a variable.
        ctx.params = {"flags": tuple(args)}
        return []

    def get_help(self, ctx: click.Context) -> str:
        columns = shutil.get_terminal_size((HELP_WIDTH, 24)).columns
        return f"{help_text(min(columns, HELP_WIDTH))}\n{EXAMPLE}"


def _options() -> list[click.Parameter]:
    """The flags, as a shell completes them."""
    return [
        click.Option([flag], type=_type(name) if name in SETTINGS else click.Path())
        for flag, name in FLAGS.items()
    ]


def _type(name: str) -> click.ParamType[str]:
    return click.Choice(CHOICES[name]) if name in CHOICES else click.STRING


@click.command(cls=_Serve, params=_options())
@click.pass_context
def serve(ctx: click.Context, flags: Sequence[str]) -> None:
    """Run the service."""
    ctx.exit(serve_with(flags, ctx.obj))


def serve_with(flags: Sequence[str], environ: MutableMapping[str, str]) -> int:
    """Run the service with these flags and variables, or a part of it as a worker does."""
    warnings: list[str] = []
    try:
        settings = Settings.from_environ(environ, flags, warnings.append)
    except SettingsError as error:
        complain(f"msgpush: {error}")
        return 2
    worker = Worker.from_environ(environ)
    if worker is not None:
        return work(settings, worker)
    if settings.workers > 1:
        return supervise(settings, flags, warnings)
    return serve_alone(settings, warnings)


def serve_alone(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """Run the service until a signal ends it; returns the exit status.

    Args:
        warnings: what is to be said of the settings, besides what they are.
    """
    configure(settings.log_level, settings.log_format)
    with ExitStack() as opened:
        listeners = _prepare(settings, opened, warnings)
        if not listeners:
            return 1
        id, listener = instance_id(), listeners[0]
        registrations = registrations_of(
            settings, id, listener, ready=lambda: app.state.push.unready is None
        )
        app = _app(settings, id, lambda: registrations.reports)

        def ready(host: str, port: int) -> None:
            _greet(settings, host, port)
            registrations.begin()

        return _run(settings, app, listener, leave=registrations.end, on_ready=ready)


def supervise(settings: Settings, flags: Sequence[str], warnings: Sequence[str] = ()) -> int:
    """Run the service in workers, which get these flags, until a signal; returns the exit status.

    Args:
        warnings: what is to be said of the settings, besides what they are.
    """
    configure(settings.log_level, settings.log_format)
    with ExitStack() as opened:
        listeners = _prepare(settings, opened, warnings)
        if not listeners:
            return 1
        address = address_of(listeners[0])
        try:
            directory = opened.enter_context(tempfile.TemporaryDirectory(prefix="msgpush-"))
        except OSError as error:
            log.error(
                "workers need a directory for files that they share, and none can be made: %s; give"
                " them one that can be written (TMPDIR names it; --tmpfs /tmp of a container)",
                error.strerror,
            )
            return 1
        file = ReportFile(directory)
        registrations = registrations_of(
            settings,
            instance_id(),
            listeners[0],
            ready=lambda: supervisor.welcoming,
            changed=lambda: file.write(registrations.reports),
        )

        def ready() -> None:
            _greet(settings, *address)
            registrations.begin()

        if registrations:
            file.write(registrations.reports)
        supervisor = Supervisor(
            worker_command(flags),
            listeners,
            environ={**os.environ, Shared.DIRECTORY: directory},
            patience=_leaving(settings) + settings.drain_seconds + DRAIN_GRACE,
            leave=registrations.end if registrations else None,
            on_ready=ready,
            on_exit=lambda number: Shared.forget(directory, number),
            on_stop=registrations.hold,
        )
        return supervisor.run()


def work(settings: Settings, worker: Worker) -> int:
    """Run the service as a supervisor's worker until a signal ends it; returns the exit status."""
    configure(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(pid=os.getpid())
    worker.watch(_leaving(settings) + settings.drain_seconds + DRAIN_GRACE)
    directory = os.environ[Shared.DIRECTORY]
    shared, file = Shared(directory, worker.number), ReportFile(directory)
    app = _app(settings, instance_id(), file.read, shared)

    def ready(*_: object) -> None:
        log.info("a worker serves", worker=worker.number)
        worker.serves(lambda: app.state.push.unready is None)

    async def leave() -> None:
        # The supervisor withdraws what all its workers are to others.
        await worker.leave(_leaving(settings))

    status = _run(settings, app, worker.listener, supervised=True, leave=leave, on_ready=ready)
    if worker.orphaned:
        file.remove()
        shared.leave()
    return status


def _prepare(settings: Settings, opened: ExitStack, warnings: Sequence[str]) -> list[socket.socket]:
    """The sockets that each process listens on; none, and a line in the log, if that can't be."""
    if _fitting(settings) < 1:
        log.error(
            f"no stream could be served: {RESERVED_FILES} open files are for other things, and the"
            " limit is no more; raise it (ulimit -n, LimitNOFILE of systemd, ulimits of"
            " compose.yaml)",
            open_files=raise_open_files(),
        )
        return []
    try:
        listeners = _listen(settings, opened)
    except OSError as error:
        where = settings.service_uds or f"{settings.service_host} port {settings.service_port}"
        log.error("can't listen on %s: %s", where, error.strerror or error)
        return []
    _warn(settings, warnings)
    return listeners


def _listen(settings: Settings, opened: ExitStack) -> list[socket.socket]:
    host, port, number = settings.service_host, settings.service_port, settings.workers
    if settings.service_uds is not None:
        first = opened.enter_context(
            unix_socket(settings.service_uds, int(settings.service_uds_mode, 8))
        )
        return [first, *(opened.enter_context(first.dup()) for _ in range(number - 1))]
    listeners = [listen(host, port)] if number == 1 else listen_together(host, port, number)
    return [opened.enter_context(listener) for listener in listeners]


def _app(settings: Settings, id: str, reports: Reports, shared: Shared | None = None) -> Service:
    fitting = msgspec.structs.replace(settings, max_connections=_fitting(settings))
    return create_app(fitting, node=id, reports=reports, shared=shared)


def _leaving(settings: Settings) -> float:
    """The seconds from a signal to the drain, at most: registries are told before it begins."""
    if not settings.registries:
        return 0.0
    return LEAVING_SECONDS + WITHDRAWAL_SECONDS + settings.withdraw_seconds


def _run(
    settings: Settings,
    app: Service,
    listener: socket.socket,
    *,
    supervised: bool = False,
    leave: Callable[[], Awaitable[None]],
    on_ready: Callable[[str, int], None],
) -> int:
    """Serve with these settings; returns the exit status.

    Args:
        leave: has nobody sent here any more; awaited after readiness fails, before the drain.
    """

    async def drain() -> None:
        app.state.push.leave()
        await leave()
        await app.state.push.drain(settings.drain_seconds)

    return run(
        app,
        host=settings.service_host,
        port=settings.service_port,
        listener=listener,
        supervised=supervised,
        root_path=settings.root_path,
        limits=Limits(
            header_timeout=settings.header_timeout,
            body_timeout=settings.body_timeout,
            max_message_bytes=settings.max_message_bytes,
            ping_interval=settings.heartbeat_interval,
            ping_timeout=settings.write_timeout,
        ),
        drain=drain,
        drain_seconds=_leaving(settings) + settings.drain_seconds,
        on_ready=on_ready,
        on_refused=app.state.tally.refused,
        cors=app.state.cors.answer,
    )


def _warn(settings: Settings, warnings: Sequence[str] = ()) -> None:
    """Log what may be a mistake in the settings."""
    for warning in warnings:
        log.warning(warning)
    if settings.mode == "open":
        log.warning(
            "authentication is off: whoever reaches this address may publish and listen to"
            " everything"
        )
    public = settings.jwt_public_key or settings.jwks_url or settings.discovers_keys
    if settings.mode == "tokens" and not settings.jwt_audience and public:
        log.warning(
            "JWT_AUDIENCE is not set: tokens that their issuer made for nobody in particular are"
            " accepted, and those with an aud are refused"
        )
    if (
        settings.service_uds is not None
        and settings.mode != "local"
        and "unix" not in settings.trusted_proxies
    ):
        log.warning(
            "clients on SERVICE_UDS have no address and no scheme but http:"
            ' TRUSTED_PROXIES=["unix"] takes the word of the proxy that connects to it'
        )
    if settings.service_uds is None and "unix" in settings.trusted_proxies:
        log.warning(
            'TRUSTED_PROXIES has "unix", which means nothing without SERVICE_UDS: on a port,'
            " addresses count"
        )
    if (settings.jwks_url or "").startswith("http://"):
        log.warning("JWKS_URL is not https: whoever is in between can make tokens")
    for name in settings.registries:
        if not all(map(is_safe, getattr(settings, name).split(","))):
            log.warning(
                f"{name.upper()} is not https: whoever is in between can read its token, and"
                " change what it is told"
            )
    if settings.redis is not None and settings.redis.options.get("ssl_cert_reqs") == "none":
        log.warning(
            "REDIS_URL has ssl_cert_reqs=none: whoever is in between can read and change everything"
        )
    if (room := _fitting(settings)) < settings.max_connections:
        log.warning(
            "MAX_CONNECTIONS is lowered to what the limit of open files allows",
            max_connections=room,
        )


def _fitting(settings: Settings) -> int:
    """The streams that this process can serve, and is allowed to."""
    return min(settings.max_connections, raise_open_files() - RESERVED_FILES)


def _greet(settings: Settings, host: str, port: int) -> None:
    """Say that the service is ready, and how to try it."""
    bus = "redis" if settings.redis_host or settings.redis_url else "memory"
    where: dict[str, str | int] = (
        {"host": host, "port": port} if settings.service_uds is None else {"uds": host}
    )
    log.info("ready", version=__version__, **where, bus=bus, workers=settings.workers)
    if settings.log_format == "json":
        return
    # Not every machine and browser takes "any address" for its own.
    shown_host = "localhost" if host in ("0.0.0.0", "::") else host
    url, curl, page = f"http://{with_port(shown_host, port)}", "curl", ""
    if settings.service_uds is None:
        page = f"or open {url}/ in a browser; {url}/admin/ is the operator's page.\n  "
    else:
        url, curl = "http://localhost", f"curl --unix-socket {shlex.quote(host)}"
    message = '{"type":"info","service":"me","channels":["demo"],"data":{"hello":"world"}}'
    token = header = ""
    if settings.mode == "tokens":
        key = "" if settings.jwt_secret else " --key private.pem"
        command = "msgpush" if shutil.which("msgpush") else f"{sys.executable} -m msgpush"
        allowed = f"--subscribe demo --publish demo --publish service:me{key}"
        token = f"\n    TOKEN=$({command} token issue --sub me {allowed})"
        header = ' -H "Authorization: Bearer $TOKEN"'
    say(
        f"\n  msgpush {__version__} serves {settings.service_uds or f'{url}/'} {BUSES[bus]}.\n  Try"
        " it in two other"
        f" terminals{', each with the same key in its environment' if token else ''}:\n{token}\n   "
        f" {curl} -N {url}/sse/stream/demo{header}\n    {curl} {url}/api/v1/messages/send{header}"
        f" -d '{message}'\n\n  {page}Ctrl-C ends it.\n"
    )
