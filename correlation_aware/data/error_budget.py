"""Files that cannot be read and boxes that cannot be used: named once, left out, and limited in number."""

import logging
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["ErrorBudget", "Fault"]

NAMED = 20  # annotations that are named in the log; more are only counted
SMALLEST = 100  # number of files below which a share counts as one of this many

_log = logging.getLogger(__name__)


class Fault(NamedTuple):
    """A file or an annotation that is left out.

    Attributes:
        name: Name of the file or video.
        reason: Reason why it is left out.
        is_damage: Whether the file is damaged; otherwise its annotation is unusable.
    """

    name: str
    reason: str
    is_damage: bool


class ErrorBudget:
    """Distinct files and annotations that are left out, shared by several threads.

    Args:
        limit: Largest number of damaged files that may be left out; below 1, a share of `files`.
        quiet: Whether to log nothing, in a worker process that reports to another one.

    Attributes:
        files: Number of photographs and videos of the sources, which they add to it.
        damaged: Reason by name of every damaged file.
        unusable: Reason by name of every annotation that cannot be used, such as a box outside the frame.
    """

    def __init__(self, limit: float = 100, quiet: bool = False) -> None:
        if limit < 0:
            raise ValueError(f"The limit of damaged files is {limit:g}; it must be at least 0.")
        self.limit, self.quiet = limit, quiet
        self.files = 0
        self.damaged: dict[str, str] = {}
        self.unusable: dict[str, str] = {}
        self._new: list[Fault] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __contains__(self, name: str) -> bool:
        return name in self.damaged or name in self.unusable

    @property
    def count(self) -> int:
        """Number of damaged files."""
        return len(self.damaged)

    def add(self, name: str, error: Exception | str) -> None:
        """Leaves out a damaged file; logs a warning the first time.

        Args:
            name: Name of the file or video.
            error: Reason why it cannot be read.

        Raises:
            RuntimeError: More distinct files than the limit.
        """
        with self._lock:
            if name in self.damaged:
                return
            self.damaged[name] = str(error)
            self._new.append(Fault(name, str(error), True))
            count, limit = len(self.damaged), self.limit
            if 0 < limit < 1:
                limit = int(limit * max(self.files, SMALLEST))
        if count > limit:
            message = (
                f"{name} cannot be read ({error}): unreadable file {count}, and at most {limit:g} are left "
                "out. Repair the data or raise data.fault_limit; correlation-aware train check lists them."
            )
            raise RuntimeError(message) from (error if isinstance(error, Exception) else None)
        if not self.quiet:
            _log.warning("Left out %s, which cannot be read (%s): unreadable file %d.", name, error, count)

    def note(self, name: str, reason: Exception | str) -> None:
        """Leaves out an annotation that cannot be used; the first ones are logged.

        Args:
            name: Name of the frame or video.
            reason: Reason why its annotation cannot be used.
        """
        with self._lock:
            if name in self.unusable:
                return
            self.unusable[name] = str(reason)
            self._new.append(Fault(name, str(reason), False))
            count = len(self.unusable)
        if self.quiet or count > NAMED:
            return
        _log.warning("Left out an annotation of %s: %s.", name, str(reason).rstrip("."))
        if count == NAMED:
            _log.warning("More annotations are left out silently; correlation-aware train check lists them.")

    def take_new(self) -> list[Fault]:
        """What was left out since the last call, for `merge` in another process."""
        with self._lock:
            new, self._new = self._new, []
        return new

    def merge(self, faults: Sequence[Fault]) -> None:
        """Adds what a worker process left out.

        Raises:
            RuntimeError: More distinct damaged files than the limit.
        """
        for fault in faults:
            (self.add if fault.is_damage else self.note)(fault.name, fault.reason)
