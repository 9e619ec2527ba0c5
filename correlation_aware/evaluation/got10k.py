"""Evaluation on sequences in GOT-10k's layout, with the dataset and the overlap of the got10k toolkit.

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
    """Opens the toolkit's dataset, with frames in natural order.

    Args:
        root: Folder of `train`, `val` and `test`, each with a `list.txt` and one folder per sequence.
        subset: Name of the subset. The ground truth of `test` is not public.

    Raises:
        ModuleNotFoundError: The toolkit is not installed; the message says how to install it.
        FileNotFoundError: No such folder, or no `list.txt` in the subset.
    """
    require(
        "got10k.datasets", message="The evaluation needs the got10k toolkit, and {names} is not installed"
    )
    from got10k.datasets import GOT10k

    listing = Path(root) / subset / "list.txt"
    if not Path(root).is_dir():
        state = "is a file" if Path(root).exists() else "does not exist"
        raise FileNotFoundError(
            f"{root} {state}; a folder in GOT-10k's layout is needed, with {subset}/list.txt."
        )
    if not listing.is_file():
        raise FileNotFoundError(f"There is no {listing}, the list of the sequences in GOT-10k's layout.")

    class Ordered(GOT10k):
        def __getitem__(self, index: int | str) -> tuple[Any, ...]:
            files, *annotations = super().__getitem__(index)
            return sorted(files, key=natural_order), *annotations

    return Ordered(str(root), subset=subset, return_meta=True)


def evaluate(
    tracker: OnePassTracker, dataset: Any, sequences: Sequence[str] | None = None
) -> Iterator[SequenceResult]:
    """Tracks through every sequence once.

    Args:
        tracker: Tracker, initialized on the first frame of every sequence.
        dataset: Dataset of `open_dataset`.
        sequences: Names of the sequences to evaluate; all by default.

    Yields:
        The result of each sequence.

    Raises:
        ValueError: An unknown sequence, or an incomplete one.
    """
    unknown = set(sequences or ()) - set(dataset.seq_names)
    if unknown:
        raise ValueError(
            f"Unknown sequence {', '.join(sorted(unknown))}; known: {', '.join(dataset.seq_names)}."
        )
    for name in dataset.seq_names if sequences is None else sequences:
        try:
            files, truth, *meta = dataset[name]
        except (AssertionError, OSError, ValueError, LookupError) as error:
            reason = str(error) or "the numbers of boxes and images differ"
            raise ValueError(f"Sequence {name} is incomplete: {reason}.") from error
        boxes, scores, seconds = run_sequence(tracker, map(_read, files), truth[0])
        ious = _overlap(boxes, truth, meta[0]) if meta else None
        yield SequenceResult(name, boxes, scores, seconds, ious)


def write_results(folder: str | Path, tracker: str, result: SequenceResult) -> Path:
    """Writes boxes and times in the toolkit's layout, to `FOLDER/GOT-10k/TRACKER/SEQUENCE/`.

    Args:
        folder: Folder of results.
        tracker: Name of the tracker.
        result: Result of a sequence.

    Returns:
        Path of the file with the boxes, `SEQUENCE_001.txt`.
    """
    output = Path(folder) / "GOT-10k" / tracker / result.name
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{result.name}_001.txt"
    np.savetxt(path, result.boxes, fmt="%.3f", delimiter=",")
    np.savetxt(output / f"{result.name}_time.txt", result.seconds[:, None], fmt="%.8f", delimiter=",")
    return path


def _read(file: str) -> Frame:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _overlap(boxes: Array, truth: Array, meta: dict[str, Any]) -> Array:
    """(N,) IoU with the ground truth, NaN where the target is hidden."""
    from got10k.utils.metrics import rect_iou

    bound = ast.literal_eval(meta["resolution"])
    ious = np.asarray(
        rect_iou(boxes.copy(), truth.copy(), bound=bound)
    )  # rect_iou clips its arguments in place
    return np.where(meta["cover"] > 0, ious, np.nan)
