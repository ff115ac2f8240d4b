"""Rates: how much a subject may ask for in a time."""

from msgspec import Struct


class Allowance(Struct, frozen=True):
    """A limiter's answer.

    Attributes:
        granted: how many of those asked for are allowed.
        remaining: how many more would be allowed now.
        retry_after: seconds until one more is.
        rate, burst: of the limit: how many are allowed a second, and how many at once.
    """

    granted: int
    remaining: int
    retry_after: float
    rate: float
    burst: int


def allowance(granted: int, left: float, rate: float, burst: int) -> Allowance:
    """The answer where a token bucket has `left` tokens after it has granted some."""
    # A hair more than there is, or rounding would refuse the token that has just come in.
    remaining, retry_after = max(0, int(left + 1e-6)), max(0.0, (1 - left) / rate)
    return Allowance(granted, remaining, retry_after, rate, burst)
