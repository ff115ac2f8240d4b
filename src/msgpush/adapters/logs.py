"""The process's logs: structlog's events, and everything that goes through `logging`, in one form
on stderr.
"""

import contextlib
import logging
import re
import sys
from contextvars import ContextVar
from typing import Any, Literal

import structlog
from structlog.processors import JSONRenderer, StackInfoRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

# The id of the request that is served, in its task and in those that this begins.
REQUEST_ID: ContextVar[str] = ContextVar("request_id")

# In a URI, a quote, an angle bracket or a space would be percent-encoded: that is where it ends
# (RFC 3986).
_QUERY = re.compile(r'(/[^\s"<>?]*)\?[^\s"<>]*')


# Libraries that tell codes, verifiers and headers where they are asked for much.
TALKATIVE = ("authlib", "httpcore2", "httpx2")


class Lines(logging.StreamHandler[Any]):
    """Lines on a stream. One that can't be written is lost, and nothing else happens: its reader
    may have gone.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError) or self.stream is None or self.stream.closed:
            return
        # A mistake in the line itself, which `logging` tells on stderr.
        with contextlib.suppress(OSError, ValueError):
            super().handleError(record)


def configure(level: str, format: Literal["console", "json"]) -> None:
    """Send all logs of this process to stderr, from `level` up: lines for people, or one JSON
    object a line.

    Replaces what `logging` and structlog were told before. Query strings are never logged, since
    tokens travel in them."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = Lines(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=_shared(),
            processors=[
                ProcessorFormatter.remove_processors_meta,
                without_queries,
                _renderer(format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in TALKATIVE:
        # What is secret of a sign-in stands in what they say below that.
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    _adopt_uvicorn(level.upper())


def without_queries(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Cut the query strings off the URLs and paths in an event."""
    for key, value in event.items():
        if isinstance(value, str) and "?" in value:
            event[key] = _QUERY.sub(r"\1", value)
    return event


def with_request(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Name the request that an event belongs to, if it belongs to one."""
    if (id := REQUEST_ID.get(None)) is not None:
        event.setdefault("request_id", id)
    return event


def _shared() -> list[Processor]:
    """The steps for every event, whichever way it came."""
    return [
        structlog.contextvars.merge_contextvars,
        with_request,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        TimeStamper(fmt="iso", utc=True),
        StackInfoRenderer(),
        # Plain tracebacks: the richer ones show local variables, and so secrets.
        format_exc_info,
    ]


def _renderer(format: Literal["console", "json"]) -> Processor:
    if format == "json":
        return JSONRenderer()
    colors = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    return structlog.dev.ConsoleRenderer(
        colors=colors, exception_formatter=structlog.dev.plain_traceback
    )


def _adopt_uvicorn(level: str) -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        # uvicorn reads `.level` itself, and takes "not set" for its most talkative one.
        logger.setLevel(level)
    # Without a handler anywhere uvicorn doesn't even make the lines of its access log.
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
