"""Files that others read while they are written."""

import os
from pathlib import Path


def replace(file: Path, content: bytes) -> None:
    """Put this in the place of a file's content at once: nobody reads a part of it.

    Raises:
        OSError: it can't be written; the file is as it was.
    """
    new = file.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, file)
