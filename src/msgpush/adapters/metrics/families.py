"""The metrics: their names, labels and meaning, and how those of several workers add up.

No label takes values that a client chooses, beyond a bounded number of services."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from msgpush.domain.instances import LAG
from msgpush.domain.tally import ANSWERING, LATENCY, SHORT, Histogram

Kind = Literal["counter", "gauge", "histogram"]
# A number, or a histogram's counts and, last, the sum of its values.
Value = float | list[float]
# The values of a metric, by those of its labels.
Series = dict[tuple[str, ...], Value]
Figures = dict[str, Series]


class Family(NamedTuple):
    """One metric.

    Attributes:
        together: what a gauge of several workers is: the sum, the largest or the smallest of
            theirs, or that of the one that is asked (`own`). Counters and histograms are summed.
        bounds: the upper bounds of a histogram's buckets.
    """

    kind: Kind
    help: str
    labels: Sequence[str] = ()
    together: Literal["sum", "max", "min", "own"] = "sum"
    bounds: Sequence[float] = ()


FAMILIES: Mapping[str, Family] = {
    "message_push_up": Family(
        "gauge", "Whether messages can be published and are delivered.", together="min"
    ),
    "message_push_ready": Family(
        "gauge", "Whether new requests should come here: what /health/ready says.", together="min"
    ),
    "message_push_draining": Family(
        "gauge", "Whether it ends, and takes no new streams.", together="max"
    ),
    "message_push_build_info": Family(
        "gauge",
        "1; the labels say what runs.",
        ["version", "python", "bus"],
        together="max",
    ),
    "message_push_start_time_seconds": Family(
        "gauge",
        "When it was started, in seconds since 1970; of workers, when the newest was.",
        together="max",  # so that it shows where one of them dies again and again
    ),
    "message_push_messages_sent_total": Family(
        "counter", "Messages accepted, once each.", ["service", "type"]
    ),
    "message_push_messages_failed_total": Family(
        "counter", "Messages refused or not stored.", ["service", "type", "reason"]
    ),
    "message_push_messages_delivered_total": Family(
        "counter",
        "Messages written to streams, once for each stream, live or caught up on.",
        ["service", "type"],
    ),
    "message_push_publish_seconds": Family(
        "histogram",
        "What the bus takes to answer a publish, of one message or of a part of a batch.",
        bounds=LATENCY,
    ),
    "message_push_message_duration_seconds": Family(
        "histogram",
        "From a message's acceptance to its writing to sockets, once for each set of like"
        " connections of which at least one has taken it, and once for messages of the same"
        " millisecond that are written together. Live delivery alone: what is replayed, or"
        " caught up on by a slow reader, isn't counted.",
        ["service", "type"],
        bounds=LATENCY,
    ),
    "message_push_connections_total": Family("gauge", "Streams open now.", ["transport"]),
    "message_push_connections_limit": Family("gauge", "Streams that may be open at once."),
    "message_push_streams": Family(
        "gauge",
        "Streams open now: live, or behind and catching up.",
        ["transport", "state"],
    ),
    "message_push_streams_opened_total": Family("counter", "Streams opened.", ["transport"]),
    "message_push_streams_closed_total": Family(
        "counter",
        "Streams that have ended; gone: the client has left.",
        ["transport", "reason"],
    ),
    "message_push_refused_total": Family(
        "counter",
        "Streams, requests and connections refused: by a limit, for want of permission, or broken.",
        ["reason"],
    ),
    "message_push_bytes_written_total": Family(
        "counter", "Bytes of messages and gaps given to streams.", ["transport"]
    ),
    "message_push_replays_total": Family(
        "counter",
        "Messages given to streams that were behind, by where they were read from: the ring of the"
        " newest in memory, or the bus.",
        ["from"],
    ),
    "message_push_gaps_total": Family(
        "counter", "Gaps that streams were told of: messages are missing.", ["reason"]
    ),
    "message_push_sweep_seconds": Family(
        "histogram",
        "What a sweep takes: it gives live streams what is pending, for 5 milliseconds at most.",
        bounds=SHORT,
    ),
    "message_push_swept_messages_total": Family(
        "counter", "Messages that sweeps have taken, once for each set of like connections."
    ),
    "message_push_acknowledged_seconds": Family(
        "histogram",
        "From a message's acceptance to its acknowledgement by a client, once each.",
        ["service"],
        bounds=ANSWERING,
    ),
    "message_push_redeliveries_total": Family(
        "counter",
        "Messages that were delivered once more, since nobody had acknowledged them.",
        ["service"],
    ),
    "message_push_dead_letters_total": Family(
        "counter", "Messages that were given up, and dead letters that went.", ["service", "reason"]
    ),
    "message_push_pushes_total": Family(
        "counter",
        "Pushes to devices: sent, gone (the device is), later (asked again) or failed.",
        ["kind", "outcome"],
    ),
    "message_push_push_seconds": Family(
        "histogram",
        "Time from a push until its provider's answer.",
        ["kind"],
        bounds=LATENCY,
    ),
    "message_push_pending_acknowledgements": Family(
        "gauge",
        "Messages that wait for acknowledgements, at all instances together.",
        together="own",
    ),
    "message_push_bus_length": Family("gauge", "Messages that the bus retains.", together="own"),
    "message_push_bus_limit": Family(
        "gauge",
        "Messages that its log keeps at most (LOG_LENGTH); 0: no such limit.",
        together="own",
    ),
    "message_push_bus_round_trip_seconds": Family(
        "histogram",
        "From the writing of a sign of life, every 5 seconds, to its reading.",
        bounds=LATENCY,
    ),
    "message_push_tail_lag_seconds": Family(
        "gauge",
        "What the newest sign of life took to come back, or has taken yet.",
        together="max",
    ),
    "message_push_unknown_entries": Family(
        "gauge",
        "Entries of the log passed over since the start: of a later release, or written by"
        " somebody else.",
        together="max",
    ),
    "message_push_loop_lag_seconds": Family(
        "histogram",
        "How late the event loop is with what is due, ten times a second.",
        bounds=LAG,
    ),
    "message_push_gc_pause_seconds": Family(
        "histogram",
        "What Python's garbage collector takes, while nothing else runs.",
        ["generation"],
        bounds=SHORT,
    ),
    "message_push_open_files": Family("gauge", "Files and sockets that are open."),
    "message_push_open_files_limit": Family("gauge", "Files and sockets that may be open."),
    "message_push_registered": Family(
        "gauge", "Whether a registry knows this instance.", ["registry"]
    ),
    "message_push_registry_failures_total": Family(
        "counter", "Attempts to be registered, renewed or withdrawn that failed.", ["registry"]
    ),
    "message_push_scrape_seconds": Family(
        "gauge", "What the last answer to Prometheus took here.", together="own"
    ),
}


def value_of(histogram: Histogram) -> list[float]:
    """A histogram as a value."""
    return [*histogram.counts, histogram.sum]


def added(values: Iterable[Value]) -> Value:
    """The sum of some values of one metric; one at least."""
    first, *others = values
    for each in others:
        if isinstance(first, list) and isinstance(each, list):
            first = [a + b for a, b in zip(first, each, strict=True)]
        elif isinstance(first, int | float) and isinstance(each, int | float):
            first += each
    return first
