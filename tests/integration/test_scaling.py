"""The bench's autoscaler, instances and proxy, in short: streams come and go, and nobody misses
anything. No speed is asserted.
"""

import os
import shutil

import pytest
from bench.scaling.run import Scenario, play

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("caddy") is None and "CI" not in os.environ, reason="needs caddy"
    ),
]


@pytest.mark.parametrize("rebalance", [0, 20])
def test_streams_that_ramp_up_and_down_before_an_autoscaler_lose_nothing(rebalance: int) -> None:
    scenario = Scenario(
        rebalance=rebalance,
        least=20,
        most=300,
        ramp=8,
        hold=10,
        fall=12,
        target=80,
        limit=200,
        factor=20,
        drain=2,
    )
    outcome = play(scenario)
    counts = outcome.counts
    assert (outcome.lost, outcome.doubled, outcome.bad_gateways) == (0, 0, 0), counts
    assert outcome.most_instances >= 3
    assert len(outcome.samples[-1].streams) == 1, "it has come down to one again"
    assert len(outcome.statuses) == len(outcome.joined)
    assert set(outcome.statuses) == {0}, "each drain ended well"
    assert counts["received"] > 1000
    assert counts["closed drain"] > 0
    assert counts["reopened"] > 0
    assert bool(counts["closed disconnected"]) == bool(rebalance), "streams were moved, or not"
