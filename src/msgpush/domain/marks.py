"""Marks: what a message asks for beyond being delivered, carried by its entry in the log.

Most messages ask for nothing, and their entries have no mark."""

import re
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


When = Literal["offline", "unacknowledged", "always"]

WHENS: tuple[When, ...] = get_args(When)
MAX_TITLE, MAX_TEXT, MAX_URL = 200, 1_000, 1_024


class AskedPush(Struct, frozen=True, forbid_unknown_fields=True):
    """A push that is asked for; a field that is null counts as absent.

    Attributes:
        when: see `notification`; by default `unacknowledged` where an acknowledgement is asked for,
            else `always`.
        title, body: what is shown.
        url: what a click on it opens: a path, or https.
        collapse: of those with the same text only the newest is shown.
    """

    when: When | None = None
    title: Annotated[str, Meta(min_length=1, max_length=MAX_TITLE)] | None = None
    body: Annotated[str, Meta(max_length=MAX_TEXT)] | None = None
    url: Annotated[str, Meta(min_length=1, max_length=MAX_URL)] | None = None
    icon: Annotated[str, Meta(min_length=1, max_length=MAX_URL)] | None = None
    collapse: Annotated[str, Meta(min_length=1, max_length=MAX_COLLAPSE)] | None = None


class Push(NamedTuple):
    """What an `AskedPush` asks for, complete."""

    when: When = "unacknowledged"
    title: str | None = None
    body: str | None = None
    url: str | None = None
    icon: str | None = None
    collapse: str | None = None

    @classmethod
    def of(cls, asked: AskedPush | bool | None, *, acknowledged: bool) -> "Push | None":
        """What is asked for; None: nothing is.

        Args:
            acknowledged: whether an acknowledgement is asked for, too.
        """
        usual: When = "unacknowledged" if acknowledged else "always"
        if asked is True:
            return cls(usual)
        if not isinstance(asked, AskedPush):
            return None
        return cls(
            asked.when or usual, asked.title, asked.body, asked.url, asked.icon, asked.collapse
        )


class ToPush(NamedTuple):
    """A push of a message: to whose devices, how, and when that is looked at: in milliseconds after
    the message was accepted.
    """

    user: str
    push: Push
    look: int


REPORTED = 1_000  # milliseconds after which it is known what streams have taken


def first_look(push: Push, delay: float) -> int:
    """Milliseconds after its acceptance at which a message is looked at that is to be pushed.

    Args:
        delay: seconds in which a stream may take it.
    """
    return 0 if push.when == "always" else int(delay * 1000) + REPORTED


PAGE_PATTERN = r"^(https://|/(?!/))[!-\x5b\x5d-~]*$"


def is_page(url: str) -> bool:
    """True for what a notification may lead to: a path of the page's own origin, or https."""
    return re.fullmatch(PAGE_PATTERN, url) is not None and "\n" not in url


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
