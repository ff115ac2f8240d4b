"""Two versions of the service, compared on a machine that is not quiet.

Both run in turn, part by part and round by round, and each round's figures are compared with each
other alone: what else the machine does slows both. The load client is this tree's for both."""

import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.parts import PARTS, ROOT, Bench, Plan
from bench.report import Figure, Report, lines, number, print_about, print_end, say

COMPARABLE = frozenset("".join(part.letters for part in PARTS if part.takes))


class BadRevision(Exception):
    """There is nothing to compare with by this name; the error says why."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the service: its name, and its working tree."""

    name: str
    tree: Path

    def measure(self, plan: Plan) -> Report:
        """Measure this service, without floors."""
        return Bench(plan, self.tree / "src", floors=False).run()


@dataclass(frozen=True, slots=True)
class Paired:
    """A figure of both versions, round by round."""

    what: str
    unit: str
    this: tuple[float, ...]
    other: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """This tree's figure over the other's of the same round."""
        return [this / other for this, other in zip(self.this, self.other, strict=True) if other]

    def content(self) -> dict[str, Any]:
        """The figure as JSON has it."""
        return asdict(self) | {
            "this_median": median(self.this),
            "other_median": median(self.other),
            "ratios": self.ratios,
            "ratio_median": median(self.ratios) if self.ratios else None,
        }


@dataclass(slots=True)
class Comparison:
    """Figures of both versions, what to know about them, and what makes them worthless."""

    this: str
    other: str
    rounds: int
    figures: list[Paired] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def print(self, about: Mapping[str, str], took: float) -> None:
        """Print the result for people."""
        print_about({"compared": f"{self.this} with {self.other}", **about})
        print(f"{'':56}{'this':>14}{'other':>14}{'ratio':>8}{'least':>8}{'most':>8}")
        for figure in self.figures:
            values = (number(median(each), figure.unit) for each in (figure.this, figure.other))
            ratios = figure.ratios
            spread = [median(ratios), min(ratios), max(ratios)] if ratios else [None] * 3
            print(
                f"{figure.what:56}{''.join(f'{value:>14}' for value in values)}"
                f"{''.join(f'{number(ratio, digits=2):>8}' for ratio in spread)}"
            )
        print()
        print(
            f"medians, rounds: {self.rounds}; ratio: this over other in the same round, the median,"
            " the least and the most"
        )
        print_end(self.notes, self.faults, took)

    def content(self, about: Mapping[str, str]) -> dict[str, Any]:
        """The result as JSON has it."""
        return dict(about) | asdict(self) | {"figures": [each.content() for each in self.figures]}


def compare(this: Version, other: Version, plan: Plan, rounds: int) -> Comparison:
    """Measure both versions in turn, each first in every other round.

    A part that fails for one of them becomes a fault, and is left at that; the others go on.
    """
    result = Comparison(this.name, other.name, rounds)
    result.notes += differing_requirements(this, other)
    for letters in dict.fromkeys(part.letters for part in PARTS):
        if parts := plan.parts & set(letters):
            _compare_parts(this, other, replace(plan, parts=parts), result)
    return result


def _compare_parts(this: Version, other: Version, plan: Plan, result: Comparison) -> None:
    figures: dict[Version, list[list[Figure]]] = {this: [], other: []}
    for turn in range(result.rounds):
        for version in (this, other) if turn % 2 == 0 else (other, this):
            say(f"round {turn + 1} of {result.rounds}, {version.name}:")
            report = version.measure(plan)
            result.notes += [note for note in report.notes if note not in result.notes]
            if report.faults:
                result.faults += [f"{version.name}: {fault}" for fault in report.faults]
                return
            figures[version].append(report.figures)
    # Both have the same figures in the same order: the load client is the same.
    for row in zip(*figures[this], *figures[other], strict=True):
        values = tuple(figure.value for figure in row)
        ours, theirs = values[: result.rounds], values[result.rounds :]
        result.figures.append(Paired(row[0].what, row[0].unit, ours, theirs))


def expected_seconds(plan: Plan, rounds: int) -> float:
    """The time that a comparison takes, about."""
    chosen = [part for part in PARTS if plan.parts & set(part.letters)]
    return 2 * rounds * sum(part.takes(plan) for part in chosen if part.takes)


def current() -> Version:
    """The version that is here, as it is: changes that are in no commit are part of it."""
    changed = _git(ROOT, "status", "--porcelain", "--", "src")
    name = f"this tree ({_git(ROOT, 'describe', '--always')}"
    return Version(f"{name}, with changes in src)" if changed else f"{name})", ROOT)


@contextmanager
def checked_out(revision: str, repository: Path = ROOT) -> Iterator[Version]:
    """The version by this name, in a working tree of its own; removed on leaving.

    Raises:
        BadRevision: there is none, or it has no service.
    """
    commit = _git(repository, "rev-list", "--max-count=1", "--end-of-options", revision, "--")
    with tempfile.TemporaryDirectory(prefix="msgpush-bench-") as directory:
        tree = Path(directory, "tree")
        try:
            # Hooks are for those who work in the tree.
            add = ("-c", "core.hooksPath=/dev/null", "worktree", "add", "--quiet", "--detach")
            _git(repository, *add, str(tree), commit)
            # Without these, Python would start the package that is installed: this tree's.
            for file in ("src/msgpush/__init__.py", "src/msgpush/__main__.py"):
                if not (tree / file).exists():
                    raise BadRevision(f"{revision} has no {file}")
            short = commit[:7]
            yield Version(short if commit.startswith(revision) else f"{revision} ({short})", tree)
        finally:
            # Twice: also one that was still being made.
            remove = ("worktree", "remove", "--force", "--force", str(tree))
            subprocess.run(["git", *remove], cwd=repository, capture_output=True, check=False)


def _git(repository: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=repository, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise BadRevision("git is not installed") from None
    if done.returncode:
        raise BadRevision(done.stderr.strip().splitlines()[-1].removeprefix("fatal: "))
    return done.stdout.strip()


def differing_requirements(this: Version, other: Version) -> list[str]:
    """Notes of what one version's service asks to be installed and the other's doesn't."""
    needs = {version: _requirements(version.tree) for version in (this, other)}
    notes = []
    for version, than in ((this, other), (other, this)):
        if more := sorted(needs[version] - needs[than]):
            notes.append(
                f"other dependencies: {version.name} is made for {', '.join(more)}; both ran with"
                " what is installed here"
            )
    return notes


def _requirements(tree: Path) -> frozenset[str]:
    """The requirements of a tree's service, and the releases of these that it pins."""
    project = tomllib.loads("\n".join(lines(tree / "pyproject.toml"))).get("project", {})
    requirements: list[str] = project.get("dependencies", [])
    names = {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}
    pins = [line for line in lines(tree / "constraints.txt") if line.split("==")[0] in names]
    return frozenset([*requirements, *pins])
