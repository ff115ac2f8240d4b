"""The commands that are clients of a service, as people and scripts use them."""

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest

from msgpush.entrypoints.cli import COMMANDS, commands, run
from tests.integration.test_nginx import free_port
from tests.support.service import PATIENCE, ServiceProcess, ThreadedService, eventually
from tests.support.tokens import SECRET, token

COMMAND = [sys.executable, "-m", "msgpush"]
CLEAN = {key: value for key, value in os.environ.items() if key in ("HOME", "LANG")}
CLEAN["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
DEFAULT_URL = "http://127.0.0.1:8089"
ORIGIN = "https://app.example.com"
DOCUMENT = Path(__file__).parents[2] / "docs" / "command-line.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)

Result = subprocess.CompletedProcess[str]


@pytest.fixture
def service() -> Iterator[ThreadedService]:
    with ThreadedService(cors_origins=(ORIGIN,)) as service:
        yield service


def url(service: ThreadedService | ServiceProcess) -> str:
    return f"http://127.0.0.1:{service.port}"


def msgpush(*argv: str, stdin: str = "", **environ: str) -> Result:
    """What a command says that is no person's: it has no terminal."""
    return subprocess.run(
        [*COMMAND, *argv],
        input=stdin,
        env={**CLEAN, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def started(*argv: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on."""
    process = subprocess.Popen(
        [*COMMAND, *argv],
        env={**CLEAN, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def publish(service: ThreadedService, *flags: str) -> None:
    argv = ["publish", "--type", "info", "--service", "importer", *flags]
    assert run(argv, {"MSGPUSH_URL": url(service)}) == 0


def connections(service: ThreadedService) -> list[Any]:
    found: list[Any] = httpx2.get(f"{url(service)}/api/v1/connections").json()["connections"]
    return found


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def streams(service: ThreadedService) -> int:
    return len(service.push.connections)


# Examples: of each --help, and of the page


def every_command() -> Iterator[tuple[str, click.Command]]:
    root = click.Context(commands, info_name="msgpush", obj={})
    for name in COMMANDS:
        command = commands.get_command(root, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", each) for sub, each in command.commands.items())


def examples(command: click.Command) -> list[str]:
    """The lines that a command's --help shows as examples."""
    _, _, shown = command.get_help(click.Context(command, obj={})).partition("Example")
    return [line.strip() for line in shown.splitlines() if re.match(r"\s+(msgpush|eval) ", line)]


EXAMPLES = [(name, each) for name, command in every_command() for each in examples(command)]


def test_every_help_has_an_example() -> None:
    assert {name for name, _ in EXAMPLES} == {name for name, _ in every_command()}
    assert examples(commands)[0].startswith("msgpush publish --type info --service me ")
    for name in ("", "publish", "dead-letters list"):
        assert "Example" in msgpush(*name.split(), "--help").stdout


def test_the_list_of_commands_says_what_each_of_them_says() -> None:
    for name, command in every_command():
        if name in COMMANDS and name != "serve":
            first = (command.help or "").partition("\n\n")[0]
            assert first.startswith(COMMANDS[name].help.removesuffix("."))


class Shell:
    """A shell in a directory of its own, whose service is this one."""

    def __init__(self, service: ThreadedService, directory: Path) -> None:
        self._service, self._directory = service, directory
        self.environ = {**CLEAN, "JWT_SECRET": SECRET, "MSGPUSH_URL": url(service)}

    def run(self, script: str, **environ: str) -> str:
        """Run a script, which must succeed or, if it goes on, be ended by Ctrl-C alone."""
        text = script.replace(DEFAULT_URL, url(self._service))
        text = text.replace("--service-port 8089", "--service-port 0")
        goes_on = re.search(r"^msgpush (listen|serve)[^|&\n]*\Z", text.rstrip(), re.MULTILINE)
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self._directory,
            env={**self.environ, "HOME": str(self._directory), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                if goes_on is not None:
                    self._wait(process, goes_on[1])
                    os.killpg(process.pid, signal.SIGINT)
                out, told = process.communicate(timeout=60)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if goes_on is None:
            assert process.returncode == 0, told
        elif goes_on[1] == "listen":
            assert process.returncode in (130, -signal.SIGINT), told
            assert told == ""
        return out

    def _wait(self, process: subprocess.Popen[str], command: str) -> None:
        if command == "listen":
            eventually(lambda: streams(self._service) > 0)
            return
        assert process.stdout is not None
        assert "msgpush" in process.stdout.readline() + process.stdout.readline()


@pytest.fixture
def shell(service: ThreadedService, tmp_path: Path) -> Shell:
    return Shell(service, tmp_path)


# A trial of a push takes Redis, keys and a device: tests/integration/test_command_push.py has them.
ALONE = [each for each in EXAMPLES if each[0] != "push test"]


@pytest.mark.long
@pytest.mark.parametrize(("name", "example"), ALONE, ids=[each for _, each in ALONE])
def test_the_example_of_a_help_does_what_it_says(
    name: str, example: str, shell: Shell, service: ThreadedService, tmp_path: Path
) -> None:
    (tmp_path / "messages.ndjson").write_text('{"type":"info","channels":["demo"]}\n' * 3)
    (tmp_path / ".config/fish/completions").mkdir(parents=True)
    waits = ["--user", "123", "--id", "import-42-done", "--ack"]
    if "import-42-done" in example:
        dead = name.startswith("dead-letters")
        publish(service, *waits, *(["--ttl", "1"] if dead else []))
        if dead:
            listed = "msgpush dead-letters list --service importer"
            shell.run(f"until {listed} | grep -q import-42-done; do sleep 0.1; done")
    else:
        publish(service, "--user", "123", "--channel", "demo", "--channel", "imports")
    if name == "listen":
        publish(service, "--channel", "imports", "--id", "late")
    with started("listen", "demo", "--user", "123", MSGPUSH_URL=url(service)):
        if name in ("connections", "disconnect", "stats"):
            eventually(lambda: streams(service) == 1)
        text = example.replace("demo | head", "demo --since earliest | head")
        if name == "disconnect":
            text = text.replace("4f1c2e9ab0d35c77", connections(service)[0]["id"])
        out = shell.run(text)
    if name in ("history", "connections", "stats", "publish", "token issue", "token inspect"):
        assert out or "<" in example
    if name == "disconnect":
        eventually(lambda: streams(service) == 0)


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[-1] for block in BLOCKS])
def test_what_the_page_shows_runs(block: str, shell: Shell, service: ThreadedService) -> None:
    for n in (1, 2):
        publish(service, "--channel", "demo", "--data", f'{{"n":{n}}}')
    out = shell.run(block)
    if "listen imports demo" in block:
        assert [each["data"]["n"] for each in lines(out)] == [1, 2]
    if "doctor" in block:
        assert {line.split()[0] for line in out.splitlines()} == {"ok"}


def test_the_page_names_every_command() -> None:
    page = DOCUMENT.read_text()
    assert all(f"`{name}`" in page for name in COMMANDS)


# Publishing


def test_a_message_has_all_that_the_flags_say(service: ThreadedService, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"exactly": 1.000000000000000000001}')
    flags = "--user 1 --target kb=k --target task_id=t --channel a --channel b --id x --ttl 60 --priority high"
    publish(service, *flags.split(), "--data", f"@{tmp_path}/data.json", "--ack", '{"deadline": 5}')
    result = msgpush("history", "a", MSGPUSH_URL=url(service))
    assert '"exactly": 1.000000000000000000001' in result.stdout
    (message,) = lines(result.stdout)
    assert message["target"] == {"user_id": "1", "kb_id": "k", "task_id": "t"}
    assert message["channels"] == ["a", "b"]
    assert message["id"] == "x"
    assert (message["metadata"]["priority"], message["metadata"]["ttl"]) == ("high", 60)
    assert message["metadata"]["ack"]["deadline"] == 5


def test_a_message_with_an_id_is_stored_once(service: ThreadedService) -> None:
    told = [
        lines(
            msgpush(
                *["publish", "--type", "info", "--service", "s", "--channel", "once", "--id", "x"],
                MSGPUSH_URL=url(service),
            ).stdout
        )[0]["duplicate"]
        for _ in range(2)
    ]
    assert told == [False, True]


def test_lines_from_stdin_are_published_in_order_and_what_is_wrong_holds_nothing_up(
    service: ThreadedService,
) -> None:
    good = [f'{{"type":"info","channels":["n"],"data":{{"n":{n}}}}}' for n in range(2500)]
    bad = ["no json", '{"type":"nope"}', "[]", "[" * 3000, '{"type":"info","service":7}']
    text = "\ufeff" + "\n".join([*good[:1000], *bad, "", *good[1000:]])
    result = msgpush("publish", "--service", "s", stdin=text, MSGPUSH_URL=url(service))
    assert (result.returncode, result.stdout) == (1, "")
    told = result.stderr.splitlines()
    assert [line.split(":")[1] for line in told[:5]] == [f" line {n}" for n in range(1001, 1006)]
    assert told[5:] == ["msgpush: 2500 published, 5 refused"]
    result = msgpush("history", "n", MSGPUSH_URL=url(service))
    kept = [each["data"]["n"] for each in lines(result.stdout)]
    assert kept[-1000:] == list(range(1500, 2500))


def test_lines_are_published_as_they_come(service: ThreadedService) -> None:
    process = subprocess.Popen(
        [*COMMAND, "publish"],
        env={**CLEAN, "MSGPUSH_URL": url(service)},
        stdin=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        process.stdin.write('{"type":"info","service":"s","channels":["slow"]}\n')
        process.stdin.flush()
        answers = f"{url(service)}/api/v1/channels/slow/messages"
        eventually(lambda: len(httpx2.get(answers).json()["messages"]) == 1)
        process.stdin.close()
    assert process.returncode == 0


def test_a_service_that_is_to_come_is_waited_for() -> None:
    port = free_port()
    waiting = ["publish", "--type", "info", "--service", "s", "--wait", "30"]
    with (
        started(*waiting, MSGPUSH_URL=f"http://127.0.0.1:{port}") as process,
        ServiceProcess(SERVICE_PORT=str(port)),
    ):
        assert process.wait(30) == 0


# Listening


def test_listening_in_a_pipe_is_a_line_of_json_a_message(service: ThreadedService) -> None:
    environ = {"MSGPUSH_URL": url(service)}
    flags = ["listen", "demo", "--types", "info", "--no-broadcast"]
    with started(*flags, **environ) as process:
        eventually(lambda: streams(service) == 1)
        msgpush(*["publish", "--type", "success", "--service", "s", "--channel", "demo"], **environ)
        publish(service, "--channel", "demo", "--id", "seen", "--data", '{"line\\n": 1.50}')
        assert process.stdout is not None
        line = process.stdout.readline()
        assert json.loads(line)["id"] == "seen"
        assert "1.50" in line
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


def test_who_listens_is_a_guest_unless_it_says_otherwise(service: ThreadedService) -> None:
    environ = {"MSGPUSH_URL": url(service)}
    publish(service, "--user", "9", "--id", "m", "--ack")
    state = f"{url(service)}/api/v1/messages/importer/m/delivery"
    for flags, expected in (([], "accepted"), (["--as-user"], "written")):
        with started("listen", "--user", "9", "--since", "earliest", *flags, **environ) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            eventually(lambda expected=expected: httpx2.get(state).json()["state"] == expected)  # type: ignore[misc]


@pytest.mark.long
def test_a_listener_goes_on_when_the_service_is_restarted() -> None:
    port = free_port()
    environ = {"MSGPUSH_URL": f"http://127.0.0.1:{port}"}
    message = ["publish", "--type", "info", "--service", "s", "--channel", "demo", "--id"]
    with (
        ServiceProcess(SERVICE_PORT=str(port), DRAIN_SECONDS="0") as first,
        started("listen", "demo", **environ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        eventually(lambda: msgpush("connections", **environ).stdout != "")
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
        assert "the stream has ended (drain); trying again" in process.stderr.readline()
        with ServiceProcess(SERVICE_PORT=str(port)):
            assert msgpush(*message, "m", **environ).returncode == 0
            # The embedded bus has forgotten all, and that is told, too.
            told = [process.stderr.readline() for _ in range(2)]
            assert "msgpush: messages are missing here: reset\n" in told
            assert "msgpush: it goes on\n" in told
            assert msgpush(*message, "n", **environ).returncode == 0
            while json.loads(process.stdout.readline())["id"] != "n":
                pass


def test_the_place_is_kept_in_a_file(service: ThreadedService, tmp_path: Path) -> None:
    file = str(tmp_path / "place")
    seen = []
    for n in range(3):
        publish(service, "--channel", "demo", "--id", f"m{n}")
        flags = ["listen", "demo", "--since", "earliest", "--cursor-file", file]
        with started(*flags, MSGPUSH_URL=url(service)) as process:
            assert process.stdout is not None
            seen.append(json.loads(process.stdout.readline())["id"])
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
    assert seen == ["m0", "m1", "m2"]


def test_a_ticket_opens_a_stream() -> None:
    with ThreadedService(jwt_secret=SECRET) as service:
        bearer = token("bob", subscribe=["demo"], publish=["*"])
        ticket = httpx2.post(
            f"{url(service)}/api/v1/tickets",
            json={"channels": ["demo"]},
            headers={"Authorization": f"Bearer {bearer}"},
        ).json()["ticket"]
        environ = {"MSGPUSH_URL": url(service)}
        with started("listen", "demo", "--ticket", ticket, **environ) as process:
            eventually(lambda: streams(service) == 1)
            msgpush(
                *["publish", "--type", "info", "--service", "s", "--channel", "demo", "--id", "m"],
                **environ,
                MSGPUSH_TOKEN=bearer,
            )
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["id"] == "m"


def test_a_stream_that_is_ended_for_good_is_told(service: ThreadedService) -> None:
    with started("listen", "demo", MSGPUSH_URL=url(service)) as process:
        eventually(lambda: streams(service) == 1)
        (found,) = connections(service)
        assert (
            msgpush("disconnect", found["id"], "--final", MSGPUSH_URL=url(service)).returncode == 0
        )
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "msgpush: the service has ended the stream: disconnected\n"


# Pipes, signals, terminals


@pytest.mark.parametrize(
    "command",
    [
        "listen demo --since earliest | head -1",
        "history demo | head -1",
        "connections | true",
        "listen demo | true",
    ],
)
def test_a_reader_that_has_had_enough_ends_it_at_once_and_quietly(
    command: str, service: ThreadedService
) -> None:
    for n in range(3):
        publish(service, "--channel", "demo", "--id", f"m{n}")
    result = subprocess.run(
        ["bash", "-c", f"msgpush {command}; echo ${{PIPESTATUS[0]}}"],
        env={**CLEAN, "MSGPUSH_URL": url(service)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (result.stdout.splitlines()[-1], result.stderr) == ("0", "")


@pytest.mark.parametrize("command", ["listen demo --since earliest", "history demo", "stats"])
def test_what_could_not_be_written_is_no_success(command: str, service: ThreadedService) -> None:
    publish(service, "--channel", "demo")
    result = subprocess.run(
        ["bash", "-c", f"msgpush {command} > /dev/full"],
        env={**CLEAN, "MSGPUSH_URL": url(service)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "msgpush: the output can't be written: No space left on device\n"


def test_ctrl_c_ends_it_quietly(service: ThreadedService) -> None:
    with started("listen", "demo", MSGPUSH_URL=url(service)) as process:
        eventually(lambda: streams(service) == 1)
        ends_quietly(process)
    # Another that waits: for a service that hangs up at once.
    waiting = ["publish", "--type", "info", "--service", "s", "--wait", "60"]
    with socket.create_server(("127.0.0.1", 0)) as busy:
        where = f"http://127.0.0.1:{busy.getsockname()[1]}"
        with started(*waiting, MSGPUSH_URL=where) as process:
            busy.accept()[0].close()
            ends_quietly(process)


def ends_quietly(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert process.stdout is not None
    assert process.stderr is not None
    assert (process.stdout.read(), process.stderr.read()) == ("", "")


class Terminal:
    """What a person sees of a command."""

    def __init__(self, *argv: str, stdin: Any = None, **environ: str) -> None:
        self._primary, secondary = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *argv],
            env={**CLEAN, "TERM": "xterm", **environ},
            stdin=secondary if stdin is None else stdin,
            stdout=secondary,
            stderr=secondary,
            start_new_session=True,
        )
        os.close(secondary)
        self.seen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._primary)

    def shows(self, text: str) -> bool:
        """Whether it has been shown by now."""
        while select.select([self._primary], [], [], 0.05)[0]:
            try:
                self.seen += os.read(self._primary, 65536).decode()
            except OSError:  # nobody has the other end any longer
                break
        return text in self.seen


def test_on_a_terminal_messages_are_text_that_does_nothing_to_it(service: ThreadedService) -> None:
    with Terminal("listen", "demo", "--user", "1", MSGPUSH_URL=url(service)) as terminal:
        eventually(lambda: terminal.shows("listening to broadcast, demo, user:1; Ctrl-C ends it"))
        publish(service, "--channel", "demo", "--data", '{"t":"a\x9b31m\u202eb 你好"}')
        eventually(lambda: terminal.shows(r'{"t":"a\x9b31m\u202eb 你好"}'))
        assert "\x9b" not in terminal.seen
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(PATIENCE) == 130
        assert "Traceback" not in terminal.seen


def test_on_a_terminal_lists_are_tables(service: ThreadedService) -> None:
    environ = {"MSGPUSH_URL": url(service), "NO_COLOR": "1"}
    with started("listen", "--user", "1", **environ):
        eventually(lambda: streams(service) == 1)
        for command, told in (("connections", "user:1"), ("stats", "transport sse")):
            with Terminal(command, **environ) as terminal:
                eventually(lambda: terminal.shows(told))  # noqa: B023 - called here
                assert terminal.process.wait(PATIENCE) == 0
                assert "\x1b[" not in terminal.seen


def test_on_a_terminal_many_messages_have_a_progress_bar(
    service: ThreadedService, tmp_path: Path
) -> None:
    file = tmp_path / "messages.ndjson"
    file.write_text('{"type":"info","channels":["demo"],"data":{}}\n' * 3000)
    flags = ["publish", "--service", "s"]
    with file.open() as stdin, Terminal(*flags, stdin=stdin, MSGPUSH_URL=url(service)) as terminal:
        eventually(lambda: terminal.shows("3000 published, 0 refused"))
        assert "100%" in terminal.seen


def test_a_terminal_on_stdin_is_not_waited_for(service: ThreadedService) -> None:
    with Terminal("publish", MSGPUSH_URL=url(service)) as terminal:
        eventually(lambda: terminal.shows("--type is missing"))
        assert terminal.process.wait(PATIENCE) == 2


# What goes wrong


def said(capture: pytest.CaptureFixture[str], *argv: str, **environ: str) -> tuple[int, str, str]:
    """The exit status of a command, and what it says."""
    status = run(argv, environ)
    captured = capture.readouterr()
    return status, captured.out, captured.err


ASKS = {
    "publish": "publish --type info --service s",
    "publish lines": "publish --service s lines",
    "listen": "listen demo",
    "history": "history demo",
    "connections": "connections",
    "disconnect": "disconnect x",
    "stats": "stats",
    "acknowledge": "acknowledge 1 a/b",
    "dead-letters list": "dead-letters list --service s",
    "dead-letters redeliver": "dead-letters redeliver s/1",
    "dead-letters delete": "dead-letters delete s/1",
}


@pytest.mark.parametrize("asks", ASKS.values(), ids=ASKS)
def test_a_service_that_cannot_be_reached_or_refuses_the_token_is_told_in_one_line(
    asks: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def refusal(status: int, **environ: str) -> str:
        if "lines" in asks:
            argv = asks.removesuffix(" lines").split()
            result = msgpush(*argv, stdin='{"type":"info"}\n', **environ)
            told = result.returncode, result.stdout, result.stderr
        else:
            told = said(capfd, *asks.split(), **environ)
        assert told[:2] == (status, "")
        assert told[2].count("\n") == 1
        return told[2]

    told = refusal(3, MSGPUSH_URL="http://127.0.0.1:1")
    assert re.match(r"msgpush: http://127.0.0.1:1 can't be reached: .*; set MSGPUSH_URL ", told)
    with ThreadedService(jwt_secret=SECRET) as service:
        told = refusal(1, MSGPUSH_URL=url(service))
        assert "401, there is no token" in told
        assert "set MSGPUSH_TOKEN" in told
        told = refusal(1, MSGPUSH_URL=url(service), MSGPUSH_TOKEN="s3cret")
        assert "401, the token is no signed JSON Web Token" in told
        assert "`msgpush token inspect` says what is wrong with this one" in told
        assert "s3cret" not in told
        told = refusal(1, MSGPUSH_URL=f"{url(service)}/nope")
        assert "404" in told
        assert f"`msgpush doctor {url(service)}/nope` finds out why" in told


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["history", "demo", "--url", "127.0.0.1:8089"], 'the URL is "127.0.0.1:8089": it must be'),
        (["history", "demo", "--url", "https://u:pass@"], 'the URL is "https://": it must be'),
        (["history", "demo", "--url", "https://x/#y"], 'the URL is "https://x/#y": it must be'),
        (["history", "demo", "--url", "http://x..y"], 'the URL is "http://x..y": it must be'),
        (["history", "demo", "--url", "http://u:pass/w@h"], 'the URL is "http://h": it must be'),
        (["history", "demo", "--url", "http://h/?t=pass"], 'the URL is "http://h/?...": it must'),
        (["history", "demo", "--token", "a b"], "the token can't be one"),
        (["history", "demo", "--token", "a", "--token-file", "b"], "exclude each other"),
        (["history", "demo", "--token-file", "/none"], "--token-file /none: No such file"),
        (["history", "demo", "--last", "1", "--after", "x"], "exclude each other"),
        (["history"], "Missing argument"),
        (["listen"], "there is nothing to listen to"),
        (["listen", "a", "--types", "nope"], "nope is none of progress"),
        (["publish", "--type", "info"], "--service is missing"),
        (["publish", "--type", "nope"], "'nope' is not one of"),
        (["publish", "--type", "info", "--service", "s", "--data", "[]"], "must be a JSON object"),
        (["publish", "--type", "info", "--service", "s", "--data", "@/none"], "/none: No such"),
        (["publish", "--type", "info", "--service", "s", "--target", "x"], "such as kb=kb789"),
        (["publish", "--type", "info", "--service", "s", "--ack", "x"], "--ack"),
        (["publish", "--user", "1"], "--type is missing: --user goes with it"),
        (["publish", "--channel", "1"], "--type is missing: --channel goes with it"),
        (["history", "\udcff"], "the arguments are not in UTF-8"),
        (["publish", "--type", "info", "--target", "k=\udcff"], "the arguments are not in UTF-8"),
        (["dead-letters", "delete", "x"], '"x" is no key'),
        (["doctor", "--origin", "x"], "an origin is such as"),
        (["publish", "\x1b[31m"], r"\x1b[31m"),
        (["publsh"], "did you mean publish?"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_one_line(
    argv: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = said(capsys, *argv)
    assert (status, out) == (2, "")
    assert why in err
    assert err.count("\n") == 1
    assert err.removesuffix("\n").isprintable()
    assert "pass" not in err.replace("--pass", "")


@pytest.mark.parametrize(
    "environ",
    [
        {"ALL_PROXY": "socks5://127.0.0.1:1"},
        {"HTTPS_PROXY": "foo://127.0.0.1"},
        {"SSL_CERT_FILE": "/none"},
    ],
    ids=["no SOCKS", "no proxy", "no certificates"],
)
@pytest.mark.parametrize(
    "command", ["history demo", "publish --type info --service s", "listen demo", "doctor"]
)
def test_an_environment_in_which_nothing_can_be_asked_is_told_in_one_line(
    command: str,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    status, out, err = said(capsys, *command.split())
    assert (status, out) == (3, "")
    assert "the proxy or the certificates that the environment names" in err
    assert err.count("\n") == 1


def test_what_the_service_finds_wrong_is_told_with_its_place(
    service: ThreadedService, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--type", "progress", "--service", "s", "--data", '{"progress": 101}']
    status, _, err = said(capsys, "publish", *flags, MSGPUSH_URL=url(service))
    assert status == 1
    assert "422, /data/progress: 101 is not allowed" in err
    status, _, err = said(capsys, "acknowledge", "1", "a/b", MSGPUSH_URL=url(service))
    assert (status, err) == (1, "msgpush: not waited for, of user 1: a/b\n")


def test_without_the_extra_a_client_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "httpx2.py").write_text("raise ModuleNotFoundError(name='httpx2')\n")
    for command in ("publish", "listen", "doctor", "stats"):
        result = msgpush(command, "x", PYTHONPATH=str(tmp_path))
        assert (result.returncode, result.stderr) == (
            1,
            f"msgpush: {command} needs httpx2: pip install 'msgpush[client]'\n",
        )
    assert msgpush("--help", PYTHONPATH=str(tmp_path)).returncode == 0
    assert (
        msgpush(
            "token", "issue", "--sub", "a", JWT_SECRET=SECRET, PYTHONPATH=str(tmp_path)
        ).returncode
        == 0
    )


def test_the_list_of_commands_costs_little() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"],
        env=CLEAN,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & {
        "starlette",
        "uvicorn",
        "msgspec",
        "structlog",
        "redis",
        "httpx2",
        "asyncio",
    }


# Completion


def completed(words: str) -> set[str]:
    """What bash offers for the last of these words, with the script that it is given."""
    script = (
        'eval "$(msgpush completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        ' _msgpush_completion msgpush; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "-c", script, "bash", *words.split(" ")],
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stderr == ""
    return set(result.stdout.split())


def test_bash_completes_commands_flags_and_values() -> None:
    assert completed("msgpush d") == {"disconnect", "dead-letters", "doctor"}
    assert completed("msgpush dead-letters ") == {"list", "redeliver", "delete"}
    assert completed("msgpush publish --ta") == {"--target"}
    assert completed("msgpush publish --priority h") == {"high"}
    assert completed("msgpush serve --log-l") == {"--log-level", "--log-length"}
    assert completed("msgpush serve --log-level w") == {"warning"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_scripts(shell: str, tmp_path: Path) -> None:
    script = msgpush("completion", shell).stdout
    assert "_MSGPUSH_COMPLETE" in script
    environ = {"_MSGPUSH_COMPLETE": f"{shell}_complete", "COMP_WORDS": "msgpush pub"}
    environ["COMP_CWORD"] = "1" if shell == "zsh" else "pub"
    assert "publish" in msgpush(**environ).stdout
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        assert subprocess.run([program, "-n", tmp_path / "script"], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_commands() -> None:
    script = "msgpush completion fish | source; complete -C 'msgpush dead-letters re'"
    result = subprocess.run(
        ["fish", "--no-config", "-c", script],
        env={**CLEAN, "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.startswith("redeliver")
