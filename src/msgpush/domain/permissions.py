"""Permissions over time: tickets, revocations, and the connections that live by them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from math import inf
from weakref import WeakValueDictionary

from msgpush.domain.control import Close, Command, Restored
from msgpush.domain.credentials import (
    UNUSED,
    Revocation,
    Revocations,
    Ticket,
    digest_of,
    new_ticket,
    users_named,
)
from msgpush.domain.errors import BusUnavailable, Unauthorized
from msgpush.domain.grant import Grant
from msgpush.domain.hub import Hub
from msgpush.domain.ports import Credentials

DAY = 86_400  # seconds
CLOSED_AT_ONCE = 500
CLAIMS = 100
PATIENCE = 2.0  # seconds to wait for others who use the same ticket
CROWDED = "others use the same ticket all the time"
NO_TICKET = "there is no such ticket, or no longer: unused it is void after a minute"


class Permissions:
    """Which grants are good, now.

    Args:
        credentials: what instances share of them; without, there are neither tickets nor
            revocations.
        command: has a command obeyed by all instances.
        clock: seconds since 1970.
        leeway: seconds of grace after a grant's end.
        lifetime: seconds that a token is valid for at most.
    """

    def __init__(
        self,
        credentials: Credentials | None,
        hub: Hub,
        command: Callable[[Command], Awaitable[None]],
        *,
        clock: Callable[[], float],
        leeway: float,
        lifetime: float,
    ) -> None:
        self._credentials, self._hub, self._command = credentials, hub, command
        self._clock, self._leeway = clock, leeway
        # As long as a token may be accepted that was issued before: its own end and its issuer's
        # clock have grace.
        self.revocations = Revocations(lifetime + 2 * leeway)
        self._loaded = False
        self._untold = False
        self._claiming: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def load(self, missed: bool = False) -> None:
        """Find out what stands.

        Args:
            missed: whether commands may have been missed here, since the log has lost some. Then
                the store may have lost as much: what is known here is put back.

        Raises:
            BusUnavailable: that can't be done now.
        """
        if self._credentials is not None:
            kept = await self._credentials.revocations()
            for revocation in kept:
                self.revocations.add(revocation, self._clock())
            self._close_revoked()
            if missed:
                await self._restore(kept)
                await self._close_replaced()
        self._loaded = True

    async def _restore(self, kept: Iterable[Revocation]) -> None:
        """See to it that no instance accepts what this one refuses."""
        assert self._credentials is not None
        known = {(each.kind, each.value): each.at for each in kept}
        lost = [
            each for each in self.revocations if known.get((each.kind, each.value), -inf) < each.at
        ]
        if lost:
            self._untold = True
            await self._credentials.revoke(*lost)
        if self._untold:
            # An instance that has begun meanwhile hasn't found them.
            await self._command(Restored())
            self._untold = False

    async def _close_replaced(self) -> None:
        """End the streams whose tickets others have used since."""
        assert self._credentials is not None
        for connection in list(self._hub.connections.values()):
            if connection.grant.ticket is None:
                continue
            holder = await self._credentials.holder(connection.grant.ticket)
            if holder not in (None, connection.id) and connection.id in self._hub.connections:
                self._hub.close(connection, "disconnected", reconnect=False)

    # Grants

    def check(self, grant: Grant) -> None:
        """Raise `Unauthorized` where a grant has ended or was revoked.

        Raises:
            BusUnavailable: what was revoked isn't known yet.
        """
        if not self._loaded:
            raise BusUnavailable("what was revoked is not known yet")
        if self.end_of(grant) <= self._clock():
            raise Unauthorized("the token has expired")
        if (reason := self.revoked(grant)) is not None:
            raise Unauthorized(reason)

    def end_of(self, grant: Grant) -> float:
        """Until when a grant is good, grace included, in seconds since 1970."""
        return inf if grant.expires is None else grant.expires + self._leeway

    def revoked(self, grant: Grant) -> str | None:
        """The reason why a grant is refused, if it was revoked."""
        return self.revocations.reason(grant)

    # Revocations

    async def revoke(self, revocation: Revocation) -> None:
        """Refuse tokens from now on, and end their connections, at all instances.

        Raises:
            BusUnavailable: it holds here, and may not be known everywhere; revoke it again.
        """
        self.end(revocation)
        # Kept before it is told: whoever begins in between knows it.
        if self._credentials is not None:
            await self._credentials.revoke(revocation)
        await self._command(revocation)

    def end(self, revocation: Revocation) -> None:
        """Refuse tokens from now on, and end their connections, at this instance."""
        self.revocations.add(revocation, self._clock())
        # Most subjects that are revoked have no stream here, and to look at all takes a moment.
        if revocation.kind != "subject" or revocation.value in self._hub.places.subjects:
            self._close_revoked()

    def _close_revoked(self) -> None:
        revoked = [each for each in self._hub.connections.values() if self.revoked(each.grant)]
        for connection in revoked[:CLOSED_AT_ONCE]:
            self._hub.close(connection, "revoked", reconnect=False)
        if len(revoked) > CLOSED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._close_revoked)

    # Tickets

    async def new_ticket(
        self, grant: Grant, channels: Iterable[str], *, acknowledge: bool = False
    ) -> tuple[str, float]:
        """Make a ticket for some channels; returns it, and until when it serves once it is used.

        That is in seconds since 1970.

        Args:
            acknowledge: whether it may act for the users whose channels these are, too.

        Raises:
            Denied: the grant doesn't allow that.
            BusUnavailable: it couldn't be kept.
        """
        assert self._credentials is not None
        wanted = frozenset(channels)
        grant.check_listen(wanted)
        for user in users_named(wanted) if acknowledge else ():
            grant.check_act(user)
        expires = grant.expires if grant.expires is not None else self._clock() + DAY
        ticket = new_ticket()
        kept = Ticket(
            grant.subject,
            tuple(sorted(wanted)),
            expires,
            grant.issued_at,
            grant.id,
            acknowledge,
        )
        left = expires + self._leeway - self._clock()
        await self._credentials.add_ticket(digest_of(ticket), kept, min(UNUSED, left))
        return ticket, expires

    async def ticket(self, ticket: str) -> Grant | None:
        """Find out what a ticket allows; None: it isn't valid.

        Raises:
            BusUnavailable: tickets can't be looked up now.
        """
        assert self._credentials is not None
        digest = digest_of(ticket)
        found = await self._credentials.ticket(digest)
        return None if found is None else found.grant(digest)

    async def claim(self, grant: Grant, connection: str) -> None:
        """Use the ticket of a grant, if it is one's, for a connection; its older one ends.

        Raises:
            Unauthorized: it is valid no longer.
            BusUnavailable: that can't be found out now.
        """
        if self._credentials is None or grant.ticket is None:
            return
        # One after another: those who try in vain would fill the log with commands.
        turn = self._claiming.setdefault(grant.ticket, asyncio.Lock())
        try:
            async with asyncio.timeout(PATIENCE):
                await turn.acquire()
        except TimeoutError:
            raise BusUnavailable(CROWDED) from None
        try:
            await self._claim(self._credentials, grant.ticket, grant, connection)
        finally:
            turn.release()

    async def _claim(
        self, credentials: Credentials, ticket: str, grant: Grant, connection: str
    ) -> None:
        """Claim a ticket from whoever holds it, however often that changes meanwhile."""
        until = self.end_of(grant)
        for _ in range(CLAIMS):
            before = await credentials.holder(ticket)
            if before is None:
                raise Unauthorized(NO_TICKET)
            # Ended first: should that fail, nothing has changed.
            if before:
                await self._command(Close(before, False))
            if await credentials.claim(
                ticket, grant.subject, connection=connection, before=before, until=until
            ):
                # If it is here, it counts for no limit any more, at once.
                if (replaced := self._hub.connections.get(before)) is not None:
                    self._hub.close(replaced, "disconnected", reconnect=False)
                return
        raise BusUnavailable(CROWDED)
