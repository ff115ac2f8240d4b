"""The image's health check: it asks this machine's service, every few seconds.

    python -m msgpush.entrypoints.health

It asks `/health/live` where the same environment has the service listen, through no proxy
(`http_proxy` is for others), and exits with 0 or 1. Nothing but the standard library is imported,
so that it costs a tenth of what a command does."""

import http.client
import os
import re
import socket
import sys
from collections.abc import Mapping

SECONDS = 2.0
# What Kubernetes sets in each pod for a Service named so: as no setting of ours, it is passed over.
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://[^\s/]+:[0-9]{1,5}")
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
    """The reason why the service of this environment can't be said to live; None: it lives."""
    path = environ.get("SERVICE_UDS")
    host = environ.get("SERVICE_HOST") or "127.0.0.1"
    port = environ.get("SERVICE_PORT") or "8089"
    if SERVICE_LINK.fullmatch(port):
        port = "8089"
    if not path and not (re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535):
        return f"SERVICE_PORT is {port[:80]!a}: it must be a whole number from 0 to 65535"
    try:
        connection = (
            UnixConnection(path, SECONDS)
            if path
            else http.client.HTTPConnection(ANYWHERE.get(host, host), int(port), timeout=SECONDS)
        )
    except http.client.InvalidURL:
        return f"SERVICE_HOST is {host[:80]!a}: it must be an IP address or a host name"
    try:
        # Under this name it is served in local mode, too.
        connection.request("GET", "/health/live", headers={"Host": "localhost"})
        response = connection.getresponse()
    except (OSError, ValueError, http.client.HTTPException) as error:
        # ValueError: of a host's name that is none.
        return f"msgpush doesn't answer at {path or f'{host} port {port}'}: {error}"
    finally:
        connection.close()
    return None if response.status == 200 else f"msgpush answers with {response.status}"


def main() -> None:
    """Exit with 0 where it lives; else with 1, and the reason on stderr."""
    sys.exit(ailment(os.environ))


if __name__ == "__main__":
    main()
