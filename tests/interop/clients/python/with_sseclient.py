"""PyPI `sseclient-py`: it parses one response; requests, the cursor and the wait are the program's."""

import sys
import time

import requests
from sseclient import SSEClient

from tests.interop.clients.python.lines import gave_up, pause, told


def main(url: str) -> None:
    cursor, retry = "", None
    while True:
        headers = {"Last-Event-ID": cursor} if cursor else {}
        try:
            # A heartbeat comes every 30 seconds.
            with requests.get(url, headers=headers, stream=True, timeout=(5, 60)) as response:
                if response.status_code == 204:
                    return gave_up(204)
                response.raise_for_status()
                for event in SSEClient(response).events():
                    cursor, retry = event.id or cursor, event.retry or retry
                    told(event.event, event.id, event.data)
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            pass
        time.sleep(pause(retry))


if __name__ == "__main__":
    main(sys.argv[1])
