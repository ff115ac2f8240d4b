"""How questions are asked together, whoever waits, goes or is refused meanwhile."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from msgpush.adapters.redis.batching import Batcher
from msgpush.domain.errors import BusUnavailable


class Asked:
    """Answers each number with its double, once it is let; keeps what was asked together."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.let = asyncio.Event()
        self.error: BusUnavailable | None = None

    async def __call__(self, questions: Sequence[int]) -> list[int]:
        self.groups.append(list(questions))
        await self.let.wait()
        if self.error is not None:
            raise self.error
        return [2 * each for each in questions]


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_up_meanwhile_is_the_next_group_and_a_full_one_takes_a_part() -> None:
    asked = Asked()
    batcher = Batcher(asked, most=3)
    first = asyncio.create_task(batcher(1))
    await turn()
    others = [asyncio.create_task(batcher.all(each)) for each in ([2, 3], [4, 5, 6, 7], [8])]
    await turn()
    asked.let.set()
    assert await first == 2
    assert await asyncio.gather(*others) == [[4, 6], [8, 10, 12, 14], [16]]
    assert asked.groups == [[1], [2, 3, 4], [5, 6, 7], [8]]
    await batcher.close()


async def test_what_has_no_room_waits_for_the_next_group_and_never_for_ever() -> None:
    def room() -> Callable[[Sequence[int]], int]:
        return lambda numbers: sum(each < 10 for each in numbers)

    asked = Asked()
    asked.let.set()
    batcher = Batcher(asked, room=room)
    answers = await asyncio.gather(batcher.all([1]), batcher.all([20]), batcher.all([3, 4]))
    assert list(answers) == [[2], [40], [6, 8]]
    assert asked.groups == [[1], [20], [3, 4]]
    await batcher.close()


async def test_who_has_gone_is_not_asked_for_unless_all_of_it_was_to_be() -> None:
    asked = Asked()
    batcher = Batcher(asked)
    first = asyncio.create_task(batcher(1))
    await turn()
    gone, stays, last = (
        asyncio.create_task(batcher(2)),
        asyncio.create_task(batcher.all([3, 4])),
        asyncio.create_task(batcher(5)),
    )
    await turn()
    gone.cancel()
    stays.cancel()
    await turn()
    asked.let.set()
    assert (await first, await last) == (2, 10)
    assert asked.groups == [[1], [3, 4, 5]]
    await batcher.close()


@pytest.mark.parametrize("doubted", [False, True])
async def test_a_group_that_fails_takes_those_behind_it_along_unless_it_is_doubted(
    doubted: bool,
) -> None:
    asked = Asked()
    batcher = Batcher(asked, most=2)
    batcher.doubted = doubted
    first = asyncio.create_task(batcher.all([1, 2, 3]))
    second = asyncio.create_task(batcher(4))
    await turn()
    asked.error = BusUnavailable("away")
    asked.let.set()
    assert await first == [asked.error] * 3
    with pytest.raises(BusUnavailable, match="away"):
        await second
    assert asked.groups == ([[1, 2], [4]] if doubted else [[1, 2]])
    await batcher.close()


async def test_after_the_end_nobody_waits() -> None:
    asked = Asked()
    batcher = Batcher(asked, ended="closed")
    waiting = asyncio.create_task(batcher.all([1]))
    await turn()
    await batcher.close()
    (refused,) = await waiting
    assert str(refused) == "closed"
    with pytest.raises(BusUnavailable, match="closed"):
        await batcher(2)
