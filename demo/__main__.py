"""`make demo`: starts the service and the worker, and says where to look."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from demo.client import Publisher, Stopped, listen
from demo.worker import CHANNEL, Worker

ROOT = Path(__file__).parents[1]


class Service:
    """The service's process, started again when it ends: so that a restart can be watched."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self._environ = {**os.environ, "SERVICE_PORT": str(port), "DRAIN_SECONDS": "1"}
        self._ended = threading.Event()
        self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def wait_until_ready(self, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.base}/health/ready", timeout=2):
                    return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        self._ended.set()
        self._process.terminate()
        self._process.wait(10)
        self._keeper.join(10)

    def _start(self) -> None:
        # A session of its own: Ctrl-C reaches the demo alone, which then ends the service in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demo.app"], env=self._environ, cwd=ROOT, start_new_session=True
        )
        print(f"  the service runs as process {self._process.pid}", flush=True)

    def _keep(self) -> None:
        while not self._ended.is_set():
            self._process.wait()
            if not self._ended.wait(1.0):
                self._start()


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT, help="the documents to index (default: this repository)")
    parser.add_argument("--port", type=int, default=0, help="the service's port (default: 8089, or a free one)")
    parser.add_argument("--pace", type=float, default=0.05, help="seconds that a chunk takes at least (default: 0.05)")
    parser.add_argument("--limit", type=int, default=150, help="files at most (default: 150)")
    parser.add_argument("--once", action="store_true", help="end when the job is done")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"--folder: {options.folder} is no folder")

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    service = Service(options.port or _free_port())
    try:
        service.wait_until_ready()
        _greet(service.base)
        worker = Worker(
            options.folder.resolve(),
            Publisher(service.base, stop),
            pace=options.pace,
            limit=options.limit,
            stop=stop,
        )
        listener = threading.Thread(target=listen, args=(service.base, CHANNEL, worker.tell_again, stop), daemon=True)
        listener.start()
        worker.run()
        print("  the job is done", flush=True)
        while not options.once and not stop.wait(0.5):
            pass
    except Stopped:
        pass
    finally:
        stop.set()
        service.stop()
    return 0


def _greet(base: str) -> None:
    print(
        f"\n  Open {base}/demo/ and watch the documents being indexed."
        "\n  Reload the page: it shows the same. End the service (kill its process): it comes back having forgotten"
        "\n  everything, the page says so, and the worker tells its state again. Ctrl-C ends the demo.\n",
        flush=True,
    )


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
