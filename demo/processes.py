"""The demo's other processes, each started again when it ends: so that a restart can be watched."""

import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 10.0
PAUSE = 1.0  # seconds before it is started again


class Process:
    """A process of the demo, which says a line on stdout when it is ready.

    Args:
        arguments: of Python.
        told: printed when it is ready, with its process id in the place of `{pid}`.
    """

    def __init__(self, arguments: list[str], told: str) -> None:
        self._arguments, self._told = arguments, told
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> bool:
        """Start it; whether it is ready. If not, it has said why on stderr."""
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
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._keeper.is_alive():
            self._keeper.join()

    def _start(self) -> bool:
        with self._lock:
            if self._ended.is_set():
                return False
            # A session of its own: Ctrl-C reaches the demo alone, which then ends the others in
            # order.
            self._process = subprocess.Popen(
                [sys.executable, *self._arguments],
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
            print(f"  {self._told.format(pid=self._process.pid)}", flush=True)
        return ready

    def _keep(self) -> None:
        while not self._ended.is_set():
            if self._process is not None:
                self._process.wait()
            if not self._ended.wait(PAUSE):
                self._start()
