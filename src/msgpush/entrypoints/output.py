"""The command's output: nothing ends because nobody reads it, or it has no place to go."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn, TextIO

# What write(2) says of a file that takes no more; it names no file then.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def say(text: str) -> None:
    """Print to stdout at once. What can't be written is lost."""
    _write(sys.stdout, text)


def complain(text: str) -> None:
    """Print to stderr. What can't be written is lost."""
    _write(sys.stderr, text)


def on_terminal() -> bool:
    """Whether a person reads stdout, and no program."""
    return sys.stdout.isatty()


def safe(text: str) -> str:
    """A text that others have written, on one line, and with nothing that a terminal obeys."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows in columns that are as wide as they have to be."""
    lines = [list(titles), *([safe(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


@contextlib.contextmanager
def standard_files() -> Iterator[None]:
    """Whatever a command was given as stdin, stdout and stderr, it has all three, and ends quietly.

    A reader that has had enough, as `| head` has, ends the command with 0. Another fault in writing
    what was asked for, as on a full disk, is told, and ends it with 1."""
    _open_closed()
    try:
        yield
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        # Met by `print` itself: what it has is too large to wait for the flush, or Python is told
        # not to wait.
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        _give_up(error)
    finally:
        _flush()


def _open_closed() -> None:
    # Else the first file that is opened, or the first connection, would take their place.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _write(file: TextIO, text: str) -> None:
    try:
        print(text, file=file, flush=True)
    except (OSError, ValueError):
        _discard(file)


def _flush() -> None:
    # Python itself would complain at exit of what it can't flush, and change the exit status.
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except (OSError, ValueError) as error:
            _discard(file)
            if (
                file is sys.stdout
                and isinstance(error, OSError)
                and not isinstance(error, BrokenPipeError)
            ):
                _give_up(error)


def _give_up(error: OSError) -> NoReturn:
    _discard(sys.stdout)
    complain(f"msgpush: the output can't be written: {error.strerror}")
    sys.exit(1)


def _discard(file: TextIO) -> None:
    """Let what a file has still to write, and what it is given from now on, go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
