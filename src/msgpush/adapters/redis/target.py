"""Reads a REDIS_URL: one server, the master that Sentinels name, or a Cluster's primary."""

import difflib
import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

from msgspec import Struct

from msgpush.domain.quoting import short_repr

Address = tuple[str, int]


class RedisTarget(Struct, frozen=True):
    """A Redis: where to look for it, and what each connection needs.

    Args:
        hosts: the server; or those that know where it is.
        master: the name that Sentinels know it by.
        options: for redis-py's connections: database, password, certificates.
        sentinel_options: for connections to Sentinels.
    """

    kind: Literal["server", "sentinel", "cluster"]
    hosts: tuple[Address, ...]
    options: Mapping[str, Any]
    master: str = ""
    sentinel_options: Mapping[str, Any] = {}

    @classmethod
    def from_url(cls, url: str) -> "RedisTarget":
        """The target that a URL names.

        `redis://[[user]:password@]host[:port][/database]`, `rediss://` with TLS,
        `redis+sentinel://host[:port],.../master[/database]`, `redis+cluster://host[:port],...`.
        Parameters are `ssl=true` for Sentinel and Cluster, then, or with `rediss://`, those of
        redis-py for TLS (`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs`,
        `ssl_check_hostname`), and `sentinel_username`, `sentinel_password`.

        Raises:
            ValueError: it says which part is wrong, and what is allowed there; never a user nor a
                password."""
        scheme, authority, path, query = _parts(url.strip())
        login, _, hosts = authority.rpartition("@")
        found = _hosts(hosts, 26379 if scheme == "redis+sentinel" else 6379)
        tls, sentinel = _read_options(query, scheme)
        options: dict[str, Any] = tls | _login(login)
        if scheme == "redis+cluster":
            if path:
                raise ValueError("a Cluster has no databases: its path must be empty")
            return cls("cluster", found, options)
        if scheme == "redis+sentinel":
            if not path:
                raise ValueError(
                    "its path must begin with the master's name: redis+sentinel://host,host/name"
                )
            options["db"] = _database(path[1:])
            return cls("sentinel", found, options, path[0], tls | sentinel)
        options["db"] = _database(path)
        if len(found) != 1:
            raise ValueError(
                "it names several hosts, and they take redis+sentinel:// or redis+cluster://"
            )
        return cls("server", found, options)

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.kind} {hosts}" + (f" ({self.master})" if self.master else "")


SCHEMES = ("redis", "rediss", "redis+sentinel", "redis+cluster")


def _parts(url: str) -> tuple[str, str, list[str], str]:
    """A URL's scheme, authority, steps of its path, and query (RFC 3986, section 3)."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        tls = scheme in ("rediss+sentinel", "rediss+cluster")
        hint = f"; TLS is {scheme.replace('rediss', 'redis')}://...?ssl=true" if tls else ""
        raise ValueError(
            f"it must begin with {', '.join(f'{each}://' for each in SCHEMES[:-1])} or"
            f" {SCHEMES[-1]}://{hint}"
        )
    before, hash, fragment = rest.partition("#")
    where, _, query = before.partition("?")
    authority, _, path = where.partition("/")
    # What comes before the host ends at the first of / ? #, and the host's @ is then behind it.
    name = query.partition("=")[0]
    cut_short = "@" in query and "@" not in authority and name not in _TLS | _SENTINEL
    if "@" in path or "@" in fragment or "@" in name or cut_short:
        raise ValueError(
            "its user or password has a character that ends it: percent-encode them, / as %2F, ? as"
            " %3F, # as %23 and @ as %40"
        )
    if hash:
        raise ValueError(
            "it has a fragment (#), and there is none in such a URL: in a password # is %23"
        )
    return scheme, authority, [unquote(step) for step in path.split("/") if step], query


def _login(text: str) -> dict[str, Any]:
    username, colon, password = text.partition(":")
    if username and not password:
        raise ValueError(
            "it has a user without a password before the @: it must be user:password@host, or"
            " :password@host" + (" where there is no user" if not colon else "")
        )
    given = {"username": unquote(username), "password": unquote(password)}
    return {name: value for name, value in given.items() if value}


def _hosts(text: str, default_port: int) -> tuple[Address, ...]:
    """The addresses in a list of hosts. Raises ValueError: what is wrong with one."""
    several = text.split(",")
    found = []
    for each in several:
        if not each or re.fullmatch(":[^:]*", each):
            place = " between its commas" if len(several) > 1 else ""
            raise ValueError(f"a host is missing{place}: it must be host or host:port")
        address = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", each, re.DOTALL)
        if address is None and ("[" in each or each.count(":") > 1):
            raise ValueError(
                "a host is no name: an IPv6 address has brackets around it, as in [::1]:6379"
            )
        host, _, port = (
            each.partition(":") if address is None else (address[1], "", address[2] or "")
        )
        if address is not None:
            _check_ipv6(host)
        elif not re.fullmatch(r"[A-Za-z0-9._-]+", host):
            raise ValueError(
                "a host is no name: it must be of letters, digits, '.', '-' and '_', or [IPv6"
                " address]"
            )
        if port and not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
            # The port isn't shown: redis://user:password is a URL whose host was forgotten.
            raise ValueError(
                f"the port of the host {short_repr(host)} must be a number from 1 to 65535, and a"
                " login ends with an @"
            )
        found.append((host.lower(), int(port or default_port)))
    return tuple(found)


def _check_ipv6(text: str) -> None:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError("what is between the brackets of a host is no IPv6 address") from None


def _database(path: list[str]) -> int:
    if len(path) > 1:
        raise ValueError("its path has more than the database's number in it")
    if path and not (re.fullmatch("[0-9]{1,5}", path[0]) and int(path[0]) <= 65535):
        raise ValueError("the database in its path must be a number from 0 to 65535")
    return int(path[0]) if path else 0


_TRUTH = {"true": True, "false": False}
# Each parameter, and what its value may be; None: any text.
_TLS: dict[str, Mapping[str, Any] | None] = {
    "ssl": _TRUTH,
    "ssl_ca_certs": None,
    "ssl_certfile": None,
    "ssl_keyfile": None,
    "ssl_cert_reqs": {each: each for each in ("none", "optional", "required")},
    "ssl_check_hostname": _TRUTH,
}
_SENTINEL: dict[str, Mapping[str, Any] | None] = {
    "sentinel_username": None,
    "sentinel_password": None,
}
_ELSEWHERE = {
    "db": "the database is the end of the path, as in redis://host/2",
    "username": "it stands before the host, as in redis://user:password@host",
    "password": "it stands before the host, as in redis://:password@host",
}


def _read_options(query: str, scheme: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the options in a query: those for TLS, and those for Sentinels."""
    known = _TLS | _SENTINEL if scheme == "redis+sentinel" else _TLS
    read: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ValueError(_no_parameter(name, known))
        if name in read:
            raise ValueError(f"its parameter {name} is there twice")
        allowed = known[name]
        if not value or (allowed and value not in allowed):
            raise ValueError(
                f"its parameter {name} must be {_either(allowed) if allowed else 'some text'}"
            )
        read[name] = allowed[value] if allowed else value
    if scheme == "rediss" and read.setdefault("ssl", True) is False:
        raise ValueError(
            "its parameter ssl is false, and rediss:// is with TLS: redis:// is without"
        )
    tls = {name: value for name, value in read.items() if name in _TLS}
    _check_tls(tls, scheme)
    return tls, {
        name.removeprefix("sentinel_"): value for name, value in read.items() if name in _SENTINEL
    }


def _either(words: Mapping[str, Any]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"


def _check_tls(tls: dict[str, Any], scheme: str) -> None:
    if (used := [name for name in tls if name != "ssl"]) and not tls.get("ssl"):
        needed = "rediss:// instead of redis://" if scheme == "redis" else "ssl=true as well"
        raise ValueError(f"its parameter {used[0]} is for TLS, which needs {needed}")
    if "ssl_keyfile" in tls and "ssl_certfile" not in tls:
        raise ValueError(
            "its parameter ssl_keyfile needs ssl_certfile, the certificate of that key"
        )
    if tls.get("ssl_check_hostname") and tls.get("ssl_cert_reqs") == "none":
        raise ValueError(
            "its parameter ssl_check_hostname=true needs a certificate that is checked, not"
            " ssl_cert_reqs=none"
        )


def _no_parameter(name: str, known: Mapping[str, object]) -> str:
    if name in _SENTINEL:
        return f"its parameter {name} is for redis+sentinel:// alone"
    if name in _ELSEWHERE:
        return f"it has no parameter {name}: {_ELSEWHERE[name]}"
    near = difflib.get_close_matches(name.lower(), known, 1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"it has no parameter {short_repr(name)}: {advice}"
