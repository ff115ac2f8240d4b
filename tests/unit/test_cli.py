"""The `msgpush` command."""

import subprocess
import sys
from typing import Any

import pytest
from structlog.testing import capture_logs

from msgpush import __version__
from msgpush.entrypoints.cli import main
from msgpush.entrypoints.commands.serve import _greet, _warn
from msgpush.entrypoints.settings import Settings
from tests.support.tokens import P256, SECRET, public_pem


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (["--version"], 0, f"msgpush {__version__}\n"),
        (["--help"], 0, "Usage: msgpush "),
        (["serve", "--help"], 0, "--service-port"),
        ([], 2, "Usage: msgpush "),
        (["server"], 2, 'there is no command "server"'),
        (["serve", "--service-port", "x"], 2, "--service-port"),
        (
            ["serve", "--workers", "2"],
            2,
            '--workers is "2": several processes need a bus that they share',
        ),
        (["serve", "--jwt-secret", "hunter2"], 2, "--jwt-secret (its value is not shown)"),
        (["token"], 2, "Usage: msgpush token"),
        (["token", "--help"], 0, "inspect  Say why"),
        (["token", "issue", "--sub", "me"], 2, "JWT_SECRET has no value"),
    ],
)
def test_every_way_to_ask_has_its_answer_and_status(
    argv: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    captured = capsys.readouterr()
    assert caught.value.code == status
    assert told in captured.out + captured.err
    assert "hunter2" not in captured.out + captured.err
    assert bool(captured.err) == (status != 0 and bool(argv))


KEY = {"jwt_public_key": public_pem(P256)}
REGISTERED = {"jwt_secret": SECRET, "service_host": "10.0.0.7"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ""),
        ({"jwt_secret": SECRET}, ""),
        ({"enable_auth": False}, "authentication is off"),
        (KEY, "JWT_AUDIENCE is not set"),
        ({**KEY, "jwt_audience": "push"}, ""),
        ({"jwks_url": "https://id.example/jwks"}, "JWT_AUDIENCE is not set"),
        ({"jwks_url": "http://id.example/jwks", "jwt_audience": "push"}, "JWKS_URL is not https"),
        ({"jwt_issuer": "https://id.example"}, "JWT_AUDIENCE is not set"),
        (REGISTERED | {"gateway_url": "https://gw"}, ""),
        (REGISTERED | {"consul_url": "http://127.0.0.1:8500"}, ""),
        (REGISTERED | {"gateway_url": "http://gw"}, "GATEWAY_URL is not https"),
        (
            REGISTERED | {"etcd_url": "http://127.0.0.1:2379,http://etcd:2379"},
            "ETCD_URL is not https",
        ),
        ({"redis_url": "rediss://r?ssl_cert_reqs=none"}, "REDIS_URL has ssl_cert_reqs=none"),
        ({"redis_url": "rediss://r?ssl_cert_reqs=optional"}, ""),
        ({"jwt_issuer": "https://id.example", "jwt_audience": ("push", "api")}, ""),
        ({"jwt_issuer": "https://id.example", "jwt_secret": SECRET}, ""),
        ({"trusted_proxies": ("unix",)}, "means nothing without SERVICE_UDS"),
        ({"service_uds": "/run/push.sock"}, ""),
        ({"service_uds": "/run/push.sock", "jwt_secret": SECRET}, 'TRUSTED_PROXIES=["unix"]'),
        ({"service_uds": "/run/push.sock", "jwt_secret": SECRET, "trusted_proxies": ("unix",)}, ""),
    ],
)
def test_what_may_be_a_mistake_is_warned_of_at_the_start(
    settings: dict[str, Any], told: str
) -> None:
    with capture_logs() as lines:
        _warn(Settings(max_connections=1, **settings))
    assert [line["log_level"] == "warning" and told in line["event"] for line in lines] == (
        [True] if told else []
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_greeting_of_any_address_names_one_that_can_be_opened(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _greet(Settings(service_host=host, enable_auth=False), host, 8089)
    told = capsys.readouterr().out
    assert "serves http://localhost:8089/ " in told
    assert "curl -N http://localhost:8089/sse/stream/demo\n" in told
    assert "http://localhost:8089/admin/ is the operator's page" in told


def test_the_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "msgpush", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"msgpush {__version__}\n"
