"""Processes of servers under test: each on its cores, ended on leaving."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import Spoiled

_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")
_START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server process that answers on this port."""

    pid: int
    port: int

    def resident(self) -> int:
        """Bytes of memory that the process has."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise Spoiled("the server has ended")

    def cpu_seconds(self) -> float:
        """The CPU time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(
    command: list[str], port: int, cores: set[int], settings: Mapping[str, str]
) -> Iterator[Server]:
    """A server process that answers, with these settings alone; ended on leaving.

    Raises:
        Spoiled: it did not start; the error has the last that it said.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            env={**kept, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            os.sched_setaffinity(process.pid, cores)
            if not _answers(process, port):
                output.seek(0)
                last_words = output.read()[-2000:].decode(errors="replace").strip()
                raise Spoiled(f"{' '.join(command[1:])} did not start:\n{last_words}")
            yield Server(process.pid, port)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the process answers on its port; False: it has ended, or takes too long."""
    request = f"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
                sock.sendall(request)
                if sock.recv(4096).startswith(b"HTTP/1.1 2"):
                    return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
