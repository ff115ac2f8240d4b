"""Texts for parsers: JSON in every way that the standard has to write it, what is nearly right, and
changed bytes.
"""

import json
from collections.abc import Sequence

from hypothesis import strategies as st

WHITE = st.sampled_from(["", "", "", " ", "\n", "\r\n", "\t", "  \r"])
NUMBERS = st.one_of(
    st.integers(-(10**40), 10**40).map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?", fullmatch=True),
    st.sampled_from(
        ["0", "-0", "1e999", "1E-999", "9" * 400, "0.1000", "1.0", "9007199254740993", "1e+2"]
    ),
)
ODD = [
    *(
        "",
        "\0",
        "\n",
        "\r",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\udfff",
        "\U0001f600",
        "e\u0301",
        "\x7f",
        "\x85",
        "\u202e",
    ),
    *(
        '"',
        "\\",
        "/",
        "~",
        "\uffff",
        "a.b",
        "x[0]",
        "` - at `$.y`",
        "a_id",
        "_id",
        "*",
        ",",
        "\u3000",
    ),
]
TEXT = st.text(max_size=12) | st.sampled_from(ODD)


@st.composite
def strings(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXT) -> str:
    """A string in JSON, with more escapes than it needs or fewer."""
    text = draw(texts)
    # Half a surrogate pair has no UTF-8: it can only be escaped.
    plain = draw(st.booleans()) and not any("\ud800" <= each <= "\udfff" for each in text)
    written = json.dumps(text, ensure_ascii=not plain)
    return written.replace("/", "\\/") if draw(st.booleans()) else written


def array(items: Sequence[str], white: str = "") -> str:
    return f"{white}[{white}" + f"{white},{white}".join(items) + f"{white}]{white}"


def members(pairs: Sequence[tuple[str, str]], white: str = "") -> str:
    """An object of names and values that are JSON already."""
    each = (f"{name}{white}:{white}{value}" for name, value in pairs)
    return f"{white}{{{white}" + f"{white},{white}".join(each) + f"{white}}}{white}"


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """An object, in which a name may be there twice."""
    return st.builds(members, st.lists(st.tuples(strings(), values), max_size=4), WHITE)


VALUES = st.recursive(
    st.sampled_from(["null", "true", "false"]) | NUMBERS | strings(),
    lambda inner: st.builds(array, st.lists(inner, max_size=4), WHITE) | objects(inner),
    max_leaves=8,
)

# Around the depth that the parser takes.
DEEP = st.builds(
    lambda depth, opening, closing: opening * depth + closing * depth,
    st.integers(450, 510) | st.integers(900, 1010),
    *(st.just(each) for each in ("[", "]")),
) | st.builds(
    lambda depth: '{"a":[' * depth + "]}" * depth, st.integers(225, 255) | st.integers(450, 510)
)

# What is put into texts: for JSON, for paths and queries, for settings.
PIECES: list[bytes] = [
    *(bytes([byte]) for byte in b' "\\{}[],:0-+.*/~?#%&=;@\n\r\t\0\x0b\x7f\xff'),
    *(
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"{}",
        b"[]",
        b'""',
        b",,",
        b"01",
        b"1.",
        b"1e999",
        b"9" * 400,
    ),
    *(b"\\u0000", b"\\ud800", b"\\udc00", b"\\u2028", b"//", b"/**/", b"'"),
    *(
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"\xf4\x90\x80\x80",
        b"\xf0\x9f\x98\x80",
    ),
    *(
        b'"data":{},',
        b'"id":null,',
        b'"type":"info",',
        b'"target":{},',
        b'"messages":[],',
        b'{"a":1,"a":2}',
    ),
    *(b"[" * 5000, b'{"":' * 5000, b"[" * 40 + b"]" * 40),
    *(
        b"%00",
        b"%zz",
        b"%ff",
        b"%2c",
        b"%2F",
        b"%0a",
        b"%C2%85",
        b"%E3%80%80",
        b"~end",
        b"a" * 210,
        b"broadcast",
    ),
    *(b"_id", b"false", b"earliest", b"latest", b"none", b"progress"),
]


@st.composite
def changed(draw: st.DrawFn, texts: st.SearchStrategy[bytes]) -> bytes:
    """A text with a few of its bytes changed, taken away, doubled, or with something put in
    between.
    """
    body = bytearray(draw(texts))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(body)))
        end = min(len(body), place + draw(st.integers(0, 12)))
        match draw(st.integers(0, 3)):
            case 0:
                body[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                del body[place:end]
            case 2:
                body[place:place] = body[place:end]
            case _:
                body[place:end] = draw(st.sampled_from(PIECES))
    return bytes(body)


def and_changed(texts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Texts as they are, and changed."""
    return texts | changed(texts)
