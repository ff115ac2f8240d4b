"""Channel names, and the routing policy: which channels a message belongs to."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import inf

from msgpush.domain.errors import Denied, Fault, Invalid, Malformed
from msgpush.domain.json_text import escape, pointer_of
from msgpush.domain.quoting import short_repr

BROADCAST = "broadcast"
OWN_SERVICE = "msgpush"  # what the service itself publishes as
RECEIPTS = "receipts:"  # what its channels begin with that nobody else publishes to
USER = "user:"
MAX_CHANNELS = 32  # of a message
MAX_LISTENED = 64  # of a stream, without `broadcast`
MAX_TARGETS = 8
NAME_RULE = "1-200 characters with no control character, white space, comma, *, /, ? or #"
NAME_CHARACTER = r"[^\s,*/?#\x00-\x1f\x7f-\x9f]"  # as a regular expression

CACHED = 256  # characters of a message's target and channels, up to which its route is kept

_NAME = re.compile(NAME_CHARACTER + "{1,200}")


def is_channel(name: str) -> bool:
    """True if `name` can name a channel."""
    return _NAME.fullmatch(name) is not None


def no_channel(name: object, advice: str = "") -> str:
    """The words for a value that names no channel, and for what would."""
    return f"{short_repr(name)} is no channel name: {NAME_RULE}{advice}"


def check_channel(name: str) -> None:
    """Raise `Malformed` where a text names no channel."""
    if not is_channel(name):
        raise Malformed(no_channel(name))


_FOREIGN = re.compile(r"[\s,*/?#\x00-\x1f\x7f-\x9f]|%(?=[0-9A-Fa-f]{2})")


def encode_name(text: str) -> str:
    """Percent-encode what no name may have, and `%` before two hex digits.

    As UTF-8 (RFC 3986, section 2.1), and so that no two texts become the same. A text that may
    stand in a name, and has nothing that looks percent-encoded, stays as it is."""
    return _FOREIGN.sub(_percent_encoded, text)


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def own_channel(subject: str) -> str | None:
    """The channel that a subject may always listen to; None: its name would be too long."""
    name = f"user:{encode_name(subject)}"
    return name if is_channel(name) else None


def encoding_advice(text: str) -> str:
    """Advice on a name that can't be one, where percent-encoding makes it one."""
    encoded = encode_name(text)
    return (
        f"; percent-encoded it is {short_repr(encoded)}"
        if encoded != text and is_channel(encoded)
        else ""
    )


def route(
    service: str,
    target: Mapping[str, object] | None = None,
    channels: Sequence[str] | None = None,
    *,
    broadcast: bool = False,
) -> tuple[str, ...]:
    """The channels of a message, each once.

    Its target's, its own, its service's, and `broadcast` where it goes to all.

    Raises:
        Invalid: a target or a channel makes no valid name; every one of them is named.
        Denied: it would pass for one of the service's own messages.
    """
    own = tuple(channels) if channels else ()
    named = tuple(target.items()) if target else ()
    # Most messages have the route of one before them; so they share one tuple, too. Long names
    # aren't kept: anybody with a token could fill the memory with them.
    kept = _routed if _size(own, named) <= CACHED else _route
    return kept(service, own, named, broadcast)


def _size(channels: tuple[str, ...], target: tuple[tuple[str, object], ...]) -> float:
    size = sum(map(len, channels))
    for key, value in target:
        if not isinstance(value, str):
            return inf  # it is no name, and may not even be hashable
        size += len(key) + len(value)
    return size


def _route(
    service: str,
    channels: tuple[str, ...],
    target: tuple[tuple[str, object], ...],
    broadcast: bool,
) -> tuple[str, ...]:
    """The channels of a message, each once; see `route`."""
    if len(channels) > MAX_CHANNELS or not all(map(is_channel, channels)):
        raise Invalid(*_channel_faults(channels))
    targets = _targets(target)
    if target and not targets and not channels:
        # Accepted it would reach nobody: the user whom its publisher meant was missing.
        detail = (
            "null names nobody: give a string (has the program an id there at all?), or leave the"
            " target out"
        )
        named = (pointer_of(["target", key]) for key, _ in target[:MAX_TARGETS])
        raise Invalid(*(Fault(pointer, detail) for pointer in named))
    always = (f"service:{service}", BROADCAST) if broadcast else (f"service:{service}",)
    reserved = tuple(each for each in (*targets, *channels) if each.startswith(RECEIPTS))
    if service == OWN_SERVICE or reserved:
        raise Denied(
            f"nobody may publish as the service {OWN_SERVICE}, or to channels {RECEIPTS}*: they are"
            " for the service's own messages",
            channels=reserved or always,
        )
    return tuple(dict.fromkeys((*targets, *channels, *always)))


_routed = lru_cache(maxsize=8192)(_route)


def _channel_faults(channels: Sequence[str]) -> list[Fault]:
    faults = [
        Fault(f"/channels/{index}", no_channel(name))
        for index, name in enumerate(channels[:MAX_CHANNELS])
        if not is_channel(name)
    ]
    if len(channels) > MAX_CHANNELS:
        faults.append(
            Fault("/channels", f"{len(channels)} channels; at most {MAX_CHANNELS} are allowed")
        )
    return faults


def _targets(target: tuple[tuple[str, object], ...]) -> list[str]:
    given = [(key, value) for key, value in target if value is not None]
    names = [_target_channel(key, value) for key, value in given[:MAX_TARGETS]]
    faults = [name for name in names if isinstance(name, Fault)]
    if len(given) > MAX_TARGETS:
        faults.append(Fault("/target", f"{len(given)} targets; at most {MAX_TARGETS} are allowed"))
    if faults:
        raise Invalid(*faults)
    return [name for name in names if isinstance(name, str)]


def _target_channel(key: str, value: object) -> str | Fault:
    pointer = "/target/" + escape(key)
    if not key.endswith("_id") or key == "_id":
        return Fault(
            pointer, f"{short_repr(key)} is no target: its name must be <kind>_id, as in user_id"
        )
    if not isinstance(value, str):
        return Fault(pointer, f"{short_repr(value)} is no target: it must be a string")
    name = f"{key[:-3]}:{value}"
    if not value or not is_channel(name):
        advice = encoding_advice(value) if is_channel(f"{key[:-3]}:{encode_name(value)}") else ""
        return Fault(pointer, no_channel(name, advice))
    return name
