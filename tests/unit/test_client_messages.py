"""What a program says, as the messages that are sent."""

import threading
from typing import Any, cast

import msgspec
import pytest

from msgpush.client.messages import (
    Bar,
    Defaults,
    Options,
    Routing,
    Type,
    check,
    complete,
    failed,
    group_of,
    item,
    progressed,
)

IMPORTER = Defaults("importer")


def said(options: Options | None = None, defaults: Defaults = IMPORTER, **data: Any) -> Any:
    return msgspec.json.decode(item(defaults, "info", data, options or {}).text)


def test_a_message_has_an_id_before_it_is_sent() -> None:
    first, second = said(), said()
    assert first["id"] != second["id"]
    assert said({"id": "mine"})["id"] == "mine"


def test_ids_of_many_threads_are_all_different() -> None:
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.extend(said()["id"] for _ in range(200)))
        for _ in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({*ids}) == 1600


def test_its_options_are_where_the_service_reads_them() -> None:
    told = said(
        {
            "user": "123",
            "target": {"kb_id": "k"},
            "channels": ["a"],
            "ttl": 60,
            "priority": "high",
            "ack": {"deadline": 30},
            "push": True,
            "source": "s",
        },
        text="x",
    )
    assert told["target"] == {"user_id": "123", "kb_id": "k"}
    assert told["metadata"] == {
        "ttl": 60,
        "priority": "high",
        "ack": {"deadline": 30},
        "push": True,
    }
    assert (told["channels"], told["source"], told["service"]) == (["a"], "s", "importer")


def test_user_and_target_are_in_either_order() -> None:
    assert said({"target": {"kb_id": "k"}, "user": "1"})["target"] == {"user_id": "1", "kb_id": "k"}


def test_what_is_none_is_not_said() -> None:
    options: dict[str, Any] = {"user": None, "ttl": None, "ack": None}
    assert said(cast("Options", options)).keys() == {"type", "service", "id", "data"}


def test_a_message_that_may_wait_says_when_it_was_made() -> None:
    stamped = Defaults("importer", stamped=True)
    assert "timestamp" not in said()
    assert said(None, stamped)["timestamp"].endswith("Z")
    assert "timestamp" in msgspec.json.decode(complete(stamped, {"type": "info"}).text)


@pytest.mark.parametrize("data", [{"at": object()}, {"text": "\ud800"}, {(1, 2): 3}])
def test_what_has_no_json_form_is_told_at_once(data: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        item(IMPORTER, "info", data, {})


def test_a_type_or_an_option_that_there_is_not_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="type is 'inof': it must be one of progress, status"):
        item(IMPORTER, cast("Type", "inof"), {}, {})
    with pytest.raises(TypeError, match="no such option: uesr"):
        check(cast("Routing", {"uesr": "1"}))
    with pytest.raises(ValueError, match="service is missing"):
        item(Defaults(""), "info", {}, {})


def test_a_message_is_on_one_line() -> None:
    text = item(IMPORTER, "info", {"text": "a\nb\r\u2028c"}, {}).text
    assert text.splitlines() == [text]
    assert b"\n" not in text


# Progress


def test_progress_for_other_readers_is_of_another_group() -> None:
    options: list[Options] = [
        {},
        {"user": "1"},
        {"user": "2"},
        {"channels": ["a"]},
        {"channels": ["a", "b"]},
        {"service": "other"},
        {"ttl": 5},
    ]
    groups = [group_of(task, each) for each in options for task in ("import", "export")]
    assert len({*groups}) == len(groups)
    assert "" not in groups


@pytest.mark.parametrize("options", [{"id": "mine"}, {"ack": True, "user": "1"}])
def test_progress_that_is_more_than_a_state_is_of_no_group(options: Options) -> None:
    assert group_of("import", options) == ""


def test_a_bar_shows_the_newest() -> None:
    bar = Bar(IMPORTER, {"user": "1"}, "g")
    assert bar.show(progressed("t", 1))
    bar.waiting = True  # the buffer has it
    assert not bar.show(progressed("t", 2, "stage", "text", {"file": "a"}))
    told = msgspec.json.decode(bar.take().text)
    assert told["data"] == {
        "task_id": "t",
        "progress": 2,
        "stage": "stage",
        "message": "text",
        "details": {"file": "a"},
    }
    assert bar.show(progressed("t", 3)), "it has to be put in again"


def test_a_bar_that_waits_shows_nothing_of_what_is_said_after_something_else() -> None:
    bar = Bar(IMPORTER, {"user": "1"}, "g")
    bar.show(progressed("t", 1))
    assert bar.stay_behind() is bar, "it doesn't wait"
    bar.waiting = True
    later = bar.stay_behind()
    assert later.show(progressed("t", 2))
    assert msgspec.json.decode(bar.take().text)["data"]["progress"] == 1
    assert msgspec.json.decode(later.take().text)["data"]["progress"] == 2


# Errors


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("there is no text")


@pytest.mark.parametrize(
    ("error", "message", "kind"),
    [
        (OSError("b is gone"), "b is gone", "OSError"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
        (Mute(), "Mute", "Mute"),
        ("plain", "plain", None),
    ],
)
def test_an_error_has_its_text_and_its_type(
    error: BaseException | str, message: str, kind: str | None
) -> None:
    told = failed("t", error)
    assert (told["message"], told.get("error")) == (message, kind)
