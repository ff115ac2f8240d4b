"""The figures of several workers, added up: each writes its own into a file, and reads the
others'."""

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from msgpush.adapters.files import replace
from msgpush.adapters.metrics.families import FAMILIES, Figures, Series, Value, added
from msgpush.domain.tally import MAX_SERVICES, OTHER

_BY_SERVICE = [name for name, family in FAMILIES.items() if "service" in family.labels]

Written = dict[str, list[tuple[tuple[str, ...], Value]]]


class _Snapshot(Struct):
    """A worker's figures: `counted` go on growing with its successor's, `now` ends with it."""

    counted: Written
    now: Written


class Shared:
    """The figures of all workers of a service, in one directory, with one file for each.

    A file is named by its worker's number, so a successor goes on counting where its predecessor
    ended, and however often workers die, there are no more of them. What a scrape has shown was
    written before: no counter ever falls. A worker that is killed takes along what it has counted
    since it wrote last, a second ago at most.

    Args:
        name: the worker's number.
    """

    # Where a worker finds it in its environment.
    DIRECTORY = "MSGPUSH_METRICS_DIR"

    def __init__(self, directory: str, name: int | str) -> None:
        self._directory = Path(directory)
        self._file = self._directory / f"{name}.json"
        former = _read(self._file)
        # What the predecessors have counted.
        counted = former.counted if former is not None else {}
        self._before = {name: dict(series) for name, series in counted.items() if name in FAMILIES}
        self._services: frozenset[str] = frozenset()
        self._own = _Snapshot({}, {})

    @staticmethod
    def forget(directory: str, name: int | str) -> None:
        """A worker has ended: its gauges count no longer, its counters stay."""
        file = Path(directory) / f"{name}.json"
        if (snapshot := _read(file)) is not None:
            # Where the disk is full, its gauges count until its successor can write.
            with suppress(OSError):
                _write(file, _Snapshot(snapshot.counted, {}))

    def leave(self) -> None:
        """Remove this worker's file, and the directory after the last one's: there is nobody else
        who would.
        """
        self._file.unlink(missing_ok=True)
        with suppress(OSError):  # another one has been faster
            if not [*self._directory.glob("*.json")]:
                for each in self._directory.iterdir():
                    each.unlink(missing_ok=True)
                self._directory.rmdir()

    def write(self, figures: Figures) -> None:
        """Tell the others this worker's figures.

        Raises:
            OSError: they can't be told; `of_all` has them all the same.
        """
        try:
            self._know(figures)
        finally:
            self._own = self._snapshot(add_up([figures], self._services))
        _write(self._file, self._own)

    def of_all(self) -> Iterator[Figures]:
        """The figures of each worker: first this one's, as they were told last."""
        yield _figures(self._own)
        for file in sorted({*self._directory.glob("*.json")} - {self._file}):
            if (snapshot := _read(file)) is not None:
                yield _figures(snapshot)

    def _snapshot(self, figures: Figures) -> _Snapshot:
        counted = {name: each for name, each in figures.items() if FAMILIES[name].kind != "gauge"}
        now = {name: [*figures[name].items()] for name in figures.keys() - counted.keys()}
        total = add_up([self._before, counted])
        return _Snapshot({name: [*each.items()] for name, each in total.items()}, now)

    def _know(self, figures: Figures) -> None:
        """Find out which services are told apart: the first 100 that any worker has counted."""
        found = {key[0] for name in _BY_SERVICE for key in figures.get(name, ())} - {"", OTHER}
        if found <= self._services or len(self._services) >= MAX_SERVICES:
            return
        with self._locked():
            file = self._directory / "services"
            try:
                known = msgspec.json.decode(file.read_bytes(), type=list[str])
            except (OSError, msgspec.DecodeError):
                known = []
            more = sorted(found - {*known})[: max(0, MAX_SERVICES - len(known))]
            if more:
                known += more
                replace(file, msgspec.json.encode(known))
        self._services = frozenset(known)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def add_up(several: Iterable[Figures], services: frozenset[str] | None = None) -> Figures:
    """The figures of a service, of those of its workers, the one that is asked first.

    Args:
        services: those that are told apart; None: all of them.
    """
    apart = None if services is None else {*services, ""}
    gathered: dict[str, dict[tuple[str, ...], list[Value]]] = {}
    for figures in several:
        for name, series in figures.items():
            into = gathered.setdefault(name, {})
            folds = apart is not None and name in _BY_SERVICE
            for key, value in series.items():
                whose = (OTHER, *key[1:]) if folds and key[0] not in (apart or ()) else key
                into.setdefault(whose, []).append(value)
    return {name: _together(name, series) for name, series in gathered.items()}


def _together(name: str, series: dict[tuple[str, ...], list[Value]]) -> Series:
    match FAMILIES[name].together:
        case "max":
            return {key: max(_numbers(each)) for key, each in series.items()}
        case "min":
            return {key: min(_numbers(each)) for key, each in series.items()}
        case "own":
            return {key: each[0] for key, each in series.items()}
        case _:
            return {key: added(each) for key, each in series.items()}


def _numbers(values: Iterable[Value]) -> list[float]:
    return [each for each in values if not isinstance(each, list)]


_decode = msgspec.json.Decoder(_Snapshot).decode


def _figures(snapshot: _Snapshot) -> Figures:
    named = {**snapshot.counted, **snapshot.now}
    return {name: dict(series) for name, series in named.items() if name in FAMILIES}


def _read(file: Path) -> _Snapshot | None:
    try:
        return _decode(file.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None  # it has just gone


def _write(file: Path, snapshot: _Snapshot) -> None:
    replace(file, msgspec.json.encode(snapshot))
