"""A real Prometheus that tests start themselves, on a free port, and end by its pid; and what they
ask of the files in `deploy/prometheus`.

    python -m tests.support.prometheus

writes the alerts anew as the Prometheus Operator takes them."""

import json
import re
import shutil
import subprocess
import tempfile
import textwrap
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.client import request
from tests.support.redis_servers import free_port
from tests.support.service import eventually

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "msgpush.json"
PROMETHEUS_RULE = ROOT / "deploy" / "kubernetes" / "monitoring" / "prometheusrule.yaml"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
SECONDS = {"s": 1, "m": 60, "h": 3600}


def promtool(*argv: str | Path) -> str:
    """What promtool says; fails where it refuses."""
    assert PROMTOOL is not None, "CI installs prometheus, which brings it"
    done = subprocess.run([PROMTOOL, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alert_names() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS.read_text())


def prometheus_rule() -> str:
    """The alerts as the Prometheus Operator takes them."""
    head = """\
# What deploy/prometheus/alerts.yml has, for the Prometheus Operator: `python -m tests.support.prometheus` writes it.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: msgpush
spec:
"""
    groups = ALERTS.read_text().partition("\ngroups:\n")[2]
    return head + textwrap.indent(f"groups:\n{groups}", "  ")


def dashboard_queries() -> list[str]:
    """All that the dashboard asks Prometheus for its panels."""
    board = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def hastened(rules: str, waiting: int, windows: int) -> str:
    """Rules whose alerts wait for a fraction of the time, and look back at one; nothing else in
    them is changed.
    """

    def shorter(match: re.Match[str]) -> str:
        before, number, unit = match.groups()
        factor = waiting if before == "for: " else windows
        return f"{before}{int(number) * SECONDS[unit] * 1000 // factor}ms"

    return re.sub(r"(for: |\[|offset )(\d+)([smh])\b", shorter, rules)


class Prometheus:
    """A server that asks its targets and evaluates its rules once a second.

    Args:
        rules: a file's text.
        targets: ports of this machine, by their label `namespace`.
    """

    def __init__(self, rules: str, targets: Mapping[str, Sequence[int]]) -> None:
        assert PROMETHEUS is not None, "CI installs prometheus"
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="msgpush-prometheus-"))
        (self._directory / "alerts.yml").write_text(rules)
        config = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": ["alerts.yml"],
            "scrape_configs": [
                {
                    "job_name": "msgpush",
                    "static_configs": [
                        {
                            "targets": [f"127.0.0.1:{port}" for port in ports],
                            "labels": {"namespace": namespace},
                        }
                        for namespace, ports in targets.items()
                    ],
                }
            ],
        }
        # JSON is YAML.
        (self._directory / "prometheus.yml").write_text(json.dumps(config))
        self._log = (self._directory / "log").open("wb")
        self._process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={self._directory}/prometheus.yml",
                f"--storage.tsdb.path={self._directory}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def __enter__(self) -> Self:
        try:
            eventually(self._ready)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def alerts(self, namespace: str) -> set[str]:
        """The alerts of a namespace that are firing."""
        found = self._ask("/api/v1/alerts")["alerts"]
        return {
            each["labels"]["alertname"]
            for each in found
            if each["state"] == "firing" and each["labels"].get("namespace") == namespace
        }

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        found: list[dict[str, Any]] = self._ask("/api/v1/query", query=expression)["result"]
        return found

    def seen(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """The series that an expression had at some second of the last ones."""
        now = time.time()
        found: list[dict[str, Any]] = self._ask(
            "/api/v1/query_range", query=expression, start=now - seconds, end=now, step=1
        )["result"]
        return found

    def _ask(self, path: str, **parameters: object) -> Any:
        answer = request(self.port, "GET", f"{path}?{urllib.parse.urlencode(parameters)}")
        assert answer.status == 200, answer.body
        return answer.json()["data"]

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            return request(self.port, "GET", "/-/ready").status == 200
        except OSError:
            return False


if __name__ == "__main__":
    PROMETHEUS_RULE.write_text(prometheus_rule())
