"""The client's exchange with a service: what is asked, when again, and when no more."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
import pytest

from msgpush.client import Rejected, Sent, Unavailable
from msgpush.client.exchange import (
    BATCH_BYTES,
    BATCH_MESSAGES,
    PATIENCE,
    Answer,
    Backoff,
    Call,
    Exchange,
    Failure,
    Wait,
    ask,
    delivery_path,
    publish,
    publish_all,
    retry_after,
)
from msgpush.client.messages import Defaults, Item, item

T = TypeVar("T")
Reply = Answer | Failure
HTML = b"<html><body>It works!</body></html>"


class Service:
    """What a service answers, request by request, in a time of its own."""

    def __init__(self, reply: Callable[[Call], Reply]) -> None:
        self._reply = reply
        self.now = 1000.0
        self.calls: list[Call] = []
        self.waits: list[float] = []

    def run(self, exchange: Exchange[T]) -> T:
        try:
            step = next(exchange)
            while True:
                if isinstance(step, Wait):
                    self.now += step.seconds
                    self.waits.append(step.seconds)
                    step = exchange.send(Failure(step.cause))
                else:
                    self.calls.append(step)
                    step = exchange.send(self._reply(step))
        except StopIteration as end:
            result: T = end.value
            return result

    def clock(self) -> float:
        return self.now


def scripted(*replies: Reply) -> Service:
    """A service that answers so, one after the other; and then with the last."""
    left = list(replies)
    return Service(lambda _: left.pop(0) if len(left) > 1 else left[0])


def messages(count: int, size: int = 0) -> list[Item]:
    data = {"filling": "x" * size}
    return [item(Defaults("tests"), "info", data, {"id": f"m{n}"}) for n in range(count)]


def answer(status: int, body: Any = None, **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body or {})
    return Answer(status, {name.replace("_", "-"): text for name, text in headers.items()}, raw)


def problem(status: int, detail: str = "no", pointer: str = "") -> dict[str, Any]:
    errors = [{"pointer": pointer, "detail": detail}] if pointer else []
    return {"title": "An error", "status": status, "detail": detail, "errors": errors}


def receipt(id: str, *, duplicate: bool = False) -> dict[str, Any]:
    return {
        "id": id,
        "timestamp": "",
        "channels": ["a"],
        "cursor": f"c-{id}",
        "duplicate": duplicate,
    }


def ids(call: Call) -> list[str]:
    return [msgspec.json.decode(line)["id"] for line in call.body.splitlines()]


def results(call: Call, judge: Callable[[str], dict[str, Any] | None] = lambda _: None) -> Answer:
    """The answer to a batch; `judge` gives the problems of those that are not accepted."""
    told = [{"error": error} if (error := judge(id)) else receipt(id) for id in ids(call)]
    return answer(202, {"results": told})


# A request


def test_what_fails_is_tried_again_until_it_works() -> None:
    service = scripted(
        Failure("refused"), answer(503, problem(503)), answer(429, problem(429)), answer(200)
    )
    assert service.run(ask(Call("GET", "/"), service.clock)).status == 200
    assert len(service.calls) == 4


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_is_tried_again(status: int) -> None:
    service = scripted(answer(status, HTML), answer(204))
    service.run(ask(Call("DELETE", "/"), service.clock))
    assert len(service.waits) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 403, 404, 405, 409, 413, 422])
def test_what_stays_as_it_is_is_not_tried_again(status: int) -> None:
    service = scripted(answer(status, HTML))
    with pytest.raises(Rejected, match="is the URL right") as caught:
        service.run(ask(Call("GET", "/"), service.clock, "tests/m0"))
    assert (caught.value.status, caught.value.key) == (status, "tests/m0")
    assert not service.waits


def test_waits_grow_and_are_never_in_step() -> None:
    service = scripted(*[Failure("refused")] * 12, answer(200))
    service.run(ask(Call("GET", "/"), service.clock))
    assert 0.05 <= service.waits[0] <= 0.1
    assert all(5 <= each <= 10 for each in service.waits[-3:])
    assert len({*service.waits}) == len(service.waits)


def test_after_five_minutes_it_is_given_up_by_name() -> None:
    service = scripted(Failure("connection refused"))
    with pytest.raises(Unavailable, match="tests/m0: connection refused") as caught:
        service.run(publish(messages(1)[0], service.clock))
    assert caught.value.keys == ("tests/m0",)
    assert PATIENCE - 11 < service.now - 1000 <= PATIENCE
    assert len({call.body for call in service.calls}) == 1, "each try has the same id"


def test_a_service_that_hangs_each_time_has_five_minutes_as_well() -> None:
    def hang(_: Call) -> Reply:
        service.now += 15
        return Failure("timed out")

    service = Service(hang)
    with pytest.raises(Unavailable):
        service.run(publish(messages(1)[0], service.clock))
    assert service.now - 1000 <= PATIENCE + 30


def test_a_refused_token_is_replaced_once() -> None:
    service = scripted(answer(401, problem(401)), answer(200))
    service.run(ask(Call("GET", "/"), service.clock))
    assert [call.fresh for call in service.calls] == [False, True]
    service = scripted(answer(401, problem(401, "expired")))
    with pytest.raises(Rejected, match="401, expired"):
        service.run(ask(Call("GET", "/"), service.clock))
    assert [call.fresh for call in service.calls] == [False, True]


def test_a_token_that_ends_while_the_service_is_away_is_replaced_too() -> None:
    service = scripted(
        answer(401, problem(401)), Failure("refused"), answer(401, problem(401)), answer(200)
    )
    service.run(ask(Call("GET", "/"), service.clock))
    assert [call.fresh for call in service.calls] == [False, True, False, True]


# Retry-After


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("3600", 60, 60),
        ("9" * 400, 60, 60),
        ("", 0, 0),
        ("-5", 0, 0),
        ("1.5", 0, 0),
        ("soon", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00", 0, 0),
        ("Wed Oct 21 07:28:00 2015", 0, 0),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0, 0),
        ("Wed, 21 Oct 99999 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 +999999", 0, 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60, 60),
    ],
)
def test_how_long_a_service_wants_to_be_left_alone(text: str, least: float, most: float) -> None:
    assert least <= retry_after({"retry-after": text}) <= most


@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
def test_a_date_says_it_too(form: str) -> None:
    date = datetime.now(UTC) + timedelta(seconds=30)
    assert 28 <= retry_after({"retry-after": date.strftime(form)}) <= 30
    assert 28 <= retry_after({"retry-after": format_datetime(date)}) <= 30


def test_a_service_is_left_alone_for_as_long_as_it_asks() -> None:
    service = scripted(answer(503, problem(503), retry_after="7"), answer(200))
    service.run(ask(Call("GET", "/"), service.clock))
    assert 7 <= service.waits[0] <= 7.1


def test_a_wait_that_is_too_long_ends_it() -> None:
    service = scripted(answer(429, problem(429, "slowly"), retry_after="3600"))
    with pytest.raises(Unavailable, match="429, slowly"):
        service.run(ask(Call("GET", "/"), service.clock))
    assert len(service.calls) == 5, "a minute each"


def test_backoff_doubles_and_begins_anew() -> None:
    backoff = Backoff(chance=lambda: 1.0)
    waits = [backoff.wait() for _ in range(10)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(waits) == 10
    assert all(b >= a for a, b in pairwise(waits))
    backoff.reset()
    assert backoff.wait(at_least=3) == 3.1


# One message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, HTML),
        (202, HTML),
        (202, b"\xff\xfe"),
        (202, b'{"id": "\xff"}'),
        (202, b""),
        (202, b"{}"),
        (202, b"[]"),
        (202, b'{"id": 7}'),
        (200, b'{"id": "m0"}'),
        (204, b""),
    ],
)
def test_an_answer_of_something_else_is_no_success(status: int, body: bytes) -> None:
    service = scripted(answer(status, body))
    with pytest.raises(Rejected, match=f"{status}, ") as caught:
        service.run(publish(messages(1)[0], service.clock))
    assert caught.value.key == "tests/m0"
    [verdict] = service.run(publish_all(messages(1), service.clock))
    assert isinstance(verdict, Rejected)


def test_what_is_wrong_is_named_with_message_and_field() -> None:
    service = scripted(answer(422, problem(422, "it must be a number", "/data/progress")))
    with pytest.raises(Rejected, match="tests/m0: 422, it must be a number") as caught:
        service.run(publish(messages(1)[0], service.clock))
    [fault] = caught.value.faults
    assert (fault.pointer, fault.detail) == ("/data/progress", "it must be a number")


# A batch


def test_each_message_of_a_batch_has_a_verdict_of_its_own() -> None:
    def judge(id: str) -> dict[str, Any] | None:
        return {"m1": problem(422, "wrong", "/type"), "m3": problem(409, "other content")}.get(id)

    service = Service(lambda call: results(call, judge))
    verdicts = service.run(publish_all(messages(5), service.clock))
    assert [isinstance(each, Sent) for each in verdicts] == [True, False, True, False, True]
    wrong, conflict = verdicts[1], verdicts[3]
    assert isinstance(wrong, Rejected)
    assert isinstance(conflict, Rejected)
    assert (wrong.key, wrong.faults[0].pointer) == ("tests/m1", "/type")
    assert (conflict.key, conflict.status) == ("tests/m3", 409)
    assert len(service.calls) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_those_that_may_pass_are_tried_again_alone(status: int) -> None:
    busy = [{"m1", "m3"}, {"m1"}, set()]

    def reply(call: Call) -> Reply:
        now = busy.pop(0)
        return results(call, lambda id: problem(status, "busy") if id in now else None)

    service = Service(reply)
    verdicts = service.run(publish_all(messages(5), service.clock))
    assert [each.key for each in verdicts if isinstance(each, Sent)] == [
        f"tests/m{n}" for n in range(5)
    ]
    assert [ids(call) for call in service.calls] == [
        ["m0", "m1", "m2", "m3", "m4"],
        ["m1", "m3"],
        ["m1"],
    ]


def test_a_batch_that_nobody_takes_is_given_up_by_name() -> None:
    service = scripted(Failure("refused"))
    verdicts = service.run(publish_all(messages(3), service.clock))
    assert [each.keys for each in verdicts if isinstance(each, Unavailable)] == [
        ("tests/m0",),
        ("tests/m1",),
        ("tests/m2",),
    ]


def test_one_message_that_is_never_taken_gives_up_alone() -> None:
    service = Service(
        lambda call: results(call, lambda id: problem(503, "full") if id == "m1" else None)
    )
    verdicts = service.run(publish_all(messages(3), service.clock))
    assert [type(each) for each in verdicts] == [Sent, Unavailable, Sent]
    assert service.now - 1000 <= PATIENCE


def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_doubled() -> None:
    stored: dict[str, int] = {}

    def reply(call: Call) -> Reply:
        for id in ids(call):
            stored[id] = stored.get(id, 0) + 1
        if len(service.calls) == 1:
            return Failure("closed in the middle of the answer")
        return answer(202, {"results": [receipt(id, duplicate=True) for id in ids(call)]})

    service = Service(reply)
    verdicts = service.run(publish_all(messages(3), service.clock))
    assert [each.duplicate for each in verdicts if isinstance(each, Sent)] == [True] * 3
    assert [ids(call) for call in service.calls] == [["m0", "m1", "m2"]] * 2


def test_a_line_that_is_too_large_is_named_and_the_rest_follows() -> None:
    def reply(call: Call) -> Reply:
        told = ids(call)
        if "m2" not in told:
            return results(call)
        before = told[: told.index("m2")]
        body = problem(413, "a line of the batch is too large")
        return answer(413, body | {"results": [receipt(id) for id in before]})

    service = Service(reply)
    verdicts = service.run(publish_all(messages(5), service.clock))
    assert [type(each) for each in verdicts] == [Sent, Sent, Rejected, Sent, Sent]
    large = verdicts[2]
    assert isinstance(large, Rejected)
    assert (large.key, large.status) == ("tests/m2", 413)
    assert [ids(call) for call in service.calls] == [["m0", "m1", "m2", "m3", "m4"], ["m3", "m4"]]


def test_a_proxy_that_takes_smaller_batches_gets_them() -> None:
    def reply(call: Call) -> Reply:
        return answer(413, HTML) if len(call.body) > 1500 else results(call)

    service = Service(reply)
    items = [*messages(20, 300), *messages(1, 3000)]
    verdicts = service.run(publish_all(items, service.clock))
    assert [type(each) for each in verdicts] == [Sent] * 20 + [Rejected]
    accepted = [ids(call) for call in service.calls if len(call.body) <= 1500]
    assert [id for some in accepted for id in some] == [f"m{n}" for n in range(20)]
    assert not service.waits


def test_batches_keep_to_their_limits_and_their_order() -> None:
    service = Service(results)
    items = messages(2500, 700)
    verdicts = service.run(publish_all(items, service.clock))
    assert all(isinstance(each, Sent) for each in verdicts)
    assert all(len(call.body) <= BATCH_BYTES for call in service.calls)
    assert max(len(ids(call)) for call in service.calls) <= BATCH_MESSAGES
    assert [id for call in service.calls for id in ids(call)] == [f"m{n}" for n in range(2500)]


def test_a_message_larger_than_a_batch_goes_alone() -> None:
    service = Service(results)
    items = [*messages(1), *messages(1, BATCH_BYTES), *messages(1)]
    service.run(publish_all(items, service.clock))
    assert [len(ids(call)) for call in service.calls] == [1, 1, 1]


def test_a_broadcast_goes_alone_at_its_place() -> None:
    def reply(call: Call) -> Reply:
        return answer(202, receipt("m9")) if call.path.endswith("/broadcast") else results(call)

    service = Service(reply)
    said = item(Defaults("tests"), "info", {}, {"id": "m9"}, broadcast=True)
    verdicts = service.run(publish_all([*messages(2), said, *messages(1)], service.clock))
    assert all(isinstance(each, Sent) for each in verdicts)
    assert [call.path.rsplit("/")[-1] for call in service.calls] == ["batch", "broadcast", "batch"]


def test_a_batch_whose_token_is_refused_goes_with_a_new_one() -> None:
    service = scripted(
        answer(401, problem(401)), answer(202, {"results": [receipt("m0"), receipt("m1")]})
    )
    verdicts = service.run(publish_all(messages(2), service.clock))
    assert [type(each) for each in verdicts] == [Sent, Sent]
    assert [call.fresh for call in service.calls] == [False, True]
    assert not service.waits


def test_a_token_that_ends_within_a_batch_sends_the_rest_with_a_new_one() -> None:
    def reply(call: Call) -> Reply:
        return results(
            call, lambda id: problem(401) if id in ("m2", "m3") and not call.fresh else None
        )

    service = Service(reply)
    verdicts = service.run(publish_all(messages(4), service.clock))
    assert [type(each) for each in verdicts] == [Sent] * 4
    assert [ids(call) for call in service.calls] == [["m0", "m1", "m2", "m3"], ["m2", "m3"]]


def test_a_batch_that_is_never_authorized_ends() -> None:
    service = scripted(answer(401, problem(401)))
    verdicts = service.run(publish_all(messages(2), service.clock))
    assert [type(each) for each in verdicts] == [Rejected, Rejected]
    assert len(service.calls) == 2


@pytest.mark.parametrize(
    "body", [HTML, b'{"results"', b'{"results": 7}', b'{"results": [{"id": "\xff"}]}', b""]
)
def test_a_batch_s_answer_that_is_none_is_told_of_each(body: bytes) -> None:
    service = scripted(answer(200, body))
    verdicts = service.run(publish_all(messages(2), service.clock))
    assert [each.key for each in verdicts if isinstance(each, Rejected)] == ["tests/m0", "tests/m1"]


def test_nothing_is_nothing() -> None:
    service = Service(results)
    empty: Sequence[Item] = []
    assert service.run(publish_all(empty, service.clock)) == []
    assert not service.calls


# Keys


@pytest.mark.parametrize("key", ["", "a", "/a", "a/", "/"])
def test_what_is_no_key_is_told(key: str) -> None:
    with pytest.raises(ValueError, match="must be <service>/<id>"):
        delivery_path(key)


def test_a_key_is_quoted() -> None:
    assert delivery_path("a b/c?d") == "/api/v1/messages/a%20b/c%3Fd/delivery"
