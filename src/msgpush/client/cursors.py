"""A file that keeps a listener's place, so that a restarted program goes on there."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

log = logging.getLogger("msgpush.client")

_CURSOR = re.compile(r"[A-Za-z0-9_.~-]{1,128}")


class CursorFile:
    """The file; it is replaced as a whole, so it never holds half a cursor."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._kept = ""
        self._complained = False

    def read(self) -> str:
        """The cursor, or nothing.

        Raises:
            ValueError: there is something else in the file.
            OSError: it can't be read.
        """
        try:
            text = self._path.read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            return ""
        if text and not _CURSOR.fullmatch(text):
            raise ValueError(f"{self._path} holds no cursor: delete it to begin anew")
        self._kept = text
        return text

    def write(self, cursor: str) -> None:
        """Keep a cursor. A disk that takes none is told to the log, and tried again each time."""
        if not cursor or cursor == self._kept:
            return
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(f"{cursor}\n")
            new.replace(self._path)
        except OSError as error:
            if not self._complained:
                log.warning("the cursor can't be kept in %s: %s", self._path, error)
            self._complained = True
        else:
            self._kept, self._complained = cursor, False
