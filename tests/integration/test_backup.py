"""A Redis that is restored from a backup, by the steps of docs/operations.md: whoever reads is told,
and what was kept is there.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from msgpush.adapters.redis.link import HASH_TAG
from tests.support.asking import body_of, key
from tests.support.client import SseClient, request
from tests.support.eventsource import Event
from tests.support.outbox_audit import audit
from tests.support.publishing import history
from tests.support.redis_servers import RedisServer, wait_for
from tests.support.service import ServiceProcess, eventually


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def directory(server: RedisServer) -> Path:
    with server.client() as client:
        return Path(client.config_get("dir")["dir"])


def back_up(server: RedisServer, to: Path) -> None:
    with server.client() as client:
        client.save()
    shutil.copy(directory(server) / "dump.rdb", to)


def restore(server: RedisServer, backup: Path) -> None:
    """The server comes back with the backup's file in the place of its own."""
    place = directory(server)
    server.kill()
    shutil.copy(backup, place / "dump.rdb")
    server.start()


def started(stack: ExitStack, server: RedisServer) -> ServiceProcess:
    service = stack.enter_context(ServiceProcess(REDIS_URL=server.url, DRAIN_SECONDS="0.2"))
    eventually(lambda: request(service.port, "GET", "/health/ready").status == 200)
    return service


def send(service: ServiceProcess, body: bytes) -> str:
    answer = request(service.port, "POST", "/api/v1/messages/send", body)
    assert answer.status == 202, answer.body
    cursor: str = answer.json()["cursor"]
    return cursor


def plain(id: str) -> bytes:
    return msgspec.json.encode({"id": id, "type": "info", "service": "tests", "channels": ["a"]})


def ids(events: list[Event]) -> list[str]:
    return [msgspec.json.decode(each.data)["id"] for each in events if each.type == "message"]


def stored(service: ServiceProcess) -> list[str]:
    return [each["id"] for each in history(service.port, "a")]


def reset(event: Event) -> bool:
    return event.type == "msgpush.gap" and msgspec.json.decode(event.data)["reason"] == "reset"


def acknowledge(service: ServiceProcess, id: str) -> None:
    body = msgspec.json.encode({"keys": [key(id)]})
    answer = request(service.port, "POST", "/api/v1/users/bob/acknowledgements", body)
    assert answer.status == 200


def test_after_the_documented_restore_every_reader_is_told_and_has_what_the_backup_has(
    redis: RedisServer, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        before = started(stack, redis)
        cursors = [send(before, plain(f"kept{n}")) for n in range(3)]
        send(before, body_of("asked", user="bob"))
        back_up(redis, tmp_path / "backup.rdb")
        cursors += [send(before, plain(f"lost{n}")) for n in range(3)]
        acknowledge(before, "asked")
        before.__exit__()

        # 1. instances are stopped, 2. the file, 3. the log's name, 4. instances again
        restore(redis, tmp_path / "backup.rdb")
        with redis.client() as client:
            assert client.hdel(f"{HASH_TAG}:head", "epoch") == 1
        after = started(stack, redis)

        assert stored(after) == ["kept0", "kept1", "kept2"]
        for cursor in cursors:
            with SseClient(after.port, "/sse/stream/a", {"Last-Event-ID": cursor}) as stream:
                assert stream.next().type == "msgpush.open"
                assert reset(stream.next()), f"a reader at {cursor} was told nothing"
        with SseClient(after.port, "/sse/stream/a", {"Last-Event-ID": cursors[-1]}) as stream:
            send(after, plain("new"))
            came = stream.take(2)
            while ids(came)[-1:] != ["new"]:
                came.append(stream.next())
            assert ids(came) == ["kept0", "kept1", "kept2", "new"]
        # What was accepted and lost may be published again, under its id.
        send(after, plain("lost0"))
        assert stored(after) == ["kept0", "kept1", "kept2", "new", "lost0"]
        # An acknowledgement since the backup is gone, too: its message waits again.
        told = request(after.port, "GET", f"/api/v1/messages/{key('asked')}/delivery").json()
        assert told["state"] in ("accepted", "written")
        acknowledge(after, "asked")
        with redis.client() as client:
            audit(client)


def test_instances_that_stay_up_over_a_restore_notice_it_by_themselves(
    redis: RedisServer, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        services = [started(stack, redis) for _ in range(2)]
        streams = [stack.enter_context(SseClient(each.port, "/sse/stream/a")) for each in services]
        send(services[0], plain("kept"))
        back_up(redis, tmp_path / "backup.rdb")
        send(services[0], plain("lost"))
        for each in streams:
            assert ids(each.take(3)) == ["kept", "lost"]
        restore(redis, tmp_path / "backup.rdb")
        for each in streams:
            while not reset(event := each.next(30)):
                assert event.type == "msgpush.heartbeat"
        eventually(
            lambda: (
                request(services[1].port, "POST", "/api/v1/messages/send", plain("new")).status
                == 202
            )
        )
        for each in streams:
            came = [each.next()]
            while ids(came)[-1:] != ["new"]:
                came.append(each.next())
            assert "lost" not in ids(came)
        assert stored(services[0]) == ["kept", "new"]


def test_a_server_with_an_append_only_file_takes_the_backup_when_that_is_off_at_the_start(
    redis: RedisServer, tmp_path: Path
) -> None:
    with redis.client() as client:
        client.set("kept", "1")
    back_up(redis, tmp_path / "backup.rdb")
    restore(redis, tmp_path / "backup.rdb")  # started with --appendonly no
    with redis.client() as client:
        client.config_set("appendonly", "yes")
        wait_for("the file", lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
        wait_for(
            "the file", lambda: client.info("persistence")["aof_last_bgrewrite_status"] == "ok"
        )
        client.set("since", "1")
    redis._appendonly = True
    redis.restart()
    with redis.client() as client:
        assert client.mget("kept", "since") == [b"1", b"1"]
