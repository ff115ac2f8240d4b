"""How entries are written in Redis, and how a reader notices that the log has lost its end."""

import contextlib
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgpush.adapters.redis.chain import Chain
from msgpush.adapters.redis.log import (
    NO_TAG,
    ORIGIN,
    Decoder,
    EntryRef,
    header_line,
    id_of,
    new_tag,
)
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.position import Position
from msgpush.entrypoints.settings import Settings, SettingsError
from tests.support.fakes import make


def ref(ms: int, tag: bytes = b"aaaaaaaa") -> EntryRef:
    return EntryRef(Position(ms, 0), tag)


def stored(before: EntryRef, at: EntryRef, *channels: str) -> list[object]:
    draft = make("m1", *channels)
    link = f"{id_of(before.position)}-{before.tag.decode()}".encode()
    return [
        id_of(at.position).encode(),
        [b"p", link, b"m", header_line(at.tag, draft) + draft.body],
    ]


@given(
    st.lists(st.text("ab:é日", min_size=1, max_size=5), max_size=4, unique=True),
    st.integers(1, 604_800),
)
def test_what_is_written_is_read_again(channels: list[str], ttl: int) -> None:
    draft = make("m1", *channels, ttl=ttl)
    at = EntryRef(Position(1_800_000_000_000, 7), new_tag())
    item = [
        id_of(at.position).encode(),
        [b"p", b"1-2-cccccccc", b"m", header_line(at.tag, draft) + draft.body],
    ]
    (entry,), refs, before = Decoder().log([item], ref(1))
    assert (entry.channels, entry.type, entry.service, entry.body) == (
        draft.channels,
        draft.type,
        draft.service,
        draft.body,
    )
    assert entry.expires == 1_800_000_000_000 + ttl * 1000
    assert refs == [at]
    assert before == EntryRef(Position(1, 2), b"cccccccc")


def test_entries_of_one_call_leave_one_mark() -> None:
    first, second, third = ref(1), ref(2), ref(3, b"bbbbbbbb")
    items = [stored(ORIGIN, first), stored(first, second), stored(second, third)]
    entries, refs, before = Decoder().log(items, ORIGIN)
    assert [entry.prev.ms for entry in entries] == [0, 1, 2]
    assert refs == [second, third]
    assert before == ORIGIN


def test_a_chain_that_reads_what_was_written_is_whole() -> None:
    chain = Chain(ORIGIN)
    chain.written(ref(2))
    assert chain.unread == [ref(2)]
    assert chain.read([ref(1, b"anothers"), ref(2)])
    assert chain.unread == []
    chain.written(ref(1, b"anothers"))  # its answer came after it was read
    assert chain.read([ref(3, b"cccccccc")])


@pytest.mark.parametrize("read", [ref(2, b"anothers"), ref(3)])
def test_a_chain_that_passes_what_was_written_without_seeing_it_is_broken(read: EntryRef) -> None:
    chain = Chain(ORIGIN)
    chain.read([ref(1, b"earlier0")])
    chain.written(ref(2))
    assert not chain.read([read])


def test_the_newest_that_is_known_is_what_was_read_or_written() -> None:
    chain = Chain(ref(5))
    chain.written(ref(9))
    assert chain.known == ref(9)
    chain.read([ref(7)])
    assert chain.known == ref(9)
    chain.read([ref(9), ref(12)])
    assert chain.known == ref(12)


def test_a_mark_without_a_tag_names_whatever_stands_there() -> None:
    assert ref(1).names(ref(1, NO_TAG))
    assert ref(1, NO_TAG).names(ref(1))
    assert not ref(1).names(ref(1, b"bbbbbbbb"))
    assert not ref(1, NO_TAG).names(ref(2))


def test_a_url_says_everything_that_connections_need() -> None:
    target = RedisTarget.from_url("rediss://me:s%40cret@r.example:7000/3?ssl_ca_certs=/ca.pem")
    assert target.hosts == (("r.example", 7000),)
    options = {
        "ssl": True,
        "ssl_ca_certs": "/ca.pem",
        "username": "me",
        "password": "s@cret",
        "db": 3,
    }
    assert target.options == options
    assert "s@cret" not in str(target)


def test_sentinels_have_logins_of_their_own() -> None:
    url = "redis+sentinel://:pw@a,b:1/main/2?ssl=true&sentinel_username=s&sentinel_password=sp"
    target = RedisTarget.from_url(url)
    assert (target.kind, target.master, target.hosts) == (
        "sentinel",
        "main",
        (("a", 26379), ("b", 1)),
    )
    assert target.options == {"ssl": True, "password": "pw", "db": 2}
    assert target.sentinel_options == {"ssl": True, "username": "s", "password": "sp"}


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("redis://r", [("r", 6379)]),
        ("REDIS://R.Example:", [("r.example", 6379)]),
        ("redis://[::1]", [("::1", 6379)]),
        ("redis://u:p@[FD00::1]:1/3", [("fd00::1", 1)]),
        ("redis+sentinel://a,b:2,[::1]:3/m", [("a", 26379), ("b", 2), ("::1", 3)]),
        ("redis+cluster://a,b:65535", [("a", 6379), ("b", 65535)]),
        ("redis://my_redis.svc.cluster.local:6379/0\n", [("my_redis.svc.cluster.local", 6379)]),
    ],
)
def test_a_url_names_hosts_with_and_without_ports(url: str, hosts: list[tuple[str, int]]) -> None:
    assert list(RedisTarget.from_url(url).hosts) == hosts


@pytest.mark.parametrize(
    "raw", ["p/w", "p?w", "p#w", "p@w", "p:w", "p[w", "p w", "p%w", "p&w=1", "p,w", "\u00e4"]
)
def test_a_password_may_have_any_character_that_is_percent_encoded(raw: str) -> None:
    target = RedisTarget.from_url(f"redis://:{quote(raw, safe='')}@r/3")
    assert (target.options, target.hosts) == ({"password": raw, "db": 3}, (("r", 6379),))
    # Some are plain enough without.
    if raw[1:2] not in ("/", "?", "#"):
        assert RedisTarget.from_url(f"redis://:{raw}@r/3") == target


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("rediss://r", {"ssl": True, "db": 0}),
        ("redis://r?ssl=true", {"ssl": True, "db": 0}),
        ("rediss://r?ssl_cert_reqs=none", {"ssl": True, "ssl_cert_reqs": "none", "db": 0}),
        ("rediss://r?ssl_cert_reqs=optional", {"ssl": True, "ssl_cert_reqs": "optional", "db": 0}),
        (
            "rediss://r?ssl_cert_reqs=required&ssl_ca_certs=/a%20b/ca.pem&ssl_check_hostname=false",
            {
                "ssl": True,
                "ssl_cert_reqs": "required",
                "ssl_ca_certs": "/a b/ca.pem",
                "ssl_check_hostname": False,
                "db": 0,
            },
        ),
        ("redis+cluster://r?ssl=true&ssl_ca_certs=/ca", {"ssl": True, "ssl_ca_certs": "/ca"}),
        (
            "redis+sentinel://r/m?ssl=true&ssl_cert_reqs=none",
            {"ssl": True, "ssl_cert_reqs": "none", "db": 0},
        ),
        (
            "rediss://r?ssl_certfile=/c&ssl_keyfile=/k",
            {"ssl": True, "ssl_certfile": "/c", "ssl_keyfile": "/k", "db": 0},
        ),
    ],
)
def test_a_url_says_how_tls_is_done(url: str, options: dict[str, object]) -> None:
    assert RedisTarget.from_url(url).options == options


WRONG = [
    ("redis://r:x", 'the port of the host "r" must be a number from 1 to 65535'),
    ("redis://u:p@r:65536", 'the port of the host "r" must be a number from 1 to 65535'),
    ("redis://r:0", 'the port of the host "r"'),
    ("redis://r:-1", 'the port of the host "r"'),
    ("redis+cluster://a:1,b:x", 'the port of the host "b"'),
    ("redis://u:p@r:6379x/0", 'the port of the host "r"'),
    ("redis://user:pw", "a login ends with an @"),
    ("redis://", "a host is missing: it must be host or host:port"),
    ("redis:///0", "a host is missing"),
    ("redis://:6379", "a host is missing"),
    ("redis://:pw@", "a host is missing"),
    ("redis+sentinel://a,,b/m", "a host is missing between its commas"),
    ("redis+cluster://a,", "a host is missing between its commas"),
    ("redis://a b", "a host is no name"),
    ("redis://\u00e4", "a host is no name"),
    ("redis://::1", "an IPv6 address has brackets around it, as in [::1]:6379"),
    ("redis://::1:6379", "an IPv6 address has brackets around it"),
    ("redis://[::1", "an IPv6 address has brackets around it"),
    ("redis://[::1]x", "an IPv6 address has brackets around it"),
    ("redis://[r]", "between the brackets of a host is no IPv6 address"),
    ("redis://[10.0.0.1]", "between the brackets of a host is no IPv6 address"),
    ("redis://a,b", "it names several hosts, and they take redis+sentinel:// or redis+cluster://"),
    ("redis://r/x", "the database in its path must be a number from 0 to 65535"),
    ("redis://r/-1", "the database in its path must be a number"),
    ("redis://r/65536", "the database in its path must be a number from 0 to 65535"),
    ("redis://r/\u0661", "the database in its path must be a number"),
    ("redis://r/0/1", "its path has more than the database's number in it"),
    ("redis+sentinel://a/m/x", "the database in its path must be a number"),
    ("redis+sentinel://a", "its path must begin with the master's name"),
    ("redis+cluster://a/0", "a Cluster has no databases"),
    ("redis://:p/w@r", "percent-encode them, / as %2F, ? as %3F, # as %23 and @ as %40"),
    ("redis://:p?w@r", "percent-encode them"),
    ("redis://:p#w@r", "percent-encode them"),
    ("redis://u:1/w@r", "percent-encode them"),
    ("redis://u:1?w=1@r", "percent-encode them"),
    ("redis://r/0#x", "it has a fragment (#)"),
    ("redis://user@r", "it has a user without a password before the @"),
    ("redis://user:@r", "it has a user without a password before the @"),
    ("x://r", "it must begin with redis://, rediss://, redis+sentinel:// or redis+cluster://"),
    ("r:6379", "it must begin with redis://"),
    ("redis:r", "it must begin with redis://"),
    ("rediss+cluster://r", "TLS is redis+cluster://...?ssl=true"),
    ("rediss+sentinel://r/m", "TLS is redis+sentinel://...?ssl=true"),
    ("rediss://r?ssl_ca_cert=/x", 'it has no parameter "ssl_ca_cert": did you mean ssl_ca_certs?'),
    ("rediss://r?SSL_CERT_REQS=none", "did you mean ssl_cert_reqs?"),
    ("rediss://r?timeout=1", 'it has no parameter "timeout": there are ssl, ssl_ca_certs'),
    ("redis://r?db=1", "the database is the end of the path, as in redis://host/2"),
    ("redis://r?password=x", "it stands before the host, as in redis://:password@host"),
    (
        "redis://r?sentinel_password=x",
        "its parameter sentinel_password is for redis+sentinel:// alone",
    ),
    (
        "rediss://r?ssl_cert_reqs=CERT_NONE",
        "its parameter ssl_cert_reqs must be none, optional or required",
    ),
    ("rediss://r?ssl_cert_reqs=", "its parameter ssl_cert_reqs must be none, optional or required"),
    ("rediss://r?ssl_ca_certs=", "its parameter ssl_ca_certs must be some text"),
    ("redis+sentinel://r/m?ssl=maybe", "its parameter ssl must be true or false"),
    ("rediss://r?ssl=true&ssl=true", "its parameter ssl is there twice"),
    ("rediss://r?ssl=false", "its parameter ssl is false, and rediss:// is with TLS"),
    *(
        (
            f"redis://r?{name}",
            f"its parameter {name.partition('=')[0]} is for TLS, which needs rediss://",
        )
        for name in (
            "ssl_ca_certs=/x",
            "ssl_cert_reqs=none",
            "ssl_check_hostname=false",
            "ssl_certfile=/x",
        )
    ),
    (
        "redis://r?ssl=false&ssl_ca_certs=/x",
        "its parameter ssl_ca_certs is for TLS, which needs rediss://",
    ),
    (
        "redis+cluster://r?ssl_ca_certs=/x",
        "its parameter ssl_ca_certs is for TLS, which needs ssl=true as well",
    ),
    (
        "redis+sentinel://r/m?ssl_cert_reqs=none",
        "its parameter ssl_cert_reqs is for TLS, which needs ssl=true",
    ),
    ("rediss://r?ssl_keyfile=/x", "its parameter ssl_keyfile needs ssl_certfile"),
    (
        "rediss://r?ssl_cert_reqs=none&ssl_check_hostname=true",
        "needs a certificate that is checked",
    ),
]


@pytest.mark.parametrize(("url", "why"), WRONG)
def test_a_url_that_is_wrong_is_refused_with_the_part_and_what_is_allowed(
    url: str, why: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        RedisTarget.from_url(url)
    with pytest.raises(SettingsError, match=re.escape(why)):
        Settings.from_environ({"REDIS_URL": url})


@given(
    st.text(alphabet="redis:/@?#[]=&%, 1a\n", max_size=40),
    st.sampled_from(["redis://", "rediss://", ""]),
)
def test_no_url_does_more_than_to_be_refused(text: str, scheme: str) -> None:
    with contextlib.suppress(ValueError):
        RedisTarget.from_url(scheme + text)


@pytest.mark.parametrize(
    "url",
    [
        "redis://a?timeout=1",
        "redis+sentinel://a/m?ssl=maybe",
        "redis+cluster://a/0",
        "redis://a,b",
        "x://a",
    ],
)
def test_a_url_that_asks_for_what_there_is_not_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        RedisTarget.from_url(url)


def test_what_was_trimmed_before_it_was_read_is_no_break() -> None:
    chain = Chain(ref(1, b"earlier0"))
    chain.written(ref(2))
    chain.written(ref(4))
    chain.skip(ref(3, b"another0"))
    assert chain.unread == [ref(4)]
    assert chain.read([ref(4)])
    chain.written(ref(3))  # its answer came late
    assert chain.read([ref(5)])


def test_a_break_takes_nothing_of_what_was_read() -> None:
    chain = Chain(ref(1, b"earlier0"))
    chain.written(ref(2))
    assert not chain.read([ref(3, b"anothers")])
    assert chain.head == ref(1, b"earlier0")
    assert chain.unread == [ref(2)]


def test_what_was_read_before_its_answer_came_is_not_waited_for() -> None:
    chain = Chain(ref(1, b"earlier0"))
    chain.read([ref(2)])
    chain.written(ref(2))
    assert chain.unread == []


def test_tags_differ_and_have_no_dash() -> None:
    tags = {new_tag() for _ in range(1000)}
    assert len(tags) == 1000
    assert not any(b"-" in tag or b" " in tag for tag in tags)


def test_the_first_entry_of_all_links_to_no_call() -> None:
    (entry,), _, before = Decoder().log([stored(ORIGIN, ref(5), "a")], ref(3))
    assert (before, entry.prev) == (ORIGIN, ORIGIN.position)
