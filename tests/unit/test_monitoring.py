"""Dashboard and alerts name metrics and labels that there are; the documents know every alert; the
files for Kubernetes have the same ones."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from msgpush.adapters.metrics.families import FAMILIES
from tests.support.prometheus import (
    ALERTS,
    DASHBOARD,
    PROMETHEUS_RULE,
    ROOT,
    alert_names,
    dashboard_queries,
    prometheus_rule,
)

BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text())
PANELS: list[dict[str, Any]] = BOARD["panels"]
# What Prometheus adds, and what a histogram has.
EVERYWHERE = {"job", "instance", "namespace", "le"}


def alert_queries() -> list[str]:
    return re.findall(r"expr: (?:\|\n)?((?:.+\n)+?) +(?:for|labels):", ALERTS.read_text())


QUERIES = [*alert_queries(), *dashboard_queries()]


def labels_of() -> dict[str, set[str]]:
    """Each name that a query may use, with its labels."""
    found: dict[str, set[str]] = {}
    for name, family in FAMILIES.items():
        endings = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        found |= {name + ending: {*family.labels} for ending in endings}
    return found


def test_the_queries_of_all_alerts_are_found() -> None:
    assert len(alert_queries()) == ALERTS.read_text().count("- alert: ")


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_metrics_and_labels_that_there_are(query: str) -> None:
    known = labels_of()
    metrics = set(re.findall(r"\bmessage_push_\w+", query))
    assert metrics - known.keys() == set()
    selectors = re.findall(r"(\w+)\{([^}]*)\}", query)
    for metric, inside in selectors:
        if metric in known:
            assert set(re.findall(r"(\w+)\s*[=!]", inside)) <= known[metric] | EVERYWHERE
    grouped = {
        label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")
    }
    assert grouped <= EVERYWHERE.union(*(known[metric] for metric in metrics))


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        cells = {*_cells(panel["gridPos"])}
        assert not cells & taken, panel["title"]
        assert all(0 <= x < 24 for x, _ in cells), panel["title"]
        taken |= cells


def _cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def test_every_panel_asks_the_chosen_source_for_the_chosen_instances_and_says_what_it_shows() -> (
    None
):
    assert [each["name"] for each in BOARD["templating"]["list"]] == [
        "datasource",
        "job",
        "instance",
    ]
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'job="$job"' in target["expr"] or "ALERTS" in target["expr"]
            # `rate` over a fixed window shows nothing where Prometheus asks seldom.
            assert set(re.findall(r"\[(.*?)\]", target["expr"])) <= {"$__rate_interval"}


def test_the_documents_say_of_every_alert_what_to_do_where_it_leads() -> None:
    page = (ROOT / "docs" / "incidents.md").read_text()
    told = dict(re.findall(r"^### (Msgpush\w+)\n\n`(\w+)`", page, re.MULTILINE))
    rules = re.findall(
        r"- alert: (\w+)\n(?:.*\n)*?\s+severity: (\w+)\n(?:.*\n)*?\s+runbook_url: (\S+)\n",
        ALERTS.read_text(),
    )
    assert told == {name: severity for name, severity, _ in rules}
    for name, _, where in rules:
        assert where == f"docs/incidents.md#{name.lower()}"
    assert [*told] == alert_names(), "in the same order"


def test_the_prometheus_operator_is_given_the_same_alerts() -> None:
    wanted = prometheus_rule()
    assert PROMETHEUS_RULE.read_text() == wanted, "run: python -m tests.support.prometheus"
