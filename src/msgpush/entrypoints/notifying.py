"""The notifiers that the settings ask for, and what may be registered for them."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from msgpush.adapters.http.devices import PushRules
from msgpush.adapters.notify.apns import ApnsNotifier, ProviderToken
from msgpush.adapters.notify.exchange import Exchange
from msgpush.adapters.notify.fcm import FcmNotifier
from msgpush.adapters.notify.keys import ServiceAccount, apns_key
from msgpush.adapters.notify.oauth import AccessTokens
from msgpush.adapters.notify.places import HTTPS, Places
from msgpush.adapters.notify.vapid import Vapid, private_text, unbase64url, vapid_key
from msgpush.adapters.notify.web_push import WebPushNotifier
from msgpush.domain.ports import Notifier
from msgpush.domain.words import Words
from msgpush.entrypoints.settings import Settings


class Notifying(NamedTuple):
    """The notifiers that there are, each of which has to be opened.

    Attributes:
        words: acknowledge what was pushed; None where there is no key for them.
        rules: what may be registered.
    """

    notifiers: Sequence[Notifier]
    words: Words | None
    rules: PushRules

    @property
    def resources(self) -> list[AbstractAsyncContextManager[object]]:
        return [each for each in self.notifiers if isinstance(each, AbstractAsyncContextManager)]


def notifying_of(settings: Settings) -> Notifying:
    """The notifiers that these settings ask for."""
    notifiers: list[Notifier] = []
    words, public_key = None, None
    places = Places(settings.push_endpoints)
    if settings.vapid_private_key:
        key = vapid_key(settings.vapid_private_key)
        assert settings.vapid_subject
        vapid = Vapid(key, settings.vapid_subject)
        public_key = vapid.public_key
        words = Words(unbase64url(private_text(key)))
        named = [(each.host, each.port) for each in settings.push_endpoints if each.port]
        exchange = _exchange(settings, named, http2=False)
        notifiers.append(WebPushNotifier(vapid, places, exchange))
    if settings.fcm_credentials:
        account = ServiceAccount.parse(Path(settings.fcm_credentials).read_bytes())
        exchange = _exchange(settings, [_place(settings.fcm_url), account.place], http2=True)
        tokens = AccessTokens(account, exchange)
        notifiers.append(FcmNotifier(account.project_id, tokens, exchange, base=settings.fcm_url))
    if settings.apns_key:
        pem = Path(settings.apns_key).read_bytes()
        assert settings.apns_key_id
        assert settings.apns_team_id
        token = ProviderToken(apns_key(pem), settings.apns_key_id, settings.apns_team_id)
        exchange = _exchange(settings, [_place(settings.apns_url)], http2=True)
        notifiers.append(ApnsNotifier(token, exchange, base=settings.apns_url))
    topic = settings.apns_topic if settings.apns_key else None
    rules = PushRules(public_key, places.check, settings.fcm_credentials is not None, topic)
    return Notifying(notifiers, words, rules)


def _exchange(settings: Settings, trusted: Sequence[tuple[str, int]], *, http2: bool) -> Exchange:
    return Exchange(
        trusted=trusted,
        http2=http2,
        concurrency=settings.push_concurrency,
    )


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or HTTPS
