"""Operations, as the API's description (OpenAPI 3.1) tells them. Each stands beside its handler."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgpush.domain.channel import NAME_CHARACTER
from msgpush.domain.position import MAX_CURSOR

Json = dict[str, Any]

CURSOR = f"^[A-Za-z0-9_.~-]{{0,{MAX_CURSOR}}}$"
CHANNEL: Json = {"type": "string", "pattern": f"^{NAME_CHARACTER}{{1,200}}$"}

# The problems of every operation that asks for credentials.
GUARDED = (400, 401, 405)

REF = "#/components/schemas/{name}"
_PROBLEM_TYPE = "application/problem+json"
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_PROBLEM_HEADERS = {
    401: {
        "WWW-Authenticate": {
            "description": "Bearer, with an RFC 6750 error code.",
            "schema": {"type": "string"},
        }
    },
    405: {"Allow": {"description": "The methods that are.", "schema": {"type": "string"}}},
    429: {
        **_RETRY_AFTER,
        "RateLimit": {
            "description": "What is left, and when there is more.",
            "schema": {"type": "string"},
        },
        "RateLimit-Policy": {"description": "What is allowed.", "schema": {"type": "string"}},
    },
    503: _RETRY_AFTER,
}


class Operation(NamedTuple):
    """One method of one path.

    `problems` are the statuses of problems that operations share; among `answers` are the others,
    and they win.
    """

    method: str
    path: str
    tag: str
    id: str
    summary: str
    answers: Mapping[int, Json]
    problems: Sequence[int] = GUARDED
    parameters: Sequence[Json] = ()
    body: Json | None = None


def ref(schema: type | str) -> Json:
    """A reference to a schema, by its type or its name."""
    return {"$ref": REF.format(name=schema if isinstance(schema, str) else schema.__name__)}


def fields(**properties: Json) -> Json:
    """The schema of an object that has these fields."""
    return {"type": "object", "required": list(properties), "properties": properties}


def content(media_type: str, schema: Json, **more: Any) -> Json:
    """Content of one type, for a body or an answer."""
    return {media_type: {"schema": schema, **more}}


def json_answer(description: str, schema: type | str) -> Json:
    """An answer in JSON."""
    return {"description": description, "content": content("application/json", ref(schema))}


def problem_answer(status: int, description: str, *schemas: str) -> Json:
    """A problem, or something of one of these schemas."""
    schema = {"anyOf": [ref(each) for each in (*schemas, "Problem")]} if schemas else ref("Problem")
    answer: Json = {"description": description, "content": content(_PROBLEM_TYPE, schema)}
    if headers := _PROBLEM_HEADERS.get(status):
        answer["headers"] = headers
    return answer


def parameter(name: str, description: str, place: str = "query", **schema: Any) -> Json:
    """A parameter; a text, where the schema doesn't say otherwise."""
    found = {
        "name": name,
        "in": place,
        "description": description,
        "schema": {"type": "string", **schema},
    }
    return {**found, "required": True} if place == "path" else found


def repeatable(name: str, description: str, items: Json | None = None) -> Json:
    """A parameter of the query that may come more than once."""
    return parameter(
        name, f"{description} May be repeated.", type="array", items=items or {"type": "string"}
    )


def limit(what: str) -> Json:
    """The parameter that says how many of something are asked for."""
    return parameter(
        "limit", f"{what} at most.", type="integer", minimum=1, maximum=1000, default=100
    )
