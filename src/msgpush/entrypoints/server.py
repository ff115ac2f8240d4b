"""The HTTP server: uvicorn, which drains its streams with the sockets open before it closes them.

uvicorn's own shutdown closes the listeners first, waits for open streams for ever, and exits with
the signal's number."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from msgpush.entrypoints.protocol import Limits, Protocol, State

SEND_BUFFER = 64 * 1024  # the kernel's own would hold 4 MB for each reader that has stalled
CLOSE_SECONDS = 1.0
PROBE_SECONDS = (
    1.0  # what a process may take to accept, before its socket is taken for one that is served
)

# Those of which a second one ends the process at once. A terminal that goes may send SIGHUP more
# than once.
IMPATIENT = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("msgpush.server")


class Server(uvicorn.Server):
    """Serves until a signal; then drains with the sockets open, closes, and returns.

    Args:
        drain: ends the application's streams; called while everything is still served.
        drain_seconds: what the drain may take.
        on_ready: called once, with the address that is listened on; of a unix socket the path, and
            0.
        supervised: whether a second signal is for a supervisor to act on, and changes nothing here.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        limits: Limits,
        drain: Callable[[], Awaitable[None]] | None = None,
        drain_seconds: float = 10.0,
        on_ready: Callable[[str, int], None] | None = None,
        supervised: bool = False,
    ) -> None:
        super().__init__(config)
        self.server_state: State = State(limits)
        self._drain, self._drain_seconds, self._on_ready = drain, drain_seconds, on_ready
        self._supervised = supervised

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets and self._on_ready is not None:
            self._on_ready(*address_of(sockets[0]))

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        self.server_state.expire(now)
        self.server_state.ask(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("draining")
        if self._drain is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._drain_seconds + 0.5):
                    await self._drain()
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=CLOSE_SECONDS)
        for task in list(self.server_state.tasks):
            task.cancel()
        # One turn of the loop flushes what a socket takes; one that is blocked is cut.
        await asyncio.sleep(0.05)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self.lifespan.shutdown()
        log.info("stopped")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # uvicorn's raises the signal anew at the end, and so exits with its number.
        before = {number: signal.signal(number, self.handle_exit) for number in ending_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and not self._supervised and sig in IMPATIENT:
            os._exit(128 + sig)
        self.should_exit = True


def run(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    listener: socket.socket | None = None,
    supervised: bool = False,
    root_path: str = "",
    limits: Limits | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
    drain_seconds: float = 10.0,
    on_ready: Callable[[str, int], None] | None = None,
    on_refused: Callable[[str], None] | None = None,
    cors: Callable[[str | None], Mapping[str, str]] | None = None,
) -> int:
    """Serve an application until SIGTERM, SIGINT or SIGHUP.

    A second one of the first two ends the process at once.

    Args:
        listener: a socket that listens already, instead of one at `host` and `port`.
        supervised: whether a second signal is for a supervisor to act on.
        on_refused: told of each request that was refused before it was one, and why.
        cors: the headers that such a refusal needs, so that pages of the request's origin can read
            it.

    Returns:
        the process's exit status: 0, or 1 where the service could not start.
    """
    try:
        listener = listener or listen(host, port)
    except OSError as error:
        log.error("can't listen on %s port %d: %s", host, port, error.strerror or error)
        return 1

    def ready(host: str, port: int) -> None:
        _tame_gc()
        if on_ready is not None:
            on_ready(host, port)

    server = make_server(
        app,
        root_path=root_path,
        limits=limits,
        drain=drain,
        drain_seconds=drain_seconds,
        on_ready=ready,
        on_refused=on_refused,
        cors=cors,
        supervised=supervised,
    )
    with listener, contextlib.suppress(SystemExit):
        server.run(sockets=[listener])
    return 0 if server.started else 1


def make_server(
    app: ASGIApp,
    *,
    root_path: str = "",
    limits: Limits | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
    drain_seconds: float = 10.0,
    on_ready: Callable[[str, int], None] | None = None,
    on_refused: Callable[[str], None] | None = None,
    cors: Callable[[str | None], Mapping[str, str]] | None = None,
    supervised: bool = False,
) -> Server:
    """A server that is ready to run on a listening socket."""
    limits = limits or Limits()
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # it would print query strings, and tokens with them
        server_header=False,
        proxy_headers=False,
        root_path=root_path,
        timeout_keep_alive=limits.keep_alive,
        backlog=4096,
    )
    server = Server(
        config,
        limits=limits,
        drain=drain,
        drain_seconds=drain_seconds,
        on_ready=on_ready,
        supervised=supervised,
    )
    if on_refused is not None:
        server.server_state.on_refused = on_refused
    if cors is not None:
        server.server_state.cors = cors
    return server


def ending_signals() -> tuple[signal.Signals, ...]:
    """The signals that drain the service.

    SIGHUP isn't one where it was ignored from the start, as by nohup."""
    return (
        IMPATIENT
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        else (*IMPATIENT, signal.SIGHUP)
    )


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket, whose options its connections inherit.

    Args:
        shared: whether others of this user may listen there, too; the kernel then spreads the
            connections over them.

    Raises:
        OSError: no such address, or it is taken.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            # A peer that vanished without a word is noticed within a minute.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        listener.bind(address)
        listener.listen(4096)
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> tuple[str, int]:
    """The address and port that a socket listens on; of a unix socket the path, and 0."""
    address = listener.getsockname()
    return (address, 0) if isinstance(address, str) else (address[0], address[1])


@contextlib.contextmanager
def unix_socket(path: str, mode: int) -> Iterator[socket.socket]:
    """A listening unix socket, which is removed at the end.

    One that a process has left behind is replaced; one that is served isn't, nor is anything that
    is no socket.

    Raises:
        OSError: it is served already, there is something else, or there can be none.
    """
    _make_way(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        own = os.lstat(path)
        try:
            # Before it listens nobody can connect.
            os.chmod(path, mode)
            listener.listen(4096)
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(own, os.lstat(path)):
                    os.unlink(path)


def _make_way(path: str) -> None:
    """Remove a socket that a process has left behind; OSError where there is something else."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileExistsError(
            errno.EEXIST, "there is something that is no socket: remove it, or choose another path"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except (TimeoutError, BlockingIOError):
            pass
    raise OSError(errno.EADDRINUSE, "another process serves it")


def raise_open_files() -> int:
    """Allow this process as many open files as the system lets it; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 30 if hard == resource.RLIM_INFINITY else hard


def _tame_gc() -> None:
    # A full collection looks at every connection: a third of a second at 10,000. What lives from
    # the start is exempt, and full collections are rare.
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 1_000)
