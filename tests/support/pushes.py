"""Short ways to make messages that are to be pushed, and a provider that does as it is told."""

import asyncio
from collections import deque
from typing import Any

import msgspec

from msgpush.domain.devices import Address, Kind, WebPush
from msgpush.domain.message import Draft, draft, parse
from msgpush.domain.notification import Answer, Notice
from tests.support.asking import ACK_TTL, NOW

DELAY = 5.0
SENT = Answer("sent", "status 201")


def push_body(id: str | None, *, user: str = "bob", ttl: int = 600, **more: Any) -> bytes:
    """The JSON text of a message that is to be pushed; `ack` is asked for unless it says None."""
    metadata = {"ttl": ttl, "ack": more.pop("ack", True), "push": more.pop("push", True)}
    fields = {
        "id": id,
        "type": more.pop("type", "info"),
        "service": more.pop("service", "tests"),
        "target": {"user_id": user},
        "data": more.pop("data", {"message": "Hello"}),
        "metadata": metadata | more,
    }
    return msgspec.json.encode(fields)


def push(id: str | None, **options: Any) -> Draft:
    """A draft of a message that is to be pushed; see `push_body`."""
    message = parse(push_body(id, **options))
    return draft(message, int(NOW * 1000), "made", 3600, ack_ttl=ACK_TTL, push_delay=DELAY)


def subscription(name: str = "1") -> WebPush:
    return WebPush(f"https://push.example/{name}", b"p" * 65, b"a" * 16)


class FakeNotifier:
    """Takes notices, and answers as `script` says, then that they are sent.

    Attributes:
        sent: the notices, with the addresses that they went to.
        block: while it is set, nothing is answered.
    """

    def __init__(self, kind: Kind = "webpush") -> None:
        self.kind: Kind = kind
        self.script: deque[Answer | Exception] = deque()
        self.usual = SENT
        self.sent: list[tuple[Address, Notice]] = []
        self.under_way = self.most = 0
        self.go = asyncio.Event()
        self.go.set()

    @property
    def keys(self) -> list[str]:
        """The keys of what was sent."""
        return [notice.key for _, notice in self.sent]

    async def send(self, address: Address, notice: Notice) -> Answer:
        self.sent.append((address, notice))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.go.wait()
        finally:
            self.under_way -= 1
        answer = self.script.popleft() if self.script else self.usual
        if isinstance(answer, Exception):
            raise answer
        return answer
