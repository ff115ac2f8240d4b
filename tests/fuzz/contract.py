"""The contract, read a second time: plainly, slowly, and with nothing of the code that it judges."""

import json
import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

TYPES = ("info", "status", "error", "success", "warning", "custom", "progress")
FIELDS = ("id", "timestamp", "type", "service", "source", "target", "channels", "data", "metadata")

Verdict = Literal["accepted", "invalid", "malformed"]


class Undecided(Exception):
    """The contract leaves it open: names that are there twice, nesting as deep as the parser takes."""


class Number(str):
    """A number, digit by digit as it was written."""


class Members(tuple[tuple[str, Any], ...]):
    """An object: its members in their order, those included whose name comes again."""

    def once(self) -> dict[str, Any]:
        found = dict(self)
        if len(found) < len(self):
            raise Undecided
        return found


def read_json(text: bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is none, or not UTF-8 throughout.
        Undecided: it is nested deeply, or marked twice as Unicode.
    """
    if text.count(b"[") + text.count(b"{") > 300:
        raise Undecided
    decoded = text.decode("utf-8-sig")
    if decoded.startswith("\ufeff"):
        raise Undecided
    return json.loads(
        decoded,
        parse_int=Number,
        parse_float=Number,
        parse_constant=_no_constant,
        object_pairs_hook=Members,
    )


def has_half_a_pair(value: Any) -> bool:
    """Whether one of its texts, a name included, has half of a surrogate pair."""
    if isinstance(value, str):
        return any("\ud800" <= each <= "\udfff" for each in value)
    return isinstance(value, list | tuple) and any(map(has_half_a_pair, value))


def _no_constant(name: str) -> None:
    raise ValueError(name)


def judge_message(body: bytes, *, broadcast: bool) -> Verdict:
    """What the contract says of a body (sections 1 and 2)."""
    try:
        value = read_json(body)
    except ValueError:
        return "malformed"
    return "accepted" if not has_half_a_pair(value) and _is_message(value, broadcast) else "invalid"


def _is_message(value: Any, broadcast: bool) -> bool:
    if not isinstance(value, Members):
        return False
    given = {name: each for name, each in value.once().items() if each is not None}
    metadata = given.get("metadata", Members())
    return (
        dict(value).keys() <= set(FIELDS)
        and {"type", "service"} <= given.keys()
        and _matches(r"[A-Za-z0-9_.:-]{1,128}", given.get("id", "x"))
        and _is_text(given.get("timestamp", ""))
        and ("timestamp" not in given or moment(given["timestamp"]) is not None)
        and given["type"] in TYPES
        and _matches(r"[A-Za-z0-9_.-]{1,64}", given["service"])
        and _is_text(given.get("source", ""))
        and len(given.get("source", "")) <= 128
        and _is_target(given.get("target", Members()), broadcast)
        and (given.get("channels") or _names_somebody(given.get("target", Members())))
        and _are_channels(given.get("channels", []))
        and _is_data(given["type"], given.get("data", Members()))
        and isinstance(metadata, Members)
        and _is_metadata(metadata)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Number)


def _matches(pattern: str, value: Any) -> bool:
    return _is_text(value) and re.fullmatch(pattern, value) is not None


def _is_target(value: Any, broadcast: bool) -> bool:
    if not isinstance(value, Members):
        return False
    given = {name: each for name, each in value.once().items() if each is not None}
    return (
        len(given) <= 8
        and not (broadcast and len(value))
        and all(name.endswith("_id") and name != "_id" for name in given)
        and all(_is_text(each) and each for each in given.values())
        and all(is_channel(f"{name[:-3]}:{each}") for name, each in given.items())
    )


def _names_somebody(value: Members) -> bool:
    return not value or any(each is not None for _, each in value)


def _are_channels(value: Any, most: int = 32) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(_is_text(each) and is_channel(each) for each in value)
    )


def _is_data(type: str, value: Any) -> bool:
    if not isinstance(value, Members):
        return False
    if type != "progress":
        return True
    if [name for name, _ in value].count("progress") > 1:
        raise Undecided
    progress = dict(value).get("progress")
    return isinstance(progress, Number) and 0 <= float(progress) <= 100


def _is_metadata(value: Members) -> bool:
    given = value.once()
    ttl, priority = given.get("ttl"), given.get("priority")
    return (
        given.keys() <= {"priority", "ttl", "retry_count"}
        and (priority is None or priority in ("low", "normal", "high", "urgent"))
        and (
            ttl is None
            or (isinstance(ttl, Number) and re.fullmatch("[1-9][0-9]{0,5}", ttl) is not None)
        )
        and (ttl is None or int(ttl) <= 604_800)
    )


def is_channel(name: str) -> bool:
    """Whether this is a channel's name (section 2)."""
    return 1 <= len(name) <= 200 and not any(
        each in ",*/?#" or unicodedata.category(each) in ("Cc", "Zs", "Zl", "Zp") for each in name
    )


def moment(text: str) -> str | None:
    """A moment as RFC 3339 writes it, as it is kept: UTC and milliseconds; a leap second is the
    next one.
    """
    found = re.fullmatch(
        r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}):([0-9]{2})(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-5][0-9])",
        text,
    )
    if found is None:
        return None
    day, minute, second, fraction, offset = found.groups()
    leap = second == "60"
    try:
        read = datetime.fromisoformat(f"{day}T{minute}:{'59' if leap else second}{offset.upper()}")
        kept = (read + timedelta(seconds=leap)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return f"{kept.isoformat()[:19]}.{'000' if leap else ((fraction or '.') + '000')[1:4]}Z"


def judge_batch(body: bytes) -> tuple[Verdict, list[Any]]:
    """What the contract says of a batch as an array, and its items (section 4), whatever these may
    be.
    """
    try:
        value = read_json(body)
    except ValueError:
        return "malformed", []
    if isinstance(value, Members):
        value = (
            value.once().get("messages") if [name for name, _ in value] == ["messages"] else None
        )
    return ("accepted", value) if isinstance(value, list) else ("invalid", [])


def judge_ticket(body: bytes) -> Verdict:
    """What the contract says of a body that asks for a ticket (section 6)."""
    try:
        value = read_json(body)
    except ValueError:
        return "malformed"
    if has_half_a_pair(value):
        return "invalid"
    channels = (
        value.once().get("channels") if isinstance(value, Members) and len(value) == 1 else None
    )
    return "accepted" if channels and _are_channels(channels, 64) else "invalid"


def judge_revocation(body: bytes, now: float) -> Verdict:
    """What the contract says of a body that revokes tokens (section 6)."""
    try:
        value = read_json(body)
    except ValueError:
        return "malformed"
    if has_half_a_pair(value):
        return "invalid"
    given = value.once() if isinstance(value, Members) else {}
    ((name, what),) = given.items() if len(given) == 1 else [("", None)]
    if name in ("subject", "jti"):
        return "accepted" if _is_text(what) and what else "invalid"
    if name != "issued_before":
        return "invalid"
    if isinstance(what, Number):
        seconds: float | None = float(what)
    else:
        kept = moment(what) if isinstance(what, str) else None
        seconds = None if kept is None else datetime.fromisoformat(kept).timestamp()
    return "accepted" if seconds is not None and 0 <= seconds <= now + 30 else "invalid"


CURSORS = ("lastEventId", "lastEventID", "evs_last_event_id", "last_event_id")


def is_cursor(text: str) -> bool:
    return re.fullmatch("[A-Za-z0-9_.~-]{1,128}", text) is not None


def read_query(query: bytes) -> dict[str, list[str]] | None:
    """A query's parameters; None: it can't be read."""
    found: dict[str, list[str]] = {}
    try:
        query.decode("ascii")
        for part in query.split(b"&"):
            name, _, value = part.replace(b"+", b" ").partition(b"=")
            if part:
                found.setdefault(unescape(name).decode(), []).append(unescape(value).decode())
    except UnicodeDecodeError:
        return None
    return found


def unescape(text: bytes) -> bytes:
    """A text of a URL, percent-encoding taken away."""
    return re.sub(b"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), text)


def judge_stream(kind: str, name: bytes, query: bytes, header: str) -> int | list[str]:
    """What the contract says of a request for a stream (section 3): the status, or the channels
    that it listens to.
    """
    given = read_query(query)
    cursors = [] if given is None else [{*given.pop(name, [])} - {""} for name in CURSORS]
    unclear = any(len(each) > 1 for each in cursors)
    chosen = header or ("" if unclear else next((value for each in cursors for value in each), ""))
    if chosen.endswith("~end") and is_cursor(chosen):
        return 204
    try:
        names = unescape(name).decode()
    except UnicodeDecodeError:
        return 400
    if given is None or unclear or (chosen and not is_cursor(chosen)) or not names:
        return 400
    channels = [
        *(names.split(",") if kind == "stream" else [f"{kind}:{names}"]),
        *given.pop("channel", []),
    ]
    types, events, broadcast = (given.pop(name, None) for name in ("types", "events", "broadcast"))
    allowed = (
        all(map(is_channel, channels))
        and len({*channels} - {"broadcast"}) <= 64
        and (broadcast in (None, ["true"], ["false"]))
        and (types is None or (len(types) == 1 and {*types[0].split(",")} <= {*TYPES}))
        and (
            events is None
            or events in (["*"], ["none"])
            or (len(events) == 1 and {*events[0].split(",")} <= {*TYPES})
        )
        and len(given.pop("token", [])) <= 1
        and all(name in ("r", "t") or name.startswith(("_", "evs_")) for name in given)
    )
    return (
        sorted({*channels, *(["broadcast"] if broadcast != ["false"] else [])}) if allowed else 400
    )


def judge_history(name: bytes, query: bytes) -> int:
    """What the contract says of a request for a history (section 4): the status."""
    given = read_query(query)
    try:
        names = unescape(name).decode()
    except UnicodeDecodeError:
        return 400
    if given is None or not is_channel(names):
        return 400
    after, limit = given.pop("after", [""]), given.pop("limit", ["1"])
    allowed = (
        len(after) == len(limit) == 1
        and (after[0] == "" or is_cursor(after[0]))
        and re.fullmatch("[0-9]{1,9}", limit[0]) is not None
        and 1 <= int(limit[0]) <= 1000
        and all(name.startswith("_") for name in given)
    )
    return 200 if allowed else 400
