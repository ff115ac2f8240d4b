"""An OAuth 2.0 access token for a service account, by an assertion that it signs (RFC 7523)."""

import asyncio
import logging
import time
from collections.abc import Callable
from urllib.parse import urlencode

import msgspec
from authlib.oauth2.rfc7523 import JWTBearerGrant
from joserfc.jwk import RSAKey
from msgspec import Struct

from msgpush.adapters.notify.exchange import Exchange, Unanswered
from msgpush.adapters.notify.keys import ServiceAccount

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
EARLY = 300  # seconds before its end at which a token is renewed
SOONEST = 5.0  # seconds between two attempts at a token

log = logging.getLogger("msgpush.push")


class _Granted(Struct):
    access_token: str
    expires_in: float = 3_600


class AccessTokens:
    """The newest access token of a service account, renewed in time.

    Args:
        exchange: goes to the token endpoint.
        clock: seconds since 1970; `monotonic`, of a clock that never jumps.
    """

    def __init__(
        self,
        account: ServiceAccount,
        exchange: Exchange,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account, self._exchange = account, exchange
        self._clock, self._monotonic = clock, monotonic
        self._token, self._until, self._tried = "", 0.0, -SOONEST
        self._problem: Unanswered | None = None
        self._one = asyncio.Lock()

    async def get(self, *, instead_of: str | None = None) -> str:
        """A token that is good.

        Args:
            instead_of: one that was refused.

        Raises:
            Unanswered: none can be had now.
        """
        async with self._one:  # however many wait, it is asked for once
            now = self._monotonic()
            if self._token and self._token != instead_of and now < self._until:
                return self._token
            if now - self._tried < SOONEST:
                if self._token and self._token != instead_of:
                    return self._token
                raise self._problem or Unanswered("its access token was refused")
            self._tried, self._problem = now, Unanswered("no access token yet")
            try:
                granted = await self._ask()
            except Unanswered as error:
                self._problem = error
                if instead_of is None and self._token and now < self._until + EARLY:
                    return self._token  # it is good for minutes yet
                raise
            self._problem = None
            self._token = granted.access_token
            # The half of one that is short-lived.
            lasts = granted.expires_in
            self._until = now + max(lasts - EARLY, lasts / 2)
            return self._token

    async def _ask(self) -> _Granted:
        account = self._account
        header = {"alg": "RS256", "typ": "JWT"}
        if account.private_key_id:
            header["kid"] = account.private_key_id
        assertion = await asyncio.to_thread(
            JWTBearerGrant.sign,
            RSAKey.import_key(account.private_key),
            issuer=account.client_email,
            audience=account.token_uri,
            issued_at=int(self._clock()),
            claims={"scope": SCOPE},
            header=header,
        )
        form = {"grant_type": JWTBearerGrant.GRANT_TYPE, "assertion": assertion}
        reply = await self._exchange.post(
            account.token_uri,
            {"Content-Type": "application/x-www-form-urlencoded"},
            urlencode(form).encode(),
        )
        try:
            if reply.status == 200:
                return msgspec.json.decode(reply.body, type=_Granted)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        log.warning(
            "the access token for FCM can't be had: the answer's status is %d", reply.status
        )
        raise Unanswered(f"no access token: status {reply.status}")
