"""PyPI `aiohttp-sse-client2`: its own reconnect waits twice as long as asked, and takes the first
connection that is refused for the end; so the program opens each stream anew.
"""

import asyncio
import sys

from aiohttp import ClientError, ClientSession, ClientTimeout
from aiohttp_sse_client2.client import EventSource

from tests.interop.clients.python.lines import gave_up, is_final, is_overload, pause, told


class Ended(Exception):
    """The stream has ended."""


def ended() -> None:
    raise Ended


async def main(url: str) -> None:
    cursor = ""
    # By default a response ends after five minutes.
    timeout = ClientTimeout(total=None, sock_connect=5, sock_read=60)
    async with ClientSession(timeout=timeout) as session:
        while True:
            overloaded = False
            headers = {"Last-Event-ID": cursor} if cursor else {}
            source = EventSource(url, session=session, headers=headers, on_error=ended)
            try:
                await source.connect()
                async for event in source:
                    cursor = event.last_event_id or cursor
                    told(event.type, event.last_event_id, event.data)
                    if is_final(event.type, event.data):
                        return gave_up("closed by the program")
                    overloaded = is_overload(event.type, event.data)
            except (Ended, ClientError, TimeoutError):
                pass
            finally:
                await source.close()
            # It doesn't tell what `retry:` has asked for.
            await asyncio.sleep(pause(None, overloaded))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
