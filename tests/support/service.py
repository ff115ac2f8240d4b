"""The real service on real sockets: in a thread, where a test can look inside, or as the process
that users run.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

from starlette.applications import Starlette

from msgpush.domain.service import Push
from msgpush.entrypoints.app import create_app
from msgpush.entrypoints.protocol import Limits
from msgpush.entrypoints.server import Server, listen, make_server
from msgpush.entrypoints.settings import Settings

T = TypeVar("T")
PATIENCE = 10.0


def eventually(condition: Callable[[], T], seconds: float = PATIENCE) -> T:
    """What a condition gives once it is true; fails when it isn't in time."""
    until = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < until, "it has not become true in time"
        time.sleep(0.01)
    return result


class ThreadedService:
    """The service in a thread of the test's process, over the server that `msgpush serve` uses.

    Args:
        port: 0 takes any free one.
    """

    host = "127.0.0.1"

    def __init__(self, limits: Limits | None = None, *, port: int = 0, **settings: Any) -> None:
        self.app: Starlette = create_app(Settings(**settings))
        self.port = 0
        self._limits, self._port = limits, port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._thread = threading.Thread(target=self._run, name="service")
        self._ready = threading.Event()

    @property
    def push(self) -> Push:
        push: Push = self.app.state.push
        return push

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """The result of a coroutine function that runs in the service's loop."""
        assert self._loop is not None

        async def run() -> T:
            return await function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE)

    def tasks(self) -> int:
        """How many tasks the service's loop has."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return self.call(count)

    def _run(self) -> None:
        def ready(_: str, port: int) -> None:
            self.port = port
            self._loop = asyncio.get_running_loop()
            self._ready.set()

        with listen(self.host, self._port) as listener:
            self._server = make_server(
                self.app,
                limits=self._limits,
                drain=lambda: self.push.drain(0.2),
                drain_seconds=0.2,
                on_ready=ready,
                cors=self.app.state.cors.answer,
            )
            self._server.run(sockets=[listener])


class ServiceProcess:
    """`msgpush serve`, as a process of its own, on a free port.

    Attributes:
        command: what Python is to run; another may make a mistake, or leave out a check.
    """

    host = "127.0.0.1"
    command: Sequence[str] = ("-m", "msgpush", "serve")

    def __init__(self, *flags: str, open_files: int = 0, **environ: str) -> None:
        clean = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
        limited = ["bash", "-c", f'ulimit -n {open_files}; exec "$@"', "bash"] if open_files else []
        self._process = subprocess.Popen(
            [*limited, sys.executable, *self.command, *flags],
            env={**clean, "SERVICE_PORT": "0", "LOG_FORMAT": "json", **environ},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port = 0

    def __enter__(self) -> Self:
        try:
            self.port = eventually(self._announced)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._process.stderr is not None
        self._process.stderr.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit status, which must come in time."""
        return self._process.wait(seconds)

    def _announced(self) -> int:
        assert self._process.poll() is None, self.log
        # As JSON, or as the console has it.
        told = (
            line.get("port", -1)
            if line.get("event") == "ready"
            else re.search(r"\] *ready .* port=(\d+)", str(line.get("event")))
            for line in self.log
        )
        return next(
            (int(each[1] if isinstance(each, re.Match) else each) for each in told if each), 0
        )

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": line.rstrip()})
