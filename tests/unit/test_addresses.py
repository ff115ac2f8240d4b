"""Addresses: one and the same whichever way it is written, wherever two are compared."""

from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from msgpush.adapters.http.addresses import ProxyHeaders, limited_address, one_notation, with_port
from msgpush.adapters.http.origins import is_local_host
from msgpush.entrypoints.settings import Settings, SettingsError

PROXY = [
    "10.0.0.1",
    "::ffff:10.0.0.1",
    "::FFFF:10.0.0.1",
    "::ffff:a00:1",
    "0:0:0:0:0:ffff:0a00:0001",
]
PROXY_V6 = ["fd00::1", "FD00::1", "fd00:0:0::1", "fd00::1%eth0"]


@pytest.mark.parametrize(
    ("written", "notation"),
    [
        *((each, "10.0.0.1") for each in PROXY),
        ("2001:DB8:0:0::0001", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("64:ff9b::10.0.0.1", "64:ff9b::a00:1"),  # another address, though it has the same digits
        ("::10.0.0.1", "::a00:1"),
        ("localhost", "localhost"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_an_address_has_one_notation_and_what_is_none_stays(written: str, notation: str) -> None:
    assert one_notation(written) == notation


@pytest.mark.parametrize("host", [*PROXY, "::ffff:10.0.0.1%eth0"])
def test_one_address_counts_once_whichever_way_it_is_written(host: str) -> None:
    assert limited_address(host) == "10.0.0.1"


def test_an_address_of_ipv6_is_told_from_its_port() -> None:
    assert with_port("2001:db8::1", 80) == "[2001:db8::1]:80"
    assert with_port("10.0.0.1", 80) == "10.0.0.1:80"


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::FFFF:127.8.9.10", "0:0:0:0:0:0:0:1"])
def test_this_machine_is_itself_in_every_notation(host: str) -> None:
    assert Settings.from_environ({"SERVICE_HOST": host}).mode == "local"
    assert is_local_host(f"[{host}]")
    assert is_local_host(f"[{host}]:8089")
    assert not is_local_host(host)


def test_another_machine_is_not_this_one_in_any_notation() -> None:
    for host in ("::ffff:10.0.0.1", "::ffff:0.0.0.0", "::"):
        assert not is_local_host(f"[{host}]")
        with pytest.raises(SettingsError, match="SERVICE_HOST"):
            Settings.from_environ({"SERVICE_HOST": host})


async def seen(
    trusted: str,
    client: tuple[str, int] | None,
    *forwarded: str,
    proto: str = "https",
    type: str = "http",
) -> tuple[Any, str]:
    """What an application sees of where a request comes from, and of its scheme."""
    settings = Settings.from_environ({"TRUSTED_PROXIES": trusted})
    found: list[tuple[Any, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append((scope["client"], scope["scheme"]))

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    headers.append((b"x-forwarded-proto", proto.encode()))
    plain = "http" if type == "http" else "ws"
    scope = {"type": type, "scheme": plain, "client": client, "headers": headers}
    await ProxyHeaders(app, settings.trusted_proxies)(scope, receive, send)
    return found[0]


@pytest.mark.parametrize(
    "trusted", ['["10.0.0.0/8"]', '["10.0.0.1"]', '["::ffff:10.0.0.0/104"]', '["::FFFF:a00:1"]']
)
@pytest.mark.parametrize("peer", PROXY)
async def test_a_proxy_is_trusted_in_every_notation_of_its_address(trusted: str, peer: str) -> None:
    assert await seen(trusted, (peer, 5), "203.0.113.7") == (("203.0.113.7", 0), "https")


@pytest.mark.parametrize("type", ["http", "websocket"])
@pytest.mark.parametrize(
    ("proto", "secure"),
    [("https", True), ("wss", True), ("http", False), ("ws", False), ("x", False)],
)
async def test_a_trusted_proxy_says_whether_its_client_came_over_tls_in_either_words(
    type: str, proto: str, secure: bool
) -> None:
    _, scheme = await seen('["10.0.0.1"]', ("10.0.0.1", 5), "203.0.113.7", proto=proto, type=type)
    assert scheme == ("http" if type == "http" else "ws") + ("s" if secure else "")


@pytest.mark.parametrize("peer", PROXY_V6)
async def test_a_proxy_of_ipv6_is_trusted_in_every_notation_of_its_address(peer: str) -> None:
    for trusted in ('["fd00::1"]', '["FD00:0::/64"]'):
        assert await seen(trusted, (peer, 5), "203.0.113.7") == (("203.0.113.7", 0), "https")


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        *((f"198.51.100.9, 203.0.113.7, {proxy}", ("203.0.113.7", 0)) for proxy in PROXY),
        *(
            (f"203.0.113.7:99, [{proxy}]:443", ("203.0.113.7", 99))
            for proxy in PROXY
            if ":" in proxy
        ),
        ("203.0.113.7, 10.0.0.2:443", ("203.0.113.7", 0)),
        ("::ffff:203.0.113.7", ("203.0.113.7", 0)),
        ("[::ffff:203.0.113.7]:99", ("203.0.113.7", 99)),
        ("[2001:DB8::1]:99", ("2001:db8::1", 99)),
        ("[2001:DB8::1]", ("2001:db8::1", 0)),
        ("2001:db8:0::1", ("2001:db8::1", 0)),
        ("10.0.0.3, ::ffff:10.0.0.2", ("10.0.0.3", 0)),  # whom proxies name may be one of them
        ("203.0.113.7:99999", ("203.0.113.7", 0)),
        ("unknown", ("unknown", 0)),
        ("[10.0.0.1, 10.0.0.2", ("[10.0.0.1", 0)),
        (" , ", ("10.0.0.1", 5)),
    ],
)
async def test_a_client_behind_proxies_is_found_and_has_one_notation(
    forwarded: str, client: tuple[str, int]
) -> None:
    assert await seen('["10.0.0.0/8"]', ("10.0.0.1", 5), forwarded) == (client, "https")


async def test_headers_that_proxies_add_count_as_one_list() -> None:
    assert (await seen('["10.0.0.0/8"]', ("10.0.0.1", 5), "6.6.6.6", "203.0.113.7, 10.0.0.2"))[0][
        0
    ] == "203.0.113.7"


@pytest.mark.parametrize("peer", ["11.0.0.1", "::ffff:11.0.0.1", "fd00::1", "", "proxy"])
async def test_nobody_else_is_believed(peer: str) -> None:
    assert await seen('["10.0.0.0/8", "fd01::/16"]', (peer, 5), "203.0.113.7") == (
        (peer, 5),
        "http",
    )


async def test_a_scheme_that_is_none_is_not_believed() -> None:
    for proto in ("gopher", "https, http", "HTTPS", ""):
        assert (await seen('["10.0.0.0/8"]', ("10.0.0.1", 5), proto=proto)) == (
            ("10.0.0.1", 5),
            "http",
        )
