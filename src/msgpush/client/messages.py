"""Messages on their way out: what a program says, as the texts that the service reads."""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict, cast, get_args

import msgspec
from msgspec import Struct

Type = Literal["progress", "status", "error", "success", "warning", "info", "custom"]
Priority = Literal["low", "normal", "high", "urgent"]
Data = Mapping[str, Any]

TYPES: tuple[str, ...] = get_args(Type)

_encode = msgspec.json.Encoder().encode


class Routing(TypedDict, total=False):
    """Whom messages are for, and how they are treated."""

    user: str  # `target.user_id`
    target: Mapping[str, str]  # further ones, as in {"kb_id": "kb789"}
    channels: Sequence[str]
    ttl: int  # seconds
    priority: Priority
    ack: bool | Mapping[str, Any]  # whether, and how, an acknowledgement is wanted
    push: bool | Mapping[str, Any]  # whether, and how, devices are told
    service: str  # instead of the publisher's
    source: str


class Options(Routing, total=False):
    """What a message may have, beside its type and data."""

    id: str  # of your own, where the same message may be said again: it is stored once


_METADATA = ("ttl", "priority", "ack", "push")
_OPTIONS = Options.__annotations__.keys() | Routing.__annotations__.keys()


class Item(Struct, frozen=True):
    """A message that is ready to be sent, as often as it takes.

    Args:
        text: its JSON, on one line.
        group: messages of one group replace each other as long as they wait; "": none does.
    """

    service: str
    id: str
    text: bytes
    broadcast: bool = False
    group: str = ""

    @property
    def key(self) -> str:
        return f"{self.service}/{self.id}"

    @property
    def size(self) -> int:
        return len(self.text)


class Sent(Struct, frozen=True):
    """A message that the service has accepted; of a buffered one, only its key is known."""

    key: str
    timestamp: str = ""
    channels: tuple[str, ...] = ()
    cursor: str = ""
    duplicate: bool = False


class Defaults(Struct, frozen=True):
    """What a publisher adds to each message."""

    service: str
    source: str = ""
    stamped: bool = False  # a message that may wait says itself when it was made


def item(
    defaults: Defaults,
    type: str,
    data: Data | None,
    options: Options | Routing,
    *,
    broadcast: bool = False,
    group: str = "",
    said_at: int | None = None,
) -> Item:
    """A message, with an id, as it is sent.

    Args:
        said_at: nanoseconds since 1970; by default now.

    Raises:
        ValueError: a type that there isn't, or no service.
        TypeError: data that has no JSON form, or an option that there isn't.
    """
    if type not in TYPES:
        raise ValueError(f"type is {type!r}: it must be one of {', '.join(TYPES)}")
    message: dict[str, Any] = {"type": type, "data": data or {}}
    for name, value in options.items():
        if value is None:
            continue
        if name in _METADATA:
            message.setdefault("metadata", {})[name] = value
        elif name == "user":
            message["target"] = {"user_id": value, **message.get("target", {})}
        elif name == "target":
            message["target"] = {**message.get("target", {}), **cast("Data", value)}
        else:
            message[name] = value
    if said_at is not None:
        message["timestamp"] = _text_of(said_at)
    return _ready(defaults, message, broadcast=broadcast, group=group)


def check(options: Options | Routing) -> None:
    """Raise `TypeError` where there is no such option: a typing mistake loses no message."""
    if not options.keys() <= _OPTIONS:
        raise TypeError(f"no such option: {', '.join(sorted(options.keys() - _OPTIONS))}")


def complete(defaults: Defaults, message: Data) -> Item:
    """The same, of a message in the form that the service reads."""
    return _ready(defaults, dict(message))


def _ready(
    defaults: Defaults, message: dict[str, Any], *, broadcast: bool = False, group: str = ""
) -> Item:
    service = message.get("service")
    if not service:
        if not defaults.service:
            raise ValueError("service is missing: give it to the publisher, or to the message")
        service = message["service"] = defaults.service
    id = message.get("id")
    if not id:
        id = message["id"] = _ids.next()
    if defaults.source:
        message.setdefault("source", defaults.source)
    if defaults.stamped:
        message.setdefault("timestamp", _text_of(time.time_ns()))
    return Item(str(service), str(id), _encode(message), broadcast, group)


class _Ids:
    """Ids that no other process makes: a random part, and a number."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self._random, self._numbers = secrets.token_hex(8), itertools.count(1)

    def next(self) -> str:
        return f"{self._random}-{next(self._numbers)}"


_ids = _Ids()


def progressed(
    task: str,
    percent: float,
    stage: str | None = None,
    message: str | None = None,
    details: Data | None = None,
) -> dict[str, Any]:
    """The data of a task's progress."""
    data: dict[str, Any] = {"task_id": task, "progress": percent}
    if stage is not None:
        data["stage"] = stage
    if message is not None:
        data["message"] = message
    if details:
        data["details"] = details
    return data


def group_of(task: str, options: Options | Routing) -> str:
    """The group of a task's progress, in which newer messages replace older ones: for each circle
    of readers one of its own.
    """
    # With an id of its own, or where somebody has to acknowledge it, it is more than a bar's state.
    return "" if "id" in options or options.get("ack") else f"{task} {options}"


class Bar:
    """A task's progress on its way: as long as it waits, its data are the newest there are.

    So a loop that reports each step makes a message when one is sent, and not at each step. Nothing
    is locked: who sets the data looks at `waiting` afterwards, who takes it ends `waiting` before.
    """

    size = 1024  # about: it isn't known before

    def __init__(self, defaults: Defaults, options: Routing, group: str) -> None:
        self.group = group
        self.waiting = False
        self._defaults, self._options = defaults, options
        self._data: dict[str, Any] = {}
        self._said_at = 0

    @property
    def key(self) -> str:
        return f"{self._options.get('service', self._defaults.service)}/{self._data.get('task_id')}"

    def show(self, data: dict[str, Any]) -> bool:
        """Set the data; whether it has to be put in the buffer for that."""
        self._data, self._said_at = data, time.time_ns()
        return not self.waiting

    def stay_behind(self) -> Bar:
        """Something else is said now. What is shown from here on comes after that: by this one."""
        return Bar(self._defaults, self._options, self.group) if self.waiting else self

    def take(self) -> Item:
        """The message; raises as `item` does."""
        self.waiting = False
        data, said_at = self._data, self._said_at
        return item(self._defaults, "progress", data, self._options, said_at=said_at)


def failed(task: str, error: BaseException | str) -> dict[str, Any]:
    """The data that tells of an error: its text, and of an exception its type."""
    if isinstance(error, str):
        return {"task_id": task, "message": error}
    kind = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = ""  # it is about the job's error, not about that one's own
    return {"task_id": task, "message": text or kind, "error": kind}


_last = (0, "")


def _text_of(nanoseconds: int) -> str:
    """RFC 3339, to the millisecond: the same text for all messages of one."""
    global _last  # noqa: PLW0603 - a cache of one
    now = nanoseconds // 1_000_000
    made_at, text = _last
    if now != made_at:
        moment = datetime.fromtimestamp(now / 1000, UTC).replace(tzinfo=None)
        text = f"{moment.isoformat(timespec='milliseconds')}Z"
        _last = now, text
    return text
