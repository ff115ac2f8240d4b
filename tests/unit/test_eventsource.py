"""The reference parser itself, on the cases of the Web Platform Tests' `eventsource/format-*`,
written anew.
"""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.eventsource import Event, EventStreamParser


def parse(stream: bytes) -> list[Event]:
    return EventStreamParser().feed(stream)


def data(stream: bytes) -> list[str]:
    return [event.data for event in parse(stream)]


def test_one_leading_bom_is_ignored() -> None:
    assert data(b"\xef\xbb\xbfdata:1\n\n\xef\xbb\xbfdata:2\n\ndata:3\n\n") == ["1", "3"]


def test_a_second_bom_is_part_of_a_fields_name() -> None:
    assert data(b"\xef\xbb\xbf\xef\xbb\xbfdata:1\n\ndata:2\n\ndata:3\n\n") == ["2", "3"]


def test_comments_are_skipped_however_they_look() -> None:
    long = b"x" * 2048
    assert data(
        b"data:1\r:\0\n:\r\ndata:2\n:" + long + b"\rdata:3\n:data:fail\r:" + long + b"\ndata:4\n\n"
    ) == ["1\n2\n3\n4"]


def test_a_block_without_its_empty_line_is_discarded() -> None:
    assert parse(b"retry:1000\ndata:test1\n\nid:test\ndata:test2") == [
        Event("message", "test1", "")
    ]


def test_data_lines_are_joined_and_a_bare_field_is_an_empty_line() -> None:
    assert data(b"data:\n\ndata\ndata\n\ndata:test\n\n") == ["", "\n", "test"]


def test_an_event_has_the_type_that_it_names() -> None:
    assert parse(b"event:test\ndata:x\n\ndata:x\n\n") == [
        Event("test", "x", ""),
        Event("message", "x", ""),
    ]


def test_an_empty_type_is_message() -> None:
    assert parse(b"event: \ndata:data\n\n") == [Event("message", "data", "")]


def test_a_type_without_data_makes_no_event_and_does_not_last() -> None:
    assert parse(b"event:test\n\ndata:x\n\n") == [Event("message", "x", "")]


def test_an_id_lasts_until_another_is_given() -> None:
    ids = [
        event.last_event_id
        for event in parse(b"id:1\ndata:a\n\ndata:b\n\nid:2\ndata:c\n\nid\ndata:d\n\n")
    ]
    assert ids == ["1", "1", "2", ""]


def test_an_id_counts_from_its_dispatch_even_without_data() -> None:
    parser = EventStreamParser()
    parser.feed(b"id:1\n")
    assert parser.last_event_id == ""
    parser.feed(b"\n")
    assert parser.last_event_id == "1"


def test_an_id_of_a_block_that_was_cut_does_not_count() -> None:
    parser = EventStreamParser()
    parser.feed(b"id:1\ndata:a\n\nid:2\ndata:b\n")
    assert parser.last_event_id == "1"


def test_an_id_may_be_any_text() -> None:
    assert parse("id:…é\ndata:x\n\n".encode())[0].last_event_id == "…é"


@pytest.mark.parametrize("id", [b"\0", b"a\0b", b"\0\0"])
def test_an_id_with_a_null_is_ignored(id: bytes) -> None:
    assert parse(b"id:1\nid:" + id + b"\ndata:x\n\n")[0].last_event_id == "1"


def test_fields_are_read_as_the_grammar_says() -> None:
    stream = b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n"
    assert data(stream) == ["\0\n 2\n1\n3\n\n4"]


def test_unknown_fields_are_skipped() -> None:
    assert data(
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n"
    ) == ["test\n\ntest"]


def test_one_leading_space_of_a_value_is_dropped() -> None:
    assert data(b"data:\ttest\rdata: \ndata:test\n\n") == ["\ttest\n\ntest"]


@pytest.mark.parametrize(
    ("value", "retry"),
    [
        (b"03000", 3000),
        (b"3000", 3000),
        (b" 3000", 3000),
        (b"1000x", None),
        (b"", None),
        (b"-5", None),
        ("٣".encode(), None),
    ],
)
def test_retry_is_digits_alone(value: bytes, retry: int | None) -> None:
    parser = EventStreamParser()
    assert parser.feed(b"retry:" + value + b"\ndata:x\n\n") == [Event("message", "x", "")]
    assert parser.retry == retry


def test_every_line_end_is_one() -> None:
    assert data(b"data:test\r\ndata\ndata:test\r\n\r\n") == ["test\n\ntest"]
    assert data(b"data:1\r\rdata:2\n\ndata:3\r\n\r\n") == ["1", "2", "3"]


def test_a_null_is_a_character_of_data() -> None:
    assert data(b"data:\0\n\n\n\n") == ["\0"]


def test_the_stream_is_utf_8_and_what_is_not_is_replaced() -> None:
    assert data("data:ok…\n\n".encode()) == ["ok…"]
    assert data(b"data:\xff\n\n") == ["\ufffd"]


def test_other_unicode_line_ends_are_characters_of_data() -> None:
    assert data("data:a\u2028b\u0085c\x0bd\n\n".encode()) == ["a\u2028b\u0085c\x0bd"]


pieces = st.sampled_from(
    [
        b"data:",
        b"data",
        b"id:",
        b"event:",
        b"retry:",
        b": ",
        b"\n",
        b"\r",
        b"\r\n",
        b"x",
        b" ",
        b"\0",
        "é€😀".encode(),
        b"\xff",
    ]
)


@given(st.lists(pieces, max_size=30).map(b"".join), st.lists(st.integers(0, 200), max_size=6))
def test_however_a_stream_is_cut_it_reads_the_same(stream: bytes, cuts: list[int]) -> None:
    whole, parted = EventStreamParser(), EventStreamParser()
    expected = whole.feed(stream)
    got: list[Event] = []
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in pairwise(places):
        got += parted.feed(stream[start:end])
    assert got == expected
    assert (parted.last_event_id, parted.retry) == (whole.last_event_id, whole.retry)


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1
    )
)
def test_any_lines_of_data_come_back(lines: list[str]) -> None:
    stream = "".join(f"data: {line}\n" for line in lines) + "\n"
    assert data(stream.encode()) == ["\n".join(lines)]
