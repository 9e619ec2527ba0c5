"""Unreadable files are logged and counted; more than a limit of them raise."""

import logging
import threading

__all__ = ["ErrorBudget"]

_log = logging.getLogger(__name__)


class ErrorBudget:
    """Counter of files that could not be read, shared by several threads.

    Args:
        limit: Largest number of files that may be skipped.

    Attributes:
        count: Number of files that could not be read so far.
    """

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.count = 0
        self._lock = threading.Lock()

    def add(self, name: str, error: Exception) -> None:
        """Counts a file that could not be read, and logs a warning.

        Args:
            name: Name of the file or video.
            error: Reason why it could not be read.

        Raises:
            RuntimeError: More files than the limit.
        """
        with self._lock:
            self.count += 1
            count = self.count
        if count > self.limit:
            raise RuntimeError(
                f"{name} cannot be read ({error}): unreadable file {count}, and at most {self.limit} are "
                "skipped. Repair the data or raise the limit."
            ) from error
        _log.warning("Skipped %s, which cannot be read (%s): unreadable file %d.", name, error, count)
