"""The API's description (OpenAPI 3.1), made from the types that the code itself decodes and encodes."""

from collections.abc import Iterable
from typing import Any

import msgspec

from msgpush.adapters.connections import ConnectionList
from msgpush.adapters.publish import MAX_ITEMS
from msgpush.adapters.web import Problem
from msgpush.domain.channel import NAME_RULE
from msgpush.domain.message import TYPES, Message
from msgpush.domain.ports import ConnectionStats
from msgpush.domain.service import History, Receipt

Json = dict[str, Any]

EXAMPLE: Json = {
    "type": "progress",
    "service": "knowledge-service",
    "target": {"user_id": "user123"},
    "data": {"progress": 65, "stage": "embedding"},
}
_REF = "#/components/schemas/{name}"


def openapi(version: str) -> bytes:
    """The description of the whole API, as JSON."""
    paths = _publishing() | _streams() | _histories() | _connections() | _operations()
    for path, operations in paths.items():
        for operation in operations.values():
            operation["tags"] = [_tag(path)]
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "msgpush",
            "version": version,
            "description": "Publish messages over HTTP, receive them over Server-Sent Events, live and without loss.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        # Relative to where this document is, so that it is right under a prefix, too.
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    return msgspec.json.encode(document)


def _tag(path: str) -> str:
    if path.startswith("/api/v1/messages/"):
        return "Publish"
    return "Receive" if path.startswith(("/sse/", "/api/v1/channels/")) else "Operate"


def _schemas() -> Json:
    _, schemas = msgspec.json.schema_components(
        [Message, Receipt, History, Problem, ConnectionList, ConnectionStats], ref_template=_REF
    )
    message = schemas["Message"]
    message["description"] = "Unknown fields are refused; null counts as absent."
    message["properties"]["id"]["anyOf"][0]["pattern"] = "^[A-Za-z0-9_.:-]{1,128}$"
    message["properties"]["data"] = {
        "type": "object",
        "default": {},
        "description": "Any JSON object, passed on untouched; of a progress message, with `progress`, 0 to 100.",
    }
    message["properties"]["target"]["anyOf"][0] = {
        "type": "object",
        "maxProperties": 8,
        "propertyNames": {"pattern": "_id$"},
        "additionalProperties": {"type": ["string", "null"]},
    }
    message["properties"]["timestamp"]["description"] = "RFC 3339, with any offset; kept as UTC with milliseconds."
    message["examples"] = [EXAMPLE]
    schemas["History"]["properties"]["messages"] = {"type": "array", "items": _ref("Message")}
    schemas["BatchResult"] = {
        "type": "object",
        "required": ["accepted", "rejected", "results"],
        "properties": {
            "accepted": {"type": "integer"},
            "rejected": {"type": "integer"},
            "results": {
                "type": "array",
                "description": "In the batch's order.",
                "items": {
                    "anyOf": [
                        _ref("Receipt"),
                        {"type": "object", "required": ["error"], "properties": {"error": _ref("Problem")}},
                    ]
                },
            },
        },
    }
    schemas["BatchProblem"] = {"allOf": [_ref("Problem"), _ref("BatchResult")]}
    schemas["Health"] = {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"enum": ["ok", "unavailable"]}, "reason": {"type": "string"}},
    }
    return schemas


def _ref(name: str) -> Json:
    return {"$ref": _REF.format(name=name)}


def _answers(*problems: int, **good: Json) -> Json:
    """Responses: those that are as they should be by `_<status>`, and problems."""
    responses = {name.removeprefix("_"): answer for name, answer in good.items()}
    for status in (*problems, 403):
        responses[str(status)] = {
            "description": _PROBLEMS[status],
            "content": {"application/problem+json": {"schema": _ref("Problem")}},
        }
    return responses


_PROBLEMS = {
    400: "The request can't be read.",
    403: "Not allowed, or, in local mode, not from this machine.",
    404: "There is no such thing.",
    405: "Not with this method.",
    408: "The body took too long.",
    409: "The id was published before, with other content.",
    413: "Too large.",
    415: "The body is compressed.",
    422: "JSON, but no message: `errors` say where and why.",
    503: "The bus is away: try again after Retry-After. A message with an id is stored once, however often it is sent.",
}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _parameter(name: str, description: str, place: str = "query", **schema: Any) -> Json:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": {"type": "string", **schema},
    }


def _publishing() -> Json:
    key = _parameter("Idempotency-Key", "The message's id, where the body has none.", "header")
    problems = (400, 405, 408, 409, 413, 415, 422, 503)
    receipt = _json("Stored: readable by all.", _ref("Receipt"))
    message = {"required": True, "content": {"application/json": {"schema": _ref("Message"), "example": EXAMPLE}}}
    batch = _answers(400, 405, 408, 413, 415, _202=_json("Some or all are stored.", _ref("BatchResult")))
    for status, why in (("422", "Nothing was valid, or there was nothing."), ("503", "The bus is away.")):
        batch[status] = {
            "description": why,
            "content": {"application/problem+json": {"schema": _ref("BatchProblem")}},
        }
    array = {"type": "array", "maxItems": MAX_ITEMS, "items": _ref("Message")}
    form = {"anyOf": [array, {"type": "object", "required": ["messages"], "properties": {"messages": array}}]}
    return {
        "/api/v1/messages/send": {
            "post": _operation("send", "Publish a message", [key], _answers(*problems, _202=receipt), message)
        },
        "/api/v1/messages/broadcast": {
            "post": _operation(
                "broadcast",
                "Publish a message, without target, to every stream",
                [key],
                _answers(*problems, _202=receipt),
                message,
            )
        },
        "/api/v1/messages/batch": {
            "post": _operation(
                "batch",
                "Publish many messages, each by itself, in their order",
                [],
                batch,
                {
                    "required": True,
                    "content": {
                        "application/json": {"schema": form},
                        "application/x-ndjson": {
                            "schema": {"type": "string", "description": "A message a line, stored as they arrive."}
                        },
                    },
                },
            )
        },
    }


def _streams() -> Json:
    types = ", ".join(TYPES)
    resume = "Continue after this cursor; `earliest`: all that is retained; `latest`: from now."
    parameters = [
        _parameter("Last-Event-ID", f"{resume} It wins over the query.", "header", maxLength=128),
        *(_parameter(name, resume, maxLength=128) for name in ("last_event_id", "lastEventId", "lastEventID")),
        _parameter("channel", "A further channel; may be repeated.", type="array", items={"type": "string"}),
        _parameter("types", f"Only these types, separated by commas: {types}."),
        _parameter("events", "Types that come as events of their name; `*`: all; `none`: none."),
        _parameter("broadcast", "Whether to get broadcasts.", type="boolean", default=True),
        _parameter("token", "A token or ticket, where there is authentication."),
    ]
    answers = _answers(
        400,
        405,
        _200={
            "description": "The stream. Where no more can be served, it ends at once with `msgpush.close`, `overload`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        _204={"description": "The cursor is terminal: this client was told never to come back."},
    )
    kinds = {
        "/sse/stream/{channel}": ("stream", "channel", f"A channel, or several, separated by commas. {NAME_RULE}"),
        "/sse/user/{user_id}": ("userStream", "user_id", "The user whose messages are wanted."),
        "/sse/service/{service_name}": ("serviceStream", "service_name", "The service whose messages are wanted."),
    }
    return {
        path: {
            "get": _operation(id, "Receive messages, live", [_parameter(name, text, "path"), *parameters], answers),
            "head": _operation(id + "Head", "Only the headers", [_parameter(name, text, "path"), *parameters], answers),
        }
        for path, (id, name, text) in kinds.items()
    }


def _histories() -> Json:
    parameters = [
        _parameter("channel", f"The channel. {NAME_RULE}", "path"),
        _parameter("after", "A cursor; without one, from the earliest that is retained.", maxLength=128),
        _parameter("limit", "Messages at most.", type="integer", minimum=1, maximum=1000, default=100),
        _parameter("token", "A token or ticket, where there is authentication."),
    ]
    answers = _answers(400, 405, 503, _200=_json("Messages, and the cursor after them.", _ref("History")))
    return {
        "/api/v1/channels/{channel}/messages": {
            "get": _operation("history", "Read a channel's messages without a stream", parameters, answers)
        }
    }


def _connections() -> Json:
    filters = [
        _parameter("user", "Those that listen to this user's channel."),
        _parameter("service", "Those that listen to this service's channel."),
        _parameter("channel", "Those that listen to this channel; may be repeated."),
        _parameter("subject", "Those of this subject."),
        _parameter("node", "Those at this instance."),
        _parameter("limit", "Connections at most.", type="integer", minimum=1, maximum=1000, default=100),
        _parameter("next", "Where the last answer said that the list goes on."),
    ]
    close = [
        _parameter("id", "The connection's id.", "path"),
        _parameter("reconnect", "Whether its client may come back.", type="boolean", default=True),
    ]
    return {
        "/api/v1/connections": {
            "get": _operation(
                "connections",
                "The live connections of all instances",
                filters,
                _answers(400, 405, _200=_json("A page of them.", _ref("ConnectionList"))),
            )
        },
        "/api/v1/connections/stats": {
            "get": _operation(
                "connectionStats",
                "Totals over all instances",
                [],
                _answers(400, 405, _200=_json("The totals.", _ref("ConnectionStats"))),
            )
        },
        "/api/v1/connections/{id}": {
            "delete": _operation(
                "closeConnection",
                "Close a connection, wherever it is",
                close,
                _answers(400, 404, 405, _204={"description": "It is closed."}),
            )
        },
    }


def _operations() -> Json:
    def health(id: str, summary: str) -> Json:
        answers = _answers(405, _200=_json("Yes.", _ref("Health")), _503=_json("No, and why.", _ref("Health")))
        return {"get": _operation(id, summary, [], answers)}

    def page(id: str, summary: str, content_type: str) -> Json:
        content = {content_type: {"schema": {"type": "string"}}}
        return {"get": _operation(id, summary, [], _answers(405, _200={"description": "It.", "content": content}))}

    return {
        "/health": health("health", "Whether the service does its work"),
        "/health/live": health("live", "Whether the process works"),
        "/health/ready": health("ready", "Whether new requests should come here"),
        "/metrics": page("metrics", "Metrics for Prometheus", "text/plain"),
        "/openapi.json": page("openapi", "This description", "application/json"),
        "/docs": page("docs", "This description, as a page", "text/html"),
        "/": page("start", "The start page, with a live stream", "text/html"),
        "/static/{path}": {
            "get": _operation(
                "static",
                "What the pages are made of",
                [_parameter("path", "The file.", "path")],
                _answers(
                    404,
                    405,
                    _200={"description": "The file.", "content": {"*/*": {}}},
                    _304={"description": "As it was."},
                ),
            )
        },
    }


def _operation(id: str, summary: str, parameters: Iterable[Json], responses: Json, body: Json | None = None) -> Json:
    operation = {"operationId": id, "summary": summary, "parameters": list(parameters), "responses": responses}
    return operation if body is None else {**operation, "requestBody": body}
