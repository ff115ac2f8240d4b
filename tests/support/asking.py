"""Short ways to make messages that ask for acknowledgements, and their further attempts."""

from typing import Any

import msgspec

from msgpush.domain.marks import key_of
from msgpush.domain.message import Draft, delivered_again, draft, parse
from msgpush.domain.outbox import Record, next_mark

NOW = 1_800_000_000.0
ACK_TTL = 86_400


def key(id: str, service: str = "tests") -> str:
    """What a client names a message by."""
    return key_of(service, id)


def body_of(
    id: str | None,
    *channels: str,
    user: str = "bob",
    service: str = "tests",
    type: str = "info",
    ttl: int | None = None,
    priority: str | None = None,
    data: object = None,
    ack: Any = True,
    **terms: Any,
) -> bytes:
    """The JSON text of a message that asks a user; terms stand in the place of `true`."""
    metadata = {"ttl": ttl, "priority": priority, "ack": terms or ack}
    fields = {
        "id": id,
        "type": type,
        "service": service,
        "target": {"user_id": user},
        "channels": channels,
        "data": data or {},
        "metadata": metadata,
    }
    return msgspec.json.encode(fields)


def ask(id: str | None, *channels: str, fresh_id: str = "made", **options: Any) -> Draft:
    """A draft of a message that asks for an acknowledgement; see `body_of`."""
    message = parse(body_of(id, *channels, **options))
    return draft(message, int(NOW * 1000), fresh_id, 3600, ack_ttl=ACK_TTL)


def again(record: Record, now: int) -> Draft:
    """The next attempt of a message, as of a moment in milliseconds."""
    left = -(-(record.expires - now) // 1000)
    return _attempt(record, max(1, left))


def revived(record: Record) -> Draft:
    """The attempt by which a dead letter is pending again."""
    return msgspec.structs.replace(_attempt(record, record.ttl), terms=record.terms)


def _attempt(record: Record, ttl: int) -> Draft:
    body = delivered_again(record.body, record.attempt + 1, ttl)
    channels, mark = ("user:" + record.user,), next_mark(record)
    return Draft(record.id, "", channels, record.type, record.service, ttl, body, None, mark)
