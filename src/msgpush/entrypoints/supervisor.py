"""Several processes that serve one port: workers, and a supervisor that keeps them running.

Each worker accepts from a listening socket of its own, and the kernel spreads the connections over
these sockets. The supervisor holds them all: what waits in the socket of a worker that has died
waits for its successor, and nobody is refused meanwhile. A unix socket can't be shared so: all
workers accept from the same one.

A socket pair ties a worker to its supervisor. The worker writes a byte when it serves, whenever it
begins or ceases to be ready, and when it leaves: then it goes on serving until it is told that it
may drain. It reads the pair's end when there is no supervisor any longer, however that ended, and
then drains as it does at SIGTERM."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from asyncio.subprocess import DEVNULL, Process, create_subprocess_exec
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Self

import structlog

from msgpush.adapters.blocking import in_daemon
from msgpush.entrypoints.server import IMPATIENT, ending_signals, listen

VARIABLE = "MSGPUSH_WORKER"

RESTART_SECONDS = 1.0  # from one start of a worker to the next, at least
RESTART_SECONDS_MOST = 10.0  # where it dies again and again
STEADY_SECONDS = 10.0  # one that has lived so long didn't die of its start
LOOK_SECONDS = 1.0
LEAVING_SECONDS = 1.0  # that a worker may take to notice its signal
POLL_SECONDS = 0.02

# What is told over a tie.
SERVES, READY, UNREADY, LEAVES, MAY_DRAIN = b"\n", b"1", b"0", b"l", b"d"

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
        self._welcoming: Callable[[], bool] = lambda: False
        self._told = UNREADY
        self._may_drain = threading.Event()

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

    def serves(self, welcoming: Callable[[], bool] = lambda: False) -> None:
        """Tell the supervisor so.

        Args:
            welcoming: asked each second from now on, in a thread, whether new requests should come
                here."""
        self._tell(SERVES)
        self._welcoming = welcoming

    async def leave(self, seconds: float) -> None:
        """Tell the supervisor that this worker isn't ready any more.

        Returns once that has told others, or after so many seconds."""
        if not seconds:
            return
        self._tell(LEAVES)
        await in_daemon(lambda: self._may_drain.wait(seconds), "leaving")

    def _watch(self, patience: float) -> None:
        self._tie.settimeout(LOOK_SECONDS)
        while self._tied():
            told = READY if self._welcoming() else UNREADY
            if told != self._told:
                self._told = told
                self._tell(told)
        log.warning("the supervisor has gone", pid=os.getpid())
        self.orphaned = True
        self._may_drain.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience)
        os._exit(1)

    def _tied(self) -> bool:
        try:
            heard = self._tie.recv(1)
            if heard == MAY_DRAIN:
                self._may_drain.set()
            return heard != b""
        except TimeoutError:
            return True
        except OSError:
            return False

    def _tell(self, what: bytes) -> None:
        with contextlib.suppress(OSError):  # it has gone: `watch` sees to that
            self._tie.send(what)


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
        self.tie: socket.socket | None = None
        self.ready = False  # whether one of its processes ever was
        self.welcoming = False  # whether its process is, as it says
        self.left = False
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
        patience: seconds that a worker may take to end before it is ended.
        leave: awaited when no worker is ready any more, before they drain; None: they don't wait.
        on_ready: called once, when all workers serve.
        on_exit: called with a worker's number whenever its process has ended.
        on_stop: called once, when a signal has come, before the workers are told.
    """

    def __init__(
        self,
        command: Sequence[str],
        listeners: Sequence[socket.socket],
        *,
        environ: Mapping[str, str],
        patience: float,
        leave: Callable[[], Awaitable[None]] | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_exit: Callable[[int], None] = lambda _: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._command, self._environ, self._patience = command, environ, patience
        self._leave, self._on_ready, self._on_exit = leave, on_ready, on_exit
        self._on_stop = on_stop
        self._begun = False  # whether all workers were ready, once
        self._leaving: asyncio.Task[None] | None = None
        self._slots = [WorkerSlot(number, listener) for number, listener in enumerate(listeners, 1)]
        self._stopping = asyncio.Event()
        self._status = 0

    @property
    def welcoming(self) -> bool:
        """True while new requests should come here.

        At first all workers must be ready for them, from then on one."""
        return self._begun and any(each.welcoming for each in self._slots)

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
        if self._leaving is not None:
            if self._status:  # nobody wants to wait
                self._leaving.cancel()
            await asyncio.wait((self._leaving,))
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
            slot.tie, slot.left = ours, False
            if self._stopping.is_set():
                slot.send(signal.SIGKILL)
            loop.add_reader(ours, self._heard, slot, ours)
            try:
                return await slot.process.wait()
            finally:
                loop.remove_reader(ours)
                slot.tie, slot.welcoming = None, False

    def _heard(self, slot: WorkerSlot, tie: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            heard = tie.recv(64)
        except OSError:  # it has ended, and not read all that it was told
            heard = b""
        if not heard:
            loop.remove_reader(tie)
        for byte in (heard[n : n + 1] for n in range(len(heard))):
            if byte in (READY, UNREADY):
                slot.welcoming = byte == READY
                self._begun = self._begun or all(each.welcoming for each in self._slots)
            elif byte == LEAVES:
                slot.left, slot.welcoming = True, False
                # Where somebody ends this one alone; a signal for all may come to each in any
                # order.
                loop.call_later(LEAVING_SECONDS / 2, self._let_drain_alone, slot)
            elif byte == SERVES and not slot.ready:
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
        self._on_stop()
        for slot in self._slots:
            # There will be no successor: from the end of its worker on, a socket must take no
            # connection.
            slot.listener.close()
            slot.send(number)
        loop = asyncio.get_running_loop()
        loop.call_later(self._patience, self._kill)
        if self._leave is not None:
            self._leaving = loop.create_task(self._leave_first(self._leave))

    async def _leave_first(self, leave: Callable[[], Awaitable[None]]) -> None:
        """Let the workers drain once others have been told, or could have been."""
        try:
            until = time.monotonic() + LEAVING_SECONDS
            while not all(each.left or each.tie is None for each in self._slots):
                if time.monotonic() >= until:
                    break
                await asyncio.sleep(POLL_SECONDS)
            await leave()
        except Exception:
            log.exception("what comes before the drain has failed")
        finally:
            for slot in self._slots:
                self._let_drain(slot)

    def _let_drain_alone(self, slot: WorkerSlot) -> None:
        if not self._stopping.is_set():
            self._let_drain(slot)

    def _let_drain(self, slot: WorkerSlot) -> None:
        with contextlib.suppress(OSError):
            if slot.tie is not None:
                slot.tie.send(MAY_DRAIN)

    def _kill(self) -> None:
        log.warning("ending the workers at once")
        for slot in self._slots:
            slot.send(signal.SIGKILL)
