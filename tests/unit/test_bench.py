"""The bench's command line, and its comparison of two versions; no test asserts a speed."""

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
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
from bench.parts import Plan
from bench.report import Figure, Report

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
        ("--parts x", "--parts takes letters from a to l"),
        ("--parts ,", "--parts takes letters from a to l"),
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
    assert parse([]).parts == frozenset("abcdefghijklm")
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
