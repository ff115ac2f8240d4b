"""PyPI `httpx-sse`: it parses one response; requests, the cursor and the wait are the program's."""

import sys
import time

import httpx
from httpx_sse import connect_sse

from tests.interop.clients.python.lines import gave_up, pause, told


def main(url: str) -> None:
    cursor, retry = "", None
    # A heartbeat comes every 30 seconds; the default for reading is 5.
    with httpx.Client(timeout=httpx.Timeout(5.0, read=60.0)) as client:
        while True:
            headers = {"Last-Event-ID": cursor} if cursor else {}
            try:
                with connect_sse(client, "GET", url, headers=headers) as source:
                    if source.response.status_code == 204:
                        return gave_up(204)
                    source.response.raise_for_status()
                    for sse in source.iter_sse():
                        cursor, retry = sse.id or cursor, sse.retry or retry
                        told(sse.event, sse.id, sse.data)
            except httpx.TransportError:
                pass
            time.sleep(pause(retry))


if __name__ == "__main__":
    main(sys.argv[1])
