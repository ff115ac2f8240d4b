"""Patterns of channels, and what a grant refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgpush.domain.channel import CACHED, _routed, route
from msgpush.domain.errors import Denied
from msgpush.domain.grant import Grant, Patterns, is_pattern

NAMES = st.text("ab:*ü", max_size=4)


@given(st.lists(NAMES.filter(is_pattern), max_size=5), st.text("ab:ü", min_size=1, max_size=4))
def test_a_pattern_is_a_name_or_a_prefix_that_ends_in_a_star(texts: list[str], channel: str) -> None:
    covered = any(channel == text or (text[-1] == "*" and channel[: len(text) - 1] == text[:-1]) for text in texts)
    assert Patterns(*texts).cover(channel) == covered


@pytest.mark.parametrize("text", ["a", "a:b", "a:*", "*", "ü*", "user:bob"])
def test_what_is_a_pattern(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize(
    "text", ["", "**", "a**", "a*b", "*a", "a b", "a,b", "a/b", "a/*", "a?", "a#*", "a\n", "x" * 201]
)
def test_what_is_none(text: str) -> None:
    assert not is_pattern(text)


def test_a_name_of_ones_own_is_no_pattern() -> None:
    grant = Grant("*", frozenset({"user:*"}))
    grant.check_listen(["user:*", "broadcast"])
    for channel in ("user:bob", "user:", "user:**"):
        with pytest.raises(Denied):
            grant.check_listen([channel])


def test_routes_of_long_channels_are_not_kept() -> None:
    before = _routed.cache_info().currsize
    for number in range(100):
        route("a", None, [f"{number}" + "x" * (CACHED // 2), "y" * (CACHED // 2)])
    assert _routed.cache_info().currsize == before
    assert route("a", None, ["kept"]) is route("a", None, ["kept"])
