"""The settings: one table, `Settings`, feeds parsing, error messages, `--help` and the README.

Each of its fields is one setting: a variable of that name in capitals, and a flag of `msgpush
serve`."""

import difflib
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import msgspec
from msgspec import Struct

from msgpush.adapters.auth.issuers import is_issuer
from msgpush.adapters.auth.keys import KINDS, public_key, secret_key
from msgpush.adapters.http.addresses import Proxy, read_address, read_network
from msgpush.adapters.http.origins import read_origins
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.sse.endpoint import read_events
from msgpush.domain.errors import Malformed, MsgpushError
from msgpush.domain.message import MAX_TTL, TYPES
from msgpush.domain.quoting import short_repr
from msgpush.entrypoints.health import SERVICE_LINK
from msgpush.entrypoints.secret_file import read_secret

Mode = Literal["open", "local", "tokens"]
Level = Literal["debug", "info", "warning", "error"]
Format = Literal["console", "json"]

MIB = 1024 * 1024
UNIX_PATH_BYTES = 108 if sys.platform == "linux" else 104


class SettingsError(MsgpushError):
    """A setting stops the start. Its text is one line: the setting, its value unless secret, and
    what is allowed.

    Args:
        name: the setting as it was given, as a variable or as a flag.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem


class Unfit(ValueError):
    """A value can't be used for a reason that is told: its text, which shows nothing secret."""


class Kind(Struct, frozen=True):
    """A kind of value: `parse` reads it or raises ValueError; `allowed` continues "it must be"."""

    parse: Callable[[str], Any]
    allowed: str


def whole(lowest: int, highest: int, unit: str = "") -> Kind:
    """Whole numbers within bounds."""

    def parse(text: str) -> int:
        # int() alone would take "+1", " 1", "1_0" and every script's digits.
        if not re.fullmatch("[0-9]{1,15}", text) or not lowest <= int(text) <= highest:
            raise ValueError
        return int(text)

    return Kind(parse, f"a whole number {f'of {unit} ' if unit else ''}from {lowest} to {highest}")


def decimal(lowest: float, highest: float, unit: str = "seconds") -> Kind:
    """Numbers within bounds, fractions allowed."""

    def parse(text: str) -> float:
        # float() alone would also take "nan", "inf" and "1e9".
        if (
            not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", text)
            or not lowest <= float(text) <= highest
        ):
            raise ValueError
        return float(text)

    return Kind(parse, f"a number of {unit} from {lowest:.15g} to {highest:.15g}")


def choice(*words: str) -> Kind:
    """One of a few words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError
        return text.lower()

    return Kind(parse, f"{', '.join(words[:-1])} or {words[-1]}")


def matching(pattern: str, allowed: str) -> Kind:
    """Text that matches a regular expression as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return Kind(parse, allowed)


def json_list(item: Callable[[str], Any], allowed: str) -> Kind:
    """A JSON list of strings, each of which `item` reads."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            items = msgspec.json.decode(text, type=list[str])
        except msgspec.MsgspecError as error:
            raise ValueError from error
        return tuple(map(item, items))

    return Kind(parse, f"a JSON list of {allowed}")


def _boolean(text: str) -> bool:
    word = text.lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError


def _audience(text: str) -> str | tuple[str, ...]:
    if not text.startswith("["):
        return text
    try:
        several = msgspec.json.decode(text, type=tuple[str, ...])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError from error
    if not several or not all(several):
        raise Unfit("it names nobody")
    return several


def _host(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", text):
        return text
    return str(read_address(text))


def _header_name(text: str) -> str:
    """The name of a header: a token (RFC 9110, section 5.6.2)."""
    if text == "*" or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", text):
        raise ValueError
    return text


def _proxy(text: str) -> Proxy:
    return "unix" if text == "unix" else read_network(text)


def _socket_path(text: str) -> str:
    # What the kernel has room for, with the zero byte at the end.
    if (
        not text.startswith("/")
        or text.endswith("/")
        or not text.isprintable()
        or len(os.fsencode(text)) >= UNIX_PATH_BYTES
    ):
        raise ValueError
    return text


def _events(text: str) -> frozenset[str]:
    try:
        return read_events(text)
    except Malformed as error:
        raise ValueError from error


def checked(check: Callable[[str], object], allowed: str) -> Kind:
    """Text that `check` takes; its ValueErrors say why it doesn't, and show nothing secret."""

    def parse(text: str) -> str:
        try:
            check(text)
        except ValueError as error:
            raise Unfit(str(error)) from None
        return text

    return Kind(parse, allowed)


ANY_TEXT = matching(r"(?s).+", "any text")
LIMIT = whole(0, 1_000_000)
RATE = decimal(0, 1_000_000, "messages a second")
SECONDS = decimal(0, 3600)
TIMEOUT = decimal(0.01, 3600)
TTL = whole(1, MAX_TTL, "seconds")
# No less than the largest message on its channels takes.
BUS_SIZE = whole(8 * MIB, 1024 * 1024 * MIB, "bytes")
BOOLEAN = Kind(_boolean, "true or false (also 1, 0, yes, no, on, off)")
HOST = Kind(_host, "an IP address such as 127.0.0.1, 0.0.0.0 or ::1, or a host name")
ORIGINS = json_list(
    read_origins,
    'origins, scheme://host or scheme://host:port, such as ["https://app.example.com"];'
    " https://*.example.com stands for all names below that one",
)
HEADERS = json_list(_header_name, 'names of headers, such as ["X-Request-ID"]')
PROXIES = json_list(
    _proxy,
    'IP addresses and networks (with no host bits), such as ["10.0.0.0/8", "::1"]; "unix" is'
    " whoever connects to SERVICE_UDS",
)
SOCKET_PATH = Kind(
    _socket_path,
    f"a path such as /run/msgpush/http.sock: from the root, and of {UNIX_PATH_BYTES - 1} bytes at"
    " most",
)
FILE_MODE = matching("0?[0-7]{3}", "an octal mode such as 660 or 666")
EVENTS = Kind(_events, f"a comma-separated list of {', '.join(TYPES)}; or *, all of them; or none")
# An encoded slash is refused in every request's path.
PATH = matching(
    r"(?!.*%2[fF])(/[A-Za-z0-9._~%-]+)+",
    "a path such as /push: with a slash before it, none after it, and no %2F",
)
REDIS = checked(
    RedisTarget.from_url,
    "redis://host, rediss://host, redis+sentinel://host,host/name or redis+cluster://host,host; see"
    " docs/redis.md",
)
HTTP_URL = matching(
    r"https?://[^\s/?#@]+([/?#]\S*)?",
    "a URL that begins with https:// or http://, and names no user",
)
TOKEN = matching(r"[A-Za-z0-9._~+/=-]+", "text of A-Za-z0-9._~+/=-")
SECRET = checked(secret_key, "at least 32 bytes long, and no PEM key")
PUBLIC_KEY = checked(public_key, f"a public key in PEM: {KINDS}")
AUDIENCE = Kind(_audience, 'any text, or a JSON list of such, as in ["push", "api"]')
CLAIM = matching(r"(?s).{1,200}", "the name of a claim, such as aud or client_id")


def _never(_: str) -> bool:
    return False


def _always(_: object) -> bool:
    return True


def _may_hold_password(url: str) -> bool:
    # As redis://user:password does, where the host was forgotten.
    return re.search(r"[@?#]|//[^/\[]*:(?![0-9]{1,5}([,/]|$))", url) is not None


class When(Struct, frozen=True):
    """When a setting is used. Otherwise it isn't even read: what others have set it to stops no
    start.

    Args:
        met: whether it is used, by the values of the settings that stand before it in the table and
            are set.
        words: continue "it is used only".
        silent: whether no warning is given where it is set and not used.
    """

    met: Callable[[Mapping[str, Any]], bool]
    words: str
    silent: bool = False


KEYS = ("jwt_secret", "jwt_public_key", "jwks_url", "jwt_issuer")


def _with_redis(read: Mapping[str, Any]) -> bool:
    return "redis_host" in read or "redis_url" in read


def _with_tokens(read: Mapping[str, Any]) -> bool:
    return read.get("enable_auth") is not False


def _with_key(read: Mapping[str, Any]) -> bool:
    return _with_tokens(read) and any(name in read for name in KEYS)


ALWAYS = When(_always, "")
# The container's image sets them, whatever it is told besides.
NO_UNIX_SOCKET = When(lambda read: "service_uds" not in read, "without SERVICE_UDS", silent=True)
UNIX_SOCKET = When(lambda read: "service_uds" in read, "with SERVICE_UDS")
REDIS_HOST = When(lambda read: "redis_host" in read, "with REDIS_HOST")
REDIS_BUS = When(_with_redis, "with REDIS_HOST or REDIS_URL")
MEMORY_BUS = When(lambda read: not _with_redis(read), "without REDIS_HOST and REDIS_URL")
TOKENS = When(_with_tokens, "without ENABLE_AUTH=false")
KEY = When(_with_key, "with a key for tokens, and without ENABLE_AUTH=false")
AUDIENCE_SET = When(lambda read: "jwt_audience" in read, "with JWT_AUDIENCE")
# Instances on one Redis share the revocations, which each keeps for so long, whether it reads
# tokens itself or not.
REVOCATIONS = When(
    lambda read: _with_key(read) or _with_redis(read), "with a key for tokens, or with Redis"
)


class Setting(Struct, frozen=True):
    """What the table says of a setting, beyond its name, type and default.

    Args:
        secret: whether this value must not be shown. Where some may not, the setting can come from
            a file as well.
        when: when it is used.
    """

    kind: Kind
    help: str
    secret: Callable[[str], bool] = _never
    when: When = ALWAYS


class Settings(Struct, frozen=True, kw_only=True):
    """What the service was told. `from_environ` checks each value; `check` and `mode`, what they
    ask for together.
    """

    service_uds: Annotated[
        str | None,
        Setting(SOCKET_PATH, "Unix socket to listen on, instead of SERVICE_HOST and SERVICE_PORT."),
    ] = None
    service_uds_mode: Annotated[
        str,
        Setting(
            FILE_MODE, "With SERVICE_UDS: who may connect, as a file's mode.", when=UNIX_SOCKET
        ),
    ] = "660"
    service_host: Annotated[str, Setting(HOST, "Address to listen on.", when=NO_UNIX_SOCKET)] = (
        "127.0.0.1"
    )
    service_port: Annotated[
        int, Setting(whole(0, 65535), "Port to listen on; 0: any free one.", when=NO_UNIX_SOCKET)
    ] = 8089
    workers: Annotated[
        int, Setting(whole(1, 64), "Processes that serve; more than one need Redis.")
    ] = 1
    redis_host: Annotated[str | None, Setting(HOST, "The Redis server that is the bus.")] = None
    redis_port: Annotated[
        int, Setting(whole(1, 65535), "With REDIS_HOST: its port.", when=REDIS_HOST)
    ] = 6379
    redis_password: Annotated[
        str | None, Setting(ANY_TEXT, "With REDIS_HOST: its password.", _always, REDIS_HOST)
    ] = None
    redis_db: Annotated[
        int, Setting(whole(0, 65535), "With REDIS_HOST: its database.", when=REDIS_HOST)
    ] = 2
    redis_url: Annotated[
        str | None, Setting(REDIS, "Instead of REDIS_HOST: a URL.", _may_hold_password)
    ] = None
    redis_wait_replicas: Annotated[
        int,
        Setting(
            whole(0, 64),
            "With Redis: replicas that must have a message before it is accepted.",
            when=REDIS_BUS,
        ),
    ] = 0
    log_length: Annotated[
        int,
        Setting(
            whole(1000, 100_000_000),
            "With Redis: messages that the log keeps for instances that were away.",
            when=REDIS_BUS,
        ),
    ] = 100_000
    memory_bus_bytes: Annotated[
        int,
        Setting(BUS_SIZE, "Without Redis: what the embedded bus keeps at most.", when=MEMORY_BUS),
    ] = 256 * MIB
    history_length: Annotated[
        int, Setting(whole(1, 1_000_000), "Messages kept for each channel.")
    ] = 1000
    message_ttl: Annotated[int, Setting(TTL, "How long messages are kept that don't say it.")] = (
        3600
    )
    max_message_bytes: Annotated[
        int, Setting(whole(1024, 16 * MIB, "bytes"), "The largest message.")
    ] = 256 * 1024
    max_batch_bytes: Annotated[
        int, Setting(whole(1024, 1024 * MIB, "bytes"), "The largest batch.")
    ] = 16 * MIB
    max_connections: Annotated[
        int, Setting(whole(1, 1_000_000), "Streams that one process serves.")
    ] = 10_000
    max_connections_per_subject: Annotated[
        int, Setting(LIMIT, "Streams of a subject that one process serves; 0: no limit.")
    ] = 0
    max_connections_per_address: Annotated[
        int, Setting(LIMIT, "Streams from an address that one process serves; 0: no limit.")
    ] = 0
    publish_rate: Annotated[
        float, Setting(RATE, "What a subject may publish, at all instances together; 0: no limit.")
    ] = 0.0
    heartbeat_interval: Annotated[
        float, Setting(TIMEOUT, "Streams get a heartbeat when idle so long.")
    ] = 30.0
    default_events: Annotated[
        frozenset[str],
        Setting(EVENTS, "Types that come as events of their name where a stream doesn't choose."),
    ] = frozenset({"progress"})
    write_timeout: Annotated[
        float, Setting(TIMEOUT, "A stream that takes nothing for so long is cut.")
    ] = 30.0
    header_timeout: Annotated[
        float, Setting(TIMEOUT, "What headers may take, from connecting.")
    ] = 5.0
    body_timeout: Annotated[float, Setting(TIMEOUT, "What a body may take.")] = 30.0
    drain_seconds: Annotated[
        float, Setting(SECONDS, "SIGTERM closes streams one by one over so long.")
    ] = 10.0
    cors_origins: Annotated[
        tuple[str, ...], Setting(ORIGINS, "Origins whose pages may use the service.")
    ] = ()
    cors_headers: Annotated[
        tuple[str, ...], Setting(HEADERS, "Further headers that those pages may send.")
    ] = ()
    trusted_proxies: Annotated[
        tuple[Proxy, ...], Setting(PROXIES, "Proxies whose word for a client's address is taken.")
    ] = ()
    root_path: Annotated[str, Setting(PATH, "The prefix under which a proxy serves it.")] = ""
    enable_auth: Annotated[
        bool | None,
        Setting(
            BOOLEAN,
            "false: off, on any address; true: on; unset: on with a key, else off, for this machine"
            " alone.",
        ),
    ] = None
    jwt_secret: Annotated[str | None, Setting(SECRET, "Key of HS256 tokens.", _always, TOKENS)] = (
        None
    )
    jwt_public_key: Annotated[
        str | None,
        Setting(
            PUBLIC_KEY, "Key of RS256, PS256, ES256, Ed25519 and such tokens.", _always, TOKENS
        ),
    ] = None
    jwks_url: Annotated[
        str | None, Setting(HTTP_URL, "Where such keys are.", _may_hold_password, TOKENS)
    ] = None
    jwt_issuer: Annotated[
        str | None,
        Setting(
            ANY_TEXT,
            "The only `iss` that is accepted; where there is no other key, also where such keys are"
            " found, by OpenID discovery: an https URL then.",
            when=TOKENS,
        ),
    ] = None
    jwt_audience: Annotated[
        str | tuple[str, ...] | None,
        Setting(
            AUDIENCE,
            "With a key: whom a token must be for, by its `aud`; of several, one of them.",
            when=KEY,
        ),
    ] = None
    jwt_audience_claim: Annotated[
        str,
        Setting(
            CLAIM,
            "With JWT_AUDIENCE: the claim that names it, where that isn't `aud`.",
            when=AUDIENCE_SET,
        ),
    ] = "aud"
    jwt_leeway: Annotated[
        float, Setting(SECONDS, "With a key: grace after a token's end.", when=REVOCATIONS)
    ] = 30.0
    max_token_lifetime: Annotated[
        int,
        Setting(
            whole(60, 10 * 366 * 86_400, "seconds"),
            "With a key: what a token may be valid for, at most.",
            when=REVOCATIONS,
        ),
    ] = 30 * 86_400
    metrics_token: Annotated[str | None, Setting(TOKEN, "What /metrics asks for.", _always)] = None
    log_level: Annotated[
        Level, Setting(choice(*get_args(Level)), "The least important that is logged.")
    ] = "info"
    log_format: Annotated[
        Format, Setting(choice(*get_args(Format)), "Lines for people, or JSON objects.")
    ] = "console"

    @classmethod
    def from_environ(
        cls,
        environ: Mapping[str, str],
        argv: Sequence[str] = (),
        warn: Callable[[str], object] = lambda _: None,
    ) -> Self:
        """Settings from variables, flags and files. Flags win; an empty value counts as unset.

        What isn't used isn't read, nor are files that would hold it.

        Args:
            warn: is told, in a line each, what may be a mistake.

        Raises:
            SettingsError: a wrong value, an unknown flag, a file that can't be read, or what
                `check` refuses."""
        variables = {
            name: Given(name.upper(), environ.get(name.upper(), ""))
            for name in (*SETTINGS, *FILES.values())
        }
        given = {name: each for name, each in (variables | _read_flags(argv)).items() if each.text}
        labels: dict[str, str] = {}
        read: dict[str, Any] = {}
        unused = []
        for name, setting in SETTINGS.items():
            value, file = given.get(name), given.get(FILES.get(name, ""))
            used = setting.when.met(read)
            if value is not None and _is_service_link(name, value):
                # Kubernetes'; nobody meant this service by it.
                if used:
                    warn(_passed_over(name, value))
            elif not used and setting.when.silent:
                continue
            elif not used:
                unused += [
                    f"{each.label} (used only {setting.when.words})"
                    for each in (value, file)
                    if each
                ]
            elif value is not None and file is not None:
                raise SettingsError(file.label, f"excludes {value.label}: set one of the two")
            elif value is not None:
                labels[name], read[name] = value.label, _parse(value, name)
            elif file is not None:
                labels[name], read[name] = file.label, _parse_file(file, name)
        if unused:
            warn(f"set, but not used here and so not read: {', '.join(unused)}")
        settings = cls(**read)
        try:
            settings.check()
            settings.check_files()
        except SettingsError as error:
            raise SettingsError(labels.get(error.name.lower(), error.name), error.problem) from None
        return settings

    @property
    def mode(self) -> Mode:
        """Who is served: "tokens", who has one; "open", everybody; "local", this machine alone.

        Raises:
            SettingsError: what `check` refuses; so settings that nobody has checked never open a
                service."""
        self.check()
        if self.enable_auth is False:
            return "open"
        return "tokens" if self.has_key else "local"

    @property
    def has_key(self) -> bool:
        """Whether there is something to verify tokens with."""
        return any(getattr(self, name) for name in KEYS)

    @property
    def discovers_keys(self) -> bool:
        """Whether JWT_ISSUER alone says where the keys are."""
        return bool(self.jwt_issuer) and not any(
            (self.jwt_secret, self.jwt_public_key, self.jwks_url)
        )

    @property
    def first_audience(self) -> str | None:
        """Whom tokens are issued for."""
        return self.jwt_audience[0] if isinstance(self.jwt_audience, tuple) else self.jwt_audience

    @property
    def redis(self) -> RedisTarget | None:
        """The Redis that is the bus; None: the bus is embedded."""
        if self.redis_url:
            return RedisTarget.from_url(self.redis_url)
        if not self.redis_host:
            return None
        password = {"password": self.redis_password} if self.redis_password else {}
        return RedisTarget(
            "server", ((self.redis_host, self.redis_port),), {"db": self.redis_db, **password}
        )

    def check(self) -> None:
        """Refuse settings that don't fit together.

        Raises:
            SettingsError: the first of them.
        """
        if self.redis_url and self.redis_host:
            raise SettingsError(
                "REDIS_URL",
                "excludes REDIS_HOST, since it says everything itself: set one of the two",
            )
        if self.workers > 1 and not (self.redis_host or self.redis_url):
            raise SettingsError("WORKERS", f"{_value('workers', _text(self.workers))}: {ALONE}")
        if (
            self.enable_auth is not False
            and self.discovers_keys
            and not is_issuer(self.jwt_issuer or "")
        ):
            raise SettingsError(
                "JWT_ISSUER", f"{_value('jwt_issuer', self.jwt_issuer or '')}: {NO_ISSUER}"
            )
        if self.enable_auth and not self.has_key:
            raise SettingsError("ENABLE_AUTH", f"is true, and there is no key: {BOTH_WAYS_OUT}")
        is_local = self.service_uds is not None or _is_loopback(self.service_host)
        if self.enable_auth is None and not self.has_key and not is_local:
            raise SettingsError(
                "SERVICE_HOST", f"{_value('service_host', self.service_host)}: {UNPROTECTED}"
            )

    def check_files(self) -> None:
        """Refuse a `REDIS_URL` that names files which can't be read: no connection would ever be
        made.

        Raises:
            SettingsError: the first of them.
        """
        options = self.redis.options if self.redis else {}
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if (path := options.get(name)) and (problem := _unreadable(path)):
                raise SettingsError("REDIS_URL", f"has {name}={_quoted(path)}: {problem}")

    def __repr__(self) -> str:
        texts = {name: _text(getattr(self, name)) for name in SETTINGS}
        shows = (
            f"{name}={'...' if SETTINGS[name].secret(text) else short_repr(text)}"
            for name, text in texts.items()
        )
        return f"Settings({', '.join(shows)})"


SETTINGS: Mapping[str, Setting] = {
    field.name: field.type.__metadata__[0] for field in msgspec.structs.fields(Settings)
}
# By each setting whose value may be a secret, the one that names a file with it.
FILES: Mapping[str, str] = {
    name: f"{name}_file" for name, setting in SETTINGS.items() if setting.secret is not _never
}

A_FILE = "the path of a file that holds it"
LONGEST_PATH = 300  # characters of it that are told

ALONE = (
    "several processes need a bus that they share, and the embedded one serves one process; set"
    " REDIS_HOST or REDIS_URL, or leave it 1"
)
NO_ISSUER = (
    "without another key the issuer's keys are found by OpenID discovery, for which it must be an"
    " https:// URL without query or user (http:// on this machine alone); or set JWT_SECRET,"
    " JWT_PUBLIC_KEY or JWKS_URL as well"
)
BOTH_WAYS_OUT = (
    "set a key for tokens (JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL) or whose keys to take"
    " (JWT_ISSUER), or, behind something that protects the service, ENABLE_AUTH=false"
)
UNPROTECTED = (
    f"others could use the service there without authentication; {BOTH_WAYS_OUT}; else stay on"
    " 127.0.0.1, ::1 or localhost"
)


def help_text() -> str:
    """What `msgpush serve --help` prints: every setting, what it does, what is allowed, its
    default.
    """
    usage = (
        "usage: msgpush serve [--setting value]...",
        "",
        (
            "Starts the service. Each setting is a flag, or a variable in the environment:"
            " --service-port 8089 or"
        ),
        "SERVICE_PORT=8089. Flags win; an empty value counts as unset; what isn't used isn't read.",
        "",
        (
            "Keys and passwords belong in the environment or in files: other users of a machine can"
            " read a command's"
        ),
        (
            "arguments. A file is named by JWT_SECRET_FILE or --jwt-secret-file, and so for each of"
            " them; the end of line"
        ),
        "at its end doesn't count. Set a value or its file, not both.",
        "",
    )
    return "\n".join((*usage, *(_help(name, setting) for name, setting in SETTINGS.items()))) + "\n"


def _help(name: str, setting: Setting) -> str:
    default = DEFAULTS[name]
    text = (
        f"{setting.help}{f' Default: {default}.' if default else ''} Allowed:"
        f" {setting.kind.allowed}."
    )
    if name in FILES:
        text += f" Or {_flag(FILES[name])}: {A_FILE}."
    body = textwrap.fill(
        text,
        110,
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"  {_flag(name)}\n{body}"


def markdown_table() -> str:
    """The README's table: each setting, its default, its meaning and what is allowed."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, setting in SETTINGS.items():
        default = f"`{DEFAULTS[name]}`" if DEFAULTS[name] else ""
        meaning = f"{setting.help} Allowed: {setting.kind.allowed}.".replace("|", "\\|").replace(
            "*", "\\*"
        )
        if name in FILES:
            meaning += f" Or `{FILES[name].upper()}`: {A_FILE}."
        rows.append(f"| `{name.upper()}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


class Given(NamedTuple):
    """A setting as somebody has set it: the variable or the flag, and the text of its value."""

    label: str
    text: str


def _read_flags(argv: Sequence[str]) -> dict[str, Given]:
    """The settings that are given as flags; the last of the same counts."""
    found = {}
    rest = list(argv)
    while rest:
        position = len(argv) - len(rest) + 1
        flag, equals, text = rest.pop(0).partition("=")
        name = FLAGS.get(flag)
        if name is None:
            raise _unknown(flag, position)
        if not equals:
            # Not any "--...": a PEM key begins so.
            if not rest or rest[0].partition("=")[0] in FLAGS:
                allowed = SETTINGS[name].kind.allowed if name in SETTINGS else A_FILE
                raise SettingsError(flag, f"has no value: it must be {allowed}")
            text = rest.pop(0)
        found[name] = Given(flag, text)
    return found


def _unknown(flag: str, position: int) -> SettingsError:
    # What isn't a flag isn't shown: it may be a part of a secret that nobody quoted.
    name = short_repr(flag) if flag.startswith("--") else f"argument {position}"
    near = difflib.get_close_matches("--" + flag.lower().lstrip("-").replace("_", "-"), FLAGS, 1)
    advice = f"did you mean {near[0]}?" if near else "msgpush serve --help lists them all"
    return SettingsError(name, f"is no flag, and flags are --setting value; {advice}")


def _parse(given: Given, name: str) -> Any:
    return _parsed(given.label, name, given.text, _value(name, given.text))


def _parse_file(given: Given, name: str) -> Any:
    named = f"is {_path(given.text)}"
    try:
        text = read_secret(given.text)
    except ValueError as error:
        raise SettingsError(given.label, f"{named}: {error}; it must be {A_FILE}") from None
    return _parsed(given.label, name, text, f"{named}, and its content can't be used")


def _parsed(label: str, name: str, text: str, told: str) -> Any:
    kind = SETTINGS[name].kind
    try:
        return kind.parse(text)
    except ValueError as error:
        reason = f"{error}; " if isinstance(error, Unfit) else ""
        raise SettingsError(label, f"{told}: {reason}it must be {kind.allowed}") from None


def _path(text: str) -> str:
    """The path of a file as a message may tell it."""
    # Anything else may be the secret itself, where its path was meant.
    if not text.startswith(("/", "./", "../")) and not os.path.lexists(text.replace("\0", "")):
        return "no absolute path, and not shown, since it may be the secret itself"
    return _quoted(text)


def _quoted(path: str) -> str:
    short = path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}..."
    quoted = json.dumps(short, ensure_ascii=False)
    return quoted if quoted.isprintable() else json.dumps(short)


def _unreadable(path: str) -> str | None:
    """Why a file can't be read; None: it can."""
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    except ValueError:
        return "no file has such a name"


def _is_service_link(name: str, given: Given) -> bool:
    """Whether this is what Kubernetes sets in each pod, for a Service that happens to have a
    setting's name.
    """
    is_variable = given.label == name.upper()
    return is_variable and name.endswith("_port") and SERVICE_LINK.fullmatch(given.text) is not None


def _passed_over(name: str, given: Given) -> str:
    service = name.removesuffix("_port").replace("_", "-")
    return (
        f"{given.label} is {short_repr(given.text)}, as Kubernetes sets it for a Service named"
        f" {service}: passed over, and {DEFAULTS[name]} is used. To avoid that, set"
        f" enableServiceLinks: false in the pod's spec, set {given.label} yourself, or give the"
        " Service another name"
    )


def _value(name: str, text: str) -> str:
    """A setting's value as a message may tell it, after the setting's name."""
    return "(its value is not shown)" if SETTINGS[name].secret(text) else f"is {short_repr(text)}"


def _text(value: object) -> str:
    """A value as it is written in the environment."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, frozenset):
        return ",".join(sorted(value)) or "none"
    if isinstance(value, tuple):
        return json.dumps([str(item) for item in value])
    return str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_loopback(host: str) -> bool:
    try:
        return read_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


FLAGS: Mapping[str, str] = {_flag(name): name for name in (*SETTINGS, *FILES.values())}
DEFAULTS: Mapping[str, str] = {name: _text(getattr(Settings(), name)) for name in SETTINGS}
