"""A message: what a publisher sends, checked, and what a subscriber gets.

The body is decoded into `Message` once, at the edge, and becomes a `Draft` (routed, complete,
encoded) and, when the bus has given it a position, an `Entry`, which never changes. Nothing after
that needs JSON."""

import hashlib
import re
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from msgpush.domain.channel import route
from msgpush.domain.errors import Fault, Invalid, Malformed, TooLarge
from msgpush.domain.json_text import (
    BOM,
    DEEP,
    check_utf8,
    json_words,
    pointer_of,
    unreadable,
    without_bom,
)
from msgpush.domain.marks import (
    BY_PRIORITY,
    MAX_COLLAPSE,
    MAX_DEADLINE,
    MAX_DELIVERIES,
    MAX_TEXT,
    MAX_TITLE,
    MAX_URL,
    NORMAL,
    PRIORITIES,
    WHENS,
    Ack,
    AskedPush,
    Mark,
    Priority,
    Push,
    Terms,
    ToPush,
    first_look,
    is_page,
    key_of,
)
from msgpush.domain.position import Position
from msgpush.domain.quoting import short_json, short_repr

Type = Literal["progress", "status", "error", "success", "warning", "info", "custom"]

TYPES: tuple[str, ...] = get_args(Type)
CONTROL, PROBE = (
    "control",
    "probe",
)  # entries that are no messages: commands to all instances, and signs of life
MAX_TTL = 604_800
MAX_FANOUT_BYTES = 4 * 1024 * 1024
SPARE_DEPTH = 50  # levels that a message is nested less deeply than the parser takes

ID_RULE = "1-128 of A-Za-z0-9_.:-"
ID_PATTERN = "[A-Za-z0-9_.:-]{1,128}"
_ID = rf"\A{ID_PATTERN}\Z"
Id = Annotated[str, Meta(pattern=_ID)]
SERVICE_RULE = "1-64 of A-Za-z0-9_.-"
SERVICE_PATTERN = "[A-Za-z0-9_.-]{1,64}"
# Checked by `is_service`: the same few services publish again and again, and a cache is faster than
# a pattern.
Service = Annotated[str, Meta(extra_json_schema={"pattern": f"^{SERVICE_PATTERN}$"})]

# W3C Trace Context, section 3.2: what is all zeros, and the version ff, mean nothing.
TRACEPARENT_PATTERN = "(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"

# What is allowed where msgspec would show a pattern.
_RULES = {
    "/id": ID_RULE,
    "/service": SERVICE_RULE,
    "/type": "one of " + ", ".join(TYPES),
    "/metadata/priority": "one of " + ", ".join(PRIORITIES),
    "/metadata/ttl": f"whole seconds, 1 to {MAX_TTL}",
    "/metadata/ack": "true, or an object with deadline, deliveries, receipt or collapse",
    "/metadata/ack/deadline": f"whole seconds, 1 to {MAX_DEADLINE}",
    "/metadata/ack/deliveries": f"1 to {MAX_DELIVERIES}",
    "/metadata/ack/receipt": "true or false",
    "/metadata/ack/collapse": f"text of 1 to {MAX_COLLAPSE} characters",
    "/metadata/traceparent": "a W3C traceparent such as"
    " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "/metadata/push": "true, or an object with when, title, body, url, icon or collapse",
    "/metadata/push/when": "one of " + ", ".join(WHENS),
    "/metadata/push/title": f"text of 1 to {MAX_TITLE} characters",
    "/metadata/push/body": f"text of at most {MAX_TEXT} characters",
    "/metadata/push/url": f"a path, or an https URL, of at most {MAX_URL} characters",
    "/metadata/push/icon": f"a path, or an https URL, of at most {MAX_URL} characters",
    "/metadata/push/collapse": f"text of 1 to {MAX_COLLAPSE} characters",
    "/source": "text of at most 128 characters",
    "/data/progress": "a number from 0 to 100",
}


class Metadata(Struct, forbid_unknown_fields=True):
    """The treatment that a message asks for."""

    priority: Priority | None = None
    ttl: Annotated[int, Meta(ge=1, le=MAX_TTL)] | None = None
    retry_count: Any = 0
    ack: Ack | bool | UnsetType | None = UNSET
    push: AskedPush | bool | UnsetType | None = UNSET
    traceparent: Annotated[str, Meta(pattern=rf"\A{TRACEPARENT_PATTERN}\Z")] | UnsetType | None = (
        UNSET
    )


class Message(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One message, as published and as delivered. A field that is null counts as absent."""

    id: Id | None = None
    timestamp: str | None = None
    type: Type
    service: Service
    source: Annotated[str, Meta(max_length=128)] | None = None
    target: dict[str, Any] | None = None
    channels: list[str] | None = None
    data: Raw = msgspec.field(default_factory=lambda: Raw(b"{}"))
    metadata: Metadata | None = None


class Draft(Struct, frozen=True, eq=False, gc=False):
    """A message ready for the bus: checked, routed, complete and encoded.

    Attributes:
        digest: stands for the content where the publisher chose the id, so that the bus can tell a
            retry from a mistake.
        mark: what its entry will carry.
        terms: of the acknowledgement that it asks for.
        push: how it is to be pushed to its user's devices, if it is.
    """

    id: str
    timestamp: str
    channels: tuple[str, ...]
    type: str
    service: str
    ttl: int
    body: bytes
    digest: bytes | None
    mark: Mark | None = None
    terms: Terms | None = None
    push: ToPush | None = None

    @property
    def key(self) -> str:
        """What clients name it by."""
        return key_of(self.service, self.id)

    @property
    def priority(self) -> int:
        """Its priority's place among all of them."""
        return NORMAL if self.mark is None else self.mark.priority


class Entry(Struct, frozen=True, eq=False, gc=False):
    """A message in the log: `prev` is the log's position before it, `expires` its end in
    milliseconds since 1970.

    `body` is the whole message, on one line.
    """

    position: Position
    prev: Position
    channels: tuple[str, ...]
    type: str
    service: str
    expires: int
    body: bytes
    mark: Mark | None = None


class _Progress(Struct):
    progress: Annotated[float, Meta(ge=0, le=100)]


class _Data(Struct):
    data: Raw


# A number that no float can hold is one all the same, where nobody asks how much it is.
_decoder = msgspec.json.Decoder(Message, float_hook=float)
_decode, _decode_lines = _decoder.decode, _decoder.decode_lines
_decode_raw = msgspec.json.Decoder(Raw).decode
_decode_any = msgspec.json.Decoder().decode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_progress = msgspec.json.Decoder(_Progress).decode
_decode_data = msgspec.json.Decoder(_Data).decode
_encode = msgspec.json.Encoder().encode
_NO_METADATA = Metadata("normal")


def is_id(text: str) -> bool:
    """True if the text can be a message's id."""
    return re.match(_ID, text) is not None


def is_traceparent(text: str) -> bool:
    """True if the text says where a trace goes on (W3C Trace Context, section 3.2)."""
    return re.fullmatch(TRACEPARENT_PATTERN, text) is not None


@lru_cache(maxsize=1024)
def is_service(text: str) -> bool:
    """True if the text can be a service's name."""
    return re.fullmatch(SERVICE_PATTERN, text) is not None


def parse(body: bytes) -> Message:
    """The message in a JSON text (RFC 8259). It is checked but for what `draft` checks: target,
    channels, timestamp.

    Raises:
        Malformed: not UTF-8, not JSON, or nested deeper than the parser takes.
        Invalid: JSON, but no message; says where and why.
    """
    try:
        check_utf8(body)
        message = _decode(body)
        if _is_deep(body):
            # The parser takes fewer levels the more calls there are around it: what is accepted
            # here must be readable wherever it is delivered from.
            _decode_raw(b"[" * SPARE_DEPTH + body + b"]" * SPARE_DEPTH)
        _check(message)
    except msgspec.ValidationError as error:
        raise _invalid(body, error) from None
    except (msgspec.DecodeError, RecursionError) as error:
        # Looked for here, where it costs a good message nothing.
        if (text := without_bom(body)) != body and not text.startswith(BOM):
            return parse(text)
        raise unreadable(body, error) from None
    return message


def parse_all(bodies: Sequence[bytes]) -> list[Message] | None:
    """The messages in several JSON texts, read in one go; None: read each by itself, since at least
    one has a fault, or a form that is read otherwise.
    """
    try:
        deque(map(_decode_raw, bodies), 0)  # or an end and a start could be one more together
        if any(map(_is_deep, bodies)):
            return None
        lines = b"\n".join(bodies)
        check_utf8(lines)
        messages = _decode_lines(lines)
        several = lines.count(b"\n") >= len(bodies) or lines.find(b"\r") >= 0
        for message in messages:
            _check(message, several)
    except (Malformed, Invalid, msgspec.DecodeError, RecursionError):
        return None
    return messages


def draft(
    message: Message,
    now: int,
    new_id: str,
    default_ttl: int,
    *,
    broadcast: bool = False,
    ack_ttl: int | None = None,
    traceparent: str | None = None,
    push_delay: float | None = None,
) -> Draft:
    """Complete a message for the bus: channels, id, timestamp, metadata; then encode it, once for
    all its readers.

    Args:
        now: milliseconds since 1970, for a message without a timestamp.
        new_id: the id of a message that has none.
        default_ttl: seconds, for a message that names none.
        ack_ttl: the same, for one that asks for an acknowledgement.
        traceparent: where its trace goes on, for a message that doesn't say.
        push_delay: seconds after which a push is looked at; None: nothing is pushed here.

    Raises:
        Invalid: a target, a channel or the timestamp is wrong, nobody could acknowledge it, or it
            can't be pushed.
        Denied: it would be one of the service's own.
        TooLarge: its size times its channels is more than 4 MiB.
    """
    if broadcast and message.target:
        raise Invalid(Fault("/target", "a broadcast goes to all: it has no target"))
    channels = route(message.service, message.target, message.channels, broadcast=broadcast)
    given, mark, terms, ttl = message.metadata, None, None, default_ttl
    push: ToPush | None = None
    if given is None:
        metadata = Metadata("normal", ttl)
    else:
        mark, terms = _marked(message, given, message.id or new_id, broadcast)
        ttl = given.ttl or (default_ttl if terms is None else ack_ttl or default_ttl)
        metadata = Metadata(given.priority or "normal", ttl)
        if terms is not None:
            metadata.ack = Ack(*terms)
        if given.push is not UNSET:
            id = message.id or new_id
            push = _pushed(message, given.push, terms, id, broadcast=broadcast, delay=push_delay)
        traceparent = given.traceparent or traceparent
    if traceparent:
        metadata.traceparent = traceparent
    timestamp = format_ms(now) if message.timestamp is None else normal_timestamp(message.timestamp)
    body = _encode(
        Message(
            id=message.id or new_id,
            timestamp=timestamp,
            type=message.type,
            service=message.service,
            source=message.source,
            target=message.target,
            channels=message.channels,
            data=message.data,
            metadata=metadata,
        )
    )
    if len(body) * len(channels) > MAX_FANOUT_BYTES:
        raise TooLarge(f"the message's size times its {len(channels)} channels", MAX_FANOUT_BYTES)
    digest = None if message.id is None else _digest(message, channels)
    return Draft(
        message.id or new_id,
        timestamp,
        channels,
        message.type,
        message.service,
        ttl,
        body,
        digest,
        mark,
        terms,
        push,
    )


def _marked(
    message: Message, given: Metadata, id: str, broadcast: bool
) -> tuple[Mark | None, Terms | None]:
    """What a message asks for beyond being delivered.

    Raises:
        Invalid: it asks for an acknowledgement that nobody could give.
    """
    if given.ack is UNSET and given.priority in (None, "normal"):
        return None, None
    rank = PRIORITIES.index(given.priority or "normal")
    terms = Terms.of(None if given.ack is UNSET else given.ack)
    if terms is None:
        return BY_PRIORITY[rank], None
    user = (message.target or {}).get("user_id")
    if broadcast or user is None:
        raise Invalid(Fault("/metadata/ack", _NOBODY_ACKNOWLEDGES))
    for pointer, name in (("/service", message.service), ("/id", id), ("/target/user_id", user)):
        if name in (".", ".."):
            raise Invalid(Fault(pointer, _NO_PATH.format(short_repr(name))))
    return Mark(rank, "message", str(user), key_of(message.service, id), 1), terms


def _pushed(
    message: Message,
    asked: AskedPush | bool | None,
    terms: Terms | None,
    id: str,
    *,
    broadcast: bool,
    delay: float | None,
) -> ToPush | None:
    """How a message is to be pushed, if it is.

    Raises:
        Invalid: it can't be, and why.
    """
    push = Push.of(asked, acknowledged=terms is not None)
    if push is None:
        return None
    user = (message.target or {}).get("user_id")
    if broadcast or user is None:
        raise Invalid(Fault("/metadata/push", _NOBODYS_DEVICES))
    if delay is None:
        raise Invalid(Fault("/metadata/push", _NO_KIND))
    if terms is None and push.when != "always":
        raise Invalid(Fault("/metadata/push/when", _UNTRACKED.format(short_repr(push.when))))
    for name, url in (("url", push.url), ("icon", push.icon)):
        if url is not None and not is_page(url):
            raise Invalid(_wrong(f"/metadata/push/{name}", short_repr(url)))
    for pointer, name in (("/service", message.service), ("/id", id), ("/target/user_id", user)):
        if name in (".", ".."):
            raise Invalid(Fault(pointer, _NO_PATH.format(short_repr(name))))
    return ToPush(str(user), push, first_look(push, delay))


_NOBODYS_DEVICES = "a push goes to a user's devices: it needs target.user_id, and is no broadcast"
_NO_KIND = (
    "nothing can be pushed from here: neither Web Push (VAPID_PRIVATE_KEY) nor FCM"
    " (FCM_CREDENTIALS) nor APNs (APNS_KEY) is on"
)
_UNTRACKED = (
    "{} needs metadata.ack: of a message without it nobody knows whether it was written; without it"
    ' only "always" is possible'
)
_NOBODY_ACKNOWLEDGES = (
    "nobody could acknowledge it: a message that asks for it needs target.user_id, and is no"
    " broadcast"
)
_NO_PATH = (
    "{} is not allowed where an acknowledgement or a push is asked for: it would vanish from the"
    " path that names the message"
)


def delivered_again(body: bytes, attempt: int, ttl: int | None = None) -> bytes:
    """A message's body for one more delivery: the same, whatever it has that isn't known here.

    Args:
        attempt: which of its deliveries that is, from 1.
        ttl: seconds that are left to it; None: as the body says.
    """
    message = _decode_members(body)
    metadata: dict[str, Any] = {**_decode_members(message["metadata"])}
    metadata["retry_count"] = attempt - 1
    if ttl is not None:
        metadata["ttl"] = ttl
    return _encode({**message, "metadata": metadata})


def _digest(message: Message, channels: tuple[str, ...]) -> bytes:
    # Of what the publisher sent: what the server adds may differ when the message is sent again.
    timestamp = message.timestamp and normal_timestamp(message.timestamp)
    metadata = message.metadata and Metadata(
        message.metadata.priority or "normal", message.metadata.ttl
    )
    if metadata and message.metadata and message.metadata.ack is not UNSET:
        terms = Terms.of(message.metadata.ack)
        metadata.ack = UNSET if terms is None else Ack(*terms)
    if metadata and message.metadata and message.metadata.push is not UNSET:
        push = Push.of(message.metadata.push, acknowledged=isinstance(metadata.ack, Ack))
        metadata.push = UNSET if push is None else AskedPush(*push)
    content = msgspec.structs.replace(
        message, timestamp=timestamp, metadata=metadata or _NO_METADATA
    )
    return hashlib.blake2b(_encode([content, channels]), digest_size=16).digest()


def priority_of(entry: Entry) -> int:
    """Its priority's place among all of them."""
    return NORMAL if entry.mark is None else entry.mark.priority


def data_of(entry: Entry) -> bytes:
    """The message's `data`, as it was published."""
    return bytes(_decode_data(entry.body).data)


def _is_deep(body: bytes) -> bool:
    return len(body) > DEEP and body.count(b"{") + body.count(b"[") > DEEP


def _check(message: Message, several: bool = True) -> None:
    """Raise what is wrong with a message that the decoder has read.

    Args:
        several: whether its text may have several lines.

    Raises:
        Invalid: its service or data is wrong.
    """
    if not is_service(message.service):
        raise Invalid(_wrong("/service", short_repr(message.service)))
    text = bytes(message.data)
    if text[:1] != b"{":
        if text != b"null":
            raise Invalid(Fault("/data", "it must be a JSON object"))
        text = b"{}"
        message.data = Raw(text)
    if several and (text.find(b"\n") >= 0 or text.find(b"\r") >= 0):
        # JSON allows line ends between tokens; on the stream they would end the line that carries
        # the message.
        text = msgspec.json.format(text, indent=-1)
        message.data = Raw(text)
    if message.type == "progress":
        try:
            _decode_progress(text)
        except msgspec.ValidationError as error:
            fault = _fault(text, error)
            raise Invalid(Fault("/data" + (fault.pointer or "/progress"), fault.detail)) from None


_PLACE = re.compile(r"(?s)(.*?)(?: - at `\$([^`]*)`)?")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_UNKNOWN = re.compile(r"(?s)Object contains unknown field `(.*)`")
_MISSING = re.compile(r"(?s)Object missing required field `(.*)`")


def _fault(body: bytes, error: msgspec.ValidationError) -> Fault:
    """The fault that msgspec has found in a body."""
    # msgspec says where only in its text, and only the first fault.
    match = _PLACE.fullmatch(str(error))
    assert match is not None
    if (name := _unknown_field(body, str(error))) is not None:
        return Fault(pointer_of([name]), f"{short_repr(name)} is no field of a message")
    text, place = match[1], match[2] or ""
    steps = [name or index for name, index in _STEP.findall(place)]
    if unknown := _UNKNOWN.fullmatch(text):
        steps.append(unknown[1])
        return Fault(pointer_of(steps), f"{short_repr(unknown[1])} is no field of a message")
    if missing := _MISSING.fullmatch(text):
        pointer = pointer_of([*steps, missing[1]])
        return Fault(
            pointer, "it is required" + (f": {_RULES[pointer]}" if pointer in _RULES else "")
        )
    pointer = pointer_of(steps)
    rule = text[:1].lower() + json_words(text)[1:].replace("`", "")
    return _wrong(pointer, _look_up(body, steps), rule)


def _unknown_field(body: bytes, text: str) -> str | None:
    # A name may look like the rest of the error's text: then the names that there are decide.
    match = _UNKNOWN.fullmatch(text)
    if match is None or body.lstrip()[:1] != b"{":
        return None
    return match[1] if " - at `$" not in text or match[1] in _decode_members(body) else None


def _wrong(pointer: str, value: str, rule: str = "") -> Fault:
    return Fault(pointer, f"{value} is not allowed: {_RULES.get(pointer, rule)}")


def _look_up(body: bytes, steps: list[str]) -> str:
    value = Raw(body)
    for step in steps:
        value = (
            _decode_items(value)[int(step)]
            if bytes(value).lstrip()[:1] == b"["
            else _decode_members(value)[step]
        )
    try:
        return short_repr(_decode_any(value))
    except (msgspec.ValidationError, RecursionError):
        # A number that Python can't hold, or what is nested deeply: as it was written.
        return short_json(bytes(value).decode())


def _invalid(body: bytes, error: msgspec.ValidationError) -> Malformed | Invalid:
    # The decoder stops at the first fault: what follows may not even be JSON.
    try:
        _decode_raw(body)
        return Invalid(_fault(body, error))
    except (msgspec.DecodeError, RecursionError) as worse:
        return unreadable(body, worse)


_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
_NORMAL = re.compile(
    r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z", re.ASCII
)  # but for the day, which not each month has
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=256)  # asked twice of each message, and many are of the same millisecond
def normal_timestamp(text: str) -> str:
    """An RFC 3339 date-time of any offset and precision, as UTC with milliseconds and `Z`.

    A leap second (`:60`) counts as the first moment after it.

    Raises:
        Invalid: no such date-time, or one outside the years 1 to 9999.
    """
    if _NORMAL.fullmatch(text):
        with suppress(ValueError):
            datetime.fromisoformat(text)
            return text
    match = _TIMESTAMP.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
        offset = timedelta(hours=int(match[9] or 0), minutes=int(match[10] or 0))
        if second > 60 or int(match[9] or 0) > 23 or int(match[10] or 0) > 59:
            raise ValueError(text)
        moment = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
        moment += timedelta(seconds=second == 60)
        moment += offset if match[8] == "-" else -offset
    except (ValueError, OverflowError):
        rule = "an RFC 3339 date-time such as 2025-07-30T15:10:00.123Z"
        raise Invalid(Fault("/timestamp", f"{short_repr(text)} is not allowed: {rule}")) from None
    milliseconds = "000" if second == 60 else ((match[7] or "") + "000")[:3]
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds}Z".rjust(24, "0")


@lru_cache(maxsize=8)
def format_ms(ms: int) -> str:
    """A moment, in milliseconds since 1970, as RFC 3339."""
    return f"{_format_second(ms // 1000)}.{ms % 1000:03d}Z"


def format_seconds(seconds: float) -> str:
    """A moment, in seconds since 1970, as RFC 3339; less than a millisecond isn't told."""
    return format_ms(int(seconds * 1000))


@lru_cache(maxsize=8)
def _format_second(second: int) -> str:
    return f"{_EPOCH + timedelta(seconds=second):%Y-%m-%dT%H:%M:%S}"
