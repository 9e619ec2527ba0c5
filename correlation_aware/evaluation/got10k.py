"""Sequences in GOT-10k's layout; dataset and overlap are the got10k toolkit's.

Benchmark: `GOT-10k: A Large High-Diversity Benchmark for Generic Object Tracking in the Wild` (Huang et
al.) - https://github.com/got-10k/toolkit
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from correlation_aware._extras import require
from correlation_aware._files import natural_order
from correlation_aware.evaluation.one_pass import Array, Frame, OnePassTracker, SequenceResult, run_sequence

__all__ = ["evaluate", "open_dataset", "write_results"]

Subset = Literal["train", "val", "test"]


def open_dataset(root: str | Path, subset: Subset = "val") -> Any:
    """The toolkit's dataset, its frames in natural order.

    Args:
        root: Holds `train`, `val` and `test`, each with a `list.txt` and a folder per sequence.
        subset: Which of them; the truth of `test` is withheld.

    Raises:
        ModuleNotFoundError: The toolkit is not installed; the message says how to get it.
        FileNotFoundError: There is no such subset.
    """
    require("got10k.datasets", message="The evaluation needs the got10k toolkit and {names} is missing")
    from got10k.datasets import GOT10k

    listing = Path(root) / subset / "list.txt"
    if not listing.is_file():
        raise FileNotFoundError(f"There is no {listing}, which names the sequences in GOT-10k's layout.")

    class Ordered(GOT10k):
        def __getitem__(self, index: int | str) -> tuple[Any, ...]:
            files, *annotations = super().__getitem__(index)
            return sorted(files, key=natural_order), *annotations

    return Ordered(str(root), subset=subset, return_meta=True)


def evaluate(
    tracker: OnePassTracker, dataset: Any, sequences: Sequence[str] | None = None
) -> Iterator[SequenceResult]:
    """Tracks through whole frames, once, and yields sequence after sequence.

    Args:
        tracker: Started anew on every sequence.
        dataset: As `open_dataset` returns it.
        sequences: Names to keep; all by default.

    Raises:
        ValueError: An unknown name, or a sequence that is not whole.
    """
    unknown = set(sequences or ()) - set(dataset.seq_names)
    if unknown:
        raise ValueError(
            f"There is no sequence {', '.join(sorted(unknown))}; there are {', '.join(dataset.seq_names)}."
        )
    for name in dataset.seq_names if sequences is None else sequences:
        try:
            files, truth, *described = dataset[name]
        except (AssertionError, OSError, ValueError, LookupError) as error:
            reason = str(error) or "as many boxes as pictures are needed"
            raise ValueError(f"Sequence {name} is not whole: {reason}.") from error
        boxes, scores, seconds = run_sequence(tracker, map(_read, files), truth[0])
        ious = _overlap(boxes, truth, described[0]) if described else None
        yield SequenceResult(name, boxes, scores, seconds, ious)


def write_results(folder: str | Path, tracker: str, result: SequenceResult) -> Path:
    """Writes boxes and times where the toolkit looks for them: `FOLDER/GOT-10k/TRACKER/SEQUENCE/`.

    Returns:
        The file of boxes, `SEQUENCE_001.txt`.
    """
    place = Path(folder) / "GOT-10k" / tracker / result.name
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{result.name}_001.txt"
    np.savetxt(path, result.boxes, fmt="%.3f", delimiter=",")
    np.savetxt(place / f"{result.name}_time.txt", result.seconds[:, None], fmt="%.8f", delimiter=",")
    return path


def _read(file: str) -> Frame:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _overlap(boxes: Array, truth: Array, described: dict[str, Any]) -> Array:
    """(N,) with NaN where the target is hidden."""
    from got10k.utils.metrics import rect_iou

    bound = ast.literal_eval(described["resolution"])
    ious = np.asarray(rect_iou(boxes.copy(), truth.copy(), bound=bound))  # it clips its arguments in place
    return np.where(described["cover"] > 0, ious, np.nan)
