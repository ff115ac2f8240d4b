"""`make demo`: starts the service and the worker, and says where to look."""

import argparse
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from demo.client import Publisher, Refused, Stopped, listen
from demo.worker import CHANNEL, MESSAGES_A_FILE, RECEIPTS, Worker

ROOT = Path(__file__).parents[1]


class Service:
    """The service's process, started again when it ends: so that a restart can be watched.

    Args:
        history: messages that a channel must keep, so that a reload shows the whole job.
    """

    def __init__(self, port: int, history: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self._flags = [f"--service-port={port}", f"--history-length={history}", "--drain-seconds=1"]
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> bool:
        """Start it; whether it serves. If not, it has said why on stderr."""
        if not self._start():
            return False
        self._keeper.start()
        return True

    def stop(self) -> None:
        """End it, and return when it is gone."""
        with self._lock:
            self._ended.set()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._keeper.is_alive():
            self._keeper.join()

    def _start(self) -> bool:
        """Start the service's process; returns whether it came up."""
        with self._lock:
            if self._ended.is_set():
                return False
            # A session of its own: Ctrl-C reaches the demo alone, which then ends the service in
            # order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "demo.app", *self._flags],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        # Its own word, not an answer at its address: that could be another's.
        with self._process.stdout as said:
            ready = said.readline() != ""
        if ready:
            pid = self._process.pid
            print(
                f"  The service is process {pid}. To see it forget everything and come back: kill"
                f" {pid}",
                flush=True,
            )
        return ready

    def _keep(self) -> None:
        while not self._ended.is_set():
            if self._process is not None:
                self._process.wait()
            if not self._ended.wait(1.0):
                self._start()


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit status: 0, or 1 where it couldn't do as it was asked."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Index a folder and watch it live in a page."
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT,
        help="the documents to index (default: this repository)",
    )
    parser.add_argument(
        "--port", type=int, help="the service's port (default: 8089, or a free one)"
    )
    parser.add_argument(
        "--pace",
        type=float,
        default=0.05,
        help="seconds that a chunk takes at least (default: 0.05)",
    )
    parser.add_argument("--limit", type=int, default=150, help="files at most (default: 150)")
    parser.add_argument("--once", action="store_true", help="end when the job is done")
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        parser.error(f"--folder: {options.folder} is no folder")
    if options.port is not None and not 1 <= options.port <= 65535:
        parser.error("--port: it must be from 1 to 65535")
    if not 0 <= options.pace <= 60:
        parser.error("--pace: it must be from 0 to 60")
    if not 1 <= options.limit <= 10_000:
        parser.error("--limit: it must be from 1 to 10000")

    stop = _stop_at_signals()
    # Twice what a job publishes: a restart in its middle has the worker say it again.
    service = Service(
        options.port or _free_port(), history=2 * MESSAGES_A_FILE * (options.limit + 1)
    )
    try:
        return _run(service, options, stop) if service.start() else 1
    finally:
        stop.set()
        service.stop()


def _run(service: Service, options: argparse.Namespace, stop: threading.Event) -> int:
    """Do the job while the page shows it; returns the exit status."""
    worker = Worker(
        options.folder.resolve(),
        Publisher(service.base, stop),
        pace=options.pace,
        limit=options.limit,
        stop=stop,
    )
    opened = threading.Event()
    listener = threading.Thread(
        target=listen,
        args=(service.base, f"{CHANNEL},{RECEIPTS}"),
        kwargs={
            "on_open": opened.set,
            "on_reset": worker.tell_again,
            "on_message": worker.receive,
            "stop": stop,
        },
        daemon=True,
    )
    listener.start()
    # Nothing is published before the worker would see that it was lost.
    while not opened.wait(0.1) and not stop.is_set():
        pass
    print(
        f"\n  Open {service.base}/demo/ and watch the documents being indexed."
        "\n  The worker asks you something there, again and again until you answer."
        "\n  Reload the page whenever you like: it shows the same. Ctrl-C ends the demo.\n",
        flush=True,
    )
    try:
        worker.run()
        print("  The job is done.", flush=True)
        if not options.once:
            stop.wait()
    except Stopped:
        return 1 if options.once else 0
    except Refused as reason:
        print(f"  The service refuses a message: {reason}", file=sys.stderr)
        return 1
    return 0


def _stop_at_signals() -> threading.Event:
    """An event that is set when this process is told to end."""
    stop = threading.Event()
    received, sent = socket.socketpair()
    sent.setblocking(False)

    def wait() -> None:
        received.recv(1)
        stop.set()

    # Not set in the handler: that runs in the main thread, which may hold the event's lock just
    # then.
    threading.Thread(target=wait, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(sent.detach())
    return stop


def _free_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8089))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
