"""Channel names, and the routing policy: which channels a message belongs to."""

import re
from collections.abc import Mapping
from functools import lru_cache

from msgpush.domain.errors import Fault, Invalid

BROADCAST = "broadcast"
MAX_CHANNELS = 32
MAX_TARGETS = 8
NAME_RULE = "1-200 characters with no control character, white space, comma, '*', '/', '?' or '#'"

_NAME = re.compile(r"[^\s,*/?#\x00-\x1f\x7f-\x9f]{1,200}")


@lru_cache(maxsize=8192)
def is_channel(name: str) -> bool:
    """Whether `name` can name a channel."""
    return _NAME.fullmatch(name) is not None


def shown(value: object) -> str:
    """A value as an error message names it: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def route(
    *,
    service: str,
    target: Mapping[str, object] | None = None,
    channels: list[str] | None = None,
    broadcast: bool = False,
) -> tuple[str, ...]:
    """The channels of a message: its target's, its own, its service's, and `broadcast` where it goes to all. Each once.

    Raises:
        Invalid: a target or a channel makes no valid name; every one of them is named.
    """
    faults: list[Fault] = []
    found: dict[str, None] = {}
    for key, value in (target or {}).items():
        if value is None:
            continue
        name = _target_channel(key, value)
        if isinstance(name, Fault):
            faults.append(name)
        else:
            found[name] = None
    if len(found) > MAX_TARGETS:
        faults.append(Fault("/target", f"{len(found)} targets; at most {MAX_TARGETS} are allowed"))
    for index, name in enumerate(channels or ()):
        if is_channel(name):
            found[name] = None
        else:
            faults.append(Fault(f"/channels/{index}", f"{shown(name)} is no channel name: {NAME_RULE}"))
    if channels and len(channels) > MAX_CHANNELS:
        faults.append(Fault("/channels", f"{len(channels)} channels; at most {MAX_CHANNELS} are allowed"))
    if faults:
        raise Invalid(*faults)
    found[f"service:{service}"] = None
    if broadcast:
        found[BROADCAST] = None
    return tuple(found)


def _target_channel(key: str, value: object) -> str | Fault:
    pointer = "/target/" + escape(key)
    if not key.endswith("_id") or key == "_id":
        return Fault(pointer, f"{shown(key)} is no target: its name must be <kind>_id, as in user_id")
    if not isinstance(value, str):
        return Fault(pointer, f"{shown(value)} is no target: it must be a string")
    name = f"{key[:-3]}:{value}"
    if not value or not is_channel(name):
        return Fault(pointer, f"{shown(name)} is no channel name: {NAME_RULE}")
    return name


def escape(key: str) -> str:
    """A key as part of a JSON pointer (RFC 6901, section 3)."""
    return key.replace("~", "~0").replace("/", "~1")
