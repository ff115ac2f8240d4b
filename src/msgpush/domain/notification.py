"""Notifications: to whom a message is pushed, when, by what, and when again.

A message that asks for it has a `Sending` beside its entry in the log, and beside its record in the
outbox, if it wants an acknowledgement. At its moment somebody looks whether it is needed:

    always          at once
    offline         after a delay, unless a stream of the user has taken the message
    unacknowledged  likewise; and where one has taken it, at its first deadline, unless it was
                    acknowledged

It goes to the devices that the user has at that moment. Pushing is at least once: each device's
provider is asked again until it has taken it, says that it never will, or the message's time runs
out. What was acknowledged, withdrawn or given up meanwhile is pushed no more."""

import random
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from msgpush.domain.devices import Device
from msgpush.domain.marks import NORMAL, Push, Terms
from msgpush.domain.outbox import Record

Outcome = Literal["sent", "gone", "later", "failed"]

# Seconds until a provider is asked again that said nothing of when, for the first time; and between
# two sendings of the same to the same device, whatever it has answered.
SHORTEST_PAUSE = 60.0
LONGEST_PAUSE = 3_600.0

LEASE = 60_000  # milliseconds for which a sending is left to whoever has taken it
# Milliseconds of those in which it still begins to send: what takes ten seconds ends before another
# is given it.
BEGINS = 45_000
ABANDONED = 600_000  # milliseconds after which nobody looks any more at what was due

_random = random.Random()


class Notice(Struct, frozen=True):
    """What is to be shown to a user, at a device of theirs.

    Attributes:
        key: names the message: the same one pushed twice is shown once.
        text: what is shown below the title; `own_text` says that the publisher gave it for that,
            else it is a part of the message.
        collapse: of those with the same text only the newest is shown.
        priority: its place among `marks.PRIORITIES`.
        ttl: seconds that it is worth anything.
        message: the message itself, as its readers get it.
        word: what acknowledges this key alone; None where there is nothing to acknowledge.
    """

    user: str
    key: str
    title: str
    text: str | None = None
    own_text: bool = False
    url: str | None = None
    icon: str | None = None
    collapse: str | None = None
    priority: int = NORMAL
    ttl: int = 60
    message: bytes = b"{}"
    word: str | None = None


class Answer(NamedTuple):
    """What became of sending a notice to a device.

    Attributes:
        outcome: the provider has taken it; it has no such device any more; it may be asked again;
            or it never takes this.
        reason: in a word or two, for logs and metrics: no address or token is in it.
        retry_after: seconds, where the provider said when to ask again.
    """

    outcome: Outcome
    reason: str
    retry_after: float | None = None


OFF = Answer("later", "off here")


def answer_of(status: int, retry_after: float | None = None) -> Answer:
    """What an HTTP status means, where the provider says nothing more precise (RFC 8030)."""
    reason = f"status {status}"
    if 200 <= status < 300:
        return Answer("sent", reason)
    if status in (404, 410):
        return Answer("gone", reason)
    if status in (408, 425, 429) or status >= 500:
        return Answer("later", reason, retry_after)
    # Redirects, too: whoever is sent elsewhere might be sent inside.
    return Answer("failed", reason)


def pause_elsewhere(attempts: int) -> float:
    """Seconds until another instance may try a device whose kind is off here: nobody was asked."""
    return min(2.0 ** min(attempts, 20), LONGEST_PAUSE) * _random.uniform(0.5, 1)


def pause(attempts: int, retry_after: float | None) -> float:
    """Seconds until a device's provider is asked again that has been asked so often, without end.

    What it said counts, within bounds; nothing is sent to a device twice a minute, since a provider
    that gave no answer may have taken it."""
    if retry_after is None:
        retry_after = min(SHORTEST_PAUSE * 2.0 ** min(attempts, 20), LONGEST_PAUSE)
    return max(SHORTEST_PAUSE, min(retry_after, 24 * LONGEST_PAUSE)) * _random.uniform(1, 1.2)


# When, and whether at all


class Try(NamedTuple):
    """A device that is still to be sent to: how often that was tried, and when it is due again."""

    attempts: int
    next: int


class Sending(Struct):
    """A message that is to be pushed; all moments are milliseconds by its keeper's clock.

    Attributes:
        body: the message as its readers get it.
        terms: of the acknowledgement that it asks for, if it does.
        next: when it is looked at.
        left: the devices that are still to be sent to, by id; None: nobody has looked yet.
        turn: names the time that it was given out; who had it before can't change it any more.
    """

    key: str
    user: str
    service: str
    type: str
    body: bytes
    push: Push
    terms: Terms | None
    priority: int
    accepted_at: int
    expires: int
    next: int
    left: dict[str, Try] | None = None
    turn: int = 0

    @property
    def size(self) -> int:
        """Bytes that it counts for."""
        return len(self.body) + OVERHEAD

    @property
    def over(self) -> bool:
        """True if there is nobody left to send to."""
        return self.left is not None and not self.left


OVERHEAD = 400  # bytes that a sending costs beyond its message


class Later(NamedTuple):
    """It isn't to be sent before a moment."""

    at: int


Verdict = Literal["send", "drop"] | Later


def decide(sending: Sending, record: Record | None, now: int) -> Verdict:
    """What is to be done about a sending that is due.

    Args:
        record: its message's in the outbox, if there is one.
    """
    if now >= sending.expires:
        return "drop"
    if sending.terms is None:
        return "send"
    if record is None or record.superseded:
        return "drop"
    push, written = sending.push, record.written_at
    if record.state != "pending":
        # Its first deadline may have been its last one, too, and that is when it is due.
        waited = record.reason == "deliveries" and sending.left is None
        return "send" if waited and push.when == "unacknowledged" else "drop"
    if push.when == "always" or sending.left is not None or written is None:
        return "send"
    if push.when == "offline":
        return "drop"
    # A stream has taken it: it has until its deadline.
    deadline = written + sending.terms.deadline * 1000
    return "send" if now >= deadline else Later(min(deadline, sending.expires))


def wanted(sending: Sending, devices: Sequence[Device], now: int) -> list[Device]:
    """The devices that are to be sent to now, of those that the user has."""
    if sending.left is None:
        return list(devices)
    due = {id for id, each in sending.left.items() if each.next <= now}
    return [device for device in devices if device.id in due]


def after(
    sending: Sending,
    devices: Sequence[Device],
    answers: Sequence[tuple[Device, Answer]],
    now: int,
) -> dict[str, Try]:
    """The devices that are still to be sent to, once some of them have been.

    Args:
        devices: that the user had; what isn't among them is left out.
        answers: to what was sent, or why it wasn't.
    """
    if sending.left is None:
        left = {device.id: Try(0, now) for device in devices}
    else:
        there = {device.id for device in devices}
        left = {id: each for id, each in sending.left.items() if id in there}
    for device, answer in answers:
        if answer.outcome != "later":
            left.pop(device.id, None)
        elif (known := left.get(device.id)) is not None:
            seconds = (
                pause_elsewhere(known.attempts)
                if answer is OFF
                else pause(known.attempts, answer.retry_after)
            )
            again = now + int(seconds * 1000)
            if again < sending.expires:
                left[device.id] = Try(known.attempts + 1, again)
            else:
                del left[device.id]
    return left


def notice_of(sending: Sending, now: int, word: str | None) -> Notice:
    """What is shown of a message.

    Args:
        word: what acknowledges it.
    """
    push = sending.push
    return Notice(
        user=sending.user,
        key=sending.key,
        title=push.title or sending.service,
        text=push.body if push.body is not None else _text_of(sending.body),
        own_text=push.body is not None,
        url=push.url,
        icon=push.icon,
        collapse=push.collapse,
        priority=sending.priority,
        ttl=max(0, (sending.expires - now) // 1000),
        message=sending.body,
        word=word,
    )


class _Data(Struct):
    message: Any = None


class _Said(Struct):
    data: _Data


def _text_of(body: bytes) -> str | None:
    """The message's own text, where it has one: `data.message`."""
    try:
        text = msgspec.json.decode(body, type=_Said).data.message
    except msgspec.MsgspecError:
        return None
    return text if isinstance(text, str) else None
