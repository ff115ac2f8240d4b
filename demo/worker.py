"""The job: split a folder's documents into chunks, count their words, and find what each is about (TF-IDF)."""

import math
import os
import re
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.client import Publisher

CHANNEL = "demo"
CHUNK_LINES = 40
STEPS = 4  # progress messages a file at most: the history of a channel is 1000 messages long
SKIPPED = {"__pycache__", "node_modules", "swagger-ui"}

_WORD = re.compile(r"[^\W\d_]{3,}")


def documents(folder: Path, limit: int) -> list[Path]:
    """The folder's files, hidden ones left out, in the order of their names."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        found += [Path(root) / name for name in sorted(names) if not name.startswith(".")]
    return found[:limit]


class Worker:
    """Indexes a folder, and publishes what becomes of each file.

    Args:
        pace: seconds that each chunk takes at least, so that people can watch.
        stop: set when the demo ends.
    """

    def __init__(self, folder: Path, publisher: Publisher, *, pace: float, limit: int, stop: threading.Event) -> None:
        self._folder, self._publisher = folder, publisher
        self._pace, self._limit, self._stop = pace, limit, stop
        self._task = f"index-{uuid.uuid4().hex[:8]}"
        self._number = 0
        self._lock = threading.Lock()
        # The newest message about each file, and about the job: what is said again when the log has been lost.
        self._state: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        """Do the whole job; returns when its end has been published."""
        files = documents(self._folder, self._limit)
        self._tell("", "status", {"state": "started", "folder": str(self._folder), "files": len(files)})
        counts: dict[str, Counter[str]] = {}
        for path in files:
            name = path.relative_to(self._folder).as_posix()
            try:
                counts[name] = self._read(name, path)
            except (OSError, UnicodeDecodeError) as error:
                self._tell(name, "error", {"file": name, "message": _why(error)})
        for name, terms in _top_terms(counts).items():
            words = counts[name].total()
            self._tell(name, "success", {"file": name, "words": words, "terms": terms})
        failed = len(files) - len(counts)
        self._tell("", "status", {"state": "finished", "files": len(files), "failed": failed})

    def tell_again(self) -> None:
        """Publish the present state anew, under new ids: the log that had it is gone."""
        with self._lock:
            for key, message in list(self._state.items()):
                self._publish(key, message)

    def _read(self, name: str, path: Path) -> Counter[str]:
        chunks = list(_chunks(path.read_text("utf-8")))
        words: Counter[str] = Counter()
        told = 0
        for number, chunk in enumerate(chunks, 1):
            words.update(word.lower() for word in _WORD.findall(chunk))
            self._stop.wait(self._pace)
            if number * STEPS // len(chunks) > told:
                told = number * STEPS // len(chunks)
                progress = round(100 * number / len(chunks))
                details = {"chunk": number, "chunks": len(chunks)}
                self._tell(
                    name, "progress", {"file": name, "progress": progress, "stage": "reading", "details": details}
                )
        return words

    def _tell(self, key: str, type: str, data: dict[str, Any]) -> None:
        with self._lock:
            self._publish(key, {"type": type, "data": data})

    def _publish(self, key: str, message: dict[str, Any]) -> None:
        self._number += 1
        self._state[key] = message
        self._publisher.publish(
            {
                "id": f"{self._task}-{self._number:06d}",
                "service": "demo-worker",
                "source": "folder",
                "target": {"task_id": self._task},
                "channels": [CHANNEL],
                **message,
            }
        )


def _chunks(text: str) -> Iterator[str]:
    lines = text.splitlines() or [""]
    for start in range(0, len(lines), CHUNK_LINES):
        yield "\n".join(lines[start : start + CHUNK_LINES])


def _top_terms(counts: dict[str, Counter[str]]) -> dict[str, list[str]]:
    """The words that tell each document from the others: frequent in it, and rare elsewhere."""
    seen_in = Counter(word for words in counts.values() for word in words)

    def weight(words: Counter[str], word: str) -> float:
        return words[word] / words.total() * math.log((1 + len(counts)) / seen_in[word])

    return {
        name: sorted(words, key=lambda word, words=words: (-weight(words, word), word))[:5]
        for name, words in counts.items()
    }


def _why(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"no UTF-8 text (byte {error.start})"
    return error.strerror or str(error)
