"""The `msgpush` command."""

import os
import sys
from collections.abc import Sequence

import msgspec
import structlog

from msgpush import __version__
from msgpush.adapters.logs import configure
from msgpush.entrypoints.app import create_app
from msgpush.entrypoints.protocol import Limits
from msgpush.entrypoints.server import raise_open_files, run
from msgpush.entrypoints.settings import Settings, SettingsError, help_text

RESERVED_FILES = 128  # for publishers, health checks, the log: not for streams

USAGE = """\
usage: msgpush serve [--SETTING VALUE ...]   run the service (--help lists the settings)
       msgpush --version
       msgpush --help
"""

log = structlog.get_logger("msgpush")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its status: 0 done, 1 failed, 2 asked wrongly."""
    sys.exit(_main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> int:
    match argv:
        case ["--version"]:
            print(f"msgpush {__version__}")
            return 0
        case ["--help" | "-h"] | []:
            print(USAGE, end="")
            return 0 if argv else 2
        case ["serve", *flags]:
            if "--help" in flags or "-h" in flags:
                print(help_text())
                return 0
            try:
                settings = Settings.from_environ(os.environ, flags)
            except SettingsError as error:
                print(f"msgpush: {error}", file=sys.stderr)
                return 2
            return serve(settings)
        case [command, *_]:
            print(f"msgpush: there is no command {command!r}\n{USAGE}", end="", file=sys.stderr)
            return 2
        case _:
            raise AssertionError(argv)


def serve(settings: Settings) -> int:
    """Run the service until a signal ends it; returns the exit status."""
    configure(settings.log_level, settings.log_format)
    if settings.mode == "open":
        log.warning("authentication is off: whoever reaches this address may publish and listen to everything")
    settings = _fit_open_files(settings)
    app = create_app(settings)
    return run(
        app,
        host=settings.service_host,
        port=settings.service_port,
        root_path=settings.root_path,
        limits=Limits(header_timeout=settings.header_timeout, body_timeout=settings.body_timeout),
        drain=lambda: app.state.push.drain(settings.drain_seconds),
        drain_seconds=settings.drain_seconds,
        on_ready=lambda host, port: _greet(settings, host, port),
    )


def _fit_open_files(settings: Settings) -> Settings:
    room = raise_open_files() - RESERVED_FILES
    if settings.max_connections <= room:
        return settings
    log.warning("MAX_CONNECTIONS is lowered to what the limit of open files allows", max_connections=room)
    return msgspec.structs.replace(settings, max_connections=room)


def _greet(settings: Settings, host: str, port: int) -> None:
    log.info("ready", version=__version__, host=host, port=port, bus="memory")
    if settings.log_format == "json":
        return
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    message = '{"type":"info","service":"me","channels":["demo"],"data":{"hello":"world"}}'
    print(
        f"\n  msgpush {__version__} serves {url}/ from memory, which it forgets at exit."
        f"\n  Try it in two other terminals:\n"
        f"\n    curl -N {url}/sse/stream/demo"
        f"\n    curl {url}/api/v1/messages/send -d '{message}'\n"
        f"\n  or open {url}/ in a browser. Ctrl-C ends it.\n",
        flush=True,
    )
