"""Broken files name themselves and are counted; too many of them end the run."""

import logging
import threading

__all__ = ["Faults"]

_log = logging.getLogger(__name__)


class Faults:
    """Counts what cannot be read.

    Args:
        limit: So many are passed over; one more raises.

    Attributes:
        count: How many there were.
    """

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.count = 0
        self._lock = threading.Lock()  # pictures are read by several threads

    def add(self, name: str, error: Exception) -> None:
        """Warns of a file.

        Raises:
            RuntimeError: There are more than the limit.
        """
        with self._lock:
            self.count += 1
            count = self.count
        if count > self.limit:
            raise RuntimeError(
                f"{name} cannot be read ({error}): fault {count}, and at most {self.limit} are passed "
                "over. Repair the data or raise the limit."
            ) from error
        _log.warning("%s cannot be read (%s); passed over, fault %d.", name, error, count)
