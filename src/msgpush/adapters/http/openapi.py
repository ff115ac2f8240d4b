"""The API's description (OpenAPI 3.1), made from the types that the code itself decodes and
encodes.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from msgpush.adapters.http.batch import NDJSON_TYPES
from msgpush.adapters.http.callers import COOKIE
from msgpush.adapters.http.connections import ConnectionList
from msgpush.adapters.http.permissions import NewTicket, Revoked
from msgpush.adapters.http.problems import Problem
from msgpush.adapters.http.publish import MAX_ITEMS, BatchResult
from msgpush.domain.channel import (
    MAX_CHANNELS,
    MAX_LISTENED,
    MAX_TARGETS,
    NAME_CHARACTER,
    NAME_RULE,
)
from msgpush.domain.message import TYPES, Message
from msgpush.domain.ports import ConnectionStats
from msgpush.domain.position import MAX_CURSOR
from msgpush.domain.service import History, Receipt

Json = dict[str, Any]

API_VERSION = "1"  # of the API, as in its paths; which release serves it, nobody has to know

EXAMPLE: Json = {
    "type": "progress",
    "service": "knowledge-service",
    "source": "document_processing",
    "target": {"user_id": "user123", "session_id": "session456", "kb_id": "kb789"},
    "channels": ["imports"],
    "data": {
        "task_id": "task_abc123",
        "progress": 65,
        "stage": "embedding",
        "details": {"processed_chunks": 13, "total_chunks": 20, "current_file": "document.pdf"},
    },
    "metadata": {"priority": "normal", "ttl": 3600},
}
BROADCAST_EXAMPLE: Json = {
    "type": "warning",
    "service": "gateway",
    "data": {"message": "Maintenance at 22:00 UTC"},
}
DELIVERED_EXAMPLE: Json = {
    "id": "msg_1753859400_001",
    "timestamp": "2025-07-30T15:10:00.123Z",
    **EXAMPLE,
    "metadata": {"priority": "normal", "ttl": 3600, "retry_count": 0},
}
STREAM_EXAMPLE = """\
retry: 2750
event: msgpush.open
id: 1lgbdur5w.1753859399000-0
data: {"connection":"9f2c51b7a0d4e863","channels":["user:user123"],"resumed":false,"heartbeat":30}

event: progress
data: {"task_id":"task_abc123","progress":65,"stage":"embedding"}
id: 1lgbdur5w.1753859400123-0

"""

_ABOUT = """\
Publish messages over HTTP, receive them over Server-Sent Events, live and without loss.

Every error is a problem (RFC 9457, `application/problem+json`). Unknown fields and \
parameters are refused, but for parameters whose name begins with `_`, and on streams for those \
that polyfills add: `r`, `t`, `evs_...`.
"""
_STREAM = """\
Server-Sent Events. The types in `events` come as events of that name with the message's `data` \
alone; all others come without a name, as whole messages. (The event of `error` is named \
`message.error`.) Besides, there are

- `msgpush.open`: the stream has begun; `id` is a cursor already;
- `msgpush.heartbeat`: a sign of life, with the cursor now;
- `msgpush.gap`: `{"channel", "after", "reason"}`: messages are missing \
(`trimmed`, `expired`, `reset`);
- `msgpush.close`: `{"reason", "reconnect"}`: the server ends the stream \
(`drain`, `overload`, `slow`, `expired`, \
`disconnected`, `revoked`).

Where no more streams can be served, the answer is 200 all the same: `retry`, and \
`msgpush.close` with `overload`.
"""
_REF = "#/components/schemas/{name}"
_PROBLEM_TYPE = "application/problem+json"
_CURSOR = f"^[A-Za-z0-9_.~-]{{0,{MAX_CURSOR}}}$"
_EACH = "|".join(TYPES)
_CHANNEL: Json = {"type": "string", "pattern": f"^{NAME_CHARACTER}{{1,200}}$"}

# Any request may be answered with these: see entrypoints/protocol.py, and the local mode in
# auth.py.
_ALWAYS = (403, 408, 431)
_GUARDED = (400, 401, 405)
_PROBLEMS = {
    400: ("Malformed", "The request can't be read; no fault of a message's content."),
    401: ("Unauthorized", "Where there is authentication: no token, or one that isn't valid."),
    403: ("Forbidden", "Not allowed; in local mode: the request doesn't come from this machine."),
    404: ("NotFound", "There is no such thing."),
    405: ("MethodNotAllowed", "Not with this method."),
    408: ("Timeout", "The request's headers or body took too long."),
    409: ("Conflict", "The service has published the id before, with other content."),
    413: ("TooLarge", "Larger than a limit allows."),
    415: ("Unsupported", "The body is compressed."),
    422: ("Invalid", "JSON, but no message: `errors` say where and why."),
    429: ("TooMany", "More than this subject may ask for now."),
    431: ("HeadersTooLarge", "The request's headers are too large."),
    503: (
        "BusUnavailable",
        "The bus is away: nothing is stored. A message with an id may be sent again safely.",
    ),
}
_PROBLEM_HEADERS = {
    401: {
        "WWW-Authenticate": {
            "description": "Bearer, with an RFC 6750 error code.",
            "schema": {"type": "string"},
        }
    },
    429: {
        "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
        "RateLimit": {
            "description": "What is left, and when there is more.",
            "schema": {"type": "string"},
        },
        "RateLimit-Policy": {"description": "What is allowed.", "schema": {"type": "string"}},
    },
    405: {"Allow": {"description": "The methods that are.", "schema": {"type": "string"}}},
    503: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
}


def openapi() -> bytes:
    """The description of the whole API, as JSON."""
    paths = (
        _publishing()
        | _streams()
        | _histories()
        | _access()
        | _connections()
        | _operations()
        | _pages()
    )
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "msgpush",
            "version": API_VERSION,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        # Relative to where this document is, so that it is right under a prefix, too.
        "servers": [{"url": ".", "description": "this service"}],
        "tags": [
            {"name": "Publish", "description": "Send messages."},
            {"name": "Receive", "description": "Get messages, live or from the history."},
            {"name": "Operate", "description": "See and end connections; health and metrics."},
            {"name": "Pages", "description": "For people, and this description."},
        ],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {
                name: _problem(status, text) for status, (name, text) in _PROBLEMS.items()
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
    }
    return msgspec.json.encode(document)


_NOBODY: Json = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "null"}}


def _schemas() -> Json:
    types = [
        Message,
        Receipt,
        History,
        Problem,
        ConnectionList,
        ConnectionStats,
        NewTicket,
        Revoked,
    ]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    _message(schemas["Message"]["properties"])
    schemas["Message"] |= {
        "description": (
            "One message. Unknown fields are refused; a field that is null counts as absent."
        ),
        "if": {"properties": {"type": {"const": "progress"}}},
        "then": {"required": ["data"], "properties": {"data": _ref("Progress")}},
        # A target that names nobody is a mistake, unless the message has channels.
        "anyOf": [
            {"properties": {"target": {"not": _NOBODY}}},
            {
                "required": ["channels"],
                "properties": {"channels": {"type": "array", "minItems": 1}},
            },
        ],
        "examples": [EXAMPLE],
    }
    schemas["Metadata"]["properties"]["retry_count"] = {
        "description": "Deliveries tried and not acknowledged: the server's, ignored on publish.",
        "default": 0,
    }
    schemas["Progress"] = {
        "type": "object",
        "required": ["progress"],
        "properties": {"progress": {"type": "number", "minimum": 0, "maximum": 100}},
    }
    schemas["Delivered"] = {
        "description": "A message as it is delivered: as published, and complete.",
        "allOf": [_ref("Message"), {"required": ["id", "timestamp", "data", "metadata"]}],
        "examples": [DELIVERED_EXAMPLE],
    }
    schemas["History"]["properties"]["messages"] = {"type": "array", "items": _ref("Delivered")}
    _batch(schemas)
    schemas["Health"] = _object(status={"const": "ok"}) | {"examples": [{"status": "ok"}]}
    schemas["Unhealthy"] = _object(status={"const": "unavailable"}, reason={"type": "string"})
    schemas["Details"] = _object(
        status={"const": "ok"},
        bus={"type": "string"},
        connections={"type": "integer", "description": "Streams that are open here."},
    )
    portable: Json = _portable(schemas)
    return portable


def _message(fields: Json) -> None:
    """What the types leave to the code that checks them."""
    fields["timestamp"]["anyOf"][0]["format"] = "date-time"
    fields["timestamp"]["description"] = (
        "RFC 3339, of any offset and precision; kept as UTC with milliseconds."
    )
    fields["id"]["description"] = "A publish with an id is stored once, however often it is sent."
    fields["target"]["description"] = (
        "Whom it is for: `<kind>_id: v` goes to the channel `<kind>:v`."
    )
    fields["target"]["anyOf"][0] |= {
        "maxProperties": MAX_TARGETS,
        "patternProperties": {f"^{NAME_CHARACTER}+_id$": _CHANNEL | {"type": ["string", "null"]}},
        "additionalProperties": {"type": "null"},
    }
    fields["channels"]["description"] = f"The topics it belongs to. A channel's name: {NAME_RULE}."
    fields["channels"]["anyOf"][0] |= {"maxItems": MAX_CHANNELS, "items": _CHANNEL}
    fields["data"] = {
        "type": ["object", "null"],
        "default": {},
        "description": (
            "Any JSON object, passed on untouched; of a `progress` message, with `progress`, 0 to"
            " 100."
        ),
    }


def _batch(schemas: Json) -> None:
    # msgspec describes no unions of structs without tags.
    failed = _object(error=_ref("Problem")) | {
        "description": "Not accepted: what `send` would have answered."
    }
    result = {
        "description": "In the batch's order.",
        "type": "array",
        "items": {"anyOf": [_ref("Receipt"), failed]},
    }
    number = {"type": "integer", "minimum": 0}
    schemas[BatchResult.__name__] = _object(accepted=number, rejected=number, results=result)
    schemas["BatchProblem"] = {
        "description": "A problem, with what became of the items so far.",
        "allOf": [_ref("Problem"), _ref(BatchResult.__name__)],
    }


def _portable(schema: Any) -> Any:
    # Python's \A and \Z are unknown to JSON Schema's regular expressions (ECMA-262).
    if isinstance(schema, dict):
        return {key: _portable(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_portable(value) for value in schema]
    if isinstance(schema, str) and schema.startswith(r"\A") and schema.endswith(r"\Z"):
        return f"^{schema[2:-2]}$"
    return schema


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _ref(name: str) -> Json:
    return {"$ref": _REF.format(name=name)}


def _content(media_type: str, schema: Json, **more: Any) -> Json:
    return {media_type: {"schema": schema, **more}}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": _content("application/json", schema)}


def _problem(status: int, description: str, schema: str = "Problem") -> Json:
    content = _content(_PROBLEM_TYPE, _ref(schema))
    headers = _PROBLEM_HEADERS.get(status)
    return {"description": description, "content": content} | (
        {"headers": headers} if headers else {}
    )


def _answers(*problems: int, **others: Json) -> Json:
    """Responses by status: shared problems, and those of the operation's own (`_202=...`), which
    win.
    """
    shared = {
        str(status): {"$ref": f"#/components/responses/{_PROBLEMS[status][0]}"}
        for status in (*problems, *_ALWAYS)
    }
    responses = shared | {name.removeprefix("_"): answer for name, answer in others.items()}
    return dict(sorted(responses.items()))


def _operation(
    tag: str,
    id: str,
    summary: str,
    responses: Json,
    *,
    parameters: Iterable[Json] = (),
    body: Json | None = None,
) -> Json:
    operation: Json = {"tags": [tag], "operationId": id, "summary": summary, "responses": responses}
    if "401" in responses:
        # Or none: the open modes ask for none.
        operation["security"] = [{"token": []}, {"cookie": []}, {}]
    if given := list(parameters):
        operation["parameters"] = given
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _parameter(name: str, description: str, place: str = "query", **schema: Any) -> Json:
    parameter = {
        "name": name,
        "in": place,
        "description": description,
        "schema": {"type": "string", **schema},
    }
    return {**parameter, "required": True} if place == "path" else parameter


def _repeatable(name: str, description: str, items: Json | None = None) -> Json:
    return _parameter(
        name, f"{description} May be repeated.", type="array", items=items or {"type": "string"}
    )


def _limit(what: str) -> Json:
    return _parameter(
        "limit", f"{what} at most.", type="integer", minimum=1, maximum=1000, default=100
    )


_TOKEN = _parameter("token", "A token, or a ticket, for who can't send the header Authorization.")


def _publishing() -> Json:
    key = _parameter(
        "Idempotency-Key",
        "The message's id, where the body has none.",
        "header",
        pattern='^("[A-Za-z0-9_.:-]{1,128}"|[A-Za-z0-9_.:-]{1,128})$',
    )
    untargeted = {"allOf": [_ref("Message"), {"properties": {"target": {"maxProperties": 0}}}]}
    answers = _answers(
        *_GUARDED,
        409,
        413,
        415,
        422,
        429,
        503,
        _202=_json("Stored: readable by all, from here on.", _ref("Receipt")),
    )

    def publish(id: str, summary: str, schema: Json, example: Json) -> Json:
        body = _content("application/json", schema, example=example)
        return {"post": _operation("Publish", id, summary, answers, parameters=[key], body=body)}

    return {
        "/api/v1/messages/send": publish("send", "Publish a message", _ref("Message"), EXAMPLE),
        "/api/v1/messages/broadcast": publish(
            "broadcast",
            "Publish a message, without target, to every stream",
            untargeted,
            BROADCAST_EXAMPLE,
        ),
        "/api/v1/messages/batch": {"post": _publish_batch()},
    }


def _publish_batch() -> Json:
    answers = _answers(
        *_GUARDED,
        415,
        _202=_json("One is stored, or more: see the results.", _ref("BatchResult")),
        _403=_either(403, "None may be published."),
        _413=_either(413, "Too large, or too many. Lines that had come before are stored."),
        _422=_either(422, "None is valid, or there was none."),
        _429=_either(429, "More than this subject may publish now; none is stored."),
        _503=_either(503, "The bus is away, and took none."),
    )
    array = {"type": "array", "minItems": 1, "maxItems": MAX_ITEMS, "items": _ref("Message")}
    form = {"anyOf": [array, {**_object(messages=array), "additionalProperties": False}]}
    others = ", ".join(NDJSON_TYPES[1:])
    lines = {
        "type": "string",
        "description": f"A message a line (NDJSON), stored as they arrive. Also as {others}.",
    }
    example = [EXAMPLE, BROADCAST_EXAMPLE]
    body = {
        **_content("application/json", form, example=example),
        **_content(NDJSON_TYPES[0], lines, example="".join(f"{_line(each)}\n" for each in example)),
    }
    return _operation(
        "Publish",
        "batch",
        "Publish many messages, each by itself, in their order",
        answers,
        body=body,
    )


def _either(status: int, description: str) -> Json:
    """A problem of the whole request, or of all its items."""
    answer = _problem(status, description)
    answer["content"] = _content(_PROBLEM_TYPE, {"anyOf": [_ref("BatchProblem"), _ref("Problem")]})
    return answer


def _line(message: Json) -> str:
    return msgspec.json.encode(message).decode()


def _streams() -> Json:
    resume = (
        "Continue after this cursor. `earliest`: all that is retained; `latest`, or none: from now."
    )
    types = f"({_EACH})(,({_EACH}))*"
    parameters = [
        _parameter("Last-Event-ID", f"{resume} It wins over the query.", "header", pattern=_CURSOR),
        _parameter("last_event_id", resume, pattern=_CURSOR),
        *(
            _parameter(
                name,
                "As last_event_id, and wins over it: as clients add it on a reconnect.",
                pattern=_CURSOR,
            )
            for name in ("lastEventId", "lastEventID")
        ),
        _repeatable("channel", "A further channel.", _CHANNEL),
        _parameter("types", "Only these types, separated by commas.", pattern=f"^{types}$"),
        _parameter(
            "events",
            "Types that come as events of their name; `*`: all; `none`: none.",
            pattern=rf"^(\*|none|{types})$",
        ),
        _parameter(
            "broadcast", "Whether to listen to broadcasts, too.", type="boolean", default=True
        ),
        _TOKEN,
    ]
    over = {"description": "The cursor is terminal: this client was told never to come back."}

    def stream(id: str, summary: str, name: str, text: str, pattern: str) -> Json:
        given = [_parameter(name, text, "path", pattern=pattern), *parameters]
        content = _content("text/event-stream", {"type": "string"}, example=STREAM_EXAMPLE)
        headers = {
            name: {"schema": {"const": value}}
            for name, value in (
                ("Cache-Control", "no-store, no-transform"),
                ("X-Accel-Buffering", "no"),
            )
        }
        got = _answers(
            *_GUARDED,
            _200={"description": _STREAM, "headers": headers, "content": content},
            _204=over,
        )
        heads = {
            "description": "There is such a stream.",
            "headers": headers,
            "content": {"text/event-stream": {}},
        }
        return {
            "get": _operation("Receive", id, summary, got, parameters=given),
            "head": _operation(
                "Receive",
                id + "Head",
                f"{summary}: only the headers",
                _answers(*_GUARDED, _200=heads, _204=over),
                parameters=given,
            ),
        }

    return {
        "/sse/stream/{channel}": stream(
            "stream",
            "Listen to channels",
            "channel",
            f"A channel, or several, separated by commas. Each: {NAME_RULE}.",
            f"^{NAME_CHARACTER}{{1,200}}(,{NAME_CHARACTER}{{1,200}})*$",
        ),
        "/sse/user/{user_id}": stream(
            "userStream",
            "Listen to a user's channel",
            "user_id",
            "The user.",
            f"^{NAME_CHARACTER}{{1,195}}$",
        ),
        "/sse/service/{service_name}": stream(
            "serviceStream",
            "Listen to all messages of a service",
            "service_name",
            "The publishing service.",
            f"^{NAME_CHARACTER}{{1,192}}$",
        ),
    }


_HISTORY = (
    "Messages, and the cursor after them. After 4 MiB of messages it ends: the cursor continues."
)


def _histories() -> Json:
    parameters = [
        _parameter("channel", f"The channel: {NAME_RULE}.", "path", pattern=_CHANNEL["pattern"]),
        _parameter(
            "after", "A cursor; without one, from the earliest that is retained.", pattern=_CURSOR
        ),
        _limit("Messages"),
    ]
    answers = _answers(*_GUARDED, 503, _200=_json(_HISTORY, _ref("History")))
    summary = "Read a channel's messages without a stream"
    return {
        "/api/v1/channels/{channel}/messages": {
            "get": _operation("Receive", "history", summary, answers, parameters=parameters)
        }
    }


def _access() -> Json:
    channels = {"type": "array", "minItems": 1, "maxItems": MAX_LISTENED, "items": _CHANNEL}
    wanted = _object(channels=channels) | {"additionalProperties": False}
    ticket = _answers(
        *_GUARDED,
        413,
        415,
        422,
        429,
        503,
        _201=_json("To be used within a minute.", _ref(NewTicket.__name__)),
    )
    text = {"type": "string", "minLength": 1}
    moment = {
        "description": "Seconds since 1970, or an RFC 3339 date-time; not in the future.",
        "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "format": "date-time"}],
    }
    one: list[tuple[str, Json]] = [("subject", text), ("jti", text), ("issued_before", moment)]
    meant = {
        "oneOf": [
            _object(**{name: schema}) | {"additionalProperties": False} for name, schema in one
        ]
    }
    revoked = _answers(
        *_GUARDED, 413, 415, 422, 503, _201=_json("They are refused.", _ref(Revoked.__name__))
    )
    return {
        "/api/v1/tickets": {
            "post": _operation(
                "Receive",
                "ticket",
                "Make a ticket, for the `token` parameter of a stream of these channels",
                ticket,
                body=_content("application/json", wanted, example={"channels": ["user:user123"]}),
            )
        },
        "/api/v1/revocations": {
            "post": _operation(
                "Operate",
                "revoke",
                "Refuse tokens from now on, and end the streams that were opened with them",
                revoked,
                body=_content("application/json", meant, example={"subject": "user123"}),
            )
        },
    }


def _connections() -> Json:
    filters = [
        _repeatable("user", "Those that listen to this user's channel."),
        _repeatable("service", "Those that listen to this service's channel."),
        _repeatable("channel", "Those that listen to this channel."),
        _parameter("subject", "Those of this subject."),
        _parameter("node", "Those at this instance."),
        _limit("Connections"),
        _parameter("next", "Where the last answer said that the list goes on."),
    ]
    close = [
        _parameter("id", "The connection's id.", "path"),
        _parameter("reconnect", "Whether its client may come back.", type="boolean", default=True),
    ]
    page = _answers(*_GUARDED, _200=_json("A page of them.", _ref("ConnectionList")))
    totals = _answers(*_GUARDED, _200=_json("The totals.", _ref("ConnectionStats")))
    closed = _answers(*_GUARDED, 404, _204={"description": "It is closed."})
    return {
        "/api/v1/connections": {
            "get": _operation(
                "Operate",
                "connections",
                "The live connections of all instances",
                page,
                parameters=filters,
            )
        },
        "/api/v1/connections/stats": {
            "get": _operation("Operate", "connectionStats", "Totals over all instances", totals)
        },
        "/api/v1/connections/{id}": {
            "delete": _operation(
                "Operate",
                "closeConnection",
                "Close a connection, wherever it is",
                closed,
                parameters=close,
            )
        },
    }


def _operations() -> Json:
    def health(id: str, summary: str, schema: str = "Health") -> Json:
        answers = _answers(
            405, _200=_json("Yes.", _ref(schema)), _503=_json("No, and why.", _ref("Unhealthy"))
        )
        return {"get": _operation("Operate", id, summary, answers)}

    metrics = {
        "description": "In Prometheus's text format.",
        "content": _content("text/plain", {"type": "string"}),
    }
    return {
        "/health": health("health", "Whether the service does its work", "Details"),
        "/health/live": health("live", "Whether the process works"),
        "/health/ready": health("ready", "Whether new requests should come here"),
        "/metrics": {
            "get": _operation(
                "Operate", "metrics", "Metrics", _answers(*_GUARDED[1:], _200=metrics)
            )
        },
    }


def _pages() -> Json:
    def page(id: str, summary: str, media_type: str, schema: Json) -> Json:
        answer = {"description": summary, "content": _content(media_type, schema)}
        return {"get": _operation("Pages", id, summary, _answers(405, _200=answer))}

    file = {"description": "The file.", "content": {"*/*": {}}}
    answers = _answers(404, 405, _200=file, _304={"description": "It is as it was."})
    path = _parameter("path", "The file's path.", "path", examples=["page.css"])
    return {
        "/": page("start", "The start page, with a live stream", "text/html", {"type": "string"}),
        "/docs": page("docs", "This description, as a page", "text/html", {"type": "string"}),
        "/openapi.json": page(
            "openapi", "This description", "application/json", {"type": "object"}
        ),
        "/static/{path}": {
            "get": _operation(
                "Pages", "static", "What the pages are made of", answers, parameters=[path]
            )
        },
    }
