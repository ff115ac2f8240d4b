"""What Redis counts and sorts of an outbox, compared with the records themselves."""

from typing import Any

from msgpush.adapters.redis import records
from msgpush.adapters.redis.link import HASH_TAG
from msgpush.adapters.redis.records import DEAD, DUE, OUTBOX, PUSHES
from msgpush.domain.notification import OVERHEAD as PUSH_OVERHEAD
from msgpush.domain.outbox import OVERHEAD


def audit(client: Any) -> None:
    """Everything that is counted and sorted says the same as the records, or this raises."""
    kept = {
        name.decode().removeprefix(f"{HASH_TAG}:delivery:"): client.hgetall(name)
        for name in client.scan_iter(f"{HASH_TAG}:delivery:*", count=1000)
    }
    pending = {key: fields for key, fields in kept.items() if fields[b"s"] == b"pending"}
    dead = {key: fields for key, fields in kept.items() if fields[b"s"] == b"dead"}
    totals = {b"n": len(pending), b"bytes": _size(pending), b"dead": _size(dead)}
    for key, fields in pending.items():
        service = b"s:" + key.partition("/")[0].encode()
        totals[service] = totals.get(service, 0) + int(fields[b"sz"])
        assert int(fields[b"sz"]) == len(fields[b"m"]) + OVERHEAD
    pushes = {
        name.decode().removeprefix(f"{HASH_TAG}:push:"): client.hgetall(name)
        for name in client.scan_iter(f"{HASH_TAG}:push:*", count=1000)
    }
    for key, fields in pushes.items():
        service = b"s:" + key.partition("/")[0].encode()
        totals[service] = totals.get(service, 0) + int(fields[b"sz"])
        totals[b"bytes"] += int(fields[b"sz"])
        assert int(fields[b"sz"]) == len(fields[b"m"]) + PUSH_OVERHEAD
        assert b"-" in fields[b"s"]
    assert {each.decode() for each in client.zrange(PUSHES, 0, -1)} == set(pushes)
    said = {name: int(value) for name, value in client.hgetall(OUTBOX).items()}
    assert said == {name: value for name, value in totals.items() if value}

    users = {fields[b"u"].decode() for fields in pending.values()}
    found = client.keys(f"{HASH_TAG}:pending:*")
    assert {name.decode().rpartition(":")[2] for name in found} == users
    assert {
        name.decode().rpartition(":")[2] for name in client.keys(f"{HASH_TAG}:mailbox:*")
    } == users
    for user in users:
        own = {key: each for key, each in pending.items() if each[b"u"].decode() == user}
        members = {each.decode() for each in client.zrange(records.pending_key(user), 0, -1)}
        assert members == set(own)
        box: dict[bytes, int] = {}
        for key, fields in own.items():
            if client.hexists(records.mailbox_key(user), f"r:{key}"):
                continue  # it has given its place to another
            service = key.partition("/")[0].encode()
            box[b"n:" + service] = box.get(b"n:" + service, 0) + 1
            box[b"b:" + service] = box.get(b"b:" + service, 0) + int(fields[b"sz"])
        counted = client.hgetall(records.mailbox_key(user))
        assert {k: int(v) for k, v in counted.items() if k[:2] not in (b"c:", b"r:")} == box
        for name, value in counted.items():
            if name.startswith(b"r:"):
                assert name[2:].decode() in own
            elif name.startswith(b"c:"):
                assert value.split(b" ")[1].decode() in own
    due = {each.decode() for each in client.zrange(DUE, 0, -1)}
    owed = {key for key, fields in kept.items() if b"ow" in fields}
    assert due == set(pending) | set(dead) | owed
    assert {each.decode() for each in client.zrange(DEAD, 0, -1)} == set(dead)
    assert "redo" not in said


def _size(kept: dict[str, Any]) -> int:
    return sum(int(fields[b"sz"]) for fields in kept.values())
