"""Messages as bytes, each made once for all connections with the same view."""

from msgpush.domain.message import Entry
from msgpush.domain.ports import View
from msgpush.domain.position import cursor_text

FRAMES = 16 * 1024 * 1024  # bytes


class Frames:
    """Messages as one view shows them, each made once while it is wanted."""

    __slots__ = ("_cache", "_made", "cohorts", "view")

    def __init__(self, view: View, cache: "FrameCache") -> None:
        self.view = view
        self.cohorts = 0
        self._cache = cache
        self._made: dict[Entry, bytes] = {}

    def of(self, entry: Entry, prefix: str) -> bytes:
        """The frame of an entry; `prefix` is what its cursor begins with."""
        frame = self._made.get(entry)
        if frame is None:
            if entry.mark is not None and entry.mark.kind == "acknowledged":
                frame = self.view.acknowledged(entry.body)
            else:
                frame = self.view.message(entry, cursor_text(prefix, entry.position))
            self._cache.make_room(len(frame))
            self._made[entry] = frame
        return frame

    def clear(self) -> None:
        self._made.clear()


class FrameCache:
    """The frames of all views that are in use, within one limit of bytes."""

    def __init__(self) -> None:
        self._by_view: dict[View, Frames] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._by_view)

    def enter(self, view: View) -> Frames:
        """The frames of a view, for one more cohort."""
        frames = self._by_view.get(view)
        if frames is None:
            frames = self._by_view[view] = Frames(view, self)
        frames.cohorts += 1
        return frames

    def leave(self, frames: Frames) -> None:
        """A cohort is gone; with the last one, the view's frames go."""
        frames.cohorts -= 1
        if not frames.cohorts:
            del self._by_view[frames.view]

    def make_room(self, size: int) -> None:
        """Count a frame of so many bytes; where it is too much, forget those made before."""
        self._size += size
        if self._size > FRAMES:
            self.clear()
            self._size = size

    def clear(self) -> None:
        if self._size:
            self._size = 0
            for frames in self._by_view.values():
                frames.clear()
