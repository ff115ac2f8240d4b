"""The table of settings: it feeds parsing, error messages, `--help` and the README.

Each of its fields is one setting: a variable of that name in capitals, and a flag of `msgpush
serve`."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Struct

from msgpush.adapters.http.addresses import Proxy
from msgpush.adapters.notify.places import BROWSERS, Place
from msgpush.domain.quoting import short_repr
from msgpush.entrypoints.kinds import (
    ACKS,
    ANY_TEXT,
    APPLE_ID,
    AUDIENCE,
    BASE_URL,
    BASE_URLS,
    BOOLEAN,
    BUS_SIZE,
    CLAIM,
    CLAIM_VALUE,
    EVENTS,
    FILE,
    FILE_MODE,
    GRANT,
    HEADERS,
    HOST,
    HTTP_URL,
    HTTPS_URL,
    LIMIT,
    MIB,
    ORIGINS,
    PATH,
    PLACES,
    PROVIDER,
    PROXIES,
    PUBLIC_KEY,
    PUBLIC_URL,
    RATE,
    REACHABLE,
    REDIS,
    SCOPE,
    SECONDS,
    SECRET,
    SERVICE_NAME,
    SOCKET_PATH,
    TIMEOUT,
    TOKEN,
    TOPIC,
    TTL,
    VAPID_KEY,
    VAPID_SUBJECT,
    Kind,
    choice,
    decimal,
    whole,
)

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["console", "json"]
Scheme = Literal["http", "https"]


def _with_password(text: str) -> bool:
    # No such setting holds one: whoever has written a URL with one there doesn't want it shown.
    return re.search(r"//[^/@\s]*:[^@\s]*@", text) is not None


def _always(_: object) -> bool:
    return True


def _may_hold_password(url: str) -> bool:
    # As redis://user:password does, where the host was forgotten.
    return re.search(r"[@?#]|//[^/\[]*:(?![0-9]{1,5}([,/]|$))", url) is not None


class When(Struct, frozen=True):
    """The condition under which a setting is used.

    Otherwise it isn't even read: what others have set it to stops no start.

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


REGISTRIES = ("gateway_url", "consul_url", "etcd_url")


def _with_registry(read: Mapping[str, Any]) -> bool:
    return any(name in read for name in REGISTRIES)


ALWAYS = When(_always, "")
# The container's image sets them, whatever it is told besides.
NO_UNIX_SOCKET = When(lambda read: "service_uds" not in read, "without SERVICE_UDS", silent=True)
UNIX_SOCKET = When(lambda read: "service_uds" in read, "with SERVICE_UDS")
REDIS_HOST = When(lambda read: "redis_host" in read, "with REDIS_HOST")
REDIS_BUS = When(_with_redis, "with REDIS_HOST or REDIS_URL")
MEMORY_BUS = When(lambda read: not _with_redis(read), "without REDIS_HOST and REDIS_URL")
TOKENS = When(_with_tokens, "without ENABLE_AUTH=false")
KEY = When(_with_key, "with a key for tokens, and without ENABLE_AUTH=false")
GATEWAY = When(lambda read: "gateway_url" in read, "with GATEWAY_URL")
CONSUL = When(lambda read: "consul_url" in read, "with CONSUL_URL")
ETCD = When(lambda read: "etcd_url" in read, "with ETCD_URL")
ETCD_AS = When(lambda read: "etcd_user" in read, "with ETCD_URL and ETCD_USER")
REGISTRY = When(_with_registry, "with GATEWAY_URL, CONSUL_URL or ETCD_URL")
AUDIENCE_SET = When(lambda read: "jwt_audience" in read, "with JWT_AUDIENCE")
OIDC = When(lambda read: "oidc_issuer" in read, "with OIDC_ISSUER")
# Instances on one Redis share the revocations, which each keeps for so long, whether it reads
# tokens itself or not.
REVOCATIONS = When(
    lambda read: _with_key(read) or _with_redis(read), "with a key for tokens, or with Redis"
)


WEB_PUSH = When(lambda read: "vapid_private_key" in read, "with VAPID_PRIVATE_KEY")
FCM = When(lambda read: "fcm_credentials" in read, "with FCM_CREDENTIALS")
APNS = When(lambda read: "apns_key" in read, "with APNS_KEY")
PUSHES = When(
    lambda read: bool({"vapid_private_key", "fcm_credentials", "apns_key"} & read.keys()),
    "with VAPID_PRIVATE_KEY, FCM_CREDENTIALS or APNS_KEY",
)


class Setting(Struct, frozen=True):
    """A setting's entry in the table, besides its name, type and default.

    Args:
        secret: whether this value must not be shown. Where some may not, the setting can come from
            a file as well.
        when: when it is used.
    """

    kind: Kind
    help: str
    secret: Callable[[str], bool] = _with_password
    when: When = ALWAYS


class SettingsTable(Struct, frozen=True, kw_only=True):
    """Every setting: its type, what is said of it, and its default."""

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
    ack_ttl: Annotated[
        int,
        Setting(TTL, "The same, of messages that ask for an acknowledgement."),
    ] = 86_400
    max_pending: Annotated[
        int,
        Setting(
            whole(1, 100_000),
            "Messages of one service that may wait for one user's acknowledgement.",
        ),
    ] = 200
    pending_bytes: Annotated[
        int,
        Setting(
            BUS_SIZE,
            "With Redis: all messages that wait for acknowledgements; of one service a quarter at"
            " most. Without, it is half of MEMORY_BUS_BYTES.",
            when=REDIS_BUS,
        ),
    ] = 256 * MIB
    dead_letter_bytes: Annotated[
        int,
        Setting(BUS_SIZE, "All messages that were given up; beyond it the oldest go."),
    ] = 64 * MIB
    dead_letter_ttl: Annotated[
        int, Setting(whole(1, 365 * 86_400, "seconds"), "How long those are kept.")
    ] = 604_800
    ack_rate: Annotated[
        float,
        Setting(
            ACKS,
            "What a subject may acknowledge, at one instance; 0: no limit. 1000 at once are always"
            " possible.",
        ),
    ] = 1000.0
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
    oidc_issuer: Annotated[
        str | None,
        Setting(
            PROVIDER,
            "The OpenID Connect provider at which operators sign in (docs/auth.md); found by"
            " discovery.",
        ),
    ] = None
    oidc_client_id: Annotated[
        str | None, Setting(ANY_TEXT, "What the provider calls this service.", when=OIDC)
    ] = None
    oidc_client_secret: Annotated[
        str | None,
        Setting(
            ANY_TEXT, "The secret of that client; unset: it is a public client.", _always, OIDC
        ),
    ] = None
    oidc_scope: Annotated[str, Setting(SCOPE, "What the provider is asked for.", when=OIDC)] = (
        "openid"
    )
    oidc_admin_claim: Annotated[
        str | None,
        Setting(
            CLAIM_VALUE,
            "The claim of the ID token that makes an operator: it is this text, or a list that has"
            " it. realm_access.roles=ops looks into an object.",
            when=OIDC,
        ),
    ] = None
    oidc_grant: Annotated[
        str,
        Setting(
            GRANT,
            "What operators may do who have signed in so, besides what an admin may.",
            when=OIDC,
        ),
    ] = "{}"
    public_url: Annotated[
        str | None,
        Setting(
            PUBLIC_URL,
            "With OIDC_ISSUER: where browsers find the service; the provider sends them back to"
            " PUBLIC_URL/admin/callback.",
            when=OIDC,
        ),
    ] = None
    session_secret: Annotated[
        str | None,
        Setting(
            SECRET,
            "With OIDC_ISSUER: what sessions are signed with; unset: a key made from JWT_SECRET.",
            _always,
            OIDC,
        ),
    ] = None
    gateway_url: Annotated[
        str | None,
        Setting(BASE_URL, "A gateway that is told of this instance.", _may_hold_password),
    ] = None
    gateway_token: Annotated[
        str | None, Setting(TOKEN, "With GATEWAY_URL: what it asks for.", _always, GATEWAY)
    ] = None
    consul_url: Annotated[
        str | None,
        Setting(BASE_URL, "The Consul agent that is told of this instance.", _may_hold_password),
    ] = None
    consul_token: Annotated[
        str | None, Setting(TOKEN, "With CONSUL_URL: its ACL token.", _always, CONSUL)
    ] = None
    etcd_url: Annotated[
        str | None,
        Setting(BASE_URLS, "The etcd that is told of this instance.", _may_hold_password),
    ] = None
    etcd_user: Annotated[str | None, Setting(ANY_TEXT, "With ETCD_URL: its user.", when=ETCD)] = (
        None
    )
    etcd_password: Annotated[
        str | None, Setting(ANY_TEXT, "With ETCD_USER: its password.", _always, ETCD_AS)
    ] = None
    service_name: Annotated[
        str,
        Setting(SERVICE_NAME, "With a registry: the name that instances share.", when=REGISTRY),
    ] = "msgpush"
    advertise_address: Annotated[
        str | None,
        Setting(
            REACHABLE,
            "With a registry: where others reach this instance; unset: SERVICE_HOST, or where that"
            " is any address the one on the route to the registry.",
            when=REGISTRY,
        ),
    ] = None
    advertise_port: Annotated[
        int | None,
        Setting(
            whole(1, 65535),
            "With a registry: the port there; unset: the one that is listened on.",
            when=REGISTRY,
        ),
    ] = None
    advertise_scheme: Annotated[
        Scheme,
        Setting(
            choice(*get_args(Scheme)),
            "With a registry: https where ADVERTISE_ADDRESS is that of a proxy with TLS.",
            when=REGISTRY,
        ),
    ] = "http"
    registry_ttl: Annotated[
        int,
        Setting(
            whole(3, 3600, "seconds"),
            "With a registry: it forgets an instance that it hasn't heard of for so long.",
            when=REGISTRY,
        ),
    ] = 15
    withdraw_seconds: Annotated[
        float,
        Setting(
            SECONDS,
            "With a registry: SIGTERM withdraws, and for so long serves on before it drains.",
            when=REGISTRY,
        ),
    ] = 3.0
    vapid_private_key: Annotated[
        str | None,
        Setting(VAPID_KEY, "Web Push: the key that pushes are signed with.", _always),
    ] = None
    vapid_subject: Annotated[
        str | None,
        Setting(
            VAPID_SUBJECT,
            "With VAPID_PRIVATE_KEY: whom push services write to where something is wrong.",
            when=WEB_PUSH,
        ),
    ] = None
    push_endpoints: Annotated[
        tuple[Place, ...],
        Setting(
            PLACES,
            "With VAPID_PRIVATE_KEY: the push services that browsers may name.",
            when=WEB_PUSH,
        ),
    ] = tuple(Place(host) for host in BROWSERS)
    fcm_credentials: Annotated[
        str | None,
        Setting(FILE, "FCM: the JSON file of a Google service account."),
    ] = None
    fcm_url: Annotated[str, Setting(HTTPS_URL, "With FCM_CREDENTIALS: where FCM is.", when=FCM)] = (
        "https://fcm.googleapis.com"
    )
    apns_key: Annotated[
        str | None, Setting(FILE, "APNs: the file of the key from Apple, AuthKey_....p8.")
    ] = None
    apns_key_id: Annotated[
        str | None, Setting(APPLE_ID, "With APNS_KEY: that key's id.", when=APNS)
    ] = None
    apns_team_id: Annotated[
        str | None, Setting(APPLE_ID, "With APNS_KEY: the id of the team.", when=APNS)
    ] = None
    apns_topic: Annotated[
        str | None, Setting(TOPIC, "With APNS_KEY: the app's bundle id.", when=APNS)
    ] = None
    apns_url: Annotated[
        str,
        Setting(
            HTTPS_URL,
            "With APNS_KEY: where APNs is; of apps in development"
            " https://api.sandbox.push.apple.com.",
            when=APNS,
        ),
    ] = "https://api.push.apple.com"
    push_delay: Annotated[
        float,
        Setting(
            decimal(0, 3600),
            "A message that asks for it is pushed if no stream takes it in so long.",
            when=PUSHES,
        ),
    ] = 5.0
    push_concurrency: Annotated[
        int,
        Setting(whole(1, 1000), "Pushes under way at most, to each provider.", when=PUSHES),
    ] = 50
    metrics_token: Annotated[str | None, Setting(TOKEN, "What /metrics asks for.", _always)] = None
    trace_messages: Annotated[
        bool,
        Setting(
            BOOLEAN,
            "Readers are told a publish's `traceparent` header, as `metadata.traceparent`.",
        ),
    ] = False
    log_level: Annotated[
        Level, Setting(choice(*get_args(Level)), "The least important that is logged.")
    ] = "info"
    log_format: Annotated[
        Format, Setting(choice(*get_args(Format)), "Lines for people, or JSON objects.")
    ] = "console"

    def __repr__(self) -> str:
        texts = {name: as_text(getattr(self, name)) for name in SETTINGS}
        shows = (
            f"{name}={'...' if SETTINGS[name].secret(text) else short_repr(text)}"
            for name, text in texts.items()
        )
        return f"Settings({', '.join(shows)})"


SETTINGS: Mapping[str, Setting] = {
    field.name: field.type.__metadata__[0] for field in msgspec.structs.fields(SettingsTable)
}
# By each setting whose value may be a secret, the one that names a file with it.
FILES: Mapping[str, str] = {
    name: f"{name}_file"
    for name, setting in SETTINGS.items()
    if setting.secret is not _with_password
}


def as_text(value: object) -> str:
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


def as_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


FLAGS: Mapping[str, str] = {as_flag(name): name for name in (*SETTINGS, *FILES.values())}
DEFAULTS: Mapping[str, str] = {name: as_text(getattr(SettingsTable(), name)) for name in SETTINGS}
