"""Several processes that serve one port: workers, and a supervisor that keeps them running.

Each worker accepts from a listening socket of its own, and the kernel spreads the connections over
these sockets. The supervisor holds them all: what waits in the socket of a worker that has died
waits for its successor, and nobody is refused meanwhile. A unix socket can't be shared so: all
workers accept from the same one.

A socket pair ties a worker to its supervisor. The worker writes a byte when it serves; it reads the
pair's end when there is no supervisor any longer, however that ended, and then drains as it does at
SIGTERM."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from asyncio.subprocess import DEVNULL, Process, create_subprocess_exec
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Self

import structlog

from msgpush.entrypoints.server import IMPATIENT, ending_signals, listen

VARIABLE = "MSGPUSH_WORKER"

RESTART_SECONDS = 1.0  # from one start of a worker to the next, at least
RESTART_SECONDS_MOST = 10.0  # where it dies again and again
STEADY_SECONDS = 10.0  # one that has lived so long didn't die of its start

log = structlog.get_logger("msgpush.supervisor")


def listen_together(host: str, port: int, number: int) -> list[socket.socket]:
    """Listening sockets on one port; with port 0, on one that is free.

    Raises:
        OSError: no such address, or it is taken.
    """
    if port:
        # Sharing the port among them mustn't mean to share it with a service that runs there
        # already.
        listen(host, port).close()
    with contextlib.ExitStack() as opened:
        listeners: list[socket.socket] = []
        for _ in range(number):
            listeners.append(opened.enter_context(listen(host, port, shared=True)))
            port = listeners[0].getsockname()[1]
        opened.pop_all()
        return listeners


def worker_command(flags: Sequence[str]) -> list[str]:
    """The command of a worker: the service, with the modules that this process has."""
    # `-m` alone would let whatever lies in the current directory stand in for a module.
    here = {os.path.abspath(path) for path in sys.path}
    return [
        sys.executable,
        *([] if os.getcwd() in here else ["-P"]),
        "-m",
        "msgpush",
        "serve",
        *flags,
    ]


class Worker:
    """A worker's own side: its number, the socket to serve, and the tie to its supervisor."""

    def __init__(self, number: int, listener: socket.socket, tie: socket.socket) -> None:
        self.number, self.listener = number, listener
        self.orphaned = False
        self._tie = tie

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Self | None:
        """The worker that this process was started as, if it was; removes the variable for it."""
        if not (told := environ.pop(VARIABLE, "")):
            return None
        number, listener, tie = map(int, told.split(","))
        return cls(number, socket.socket(fileno=listener), socket.socket(fileno=tie))

    def watch(self, patience: float) -> None:
        """Drain once the supervisor has gone, and end `patience` seconds later in any case."""
        # A thread, since a loop that is stuck would leave the process behind for ever.
        threading.Thread(
            target=self._watch, args=(patience,), name="supervisor", daemon=True
        ).start()

    def serves(self) -> None:
        """Tell the supervisor so."""
        with contextlib.suppress(OSError):  # it has gone: `watch` sees to that
            self._tie.send(b"\n")

    def _watch(self, patience: float) -> None:
        while self._tied():
            pass
        log.warning("the supervisor has gone", pid=os.getpid())
        self.orphaned = True
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience)
        os._exit(1)

    def _tied(self) -> bool:
        try:
            return self._tie.recv(1) != b""
        except OSError:
            return False


class RestartDelay:
    """The wait before a worker is started anew, longer each time that it dies soon."""

    def __init__(self) -> None:
        self._seconds = RESTART_SECONDS

    def after(self, lived: float) -> float:
        """Seconds to wait after a process that has lived for so many."""
        if lived >= STEADY_SECONDS:
            self._seconds = RESTART_SECONDS
        wait = max(0.0, self._seconds - lived)
        self._seconds = min(2 * self._seconds, RESTART_SECONDS_MOST)
        return wait


class WorkerSlot:
    """The supervisor's side of a worker, whichever process that is at the time."""

    def __init__(self, number: int, listener: socket.socket) -> None:
        self.number, self.listener = number, listener
        self.process: Process | None = None
        self.ready = False  # whether one of its processes ever was
        self.hopeless = False

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.process is not None:
                self.process.send_signal(number)


class Supervisor:
    """Keeps workers running until a signal, and none after that.

    SIGTERM, SIGINT and SIGHUP go on to the workers, which drain; a second one of the first two ends
    them at once.

    Args:
        command: what each worker runs.
        listeners: one for each worker.
        environ: the workers' environment.
        patience: seconds that a worker may take to drain before it is ended.
        on_ready: called once, when all workers serve.
        on_exit: called with a worker's number whenever its process has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        listeners: Sequence[socket.socket],
        *,
        environ: Mapping[str, str],
        patience: float,
        on_ready: Callable[[], None] = lambda: None,
        on_exit: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._command, self._environ, self._patience = command, environ, patience
        self._on_ready, self._on_exit = on_ready, on_exit
        self._slots = [WorkerSlot(number, listener) for number, listener in enumerate(listeners, 1)]
        self._stopping = asyncio.Event()
        self._status = 0

    def run(self) -> int:
        """Supervise until all workers have ended.

        Returns:
            the exit status: 0; or the workers', where none of them could start; or 128 and the
                second signal's number."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in ending_signals():
            loop.add_signal_handler(number, self._signalled, number)
        async with asyncio.TaskGroup() as tasks:
            for slot in self._slots:
                tasks.create_task(self._keep(slot))
        log.info("all workers have stopped")
        return self._status

    async def _keep(self, slot: WorkerSlot) -> None:
        """Run a worker, and again whenever it has ended, until all are to stop."""
        delay = RestartDelay()
        while not self._stopping.is_set():
            began = time.monotonic()
            status = await self._work(slot)
            self._on_exit(slot.number)
            if self._stopping.is_set():
                return
            if status in (1, 2) and not any(each.ready for each in self._slots):
                slot.hopeless = True
                if all(each.hopeless for each in self._slots):
                    log.error("no worker can start", status=status)
                    self._status = status
                    self._stop(signal.SIGTERM)
                    return
            wait = delay.after(time.monotonic() - began)
            log.warning(
                "a worker has ended",
                worker=slot.number,
                pid=slot.pid,
                status=status,
                wait=round(wait, 1),
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)
                return

    async def _work(self, slot: WorkerSlot) -> int:
        """Run a worker's process to its end; returns its status, or less than 0 for a signal."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        fds = (slot.listener.fileno(), theirs.fileno())
        slot.process = None
        with ours, theirs:
            try:
                slot.process = await create_subprocess_exec(
                    *self._command,
                    env={**self._environ, VARIABLE: f"{slot.number},{fds[0]},{fds[1]}"},
                    stdin=DEVNULL,
                    pass_fds=fds,
                    start_new_session=True,  # a terminal's Ctrl-C is for the supervisor alone
                )
            except OSError as error:
                log.error("a worker can't be started", worker=slot.number, error=str(error))
                return 1
            theirs.close()
            if self._stopping.is_set():
                slot.send(signal.SIGKILL)
            loop.add_reader(ours, self._heard, slot, ours)
            try:
                return await slot.process.wait()
            finally:
                loop.remove_reader(ours)

    def _heard(self, slot: WorkerSlot, tie: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(tie)
        if not tie.recv(1) or slot.ready:
            return
        slot.ready = True
        if all(each.ready for each in self._slots):
            self._on_ready()

    def _signalled(self, number: int) -> None:
        if not self._stopping.is_set():
            self._stop(number)
        elif number in IMPATIENT:
            self._status = 128 + number
            self._kill()

    def _stop(self, number: int) -> None:
        self._stopping.set()
        for slot in self._slots:
            # There will be no successor: from the end of its worker on, a socket must take no
            # connection.
            slot.listener.close()
            slot.send(number)
        asyncio.get_running_loop().call_later(self._patience, self._kill)

    def _kill(self) -> None:
        log.warning("ending the workers at once")
        for slot in self._slots:
            slot.send(signal.SIGKILL)
