"""What `msgpush doctor` has found out, in a line each."""

import time
from typing import Literal, NamedTuple

CLOCKS = 5.0  # seconds that they may differ: a Date has whole ones, and an answer takes a while
COLLECTS = (
    "a proxy collects what it should pass on at once; switch its buffering and compression off for"
    " /sse/ (nginx: proxy_buffering off; gzip off; and no proxy_ignore_headers X-Accel-Buffering)"
)

Kind = Literal["ok", "wrong", "not tried"]


class Line(NamedTuple):
    """What came of one check."""

    kind: Kind
    text: str


def ok(text: str) -> Line:
    return Line("ok", text)


def wrong(text: str) -> Line:
    return Line("wrong", text)


def judged(ahead: float, told_by: str) -> Line:
    """Whether a clock is right that is so many seconds ahead of this machine's."""
    if abs(ahead) <= CLOCKS:
        return ok(f"its clock is this machine's, by {told_by}")
    direction = "ahead of" if ahead > 0 else "behind"
    return wrong(
        f"its clock is {abs(ahead):.0f} s {direction} this machine's, by {told_by}: tokens end"
        " too early or too late; have both set by NTP"
    )


def elapsed(begun: float) -> str:
    return f"{(time.monotonic() - begun) * 1000:.0f} ms"


def reason(error: Exception) -> str:
    return str(error) or type(error).__name__
