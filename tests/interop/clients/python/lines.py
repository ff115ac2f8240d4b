"""What every program here shares: the lines that it prints, and how long it waits."""

import json
import random
import sys


def told(event: str | None, id: str | None, data: str) -> None:
    """Print an event."""
    _print({"event": event or "message", "id": id or "", "data": data})


def gave_up(why: object) -> None:
    """Print that no request follows."""
    _print({"gave_up": str(why)})


def is_overload(event: str | None, data: str) -> bool:
    """Whether the server closes because it has no room."""
    return event == "msgpush.close" and json.loads(data)["reason"] == "overload"


def is_final(event: str | None, data: str) -> bool:
    """Whether the server closes for good."""
    return event == "msgpush.close" and not json.loads(data)["reconnect"]


def pause(retry: int | str | None, overloaded: bool = False) -> float:
    """Seconds until the next request: what the server has asked for, in milliseconds. Where the
    library doesn't tell, 2 to 5, or 10 to 30.
    """
    if retry:
        return int(retry) / 1000
    return random.uniform(10.0, 30.0) if overloaded else random.uniform(2.0, 5.0)


def _print(value: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
