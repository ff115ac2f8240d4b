"""Traces (OpenTelemetry): a span for each publish, exported as the SDK's own variables say.

The SDK is an extra (`msgpush[otel]`), and is imported here alone, where the environment asks for
it. Spans wait in memory for a thread that sends them: a receiver that is slow or away delays no
publish, and what is too much is dropped."""

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from msgpush import __version__
from msgpush.domain.message import Draft

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
LAST_SPANS = 2.0  # seconds that the end waits for what is still to be sent

log = logging.getLogger("msgpush.traces")


def asked_for(environ: Mapping[str, str]) -> str | None:
    """The variable by which the environment asks for traces; None: it doesn't.

    See https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    # Several, with commas between them; of all of them OTLP alone is spoken.
    exporters = environ.get("OTEL_TRACES_EXPORTER", "").lower().split(",")
    if named := {each.strip() for each in exporters} - {""}:
        return "OTEL_TRACES_EXPORTER" if "otlp" in named else None
    return next((name for name in ENDPOINTS if environ.get(name, "").strip()), None)


def traces_of(environ: Mapping[str, str]) -> "Traces | None":
    """What the environment asks for; None, and a warning, where it can't be done."""
    if (variable := asked_for(environ)) is None:
        return None
    protocols = [environ[name] for name in PROTOCOLS if environ.get(name, "").strip()]
    if protocols and protocols[-1].strip() != "http/protobuf":
        log.warning(
            "%s asks for traces by another protocol than http/protobuf, which is the only one that"
            " is spoken: none are sent",
            variable,
        )
        return None
    try:
        return Traces(_provider())
    except ImportError:
        log.warning(
            "%s asks for traces, and OpenTelemetry isn't installed: none are sent; pip install"
            " 'msgpush[otel]'",
            variable,
        )
        return None
    except ValueError as error:
        log.warning(
            "%s asks for traces, and OpenTelemetry can't read its variables: %s: none are sent",
            variable,
            error,
        )
        return None


class Traces:
    """Makes spans. An async context manager: at its end, what is still to be sent gets some time.

    What the service learns of people isn't told: no body, no user, no channel's name."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace import SpanKind, StatusCode  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        self._provider = provider
        self._start = provider.get_tracer("msgpush", __version__).start_span
        self._extract = TraceContextTextMapPropagator().extract
        self._producer, self._error = SpanKind.PRODUCER, StatusCode.ERROR

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody has waited so long
                loop.call_soon_threadsafe(ended.set)

        # Not one of the loop's own threads: that would be waited for, however long it takes.
        threading.Thread(target=end, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(LAST_SPANS):
                await ended.wait()
        except TimeoutError:
            log.warning("some spans were not sent: their receiver takes too long")

    @contextmanager
    def publish(self, traceparent: str | None, drafts: Sequence[Draft]) -> Iterator[list[str]]:
        """A span of a publish, while it is stored.

        Args:
            traceparent: whose child it is (W3C Trace Context); None: nobody's.

        Yields:
            a list for the names of the errors by which messages weren't stored.
        """
        context = None if traceparent is None else self._extract({"traceparent": traceparent})
        span = self._start(
            "publish", context=context, kind=self._producer, attributes=_attributes(drafts)
        )
        failed: list[str] = []
        try:
            yield failed
        except BaseException as error:
            # Its name alone: its text may have what was published.
            failed.append(type(error).__name__)
            raise
        finally:
            if failed:
                span.set_attribute("error.type", failed[0])
                span.set_status(self._error)
            span.end()


def _attributes(drafts: Sequence[Draft]) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "messaging.system": "msgpush",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.batch.message_count": len(drafts),
        "msgpush.channels": len({channel for draft in drafts for channel in draft.channels}),
    }
    for name, values in (
        ("msgpush.service", {draft.service for draft in drafts}),
        ("msgpush.type", {draft.type for draft in drafts}),
    ):
        if len(values) == 1:
            attributes[name] = values.pop()
    return attributes


def _provider() -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create()
    own: dict[str, Any] = {"service.version": __version__}
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        own["service.name"] = "msgpush"
    provider = TracerProvider(resource=resource.merge(Resource(own)), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
