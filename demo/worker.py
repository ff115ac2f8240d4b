"""The job: split documents into chunks, count words, and find what each is about (TF-IDF)."""

import math
import os
import re
import secrets
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from msgpush.client import Publisher, SyncMessage
from msgpush.client.messages import Type

SERVICE = "demo-worker"
CHANNEL = "demo"
RECEIPTS = f"receipts:{SERVICE}"
USER = "demo"  # whom the worker asks: whoever has the page open
# Asked again after 5 seconds, then after 10, 20, 40 and so on, until somebody answers.
ACK = {"deadline": 5, "deliveries": 20, "receipt": True}
CHUNK_LINES = 40
LARGEST = 4 * 1024 * 1024
LONGEST_WORD = 40
STEPS = 4
# What is published about a file at most: its start, its steps, its end; of one that can't be read
# less, but an answer to a question. And the same again after each reset.
MESSAGES_A_FILE = STEPS + 2
# A page that is opened days later shows the job, too.
TTL = 604_800
# A file's bar is full when its terms are found: that takes all documents, and comes last.
READ = 90
SKIPPED = {"__pycache__", "node_modules", "swagger-ui"}

_WORD = re.compile(r"[^\W\d_]{3,}")


class Stopped(Exception):
    """The demo ends."""


class Unreadable(Exception):
    """A file that is no document. Its text says why."""


def documents(folder: Path, limit: int) -> list[Path]:
    """The folder's files, hidden ones left out, in the order of their names."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name not in SKIPPED and not name.startswith(".")
        )
        found += [Path(root) / name for name in sorted(names) if not name.startswith(".")]
        if len(found) >= limit:
            break
    return found[:limit]


class Worker:
    """Indexes a folder, reports what becomes of each file, and asks for a person's word on it.

    Args:
        pace: seconds that each chunk takes at least, so that people can watch.
        stop: set when the demo ends.
    """

    def __init__(
        self, folder: Path, publisher: Publisher, *, pace: float, limit: int, stop: threading.Event
    ) -> None:
        self._folder, self._publisher = folder, publisher
        self._pace, self._limit, self._stop = pace, limit, stop
        self._job = publisher.task("index", channels=[CHANNEL], ttl=TTL)
        self._lock = threading.Lock()
        # What was said last about each file and the job, and each question: what is said again when
        # the log has been lost.
        self._told: dict[str, tuple[Type, dict[str, Any]]] = {}
        self._asked: dict[str, tuple[str, dict[str, str]]] = {}

    def run(self) -> None:
        """Do the whole job; returns when its end has been reported.

        Raises:
            Stopped: the demo has ended first.
        """
        files = documents(self._folder, self._limit)
        about = {"folder": self._folder.name or str(self._folder), "files": len(files)}
        with self._job as job:
            self._tell("", "status", {"state": "started", **about})
            self._ask(
                "import",
                f"Approve the import of {_files(len(files))} from the folder “{about['folder']}”?",
                "Approve",
            )
            unreadable = 0
            counts: dict[str, Counter[str]] = {}
            for path in job.track(files, stage="counting words"):
                name = _shown(path.relative_to(self._folder))
                try:
                    counts[name] = self._index(name, _chunks(_text(path)))
                except Unreadable as reason:
                    self._tell(name, "error", {"file": name, "message": str(reason)})
                    unreadable += 1
                    left_out = _files(unreadable, "unreadable ")
                    self._ask("unreadable", f"Leave out {left_out}?", "Leave out")
            for name, terms in _top_terms(counts).items():
                self._tell(
                    name, "success", {"file": name, "words": counts[name].total(), "terms": terms}
                )
            self._ask("index", f"Put the index of {_files(len(counts))} to use?", "Put to use")
            failed = len(files) - len(counts)
            self._tell("", "status", {"state": "finished", **about, "failed": failed})
            job.result(files=len(counts))

    def tell_again(self) -> None:
        """Report the present state anew: the log that had it is gone."""
        with self._lock:
            for type, data in self._told.values():
                self._job.report(type, data)
            for topic, (_, data) in list(self._asked.items()):
                self._ask_now(topic, data)

    def receive(self, message: SyncMessage) -> None:
        """Take what the stream brings: a receipt says what became of a question."""
        if message.service != "msgpush":
            return
        with self._lock:
            for topic, (key, asked) in list(self._asked.items()):
                # Not one that a newer question has replaced.
                if message.data["key"] == key:
                    del self._asked[topic]
                    self._told[f"/{topic}"] = (
                        "info",
                        {"question": asked["question"], **message.data},
                    )
                    self._job.report(*self._told[f"/{topic}"])

    def _index(self, name: str, chunks: list[str]) -> Counter[str]:
        self._tell(name, "status", {"file": name, "state": "started", "chunks": len(chunks)})
        words: Counter[str] = Counter()
        told = 0
        for number, chunk in enumerate(chunks, 1):
            words.update(word.lower() for word in _WORD.findall(chunk) if len(word) <= LONGEST_WORD)
            if self._stop.wait(self._pace):
                raise Stopped
            step = number * STEPS // len(chunks)
            if step > told:
                told = step
                self._tell(name, "progress", _progress(name, number, len(chunks)))
        return words

    def _tell(self, key: str, type: Type, data: dict[str, Any]) -> None:
        with self._lock:
            self._told[key] = type, data
            self._job.report(type, data)

    def _ask(self, topic: str, question: str, answer: str) -> None:
        """Ask for a person's word. A newer question on the same topic replaces the older one."""
        with self._lock:
            self._told.pop(f"/{topic}", None)
            self._ask_now(topic, {"question": question, "answer": answer})

    def _ask_now(self, topic: str, data: dict[str, str]) -> None:
        id = f"{self._job.id}-{topic}-{secrets.token_hex(4)}"
        self._asked[topic] = f"{SERVICE}/{id}", data
        ack = {**ACK, "collapse": topic}
        push = {"title": data["question"], "url": "/demo/", "collapse": topic}
        self._publisher.report("info", data, id=id, user=USER, ttl=TTL, ack=ack, push=push)


def _files(number: int, kind: str = "") -> str:
    return f"{number} {kind}{'file' if number == 1 else 'files'}"


def _progress(name: str, number: int, chunks: int) -> dict[str, Any]:
    return {
        "file": name,
        "progress": READ * number // chunks,
        "stage": "counting words" if number < chunks else "waiting for the other documents",
        "details": {"chunk": number, "chunks": chunks},
    }


def _shown(path: Path) -> str:
    # A file's name is bytes, and JSON's text is not: what isn't UTF-8 is shown as its digits.
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _text(path: Path) -> str:
    """The text of a document; `Unreadable` where it has none."""
    try:
        # A pipe would be waited for, and a device may never end.
        if not path.is_file():
            raise Unreadable(
                "it is no regular file" if path.exists() else "it is a link to nothing"
            )
        if path.stat().st_size > LARGEST:
            raise Unreadable(f"it is larger than {LARGEST // 1024 // 1024} MiB")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"it is no UTF-8 text (byte {error.start} is {error.object[error.start]:#04x})"
        ) from None
    except OSError as error:
        raise Unreadable(f"it can't be read: {error.strerror or error}") from None


def _chunks(text: str) -> list[str]:
    lines = text.splitlines() or [""]
    return [
        "\n".join(lines[start : start + CHUNK_LINES]) for start in range(0, len(lines), CHUNK_LINES)
    ]


def _top_terms(counts: dict[str, Counter[str]]) -> dict[str, list[str]]:
    """The words that tell each document from the others: frequent in it, and rare elsewhere."""
    seen_in = Counter(word for words in counts.values() for word in words)
    rarity = {word: math.log((1 + len(counts)) / number) for word, number in seen_in.items()}

    def top(words: Counter[str]) -> list[str]:
        # The document's length would scale all its words alike.
        return sorted(words, key=lambda word: (-words[word] * rarity[word], word))[:5]

    return {name: top(words) for name, words in counts.items()}
