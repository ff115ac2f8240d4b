"""Tasks, and the handler of a job's log: what they report of it."""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from msgpush.client import MsgpushError, MsgpushHandler, Publisher, Unsendable
from msgpush.client.buffer import Complaints
from msgpush.client.messages import Bar, Data, Defaults, Type
from msgpush.client.task import Task
from tests.support.publishing import Odd, circle

NOWHERE = "http://127.0.0.1:9"


class Reports:
    """A task, and what it has reported."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        bar = Bar(Defaults("tests"), {}, "import")
        self.task = Task(self.report, self.put, bar, "import", "import-1")

    def report(self, type: Type, data: Data | None = None) -> None:
        self.said.append((type, dict(data or {})))

    def put(self, bar: Bar) -> None:
        data = msgspec.json.decode(bar.take().text)["data"]
        self.said.append(("progress", data))

    def told(self, name: str) -> list[Any]:
        return [(type, data[name]) for type, data in self.said if name in data]


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.job")
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.propagate = True


def test_a_task_says_how_it_begins_and_ends(reports: Reports) -> None:
    with reports.task as task:
        task.info("hello")
        task.result(documents=3)
    assert reports.said == [
        ("status", {"task_id": "import-1", "task": "import", "state": "started"}),
        ("info", {"task_id": "import-1", "task": "import", "message": "hello"}),
        ("success", {"task_id": "import-1", "task": "import", "documents": 3}),
    ]


@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt(), SystemExit(2)])
def test_a_task_that_ends_otherwise_says_with_what(reports: Reports, error: BaseException) -> None:
    with pytest.raises(type(error)), reports.task:
        raise error
    [_, (type_, data)] = reports.said
    assert (type_, data["error"]) == ("error", type(error).__name__)


async def test_a_task_is_an_async_one_too(reports: Reports) -> None:
    with pytest.raises(OSError, match="gone"):
        async with reports.task:
            raise OSError("gone")
    assert reports.told("message") == [("error", "gone")]


def test_the_items_that_are_tracked_are_the_same(reports: Reports) -> None:
    assert [*reports.task.track([1, 2, 3], stage="reading")] == [1, 2, 3]
    assert reports.said[-1][1]["progress"] == 100
    assert reports.said[-1][1]["details"] == {"done": 3, "total": 3}


@pytest.mark.parametrize("total", [0, 2, 500])
def test_a_wrong_total_is_no_error(reports: Reports, total: int) -> None:
    assert len([*reports.task.track(iter(range(5)), total=total)]) == 5
    assert all(0 <= data["progress"] <= 100 for _, data in reports.said)


def test_no_items_are_all_of_them(reports: Reports) -> None:
    assert [*reports.task.track([])] == []
    assert reports.said[-1][1]["progress"] == 100


def test_items_that_nobody_has_counted_are_said_as_a_status(reports: Reports) -> None:
    assert len([*reports.task.track(iter("abc"), stage="reading")]) == 3
    assert reports.told("state") == [("status", "running"), ("status", "finished")]
    assert reports.said[-1][1]["done"] == 3


def test_a_loop_that_is_left_says_no_end(reports: Reports) -> None:
    for _ in reports.task.track([1, 2, 3]):
        break
    assert [data["progress"] for _, data in reports.said] == [0]


async def test_items_that_come_later_are_tracked_too(reports: Reports) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        yield 2

    assert [each async for each in reports.task.track(items(), total=2)] == [1, 2]
    assert reports.said[-1][1]["progress"] == 100


# What can't be a message


@pytest.mark.parametrize("value", [object(), circle(), "\ud800", Odd()])
def test_a_job_goes_on_whatever_it_says(value: object) -> None:
    told: list[MsgpushError] = []
    with (
        Publisher(NOWHERE, service="tests", on_error=told.append) as publisher,
        publisher._buffer._changed,  # nothing is sent
    ):
        task = publisher.task("import")
        task.info("hello", value=value)
        publisher.report("info", {"value": value})
    assert [type(each) for each in told] == [Unsendable, Unsendable]


def test_a_job_goes_on_after_its_publisher(caplog: pytest.LogCaptureFixture) -> None:
    publisher = Publisher(NOWHERE, service="tests")
    task = publisher.task("import")
    publisher.close()
    with task:
        task.progress(5)
    assert "the publisher is closed" in caplog.text


# Its log


def test_records_are_messages_by_their_level(reports: Reports, logger: logging.Logger) -> None:
    logger.addHandler(MsgpushHandler(reports.task))
    logger.setLevel(logging.DEBUG)
    for level in (logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "page %d", 7)
    assert reports.told("message") == [
        ("warning", "page 7"),
        ("error", "page 7"),
        ("error", "page 7"),
    ]
    assert reports.said[0][1]["logger"] == "tests.job"


def test_a_record_of_an_exception_names_it(reports: Reports, logger: logging.Logger) -> None:
    logger.addHandler(MsgpushHandler(reports.task, "INFO"))
    try:
        raise OSError("gone")
    except OSError:
        logger.exception("it failed")
    assert reports.told("error") == [("error", "OSError: gone")]


def test_a_record_that_is_wrong_itself_is_told_as_logging_does(
    reports: Reports, capsys: pytest.CaptureFixture[str]
) -> None:
    record = logging.LogRecord("tests", logging.ERROR, __file__, 1, "%d pages", ("no",), None)
    MsgpushHandler(reports.task).handle(record)
    assert not reports.said
    assert "--- Logging error ---" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["msgpush.client", "httpx2", "httpcore2.connection"])
def test_what_sending_itself_says_makes_no_message(reports: Reports, name: str) -> None:
    record = logging.LogRecord(name, logging.ERROR, __file__, 1, "it failed", (), None)
    MsgpushHandler(reports.task).handle(record)
    assert not reports.said


def test_what_on_error_logs_makes_no_message(reports: Reports, logger: logging.Logger) -> None:
    logger.addHandler(MsgpushHandler(reports.task))
    complain = Complaints(lambda error: logger.error("not sent: %s", error))
    complain(Unsendable("no"))
    assert not reports.said
    logger.error("another one")
    assert reports.told("message") == [("error", "another one")]
