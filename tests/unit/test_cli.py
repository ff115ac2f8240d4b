"""The `msgpush` command."""

import subprocess
import sys

import pytest

from msgpush import __version__
from msgpush.entrypoints.cli import main


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (["--version"], 0, f"msgpush {__version__}\n"),
        (["--help"], 0, "usage: msgpush serve"),
        (["serve", "--help"], 0, "--service-port"),
        ([], 2, "usage: msgpush serve"),
        (["server"], 2, "there is no command 'server'"),
        (["serve", "--service-port", "x"], 2, "--service-port"),
        (["serve", "--workers", "2"], 2, "--workers is '2': several processes need a bus that they share"),
        (["serve", "--jwt-secret", "hunter2"], 2, "--jwt-secret (its value is not shown)"),
        (["token"], 2, "usage: msgpush token"),
        (["token", "--help"], 0, "issue|inspect"),
        (["token", "issue", "--sub", "me"], 2, "JWT_SECRET has no value"),
    ],
)
def test_every_way_to_ask_has_its_answer_and_status(
    argv: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    captured = capsys.readouterr()
    assert caught.value.code == status
    assert told in captured.out + captured.err
    assert "hunter2" not in captured.out + captured.err
    assert bool(captured.err) == (status != 0 and bool(argv))


def test_the_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "msgpush", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"msgpush {__version__}\n"
