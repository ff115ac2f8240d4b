"""Whether the service of this machine lives: what the image's health check runs, every few seconds.

    python -m msgpush.entrypoints.health

It asks `/health/live` where the same environment has the service listen, through no proxy (`http_proxy` is for others),
and exits with 0 or 1. Nothing but the standard library is imported, so that it costs a tenth of what a command does.
"""

import http.client
import os
import socket
import sys
from collections.abc import Mapping

SECONDS = 2.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ailment(environ: Mapping[str, str]) -> str | None:
    """Why the service that was started with this environment can't be said to live; None: it lives."""
    path = environ.get("SERVICE_UDS")
    host = environ.get("SERVICE_HOST") or "127.0.0.1"
    port = environ.get("SERVICE_PORT") or "8089"
    connection = (
        UnixConnection(path, SECONDS)
        if path
        else http.client.HTTPConnection(ANYWHERE.get(host, host), int(port), timeout=SECONDS)
    )
    try:
        # Under this name it is served in local mode, too.
        connection.request("GET", "/health/live", headers={"Host": "localhost"})
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        return f"msgpush doesn't answer at {path or f'{host} port {port}'}: {error}"
    finally:
        connection.close()
    return None if response.status == 200 else f"msgpush answers with {response.status}"


def main() -> None:
    """Exit with 0 where it lives; else with 1, and the reason on stderr."""
    sys.exit(ailment(os.environ))


if __name__ == "__main__":
    main()
