"""A publisher's numbers, and what a service has of them."""

from typing import Any

import msgspec

from msgpush.client import Publisher
from tests.support.client import request


def at(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def history(port: int, channel: str) -> list[dict[str, Any]]:
    answer = request(port, "GET", f"/api/v1/channels/{channel}/messages?last=1000")
    messages: list[dict[str, Any]] = msgspec.json.decode(answer.body)["messages"]
    return messages


def numbers(port: int, channel: str) -> list[int]:
    return [each["data"]["n"] for each in history(port, channel)]


def say(publisher: Publisher, channel: str, *ns: int, **options: Any) -> None:
    for n in ns:
        publisher.send("info", {"n": n}, channels=[channel], **options)


def circle() -> dict[str, Any]:
    """Data that has no end."""
    data: dict[str, Any] = {}
    data["itself"] = data
    return data


class Odd:
    """A value that can't be looked into."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise KeyError("nothing")
