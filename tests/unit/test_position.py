"""Cursors: what a client holds, and what the log makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgpush.domain.errors import Malformed
from msgpush.domain.position import Cursor, Position, check_cursor, new_epoch, parse_cursor

EPOCH = "abcdefgh"
numbers = st.integers(0, 10**18)


@given(numbers, numbers)
def test_a_cursor_is_read_back_by_the_log_that_made_it_and_by_no_other(ms: int, seq: int) -> None:
    text = str(Cursor(EPOCH, Position(ms, seq)))
    assert check_cursor(text) == text
    assert parse_cursor(text, EPOCH) == Position(ms, seq)
    assert parse_cursor(text, new_epoch()) is None
    assert len(text) <= 128


@given(st.text())
def test_any_other_text_is_no_cursor_of_this_log(text: str) -> None:
    assert parse_cursor(text, EPOCH) is None


@pytest.mark.parametrize(
    "text",
    [
        "1abcdefgh.01-0",
        "1abcdefgh.1-00",
        "1abcdefgh.1",
        "1abcdefgh.1-0 ",
        "1abcdefgh.1-0\n",
        "1abcdefgh.-1-0",
        "2abcdefgh.1-0",
        "1abcdefgh.99999999999999999999-0",
        "1abcdefgh.١-0",
    ],
)
def test_a_cursor_has_one_form(text: str) -> None:
    assert parse_cursor(text, EPOCH) is None


@pytest.mark.parametrize("text", ["", " ", "a b", "a/b", "a\n", "é", "x" * 129, "a,b", "a:b", "\0"])
def test_what_cannot_be_a_cursor_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        check_cursor(text)


@pytest.mark.parametrize("text", ["x" * 128, "~", "A-z_0.9", "latest", "earliest"])
def test_what_could_be_another_logs_cursor_is_let_pass(text: str) -> None:
    assert check_cursor(text) == text


@given(st.tuples(numbers, numbers), st.tuples(numbers, numbers))
def test_positions_are_ordered_as_their_numbers_are(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    assert (Position(*one) < Position(*other)) == (one < other)
