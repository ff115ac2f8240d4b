"""Notifications: what is pushed to a device, and what its provider's answer means.

Pushing is at least once: who sends asks again until a provider has taken it, says that it never
will, or the time of what is to be sent runs out."""

import random
from typing import Literal, NamedTuple

from msgspec import Struct

from msgpush.domain.marks import NORMAL

Outcome = Literal["sent", "gone", "later", "failed"]

FIRST_PAUSE = 2.0  # seconds until a provider is asked again that said nothing of when
LONGEST_PAUSE = 3_600.0
SHORTEST_PAUSE = 60.0  # between two sendings of the same to the same device, whatever it answered

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


def pause(attempts: int, retry_after: float | None) -> float:
    """Seconds until a device's provider is asked again that has been asked so often, without end.

    What it said counts, within bounds; nothing is sent to a device twice a minute, since a provider
    that gave no answer may have taken it."""
    if retry_after is None:
        retry_after = min(FIRST_PAUSE * 2.0 ** min(attempts, 20), LONGEST_PAUSE)
    return max(SHORTEST_PAUSE, min(retry_after, 24 * LONGEST_PAUSE)) * _random.uniform(1, 1.2)
