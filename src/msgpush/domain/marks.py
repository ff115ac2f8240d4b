"""Marks: what a message asks for beyond being delivered, carried by its entry in the log.

Most messages ask for nothing, and their entries have no mark."""

from typing import Annotated, Literal, NamedTuple, get_args

from msgspec import Meta, Struct

Priority = Literal["low", "normal", "high", "urgent"]
Kind = Literal["message", "redelivery", "acknowledged"]

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
NORMAL = PRIORITIES.index("normal")
DEADLINE, DELIVERIES = 30, 5
MAX_DEADLINE = 86_400  # seconds
MAX_DELIVERIES = 20
MAX_COLLAPSE = 64


class Ack(Struct, frozen=True, forbid_unknown_fields=True):
    """An acknowledgement that is asked for; a field that is null counts as absent.

    Attributes:
        deadline: seconds after which the message is tried again.
        deliveries: how often it is delivered before it is given up.
        receipt: whether the publisher is told what becomes of it.
        collapse: a newer message of the same service, user and text withdraws the older one.
    """

    deadline: Annotated[int, Meta(ge=1, le=MAX_DEADLINE)] | None = DEADLINE
    deliveries: Annotated[int, Meta(ge=1, le=MAX_DELIVERIES)] | None = DELIVERIES
    receipt: bool | None = False
    collapse: Annotated[str, Meta(min_length=1, max_length=MAX_COLLAPSE)] | None = None


class Terms(NamedTuple):
    """What an `Ack` asks for, complete."""

    deadline: int = DEADLINE
    deliveries: int = DELIVERIES
    receipt: bool = False
    collapse: str | None = None

    @classmethod
    def of(cls, asked: Ack | bool | None) -> "Terms | None":
        """The terms that are asked for; None: no acknowledgement is."""
        if asked is True:
            return cls()
        if not isinstance(asked, Ack):
            return None
        return cls(
            asked.deadline or DEADLINE,
            asked.deliveries or DELIVERIES,
            asked.receipt or False,
            asked.collapse,
        )


class Mark(Struct, frozen=True, gc=False):
    """What an entry carries besides its message.

    Attributes:
        priority: its place among `PRIORITIES`.
        kind: a message; one that is delivered again, which is in no history; or word that some
            were acknowledged, which is no message at all.
        user: whose acknowledgement is asked for, or told.
        key: what the user's clients name it by; empty where none is asked for.
        attempt: which of its deliveries this is, from 1.
    """

    priority: int = NORMAL
    kind: Kind = "message"
    user: str = ""
    key: str = ""
    attempt: int = 0


# Of messages that ask for nothing but their priority.
BY_PRIORITY: tuple[Mark | None, ...] = tuple(
    None if rank == NORMAL else Mark(rank) for rank in range(len(PRIORITIES))
)


def key_of(service: str, id: str) -> str:
    """What a client names a message by that it acknowledges."""
    return f"{service}/{id}"
