"""Patterns of channels, and what a grant refuses."""

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgpush.domain.channel import CACHED, _routed, encode_name, is_channel, own_channel, route
from msgpush.domain.errors import Denied
from msgpush.domain.grant import Grant, Patterns, is_pattern

NAMES = st.text("ab:*ü", max_size=4)


@given(st.lists(NAMES.filter(is_pattern), max_size=5), st.text("ab:ü", min_size=1, max_size=4))
def test_a_pattern_is_a_name_or_a_prefix_that_ends_in_a_star(
    texts: list[str], channel: str
) -> None:
    covered = any(
        channel == text or (text[-1] == "*" and channel[: len(text) - 1] == text[:-1])
        for text in texts
    )
    assert Patterns(*texts).cover(channel) == covered


SUBJECTS = st.text("ab%2Ff/ ,*?#\n\x85\u2028é\U0001f9d1:", max_size=8)


@given(SUBJECTS, SUBJECTS)
def test_no_subject_owns_anothers_channel(one: str, other: str) -> None:
    assert (own_channel(one) == own_channel(other)) == (one == other)


@given(SUBJECTS | st.text(max_size=12))
def test_every_subject_owns_a_channel_that_says_who_it_is(subject: str) -> None:
    own = own_channel(subject)
    assert own is not None
    assert is_channel(own)
    assert unquote(own) == f"user:{subject}" or "%" in subject
    assert is_channel(f"user:{encode_name(encode_name(subject))}"), "what is a name stays one"
    looks_encoded = re.search("%[0-9A-Fa-f]{2}", subject)
    if is_channel(f"user:{subject}") and not looks_encoded:
        assert own == f"user:{subject}"


def test_a_subject_that_is_too_long_for_a_name_owns_no_channel() -> None:
    assert own_channel("x" * 195) == "user:" + "x" * 195
    assert own_channel("x" * 196) is None
    assert own_channel("/" * 66) is None


@pytest.mark.parametrize(
    ("subject", "own"),
    [
        ("acme/ann lee", "user:acme%2Fann%20lee"),
        ("auth0|42", "user:auth0|42"),
        ("100%", "user:100%"),
        ("a%2Fb", "user:a%252Fb"),
        ("a%zz", "user:a%zz"),
        ("a,b", "user:a%2Cb"),
        ("a\u2028", "user:a%E2%80%A8"),
    ],
)
def test_a_subjects_channel_is_percent_encoded_where_a_name_can_not_say_it(
    subject: str, own: str
) -> None:
    assert own_channel(subject) == own


@pytest.mark.parametrize("text", ["a", "a:b", "a:*", "*", "ü*", "user:bob"])
def test_what_is_a_pattern(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize(
    "text",
    ["", "**", "a**", "a*b", "*a", "a b", "a,b", "a/b", "a/*", "a?", "a#*", "a\n", "x" * 201],
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
