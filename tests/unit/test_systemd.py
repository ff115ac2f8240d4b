"""deploy/systemd: systemd takes the unit, and it agrees with the service."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from msgpush.entrypoints.commands.serve import DRAIN_GRACE
from msgpush.entrypoints.table import DEFAULTS, FILES

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "msgpush.service"
TEXT = UNIT.read_text()

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and "CI" not in os.environ, reason="needs systemd"
)


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that there is."""
    (start,) = values("ExecStart")
    file = tmp_path / UNIT.name
    file.write_text(TEXT.replace(start.split()[0], "/bin/true"))
    return file


@needs_systemd
def test_systemd_takes_the_unit(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_unit_is_as_closed_as_the_page_says(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    page = re.search(
        r"`systemd-analyze security` gives it ([\d.]+) of 10",
        (ROOT / "docs" / "operations.md").read_text(),
    )
    assert exposure is not None
    assert page is not None
    # Later ones look at more.
    assert float(exposure[1]) < float(page[1]) + 0.5


def test_secrets_come_as_credentials() -> None:
    given = dict(each.split(":") for each in values("LoadCredential"))
    named = re.findall(r"^Environment=(\w+)=%d/(\w+)$", TEXT, re.MULTILINE)
    assert {name for _, name in named} == given.keys()
    assert {variable.lower() for variable, _ in named} <= {*FILES.values()}


def test_it_is_given_longer_than_its_drain_takes() -> None:
    (seconds,) = values("TimeoutStopSec")
    assert int(seconds) > float(DEFAULTS["drain_seconds"]) + DRAIN_GRACE


def test_workers_are_told_by_their_supervisor() -> None:
    assert (values("KillMode"), values("KillSignal")) == (["mixed"], ["SIGTERM"])


def test_there_are_files_for_all_streams_and_what_is_wrong_is_not_tried_again() -> None:
    (files,) = values("LimitNOFILE")
    assert int(files) > 5 * int(DEFAULTS["max_connections"])
    assert values("RestartPreventExitStatus") == ["2"]
