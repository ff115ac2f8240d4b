"""The settings as they are given: read from variables, flags and files, checked, and explained."""

import difflib
import json
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from msgpush.adapters.auth.issuers import is_issuer
from msgpush.adapters.http.addresses import read_address
from msgpush.adapters.http.settings import Source
from msgpush.adapters.notify.keys import ServiceAccount, apns_key
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.errors import MsgpushError
from msgpush.domain.quoting import short_repr
from msgpush.entrypoints.health import SERVICE_LINK
from msgpush.entrypoints.kinds import Unfit
from msgpush.entrypoints.secret_file import read_secret
from msgpush.entrypoints.table import (
    DEFAULTS,
    FILES,
    FLAGS,
    KEYS,
    REGISTRIES,
    SETTINGS,
    SettingsTable,
    as_flag,
    as_text,
)

Mode = Literal["open", "local", "tokens"]


class SettingsError(MsgpushError):
    """A setting stops the start.

    Its text is one line: the setting, its value unless secret, and what is allowed.

    Args:
        name: the setting as it was given, as a variable or as a flag.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem


class Sources:
    """Where the settings that were given came from; settings are the same wherever that is."""

    def __init__(self, given: Mapping[str, Source] | None = None) -> None:
        self._given = given or {}

    def of(self, name: str) -> Source:
        """Where a setting came from."""
        return self._given.get(name, "default")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sources)

    def __hash__(self) -> int:
        return hash(Sources)


class Settings(SettingsTable, frozen=True, kw_only=True):
    """The settings that the service was given, and where they came from.

    `from_environ` checks each value; `check` and `mode`, what they ask for together."""

    sources: Sources = Sources()

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
        settings = cls(**read, sources=Sources({name: _source(labels[name]) for name in read}))
        try:
            settings.check()
            settings.check_files()
        except SettingsError as error:
            raise SettingsError(labels.get(error.name.lower(), error.name), error.problem) from None
        return settings

    @property
    def mode(self) -> Mode:
        """The mode: "tokens", for who has one; "open", for all; "local", for this machine alone.

        Raises:
            SettingsError: what `check` refuses; so settings that nobody has checked never open a
                service.
        """
        self.check()
        if self.enable_auth is False:
            return "open"
        return "tokens" if self.has_key else "local"

    @property
    def has_key(self) -> bool:
        """True if there is something to verify tokens with."""
        return any(getattr(self, name) for name in KEYS)

    @property
    def discovers_keys(self) -> bool:
        """True if JWT_ISSUER alone says where the keys are."""
        return bool(self.jwt_issuer) and not any(
            (self.jwt_secret, self.jwt_public_key, self.jwks_url)
        )

    @property
    def sessions_secret(self) -> str | None:
        """What the keys of sessions are made from."""
        return self.session_secret or self.jwt_secret

    @property
    def registries(self) -> list[str]:
        """The settings that name a registry, of those that are set."""
        return [name for name in REGISTRIES if getattr(self, name)]

    @property
    def first_audience(self) -> str | None:
        """The audience that tokens are issued for."""
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
            raise SettingsError("WORKERS", f"{_value('workers', as_text(self.workers))}: {ALONE}")
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
        needs = {
            "vapid_private_key": ("vapid_subject",),
            "apns_key": ("apns_key_id", "apns_team_id", "apns_topic"),
        }
        for name, others in needs.items():
            for other in others if getattr(self, name) else ():
                if not getattr(self, other):
                    raise SettingsError(name.upper(), f"needs {other.upper()}: set both")
        is_local = self.service_uds is not None or _is_loopback(self.service_host)
        if self.enable_auth is None and not self.has_key and not is_local:
            raise SettingsError(
                "SERVICE_HOST", f"{_value('service_host', self.service_host)}: {UNPROTECTED}"
            )
        for name in self.registries:
            self._check_advertised(name.upper(), is_local=is_local)
        if self.oidc_issuer is not None:
            self._check_sign_in()

    def _check_advertised(self, registry: str, *, is_local: bool) -> None:
        """Refuse to announce what nobody could use."""
        if self.enable_auth is None and not self.has_key:
            raise SettingsError(registry, f"announces this instance to others, {FOR_NOBODY_ELSE}")
        if self.service_uds is not None and not (self.advertise_address and self.advertise_port):
            raise SettingsError(
                "SERVICE_UDS", f"is no address that {registry} could be told of: {PROXY_OF_IT}"
            )
        if is_local and not self.advertise_address:
            raise SettingsError(
                "SERVICE_HOST",
                f"{_value('service_host', self.service_host)}, which this machine alone reaches,"
                f" and {registry} announces it to others: {LISTEN_ELSEWHERE}",
            )

    def _check_sign_in(self) -> None:
        """Refuse settings with which nobody could sign in, or everybody could do without."""
        if self.enable_auth is False:
            raise SettingsError(
                "OIDC_ISSUER",
                "excludes ENABLE_AUTH=false: whoever reaches the service would need no sign-in; set"
                " one of the two",
            )
        if not self.has_key:
            raise SettingsError("OIDC_ISSUER", f"needs a key for tokens as well: {A_KEY}")
        for name, what in NEEDED_TO_SIGN_IN.items():
            if getattr(self, name) is None:
                raise SettingsError(name.upper(), f"has no value, and OIDC_ISSUER needs it: {what}")
        if self.sessions_secret is None:
            raise SettingsError(
                "SESSION_SECRET",
                "has no value, and there is no JWT_SECRET to make a key from: set it, to 32 bytes"
                " or more that are the same at all instances, such as openssl rand -hex 32 makes",
            )
        if find_spec("httpx2") is None:
            raise SettingsError(
                "OIDC_ISSUER", "needs an HTTP client: pip install 'msgpush[oidc]', or unset it"
            )

    def check_files(self) -> None:
        """Refuse files that can't be read, or used: those that `REDIS_URL` names, and of keys.

        Nothing could be done without them.

        Raises:
            SettingsError: the first of them.
        """
        options = self.redis.options if self.redis else {}
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if (path := options.get(name)) and (problem := _unreadable(path)):
                raise SettingsError("REDIS_URL", f"has {name}={_quoted(path)}: {problem}")
        for setting, read in (("fcm_credentials", ServiceAccount.parse), ("apns_key", apns_key)):
            path = getattr(self, setting)
            if path and (problem := _unreadable(path) or _unusable(path, read)):
                raise SettingsError(setting.upper(), f"is {_quoted(path)}: {problem}")


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
A_KEY = (
    "set a key for tokens (JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL) or whose keys to take"
    " (JWT_ISSUER)"
)
NEEDED_TO_SIGN_IN = {
    "oidc_client_id": "the name that the provider has given to this service",
    "oidc_admin_claim": "which claim makes an operator, such as groups=ops",
    "public_url": "where browsers find the service, such as https://push.example.com",
}
BOTH_WAYS_OUT = f"{A_KEY}, or, behind something that protects the service, ENABLE_AUTH=false"
UNPROTECTED = (
    f"others could use the service there without authentication; {BOTH_WAYS_OUT}; else stay on"
    " 127.0.0.1, ::1 or localhost"
)


FOR_NOBODY_ELSE = f"and without authentication it would serve this machine alone; {BOTH_WAYS_OUT}"
PROXY_OF_IT = (
    "set ADVERTISE_ADDRESS and ADVERTISE_PORT to those of the proxy that leads to the socket, or"
    " listen on a port instead"
)
LISTEN_ELSEWHERE = (
    "set it to 0.0.0.0, :: or this machine's address in its network; or, where a proxy on this"
    " machine leads here, ADVERTISE_ADDRESS and ADVERTISE_PORT to that one's"
)


USAGE = (
    "usage: msgpush serve [--setting value]...",
    "Starts the service. Each setting is a flag, or a variable in the environment: --service-port"
    " 8089 or SERVICE_PORT=8089. Flags win; an empty value counts as unset; what isn't used isn't"
    " read.",
    "Keys and passwords belong in the environment or in files: other users of a machine can read a"
    " command's arguments. A file is named by JWT_SECRET_FILE or --jwt-secret-file, and so for each"
    " of them; the end of line at its end doesn't count. Set a value or its file, not both.",
)


def help_text(width: int = 110) -> str:
    """The text of `msgpush serve --help`: every setting with all that the table says of it.

    Args:
        width: the columns that a line may have.
    """
    usage = "\n\n".join(_filled(paragraph, width) for paragraph in USAGE)
    return "\n".join((usage, "", *(_help(name, width) for name in SETTINGS))) + "\n"


def _help(name: str, width: int) -> str:
    """One setting, as `--help` shows it."""
    setting, default = SETTINGS[name], DEFAULTS[name]
    text = (
        f"{setting.help}{f' Default: {default}.' if default else ''} Allowed:"
        f" {setting.kind.allowed}."
    )
    if name in FILES:
        text += f" Or {as_flag(FILES[name])}: {A_FILE}."
    return f"  {as_flag(name)}\n{_filled(text, width, ' ' * 6)}"


def _filled(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


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


def _source(label: str) -> Source:
    """Where a setting came from that was given under this label."""
    if label.removeprefix("--").replace("-", "_").lower() in FILES.values():
        return "file"
    return "flag" if label.startswith("--") else "environment"


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
    """The reason why a file can't be read; None: it can."""
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    except ValueError:
        return "no file has such a name"


def _unusable(path: str, read: Callable[[bytes], object]) -> str | None:
    """The reason why a file's content isn't what it should be; None: it is."""
    try:
        read(Path(path).read_bytes())
    except (ValueError, OSError) as error:
        return f"it {error}"
    return None


def _is_service_link(name: str, given: Given) -> bool:
    """True if Kubernetes has set this, for a Service that happens to have a setting's name."""
    is_variable = given.label == name.upper()
    return is_variable and name.endswith("_port") and SERVICE_LINK.fullmatch(given.text) is not None


def _passed_over(name: str, given: Given) -> str:
    service = name.removesuffix("_port").replace("_", "-")
    return (
        f"{given.label} is {short_repr(given.text)}, as Kubernetes sets it for a Service named"
        f" {service}: passed over, and {DEFAULTS[name] or 'none'} is used. To avoid that, set"
        f" enableServiceLinks: false in the pod's spec, set {given.label} yourself, or give the"
        " Service another name"
    )


def _value(name: str, text: str) -> str:
    """A setting's value as a message may tell it, after the setting's name."""
    return "(its value is not shown)" if SETTINGS[name].secret(text) else f"is {short_repr(text)}"


def _is_loopback(host: str) -> bool:
    try:
        return read_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
