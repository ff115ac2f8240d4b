"""What becomes of a publish's `traceparent` (W3C Trace Context): a span, and word to readers."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from starlette.types import Scope

from msgpush.adapters.http.requests import header
from msgpush.domain.message import Draft, is_traceparent


class Spans(Protocol):
    """Makes spans."""

    def publish(
        self, traceparent: str | None, drafts: Sequence[Draft]
    ) -> AbstractContextManager[list[str]]:
        """A span of a publish, while it is stored: see `adapters.traces`."""


class Tracing:
    """What is done with where publishes come from.

    Args:
        spans: None: nobody has asked for them.
        tells: whether readers are told, in `metadata.traceparent`.
    """

    def __init__(self, spans: Spans | None, *, tells: bool) -> None:
        self._spans, self._tells = spans, tells

    @property
    def idle(self) -> bool:
        """True: there is nothing to do."""
        return self._spans is None and not self._tells

    def of(self, scope: Scope) -> str | None:
        """The `traceparent` that a request has; one that isn't valid counts as none."""
        found = header(scope, b"traceparent")
        return found if found is not None and is_traceparent(found) else None

    def told(self, traceparent: str | None) -> str | None:
        """The same, as far as readers are told."""
        return traceparent if self._tells else None

    @contextmanager
    def publish(self, traceparent: str | None, drafts: Sequence[Draft]) -> Iterator[list[str]]:
        """Publish within a span, if there are any.

        Yields:
            a list for the names of the errors by which messages weren't stored.
        """
        if self._spans is None:
            yield []
        else:
            with self._spans.publish(traceparent, drafts) as failed:
                yield failed


IDLE = Tracing(None, tells=False)
