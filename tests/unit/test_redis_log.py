"""How entries are written in Redis, and how a reader notices that the log has lost its end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgpush.adapters.redis_link import RedisTarget
from msgpush.adapters.redis_log import NO_TAG, ORIGIN, Chain, Decoder, Mark, id_of, new_tag, payload
from msgpush.domain.position import Position
from tests.support.fakes import make


def mark(ms: int, tag: bytes = b"aaaaaaaa") -> Mark:
    return Mark(Position(ms, 0), tag)


def stored(before: Mark, at: Mark, *channels: str) -> list[object]:
    link = f"{id_of(before.position)}-{before.tag.decode()}".encode()
    return [id_of(at.position).encode(), [b"p", link, b"m", payload(at.tag, make("m1", *channels))]]


@given(st.lists(st.text("ab:é日", min_size=1, max_size=5), max_size=4, unique=True), st.integers(1, 604_800))
def test_what_is_written_is_read_again(channels: list[str], ttl: int) -> None:
    draft = make("m1", *channels, ttl=ttl)
    at = Mark(Position(1_800_000_000_000, 7), new_tag())
    item = [id_of(at.position).encode(), [b"p", b"1-2-cccccccc", b"m", payload(at.tag, draft)]]
    (entry,), marks, before = Decoder().log([item], mark(1))
    assert (entry.channels, entry.type, entry.service, entry.body) == (
        draft.channels,
        draft.type,
        draft.service,
        draft.body,
    )
    assert entry.expires == 1_800_000_000_000 + ttl * 1000
    assert marks == [at]
    assert before == Mark(Position(1, 2), b"cccccccc")


def test_entries_of_one_call_leave_one_mark() -> None:
    first, second, third = mark(1), mark(2), mark(3, b"bbbbbbbb")
    items = [stored(ORIGIN, first), stored(first, second), stored(second, third)]
    entries, marks, before = Decoder().log(items, ORIGIN)
    assert [entry.prev.ms for entry in entries] == [0, 1, 2]
    assert marks == [second, third]
    assert before == ORIGIN


def test_a_chain_that_reads_what_was_written_is_whole() -> None:
    chain = Chain(ORIGIN)
    chain.written(mark(2))
    assert chain.unread == [mark(2)]
    assert chain.read([mark(1, b"anothers"), mark(2)])
    assert chain.unread == []
    chain.written(mark(1, b"anothers"))  # its answer came after it was read
    assert chain.read([mark(3, b"cccccccc")])


@pytest.mark.parametrize("read", [mark(2, b"anothers"), mark(3)])
def test_a_chain_that_passes_what_was_written_without_seeing_it_is_broken(read: Mark) -> None:
    chain = Chain(ORIGIN)
    chain.read([mark(1, b"earlier0")])
    chain.written(mark(2))
    assert not chain.read([read])


def test_the_newest_that_is_known_is_what_was_read_or_written() -> None:
    chain = Chain(mark(5))
    chain.written(mark(9))
    assert chain.known == mark(9)
    chain.read([mark(7)])
    assert chain.known == mark(9)
    chain.read([mark(9), mark(12)])
    assert chain.known == mark(12)


def test_a_mark_without_a_tag_names_whatever_stands_there() -> None:
    assert mark(1).names(mark(1, NO_TAG))
    assert mark(1, NO_TAG).names(mark(1))
    assert not mark(1).names(mark(1, b"bbbbbbbb"))
    assert not mark(1, NO_TAG).names(mark(2))


def test_a_url_says_everything_that_connections_need() -> None:
    target = RedisTarget.from_url("rediss://me:s%40cret@r.example:7000/3?ssl_ca_certs=/ca.pem")
    assert target.hosts == (("r.example", 7000),)
    options = {"ssl": True, "ssl_ca_certs": "/ca.pem", "username": "me", "password": "s@cret", "db": 3}
    assert target.options == options
    assert "s@cret" not in str(target)


def test_sentinels_have_logins_of_their_own() -> None:
    url = "redis+sentinel://:pw@a,b:1/main/2?ssl=true&sentinel_username=s&sentinel_password=sp"
    target = RedisTarget.from_url(url)
    assert (target.kind, target.master, target.hosts) == ("sentinel", "main", (("a", 26379), ("b", 1)))
    assert target.options == {"ssl": True, "password": "pw", "db": 2}
    assert target.sentinel_options == {"ssl": True, "username": "s", "password": "sp"}


@pytest.mark.parametrize(
    "url", ["redis://a?timeout=1", "redis+sentinel://a/m?ssl=maybe", "redis+cluster://a/0", "redis://a,b", "x://a"]
)
def test_a_url_that_asks_for_what_there_is_not_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        RedisTarget.from_url(url)


def test_what_was_trimmed_before_it_was_read_is_no_break() -> None:
    chain = Chain(mark(1, b"earlier0"))
    chain.written(mark(2))
    chain.written(mark(4))
    chain.skip(mark(3, b"another0"))
    assert chain.unread == [mark(4)]
    assert chain.read([mark(4)])
    chain.written(mark(3))  # its answer came late
    assert chain.read([mark(5)])


def test_a_break_takes_nothing_of_what_was_read() -> None:
    chain = Chain(mark(1, b"earlier0"))
    chain.written(mark(2))
    assert not chain.read([mark(3, b"anothers")])
    assert chain.head == mark(1, b"earlier0")
    assert chain.unread == [mark(2)]


def test_what_was_read_before_its_answer_came_is_not_waited_for() -> None:
    chain = Chain(mark(1, b"earlier0"))
    chain.read([mark(2)])
    chain.written(mark(2))
    assert chain.unread == []


def test_tags_differ_and_have_no_dash() -> None:
    tags = {new_tag() for _ in range(1000)}
    assert len(tags) == 1000
    assert not any(b"-" in tag or b" " in tag for tag in tags)


def test_the_first_entry_of_all_links_to_no_call() -> None:
    (entry,), _, before = Decoder().log([stored(ORIGIN, mark(5), "a")], mark(3))
    assert (before, entry.prev) == (ORIGIN, ORIGIN.position)
