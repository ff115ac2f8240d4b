"""A reference parser of event streams, written from the standard: WHATWG HTML, section 9.2
"Server-sent events".
"""

import codecs
from typing import NamedTuple


class Event(NamedTuple):
    """A dispatched event."""

    type: str
    data: str
    last_event_id: str


class EventStreamParser:
    """Interprets an event stream, however its bytes are cut.

    Attributes:
        last_event_id: the *last event ID string*, which a client sends when it reconnects; only a
            dispatch changes it.
        retry: the reconnection time in milliseconds, if the stream has set one.
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._begun = False
        self._after_cr = False
        self._id = ""
        self._clear()

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete; a block that isn't complete is kept, and at the end
        discarded.
        """
        text = self._decoder.decode(data)
        if not self._begun and text:
            # 9.2.5: one leading BOM is ignored.
            self._begun = True
            text = text.removeprefix("\ufeff")
        events = []
        for character in text:
            if self._after_cr and character == "\n":
                self._after_cr = False
                continue
            self._after_cr = character == "\r"
            if character in "\r\n":
                line, self._text = self._text, ""
                if (event := self._line(line)) is not None:
                    events.append(event)
            else:
                self._text += character
        return events

    def _line(self, line: str) -> Event | None:
        # 9.2.6: an empty line dispatches, a colon first is a comment, the rest are fields.
        if not line:
            return self._dispatch()
        if not line.startswith(":"):
            field, _, value = line.partition(":")
            self._field(field, value.removeprefix(" "))
        return None

    def _field(self, field: str, value: str) -> None:
        match field:
            case "event":
                self._type = value
            case "data":
                self._data += value + "\n"
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value and value.isascii() and value.isdigit():
                self.retry = int(value)
            case _:
                pass

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id
        data, type = self._data, self._type
        self._clear()
        return Event(type or "message", data.removesuffix("\n"), self._id) if data else None

    def _clear(self) -> None:
        self._data = ""
        self._type = ""
