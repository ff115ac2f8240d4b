"""compose.yaml, nginx.conf and the code agree: names, ports, and the times of which one must exceed
the other.
"""

import re
from pathlib import Path

from msgpush.entrypoints.commands.serve import DRAIN_GRACE
from msgpush.entrypoints.protocol import Limits
from msgpush.entrypoints.settings import Settings
from msgpush.entrypoints.table import DEFAULTS
from tests.support.tokens import SECRET

ROOT = Path(__file__).parents[2]
NGINX = (ROOT / "deploy" / "nginx.conf").read_text()
PROMETHEUS = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
MIB = 1024 * 1024


def provisioned(what: str) -> str:
    return (ROOT / "deploy" / "grafana" / "provisioning" / what / "msgpush.yml").read_text()


def block(text: str, name: str) -> str:
    """What is indented below `name:` in a YAML file; the outermost of that name."""
    found = re.finditer(
        rf"^( *){re.escape(name)}:.*\n((?:\1 +.*\n|\n| *#.*\n)*)", text, re.MULTILINE
    )
    return min(found, key=lambda match: len(match[1]))[2]


def number(pattern: str, text: str) -> int:
    (found,) = set(re.findall(pattern, text))
    return int(found)


COMPOSE = (ROOT / "compose.yaml").read_text()
SERVICES = block(COMPOSE, "services")
INSTANCE = block(COMPOSE, "x-msgpush")
ENVIRONMENT = dict(
    re.findall(r'^ +([A-Z_]+): "?([^"\s]+)"?', block(INSTANCE, "environment"), re.MULTILINE)
)


def names(text: str) -> list[str]:
    return re.findall(r"^  (\S+):", text, re.MULTILINE)


def test_nginx_names_the_instances_that_compose_starts_and_the_port_that_they_listen_on() -> None:
    upstreams = re.findall(r"^ +server (\S+):(\d+) ", NGINX, re.MULTILINE)
    assert [name for name, _ in upstreams] == [
        name for name in names(SERVICES) if name.startswith("msgpush")
    ]
    assert {port for _, port in upstreams} == {DEFAULTS["service_port"]}
    for name, _ in upstreams:
        assert block(SERVICES, name).strip() == "<<: *msgpush"


def test_only_nginx_and_the_monitoring_can_be_reached_and_from_this_machine_alone() -> None:
    open_ports = {"nginx": 8080, "prometheus": 9090, "grafana": 3000}
    assert "ports:" not in INSTANCE
    for name in names(SERVICES):
        service = block(SERVICES, name)
        published = re.findall(r'^ +- "([\d.:]+:\d+)"$', service, re.MULTILINE)
        port = open_ports.get(name)
        assert published == ([f"127.0.0.1:{port}:{port}"] if port else [])
        assert "network_mode" not in service
        assert ("outside" in service) == (name in open_ports)
    assert "internal: true" in block(block(COMPOSE, "networks"), "inside")
    assert "\n        listen 8080;\n" in NGINX


def test_the_environment_of_an_instance_is_valid_and_its_numbers_are_the_defaults() -> None:
    proxies = re.findall(r"TRUSTED_PROXIES: '(.*)'", INSTANCE)[0]
    given = {"SERVICE_HOST": "0.0.0.0", "JWT_SECRET": SECRET, "TRUSTED_PROXIES": proxies}
    assert ENVIRONMENT.pop("METRICS_TOKEN") == "${METRICS_TOKEN:-}"
    settings = Settings.from_environ({**ENVIRONMENT, **given, "METRICS_TOKEN": ""})
    assert settings.metrics_token is None
    assert (settings.mode, settings.redis_host) == ("tokens", "redis")
    assert "redis" in names(SERVICES)
    others = {
        name: text for name, text in ENVIRONMENT.items() if name not in ("REDIS_HOST", *given)
    }
    assert others == {name: DEFAULTS[name.lower()] for name in others}


def test_monitoring_runs_where_it_is_asked_for_and_watches_every_instance() -> None:
    for name in ("prometheus", "grafana"):
        assert "profiles: [monitoring]\n" in block(SERVICES, name)
    for name in ("nginx", "redis", "msgpush-1"):
        assert "profiles" not in block(SERVICES, name)
    port = DEFAULTS["service_port"]
    targets = [f"{name}:{port}" for name in names(SERVICES) if name.startswith("msgpush")]
    assert f"targets: [{', '.join(targets)}]" in PROMETHEUS
    (token,) = re.findall(r"credentials_file: (\S+)", PROMETHEUS)
    assert f"target: {token}\n" in block(SERVICES, "prometheus")
    assert "content: ${METRICS_TOKEN:-none}" in block(COMPOSE, "metrics-token")


def test_grafana_is_given_prometheus_and_the_dashboard() -> None:
    grafana = block(SERVICES, "grafana")
    mounts = dict(re.findall(r"- \./(\S+):(\S+):ro", grafana))
    assert all((ROOT / path).exists() for path in mounts)
    home = mounts["deploy/grafana/msgpush.json"]
    assert f"GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH: {home}\n" in grafana
    assert mounts["deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert f"path: {home.rpartition('/')[0]}\n" in provisioned("dashboards")
    assert "url: http://prometheus:9090\n" in provisioned("datasources")


def test_compose_starts_nothing_without_a_key_and_says_so() -> None:
    assert re.search(r"JWT_SECRET: \$\{JWT_SECRET:\?[^}]*openssl rand -hex 32", INSTANCE)


def test_an_instance_is_given_longer_than_its_drain_takes() -> None:
    assert (
        number(r"stop_grace_period: (\d+)s", INSTANCE)
        > int(ENVIRONMENT["DRAIN_SECONDS"]) + DRAIN_GRACE
    )


def test_redis_deletes_nothing_that_is_still_needed() -> None:
    command = re.findall(r"^ +- (\S+)$", block(block(SERVICES, "redis"), "command"), re.MULTILINE)
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == '"yes"'


def test_nginx_waits_for_more_than_two_heartbeats() -> None:
    assert number(r"proxy_read_timeout (\d+)s;", NGINX) > 2.5 * Settings().heartbeat_interval


def test_nginx_closes_idle_connections_before_an_instance_does() -> None:
    upstream = NGINX.partition("upstream msgpush {")[2].partition("\n    }\n")[0]
    assert number(r"keepalive_timeout (\d+)s;", upstream) < Limits().keep_alive


def test_nginx_lets_through_what_msgpush_itself_refuses() -> None:
    assert number(r"client_max_body_size (\d+)m;", NGINX) * MIB > 2 * Settings().max_message_bytes


def test_nginx_serves_as_many_streams_as_the_instances_do() -> None:
    connections, files = (
        number(r"worker_connections (\d+);", NGINX),
        number(r"worker_rlimit_nofile (\d+);", NGINX),
    )
    assert connections < files
    assert connections > Settings().max_connections * 2
