"""One-pass evaluation on sequences in GOT-10k's layout; dataset and overlap are the got10k toolkit's.

Benchmark: `GOT-10k: A Large High-Diversity Benchmark for Generic Object Tracking in the Wild` (Huang et
al.) - https://github.com/got-10k/toolkit
"""

import ast
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from correlation_aware.tracking.tracker import TrackResult

__all__ = [
    "OnePassTracker",
    "Scores",
    "SequenceResult",
    "average",
    "evaluate",
    "open_dataset",
    "score",
    "write_results",
]

THRESHOLDS = np.linspace(0, 1, 21)  # of the success curve, as in OTB

Array = NDArray[np.float64]
Subset = Literal["train", "val", "test"]


class OnePassTracker(Protocol):
    """All that the evaluation sees of a tracker."""

    def init(self, frame: NDArray[np.uint8], box: Array, /) -> None: ...

    def update(self, frame: NDArray[np.uint8], /) -> TrackResult | list[TrackResult]: ...


@dataclass(frozen=True)
class SequenceResult:
    """One pass over one sequence.

    Attributes:
        name: Of the sequence.
        boxes: (N, 4) xywh; the first is the given one.
        seconds: (N,) of `init` and of each `update`; reading the picture is not counted.
        ious: Overlap with the truth in the frames after the first where the target is visible; empty where
            the truth is withheld.
    """

    name: str
    boxes: Array
    seconds: Array
    ious: Array


@dataclass(frozen=True)
class Scores:
    """What is reported.

    Attributes:
        ao: Average overlap.
        sr50: Share of frames with an overlap above 0.5.
        sr75: The same above 0.75.
        auc: Area under the success curve, 21 thresholds as in OTB.
        fps: Frames over the seconds of all `update` calls.
        frames: Number of frames that count.
    """

    ao: float
    sr50: float
    sr75: float
    auc: float
    fps: float
    frames: int


def open_dataset(root: str | Path, subset: Subset = "val") -> Any:
    """The toolkit's dataset.

    Args:
        root: Holds `train`, `val` and `test`, each with a `list.txt` and a folder per sequence.
        subset: Which of them; the truth of `test` is withheld.

    Raises:
        ModuleNotFoundError: The toolkit is not installed; the message says how to get it.
        FileNotFoundError: There is no such subset.
    """
    try:
        from got10k.datasets import GOT10k
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The evaluation needs the got10k toolkit and {error.name} is missing: "
            "pip install correlation_aware[eval]"
        ) from error
    listing = Path(root) / subset / "list.txt"
    if not listing.is_file():
        raise FileNotFoundError(f"There is no {listing}, which names the sequences in GOT-10k's layout.")
    return GOT10k(str(root), subset=subset, return_meta=True)


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
        boxes, seconds = _track(tracker, files, truth[0])
        ious = _overlap(boxes, truth, described[0]) if described else np.empty(0)
        yield SequenceResult(name, boxes, seconds, ious)


def score(results: Sequence[SequenceResult]) -> Scores:
    """Scores of one sequence, or of several with every frame alike, as the toolkit's report has it.

    Raises:
        ValueError: There is no frame with a known truth.
    """
    ious = np.concatenate([result.ious for result in results]) if results else np.empty(0)
    if not ious.size:
        raise ValueError("There is nothing to score: no frame after the first has a visible, known target.")
    updates = np.concatenate([result.seconds[1:] for result in results])
    return Scores(
        ao=float(ious.mean()),
        sr50=float((ious > 0.5).mean()),
        sr75=float((ious > 0.75).mean()),
        auc=float((ious[:, None] > THRESHOLDS).mean()),
        fps=float(updates.size / max(updates.sum(), 1e-9)),
        frames=int(ious.size),
    )


def average(results: Sequence[SequenceResult]) -> Scores:
    """Scores with every sequence alike, long or short; sequences without a known truth are left out.

    Raises:
        ValueError: No sequence has a frame with a known truth.
    """
    known = [result for result in results if result.ious.size]
    pooled = score(known)
    each = [score([result]) for result in known]
    ao, sr50, sr75, auc = np.mean([(s.ao, s.sr50, s.sr75, s.auc) for s in each], axis=0).tolist()
    return replace(pooled, ao=ao, sr50=sr50, sr75=sr75, auc=auc)


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


def _track(tracker: OnePassTracker, files: Sequence[str], start: Array) -> tuple[Array, Array]:
    boxes, seconds = np.tile(start, (len(files), 1)), np.zeros(len(files))
    for i, file in enumerate(files):
        with Image.open(file) as picture:
            frame = np.asarray(picture.convert("RGB"))
        begin = time.perf_counter()
        if i == 0:
            tracker.init(frame, start)
        else:
            result = tracker.update(frame)
            assert isinstance(result, TrackResult)  # one box in, one result out
            boxes[i] = result.box
        seconds[i] = time.perf_counter() - begin
    return boxes, seconds


def _overlap(boxes: Array, truth: Array, described: dict[str, Any]) -> Array:
    from got10k.utils.metrics import rect_iou

    bound = ast.literal_eval(described["resolution"])
    ious = rect_iou(boxes[1:].copy(), truth[1:].copy(), bound=bound)  # it clips its arguments in place
    return ious[described["cover"][1:] > 0]
