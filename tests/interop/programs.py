"""Builds the clients' programs, and runs them: what they print arrives in a list."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.interop.registry import CLIENTS, Client
from tests.support.browser import CHROMIUM, Browser, Tab, Unanswered
from tests.support.web import WebServer, answer

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "interop"
PYTHON = BUILD / "python" / "bin" / "python"

# What each kind needs of the machine.
TOOLS = {
    "node": ("node", "npm"),
    "page": ("node", "npm", "chromium"),
    "python": (),
    "go": ("go",),
    "java": ("javac", "java", "mvn"),
    "shell": ("bash", "curl"),
}

Told = Callable[[dict[str, Any]], None]


def missing(kind: str) -> list[str]:
    """The tools that a kind of program needs and this machine lacks."""
    return [
        tool
        for tool in TOOLS[kind]
        if (CHROMIUM if tool == "chromium" else shutil.which(tool)) is None
    ]


def build(kinds: set[str]) -> None:
    """Build what isn't built yet, under `build/interop`."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for names, folder, make in (
        ({"node", "page"}, "js", _build_js),
        ({"python"}, "python", _build_python),
        ({"go"}, "go", _build_go),
        ({"java"}, "java", _build_java),
    ):
        if names & kinds:
            _once(folder, make)


def _once(folder: str, make: Callable[[Path, Path], None]) -> None:
    """Run a build unless its sources are those of the last one."""
    source, stamp = CLIENTS / folder, BUILD / f"{folder}.stamp"
    texts = [each.read_bytes() for each in sorted(source.rglob("*")) if _is_built(each, source)]
    digest = hashlib.sha256(b"\0".join([sys.version.encode(), *texts])).hexdigest()
    there = stamp.exists() and (folder != "js" or (source / "node_modules").is_dir())
    if not there or stamp.read_text() != digest:
        make(source, BUILD / folder)
        stamp.write_text(digest)


def _is_built(file: Path, folder: Path) -> bool:
    """Whether a file is something that a build is made of: programs in Python are run as they
    are.
    """
    installed = "node_modules" in file.relative_to(folder).parts
    return file.is_file() and not installed and file.suffix not in (".py", ".pyc")


def _build_js(source: Path, target: Path) -> None:
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], source)
    pages = [each.name for each in source.glob("*.mjs")]
    options = ["--bundle", "--format=esm", "--platform=browser", "--log-level=error"]
    # `eventsource.mjs` imports nothing of Node.js, so all are bundled alike.
    _run(["node_modules/.bin/esbuild", *pages, *options, f"--outdir={target}"], source)


def _build_python(source: Path, target: Path) -> None:
    _run([sys.executable, "-m", "venv", "--clear", str(target)], source)
    pip = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    _run([*pip, "--requirement", "requirements.txt"], source)


def _build_go(source: Path, target: Path) -> None:
    _run(["go", "build", "-o", f"{target}/", "./r3labs", "./tmaxmax"], source)


def _build_java(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    copy = ["mvn", "--quiet", "--batch-mode", "dependency:copy-dependencies"]
    _run([*copy, f"-DoutputDirectory={target}"], source)
    files = [each.name for each in source.glob("*.java")]
    _run(["javac", "-cp", f"{target}/*", "-d", str(target), *files], source)


def _run(argv: Sequence[str], directory: Path) -> None:
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)


def command(client: Client, url: str) -> list[str]:
    """How a program is run that isn't a page."""
    match client.kind:
        case "node":
            return ["node", str(CLIENTS / "js" / client.program), url]
        case "python":
            return [str(PYTHON), "-m", f"tests.interop.clients.python.{client.program}", url]
        case "go":
            return [str(BUILD / "go" / client.program), url]
        case "java":
            small = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
            return ["java", *small, "-cp", f"{BUILD}/java:{BUILD}/java/*", client.program, url]
    return [str(CLIENTS / "shell" / client.program), url]


@contextlib.contextmanager
def running(client: Client, url: str, told: Told) -> Iterator[None]:
    """A program runs until the block ends; `told` is called by a thread, with each line."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command(client, url), cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                told(json.loads(line))
            process.wait()
            errors.seek(0)
            told({"exited": process.returncode, "errors": errors.read()[-2000:]})

        reader = threading.Thread(target=read, name=client.name)
        reader.start()
        try:
            yield
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()


class Pages(WebServer):
    """The programs for browsers, each in a page that is named after it."""

    def get(self, exchange: Any) -> None:
        name = exchange.path.partition("?")[0].removeprefix("/")
        page = (
            f'<!doctype html><meta charset="utf-8"><script type="module" src="{name}.js"></script>'
        )
        script = BUILD / "js" / name
        if name.endswith(".js") and script.is_file():
            answer(exchange, script.read_bytes(), ("Content-Type", "text/javascript"))
        else:
            answer(exchange, page.encode(), ("Content-Type", "text/html"))


@contextlib.contextmanager
def browsing(origin: str, shown: Sequence[tuple[Client, str, Told]]) -> Iterator[None]:
    """A browser shows the pages of some clients until the block ends."""
    over = threading.Event()
    with tempfile.TemporaryDirectory(prefix="msgpush-interop-") as profile:

        def look() -> None:
            with Browser(Path(profile) / "profile") as browser:
                tabs = [
                    (browser.open(f"{origin}/{Path(client.program).stem}?url={quote(url)}"), told)
                    for client, url, told in shown
                ]
                while not over.wait(0.05):
                    for tab, told in tabs:
                        for line in _taken(tab):
                            told(json.loads(line))

        looking = threading.Thread(target=look, name="browser")
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()


def _taken(tab: Tab) -> list[str]:
    """The lines that a page has printed since the last time."""
    with contextlib.suppress(Unanswered):  # it is just being loaded
        lines: list[str] = tab.value("globalThis.lines?.splice(0) ?? []")
        return lines
    return []
