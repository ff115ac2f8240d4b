"""The bench's command line, its comparison of two versions, what its client counts, and its turns
of WebSockets and SSE; no test asserts a speed."""

import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bench import load
from bench.__main__ import parse, planned
from bench.against import (
    BadRevision,
    Paired,
    Version,
    checked_out,
    compare,
    differing_requirements,
    expected_seconds,
)
from bench.parts import Bench, Plan
from bench.report import Figure, Report
from bench.servers import Server

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
PLAN = planned(parse(["--against", "HEAD", "--parts", "d", "--quick"]), sys.maxsize)


@dataclass(frozen=True, eq=False)
class Scripted(Version):
    """A version whose reports are known."""

    reports: list[Report] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def measure(self, plan: Plan) -> Report:
        self.calls.append(self.name)
        return self.reports.pop(0)


def scripted(calls: list[str], name: str, *rates: float) -> Scripted:
    reports = [Report([Figure("rate", rate), Figure("twice", 2 * rate)]) for rate in rates]
    return Scripted(name, Path("nowhere"), reports, calls)


def test_a_round_is_compared_with_itself_and_each_version_is_first_in_every_other_one() -> None:
    calls: list[str] = []
    this = scripted(calls, "this", 100.0, 20.0, 330.0)
    other = scripted(calls, "other", 200.0, 20.0, 300.0)
    result = compare(this, other, PLAN, 3)
    assert calls == ["this", "other", "other", "this", "this", "other"]
    assert result.figures == [
        Paired("rate", "", (100.0, 20.0, 330.0), (200.0, 20.0, 300.0)),
        Paired("twice", "", (200.0, 40.0, 660.0), (400.0, 40.0, 600.0)),
    ]
    assert result.faults == []


def test_the_ratio_is_of_each_round_and_the_medians_of_all() -> None:
    figure = Paired("rate", "", (100.0, 20.0, 330.0), (200.0, 20.0, 300.0))
    assert figure.ratios == [0.5, 1.0, 1.1]
    content = figure.content()
    medians = [content[name] for name in ("this_median", "other_median", "ratio_median")]
    assert medians == [100.0, 200.0, 1.0]


def test_a_figure_of_nothing_has_no_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    result = compare(scripted(calls, "this", 1.0), scripted(calls, "other", 0.0), PLAN, 1)
    assert result.figures[0].ratios == []
    assert result.content({})["figures"][0]["ratio_median"] is None
    capsys.readouterr()
    result.print({"command": "python -m bench"}, 1.0)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("rate"))
    assert line.split() == ["rate", "1.0", "0.0", "-", "-", "-"]


def test_a_part_that_fails_for_one_version_names_it_and_gives_no_figures() -> None:
    calls: list[str] = []
    this, other = scripted(calls, "this", 1.0, 2.0), scripted(calls, "other", 1.0)
    other.reports.append(Report([], [], ["d: 3 messages refused"]))
    result = compare(this, other, PLAN, 2)
    assert result.figures == []
    assert result.faults == ["other: d: 3 messages refused"]
    assert calls == ["this", "other", "other"], "nothing is measured in vain"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ("--parts x", "--parts takes letters from a to r"),
        ("--parts ,", "--parts takes letters from a to r"),
        ("--against HEAD --parts d,j,k", "--parts: j, k can't be compared"),
        ("--rounds 3", "--rounds goes with --against"),
        ("--against HEAD --rounds 0", "--rounds takes a number from 1 to 100"),
        ("--against HEAD --rounds many", "invalid int value"),
        ("--seconds 0", "--seconds takes a number up to 600"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    arguments: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments.split())
    assert fault in capsys.readouterr().err


def test_all_parts_are_measured_and_few_of_them_compared() -> None:
    assert parse([]).parts == frozenset("abcdefghijklmnopqr")
    compared = parse(["--against", "HEAD"])
    assert (compared.parts, compared.rounds) == (frozenset("ade"), 5)


def test_the_time_expected_is_that_of_both_versions_in_all_rounds() -> None:
    assert expected_seconds(PLAN, 6) == 6 * expected_seconds(PLAN, 1) > 12 * PLAN.seconds


def git(repository: Path, *arguments: str) -> str:
    who = ("-c", "user.name=bench", "-c", "user.email=bench@example.com")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=repository, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of one commit, whose service says a word and ends."""
    package = tmp_path / "src" / "msgpush"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys\nsys.exit('the older one')\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "a service")
    return tmp_path


@needs_git
@pytest.mark.parametrize("end", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_was_checked_out_goes_however_it_ends(
    end: type[BaseException] | None, repository: Path
) -> None:
    trees: list[Path] = []

    def look() -> None:
        with checked_out("HEAD", repository) as version:
            trees.append(version.tree)
            assert (version.tree / "src/msgpush/__main__.py").exists()
            if end is not None:
                raise end

    if end is None:
        look()
    else:
        with pytest.raises(end):
            look()
    assert not trees[0].parent.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@needs_git
def test_a_version_is_named_by_its_commit_and_as_it_was_asked_for(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD").strip()
    names = []
    for revision in ("HEAD", commit[:9], commit):
        with checked_out(revision, repository) as version:
            names.append(version.name)
    assert names == [f"HEAD ({commit[:7]})", commit[:7], commit[:7]]


@needs_git
def test_the_service_that_runs_is_that_of_the_revision(repository: Path) -> None:
    with checked_out("HEAD", repository) as version:
        report = version.measure(PLAN)
    assert report.faults == ["d: -m msgpush serve did not start:\nthe older one"]


@needs_git
def test_a_revision_that_is_none_or_has_no_service_is_told(repository: Path) -> None:
    git(repository, "rm", "--quiet", "src/msgpush/__init__.py")
    git(repository, "commit", "--quiet", "--message", "no service")
    for revision, words in {
        "nonsense": "bad revision 'nonsense'",
        "--all": "bad revision '--all'",
        "": "bad revision ''",
        "HEAD": "HEAD has no src/msgpush/__init__.py",
    }.items():
        with pytest.raises(BadRevision, match=words), checked_out(revision, repository):
            pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_bad_revision_is_one_line_and_an_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--against", "nonsense"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("python -m bench: error: --against: ")


def test_dependencies_that_differ_are_told_by_version(tmp_path: Path) -> None:
    versions = []
    for name, release in (("this", "2.0"), ("other", "1.0")):
        tree = tmp_path / name
        tree.mkdir()
        (tree / "pyproject.toml").write_text(
            '[project]\ndependencies = ["server[fast]>=1", "parser"]\n'
        )
        (tree / "constraints.txt").write_text(f"server=={release}\nparser==3\nlinter=={release}\n")
        versions.append(Version(name, tree))
    this, other = versions
    first, second = differing_requirements(this, other)
    assert first.startswith("other dependencies: this is made for server==2.0; ")
    assert second.startswith("other dependencies: other is made for server==1.0; ")
    assert differing_requirements(this, this) == []


# The load client

FRAMED = {
    load.SSE: (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        b"18\r\nevent: msgpush.open\nid: 1\n\n\r\n",
        b"25\r\ndata: {%b}\nid: 2\n\n\r\n" % load.MARK,
    ),
    load.WS: (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n"
        b'\x81\x2a{"event":"msgpush.open","id":"1","data":{}}',
        b'\x81\x37{"event":"message","id":"2","data":{%b}}' % load.MARK,
    ),
}
"""Of each kind the answer that opens it, and a message."""


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[int, list[bytes], list[socket.socket]]]:
    """A server that answers one request; its port, what it was asked, and its end."""
    asked: list[bytes] = []
    peers: list[socket.socket] = []

    def serve() -> None:
        peer, _ = listener.accept()
        peers.append(peer)
        asked.append(peer.recv(65536))
        peer.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], asked, peers
        finally:
            thread.join(10)
            for peer in peers:
                peer.close()


@contextmanager
def streaming(port: int, kind: load.Kind) -> Iterator[tuple[load.Streams, select.epoll]]:
    """Streams of a kind, none yet, in a process that goes on after them."""
    with select.epoll() as poll:
        streams = load.Streams(poll, port, kind)
        try:
            yield streams, poll
        finally:
            for each in streams._sockets.values():
                each.close()


@pytest.mark.parametrize("kind", FRAMED, ids=lambda kind: kind.name)
def test_every_message_counts_once_however_it_is_cut(kind: load.Kind) -> None:
    opening, message = FRAMED[kind]
    size = len(message)
    # In two pieces, and byte by byte; what comes with the opening counts as well.
    cuts = [message[:at] for at in range(1, size)], [message[at:] for at in range(1, size)]
    pieces = [each for pair in zip(*cuts, strict=True) for each in pair]
    pieces += [message[at : at + 1] for at in range(size)]
    with (
        answering(opening + message) as (port, _, peers),
        streaming(port, kind) as (streams, poll),
    ):
        streams.open(1)
        ((fd, count),) = streams.received.items()
        assert count <= 1
        for piece in pieces:
            peers[0].sendall(piece)
            assert poll.poll(10)
            streams.read(fd)
        assert streams.received[fd] == 1 + size, "those cut in two, and two whole ones"
        found = kind.cursor.findall(bytes(streams.witness))
        assert set(found) == {b"2"}


def test_a_websocket_is_asked_for_by_its_handshake() -> None:
    with (
        answering(FRAMED[load.WS][0]) as (port, asked, _),
        streaming(port, load.WS) as (streams, _),
    ):
        streams.open(1)
    head, *headers = asked[0].decode().split("\r\n")
    assert head == "GET /ws?channel=bench HTTP/1.1"
    assert {"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"} < {*headers}
    assert headers[-2:] == ["", ""]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        b'HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x24{"event":"msgpush.close","data":{...}}',
    ],
)
def test_a_stream_that_does_not_open_is_told_at_once(answer: bytes) -> None:
    told = r"did not open \(WebSockets\): 'HTTP/1.1 [14]0"
    with (
        answering(answer) as (port, _, _),
        streaming(port, load.WS) as (streams, _),
        pytest.raises(load.Spoiled, match=told),
    ):
        streams.open(1)


# WebSockets beside SSE


class Unserved(Bench):
    """Measures nothing: its figures are known, turn by turn."""

    def __init__(self, plan: Plan, *, floors: bool = True) -> None:
        super().__init__(plan, floors=floors)
        self.measured: list[tuple[str, str]] = []

    @contextmanager
    def _service(self, streams: int, **settings: str) -> Iterator[Server]:
        assert float(settings["HEARTBEAT_INTERVAL"]) > 600, "no ping comes, and none is answered"
        yield Server(1, 1)

    def _client(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if work is load.probe:
            return ""
        kind = kwargs["kind"]
        turn = [1, 10, 2][sum(each == (work.__name__, kind.name) for each in self.measured)]
        self.measured.append((work.__name__, kind.name))
        figure = float(turn * {load.SSE: 100, load.WHOLE: 60, load.WS: 50}[kind])
        if work is load.fanout:
            return load.Fanout(
                deliveries_per_second=figure, accepted=1, gaps=0, bytes_per_delivery=1.0
            )
        return load.Burst(
            streams=1,
            rounds=1,
            p50=figure,
            p99=figure + 1,
            max=figure + 2,
            rss_per_stream=1024 * figure,
            opened_per_second=1.0,
        )


def test_kinds_take_turns_and_each_figure_is_a_median() -> None:
    bench = Unserved(planned(parse(["--parts", "n"]), sys.maxsize))
    report = bench.run()
    there = ["SSE", "SSE, whole messages", "WebSockets"]
    rates = [kind for work, kind in bench.measured if work == "fanout"]
    assert rates == [*there, *there[::-1], *there]
    bursts = [kind for work, kind in bench.measured if work == "burst"]
    assert bursts == ["SSE", "WebSockets", "WebSockets", "SSE", "SSE", "WebSockets"]
    assert [(each.value, each.floor) for each in report.figures] == [
        (100, 200),
        (100, 120),
        (100, 200),
        (101, 201),
        (102, 202),
        (100, 200),
    ]
    assert len(report.details) == 15
    assert report.faults == []


def test_where_versions_are_compared_websockets_are_measured_alone() -> None:
    bench = Unserved(
        planned(parse(["--against", "HEAD", "--parts", "n"]), sys.maxsize), floors=False
    )
    report = bench.run()
    assert bench.measured == [("fanout", "WebSockets"), ("burst", "WebSockets")] * 3
    assert [each.floor for each in report.figures] == [None] * 5


def test_a_version_without_websockets_fails_in_their_part_alone() -> None:
    calls: list[str] = []
    this, other = scripted(calls, "this", 1.0, 2.0), scripted(calls, "other", 1.0)
    other.reports.append(Report([], [], ["n: a stream did not open (WebSockets): 'HTTP/1.1 404'"]))
    plan = planned(parse(["--against", "HEAD", "--parts", "a,n"]), sys.maxsize)
    result = compare(this, other, plan, 1)
    assert [each.what for each in result.figures] == ["rate", "twice"]
    assert result.faults == ["other: n: a stream did not open (WebSockets): 'HTTP/1.1 404'"]
