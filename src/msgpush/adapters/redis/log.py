"""The log's entries and its head as Redis keeps them.

An entry of a stream has two fields. `m` is made by the publishing instance: a header line and the
message's body. `p` is made by the script: in the log, which entry stands before it (an `EntryRef`);
in a history, its channel's position before it. An entry is named by its position and a tag, eight
random characters of the call that wrote it. The tag tells two entries apart that two servers have
given the same position: one that a failover has lost, and one that came in its place.

A message that asks for more than being delivered says so in further words of the header: `p=` its
priority, where that isn't normal; `a=` the attempt and the id, and `u=` the user, where it asks for
an acknowledgement; `k=` what it is, where it is no message. What is only delivered again, or only
tells of an acknowledgement, is in no history.

A later release may say more: further fields, further words of the header, and kinds of entries that
are not known here. Instances are replaced one by one, so what isn't known is passed over, and has
its place in the chain all the same."""

import logging
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast, get_args

import msgspec
from msgspec import Struct

from msgpush.adapters.redis.link import HASH_TAG, Link
from msgpush.domain.history import Linked
from msgpush.domain.marks import BY_PRIORITY, NORMAL, PRIORITIES, Kind, Mark, key_of
from msgpush.domain.message import CONTROL, PROBE, TYPES, Draft, Entry
from msgpush.domain.position import ZERO, Cursor, Position

TAG = 8
NO_TAG: Final = b"--------"
HEADERS = 8_192

HEAD: Final = f"{HASH_TAG}:head"
LOG: Final = f"{HASH_TAG}:log"

EPOCH = "epoch"
KINDS = frozenset((*TYPES, CONTROL, PROBE, EPOCH))
KINDS_OF_MARKS = get_args(Kind)

log = logging.getLogger("msgpush.redis")


class EntryRef(NamedTuple):
    """An entry's name: where it stands, and the call that wrote it."""

    position: Position
    tag: bytes

    def names(self, other: "EntryRef") -> bool:
        """True where both name the same entry, as far as they are known."""
        return self.position == other.position and (
            self.tag == other.tag or NO_TAG in (self.tag, other.tag)
        )


ORIGIN: Final = EntryRef(ZERO, NO_TAG)


def new_tag() -> bytes:
    """A tag that no other call has: 48 random bits, in characters among which there is no dash."""
    return b64encode(os.urandom(6))


def header_line(tag: bytes, draft: Draft) -> bytes:
    """The line before a message's body where it is stored."""
    words = f" {draft.ttl} {draft.type} {draft.service} {','.join(draft.channels)}"
    if draft.mark is not None:
        words += _words(draft.mark, draft.id)
    return tag + f"{words}\n".encode()


def _words(mark: Mark, id: str) -> str:
    """The words of a header that a mark adds."""
    words = "" if mark.priority == NORMAL else f" p={PRIORITIES[mark.priority]}"
    if mark.key:
        words += f" a={mark.attempt}/{id}"
    if mark.user:
        words += f" u={mark.user}"
    return words if mark.kind == "message" else f"{words} k={mark.kind}"


def _mark(words: Sequence[str], service: str) -> Mark | None:
    """The mark that a header's further words make; those of a later release are passed over."""
    said = dict(word.split("=", 1) for word in words if word[1:2] == "=")
    priority = said.get("p", "")
    rank = PRIORITIES.index(priority) if priority in PRIORITIES else NORMAL
    if "u" not in said:
        return BY_PRIORITY[rank]
    kind = said.get("k", "message")
    attempt, _, id = said.get("a", "0/").partition("/")
    key = key_of(service, id) if id else ""
    if kind not in KINDS_OF_MARKS:
        return BY_PRIORITY[rank]
    return Mark(rank, cast(Kind, kind), said["u"], key, int(attempt))


def keys_of(channel: str) -> tuple[str, str]:
    """A channel's history, and its newest position."""
    return f"{HASH_TAG}:history:{channel}", f"{HASH_TAG}:last:{channel}"


def id_of(position: Position) -> str:
    """A position as Redis writes it."""
    return f"{position.ms}-{position.seq}"


def position_of(id: bytes) -> Position:
    """A position that Redis has written."""
    ms, _, seq = id.partition(b"-")
    return Position(int(ms), int(seq))


class _Header(NamedTuple):
    ttl: int
    type: str
    service: str
    channels: tuple[str, ...]
    mark: Mark | None = None
    known: bool = True

    @property
    def kept(self) -> tuple[str, ...]:
        """The channels in whose histories its message is."""
        return self.channels if self.mark is None or self.mark.kind == "message" else ()


UNREADABLE: Final = _Header(0, "<unreadable>", "", (), known=False)


class StoredMessage(NamedTuple):
    """An entry of the log, as it is stored: `ttl` in seconds, `id` empty where there is none."""

    ref: EntryRef
    ttl: int
    service: str
    channels: tuple[str, ...]
    id: str
    mark: Mark | None


class Decoder:
    """Reads entries. Publishers say the same few things again and again: each header is read once.

    Attributes:
        unknown: how many entries of the log were passed over, since their kind is not known here.
    """

    def __init__(self) -> None:
        self.unknown = 0
        self._headers: dict[bytes, _Header] = {}
        self._told: set[str] = set()

    def log(
        self, items: Iterable[Any], head: EntryRef
    ) -> tuple[list[Entry], list[EntryRef], EntryRef]:
        """Entries of the log, as XREAD and XRANGE give them.

        What somebody else has written there, which names none before it, is left out.

        Args:
            head: what the reader has read last.

        Returns:
            the entries, the last of each call in them, and what stands before the first.
        """
        entries: list[Entry] = []
        refs: list[EntryRef] = []
        prev, tag = position, _ = head
        first: EntryRef | None = None
        expected = b"%d-%d-%b" % (prev.ms, prev.seq, tag)
        # A call's entries stand side by side and are much alike: that is looked at once.
        line = suffix = moment = b""
        header, life, ms = UNREADABLE, 0, 0
        for id, fields in items:
            if len(fields) > 3 and fields[0] == b"p" and fields[2] == b"m":
                before, stored = fields[1], fields[3]
            else:
                before, stored = fields_of(fields)
            if before != expected:
                # Only the first one, unless someone else writes to the log.
                named = ref_of(before)
                if named is None:
                    self._pass_over("<no entry of msgpush>")
                    continue
                prev = named.position
                first = first or named
            same, _, body = stored.partition(b"\n")
            if same != line:
                if entries and stored[:TAG] != tag:
                    refs.append(EntryRef(position, tag))
                line, tag, header = same, stored[:TAG], self._header(same[TAG:])
                suffix, life = b"-" + tag, header.ttl * 1000
            digits, _, number = id.partition(b"-")
            if digits != moment:
                moment, ms = digits, int(digits)
            position = Position(ms, int(number))
            if header.known:
                _, type, service, channels, mark, _ = header
                entries.append(
                    Entry(position, prev, channels, type, service, ms + life, body, mark)
                )
            else:
                # It concerns nobody, and what follows names it.
                self._pass_over(header.type)
                entries.append(Entry(position, prev, (), header.type, "", 0, b""))
            prev, expected = position, id + suffix
        if entries:
            refs.append(EntryRef(position, tag))
        return entries, refs, first or head

    def history(self, items: Iterable[Any]) -> list[Linked]:
        """Entries of a channel's history; those of an unknown kind have expired."""
        linked = []
        for id, fields in items:
            before, stored = fields_of(fields)
            if not _is_position(before):
                continue
            prev, position = position_of(before), position_of(id)
            header, body = self._read(stored)
            expires = position.ms + header.ttl * 1000 if header.known else 0
            linked.append(
                Linked(
                    prev,
                    Entry(
                        position,
                        prev,
                        header.channels,
                        header.type,
                        header.service,
                        expires,
                        body,
                        header.mark,
                    ),
                )
            )
        return linked

    def stored(self, items: Iterable[Any]) -> list[StoredMessage]:
        """The messages of the log's entries, as far as they are ours."""
        found = []
        for id, fields in items:
            before, stored = fields_of(fields)
            if ref_of(before) is not None:
                header, body = self._read(stored)
                ref = EntryRef(position_of(id), stored[:TAG])
                found.append(
                    StoredMessage(
                        ref, header.ttl, header.service, header.kept, _id(body), header.mark
                    )
                )
        return found

    def _read(self, stored: bytes) -> tuple[_Header, bytes]:
        line, _, body = stored.partition(b"\n")
        return self._header(line[TAG:]), body

    def _header(self, text: bytes) -> _Header:
        header = self._headers.get(text)
        if header is None:
            if len(self._headers) >= HEADERS:
                self._headers.clear()
            header = _header(text)
            # One that asks for an acknowledgement is its message's alone.
            if header.mark is None or not header.mark.user:
                self._headers[text] = header
        return header

    def _pass_over(self, kind: str) -> None:
        self.unknown += 1
        if kind not in self._told and len(self._told) < 16:
            self._told.add(kind)
            log.warning(
                "the log has entries of a kind that is not known here, which are passed over:"
                " %.80s",
                kind,
            )


def fields_of(fields: Sequence[bytes]) -> tuple[bytes, bytes]:
    """An entry's `p` and `m`, wherever they stand; both empty where it isn't one of ours."""
    if len(fields) > 3 and fields[0] == b"p" and fields[2] == b"m":
        return fields[1], fields[3]
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return (named[b"p"], named[b"m"]) if b"p" in named and b"m" in named else (b"", b"")


def _header(text: bytes) -> _Header:
    try:
        _, ttl, type, service, channels, *words = text.decode().split(" ")
        names = tuple(channels.split(",")) if channels else ()
        mark = _mark(words, service) if words else None
        return _Header(int(ttl), type, service, names, mark, type in KINDS)
    except ValueError:
        return UNREADABLE


class _Identified(Struct):
    id: str = ""


_decode_id = msgspec.json.Decoder(_Identified).decode
_decode_plan = msgspec.msgpack.Decoder().decode


def _id(body: bytes) -> str:
    try:
        return _decode_id(body).id
    except msgspec.MsgspecError:
        return ""


_OPEN = re.compile(rb"([0-9]+-[0-9]+) (\S{8}) ")
LATEST_OF_ALL: Final = Position(2**62, 0)


class Unfinished(NamedTuple):
    """A call of `append.lua` as the log's head tells it until the call is done.

    Attributes:
        name: what tells it from others.
        first: where its first message stands.
        accepted: digest and timestamp of its messages whose publisher chose the id, by
            `service:id`.
        asks: what its messages ask of the outbox, by key and attempt: see `outbox.lua`.
        pushes: what is to be pushed of them, by `service:id`.
    """

    name: str
    first: Position
    tag: bytes
    accepted: dict[str, tuple[str, str]]
    asks: dict[tuple[str, int], list[Any]]
    pushes: Mapping[str, list[Any]] = {}

    @classmethod
    def read(cls, text: bytes | None) -> "Unfinished | None":
        """The call that the head tells of; None where it tells of none."""
        if not text:
            return None
        match = _OPEN.match(text)
        if match is None:
            # Of a later release, which may complete it; what is in the log after the head is
            # completed here.
            name = bytes(character for character in text[:40] if 32 <= character < 127).decode()
            return cls(
                name if text.startswith(name.encode()) else "", LATEST_OF_ALL, NO_TAG, {}, {}
            )
        first, tag, plan = match[1], match[2], text[match.end() :]
        accepted, asks, pushes = {}, {}, {}
        try:
            planned = _decode_plan(plan) if plan else [[]]
            if len(planned) > 2 and isinstance(planned[-3], list):  # not of a release before
                pushes = {name: push for _, name, push in planned[-3]}
            for _, _, digest, timestamp, _, name, *ask in planned[-1]:
                accepted[name] = (digest, timestamp)
                if ask:
                    asks[ask[0][4], ask[0][7]] = ask[0]
        except (msgspec.MsgspecError, ValueError, TypeError, LookupError):
            # A later release plans otherwise: its messages are completed, their ids forgotten.
            pass
        return cls(
            f"{first.decode()} {tag.decode()}", position_of(first), tag, accepted, asks, pushes
        )


class Head(NamedTuple):
    """The log's head: its name, its end, and what is unfinished there.

    Attributes:
        number: of the epoch, counted from the first.
        cut: where the epoch before it ended.
        unfinished: a call that was stopped halfway: see `append.lua`.
        length: entries of the log.
    """

    epoch: str
    number: int
    cut: Cursor | None
    end: EntryRef
    unfinished: Unfinished | None
    length: int

    @classmethod
    async def read(cls, link: Link) -> "Head":
        """Ask for it. Raises BusUnavailable."""
        fields, length = await link.calls(
            [
                ("HMGET", HEAD, "epoch", "number", "previous", "cut", "ms", "seq", "tag", "open"),
                ("XLEN", LOG),
            ]
        )
        epoch, number, previous, cut, ms, seq, tag, open = fields
        end = EntryRef(Position(int(ms), int(seq)), tag) if ms is not None else ORIGIN
        before = Cursor(previous.decode(), position_of(cut)) if previous else None
        unfinished = Unfinished.read(open)
        return cls((epoch or b"").decode(), int(number or 0), before, end, unfinished, length)


def ref_of(text: bytes) -> EntryRef | None:
    """The entry that a text names; None where it names none."""
    position, dash, tag = text[: -TAG - 1], text[-TAG - 1 : -TAG], text[-TAG:]
    return EntryRef(position_of(position), tag) if dash == b"-" and _is_position(position) else None


def _is_position(text: bytes) -> bool:
    ms, _, seq = text.partition(b"-")
    return ms.isdigit() and seq.isdigit()
