"""A short run of `make chaos`."""

import subprocess
import sys

import pytest


@pytest.mark.long
def test_a_short_chaos_agrees_with_its_account() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seconds", "15", "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "violations 0" in run.stdout.splitlines()[-1]
    assert "received 0" not in run.stdout
