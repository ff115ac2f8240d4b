"""Devices and notifications: what decides, without any I/O."""

import msgspec
import pytest

from msgpush.adapters.notify.places import BROWSERS, Place, Places, is_public
from msgpush.domain.devices import Address, Apns, Device, Fcm, WebPush, device_id, proof_of, proves
from msgpush.domain.marks import AskedPush, Push, Terms, When, first_look, is_page
from msgpush.domain.notification import (
    SHORTEST_PAUSE,
    Answer,
    Later,
    Sending,
    Try,
    after,
    answer_of,
    decide,
    notice_of,
    pause,
    wanted,
)
from msgpush.domain.outbox import Record, State
from msgpush.domain.position import ZERO

PLACES = Places([*(Place(host) for host in BROWSERS), Place("localhost", 8443)])

SUBSCRIBED = WebPush("https://fcm.googleapis.com/fcm/send/x", b"p" * 65, b"a" * 16)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://fcm.googleapis.com/fcm/send/dpH5:a-b_c",
        "https://updates.push.services.mozilla.com/wpush/v2/gAAA",
        "https://web.push.apple.com/QGuQ",
        "https://wns2-par02p.notify.windows.com/w/?token=BQYAAAD%2b",
        "https://localhost:8443/x",
    ],
)
def test_endpoints_of_browsers_are_taken_as_they_are(endpoint: str) -> None:
    assert PLACES.check(endpoint) == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://fcm.googleapis.com:443/",
        "https://fcm.googleapis.com:0443/",
        "https://fcm.googleapis.com:",
        "HTTPS://FCM.googleAPIs.com/",
        "https://fcm.googleapis.com/?",
        "https://fcm.googleapis.com#",
    ],
)
def test_an_endpoint_is_the_same_however_it_is_written(endpoint: str) -> None:
    assert PLACES.check(endpoint) == "https://fcm.googleapis.com/"


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("http://fcm.googleapis.com/x", "no https"),
        ("https://fcm.googleapis.com:8443/x", "PUSH_ENDPOINTS"),
        ("https://evilfcm.googleapis.com.example/x", "PUSH_ENDPOINTS"),
        ("https://xfcm.googleapis.com/x", "PUSH_ENDPOINTS"),
        ("https://fcm.googleapis.com@example.com/x", "user information"),
        ("https://user:password@fcm.googleapis.com/x", "user information"),
        ("https://@fcm.googleapis.com/x", "user information"),
        ("https://fcm.googleapis.com/x#y", "fragment"),
        ("https://fcm.googleapis.com\\@example.com/", "no URL"),
        ("https://fcm.googleapis.com/ x", "no URL"),
        ("https://fcm.googleapis.com/\n", "no URL"),
        ("https://fcm.googleapis.com:port/", "no URL"),
        ("https://fcm.googleapis.com:99999/", "no URL"),
        ("https://[::1/", "no URL"),
        ("https://ﬀcm.googleapis.com/", "no URL"),
        ("https:///x", "no https"),
        ("https:fcm.googleapis.com/x", "no https"),
        ("https://.fcm.googleapis.com/x", "no https"),
        ("https://a..fcm.googleapis.com/x", "no https"),
        (f"https://{'a' * 64}.fcm.googleapis.com/x", "no https"),
        (f"https://{'a.' * 120}fcm.googleapis.com/x", "no https"),
        ("https://a%2f.fcm.googleapis.com/x", "no https"),
        ("https://[v1.a.fcm.googleapis.com]/x", "no https"),
        ("https://fcm.googleapis.com:0/x", "PUSH_ENDPOINTS"),
        ("https://fcm.googleapis.com./x", "no https"),
        ("https://localhost/x", "PUSH_ENDPOINTS"),
        ("https://a.localhost:8443/x", "PUSH_ENDPOINTS"),
        ("https://localhost:8444/x", "PUSH_ENDPOINTS"),
        ("https://127.0.0.1/x", "PUSH_ENDPOINTS"),
        ("https://fcm.googleapis.com/" + "x" * 1_000, "longer than 1024"),
        ("", "no https"),
        ("file:///etc/passwd", "no https"),
    ],
)
def test_endpoints_elsewhere_are_refused_and_not_repeated(endpoint: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        PLACES.check(endpoint)
    assert not endpoint or endpoint not in str(refused.value)


@pytest.mark.parametrize("text", ["push.example", "localhost:8443", "127.0.0.1:1", "[::1]:8443"])
def test_places_are_named_by_host_and_port(text: str) -> None:
    place = Place.parse(text)
    assert (place.port is None) == (":" not in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a:b",
        "https://x",
        "x/y",
        "a b",
        "*.x",
        ".x",
        "x:",
        "x:0x1",
        "u@x",
        "x:70000",
        "x:0",
        "a..b",
        "a%b",
        "[v1.x]:1",
        "x" * 64,
    ],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no name of a host"):
        Place.parse(text)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "142.250.74.106", "2a00:1450:4001:831::200a", "64:ff9b::8.8.8.8"]
)
def test_addresses_on_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1",
        "::ffff:8.8.8.8", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1",
        "2001:db8::1", "2001::1", "2002:7f00:1::", "64:ff9b::127.0.0.1", "64:ff9b:1::1", "100::1",
        "", "localhost",
    ],
)  # fmt: skip
def test_addresses_inside_are_not(address: str) -> None:
    assert not is_public(address)


# Devices


def test_a_device_has_one_id_whoever_registers_it() -> None:
    again = WebPush(SUBSCRIBED.endpoint, b"q" * 65, b"b" * 16)
    assert device_id(SUBSCRIBED) == device_id(again)
    others: list[Address] = [
        SUBSCRIBED,
        WebPush(SUBSCRIBED.endpoint + "y", b"", b""),
        Fcm(SUBSCRIBED.endpoint, b""),
        Apns("t", "a", b""),
        Apns("t", "b", b""),
        Fcm("t", b""),
    ]
    assert len({device_id(each) for each in others}) == len(others)


def test_it_moves_only_with_what_it_alone_knows() -> None:
    assert proves(SUBSCRIBED, SUBSCRIBED)
    assert not proves(SUBSCRIBED, WebPush(SUBSCRIBED.endpoint, b"p" * 65, b"b" * 16))
    assert not proves(SUBSCRIBED, WebPush(SUBSCRIBED.endpoint, b"q" * 65, b"a" * 16))
    assert proves(Fcm("t", proof_of(b"secret")), Fcm("t", proof_of(b"secret")))
    assert not proves(Apns("t", "a", proof_of(b"secret")), Apns("t", "a", proof_of(b"other")))


def test_what_names_a_device_is_in_no_text_of_it() -> None:
    for address in (SUBSCRIBED, Fcm("token", b"proof"), Apns("token", "topic", b"proof")):
        told = f"{address!r} {address} {[address]}"
        assert not any(secret in told for secret in ("googleapis", "token", "ppp", "aaa", "proof"))


# When again


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "sent"), (201, "sent"), (202, "sent"), (204, "sent"),
        (301, "failed"), (307, "failed"), (400, "failed"), (401, "failed"), (403, "failed"),
        (404, "gone"), (410, "gone"), (408, "later"), (413, "failed"), (429, "later"),
        (500, "later"), (502, "later"), (503, "later"), (504, "later"), (599, "later"),
    ],
)  # fmt: skip
def test_what_a_status_means(status: int, outcome: str) -> None:
    assert answer_of(status).outcome == outcome


def test_pauses_double_within_bounds_and_what_the_provider_says_counts() -> None:
    pauses = [pause(attempts, None) for attempts in range(100)]
    assert all(SHORTEST_PAUSE <= each <= 1.2 * 3_600 for each in pauses)
    assert pauses[10] > 1_000
    assert 300 <= pause(0, 300) <= 360
    assert SHORTEST_PAUSE <= pause(0, 1) < 73
    assert pause(0, 1e12) <= 1.2 * 86_400


# When, and whether at all

ACCEPTED, DELAY, TTL = 1_000_000, 5.0, 600_000
LOOK = ACCEPTED + 6_000


def sending(when: When = "unacknowledged", *, ack: bool = True, **more: object) -> Sending:
    given: dict[str, object] = {
        "key": "s/1",
        "user": "alice",
        "service": "s",
        "type": "info",
        "body": b'{"data":{"message":"Hello"}}',
        "push": Push(when),
        "terms": Terms(deadline=30) if ack else None,
        "priority": 1,
        "accepted_at": ACCEPTED,
        "expires": ACCEPTED + TTL,
        "next": LOOK,
    } | more
    return Sending(**given)  # type: ignore[arg-type]


def record(written: int | None = None, state: State = "pending", **more: object) -> Record:
    given: dict[str, object] = {
        "key": "s/1",
        "user": "alice",
        "service": "s",
        "id": "1",
        "type": "info",
        "body": b"{}",
        "terms": Terms(deadline=30),
        "accepted": ZERO,
        "accepted_at": ACCEPTED,
        "expires": ACCEPTED + TTL,
        "ttl": 600,
        "state": state,
        "written_at": written,
    } | more
    return Record(**given)  # type: ignore[arg-type]


def device(name: str = "a") -> Device:
    return Device(name, "alice", Fcm(name, b""), None, 0, 0, 0)


def test_it_is_looked_at_once_the_delay_is_over_and_what_was_written_is_known() -> None:
    assert first_look(Push("always"), DELAY) == 0
    for when in ("offline", "unacknowledged"):
        assert first_look(Push(when), DELAY) == LOOK - ACCEPTED


@pytest.mark.parametrize("when", ["offline", "unacknowledged", "always"])
def test_who_has_no_stream_is_sent_to(when: When) -> None:
    assert decide(sending(when), record(), LOOK) == "send"


def test_who_was_reached_by_a_stream_in_time_is_not() -> None:
    written = record(ACCEPTED + 100)
    assert decide(sending("offline"), written, LOOK) == "drop"
    assert decide(sending("always"), written, ACCEPTED) == "send"
    # In the last moment of the delay, and told later: it counts.
    assert decide(sending("offline"), record(ACCEPTED + 4_999), LOOK) == "drop"


def test_what_is_written_and_not_acknowledged_is_sent_at_its_first_deadline() -> None:
    written = record(ACCEPTED + 100)
    deadline = ACCEPTED + 30_100
    assert decide(sending(), written, LOOK) == Later(deadline)
    assert decide(sending(), written, deadline - 1) == Later(deadline)
    assert decide(sending(), written, deadline) == "send"
    short = sending(expires=ACCEPTED + 20_000)
    assert decide(short, written, LOOK) == Later(ACCEPTED + 20_000)


@pytest.mark.parametrize("state", ["acknowledged", "withdrawn", "dead"])
def test_what_is_over_is_not_sent_however_far_that_had_come(state: State) -> None:
    for when in ("offline", "unacknowledged", "always"):
        for left in (None, {"a": Try(1, 0)}):
            assert decide(sending(when, left=left), record(state=state), LOOK) == "drop"
    assert decide(sending(), None, LOOK) == "drop"
    assert decide(sending(), record(superseded=True), LOOK) == "drop"


def test_its_time_is_that_of_the_message() -> None:
    assert decide(sending(), record(), ACCEPTED + TTL) == "drop"
    assert decide(sending("always", ack=False), None, ACCEPTED + TTL) == "drop"
    assert decide(sending("always", ack=False), None, ACCEPTED + TTL - 1) == "send"


def test_what_has_begun_goes_on_whatever_a_stream_takes() -> None:
    begun = sending("offline", left={"a": Try(1, LOOK)})
    assert decide(begun, record(LOOK), LOOK) == "send"


# To whom, and when again


def test_it_goes_to_the_devices_that_the_user_has_when_it_is_looked_at() -> None:
    a, b = device("a"), device("b")
    first = sending()
    assert wanted(first, [a, b], LOOK) == [a, b]
    left = after(first, [a, b], [(a, Answer("sent", "")), (b, Answer("later", ""))], LOOK)
    assert list(left) == ["b"]
    again = msgspec.structs.replace(first, left=left)
    assert wanted(again, [a, b, device("c")], LOOK) == []
    due = left["b"].next
    assert LOOK + 60_000 <= due <= LOOK + 72_000
    assert wanted(again, [a, b, device("c")], due) == [b]
    assert wanted(again, [a], due) == []
    assert after(again, [a], [], due) == {}


@pytest.mark.parametrize("outcome", ["sent", "gone", "failed"])
def test_what_is_over_for_a_device_is_over(outcome: str) -> None:
    a = device()
    assert after(sending(), [a], [(a, Answer(outcome, ""))], LOOK) == {}  # type: ignore[arg-type]


def test_it_is_tried_less_and_less_often_until_its_time_is_over() -> None:
    a, now, tries = device(), ACCEPTED, []
    last = sending(expires=ACCEPTED + 40_000_000)
    while True:
        left = after(last, [a], [(a, Answer("later", ""))], now)
        if not left:
            break
        tries.append(left["a"].next - now)
        now, last = left["a"].next, msgspec.structs.replace(last, left=left)
    assert 10 < len(tries) < 30
    assert tries[-1] > 1_800_000
    assert now < last.expires


def test_devices_that_were_not_tried_yet_are_left() -> None:
    a, b = device("a"), device("b")
    left = after(sending(), [a, b], [(a, Answer("sent", ""))], LOOK)
    assert left == {"b": Try(0, LOOK)}


# What


def test_what_is_shown_is_what_was_asked_for_or_the_message_s_own() -> None:
    shown = notice_of(sending(), LOOK, "w")
    assert (shown.title, shown.text, shown.own_text) == ("s", "Hello", False)
    assert (shown.ttl, shown.word) == (594, "w")
    given = Push("always", "Title", "Text", "/path", "/icon.png", "c")
    shown = notice_of(sending(push=given), LOOK, None)
    assert (shown.title, shown.text, shown.own_text) == ("Title", "Text", True)
    assert (shown.url, shown.icon, shown.collapse) == ("/path", "/icon.png", "c")
    assert notice_of(sending(push=Push(body="")), LOOK, None).text == ""


@pytest.mark.parametrize(
    "body", [b'{"data":{}}', b'{"data":{"message":1}}', b'{"data":{"message":{"a":1}}}', b"{}"]
)
def test_a_message_without_a_text_has_none(body: bytes) -> None:
    assert notice_of(sending(body=body), LOOK, None).text is None


def test_what_is_asked_for_is_made_complete() -> None:
    assert Push.of(True, acknowledged=True) == Push("unacknowledged")
    assert Push.of(True, acknowledged=False) == Push("always")
    assert Push.of(AskedPush(title="t"), acknowledged=True) == Push("unacknowledged", "t")
    for nothing in (False, None):
        assert Push.of(nothing, acknowledged=True) is None


@pytest.mark.parametrize("url", ["/", "/a?b=c#d", "https://example.com/x"])
def test_pages_that_may_be_opened(url: str) -> None:
    assert is_page(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "//example.com",
        "/\\example.com",
        "http://x",
        "javascript:x",
        "/a b",
        "/\n",
        "data:,x",
    ],
)
def test_pages_that_may_not(url: str) -> None:
    assert not is_page(url)
