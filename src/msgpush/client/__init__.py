"""A client: publish to msgpush, and listen to it.

from msgpush.client import Listener, Publisher
"""

try:
    import httpx2 as _httpx2  # noqa: F401
except ImportError:  # pragma: no cover - it is in the tests' environment
    raise ImportError("msgpush.client needs httpx2: pip install 'msgpush[client]'") from None

from msgpush.client.delivery import Delivery
from msgpush.client.errors import (
    BufferFull,
    Ended,
    MsgpushError,
    Rejected,
    Unavailable,
    Unsendable,
    Unsent,
)
from msgpush.client.events import Closed, Event, Gap, Message, Opened, SyncEvent, SyncMessage
from msgpush.client.listener import Listener, SyncListener
from msgpush.client.logging_handler import MsgpushHandler
from msgpush.client.messages import Sent
from msgpush.client.publisher import AsyncPublisher, Publisher
from msgpush.client.task import Task
from msgpush.client.tokens import OAuth2

__all__ = [
    "AsyncPublisher",
    "BufferFull",
    "Closed",
    "Delivery",
    "Ended",
    "Event",
    "Gap",
    "Listener",
    "Message",
    "MsgpushError",
    "MsgpushHandler",
    "OAuth2",
    "Opened",
    "Publisher",
    "Rejected",
    "Sent",
    "SyncEvent",
    "SyncListener",
    "SyncMessage",
    "Task",
    "Unavailable",
    "Unsendable",
    "Unsent",
]
