"""Any request to any operation that the API's description names, valid or not, is answered as the
description says.

Schemathesis makes the requests from the description, so that an operation which is new there is
tried without a word here. They are the same ones each time; `SCHEMA_EXAMPLES=500` in the
environment asks for more of them."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Self

import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, CheckFunction, Response, SerializationContext
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from msgpush.adapters.notify.vapid import new_key, private_text
from msgpush.adapters.openapi import openapi
from tests.support.client import request
from tests.support.service import ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "8"))
NDJSON = "application/x-ndjson"
CURSORS = ("last_event_id", "lastEventId", "lastEventID")

# What doesn't hold for an operation, since the description can't say all of it:
EXCLUDED: dict[str, list[CheckFunction]] = {
    "revoke": [positive_data_acceptance],  # a moment in the future is refused
    # `from` is before `to`, and not before what is kept.
    "messageStatistics": [positive_data_acceptance],
    # Without an upgrade it is a 426, whatever else it says.
    "webSocket": [positive_data_acceptance, negative_data_rejection],
    "registerDevice": [positive_data_acceptance],  # a subscription's keys are points on a curve
    "batch": [
        positive_data_acceptance,
        negative_data_rejection,
    ],  # each message stands alone, and may be a conflict
}
# Operations with which no request succeeds that was made from the description alone.
# Nobody signs in where no provider is set.
NEVER = {
    *("adminEntrance", "closeConnection", "webSocket", "registerDevice"),
    *("signIn", "signedIn", "signOut"),
}
# Operations on messages that ask for acknowledgements: each has one of its own, which is called as
# the operation is, of the service and the user `seeds`.
ALIVE = ("delivery", "withdraw", "pending")
DEAD = ("deadLetters", "redeliver", "deleteDeadLetter")

# The first event of a stream; it is read no further, since it doesn't end.
OPENING = {
    "type": "object",
    "required": ["event", "id", "retry", "data"],
    "properties": {
        "event": {"const": "msgpush.open"},
        "id": {"pattern": "^[A-Za-z0-9_.~-]{1,128}$"},
        "retry": {"minimum": 2000, "maximum": 5000},
        "data": {
            "contentMediaType": "application/json",
            "contentSchema": {"required": ["connection", "channels"]},
        },
    },
}


def described() -> schemathesis.BaseSchema:
    document: dict[str, Any] = msgspec.json.decode(openapi())
    # OpenAPI 3.1 has no words for what is in a stream.
    for operation in [each for path in document["paths"].values() for each in path.values()]:
        answer = (
            operation["responses"].get("200", {}).get("content", {}).get("text/event-stream", {})
        )
        if "schema" in answer:
            answer["schema"] = OPENING
        if (id := operation["operationId"]) in ALIVE + DEAD:
            seeds = {"service": "seeds", "user_id": "seeds", "id": id}
            for each in operation["parameters"]:
                if each["name"] in seeds:
                    each["example"] = seeds[each["name"]]
        content = operation.get("requestBody", {}).get("content", {})
        if NDJSON in content:
            array, _ = content["application/json"]["schema"]["anyOf"]
            content[NDJSON] = {"schema": array}
    schema = schemathesis.openapi.from_dict(document)
    config = schema.config
    config.generation.update(deterministic=True, max_examples=EXAMPLES)
    # Not from answers: these differ from run to run, and so would the requests.
    config.phases.fuzzing.error_feedback.is_enabled = False
    for phase in (config.phases.examples, config.phases.coverage, config.phases.fuzzing):
        phase.extra_data_sources.responses = False
    config.max_stream_events = 1
    config.checks.negative_data_rejection.expected_statuses.append("413")
    return schema


SCHEMA = described()


@schemathesis.serializer(NDJSON)
def lines(_: SerializationContext, value: Any) -> bytes:
    return "\n".join(map(json.dumps, value if isinstance(value, list) else [value])).encode()


def plain(value: Any) -> Any:
    """The same JSON, with integers as such: to JSON Schema 60.0 is one, and as a ttl the service
    doesn't take it.
    """
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Caller:
    """Who makes the requests, and how they were answered."""

    def __init__(self, name: str, port: int, headers: Mapping[str, str]) -> None:
        self.name = name
        self.answered: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._base_url = f"http://127.0.0.1:{port}"
        self._headers = dict(headers)
        self._session = requests.Session()
        self._session.trust_env = False  # what a proxy adds is refused in local mode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def call(self, case: Case[Any]) -> Response:
        """The answer to a request, which is as the description says."""
        id = case.operation.definition.raw["operationId"]
        if case.meta is None or case.meta.generation.mode.is_positive:
            case.body = plain(case.body)
            # Each is valid by itself, and nothing can say that at most one is.
            for extra in [name for name in CURSORS if name in case.query][1:]:
                del case.query[extra]
            if "last" in case.query:
                for other in ("after", "limit"):
                    case.query.pop(other, None)
        # What says the same as something that wins isn't looked at: a wrong one of these is let
        # pass.
        has_id = isinstance(case.body, dict) and case.body.get("id") is not None
        has_cursor = bool(case.headers.get("Last-Event-ID")) and not case.query.keys().isdisjoint(
            CURSORS
        )
        response = case.call_and_validate(
            base_url=self._base_url,
            headers=self._headers,
            session=self._session,
            excluded_checks=EXCLUDED.get(id, [])
            + [negative_data_rejection] * (has_id or has_cursor),
        )
        self.answered[id][response.status_code] += 1
        return response


@pytest.fixture(
    scope="module",
    params=["in local mode", "with every permission", "with none", "without a token"],
)
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    name: str = request.param
    admin = token("tests", subscribe=["*"], publish=["*"], users=["*"], admin=True)
    headers = {"with every permission": bearer(admin), "with none": bearer(token("somebody"))}.get(
        name, {}
    )
    keys: dict[str, Any] = (
        {} if name == "in local mode" else {"jwt_secret": SECRET, "metrics_token": admin}
    )
    keys |= {"vapid_private_key": private_text(new_key()), "vapid_subject": "mailto:a@b.example"}
    with ExitStack() as stack:
        service = stack.enter_context(ThreadedService(**keys))
        seed(service.port, headers)
        caller = stack.enter_context(Caller(name, service.port, headers))
        yield caller
    if name in ("in local mode", "with every permission"):
        refused = {id for id, statuses in caller.answered.items() if min(statuses) >= 300}
        assert refused <= NEVER, "the requests are worth something"


def seed(port: int, headers: Mapping[str, str]) -> None:
    """Have messages that ask for acknowledgements, as far as this caller may publish them."""
    messages = [
        {
            "type": "info",
            "service": "seeds",
            "id": id,
            "target": {"user_id": "seeds"},
            "metadata": {"ack": True, "ttl": 1 if id in DEAD else 600},
        }
        for id in ALIVE + DEAD
    ]
    body = msgspec.json.encode(messages)
    if request(port, "POST", "/api/v1/messages/batch", body, headers).status != 202:
        return
    letters = "/api/v1/dead-letters?service=seeds"
    eventually(
        lambda: len(request(port, "GET", letters, headers=headers).json()["dead_letters"]) == 3
    )


@SCHEMA.parametrize()
@settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case: Case[Any], caller: Caller) -> None:
    response = caller.call(case)
    # Who nobody is, that one says, too.
    asks = "security" in case.operation.definition.raw and case.path != "/admin/session"
    if caller.name == "without a token" and asks:
        assert response.status_code == 204 or response.status_code >= 400
