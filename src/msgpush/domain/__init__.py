"""The framework-free core: it needs msgspec and nothing else."""

from msgpush.domain.channel import BROADCAST, is_channel, route
from msgpush.domain.errors import (
    BusUnavailable,
    Closed,
    Conflict,
    Denied,
    Fault,
    Invalid,
    Malformed,
    MsgpushError,
    Overloaded,
    TooLarge,
)
from msgpush.domain.history import Gap
from msgpush.domain.message import Entry, Message, Metadata, parse
from msgpush.domain.ports import Bus, Sink, View
from msgpush.domain.position import EARLIEST, LATEST, Cursor, Position
from msgpush.domain.service import History, Push, Receipt

__all__ = [
    "BROADCAST",
    "EARLIEST",
    "LATEST",
    "Bus",
    "BusUnavailable",
    "Closed",
    "Conflict",
    "Cursor",
    "Denied",
    "Entry",
    "Fault",
    "Gap",
    "History",
    "Invalid",
    "Malformed",
    "Message",
    "Metadata",
    "MsgpushError",
    "Overloaded",
    "Position",
    "Push",
    "Receipt",
    "Sink",
    "TooLarge",
    "View",
    "is_channel",
    "parse",
    "route",
]
