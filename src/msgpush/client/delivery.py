"""What became of a message that wants an acknowledgement."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from msgpush.client.errors import Rejected
from msgpush.client.exchange import Answer, read


class Delivery(Struct, frozen=True):
    """The state of such a message: accepted, written, acknowledged, withdrawn or dead.

    Times are RFC 3339 texts; `next_at` is when it is tried again.
    """

    key: str
    state: str
    user_id: str = ""
    reason: str | None = None
    deliveries: int = 0
    accepted_at: str | None = None
    written_at: str | None = None
    acknowledged_at: str | None = None
    next_at: str | None = None


_decode = msgspec.json.Decoder(Delivery).decode


def read_delivery(answer: Answer) -> Delivery:
    """The state that the service has answered; raises `Rejected` where that isn't one."""
    delivery = read(answer, _decode)
    if isinstance(delivery, Rejected):
        raise delivery
    return delivery
