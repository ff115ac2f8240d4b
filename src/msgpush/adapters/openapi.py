"""The API's description (OpenAPI 3.1), assembled from those that stand beside the handlers.

Its schemas are made from the types that the code itself decodes and encodes.
"""

from typing import Any

import msgspec

from msgpush.adapters.auth import explanation, sessions, sign_in
from msgpush.adapters.http import (
    acknowledgements,
    admin,
    connections,
    deliveries,
    devices,
    health,
    history,
    instances,
    pages,
    permissions,
    publish,
    settings,
    statistics,
)
from msgpush.adapters.http.callers import COOKIE
from msgpush.adapters.http.operation import (
    CHANNEL,
    REF,
    Json,
    Operation,
    fields,
    problem_answer,
    ref,
)
from msgpush.adapters.http.problems import Problem
from msgpush.adapters.http.request_ids import RULE
from msgpush.adapters.sse import endpoint as sse
from msgpush.adapters.websocket import endpoint as websocket
from msgpush.domain.channel import MAX_CHANNELS, MAX_TARGETS, NAME_CHARACTER, NAME_RULE
from msgpush.domain.marks import PAGE_PATTERN
from msgpush.domain.message import Message
from msgpush.domain.ports import ConnectionStats
from msgpush.domain.redelivery import Acknowledged
from msgpush.domain.service import History, Receipt

OPERATIONS = (
    *publish.OPERATIONS,
    *sse.OPERATIONS,
    *websocket.OPERATIONS,
    *history.OPERATIONS,
    *acknowledgements.OPERATIONS,
    *deliveries.OPERATIONS,
    *devices.OPERATIONS,
    *permissions.OPERATIONS,
    *connections.OPERATIONS,
    *instances.OPERATIONS,
    *statistics.OPERATIONS,
    *settings.OPERATIONS,
    *explanation.OPERATIONS,
    *sign_in.OPERATIONS,
    *health.OPERATIONS,
    *pages.OPERATIONS,
    *admin.OPERATIONS,
)

API_VERSION = "1"  # of the API, as in its paths; which release serves it, nobody has to know

ASKING_EXAMPLE: Json = {
    "type": "success",
    "service": "importer",
    "target": {"user_id": "user123"},
    "data": {"message": "The import is done."},
    "metadata": {"priority": "high", "ack": {"deadline": 60, "receipt": True}},
}
DELIVERED_EXAMPLE: Json = {
    "id": "msg_1753859400_001",
    "timestamp": "2025-07-30T15:10:00.123Z",
    **publish.EXAMPLE,
    "metadata": {"priority": "normal", "ttl": 3600, "retry_count": 0},
}

_ABOUT = """\
Publish messages over HTTP, receive them over Server-Sent Events or a WebSocket, live and without \
loss.

Every error is a problem (RFC 9457, `application/problem+json`). Unknown fields and \
parameters are refused, but for parameters whose name begins with `_`, and on streams for those \
that polyfills add: `r`, `t`, `evs_...`.
"""

# Any request may be answered with these: see entrypoints/protocol.py, and http/local_only.py.
_ALWAYS = (403, 408, 431)
_PROBLEMS = {
    400: ("Malformed", "The request can't be read; no fault of a message's content."),
    401: ("Unauthorized", "Where there is authentication: no token, or one that isn't valid."),
    403: ("Forbidden", "Not allowed; in local mode: the request doesn't come from this machine."),
    404: ("NotFound", "There is no such thing."),
    405: ("MethodNotAllowed", "Not with this method."),
    408: ("Timeout", "The request's headers or body took too long."),
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


def openapi() -> bytes:
    """The description of the whole API, as JSON."""
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
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
            "schemas": _portable(_schemas()),
            "responses": {
                name: _identified(problem_answer(status, text))
                for status, (name, text) in _PROBLEMS.items()
            },
            "headers": {
                "X-Request-Id": {
                    "description": "The request's: as it was sent, where that is safe, or made.",
                    "schema": {"type": "string", "pattern": f"^{RULE}$"},
                }
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "session": {"type": "apiKey", "in": "cookie", "name": f"__Host-{sessions.COOKIE}"},
            },
        },
    }
    return msgspec.json.encode(document)


def _described(operation: Operation) -> Json:
    answers: dict[int, Json] = {
        status: {"$ref": f"#/components/responses/{_PROBLEMS[status][0]}"}
        for status in (*operation.problems, *_ALWAYS)
    }
    answers |= operation.answers
    described: Json = {
        "tags": [operation.tag],
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": {str(status): _identified(answers[status]) for status in sorted(answers)},
    }
    if 401 in answers:
        # Or none: the open modes ask for none.
        described["security"] = [{"token": []}, {"cookie": []}, {"session": []}, {}]
    if operation.parameters:
        described["parameters"] = operation.parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": operation.body}
    return described


def _identified(answer: Json) -> Json:
    """An answer with the header that all of them have."""
    if "$ref" in answer:
        return answer
    named = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    return {**answer, "headers": {**answer.get("headers", {}), **named}}


_NOBODY: Json = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "null"}}


# A message that asks for an acknowledgement, and what it has to have: somebody who can give it, and
# a key that survives in a path.
_ASKING: Json = {
    "required": ["metadata"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["ack"],
            "properties": {"ack": {"anyOf": [{"const": True}, {"type": "object"}]}},
        }
    },
}
_PUSHED: Json = {
    "required": ["metadata"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["push"],
            "properties": {"push": {"anyOf": [{"const": True}, {"type": "object"}]}},
        }
    },
}
_NO_DOTS: Json = {"not": {"enum": [".", ".."]}}
_ASKED: Json = {
    "required": ["target"],
    "properties": {
        "id": _NO_DOTS,
        "service": _NO_DOTS,
        "target": {
            "type": "object",
            "required": ["user_id"],
            "properties": {"user_id": {"type": "string", **_NO_DOTS}},
        },
    },
}


def _schemas() -> Json:
    """The schemas by name: made from types, completed where these say less than the code checks."""
    types = [
        Message,
        Receipt,
        History,
        Problem,
        connections.ConnectionList,
        ConnectionStats,
        instances.InstanceList,
        statistics.MessageStatistics,
        permissions.NewTicket,
        permissions.Revoked,
        Acknowledged,
        acknowledgements.PendingList,
        deliveries.Delivery,
        deliveries.DeadLetterList,
        deliveries.Redelivered,
        settings.SettingsInForce,
        explanation.Explanation,
        sign_in.SessionState,
        devices.PushKinds,
        devices.RegisteredDevice,
        devices.DeviceList,
    ]
    _, schemas = msgspec.json.schema_components(types, ref_template=REF)
    _complete(schemas["Message"]["properties"])
    schemas["Message"] |= {
        "description": (
            "One message. Unknown fields are refused; a field that is null counts as absent."
        ),
        "if": {"properties": {"type": {"const": "progress"}}},
        "then": {"required": ["data"], "properties": {"data": ref("Progress")}},
        # A target that names nobody is a mistake, unless the message has channels.
        "anyOf": [
            {"properties": {"target": {"not": _NOBODY}}},
            {
                "required": ["channels"],
                "properties": {"channels": {"type": "array", "minItems": 1}},
            },
        ],
        "allOf": [{"if": _ASKING, "then": _ASKED}, {"if": _PUSHED, "then": _ASKED}],
        "examples": [publish.EXAMPLE, ASKING_EXAMPLE],
    }
    _complete_metadata(schemas["Metadata"]["properties"])
    _complete_ack(schemas["Ack"])
    _complete_push(schemas["AskedPush"])
    schemas["Progress"] = fields(progress={"type": "number", "minimum": 0, "maximum": 100})
    schemas["Delivered"] = {
        "description": "A message as it is delivered: as published, and complete.",
        "allOf": [ref(Message), {"required": ["id", "timestamp", "data", "metadata"]}],
        "examples": [DELIVERED_EXAMPLE],
    }
    delivered = {"type": "array", "items": ref("Delivered")}
    schemas["History"]["properties"]["messages"] = delivered
    schemas["PendingList"]["properties"]["messages"] = delivered
    schemas["DeadLetter"]["properties"]["message"] = ref("Delivered")
    return schemas | publish.SCHEMAS | health.SCHEMAS


def _complete(message: Json) -> None:
    """Add to the fields of `Message` what its type leaves to the code that checks them."""
    message["timestamp"]["anyOf"][0]["format"] = "date-time"
    message["timestamp"]["description"] = (
        "RFC 3339, of any offset and precision; kept as UTC with milliseconds."
    )
    message["id"]["description"] = "A publish with an id is stored once, however often it is sent."
    message["target"]["description"] = (
        "Whom it is for: `<kind>_id: v` goes to the channel `<kind>:v`."
    )
    message["target"]["anyOf"][0] |= {
        "maxProperties": MAX_TARGETS,
        "patternProperties": {f"^{NAME_CHARACTER}+_id$": CHANNEL | {"type": ["string", "null"]}},
        "additionalProperties": {"type": "null"},
    }
    message["channels"]["description"] = f"The topics it belongs to. A channel's name: {NAME_RULE}."
    message["channels"]["anyOf"][0] |= {"maxItems": MAX_CHANNELS, "items": CHANNEL}
    message["data"] = {
        "type": ["object", "null"],
        "default": {},
        "description": (
            "Any JSON object, passed on untouched; of a `progress` message, with `progress`, 0 to"
            " 100."
        ),
    }


def _complete_metadata(metadata: Json) -> None:
    metadata["priority"]["description"] = (
        "How urgent it is; `normal`, where it isn't said. It decides which of several messages that"
        " are due is delivered again first, and the order of what is pending, never that of"
        " delivery. A stream may ask for a priority at least."
    )
    metadata["ttl"]["description"] = "Seconds that it is kept; where it isn't said, a setting's."
    metadata["retry_count"] = {
        "description": "Deliveries tried and not acknowledged: the server's, ignored on publish.",
        "default": 0,
    }
    metadata["traceparent"]["description"] = (
        "Where the publisher's trace goes on (W3C Trace Context). It doesn't count where an id is"
        " published again."
    )
    metadata["push"]["description"] = (
        "Has it shown on the devices of the user whom `target.user_id` names, whose pages are"
        " closed: `true`, or how. Refused where nothing can be pushed: see /api/v1/push."
    )
    metadata["ack"]["description"] = (
        "Has it delivered again until a client of the user whom `target.user_id` names has"
        " acknowledged its key, `<service>/<id>`: `true`, or the terms. `false` asks for nothing."
    )


def _complete_ack(ack: Json) -> None:
    ack["description"] = (
        "The terms of an acknowledgement that is asked for; a field that is null counts as absent."
    )
    told = {
        "deadline": "Seconds after which it is due again; each further delivery waits twice as"
        " long, up to an hour, or the deadline itself where that is longer.",
        "deliveries": "How often it is delivered before it is given up: a dead letter.",
        "receipt": "Whether the channel `receipts:<service>` is told what becomes of it.",
        "collapse": "A newer message of the same service, user and text withdraws it.",
    }
    for name, description in told.items():
        ack["properties"][name]["description"] = description


def _complete_push(push: Json) -> None:
    push["description"] = (
        "How it is pushed to the user's devices; a field that is null counts as absent."
    )
    told = {
        "when": "`offline`: once no stream of the user has taken it for a while; `unacknowledged`,"
        " the default where an acknowledgement is asked for: then, or at its first deadline;"
        " `always`: at once, and the only one without an acknowledgement.",
        "title": "What is shown; by default the service's name.",
        "body": "What is shown below it; by default `data.message`, by Web Push alone.",
        "url": "What a click on it opens: a path of the page's own origin, or an https URL.",
        "icon": "A picture, likewise.",
        "collapse": "Of those with the same text only the newest is shown.",
    }
    for name, description in told.items():
        push["properties"][name]["description"] = description
    for name in ("url", "icon"):
        push["properties"][name]["anyOf"][0]["pattern"] = PAGE_PATTERN


def _portable(schema: Any) -> Any:
    # Python's \A and \Z are unknown to JSON Schema's regular expressions (ECMA-262).
    if isinstance(schema, dict):
        return {key: _portable(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_portable(value) for value in schema]
    if isinstance(schema, str) and schema.startswith(r"\A") and schema.endswith(r"\Z"):
        return f"^{schema[2:-2]}$"
    return schema
