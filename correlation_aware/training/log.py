"""The log of a run: JSON lines, and TensorBoard event files if TensorBoard is installed."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from correlation_aware._extras import require
from correlation_aware._files import atomic_path, write_text

__all__ = ["Means", "RunLog", "plot_log", "read_log"]

_logger = logging.getLogger(__name__)


class Means:
    """Running means of scalars, kept on their device to avoid a synchronization at every step.

    Args:
        optional: Names that may have no value since the last call of `take`; all others are the same, in the
            same order, in all processes.
    """

    def __init__(self, optional: Sequence[str] = ()) -> None:
        self.optional = tuple(optional)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds one value per name."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> tuple[list[str], Tensor]:
        """Names (n), and their sums and counts (2, n) since the last call."""
        names = [name for name in self._sums if name not in self.optional] + list(self.optional)
        zero = torch.zeros_like(next(iter(self._sums.values())))
        sums = torch.stack([self._sums.get(name, zero) for name in names])
        counts = torch.tensor([float(self._counts.get(name, 0)) for name in names], device=sums.device)
        self._sums, self._counts = {}, {}
        return names, torch.stack([sums, counts])


class RunLog:
    """Appends records to `log.jsonl` in a folder.

    Args:
        folder: Folder of the run.
        step: Step from which the run continues; later records, of a run that crashed, are removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "log.jsonl"
        kept = [record for record in read_log(path) if record["step"] <= step]
        write_text("".join(json.dumps(record) + "\n" for record in kept), path)
        self._file = path.open("a", encoding="utf-8")
        self._board = _open_board(folder, step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record, which must have a `step`."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, record["step"])


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`; [] if the file does not exist.

    An incomplete last line, of a run that was killed, is left out. Other lines that are no records are left
    out, too, and a warning is logged.
    """
    path = Path(path)
    records, damaged = [], []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
        elif number < len(lines):
            damaged.append(number)
    if damaged:
        text = ", ".join(map(str, damaged[:5])) + ", ..." * (len(damaged) > 5)
        _logger.warning("%s: %d lines are no records and are left out: %s.", path, len(damaged), text)
    return records


def plot_log(records: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Plots every scalar of a log against the steps.

    Args:
        records: Records of `read_log`.
        path: Image file to write.

    Raises:
        ValueError: There are no records.
        ModuleNotFoundError: matplotlib is not installed; the message has the command to install it.
    """
    if not records:
        raise ValueError(
            "The log has no records. Name the folder of a run that has logged at least one step."
        )
    (figures,) = require("matplotlib.figure")
    names = list(dict.fromkeys(name for r in records for name in r if name not in ("step", "seconds")))
    columns = min(3, len(names))
    figure = figures.Figure(figsize=(4 * columns, 2.4 * -(-len(names) // columns)), layout="constrained")
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(-(-len(names) // columns), columns, number)
        axes.plot(*zip(*((r["step"], r[name]) for r in records if name in r)), linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
