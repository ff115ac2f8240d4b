"""Permissions on several instances: what one has revoked, made or counted holds for all of them."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec
import pytest

from msgpush.domain.credentials import Revocation
from msgpush.domain.errors import BusUnavailable
from msgpush.entrypoints import cli
from tests.support.client import Response, SseClient, request
from tests.support.redis_servers import RedisServer
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token

ADMIN = bearer(token("root", admin=True, publish=["*"], subscribe=["*"]))


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture(scope="module")
def pair(redis: RedisServer) -> Iterator[list[ServiceProcess]]:
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                ServiceProcess(REDIS_URL=redis.url, JWT_SECRET=SECRET, PUBLISH_RATE="20")
            )
            for _ in range(2)
        ]
        for service in started:
            eventually(partial(is_ready, service))
        yield started


def is_ready(service: ServiceProcess) -> bool:
    return request(service.port, "GET", "/health/ready").status == 200


def post(
    service: ServiceProcess | ThreadedService, path: str, body: Any, headers: dict[str, str] = ADMIN
) -> Response:
    return request(service.port, "POST", f"/api/v1/{path}", msgspec.json.encode(body), headers)


def listen(service: ServiceProcess | ThreadedService, user: str) -> SseClient:
    stream = SseClient(service.port, f"/sse/user/{user}", bearer(token(user)))
    assert stream.status == 200
    assert stream.next().type == "msgpush.open"
    return stream


def test_what_is_revoked_at_one_instance_is_refused_at_all_within_a_second(
    pair: list[ServiceProcess],
) -> None:
    one, other = pair
    with listen(one, "eve") as here, listen(other, "eve") as there, listen(other, "bob") as stays:
        began = time.monotonic()
        assert post(one, "revocations", {"subject": "eve"}).status == 201
        for stream in (here, there):
            assert stream.rest()[-1].data == '{"reason":"revoked","reconnect":false}'
        assert time.monotonic() - began < 1.0 + 2.0, "a second, and slack for a busy machine"
        for service in pair:
            answer = request(
                service.port,
                "GET",
                "/sse/user/eve",
                headers=bearer(token("eve", iat=int(time.time()) - 9)),
            )
            assert answer.status == 401
        assert not stays.ended


def test_an_instance_that_starts_later_knows_what_was_revoked_before_it_serves(
    redis: RedisServer, pair: list[ServiceProcess]
) -> None:
    old = bearer(token("mallory", admin=True))
    assert post(pair[0], "revocations", {"subject": "mallory"}).status == 201
    with ServiceProcess(REDIS_URL=redis.url, JWT_SECRET=SECRET) as late:
        # From the very first answer: what isn't known yet is 503, never 200.
        statuses = set()
        while (
            status := request(late.port, "GET", "/api/v1/connections", headers=old).status
        ) != 401:
            statuses.add(status)
        assert statuses <= {503}
        assert request(late.port, "GET", "/api/v1/connections", headers=ADMIN).status == 200


def test_a_revocation_that_is_made_while_an_instance_has_lost_redis_reaches_it(
    redis: RedisServer,
) -> None:
    with (
        ThreadedService(redis_url=redis.url, jwt_secret=SECRET) as away,
        ThreadedService(redis_url=redis.url, jwt_secret=SECRET) as here,
    ):
        for service in (away, here):
            eventually(lambda service=service: service.push.ready)  # type: ignore[misc]
        link: Any = away.push._bus._tail_link  # type: ignore[attr-defined]
        call, cut = link.call, True

        async def failing(*command: str | bytes | int) -> object:
            if cut:
                await link.drop()
                raise BusUnavailable("cut off")
            return await call(*command)

        with listen(away, "carol") as stream:
            link.call = failing
            eventually(lambda: not away.push._bus.reachable)
            assert post_revocation(here, "carol").status == 201
            with pytest.raises(TimeoutError):
                stream.next(0.5)
            cut = False
            assert stream.rest()[-1].data == '{"reason":"revoked","reconnect":false}'


def post_revocation(service: ThreadedService, subject: str) -> Response:
    return post(service, "revocations", {"subject": subject})


def test_revocations_outlive_a_log_that_has_lost_its_end(redis: RedisServer) -> None:
    with ThreadedService(redis_url=redis.url, jwt_secret=SECRET) as service:
        eventually(lambda: service.push.ready)
        with listen(service, "dave") as stream:
            credentials: Any = service.push._permissions._credentials
            # Kept, while its command went down with the end of the log.
            service.call(lambda: credentials.revoke(Revocation("subject", "dave", time.time())))
            with redis.client() as client:
                client.delete("{msgpush}:head", "{msgpush}:log")
            assert stream.rest()[-1].data == '{"reason":"revoked","reconnect":false}'


def test_whoever_fills_redis_can_be_stopped(redis: RedisServer, pair: list[ServiceProcess]) -> None:
    headers = bearer(token("flood", publish=["*"]))
    message = {"type": "info", "service": "flood"}
    with redis.client() as client, listen(pair[1], "flood") as stream:
        client.config_set("maxmemory", "1")
        try:
            assert post(pair[0], "messages/send", message, headers).status == 503
            assert post(pair[0], "revocations", {"subject": "flood"}).status == 201
            assert stream.rest()[-1].data == '{"reason":"revoked","reconnect":false}'
        finally:
            client.config_set("maxmemory", "0")
        for service in pair:
            assert post(service, "messages/send", message, headers).status == 401


def test_a_ticket_of_one_instance_opens_a_stream_at_another_which_ends_the_first(
    pair: list[ServiceProcess],
) -> None:
    one, other = pair
    made = post(one, "tickets", {"channels": ["user:bob"]}, bearer(token("bob")))
    assert made.status == 201
    target = f"/sse/user/bob?token={made.json()['ticket']}"
    with SseClient(one.port, target) as first, SseClient(other.port, target) as second:
        assert first.next().type == "msgpush.open"
        assert first.rest()[-1].data == '{"reason":"disconnected","reconnect":false}'
        assert second.next().type == "msgpush.open"
        with SseClient(one.port, target) as third:
            assert second.rest()[-1].data == '{"reason":"disconnected","reconnect":false}'
            assert third.next().type == "msgpush.open"
            assert (
                post(
                    one,
                    "messages/send",
                    {"type": "info", "service": "a", "target": {"user_id": "bob"}},
                ).status
                == 202
            )
            assert msgspec.json.decode(third.next().data)["target"] == {"user_id": "bob"}


def test_a_rate_is_one_for_all_instances(pair: list[ServiceProcess]) -> None:
    headers = bearer(token("fast", publish=["*"]))
    items = [{"type": "info", "service": "a"}] * 20
    first = post(pair[0], "messages/batch", items, headers)
    assert first.json()["accepted"] == 20
    second = post(pair[1], "messages/batch", items, headers)
    accepted = second.json()["accepted"]
    assert accepted < 20, "it had a second at most to fill again"
    answer = post(pair[1], "messages/batch", items * 20, headers)
    assert {each["error"]["status"] for each in answer.json()["results"] if "error" in each} == {
        429
    }


def test_while_redis_is_away_a_ticket_is_put_off_and_a_publish_is_told_within_two_seconds(
    redis: RedisServer,
) -> None:
    with ServiceProcess(REDIS_URL=redis.url, JWT_SECRET=SECRET, PUBLISH_RATE="1000") as service:
        eventually(lambda: request(service.port, "GET", "/health/ready").status == 200)
        made = post(service, "tickets", {"channels": ["user:bob"]}, bearer(token("bob"))).json()[
            "ticket"
        ]
        redis.pause()
        try:
            began = time.monotonic()
            answer = post(service, "messages/send", {"type": "info", "service": "a"})
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert time.monotonic() - began < 2.0 + 2.0, "two seconds, and slack for a busy machine"
            stream = request(service.port, "GET", f"/sse/user/bob?token={made}")
            assert stream.status == 200
            assert b'{"reason":"overload","reconnect":true}' in stream.body
            assert (
                post(service, "tickets", {"channels": ["user:bob"]}, bearer(token("bob"))).status
                == 503
            )
            assert post(service, "revocations", {"subject": "zoe"}).status == 503
        finally:
            redis.resume()
        with SseClient(service.port, f"/sse/user/bob?token={made}") as stream_again:
            assert stream_again.status == 200


def test_the_command_knows_what_was_revoked(
    redis: RedisServer, pair: list[ServiceProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"REDIS_URL": redis.url, "JWT_SECRET": SECRET}
    given = token("trudy")
    assert cli.run(["token", "inspect", given], environ) == 0
    assert post(pair[0], "revocations", {"subject": "trudy"}).status == 201
    assert cli.run(["token", "inspect", given], environ) == 1
    assert (
        "refused: the token is refused: its subject's tokens have been revoked"
        in capsys.readouterr().out
    )
    environ["REDIS_URL"] = "redis://127.0.0.1:1"
    assert cli.run(["token", "inspect", given], environ) == 0
    assert "(Whether it was revoked can't be told: " in capsys.readouterr().out
