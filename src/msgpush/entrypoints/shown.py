"""The settings as operators may see them: those that are listed here, and nothing secret of them.

A new setting belongs into one of the three lists; a test fails for one that is in none.
"""

import re

from msgpush.adapters.http.settings import ShownSetting
from msgpush.entrypoints.settings import Settings
from msgpush.entrypoints.table import SETTINGS, as_text


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Shown as they are.
PLAIN = _names("""
    service_uds service_uds_mode service_host service_port workers
    redis_host redis_port redis_db redis_wait_replicas log_length memory_bus_bytes
    history_length message_ttl ack_ttl max_pending pending_bytes dead_letter_bytes dead_letter_ttl
    ack_rate max_message_bytes max_batch_bytes max_connections max_connections_per_subject
    max_connections_per_address publish_rate
    heartbeat_interval default_events write_timeout header_timeout body_timeout drain_seconds
    cors_origins cors_headers trusted_proxies root_path
    enable_auth jwt_audience jwt_audience_claim jwt_leeway max_token_lifetime
    oidc_client_id oidc_scope oidc_admin_claim oidc_grant
    service_name advertise_address advertise_port advertise_scheme registry_ttl withdraw_seconds
    vapid_subject push_endpoints fcm_credentials apns_key apns_key_id apns_team_id apns_topic
    push_delay push_concurrency
    log_level log_format trace_messages
""")
# Shown without user, password, query and fragment.
URLS = _names("""
    redis_url jwks_url jwt_issuer oidc_issuer public_url gateway_url consul_url etcd_url
    fcm_url apns_url
""")
# Only where they came from.
HIDDEN = _names("""
    redis_password jwt_secret jwt_public_key oidc_client_secret session_secret metrics_token
    gateway_token consul_token etcd_user etcd_password
    vapid_private_key
""")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^?#]*)")


def shown(settings: Settings) -> list[ShownSetting]:
    """The settings in force, as operators may see them."""
    return [
        ShownSetting(name.upper(), _shown(name, settings), settings.sources.of(name))
        for name in SETTINGS
    ]


def _shown(name: str, settings: Settings) -> str | None:
    text = as_text(getattr(settings, name))
    if name in PLAIN:
        return text
    return bare(text) if name in URLS else None


def bare(text: str) -> str | None:
    """A URL without what may be secret in it; a plain text as it is; None: it is neither, or nobody
    can say where its user ends.
    """
    found = _URL.match(text)
    if found is None:
        return None if {"@", "?", "#"} & {*text} else text
    authority, slash, path = found[2].partition("/")
    return None if "@" in path else found[1] + authority.rpartition("@")[2] + slash + path
