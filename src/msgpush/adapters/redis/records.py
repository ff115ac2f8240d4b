"""The outbox's keys in Redis, and its records as Redis keeps them: see `outbox.lua`."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from msgpush.adapters.redis.link import HASH_TAG, Link, Script, lua
from msgpush.domain.errors import MailboxFull
from msgpush.domain.marks import Mark, Push, Terms, ToPush
from msgpush.domain.message import Draft
from msgpush.domain.notification import OVERHEAD as PUSH_OVERHEAD
from msgpush.domain.outbox import (
    MAX_PENDING_BYTES,
    OVERHEAD,
    Owed,
    Phase,
    Reason,
    Record,
    State,
)
from msgpush.domain.position import Position

OUTBOX: Final = f"{HASH_TAG}:outbox"
DUE: Final = f"{HASH_TAG}:outbox:due"
DEAD: Final = f"{HASH_TAG}:outbox:dead"
PUSHES: Final = f"{HASH_TAG}:outbox:pushes"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
REDO = Script(lua("redo"))


def record_key(key: str) -> str:
    """The record of a message."""
    return f"{HASH_TAG}:delivery:{key}"


def sending_key(key: str) -> str:
    """A message that is to be pushed."""
    return f"{HASH_TAG}:push:{key}"


def pending_key(user: str) -> str:
    """The messages that wait for a user's acknowledgement."""
    return f"{HASH_TAG}:pending:{user}"


def mailbox_key(user: str) -> str:
    """The numbers of those, by service."""
    return f"{HASH_TAG}:mailbox:{user}"


def dead_key(service: str) -> str:
    """The dead letters of a service."""
    return f"{HASH_TAG}:dead:{service}"


def id_key(key: str) -> str:
    """What was accepted under a message's id."""
    service, _, id = key.partition("/")
    return f"{HASH_TAG}:id:{service}:{id}"


class Room(NamedTuple):
    """The room that there is for what waits.

    Attributes:
        most: messages of one service for one user.
        size: bytes of all together; of one service a quarter at most.
    """

    most: int = 200
    size: int = 256 * 1024 * 1024

    @property
    def limits(self) -> tuple[int, int, int]:
        """The same as the scripts want it."""
        return self.most, MAX_PENDING_BYTES, self.size

    def mailbox_full(self, service: str, user: str) -> MailboxFull:
        """The refusal of one message more for a user."""
        return MailboxFull(service, user, self.most, MAX_PENDING_BYTES)


def ask_of(draft: Draft, mark: Mark) -> list[Any]:
    """What a message asks of the outbox, for the script that stores it."""
    terms = draft.terms
    kind = "new" if mark.kind == "message" else "again" if terms is None else "revive"
    user, service = mark.user, draft.service
    ask = [
        kind,
        record_key(mark.key),
        pending_key(user),
        mailbox_key(user),
        mark.key,
        user,
        service,
        mark.attempt,
        draft.ttl,
        len(draft.body) + OVERHEAD,
        str(mark.priority),
    ]
    if terms is None:
        return [*ask, ""]
    if kind == "revive":
        return [*ask, "", DEAD, dead_key(service), id_key(mark.key)]
    return [
        *ask,
        terms.collapse or "",
        draft.type,
        terms.deadline,
        terms.deliveries,
        "1" if terms.receipt else "0",
        "1" if draft.digest is not None else "0",
    ]


def push_of(draft: Draft, push: ToPush) -> list[Any]:
    """What is to be pushed, for the script that stores it."""
    said = Pushed(push.user, draft.service, draft.type, push.push, draft.terms, draft.priority)
    return [
        sending_key(draft.key),
        PUSHES,
        draft.key,
        draft.service,
        len(draft.body) + PUSH_OVERHEAD,
        push.look,
        draft.ttl * 1000,
        _encode(said).decode(),
    ]


class Pushed(Struct, frozen=True):
    """What a sending is, besides its message, its times and who is left."""

    user: str
    service: str
    type: str
    push: Push
    terms: Terms | None
    priority: int


def outbox_keys(asks: Iterable[Sequence[Any]], pushes: Iterable[Sequence[Any]] = ()) -> list[str]:
    """The keys that the script needs for what is asked of the outbox, each once."""
    named = [
        name for ask in asks for name in (*ask[1:4], *(ask[12:15] if ask[0] == "revive" else ()))
    ]
    named += [name for push in pushes for name in push[:2]]
    return [OUTBOX, DUE, *dict.fromkeys(named)] if named else []


async def redo(link: Link) -> bool:
    """Complete a change of the outbox that was stopped halfway; False: there is none.

    Raises:
        BusUnavailable: that can't be done now either.
    """
    written = await link.call("HGET", OUTBOX, "redo")
    if not written:
        return False
    named = dict.fromkeys(command[1] for command in _decode(written))
    await link.script(REDO, [OUTBOX, *named], [written])
    return True


# In this order they are asked for, and read.
FIELDS: Final = (
    *("u", "s", "p", "a", "c", "d", "n", "x", "at", "l", "wr", "en", "rs", "ow", "pr", "ty"),
    *("ac", "po", "dl", "mx", "rc", "cl", "m"),
)


def read_record(key: str, fields: Sequence[bytes | None]) -> Record | None:
    """A record from its fields; None: there is none, or it isn't whole."""
    said = dict(zip(FIELDS, fields, strict=True))
    if said["s"] is None or said["x"] is None:
        return None
    if said["m"] is None and said["s"] in (b"pending", b"dead"):
        return None
    texts = {
        name: value.decode() for name, value in said.items() if name != "m" and value is not None
    }
    number = {name: int(texts[name]) for name in ("wr", "en") if name in texts}
    service, _, id = key.partition("/")
    terms = Terms(int(texts["dl"]), int(texts["mx"]), texts["rc"] == "1", texts["cl"] or None)
    state: State = msgspec.convert(texts["s"], State)
    phase: Phase = msgspec.convert(texts["p"], Phase)
    reason: Reason | None = msgspec.convert(texts.get("rs"), Reason | None)
    return Record(
        key=key,
        user=texts["u"],
        service=service,
        id=id,
        type=texts["ty"],
        body=said["m"] or b"",
        terms=terms,
        accepted=_position(texts["ac"]),
        accepted_at=int(texts["at"]),
        expires=int(texts["x"]),
        ttl=int(texts["l"]),
        newest=_position(texts["po"]),
        priority=int(texts["pr"]),
        state=state,
        phase=phase,
        attempt=int(texts["a"]),
        counted=int(texts["c"]),
        deliveries=int(texts["d"]),
        next=int(texts["n"]),
        written_at=number.get("wr"),
        ended_at=number.get("en"),
        reason=reason,
        owed=read_owed(texts.get("ow", "")),
    )


def owed_text(receipt: Owed) -> str:
    """A receipt that is owed, as a record has it."""
    return f"{receipt.state}|{receipt.reason or ''}|{receipt.at}|{receipt.deliveries}"


def read_owed(text: str) -> tuple[Owed, ...]:
    """The receipts that a record owes, each as `owed_text` writes it."""
    owed = []
    for each in filter(None, text.split(",")):
        state, reason, at, deliveries = each.split("|")
        owed.append(
            Owed(
                msgspec.convert(state, State),
                msgspec.convert(reason or None, Reason | None),
                int(at),
                int(deliveries),
            )
        )
    return tuple(owed)


def _position(text: str) -> Position:
    ms, _, seq = text.partition("-")
    return Position(int(ms), int(seq))
