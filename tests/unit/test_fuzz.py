"""A short run of each target of `make fuzz`, and what it says where one fails."""

from contextlib import nullcontext

import pytest
from hypothesis import strategies as st

from tests.fuzz.__main__ import play
from tests.fuzz.targets import TARGETS, Target, fuzz


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_keeps_the_contract_whatever_it_gets(name: str) -> None:
    tally = fuzz(TARGETS[name], 1, 300)
    assert tally.examples >= 300
    assert 0.05 < tally.accepted / tally.examples < 0.95, "the examples are worth something"


def test_a_seed_decides_all_examples() -> None:
    def examples(number: int) -> list[object]:
        seen: list[object] = []

        def check(case: object) -> bool:
            seen.append(case)
            return True

        fuzz(Target(TARGETS["message"].cases, lambda: nullcontext(check)), number, 50)
        return seen

    assert examples(1) == examples(1) != examples(2)


def test_what_fails_is_told_with_its_least_example_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(number: int) -> bool:
        assert number < 1_000
        return True

    monkeypatch.setitem(TARGETS, "numbers", Target(st.integers(), lambda: nullcontext(check)))
    assert not play("numbers", 7, 0)
    told = capsys.readouterr().out
    for part in ("numbers: seed 7 fails", "case=1000", "make fuzz TARGET=numbers SEED=7"):
        assert part in told


def test_what_does_not_fail_is_told_with_its_seeds_and_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert play("cursor", 7, 0)
    assert capsys.readouterr().out.startswith("cursor: seeds 7 to 7, 500 examples, ")
