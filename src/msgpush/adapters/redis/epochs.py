"""The log's epochs: one ends, and the next begins, where the log has lost its end.

An epoch is a log's name, as long as nothing of it is lost. A position alone doesn't tell: after a
failover to a server that lacks the newest entries, another entry may come to stand where a lost one
stood. So each instance remembers what it has read and what it was told is written (`Chain`), and
looks whether the log still holds it. Whoever finds that it doesn't begins the next epoch, by
compare-and-set, where the newest entry stands that both have; the others adopt what one has begun.
Then all readers are told where the log goes on."""

import contextlib
import logging
from collections.abc import Callable, Sequence

from msgpush.adapters.redis.chain import Chain
from msgpush.adapters.redis.link import Link, Script, lua
from msgpush.adapters.redis.log import (
    HEAD,
    LOG,
    NO_TAG,
    ORIGIN,
    TAG,
    EntryRef,
    Head,
    fields_of,
    id_of,
    new_tag,
    ref_of,
)
from msgpush.adapters.redis.mending import Mender
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.ports import Cut
from msgpush.domain.position import ZERO, Cursor, Position, new_epoch

log = logging.getLogger("msgpush.redis")

BEGIN = lua("begin")


class Epochs:
    """The epoch that this instance is in, and how it gets to the next.

    Args:
        link, now_ms: as `Mender`.
        log_length: entries that the log keeps.

    Attributes:
        epoch: empty before the log was found.
        cut: where the epoch before it ended.
        chain: what this instance has seen of the log.
        doubt: whether the log may not be what was seen of it, so that it has to be looked at.
        length: entries of the log, when it last said so.
    """

    def __init__(
        self, link: Link, mender: Mender, *, log_length: int, now_ms: Callable[[], int]
    ) -> None:
        self.epoch = ""
        self.cut: Cursor | None = None
        self.chain = Chain(ORIGIN)
        self.doubt = False
        self.length = 0
        self._number = 0
        self._link, self._mender, self._log_length, self._now_ms = link, mender, log_length, now_ms
        self._script = Script(BEGIN)

    async def read(self) -> Head:
        """Ask the log for its head. Raises BusUnavailable."""
        head = await Head.read(self._link)
        self.length = head.length
        return head

    async def ref_at(self, position: Position) -> EntryRef:
        """Ask which entry stands at a position, if one still does. Raises BusUnavailable."""
        found = await self._link.call("XRANGE", LOG, id_of(position), id_of(position))
        return EntryRef(position, fields_of(found[0][1])[1][:TAG] if found else NO_TAG)

    async def begin_at(self, head: Head) -> Head:
        """Take the log as it is found; one that is empty begins its first epoch."""
        while not head.epoch:
            await self._begin("", "", ZERO)
            head = await self.read()
        self._enter(head)
        self.chain.begin(head.end)
        return head

    async def reconcile(self, broken: bool) -> Cut | None:
        """Compare what this instance has seen with what the log says of itself.

        Args:
            broken: whether what was read shows already that they differ.

        Returns:
            where the log goes on; None where they agree.
        """
        while True:
            # Who writes finds out; what there is can be read all the same.
            with contextlib.suppress(BusUnavailable):
                await self._mender.mend()
            head = await self.read()
            common = await self._newest_common(head)
            if head.epoch == self.epoch:
                unread = self.chain.unread
                whole = (
                    not broken
                    and common == self.chain.head
                    and await self._holding(unread, head) == len(unread)
                )
                if whole:
                    return None
            # Where it has an earlier name, it has lost its end, and the word of the later one with
            # it: cursors of the earlier one can't be trusted either.
            if head.epoch == self.epoch or head.number <= self._number:
                if not await self._begin(head.epoch, self.epoch, common.position):
                    continue
                head = await self.read()
            return self._adopt(head, common)

    def _adopt(self, head: Head, common: EntryRef) -> Cut:
        cut = ZERO
        if head.cut is not None and head.cut.epoch == self.epoch:
            cut = head.cut.position
        end = common if common.position <= cut else EntryRef(cut, NO_TAG)
        log.warning(
            "the log goes on as epoch %s after %s: what this instance knew after that is lost, or"
            " may be",
            head.epoch,
            id_of(end.position),
        )
        self._enter(head)
        self.chain.begin(end)
        return Cut(head.epoch, end.position)

    def _enter(self, head: Head) -> None:
        self.epoch, self._number, self.cut = head.epoch, head.number, head.cut

    async def _begin(self, seen: str, previous: str, cut: Position) -> bool:
        names = (seen, new_epoch(), self._number, previous)
        args = (*names, id_of(cut), new_tag(), self._now_ms(), self._log_length)
        return bool(await self._link.script(self._script, [HEAD, LOG], args))

    async def _newest_common(self, head: Head) -> EntryRef:
        """The newest entry read that the log still holds, or has trimmed since."""
        refs = self.chain.refs()
        number = await self._holding(refs, head)
        return refs[number - 1] if number else ORIGIN

    async def _holding(self, refs: Sequence[EntryRef], head: Head) -> int:
        """The number of these entries, in their order, that the log holds or has trimmed since."""
        low, high = 0, len(refs)  # it holds refs[:low], and doesn't hold refs[high:]
        while low < high:
            middle = (low + high) // 2
            if await self._holds(refs[middle], head):
                low = middle + 1
            else:
                high = middle
        return low

    async def _holds(self, ref: EntryRef, head: Head) -> bool:
        """True if the log still has an entry, or has had it and trimmed it since."""
        if ref.names(head.end):
            return True
        # In this order: what is trimmed between the two isn't taken for lost.
        found, oldest = await self._link.calls(
            [
                ("XRANGE", LOG, id_of(ref.position), id_of(ref.position)),
                ("XRANGE", LOG, "-", "+", "COUNT", 1),
            ]
        )
        if found:
            return ref.names(EntryRef(ref.position, fields_of(found[0][1])[1][:TAG]))
        if oldest:
            # What stands before the oldest was trimmed only where that follows it: else it was
            # never in this log.
            before = ref_of(fields_of(oldest[0][1])[0])
            return before is None or ref.names(before) or ref.position < before.position
        return bool(head.epoch)  # all of it trimmed; or all of it gone, head and all
