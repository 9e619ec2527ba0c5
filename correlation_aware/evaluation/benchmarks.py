"""One-pass evaluation on the benchmarks of the field, in the layouts in which they are published."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from correlation_aware._images import image_size, read_image
from correlation_aware.data.videos.readers import Got10k
from correlation_aware.data.videos.sequences import SequenceSet, Video
from correlation_aware.data.videos.subsets import names_of
from correlation_aware.evaluation import layouts
from correlation_aware.evaluation.one_pass import Array, OnePassTracker, SequenceResult, overlap, run_sequence

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Protocol",
    "SequenceFailure",
    "evaluate",
    "open_benchmark",
    "score_boxes",
    "select_names",
]


@dataclass(frozen=True)
class Protocol:
    """What distinguishes a benchmark from the others.

    Attributes:
        title: Name of the benchmark, and of the folder of its results.
        reader: Reader of the layout; takes the root and a subset.
        subsets: Names of the subsets, the default one first.
        hidden: Subsets without public annotations.
        clips: Whether boxes are clipped to the frame before the overlap is measured.
        counts_first: Whether the first frame, with the box that the tracker was given, is counted.
        folders: Whether results have a folder per sequence, as those of GOT-10k.
    """

    title: str
    reader: Callable[[Path, str], SequenceSet]
    subsets: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    clips: bool = False
    counts_first: bool = True
    folders: bool = False


# titles of OTB, UAV123, NFS and GOT-10k are the folders of the got10k toolkit, https://github.com/got-10k/toolkit
BENCHMARKS: dict[str, Protocol] = {
    "got10k": Protocol(
        "GOT-10k",
        Got10k,
        ("val", "train", "test"),
        hidden=("test",),
        clips=True,
        counts_first=False,
        folders=True,
    ),
    "otb": Protocol("OTB2015", layouts.otb, ("all",)),
    "lasot": Protocol("LaSOT", layouts.lasot, ("test", "train", "all")),
    "lasot_ext": Protocol("LaSOText", layouts.lasot_ext, ("all",)),
    "uav123": Protocol("UAV123", layouts.uav123, ("UAV123", "UAV20L")),
    "nfs": Protocol("NfS", layouts.nfs, ("30", "240")),
    "tnl2k": Protocol("TNL2K", layouts.tnl2k, ("all",)),
    "trackingnet": Protocol("TrackingNet", layouts.trackingnet, ("TEST",), hidden=("TEST",)),
}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark on disk.

    Attributes:
        protocol: Protocol.
        subset: Name of the subset.
        names: Names of the sequences.
        dataset: Sequences, in the order of the names.
        root: Folder of the benchmark.
    """

    protocol: Protocol
    subset: str
    names: Sequence[str]
    dataset: SequenceSet
    root: Path

    @property
    def title(self) -> str:
        """Name of the benchmark."""
        return self.protocol.title

    @property
    def has_truth(self) -> bool:
        """Whether the annotations are public."""
        return self.subset not in self.protocol.hidden

    def select(self, names: Sequence[str] | None) -> list[str]:
        """The names of sequences to evaluate, all for None.

        Raises:
            ValueError: An unknown name.
        """
        return select_names(names, self.names)

    def __getitem__(self, name: str) -> Video:
        """The frames and the annotation of a sequence.

        Raises:
            ValueError: Missing frames or lines, or a first frame without a visible target.
            OSError: Missing files.
        """
        video = self.dataset[list(self.names).index(name)]
        if video.remark:
            raise ValueError(video.remark)
        if not len(video.frames):
            raise ValueError(f"{video.name} has no frames")
        if not video.visible[0]:
            raise ValueError(
                f"the first frame has no visible target to start on: its box is {video.boxes[0].tolist()}"
            )
        return video


@dataclass(frozen=True)
class SequenceFailure:
    """A sequence that could not be evaluated.

    Attributes:
        name: Name of the sequence.
        reason: Type and text of the error.
    """

    name: str
    reason: str

    @classmethod
    def of(cls, name: str, error: BaseException) -> "SequenceFailure":
        """The failure of a sequence by an error."""
        return cls(name, f"{type(error).__name__}: {error}".rstrip(": "))


def select_names(names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The names of sequences to evaluate.

    Args:
        names: Names that were chosen; None for all.
        known: All names.

    Raises:
        ValueError: An unknown name.
    """
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"Unknown sequence {', '.join(unknown)}; known: {', '.join(known)}.")
    return list(known if names is None else names)


def open_benchmark(name: str, root: str | Path, subset: str | None = None) -> Benchmark:
    """Opens a benchmark.

    Args:
        name: Key of `BENCHMARKS`.
        root: Folder of the benchmark.
        subset: Name of the subset; the first one of the protocol by default.

    Raises:
        ValueError: An unknown benchmark or subset.
        FileNotFoundError: No such folder, or not in the layout of the benchmark.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}.")
    protocol = BENCHMARKS[name]
    subset = protocol.subsets[0] if subset is None else subset
    if subset not in protocol.subsets:
        raise ValueError(f"{protocol.title} has no subset {subset!r}; it has {', '.join(protocol.subsets)}.")
    if not Path(root).is_dir():
        state = "is a file" if Path(root).exists() else "does not exist"
        raise FileNotFoundError(f"{root} {state}; a folder in {protocol.title}'s layout is needed.")
    dataset = protocol.reader(Path(root), subset)
    return Benchmark(protocol, subset, names_of(dataset), dataset, Path(root))


def evaluate(
    tracker: OnePassTracker,
    benchmark: Benchmark,
    sequences: Sequence[str] | None = None,
    depth_range: tuple[float, float] | None = None,
) -> Iterator[SequenceResult | SequenceFailure]:
    """Tracks through every sequence once.

    Boxes, times and scores are rounded as in the files of results, so that they give the same figures.

    Args:
        tracker: Tracker, initialized on the first frame of every sequence.
        benchmark: Benchmark.
        sequences: Names of the sequences to evaluate; all by default.
        depth_range: Values of 16-bit or float images that become 0 and 255, see `decode_image`.

    Yields:
        The result of each sequence, or why it has none.

    Raises:
        ValueError: An unknown sequence.
    """
    for name in benchmark.select(sequences):
        try:
            video = benchmark[name]
            frames = (read_image(path, depth_range) for path in video.frames)
            boxes, scores, seconds = run_sequence(tracker, frames, video.boxes[0])
            rounded = boxes.round(3), seconds.round(8), scores.round(6)
            yield score_boxes(benchmark, name, video, *rounded)
        except Exception as error:  # of the files, or of somebody's tracker: the other sequences go on
            yield SequenceFailure.of(name, error)


def score_boxes(
    benchmark: Benchmark, name: str, video: Video, boxes: Array, seconds: Array, scores: Array | None = None
) -> SequenceResult:
    """The result of a sequence from the boxes of a tracker.

    Args:
        benchmark: Benchmark.
        name: Name of the sequence.
        video: The sequence, `benchmark[name]`.
        boxes: (N, 4) xywh in pixels.
        seconds: (N,) duration per frame; empty if unknown.
        scores: (N,) score per frame; NaN by default.

    Raises:
        ValueError: Another number of boxes or scores than frames.
        OSError: A first frame that cannot be read.
    """
    scores = np.full(len(boxes), np.nan) if scores is None else scores
    for values, shape, text in ((boxes, (len(video.frames), 4), "boxes"), (scores, (len(boxes),), "scores")):
        if values.shape != shape:
            raise ValueError(
                f"the result has {len(values)} {text} and the sequence {len(video.frames)} frames"
            )
    if not benchmark.has_truth:
        return SequenceResult(name, boxes, scores, seconds, None)
    size = image_size(video.frames[0]) if benchmark.protocol.clips else None
    overlaps = np.where(video.visible, overlap(boxes, video.boxes, size), np.nan)
    # GOT-10k does not measure how far the centers are apart
    truth = None if benchmark.protocol.clips else np.where(video.visible[:, None], video.boxes, np.nan)
    return SequenceResult(name, boxes, scores, seconds, overlaps, truth, benchmark.protocol.counts_first)
