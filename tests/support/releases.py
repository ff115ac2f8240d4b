"""An earlier release of the service, run beside this one."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import ServiceProcess

# Python has it since 3.11.4.
_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

ROOT = Path(__file__).parents[2]
# The last one that knows no acknowledgements.
BEFORE = "3317175"
# The last one without the operator's page; it has everything that clients use.
LAST = "77f4705"


def earlier_source(directory: Path, revision: str = BEFORE) -> Path:
    """The source of an earlier release, put into a directory; skips where its history is missing."""
    command = ["git", "archive", "--format=tar", revision, "src"]
    try:
        made = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs git")
    if made.returncode:
        pytest.skip(f"needs the history, with commit {revision}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(directory, **_FILTER)
    return directory / "src"


def earlier_process(source: Path, redis_url: str, **environ: Any) -> ServiceProcess:
    """The service of an earlier release, with the libraries that are installed here."""
    return ServiceProcess(PYTHONPATH=str(source), REDIS_URL=redis_url, **environ)


def run_earlier(source: Path, program: str, *arguments: str) -> str:
    """What a program prints that imports an earlier release."""
    made = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout
