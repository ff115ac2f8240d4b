"""The forms of a batch, and whose fault is whose."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgpush.adapters.http.batch import split_array
from msgpush.domain.errors import Fault, Invalid, Malformed
from msgpush.domain.json_text import DEEP, flatten
from msgpush.domain.message import draft, parse

GOOD = b'{"type":"info","service":"s","data":{"text":"\\\\ud83d [{\\"","x":[1,{}]}}'
DEEPEST = 2_000

FAULTY = {
    "half of a surrogate pair": b'{"type":"info","service":"s","data":{"a":"\\ud83d"}}',
    "half of a surrogate pair at the end": b'"\\ud83d"',
    "a name with half of a surrogate pair": b'{"\\udc00":[]}',
    "arrays too deep": b'{"type":"info","service":"s","data":{"a":'
    + b"[" * DEEPEST
    + b"]" * DEEPEST
    + b"}}",
    "objects too deep": b'{"a":' * DEEPEST + b'"[\\"{"' + b"}" * DEEPEST,
    "too deep, with half of a surrogate pair": b'["]",{"\\ud83d":' * DEEPEST
    + b"7"
    + b"}]" * DEEPEST,
    "another level": b"[" * DEEP + b'[],{"a":[[]]},[]' + b"]" * DEEP,
    "a huge number": b"9" * 5_000,
    "no message": b'{"a":1,"a":2}',
}
ARRAYS = {
    "array": (b"[", b"]"),
    "spread array": (b" \n[\r\n\t", b" ]\n"),
    "object": (b'{"messages":[', b"]}"),
    "spread object": (b' { "mess\\u0061ges" : [\n', b"\n]\n}\n"),
    "array after a byte order mark": (b"\xef\xbb\xbf[", b"]"),
    "object with the name twice": (b'{"messages":["\\ud83d","x"],"messages":[', b"]}"),
}


@pytest.mark.parametrize("form", ARRAYS)
@pytest.mark.parametrize("fault", FAULTY)
@pytest.mark.parametrize("between", [b",", b" ,\n "])
def test_what_is_wrong_with_an_item_is_wrong_with_it_alone(
    form: str, fault: str, between: bytes
) -> None:
    start, end = ARRAYS[form]
    faulty = FAULTY[fault]
    items = [GOOD, faulty, GOOD, faulty, faulty, GOOD]
    assert split_array(start + between.join(items) + end) == items
    with pytest.raises((Malformed, Invalid)):
        parse(faulty)


@pytest.mark.parametrize(
    "body",
    [
        b'[{"a":"\\ud83d"}',
        b'[{"a":"\\ud83d"},]',
        b'[{"a":"\\ud83d"},{"b":"\\q"}]',
        b'[{"a":"\\ud83d"},01]',
        b'[{"a":"\\ud83"}]',
        b"[" * DEEPEST,
        b"[" * DEEPEST + b"]" * (DEEPEST - 1),
        b"[" + b"[" * DEEPEST + b"]" * DEEPEST + b" x]",
        b'["' + b"[" * DEEPEST,
        b'{"messages":[' + b"[" * DEEPEST + b"]" * DEEPEST + b"]",
    ],
)
def test_an_array_that_is_not_json_is_malformed_whatever_its_items_have(body: bytes) -> None:
    with pytest.raises(Malformed):
        split_array(body)


@pytest.mark.parametrize(
    ("body", "pointer", "said"),
    [
        (GOOD, "", "this is one message, which is sent to /send; a batch is a JSON array"),
        (b'{"type":"info"}', "", "one message"),
        (b"{}", "/messages", '{"messages": [...]}'),
        (b'{"messages":7}', "/messages", "an array of messages"),
        (b'{"messages":null}', "/messages", "an array of messages"),
        (b'{"message":[]}', "/message", '"message" is no field of a batch'),
        (b'{"messages":[],"type":"info"}', "/type", '"type" is no field of a batch'),
        (b"7", "", "7 is no batch"),
        (b"null", "", "null is no batch"),
        (b'"text"', "", '"text" is no batch'),
        (b"1e999", "", "NDJSON"),
        (b'{"a":"\\ud83d"}', "/a", "half of a surrogate pair"),
        (b'{"\\ud83d":[]}', "", "half of a surrogate pair"),
    ],
)
def test_a_body_that_is_no_batch_is_told_what_a_batch_is(
    body: bytes, pointer: str, said: str
) -> None:
    with pytest.raises(Invalid) as caught:
        split_array(body)
    (fault,) = caught.value.faults
    assert fault.pointer == pointer
    assert said in fault.detail


@pytest.mark.parametrize(
    "body", [GOOD + b"\n" + GOOD, GOOD + b"\r\n\n" + GOOD + b"\n", GOOD + b"\n{wrong", b"[]\n[]"]
)
def test_a_body_of_lines_is_told_how_lines_are_sent(body: bytes) -> None:
    with pytest.raises(
        Malformed, match="NDJSON, which is sent with Content-Type: application/x-ndjson"
    ):
        split_array(body)


JSON = st.recursive(
    st.none() | st.integers() | st.text('[]{}"\\,a\ud83d', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('"]}\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4), st.integers(0, DEEP), st.sampled_from([None, 1]))
def test_flattening_keeps_the_shape_and_what_is_not_deep(
    values: list[Any], depth: int, indent: int | None
) -> None:
    text = b"[" * depth + json.dumps(values, indent=indent).encode() + b"]" * depth
    flat = flatten(text)
    assert len(flat) == len(text)
    if depth <= DEEP - 60:
        assert flat == text
    assert flat[:depth] == text[:depth]
    assert flat[len(flat) - depth :] == text[len(flat) - depth :]
    json.loads(flat)


def test_splitting_again_says_the_same_as_splitting_at_once() -> None:
    assert split_array(b'["a","\\ud83d"]') == [b'"a"', b'"\\ud83d"']
    assert split_array(b"[ ]") == []
    with pytest.raises(Invalid) as caught:
        parse(b'"\\ud83d"')
    assert isinstance(caught.value.faults[0], Fault)


def test_half_a_pair_is_found_in_memory_that_the_body_bounds() -> None:
    body = (
        b'{"type":"info","service":"a","data":{"'
        + b"k" * 60_000
        + b'":['
        + b"1," * 30_000
        + b'"\\ud83d"]}}'
    )
    tracemalloc.start()
    try:
        with pytest.raises(Invalid) as caught:
            parse(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * len(body)
    assert caught.value.faults[0].pointer == "/data", (
        "that of what is around, where its own would be very long"
    )


def test_a_target_of_nothing_but_null_is_answered_for_a_few_of_its_names() -> None:
    target = {f"{n}_id": None for n in range(1000)}
    message = parse(json.dumps({"type": "info", "service": "a", "target": target}).encode())
    with pytest.raises(Invalid) as caught:
        draft(message, 0, "m1", 60)
    assert len(caught.value.faults) == 8


def test_lines_whose_first_has_half_a_pair_are_known_as_lines() -> None:
    with pytest.raises(Malformed, match="NDJSON"):
        split_array(b'{"a":"\\ud83d"}\n{"b":1}\n')
