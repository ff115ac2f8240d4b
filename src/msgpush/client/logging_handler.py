"""A job's log, for those who watch it."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from msgpush.client.buffer import is_complaining
from msgpush.client.messages import Data, Type

# What these say while a message is being sent would make another message.
_OWN = ("msgpush.client", "httpx2", "httpcore2")


class Reports(Protocol):
    """A publisher, or a task."""

    def report(self, type: Type, data: Data | None = None) -> None: ...


class MsgpushHandler(logging.Handler):
    """Publishes log records: those of errors as `error`, warnings as `warning`, others as `info`.

    Like a task's messages they wait for nothing, and an error of the service raises nothing.

    Args:
        reports: the task whose log it is; or a publisher.
        level: the least important that is published.
    """

    def __init__(self, reports: Reports, level: int | str = logging.WARNING) -> None:
        super().__init__(level)
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        """Publish a record."""
        if record.name.startswith(_OWN) or is_complaining():
            return
        try:
            type: Type = "info"
            if record.levelno >= logging.WARNING:
                type = "error" if record.levelno >= logging.ERROR else "warning"
            data: dict[str, Any] = {
                "message": self.format(record) if self.formatter else record.getMessage(),
                "level": record.levelname.lower(),
                "logger": record.name,
            }
            if record.exc_info and record.exc_info[1] is not None:
                data["error"] = f"{record.exc_info[1].__class__.__name__}: {record.exc_info[1]}"
            self._reports.report(type, data)
        except Exception:
            self.handleError(record)
