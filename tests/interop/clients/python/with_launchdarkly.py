"""PyPI `launchdarkly-eventsource`: it reconnects by itself once it is told to go on after errors; the
wait is the program's own.
"""

import sys
import time

from ld_eventsource import SSEClient
from ld_eventsource.actions import Event, Fault
from ld_eventsource.config import ConnectStrategy, ErrorStrategy
from ld_eventsource.errors import HTTPStatusError

from tests.interop.clients.python.lines import gave_up, is_overload, pause, told


def main(url: str) -> None:
    overloaded = False
    # It takes no notice of `retry:`, and once a connection was refused it waits no more at all.
    with SSEClient(
        connect=ConnectStrategy.http(url),
        error_strategy=ErrorStrategy.always_continue(),
        initial_retry_delay=0,
    ) as client:
        for action in client.all:
            if isinstance(action, Event):
                told(action.event, action.last_event_id, action.data)
                overloaded = is_overload(action.event, action.data)
            elif isinstance(action, Fault):
                if isinstance(action.error, HTTPStatusError) and action.error.status == 204:
                    gave_up(action.error)
                    return
                time.sleep(pause(None, overloaded))


if __name__ == "__main__":
    main(sys.argv[1])
