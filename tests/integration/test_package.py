"""The wheel runs without the clone, and so does the image, whose steps are taken here one by one."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from msgpush import __version__
from tests.support.client import request
from tests.support.service import eventually
from tests.support.tokens import SECRET

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with the wheel in it, made as the Containerfile makes it."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "src"
    source.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    pinned = os.environ | {
        "PIP_CONSTRAINT": "constraints.txt",
        "PIP_BUILD_CONSTRAINT": "constraints.txt",
    }
    build: list[str] = [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), "."]
    subprocess.run(build, env=pinned, cwd=source, check=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "app", with_pip=True)
    python = folder / "app" / "bin" / "python"
    install: list[str] = [
        str(python),
        *pip[1:],
        "install",
        "--constraint",
        "constraints.txt",
        f"{wheel}[client]",
    ]
    subprocess.run(install, env=pinned, cwd=source, check=True, timeout=180)
    return folder / "app" / "bin"


def test_the_command_tells_its_version(installed: Path) -> None:
    result = subprocess.run(
        [installed / "msgpush", "--version"], capture_output=True, text=True, check=True, timeout=30
    )
    assert result.stdout == f"msgpush {__version__}\n"


def test_what_is_installed_is_what_is_pinned(installed: Path) -> None:
    command: list[str] = [
        str(installed / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "freeze",
        "--exclude",
        "msgpush",
    ]
    frozen = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    assert "uvicorn" in {line.partition("==")[0] for line in frozen}
    assert set(frozen) <= set((ROOT / "constraints.txt").read_text().splitlines())
    container = (ROOT / "Containerfile").read_text()
    assert "COPY pyproject.toml constraints.txt " in container
    assert "export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt" in container
    assert "ARG EXTRAS=client,otel\n" in container
    assert "--constraint constraints.txt \\\n" in container
    assert '"$(echo /wheels/*.whl)[${EXTRAS}]"' in container


def test_the_image_starts_is_healthy_and_ends_on_sigterm(installed: Path, tmp_path: Path) -> None:
    text = (ROOT / "Containerfile").read_text()
    block = re.search(r"ENV (.*?)\n[A-Z]", text, re.DOTALL)
    assert block is not None
    environ = dict(re.findall(r"(\w+)=(\S+)", block[1]))
    without_key = subprocess.run(
        [installed / "msgpush", "serve"],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert without_key.returncode == 2
    assert "set a key for tokens (JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL)" in without_key.stderr
    check = re.search(r'CMD \["/app/bin/python", "-c", "(.*?)"\]', text)
    assert check is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ |= {
        "JWT_SECRET": SECRET,
        "SERVICE_HOST": "127.0.0.1",
        "SERVICE_PORT": str(port),
        "PATH": os.environ["PATH"],
    }
    process = subprocess.Popen(
        [installed / "msgpush", "serve"],
        env=environ,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        health = [installed / "python", "-c", check[1]]
        # A container's environment may name proxies, for what it fetches from elsewhere.
        nobody = "http://127.0.0.1:1"
        proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"), nobody)
        environ |= proxies
        eventually(
            lambda: (
                subprocess.run(health, env=environ, capture_output=True, check=False).returncode
                == 0
            )
        )
        assert request(port, "GET", "/health").status == 200
        assert request(port, "GET", "/sse/stream/a").status == 401
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_the_image_has_no_build_tools_and_no_root_in_its_last_stage() -> None:
    last = (ROOT / "Containerfile").read_text().rpartition("FROM ")[2]
    assert "pip" not in last
    assert "gcc" not in last
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE), "a number: see runAsNonRoot"
    assert 'ENTRYPOINT ["/app/bin/msgpush"]' in last, "the exec form: signals reach the process"
