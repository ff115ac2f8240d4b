"""The notifiers, against services of the tests' own."""

import json
import ssl
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar
from urllib.parse import parse_qs

import httpcore2
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from msgpush.adapters.notify.apns import ApnsNotifier, ProviderToken
from msgpush.adapters.notify.apns import payload as apns_payload
from msgpush.adapters.notify.exchange import Exchange, Reply
from msgpush.adapters.notify.fcm import FcmNotifier
from msgpush.adapters.notify.fcm import answer as fcm_answer
from msgpush.adapters.notify.fcm import payload as fcm_payload
from msgpush.adapters.notify.keys import ServiceAccount, apns_key
from msgpush.adapters.notify.network import Network
from msgpush.adapters.notify.oauth import AccessTokens
from msgpush.adapters.notify.places import Place, Places
from msgpush.adapters.notify.vapid import Vapid
from msgpush.adapters.notify.web_push import WebPushNotifier, topic
from msgpush.domain.devices import Address, Apns, Fcm, WebPush
from msgpush.domain.notification import Notice
from msgpush.domain.ports import Notifier
from tests.contracts.notifier import NOTICE, NotifierContract
from tests.support.certificates import Authority
from tests.support.push_services import TAKEN, Asked, Behaviour, PushService, Says
from tests.support.subscriptions import Browser
from tests.support.tokens import P256, RSA, private_pem, public_pem

Opened = tuple[AbstractAsyncContextManager[Notifier], Address]


class TestWebPush(NotifierContract):
    http2 = False
    gone = (Says(404), Says(410), Says(410, b"whatever"))
    never = (Says(401), Says(403))

    def open(self, exchange: Exchange, service: PushService) -> Opened:
        places = Places([Place("localhost", service.port)])
        vapid = Vapid(P256, "mailto:ops@example.com")
        address = Browser().subscription(f"{service.origin}/push/a-secret-path")
        return WebPushNotifier(vapid, places, exchange), address

    def secrets(self, address: Address) -> Sequence[str]:
        assert isinstance(address, WebPush)
        return ["a-secret-path", repr(address.auth)]

    async def test_a_browser_reads_what_nobody_else_does(self, authority: Authority) -> None:
        async with PushService(authority) as service:
            exchange = self.exchange(authority, service)
            browser = Browser()
            address = browser.subscription(f"{service.origin}/push/x")
            notifier = WebPushNotifier(
                Vapid(P256, "mailto:ops@example.com"),
                Places([Place("localhost", service.port)]),
                exchange,
            )
            async with notifier:
                assert (await notifier.send(address, NOTICE)).outcome == "sent"
        (asked,) = service.asked
        assert (asked.method, asked.path) == ("POST", "/push/x")
        assert asked.headers["ttl"] == "600"
        assert asked.headers["urgency"] == "normal"
        assert asked.headers["topic"] == topic("import-42")
        assert asked.headers["content-encoding"] == "aes128gcm"
        signed = asked.headers["authorization"].removeprefix("vapid t=").partition(",")[0]
        assert jwt.decode(signed, P256, algorithms=["ES256"]).claims["aud"] == service.origin
        assert b"done" not in asked.body
        said = json.loads(browser.decrypt(asked.body))
        assert said == {
            "key": "importer/import-42-done",
            "title": "Import",
            "body": "It is done",
            "collapse": "import-42",
            "message": {"data": {"message": "It is done"}},
        }

    @pytest.mark.parametrize(
        "endpoint",
        [
            "https://localhost/x",
            "https://127.0.0.1/x",
            "https://[::1]/x",
            "https://169.254.169.254/latest/meta-data",
            "https://10.0.0.1/",
            "https://[::ffff:127.0.0.1]/",
            "https://0.0.0.0/",
        ],
    )
    async def test_what_leads_inside_is_never_called(
        self, authority: Authority, endpoint: str
    ) -> None:
        """Its host is allowed, and is a name, or an address, of this machine or near it."""
        places = Places(
            [Place(host) for host in ("localhost", "127.0.0.1", "::1", "::ffff:127.0.0.1")]
            + [Place(host) for host in ("169.254.169.254", "10.0.0.1", "0.0.0.0")]
        )
        exchange = Exchange(tls=authority.trust(), seconds=2)
        notifier = WebPushNotifier(Vapid(P256, "mailto:a@example.com"), places, exchange)
        async with notifier:
            answer = await notifier.send(Browser().subscription(endpoint), NOTICE)
        assert answer == ("failed", "its address is internal", None)

    async def test_an_endpoint_that_may_be_used_no_longer_is_not(
        self, authority: Authority
    ) -> None:
        async with PushService(authority) as service:
            exchange = self.exchange(authority, service)
            places = Places([Place("push.example")])
            notifier = WebPushNotifier(Vapid(P256, "mailto:a@example.com"), places, exchange)
            async with notifier:
                address = Browser().subscription(f"{service.origin}/x")
                assert (await notifier.send(address, NOTICE)).outcome == "failed"
        assert service.opened == 0


async def test_a_name_that_none_can_be_leads_nowhere() -> None:
    for host in ("a" * 64 + ".example", "a..example"):
        with pytest.raises(httpcore2.ConnectError, match="can't be resolved"):
            await Network([]).connect_tcp(host, 443)


class Google(PushService):
    """FCM, and the token endpoint beside it.

    Attributes:
        granted: assertions that access tokens were given for.
        refused: access tokens that are good no longer.
    """

    def __init__(self, authority: Authority, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(authority, tls=tls)
        self.granted: list[str] = []
        self.refused: set[str] = set()
        self.expires_in = 3_600.0
        self.outage: Behaviour | None = None

    async def take(self, asked: Asked) -> Behaviour:
        if asked.path != "/token":
            bearer = asked.headers["authorization"].removeprefix("Bearer ")
            if bearer in self.refused:
                self.asked.append(asked)
                self.waiting += 1
                return Says(401, b'{"error":{"status":"UNAUTHENTICATED"}}')
            return await super().take(asked)
        self.waiting += 1
        if self.outage is not None:
            return self.outage
        form = parse_qs(asked.body.decode())
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        self.granted += form["assertion"]
        granted = {
            "access_token": f"ya29.token{len(self.granted)}",
            "expires_in": self.expires_in,
            "token_type": "Bearer",
        }
        return Says(200, json.dumps(granted).encode())


def google_error(status: int, code: str) -> Says:
    details = [
        {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code},
        {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": []},
    ]
    error = {"code": status, "message": "Requested entity.", "status": "X", "details": details}
    return Says(status, json.dumps({"error": error}).encode())


class TestFcm(NotifierContract):
    http2 = True
    gone = (google_error(404, "UNREGISTERED"),)
    never: ClassVar[Sequence[Says]] = (
        Says(404),
        Says(404, b"<html>"),
        google_error(403, "SENDER_ID_MISMATCH"),
        google_error(400, "INVALID_ARGUMENT"),
        Says(403),
    )

    def service(self, authority: Authority, tls: ssl.SSLContext | None = None) -> PushService:
        return Google(authority, tls)

    def made(self, exchange: Exchange, service: PushService, **clocks: Any) -> FcmNotifier:
        account = ServiceAccount.parse(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": "a-project",
                    "private_key_id": "k1",
                    "private_key": private_pem(RSA),
                    "client_email": "push@a-project.iam.gserviceaccount.com",
                    "token_uri": f"{service.origin}/token",
                }
            ).encode()
        )
        assert account.place == ("localhost", service.port)
        tokens = AccessTokens(account, exchange, **clocks)
        return FcmNotifier("a-project", tokens, exchange, base=service.origin)

    def open(self, exchange: Exchange, service: PushService) -> Opened:
        return self.made(exchange, service), Fcm("a-secret-token", b"")

    def secrets(self, address: Address) -> Sequence[str]:
        return ["a-secret-token", "ya29"]

    async def test_it_gets_no_more_than_it_may_read(self, authority: Authority) -> None:
        async with self.service(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                await notifier.send(address, NOTICE)
        (asked,) = service.asked
        assert asked.path == "/v1/projects/a-project/messages:send"
        assert json.loads(asked.body) == {
            "message": {
                "token": "a-secret-token",
                "notification": {"title": "Import", "body": "It is done"},
                "data": {"key": "importer/import-42-done"},
                "android": {"priority": "NORMAL", "ttl": "600s", "collapse_key": "import-42"},
            }
        }

    async def test_a_token_is_asked_for_once_and_by_a_signed_assertion(
        self, authority: Authority
    ) -> None:
        async with self.service(authority) as service:
            assert isinstance(service, Google)
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                await notifier.send(address, NOTICE)
                await notifier.send(address, NOTICE)
        (assertion,) = service.granted
        decoded = jwt.decode(assertion, RSA, algorithms=["RS256"])
        assert decoded.header["kid"] == "k1"
        assert decoded.claims["iss"] == "push@a-project.iam.gserviceaccount.com"
        assert decoded.claims["aud"] == f"{service.origin}/token"
        assert "firebase.messaging" in decoded.claims["scope"]
        assert decoded.claims["exp"] - decoded.claims["iat"] == 3_600

    async def test_a_token_is_renewed_before_its_end_and_where_it_was_refused(
        self, authority: Authority
    ) -> None:
        now = [0.0]
        async with self.service(authority) as service:
            assert isinstance(service, Google)
            exchange = self.exchange(authority, service)
            notifier = self.made(exchange, service, monotonic=lambda: now[0])
            address = Fcm("t", b"")
            async with notifier:
                for at, granted in ((0, 1), (3_200, 1), (3_301, 2), (3_400, 2)):
                    now[0] = at
                    assert (await notifier.send(address, NOTICE)).outcome == "sent"
                    assert len(service.granted) == granted
                # It runs out midway, whatever was said of it.
                now[0] = 3_500
                service.refused.add("ya29.token2")
                assert (await notifier.send(address, NOTICE)).outcome == "sent"
                assert len(service.granted) == 3
                # All of them are refused: that isn't asked for again and again.
                service.refused.add("ya29.token3")
                for _ in range(3):
                    assert (await notifier.send(address, NOTICE)).outcome == "later"
                assert len(service.granted) == 3

    async def test_what_waits_for_a_token_is_tried_again(self, authority: Authority) -> None:
        now = [0.0]
        async with self.service(authority) as service:
            assert isinstance(service, Google)
            exchange = self.exchange(authority, service)
            notifier = self.made(exchange, service, monotonic=lambda: now[0])
            async with notifier:
                for outage in (Says(500), Says(400, b"{}"), Says(200, b"no JSON"), "close"):
                    service.outage = outage
                    now[0] += 10
                    assert (await notifier.send(Fcm("t", b""), NOTICE)).outcome == "later"
                service.outage = None
                now[0] += 10
                assert (await notifier.send(Fcm("t", b""), NOTICE)).outcome == "sent"
                # The next one can't be had, while this one is good for some minutes yet.
                service.outage = Says(503)
                now[0] += 3_400
                assert (await notifier.send(Fcm("t", b""), NOTICE)).outcome == "sent"


def apple(status: int, reason: str) -> Says:
    return Says(status, json.dumps({"reason": reason}).encode())


class TestApns(NotifierContract):
    http2 = True
    gone = (
        apple(410, "Unregistered"),
        apple(410, "ExpiredToken"),
        apple(400, "BadDeviceToken"),
        Says(410),
    )
    never = (
        apple(404, "BadPath"),
        apple(403, "InvalidProviderToken"),
        apple(400, "DeviceTokenNotForTopic"),
        apple(413, "PayloadTooLarge"),
    )

    def made(self, exchange: Exchange, service: PushService, **more: Any) -> ApnsNotifier:
        token = ProviderToken(P256, "KEY123", "TEAM123", **more)
        return ApnsNotifier(token, exchange, base=service.origin)

    def open(self, exchange: Exchange, service: PushService) -> Opened:
        return self.made(exchange, service), Apns("a5ec4e7", "com.example.app", b"")

    def secrets(self, address: Address) -> Sequence[str]:
        return ["a5ec4e7"]

    async def test_it_gets_no_more_than_it_may_read(self, authority: Authority) -> None:
        async with PushService(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                await notifier.send(address, NOTICE)
                await notifier.send(address, NOTICE)
        one, other = service.asked
        assert one.path == "/3/device/a5ec4e7"
        assert json.loads(one.body) == {
            "aps": {"alert": {"title": "Import", "body": "It is done"}, "sound": "default"},
            "key": "importer/import-42-done",
        }
        assert one.headers["apns-topic"] == "com.example.app"
        assert one.headers["apns-collapse-id"] == "import-42"
        assert one.headers["apns-id"] == other.headers["apns-id"]
        claims = jwt.decode(
            one.headers["authorization"].removeprefix("bearer "), P256, algorithms=["ES256"]
        )
        assert claims.header["kid"] == "KEY123"
        assert claims.claims["iss"] == "TEAM123"

    async def test_its_token_is_renewed_in_time_and_where_it_has_run_out(
        self, authority: Authority
    ) -> None:
        now = [1_000_000.0]
        async with PushService(authority) as service:
            notifier = self.made(self.exchange(authority, service), service, clock=lambda: now[0])
            address = Apns("a5ec4e7", "com.example.app", b"")
            tokens: list[str] = []

            async def send(*script: Says) -> str:
                service.script.extend(script)
                service.asked.clear()
                outcome = (await notifier.send(address, NOTICE)).outcome
                tokens.append(service.asked[-1].headers["authorization"])
                return outcome

            async with notifier:
                for _ in range(2):
                    assert await send() == "sent"
                    now[0] += 2_600
                now[0] -= 2_500
                assert await send() == "sent"
                assert tokens[0] == tokens[1] != tokens[2]
                now[0] += 1_199
                assert await send(apple(403, "ExpiredProviderToken")) == "later"
                assert tokens.pop() == tokens[2]
                now[0] += 1
                assert await send(apple(403, "ExpiredProviderToken"), TAKEN) == "sent"
                assert tokens[3] != tokens[2]
                # It was made just now, and is refused again: nothing is lost for it.
                assert await send(apple(403, "ExpiredProviderToken")) == "later"
                assert tokens[4] == tokens[3]


def test_keys_of_another_kind_are_refused() -> None:
    assert apns_key(private_pem(P256)).is_private
    for wrong in ("", "no key", private_pem(RSA), private_pem(ECKey.generate_key("P-384"))):
        with pytest.raises(ValueError, match="is no private key on P-256"):
            apns_key(wrong)


def test_a_public_key_is_no_service_accounts() -> None:
    text = {"project_id": "p", "client_email": "e", "private_key": public_pem(RSA)}
    with pytest.raises(ValueError, match="its private_key can't be read"):
        ServiceAccount.parse(json.dumps(text).encode())


def test_a_text_that_is_too_long_for_apps_is_cut_not_refused() -> None:
    for character in "\N{GRINNING FACE}\0":
        long = Notice("bob", "s/1", character * 200, text=character * 1_000, own_text=True)
        for body in (fcm_payload("t", long), apns_payload(long)):
            assert 4_050 < len(body) <= 4_097
            assert json.loads(body)
            assert body.count("\N{HORIZONTAL ELLIPSIS}".encode()) == 1


def test_of_what_fcm_answers_only_its_codes_are_told() -> None:
    for code, told in (("QUOTA_EXCEEDED", " QUOTA_EXCEEDED"), ("_\x1b[2J a-secret-token", "")):
        said = google_error(429, code)
        assert fcm_answer(Reply(said.status, None, said.body)).reason == f"status 429{told}"


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"project_id":"p","client_email":"e","private_key":"k"}', b"\xff"],
)
def test_a_file_that_is_no_service_accounts_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="is no service account's JSON file"):
        ServiceAccount.parse(text)
