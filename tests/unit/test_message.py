"""What a message may be, and what becomes of it."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgpush.domain.channel import BROADCAST, is_channel, route
from msgpush.domain.errors import Denied, Fault, Invalid, Malformed, MsgpushError, TooLarge
from msgpush.domain.marks import NORMAL, PRIORITIES, Mark, Terms
from msgpush.domain.message import (
    SPARE_DEPTH,
    TYPES,
    Draft,
    Message,
    Metadata,
    delivered_again,
    draft,
    is_service,
    normal_timestamp,
    parse,
    parse_all,
)

NOW = 1_753_859_400_123


def body(**fields: Any) -> bytes:
    return msgspec.json.encode({"type": "info", "service": "s", **fields})


def made(text: bytes, **options: Any) -> Draft:
    return draft(parse(text), NOW, "made", 3600, **options)


def delivered(text: bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgspec.json.decode(made(text).body)
    return message


def faults(text: bytes, **options: Any) -> list[Fault]:
    with pytest.raises(Invalid) as caught:
        made(text, **options)
    return list(caught.value.faults)


def test_the_least_message_is_completed() -> None:
    assert delivered(body()) == {
        "id": "made",
        "timestamp": "2025-07-30T07:10:00.123Z",
        "type": "info",
        "service": "s",
        "data": {},
        "metadata": {"priority": "normal", "ttl": 3600, "retry_count": 0},
    }


def test_everything_that_was_published_is_delivered() -> None:
    given_fields = {
        "id": "A-z_0.9:x",
        "timestamp": "2025-07-30T15:10:00.123Z",
        "type": "custom",
        "service": "a.b_c-D",
        "source": "x" * 128,
        "target": {"user_id": "u", "kb_id": "é:ü"},
        "channels": ["a", "b"],
        "data": {"x": [1, None, "\u2028\n\r"]},
        "metadata": {"priority": "urgent", "ttl": 604800, "retry_count": 7},
    }
    expected = {**given_fields, "metadata": {"priority": "urgent", "ttl": 604800, "retry_count": 0}}
    assert delivered(msgspec.json.encode(given_fields)) == expected


def test_null_counts_as_absent_everywhere() -> None:
    nothing = dict.fromkeys(("id", "timestamp", "source", "target", "channels", "data", "metadata"))
    assert delivered(body(**nothing)) == delivered(body())
    assert delivered(body(metadata={"priority": None, "ttl": None})) == delivered(body())
    assert made(body(target={"user_id": "u", "kb_id": None})).channels == ("user:u", "service:s")
    assert made(body(target={"user_id": None}, channels=["a"])).channels == ("a", "service:s")


@pytest.mark.parametrize("channels", [None, []])
def test_a_target_that_names_nobody_is_refused_where_nobody_would_get_the_message(
    channels: object,
) -> None:
    refused = faults(body(target={"user_id": None, "kb_id": None}, channels=channels))
    assert [fault.pointer for fault in refused] == ["/target/user_id", "/target/kb_id"]
    assert "null names nobody" in refused[0].detail


@pytest.mark.parametrize("type", TYPES)
def test_every_type_of_the_contract_is_taken(type: str) -> None:
    assert delivered(body(type=type, data={"progress": 0}))["type"] == type


@pytest.mark.parametrize(
    ("fields", "pointer", "named"),
    [
        ({"type": "news"}, "/type", '"news"'),
        ({"type": None}, "/type", "null"),
        ({"type": 5}, "/type", "5"),
        ({"service": ""}, "/service", '""'),
        ({"service": "s" * 65}, "/service", "1-64"),
        ({"service": "a/b"}, "/service", '"a/b"'),
        ({"service": "s\n"}, "/service", '"s\\n"'),
        ({"id": ""}, "/id", '""'),
        ({"id": "x" * 129}, "/id", "1-128"),
        ({"id": "x\n"}, "/id", '"x\\n"'),
        ({"id": 7}, "/id", "7"),
        ({"source": "x" * 129}, "/source", "128"),
        ({"timestamp": 5}, "/timestamp", "5"),
        ({"target": []}, "/target", "[]"),
        ({"target": {"user": "x"}}, "/target/user", '"user"'),
        ({"target": {"_id": "x"}}, "/target/_id", '"_id"'),
        ({"target": {"a/b~_id": "*"}}, "/target/a~1b~0_id", '"a/b~:*"'),
        ({"target": {"user_id": ""}}, "/target/user_id", '"user:"'),
        ({"target": {"user_id": True}}, "/target/user_id", "true"),
        ({"target": {f"k{n}_id": "x" for n in range(9)}}, "/target", "9"),
        ({"channels": "a"}, "/channels", '"a"'),
        ({"channels": [5]}, "/channels/0", "5"),
        ({"channels": ["a", "b", ""]}, "/channels/2", '""'),
        ({"channels": ["c"] * 33}, "/channels", "33"),
        ({"data": 5}, "/data", "object"),
        ({"metadata": {"ttl": 0}}, "/metadata/ttl", "0"),
        ({"metadata": {"ttl": 604801}}, "/metadata/ttl", "604801"),
        ({"metadata": {"ttl": 1.5}}, "/metadata/ttl", "1.5"),
        ({"metadata": {"ttl": "5"}}, "/metadata/ttl", '"5"'),
        ({"metadata": {"priority": "max"}}, "/metadata/priority", '"max"'),
        ({"metadata": {"tll": 5}}, "/metadata/tll", '"tll"'),
        ({"metadata": []}, "/metadata", "[]"),
        ({"chanels": []}, "/chanels", '"chanels"'),
        ({"a/b~c": 1}, "/a~1b~0c", '"a/b~c"'),
        ({"x` - at `$.id": 1}, "/x` - at `$.id", "x`"),
        ({"type": "progress"}, "/data/progress", "required"),
        ({"type": "progress", "data": {"progress": "50"}}, "/data/progress", '"50"'),
        ({"type": "progress", "data": {"progress": True}}, "/data/progress", "true"),
        ({"type": "progress", "data": {"progress": -0.1}}, "/data/progress", "-0.1"),
        ({"type": "progress", "data": {"progress": 100.0001}}, "/data/progress", "100.0001"),
    ],
)
def test_a_wrong_field_is_named_with_its_place_its_value_and_what_is_allowed(
    fields: dict[str, Any], pointer: str, named: str
) -> None:
    (fault,) = faults(body(**fields))
    assert fault.pointer == pointer
    assert named in fault.detail


def test_all_wrong_targets_and_channels_are_named_at_once() -> None:
    assert [fault.pointer for fault in faults(body(channels=["a b", "ok", "c*"]))] == [
        "/channels/0",
        "/channels/2",
    ]
    assert [
        fault.pointer for fault in faults(body(target={"a": "x", "b_id": "y", "c_id": "*"}))
    ] == [
        "/target/a",
        "/target/c_id",
    ]


def test_a_required_field_that_is_missing_is_named() -> None:
    assert faults(b'{"service":"s"}')[0].pointer == "/type"
    assert faults(b'{"type":"info"}')[0].pointer == "/service"


@pytest.mark.parametrize("progress", ["0", "-0", "100", "100.0", "1e2", "1e-400", "99.999"])
def test_progress_may_be_any_number_from_0_to_100(progress: str) -> None:
    text = f'{{"type":"progress","service":"s","data":{{"progress":{progress}}}}}'.encode()
    assert f'"progress":{progress}}}'.encode() in made(text).body


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        b" \xef\xbb\xbf{}",
        b"\xff",
        b'{"type":"info","service":"s","source":"\xc3"}',
        b'{"type":"info","service":"s","data":{"x":"\xed\xa0\x80"}}',
        b'{"type":"info","service":"s","data":{"x":"\\ud83"}}',
        b'{"type":"info","service":"s","data":{"x":"\\ud800","y":"\\x"}}',
        b'{"type":"info","service":"s","data":{"x":"\\ud800"}',
        b'{"type":"info","service":"s","data":{"x":NaN}}',
        b'{"type":"info","service":"s","data":{"x":01}}',
        b'{"type":"info","service":"s","data":{"x":"a\nb"}}',
        b'{"type":"info","service":"s"} x',
        b'{"type":"wrong","service":"s"',
        b'{"type":"info","service":"s","data":' + b"[" * 100_000,
        b"[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_malformed(text: bytes) -> None:
    with pytest.raises(Malformed):
        made(text)


HALVES = [
    "\\ud83d",
    "a\\uDBFFb",
    "\\udc00\\ud83d",
    "\\ud83d\\ud83d\\ude00",
    "\\ud83d\\u0041",
    "\\\\\\udfff",
]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ('"source":"HALF"', "/source"),
        ('"id":"HALF"', "/id"),
        ('"timestamp":"HALF"', "/timestamp"),
        ('"channels":["a","HALF"]', "/channels/1"),
        ('"target":{"user_id":"HALF"}', "/target/user_id"),
        ('"target":{"HALF_id":"u"}', "/target"),
        ('"data":"HALF"', "/data"),
        ('"data":{"a":{"~/":[0,{"b":"x","c":"HALF"}]}}', "/data/a/~0~1/1/c"),
        ('"data":{"a":[{"HALF":1}]}', "/data/a/0"),
        ('"data":{"a":[],"n":1e999,"m":1,"a":["HALF"]}', "/data/a/0"),
        ('"metadata":{"priority":"HALF"}', "/metadata/priority"),
        ('"metadata":{"retry_count":"HALF"}', "/metadata/retry_count"),
        ('"HALF":1', ""),
    ],
)
def test_half_of_a_surrogate_pair_is_a_fault_of_the_text_that_has_it(
    half: str, fields: str, pointer: str
) -> None:
    text = f'{{"type":"info","service":"s",{fields.replace("HALF", half)}}}'.encode()
    (fault,) = faults(text)
    assert fault.pointer == pointer
    assert "half of a surrogate pair, \\ud" in fault.detail
    assert fault.detail.isprintable()


def test_whole_surrogate_pairs_and_backslashes_before_a_u_are_no_fault() -> None:
    data = rb'{"\ud83d\ude00":"\uD83D\uDE00","b":"\\ud83d","c":"\\\\ude00"}'
    assert b'"data":' + data in made(b'{"type":"info","service":"s","data":' + data + b"}").body


@given(st.text('d8cfF0aA\\"u\ud83d\ude00\U0001f600', max_size=12), st.booleans())
def test_a_text_is_refused_exactly_where_it_has_half_of_a_surrogate_pair(
    text: str, plain: bool
) -> None:
    read = json.loads(json.dumps(text))
    half = any("\ud800" <= each <= "\udfff" for each in read)
    written = json.dumps({read: [read]}, ensure_ascii=not plain or half)
    for fields in (
        f'"data":{written}',
        f'"source":{json.dumps(text)}',
        f'"metadata":{{"retry_count":{written}}}',
    ):
        whole = f'{{"type":"info","service":"s",{fields}}}'.encode()
        if half:
            assert "surrogate" in faults(whole)[0].detail
        else:
            made(whole)


@pytest.mark.parametrize("text", [b"", b" \r\n\t", b"\xef\xbb\xbf", b"\xef\xbb\xbf "])
def test_an_empty_body_is_called_empty(text: bytes) -> None:
    with pytest.raises(Malformed, match="the body is empty"):
        parse(text)


def test_a_byte_order_mark_before_a_message_is_passed_over() -> None:
    assert parse(b"\xef\xbb\xbf" + body(source="\ufeff")) == parse(body(source="\ufeff"))
    assert faults(b"\xef\xbb\xbf" + body(id="a b"))[0].pointer == "/id"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5_000])
def test_a_number_that_is_too_large_for_its_place_is_no_fault_of_the_json(number: str) -> None:
    def with_data(data: str) -> bytes:
        return body(type="progress", data=msgspec.Raw(data.encode()))

    assert [fault.pointer for fault in faults(with_data(f'{{"progress":{number}}}'))] == [
        "/data/progress"
    ]
    assert [fault.pointer for fault in faults(with_data(f'{{"progress":"","x":{number}}}'))] == [
        "/data/progress"
    ]
    assert [fault.pointer for fault in faults(body(x=msgspec.Raw(number.encode())))] == ["/x"]
    assert [
        fault.pointer for fault in faults(body(metadata={"ttl": msgspec.Raw(number.encode())}))
    ] == ["/metadata/ttl"]
    assert number.encode() in made(with_data(f'{{"progress":1,"x":{number}}}')).body


def test_a_retry_count_is_ignored_whatever_it_is() -> None:
    metadata = b'{"type":"info","service":"s","metadata":{"retry_count":1e999}}'
    assert delivered(metadata)["metadata"]["retry_count"] == 0


@pytest.mark.parametrize(
    ("before", "after", "right"),
    [
        (b'"type":"info","data":{"x":', b"}", True),
        (b'"type":"info","data":{"x":\n', b"}", True),
        (b'"type":"progress","data":{"progress":1,"x":', b"}", True),
        (b'"type":"info","metadata":{"retry_count":', b"}", True),
        (b'"type":"progress","data":{"progress":', b"}", False),
        (b'"type":"info","target":{"user_id":', b"}", False),
        (b'"type":"info","channels":[', b"]", False),
        (b'"type":"info","id":', b"", False),
        (b'"type":"info","x":', b"", False),
    ],
)
def test_a_message_of_any_depth_is_readable_wherever_it_is_delivered_or_refused(
    before: bytes, after: bytes, right: bool
) -> None:
    def read(body: bytes, calls: int) -> object:
        return read(body, calls - 1) if calls else msgspec.json.decode(body)

    accepted = 0
    for depth in range(400, 1_050):
        for opening, closing in ((b"[", b"]"), (b'{"":[', b"]}")):
            nested = before + opening * depth + closing * depth + after
            try:
                draft = made(b'{"service":"s",%b}' % nested)
            except (Invalid, Malformed):
                continue
            accepted += 1
            read(draft.body, SPARE_DEPTH - 10)
    assert (accepted > 0) == right


def test_digits_and_escapes_of_data_are_kept_and_only_line_ends_between_tokens_go() -> None:
    data = b'{"a":1.50,"b":1e400,"c":-0,"d":123456789012345678901234567890,"e":"\\u00e9\\/","a":2}'
    assert (
        b'"data":' + data + b"," in made(b'{"type":"info","service":"s","data":' + data + b"}").body
    )
    spread = data.replace(b",", b",\r\n\t")
    one_line = made(b'{"type":"info","service":"s","data":' + spread + b"}").body
    assert b'"data":' + data + b"," in one_line


def test_a_messages_size_times_its_channels_is_bounded() -> None:
    big = {"x": "y" * 200_000}
    made(body(data=big, channels=[f"c{n}" for n in range(19)]))
    with pytest.raises(TooLarge):
        made(body(data=big, channels=[f"c{n}" for n in range(21)]))


def test_a_digest_stands_for_the_content_alone() -> None:
    first = made(body(id="m1")).digest
    assert first is not None
    assert made(body(id="m1", metadata={"priority": "normal"})).digest == first
    assert draft(parse(body(id="m1")), NOW + 5, "other", 60).digest == first
    others: list[dict[str, Any]] = [
        {"data": {"x": 1}},
        {"source": "x"},
        {"type": "status"},
        {"channels": ["a"]},
        {"target": {"user_id": "u"}},
        {"metadata": {"ttl": 60}},
        {"metadata": {"priority": "high"}},
        {"timestamp": "2025-07-30T15:10:00Z"},
    ]
    digests = {made(body(id="m1", **other)).digest for other in others}
    assert len(digests | {first}) == len(others) + 1
    assert made(body(id="m1"), broadcast=True).digest != first
    assert made(body()).digest is None


def test_making_a_draft_leaves_the_message_as_it_was() -> None:
    message = parse(body())
    first, second = draft(message, NOW, "one", 60), draft(message, NOW, "two", 60)
    assert (first.id, second.id) == ("one", "two")
    assert message == parse(body())


def test_a_message_made_in_code_is_completed_alike() -> None:
    text = draft(Message(type="info", service="s"), NOW, "made", 3600).body
    assert text == made(body()).body


@given(st.text(max_size=70))
def test_a_services_name_is_short_and_plain(name: str) -> None:
    plain = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert is_service(name) == (1 <= len(name) <= 64 and set(name) <= plain)


# Timestamps


@pytest.mark.parametrize(
    ("given_text", "kept"),
    [
        ("2025-07-30T15:10:00Z", "2025-07-30T15:10:00.000Z"),
        ("2025-07-30t15:10:00.1z", "2025-07-30T15:10:00.100Z"),
        ("2025-07-30T15:10:00.123999999999+02:00", "2025-07-30T13:10:00.123Z"),
        ("2025-01-01T00:30:00+01:00", "2024-12-31T23:30:00.000Z"),
        ("2025-07-30T15:10:00-00:00", "2025-07-30T15:10:00.000Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000Z"),
        ("2016-12-31T23:59:60.000Z", "2017-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000Z"),
    ],
)
def test_a_timestamp_is_kept_as_utc_with_milliseconds(given_text: str, kept: str) -> None:
    assert normal_timestamp(given_text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2025-07-30",
        "2025-07-30T15:10:00",
        "2025-07-30T15:10Z",
        "2025-13-01T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "2025-07-30T24:00:00Z",
        "2025-07-30T24:00:00.000Z",
        "2025-02-29T00:00:00.000Z",
        "0000-01-01T00:00:00.000Z",
        "2025-07-30T15:60:00Z",
        "2025-07-30T15:10:61Z",
        "2025-07-30T15:10:00.Z",
        "2025-07-30T15:10:00+24:00",
        "2025-07-30T15:10:00+0200",
        "2025-07-30T15:10:00Z\n",
        "٢٠٢٥-07-30T15:10:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
    ],
)
def test_what_is_no_rfc_3339_moment_is_refused(text: str) -> None:
    assert faults(body(timestamp=text))[0].pointer == "/timestamp"


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)),  # noqa: DTZ001
    st.integers(-23 * 60, 23 * 60),
)
def test_any_moment_is_kept_to_the_millisecond(moment: datetime, offset: int) -> None:
    there = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    text = normal_timestamp(there.isoformat())
    back = datetime.fromisoformat(text)
    assert timedelta(0) <= there.astimezone(UTC) - back < timedelta(milliseconds=1)


# Channels


@given(st.text(max_size=210))
def test_a_channels_name_has_no_character_that_means_something_else(name: str) -> None:
    forbidden = any(c.isspace() or c in ",*/?#" or ord(c) < 32 or 127 <= ord(c) < 160 for c in name)
    assert is_channel(name) == (1 <= len(name) <= 200 and not forbidden)


def test_a_message_goes_to_the_union_of_its_channels_each_once() -> None:
    assert route("s", {"user_id": "u", "x_y_id": "z"}, ["a", "user:u", "a"], broadcast=True) == (
        "user:u",
        "x_y:z",
        "a",
        "service:s",
        BROADCAST,
    )
    assert route("s", None, ["service:s"]) == ("service:s",)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_is_a_message_or_a_clear_error(value: Any) -> None:
    for text in (
        msgspec.json.encode(value),
        body(target=value),
        body(channels=value),
        body(metadata=value),
        body(data=value),
    ):
        try:
            made(text)
        except MsgpushError as error:
            assert str(error)


GOOD = b'{"type":"info","service":"s"}'
# Parts of messages, so that what is cut in the wrong place, or stands on one line, may be whole elsewhere.
PARTS = [
    GOOD,
    b'{"type":"progress","service":"s","data":{"progress":1}}',
    b'{"type":"progress","service":"s","data":{"progress":101}}',
    b'{"type":"info",\n"service":"s"}',
    b'{"type":"info","service":"not one"}',
    b'{"type":"info","service":"s","data":{"a":[1,',
    b"2]}}",
    b"",
    b" ",
    b"\n",
    b",",
    b"null",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"[" * 600,
    b"]" * 600,
]


@given(st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map(b"".join), max_size=4))
def test_messages_read_at_once_are_what_each_is_by_itself(texts: list[bytes]) -> None:
    messages = parse_all(texts)
    alone = []
    for text in texts:
        try:
            alone.append(parse(text))
        except MsgpushError:
            assert messages is None
            return
    assert messages == alone or messages is None


def test_good_messages_are_read_at_once() -> None:
    texts = [GOOD, b' {"type":"info",\n\n"service":"s" } ', GOOD]
    assert parse_all(texts) == [parse(text) for text in texts]


def test_as_many_values_as_texts_are_not_taken_for_one_in_each() -> None:
    cut = [b'{"type":"info","service":"s","data":{"a":[1,', b"2]}}" + GOOD]
    assert parse_all(cut) is None
    assert parse_all([GOOD + GOOD, b""]) is None


# Acknowledgements and priorities


def asking(ack: Any = True, **fields: Any) -> bytes:
    """A message to a user, with this acknowledgement; further fields stand in place of others."""
    return body(**{"target": {"user_id": "u"}, "metadata": {"ack": ack}, **fields})


FULL = {"deadline": 30, "deliveries": 5, "receipt": False, "collapse": None}


@pytest.mark.parametrize(
    ("ack", "changed"),
    [
        (True, {}),
        ({}, {}),
        (dict.fromkeys(FULL), {}),
        (FULL, {}),
        ({"deadline": 1}, {"deadline": 1}),
        ({"deadline": 86_400, "deliveries": 20}, {"deadline": 86_400, "deliveries": 20}),
        ({"deliveries": 1, "receipt": None}, {"deliveries": 1}),
        ({"receipt": True}, {"receipt": True}),
        ({"collapse": "ü" * 64}, {"collapse": "ü" * 64}),
    ],
)
def test_readers_get_an_acknowledgement_that_is_asked_for_complete(
    ack: Any, changed: dict[str, Any]
) -> None:
    terms = {**FULL, **changed}
    assert delivered(asking(ack))["metadata"]["ack"] == terms
    assert made(asking(ack)).terms == Terms(**terms)


@pytest.mark.parametrize("ack", [None, False])
def test_an_acknowledgement_that_isnt_asked_for_leaves_no_trace(ack: object) -> None:
    plain = made(body(target={"user_id": "u"}, id="m"))
    without = made(asking(ack, id="m"))
    assert (without.body, without.digest) == (plain.body, plain.digest)
    assert (without.mark, without.terms) == (None, None)
    assert made(body(metadata={"ack": ack})).mark is None


@pytest.mark.parametrize(
    ("ack", "place", "named", "allowed"),
    [
        (5, "", "5", "true, or an object"),
        ("true", "", '"true"', "true, or an object"),
        ([], "", "[]", "true, or an object"),
        ({"deadline": 0}, "/deadline", "0", "1 to 86400"),
        ({"deadline": 86_401}, "/deadline", "86401", "1 to 86400"),
        ({"deadline": 1.5}, "/deadline", "1.5", "whole seconds"),
        ({"deadline": True}, "/deadline", "true", "whole seconds"),
        ({"deadline": "30"}, "/deadline", '"30"', "1 to 86400"),
        ({"deliveries": 0}, "/deliveries", "0", "1 to 20"),
        ({"deliveries": 21}, "/deliveries", "21", "1 to 20"),
        ({"receipt": 1}, "/receipt", "1", "true or false"),
        ({"receipt": "yes"}, "/receipt", '"yes"', "true or false"),
        ({"collapse": ""}, "/collapse", '""', "1 to 64 characters"),
        ({"collapse": "x" * 65}, "/collapse", "xxx", "1 to 64 characters"),
        ({"collapse": 7}, "/collapse", "7", "1 to 64 characters"),
        ({"timeout": 5}, "/timeout", '"timeout"', "no field"),
    ],
)
def test_what_is_wrong_with_an_acknowledgement_is_named(
    ack: object, place: str, named: str, allowed: str
) -> None:
    (fault,) = faults(asking(ack))
    assert fault.pointer == "/metadata/ack" + place
    assert named in fault.detail
    assert allowed in fault.detail


@pytest.mark.parametrize("target", [None, {"kb_id": "k"}, {"user_id": None, "kb_id": "k"}])
@pytest.mark.parametrize("ack", [True, {}, {"deadline": 5}])
def test_without_a_user_nobody_could_acknowledge(target: object, ack: object) -> None:
    (fault,) = faults(asking(ack, target=target))
    assert fault.pointer == "/metadata/ack"
    assert "target.user_id" in fault.detail


def test_nobody_acknowledges_a_broadcast() -> None:
    (fault,) = faults(asking(target=None), broadcast=True)
    assert fault.pointer == "/metadata/ack"
    assert not made(body(metadata={"ack": False}), broadcast=True).terms


def test_a_user_that_is_no_name_is_told_as_that() -> None:
    (fault,) = faults(asking(target={"user_id": 5}))
    assert fault.pointer == "/target/user_id"


@pytest.mark.parametrize("name", [".", ".."])
@pytest.mark.parametrize("pointer", ["/service", "/id", "/target/user_id"])
def test_a_name_that_would_vanish_in_a_path_is_refused_where_an_acknowledgement_is_asked_for(
    pointer: str, name: str
) -> None:
    fields = {"service": "s", "id": "m", "target": {"user_id": "u"}}
    fields[pointer.split("/")[1]] = {"user_id": name} if pointer.startswith("/target") else name
    (fault,) = faults(asking(**fields))
    assert fault.pointer == pointer
    assert f'"{name}"' in fault.detail
    assert made(body(**fields)).id
    assert made(asking(id="...", service=".a", target={"user_id": "..."})).mark


def test_a_message_that_asks_is_known_by_its_service_and_id_and_for_its_user() -> None:
    assert made(asking(service="a.b", id="x:1")).mark == Mark(NORMAL, "message", "u", "a.b/x:1", 1)
    assert made(asking()).mark == Mark(NORMAL, "message", "u", "s/made", 1)
    urgent = made(asking(metadata={"ack": True, "priority": "urgent"}))
    assert urgent.mark == Mark(3, "message", "u", "s/made", 1)


def test_a_message_that_asks_lives_as_long_as_it_says_or_as_those_do() -> None:
    assert made(asking(), ack_ttl=86_400).ttl == 86_400
    assert made(asking(metadata={"ack": True, "ttl": 5}), ack_ttl=86_400).ttl == 5
    assert made(body(), ack_ttl=86_400).ttl == 3600
    assert made(asking(False), ack_ttl=86_400).ttl == 3600
    metadata = msgspec.json.decode(made(asking(), ack_ttl=86_400).body)["metadata"]
    assert metadata == {"priority": "normal", "ttl": 86_400, "retry_count": 0, "ack": FULL}


def test_a_digest_stands_for_what_is_asked_for_however_it_is_said() -> None:
    def digest(ack: Any) -> bytes | None:
        return made(asking(ack, id="m")).digest

    asked = digest(True)
    assert asked == digest({}) == digest(FULL) == digest({"deadline": None, "receipt": False})
    assert asked != made(body(id="m", target={"user_id": "u"})).digest
    others = [{"deadline": 31}, {"deliveries": 4}, {"receipt": True}, {"collapse": "c"}]
    assert len({asked, digest(False), *map(digest, others)}) == 6


def test_without_acknowledgement_bodies_and_digests_are_what_they_were() -> None:
    message = made(
        body(
            id="m",
            timestamp="2025-07-30T15:10:00.123Z",
            target={"user_id": "u"},
            metadata={"priority": "high", "ttl": 5},
        )
    )
    assert message.body == (
        b'{"id":"m","timestamp":"2025-07-30T15:10:00.123Z","type":"info","service":"s",'
        b'"target":{"user_id":"u"},"data":{},"metadata":{"priority":"high","ttl":5,"retry_count":0}}'
    )
    assert message.digest is not None
    assert message.digest.hex() == "77a37305287bfe732534d7e4b2ec7d76"
    assert message.terms is None


def test_a_normal_message_has_no_mark_and_others_only_their_priority() -> None:
    assert made(body()).mark is None
    assert made(body(metadata={"priority": "normal"})).mark is None
    for rank, name in enumerate(PRIORITIES):
        mark = made(body(metadata={"priority": name})).mark
        assert mark == (None if name == "normal" else Mark(rank))
    assert PRIORITIES == ("low", "normal", "high", "urgent")


def test_a_further_delivery_is_the_same_message_but_for_its_count_and_what_is_left() -> None:
    text = asking({"receipt": True}, id="m", data={"x": 1.50}, source="é", channels=["a"])
    first = delivered(text)
    later = msgspec.json.decode(delivered_again(made(text).body, 3, 17))
    assert later.pop("metadata") == {**first.pop("metadata"), "ttl": 17, "retry_count": 2}
    assert later == first
    raw = body(target={"user_id": "u"}, metadata={"ack": True}).replace(
        b'"type"', b'"data":{"n":1.500e400,"t":"\\u00e9"},"type"', 1
    )
    assert b'{"n":1.500e400,"t":"\\u00e9"}' in delivered_again(made(raw).body, 2, 5)


def test_making_a_draft_that_asks_leaves_the_message_as_it_was() -> None:
    message = parse(asking({"deadline": 7}, id="m"))
    before = msgspec.json.encode(message)
    first = draft(message, NOW, "new", 3600)
    assert msgspec.json.encode(message) == before
    assert draft(message, NOW, "new", 3600).digest == first.digest


def test_a_message_made_in_code_may_ask() -> None:
    message = Message(
        type="info", service="s", target={"user_id": "u"}, metadata=Metadata(ack=True)
    )
    assert draft(message, NOW, "new", 3600).terms == Terms()


# What is the service's own


@pytest.mark.parametrize("broadcast", [False, True])
def test_nobody_publishes_as_the_service_itself(broadcast: bool) -> None:
    with pytest.raises(Denied) as caught:
        made(body(service="msgpush"), broadcast=broadcast)
    assert caught.value.permission is None
    assert "msgpush" in caught.value.detail


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": ["a", "receipts:s"]},
        {"channels": ["receipts:"]},
        {"target": {"receipts_id": "s"}},
        {"target": {"user_id": "u", "receipts_id": "other"}, "metadata": {"ack": True}},
    ],
)
def test_nobody_publishes_receipts(fields: dict[str, Any]) -> None:
    with pytest.raises(Denied) as caught:
        made(body(**fields))
    assert "receipts:" in caught.value.detail
    assert all(channel.startswith("receipts:") for channel in caught.value.channels)


def test_names_that_only_look_like_the_services_own_are_free() -> None:
    names = ("receipts", "my-receipts:s", "Receipts:s")
    draft = made(body(service="msgpush-2", channels=names))
    assert draft.channels == (*names, "service:msgpush-2")
    draft = made(body(service="Msgpush", target={"receipt_id": "s", "service_id": "msgpush"}))
    assert draft.channels == ("receipt:s", "service:msgpush", "service:Msgpush")
