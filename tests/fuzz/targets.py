"""What is fuzzed: for each parser the texts that it gets, and what has to hold of what it makes of
them.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from urllib.parse import unquote

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from starlette.types import Scope

from msgpush.adapters.http.batch import split_array
from msgpush.domain.errors import Invalid, Malformed, MsgpushError
from msgpush.domain.message import Draft, Entry, data_of, draft, parse
from msgpush.domain.position import ZERO, Cursor, Position, check_cursor, parse_cursor
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings, SettingsError
from msgpush.entrypoints.table import DEFAULTS, FLAGS, SETTINGS
from tests.fuzz import contract
from tests.fuzz.contract import FIELDS, TYPES, Members, Undecided, read_json
from tests.fuzz.texts import (
    DEEP,
    NUMBERS,
    TEXT,
    VALUES,
    WHITE,
    and_changed,
    array,
    changed,
    members,
    objects,
    strings,
)
from tests.support.asgi import AsgiDriver

Check = Callable[[Any], bool]  # whether the text was accepted

# Messages

NAMES = st.text("abcXYZ09_.:-é漢", min_size=1, max_size=9)
PLAIN = st.text("abcXYZ09_.-", min_size=1, max_size=9)
MOMENTS = st.builds(
    "{}{}{:%H:%M}:{:02}{}{}".format,
    st.dates(),
    st.sampled_from("TTTt "),
    st.times(),
    st.integers(0, 60),
    st.sampled_from(["", ".1", ".123", ".123456789", ".999999"]),
    st.sampled_from(["Z", "z", "+00:00", "-00:00", "+05:30", "-23:59", "+23:59"]),
)
PROGRESS = st.sampled_from(["0", "-0", "100", "100.0", "1e2", "0.1e-400", "65.50"])


def object_with(name: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(st.lists(st.tuples(strings(), VALUES), max_size=2), values, WHITE)
    return pairs.map(lambda each: members([*each[0], (f'"{name}"', each[1])], each[2]))


RIGHT: dict[str, st.SearchStrategy[str]] = {
    "id": strings(PLAIN),
    "timestamp": strings(MOMENTS),
    "type": strings(st.sampled_from([*TYPES, "progress", "progress"])),
    "service": strings(PLAIN),
    "source": strings(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
    "target": st.builds(
        members,
        st.lists(
            st.tuples(strings(st.builds("{}_id".format, NAMES)), strings(NAMES) | st.just("null")),
            max_size=3,
            unique_by=lambda pair: json.loads(pair[0]),
        ),
        WHITE,
    ),
    "channels": st.builds(array, st.lists(strings(NAMES), max_size=3), WHITE),
    "data": object_with("progress", PROGRESS) | objects(VALUES),
    "metadata": st.builds(
        members,
        st.lists(
            st.one_of(
                st.tuples(
                    st.just('"priority"'),
                    strings(st.sampled_from(["low", "normal", "high", "urgent"])),
                ),
                st.tuples(st.just('"ttl"'), st.integers(1, 604_800).map(str) | st.just("null")),
                st.tuples(st.just('"retry_count"'), VALUES),
            ),
            max_size=3,
            unique_by=lambda pair: pair[0],
        ),
        WHITE,
    ),
}
NEARLY = {
    "id": strings(st.text("aé /\n\0", max_size=4) | st.sampled_from(["a" * 128, "a" * 129])),
    "timestamp": strings(
        st.sampled_from(
            ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:60Z", "2023-02-29T00:00:00Z"]
        )
    ),
    "type": strings(TEXT),
    "service": strings(st.sampled_from(["a" * 64, "a" * 65, "", "a b", "é"])),
    "source": strings(st.sampled_from(["x" * 128, "x" * 129, "\U0001f600" * 128])),
    "target": objects(strings() | VALUES),
    "channels": st.builds(array, st.lists(strings() | VALUES, max_size=33), WHITE),
    "data": VALUES | object_with("progress", NUMBERS | VALUES | DEEP),
    "metadata": objects(VALUES) | object_with("ttl", NUMBERS) | object_with("priority", strings()),
}


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message, in which at most one field is wrong."""
    names = ["type", "service", *draw(st.lists(st.sampled_from(FIELDS), unique=True))]
    wrong = draw(st.none() | st.none() | st.sampled_from([*names, ""]))
    pairs = []
    for name in draw(st.permutations(list(dict.fromkeys(names)))):
        values = (NEARLY[name] | VALUES | DEEP) if name == wrong else RIGHT[name]
        pairs.append((draw(strings(st.just(name))), draw(values)))
    if wrong == "":
        pairs.append((draw(strings()), draw(VALUES | DEEP)))
    return members(pairs, draw(WHITE)).encode()


def check_message(case: tuple[bytes, bool]) -> bool:
    body, broadcast = case
    made = refused = None
    try:
        message = parse(body)
        made = draft(message, 1_753_859_400_123, "made", 3600, broadcast=broadcast)
    except MsgpushError as error:
        refused = error
        check_refusal(error)
    try:
        verdict = contract.judge_message(body, broadcast=broadcast)
    except Undecided:
        return made is not None
    assert {Malformed: "malformed", Invalid: "invalid"}.get(type(refused), "accepted") == verdict, (
        refused
    )
    if made is not None:
        check_draft(made, body, broadcast)
    return made is not None


def check_refusal(error: MsgpushError) -> None:
    assert type(error) in (Malformed, Invalid), "the document has these"
    details = (
        [fault.detail for fault in error.faults] if isinstance(error, Invalid) else [str(error)]
    )
    assert all(detail.isprintable() for detail in details), "what is shown is on one line"
    pointers = [fault.pointer for fault in error.faults] if isinstance(error, Invalid) else []
    assert all(re.fullmatch("(?s)(/([^~/]|~[01])*)*", pointer) for pointer in pointers)


def check_draft(made: Draft, body: bytes, broadcast: bool) -> None:
    assert b"\n" not in made.body
    assert b"\r" not in made.body
    published, delivered = (
        {name: value for name, value in read_json(text).once().items() if value is not None}
        for text in (body, made.body)
    )
    metadata = published.get("metadata", Members()).once()
    whole = {
        "id": published.get("id", "made"),
        "timestamp": contract.moment(published.get("timestamp", "2025-07-30T07:10:00.123Z")),
        "data": published.get("data", Members()),
        "metadata": {
            "priority": metadata.get("priority") or "normal",
            "ttl": metadata.get("ttl") or "3600",
            "retry_count": "0",
        },
    }
    assert delivered | {"metadata": dict(delivered["metadata"])} == published | whole, (
        "nothing else, to the digit"
    )
    target = published.get("target", Members())
    channels = {f"{name[:-3]}:{value}" for name, value in target if value is not None}
    channels |= {*published.get("channels", []), f"service:{published['service']}"}
    channels |= {"broadcast"} if broadcast else set()
    assert sorted(made.channels) == sorted(channels), "each once"
    assert (made.id, made.type, made.service) == (
        whole["id"],
        published["type"],
        published["service"],
    )
    assert (made.timestamp, str(made.ttl)) == (whole["timestamp"], whole["metadata"]["ttl"])
    assert (made.digest is None) == ("id" not in published)
    entry = Entry(ZERO, ZERO, made.channels, made.type, made.service, 0, made.body)
    assert read_json(data_of(entry)) == whole["data"]
    again = draft(parse(made.body), 0, "other", 1, broadcast=broadcast)
    assert (again.body, again.channels) == (made.body, made.channels), (
        "what was delivered may be published"
    )


# Batches


@st.composite
def batches(draw: st.DrawFn) -> bytes:
    items = array(
        draw(st.lists(VALUES | DEEP | messages().map(bytes.decode), max_size=4)), draw(WHITE)
    )
    if draw(st.booleans()):
        pairs = [
            (draw(strings(st.just("messages") | TEXT)), items),
            *draw(st.lists(st.tuples(strings(), VALUES), max_size=1)),
        ]
        items = members(pairs if draw(st.booleans()) else pairs[:1], draw(WHITE))
    return items.encode()


def check_batch(body: bytes) -> bool:
    items = refused = None
    try:
        items = split_array(body)
    except MsgpushError as error:
        refused = error
        check_refusal(error)
    try:
        verdict, expected = contract.judge_batch(body)
    except Undecided:
        return items is not None
    assert {Malformed: "malformed", Invalid: "invalid"}.get(type(refused), "accepted") == verdict, (
        refused
    )
    if items is not None:
        assert [read_json(item) for item in items] == expected
    return items is not None


# Cursors

EPOCHS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=8, max_size=8)
POSITIONS = st.builds(Position, st.integers(0, 10**19 - 1), st.integers(0, 10**19 - 1))
CURSORS = st.builds(lambda epoch, position: str(Cursor(epoch, position)), EPOCHS, POSITIONS)


def check_cursors(case: tuple[str, str, Position, Position]) -> bool:
    text, epoch, one, other = case
    for position in (one, other):
        written = str(Cursor(epoch, position))
        assert check_cursor(written) == written
        assert parse_cursor(written, epoch) == position
        assert parse_cursor(written + "~end", epoch) is None, (
            "it ends the stream, and names no place in it"
        )
    assert (one < other) == ((one.ms, one.seq) < (other.ms, other.seq))
    accepted = False
    try:
        accepted = check_cursor(text) == text
    except Malformed as error:
        check_refusal(error)
    assert accepted == contract.is_cursor(text)
    for name in {epoch, text[1:9]}:
        read = parse_cursor(text, name)
        assert read is None or str(Cursor(name, read)) == text, "a place has one name"
        assert read is None or accepted
    return accepted


# Requests

CHANNELS = st.lists(NAMES | st.sampled_from(["broadcast", "user:1"]), min_size=1, max_size=3).map(
    ",".join
)
ENDPOINTS = ("stream", "user", "service", "history", "connections")
PARAMETERS: dict[str, st.SearchStrategy[str]] = {
    "channel": NAMES,
    "types": st.lists(st.sampled_from(TYPES), min_size=1, max_size=3).map(",".join),
    "events": st.sampled_from(["*", "none", "progress", "info,error"]),
    "broadcast": st.sampled_from(["true", "false"]),
    "last_event_id": CURSORS | st.sampled_from(["", "earliest", "latest", "x~end"]),
    "lastEventId": CURSORS | st.sampled_from(["", "latest", "x~end"]),
    "lastEventID": CURSORS | st.just(""),
    "r": PLAIN,
    "evs_preamble": PLAIN,
    "token": PLAIN,
    "after": CURSORS | st.just("earliest"),
    "limit": st.integers(1, 1000).map(str)
    | st.sampled_from(["0", "1001", "007", "1_0", "+1", "١"]),
    "user": NAMES,
    "next": PLAIN,
    "_": PLAIN,
}
TAKEN = {
    "history": ["after", "limit", "_"],
    "connections": ["user", "channel", "limit", "next", "_"],
}


class Request(NamedTuple):
    endpoint: str
    name: bytes
    query: bytes
    last_event_id: str


@st.composite
def requests(draw: st.DrawFn) -> Request:
    endpoint = draw(st.sampled_from(ENDPOINTS))
    own = TAKEN.get(
        endpoint,
        [
            "channel",
            "types",
            "events",
            "broadcast",
            "last_event_id",
            "lastEventId",
            "token",
            "r",
            "_",
        ],
    )
    names = draw(st.lists(st.sampled_from(own) | st.sampled_from(sorted(PARAMETERS)), max_size=3))
    pairs = [name.encode() + b"=" + escaped(draw, draw(PARAMETERS[name])) for name in names]
    parts = escaped(draw, draw(CHANNELS if endpoint == "stream" else NAMES)), b"&".join(pairs)
    name, query = (
        draw(changed(st.just(part))) if draw(st.integers(0, 3)) == 3 else part for part in parts
    )
    header = draw(
        st.just("")
        | st.just("")
        | and_changed(CURSORS.map(str.encode)).map(lambda text: text.decode("latin-1"))
    )
    # The server cuts the target there.
    return Request(endpoint, re.sub(b"[?#]", b"", name), query.replace(b"#", b""), header)


def escaped(draw: st.DrawFn, text: str) -> bytes:
    """A text in a URL, with more of it percent-encoded than it needs, or less."""
    every = draw(st.booleans())
    return b"".join(
        b"%%%02X" % byte if every or byte >= 0x80 or byte in b"%&+= " else bytes([byte])
        for byte in text.encode()
    )


class RawDriver(AsgiDriver):
    """Sends targets byte by byte, as they come from a socket."""

    def scope(self, method: str, target: str, *more: Any) -> Scope:
        path, _, query = target.encode("latin-1").partition(b"?")
        raw = {"path": unquote(path), "raw_path": path, "query_string": query}
        return {**super().scope(method, "/", *more), **raw}


@contextmanager
def served(check: Callable[[AsgiDriver, Any], Coroutine[Any, Any, bool]]) -> Iterator[Check]:
    with asyncio.Runner() as runner:
        app = create_app(Settings())
        opened = lifespan(app)
        runner.run(opened.__aenter__())
        try:
            driver = RawDriver(app)
            yield lambda case: runner.run(check(driver, case))
        finally:
            runner.run(opened.__aexit__(None, None, None))


async def check_request(driver: AsgiDriver, request: Request) -> bool:
    name, query = request.name.decode("latin-1"), request.query.decode("latin-1")
    if request.endpoint in ("history", "connections"):
        path = (
            f"/api/v1/channels/{name}/messages"
            if request.endpoint == "history"
            else "/api/v1/connections"
        )
        answer = await driver.request("GET", f"{path}?{query}")
        assert answer.status in (200, 400)
        if request.endpoint == "history":
            assert answer.status == contract.judge_history(request.name, request.query)
        assert isinstance(
            answer.json()["detail" if answer.status == 400 else request_answer(request)], str | list
        )
        return answer.status == 200
    expected = contract.judge_stream(
        request.endpoint, request.name, request.query, request.last_event_id
    )
    headers = {"last-event-id": request.last_event_id} if request.last_event_id else {}
    async with driver.stream(f"/sse/{request.endpoint}/{name}?{query}", headers) as exchange:
        if exchange.status == 200:
            check_opening(await exchange.read_until(b"\n\n"), expected)
        else:
            body = await exchange.closed()
            assert exchange.status == expected, body
            assert exchange.status == 204 or json.loads(body)["detail"]
    return exchange.status == 200


def request_answer(request: Request) -> str:
    return "messages" if request.endpoint == "history" else "connections"


def check_opening(body: bytes, expected: int | list[str]) -> None:
    block = dict(line.split(": ", 1) for line in body.decode().partition("\n\n")[0].split("\n"))
    assert json.loads(block["data"])["channels"] == expected
    assert block["event"] == "msgpush.open"
    assert contract.is_cursor(block["id"])


# Tickets and revocations


@st.composite
def permissions(draw: st.DrawFn) -> tuple[str, bytes]:
    """Whether a ticket is asked for or tokens are revoked, and the body."""
    endpoint = draw(st.sampled_from(["tickets", "revocations"]))
    values = {
        "subject": strings(TEXT.filter(bool)),
        "jti": strings(PLAIN),
        "issued_before": st.integers(0, 2_000_000_000).map(str) | NUMBERS | strings(MOMENTS),
    }
    if endpoint == "tickets":
        values = {
            "channels": st.builds(array, st.lists(strings(NAMES), min_size=1, max_size=3), WHITE)
        }
    name = draw(st.sampled_from(sorted(values)))
    wrong = draw(st.integers(0, 5))
    pairs = [(draw(strings(st.just(name))), draw(VALUES | DEEP if wrong == 5 else values[name]))]
    if wrong == 4:
        pairs.append((draw(strings(st.sampled_from(["channels", "jti"]) | TEXT)), draw(VALUES)))
    return endpoint, draw(and_changed(st.just(members(pairs, draw(WHITE)).encode())))


async def check_permission(driver: AsgiDriver, case: tuple[str, bytes]) -> bool:
    endpoint, body = case
    answer = await driver.request("POST", f"/api/v1/{endpoint}", body)
    accepted = answer.status in (201, 429)  # there is a limit to how many tickets are made
    assert accepted or answer.json()["detail"]
    with contextlib.suppress(Undecided):
        tickets = endpoint == "tickets"
        verdict = (
            contract.judge_ticket(body) if tickets else contract.judge_revocation(body, time.time())
        )
        assert (
            answer.status
            in {"accepted": (201, 429), "malformed": (400,), "invalid": (422,)}[verdict]
        )
    return accepted


# Settings

TEXTS: dict[str, list[str]] = {
    "service_host": ["localhost", "::1", "0.0.0.0", "127.0.0.2", "fe80::1%eth0", "a.example.com"],
    "redis_url": ["redis://u:secret@r:1/3", "rediss://r", "redis+sentinel://a,b/name/1", "redis+cluster://a:1,b", "redis://[::1]:6379"],
    "redis_host": ["redis", "10.0.0.1"],
    "redis_port": ["tcp://10.0.0.1:6379"],
    "service_port": ["tcp://[fd00::1]:8089"],
    "redis_password": ["a password"],
    "cors_origins": ['["https://App.example.com:443", "http://[::1]:8080"]', '["*"]', "null"],
    "trusted_proxies": ['["10.0.0.0/8", "::1"]', '["10.0.0.1/8"]'],
    "root_path": ["/push", "/a/b", "/"],
    "default_events": ["*", "none", "info,error"],
    "enable_auth": ["true", "0", "OFF"],
    "jwt_secret": ["a secret that is long enough for this", "-----BEGIN PUBLIC KEY-----" + "x" * 32],
    "jwt_public_key": ["-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----"],
    "jwks_url": ["https://keys.example.com/jwks.json", "http://u:secret@h/"],
    "jwt_issuer": ["https://issuer"],
    "metrics_token": ["abc.DEF~1"],
    "log_level": ["Debug"],
}  # fmt: skip
VALUE_TEXTS = st.sampled_from(sorted(SETTINGS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        and_changed(
            st.sampled_from(
                [*TEXTS.get(name, []), *([DEFAULTS[name]] if DEFAULTS[name] else []), "7"]
            ).map(str.encode)
            | NUMBERS.map(str.encode)
        ).map(lambda raw: raw.decode(errors="surrogateescape")),
    )
)


class Given(NamedTuple):
    environ: dict[str, str]
    flags: dict[str, str]
    stray: list[str]


GIVEN = st.builds(
    Given,
    st.lists(VALUE_TEXTS, max_size=3).map(
        lambda pairs: {name.upper(): text for name, text in pairs}
    ),
    st.lists(VALUE_TEXTS, max_size=2).map(dict),
    st.lists(
        TEXT | st.sampled_from(["--service_port", "--service-prot=1", "serve", "--help"]),
        max_size=1,
    )
    | st.just([])
    | st.just([]),
)


def check_settings(case: Given) -> bool:
    argv = [f"--{name.replace('_', '-')}={text}" for name, text in case.flags.items()] + case.stray
    told = {name.lower(): text for name, text in case.environ.items() if text} | case.flags
    told = {name: text for name, text in told.items() if text}
    try:
        read = Settings.from_environ(case.environ, argv)
    except SettingsError as error:
        check_line(error, case, told)
        return False
    assert not case.stray or case.stray[0] in FLAGS
    values = {name: getattr(read, name) for name in told if getattr(read, name) is not None}
    for name in SETTINGS:
        value = getattr(read, name)
        link = name not in case.flags and name.endswith("_port") and "://" in told.get(name, "")
        if name not in told or link or not SETTINGS[name].when.met(values):
            assert value == getattr(Settings(), name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            check_number(value, told[name], SETTINGS[name].kind.allowed)
        elif isinstance(value, str):
            assert value.lower() == told[name].lower() or name == "service_host"
    check_hidden(repr(read), told)
    again = {name.upper(): text for name, text in told.items()}
    assert Settings.from_environ(again) == read, "from a flag as from a variable"
    return True


def check_line(error: SettingsError, case: Given, told: dict[str, str]) -> None:
    line = str(error)
    assert line.isprintable()
    assert len(line) < 1000
    names = [*case.environ, *(flag for flag, name in FLAGS.items() if name in case.flags)]
    assert case.stray or error.name in names or error.name in ("SERVICE_HOST", "WORKERS")
    assert line == f"{error.name} {error.problem}"
    if not case.stray:
        check_hidden(error.problem.partition("it must be")[0], told)


def check_number(value: float, text: str, allowed: str) -> None:
    lowest, highest = re.findall(r"from (\S+) to (\S+)$", allowed)[0]
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", text, re.ASCII)
    assert float(lowest) <= value == float(text) <= float(highest)


def check_hidden(shown: str, told: dict[str, str]) -> None:
    public = [text for name, text in told.items() if not SETTINGS[name].secret(text)]
    for name, text in told.items():
        if (
            SETTINGS[name].secret(text)
            and len(text) > 8
            and not any(text in each for each in public)
        ):
            assert text not in shown


class Target(NamedTuple):
    """A parser.

    Args:
        cases: what it gets.
        open: makes what judges one of them, with all that this needs.
    """

    cases: st.SearchStrategy[Any]
    open: Callable[[], AbstractContextManager[Check]]


TARGETS: dict[str, Target] = {
    "message": Target(
        st.tuples(and_changed(messages()), st.booleans()), lambda: nullcontext(check_message)
    ),
    "batch": Target(and_changed(batches()), lambda: nullcontext(check_batch)),
    "cursor": Target(
        st.tuples(
            and_changed(CURSORS.map(str.encode)).map(lambda text: text.decode("latin-1")) | TEXT,
            EPOCHS,
            POSITIONS,
            POSITIONS,
        ),
        lambda: nullcontext(check_cursors),
    ),
    "query": Target(requests(), lambda: served(check_request)),
    "permission": Target(permissions(), lambda: served(check_permission)),
    "settings": Target(GIVEN, lambda: nullcontext(check_settings)),
}


class Tally(NamedTuple):
    """How many examples were judged, and how many of these the parser has accepted."""

    examples: int
    accepted: int


def fuzz(target: Target, number: int, examples: int) -> Tally:
    """Judge examples that follow from a seed.

    Raises:
        AssertionError, or what the parser has raised: with the smallest example that shows it, in a
            note."""
    verdicts: list[bool] = []
    with target.open() as check:

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(target.cases)
        def judge(case: Any) -> None:
            verdicts.append(check(case))

        judge()
    return Tally(len(verdicts), sum(verdicts))
