"""The result of a run: its figures, what to know about them, and what makes them worthless."""

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "msgpush",
    "uvicorn",
    "uvloop",
    "httptools",
    "websockets",
    "starlette",
    "msgspec",
    "redis",
    "hiredis",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    what: str
    value: float
    floor: float | None = None
    unit: str = ""

    @property
    def ratio(self) -> float | None:
        """The service's figure over the floor's."""
        return self.value / self.floor if self.floor else None


@dataclass(slots=True)
class Report:
    """Figures, what to know about them, and what makes them worthless."""

    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Add what to know, unless it has been said."""
        if text not in self.notes:
            self.notes.append(text)


def say(text: str) -> None:
    """Tell of progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def about() -> dict[str, str]:
    """The machine and the software that the figures were measured on, and the command."""
    models = [
        line.split(":", 1)[1].strip()
        for line in lines("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    memory = next(
        (int(line.split()[1]) for line in lines("/proc/meminfo") if line.startswith("MemTotal:")),
        0,
    )
    return {
        "machine": (
            f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
            f"{memory / 2**20:.1f} GiB, {platform.system()} {platform.release()}"
        ),
        "versions": ", ".join(
            [
                f"python {platform.python_version()}",
                *(f"{name} {version(name)}" for name in _PACKAGES),
            ]
        ),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
    }


def lines(path: str | Path) -> list[str]:
    """The lines of a file; none where it can't be read."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def number(value: float | None, unit: str = "", digits: int | None = None) -> str:
    """A figure with three digits or so; a dash for none."""
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1
    return f"{value:,.{digits}f} {unit}".rstrip()


def print_table(about: Mapping[str, str], report: Report, took: float) -> None:
    """Print the figures beside their floors."""
    print_about(about)
    print(f"{'':56}{'msgpush':>14}{'floor':>14}{'ratio':>9}")
    for figure in report.figures:
        value, floor = number(figure.value, figure.unit), number(figure.floor, figure.unit)
        print(f"{figure.what:56}{value:>14}{floor:>14}{number(figure.ratio, digits=2):>9}")
    print()
    print(
        "floors: a, b a bare epoll send loop in Python; d a bare uvicorn app that reads the body"
        " and answers 202;"
    )
    print("        h the embedded bus; n SSE in turn with WebSockets, medians of both")
    print_end(report.notes, report.faults, took)


def print_about(about: Mapping[str, str]) -> None:
    """Print what the figures were measured on."""
    for name, text in about.items():
        print(f"{name:10}{text}")
    print()


def print_end(notes: Iterable[str], faults: list[str], took: float) -> None:
    """Print what to know, what went wrong, and the time that it took."""
    for note in notes:
        print(f"note: {note}")
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"{'FAILED' if faults else 'complete'}, in {took:.0f} s")


def content(about: Mapping[str, str], report: Report) -> dict[str, Any]:
    """The result as JSON has it."""
    figures = [asdict(figure) | {"ratio": figure.ratio} for figure in report.figures]
    return dict(about) | asdict(report) | {"figures": figures}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write the result for programs."""
    path.write_text(json.dumps(content, indent=2) + "\n")
