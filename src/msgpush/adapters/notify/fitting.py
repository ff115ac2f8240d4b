"""Texts of which as much is sent as there is room for."""

from collections.abc import Callable


def fitting(write: Callable[[str], bytes], text: str, room: int) -> bytes:
    """What `write` makes of a text, which is cut until all of it has so many bytes at most.

    It has more where there is no room for a character."""
    body = write(text)
    while len(body) > room and text:
        # A character takes six bytes at most: half of what is over may go at once, or more.
        text = text[: -max(1, (len(body) - room) // 6 + 1)]
        body = write(f"{text.rstrip()}\N{HORIZONTAL ELLIPSIS}")
    return body
