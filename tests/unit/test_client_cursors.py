"""The file that keeps a listener's place."""

import logging
from pathlib import Path

import pytest

from msgpush.client import Listener
from msgpush.client.cursors import CursorFile


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.cursor"
    assert CursorFile(path).read() == ""
    CursorFile(path).write("c-1_2.3~4")
    assert CursorFile(str(path)).read() == "c-1_2.3~4"
    assert [each.name for each in tmp_path.iterdir()] == ["a.cursor"]


def test_an_empty_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.cursor").write_text("\n")
    assert CursorFile(tmp_path / "a.cursor").read() == ""


@pytest.mark.parametrize(
    "garbage", [b"two words", b"\0" * 40, b"a\nb", "zürich".encode(), b"\xff\xfe", b"x" * 129]
)
def test_something_else_in_the_file_is_told_and_kept(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "a.cursor"
    path.write_bytes(garbage)
    with pytest.raises(ValueError, match=r"a\.cursor holds no cursor: delete it to begin anew"):
        Listener("http://127.0.0.1:9", channels="a", cursor_file=path)
    assert path.read_bytes() == garbage


def test_a_directory_that_is_gone_is_told_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = CursorFile(tmp_path / "gone" / "a.cursor")
    with caplog.at_level(logging.WARNING):
        file.write("c1")
        file.write("c2")
    assert len(caplog.messages) == 1
    assert "the cursor can't be kept in" in caplog.text
    (tmp_path / "gone").mkdir()
    file.write("c2")
    assert CursorFile(tmp_path / "gone" / "a.cursor").read() == "c2"


def test_a_full_disk_leaves_the_old_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = CursorFile(tmp_path / "a.cursor")
    file.write("c1")
    (tmp_path / "a.cursor.new").symlink_to("/dev/full")
    file.write("c2")
    assert "No space left" in caplog.text
    assert CursorFile(tmp_path / "a.cursor").read() == "c1"
