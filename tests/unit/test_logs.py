"""Logs: one form for everybody's, on stderr, and no query string in them."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.config import LOGGING_CONFIG, Config

from msgpush.adapters.logs import TALKATIVE, configure, without_queries

UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("", *UVICORN, *TALKATIVE)]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    structlog.reset_defaults()


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_is_one_object_a_line_with_time_level_and_event(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info", "json")
    structlog.get_logger("msgpush").warning("Open to all.", mode="open", text="two\nlines")
    captured = capsys.readouterr()
    (line,) = objects(captured.err)
    written = datetime.fromisoformat(line.pop("timestamp"))
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    assert line == {
        "level": "warning",
        "logger": "msgpush",
        "event": "Open to all.",
        "mode": "open",
        "text": "two\nlines",
    }
    assert captured.out == ""


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "asyncio", "somebody.elses"])
def test_other_loggers_lines_look_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    logging.getLogger(name).error("Port %d is taken", 80, extra={"color_message": "x"})
    (line,) = objects(capsys.readouterr().err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"level": "error", "logger": name, "event": "Port 80 is taken"}


def test_uvicorns_own_setup_is_undone(capsys: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(LOGGING_CONFIG)
    configure("info", "json")
    Config("msgpush:app", log_config=None, access_log=False)
    logging.getLogger("uvicorn.error").info("Started")
    captured = capsys.readouterr()
    assert [line["event"] for line in objects(captured.err)] == ["Started"]
    assert captured.out == ""


def test_the_access_log_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(LOGGING_CONFIG)
    configure("debug", "console")
    access = logging.getLogger("uvicorn.access")
    access.info(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/sse/user/1?token=hunter2", "1.1", 200
    )
    # uvicorn asks this before it makes a line.
    assert not access.hasHandlers()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_what_is_less_important_than_the_level_is_left_out(
    level: str, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure(level, "json")
    for logger in (
        structlog.get_logger("a"),
        logging.getLogger("b"),
        logging.getLogger("uvicorn.error"),
    ):
        for each in ("debug", "info", "warning", "error"):
            getattr(logger, each)("x")
    assert [line["level"] for line in objects(capsys.readouterr().err)] == shown * 3


@pytest.mark.parametrize("format", ["console", "json"])
def test_a_traceback_is_logged_without_local_variables(
    format: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", format)
    for logger in (structlog.get_logger("a"), logging.getLogger("b")):
        token = "hunter" + "2"
        try:
            raise ValueError(len(token))
        except ValueError:
            logger.exception("It broke")
    text = capsys.readouterr().err
    assert text.count("It broke") == 2
    assert text.count("Traceback (most recent call last)") == 2
    assert text.count("ValueError: 7") == 2
    assert "hunter2" not in text
    if format == "json":
        assert all("ValueError: 7" in line["exception"] for line in objects(text))


@pytest.mark.parametrize("format", ["console", "json"])
def test_query_strings_are_cut_off_whoever_logs_them(
    format: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("debug", format)
    structlog.get_logger("a").info("refused", path="/sse/user/1?token=hunter2&x=1")
    logging.getLogger("b").info(
        'HTTP Request: GET %s "HTTP/1.1 200 OK"', "http://h/sse?token=hunter2"
    )
    try:
        raise ValueError("no route to /sse/user/1?token=hunter2")
    except ValueError:
        logging.getLogger("c").exception("refused")
    text = capsys.readouterr().err
    assert "hunter2" not in text
    assert "/sse/user/1" in text
    assert "200 OK" in text


@given(
    st.text(
        alphabet=st.characters(
            codec="ascii", exclude_characters=' "<>?\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f'
        )
    )
)
def test_nothing_of_a_query_is_left(query: str) -> None:
    event = without_queries(None, "", {"event": f"GET /sse/stream/a?{query} HTTP/1.1", "n": 1})
    assert event == {"event": "GET /sse/stream/a HTTP/1.1", "n": 1}


def test_a_question_is_left_alone() -> None:
    assert without_queries(None, "", {"event": "really? yes"}) == {"event": "really? yes"}


def test_the_console_shows_level_event_and_fields_without_colours_where_nobody_looks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info", "console")
    structlog.get_logger("msgpush").info("Listening", port=8089)
    (line,) = capsys.readouterr().err.splitlines()
    assert "info" in line
    assert "Listening" in line
    assert "port=8089" in line
    assert "\x1b" not in line


def test_configuring_again_replaces_what_was(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "console")
    configure("info", "json")
    logging.getLogger("b").info("once")
    structlog.get_logger("a").info("once")
    assert [line["event"] for line in objects(capsys.readouterr().err)] == ["once", "once"]


class Gone(io.StringIO):
    """What nobody reads any longer."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), Gone()], ids=["none", "closed", "gone"])
@pytest.mark.parametrize("format", ["console", "json"])
def test_a_line_that_can_not_be_written_is_lost_and_nothing_else_happens(
    stream: io.StringIO | None, format: Literal["console", "json"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    configure("debug", format)
    structlog.get_logger("msgpush").warning("nobody reads this")
    try:
        raise RuntimeError
    except RuntimeError:
        logging.getLogger("asyncio").exception("nor this")


def test_a_mistake_in_a_line_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    logging.getLogger("somebody.elses").info("%d", "x")
    assert "Logging error" in capsys.readouterr().err


@pytest.mark.parametrize("name", TALKATIVE)
def test_libraries_that_tell_secrets_are_quiet_whatever_level_is_asked_for(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    configure("debug", "json")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger(f"{name}.below").log(level, "at %d", level)
    assert [line["event"] for line in objects(capsys.readouterr().err)] == ["at 30"]
    configure("error", "json")
    logging.getLogger(name).warning("no")
    assert capsys.readouterr().err == ""
