"""What a model was trained on: records of its videos for the checkpoint, compared with a benchmark."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from correlation_aware.data.videos.sequences import SequenceSet
from correlation_aware.data.videos.subsets import VideoSet, names_of

__all__ = ["describe_videos", "merge_records", "trained_videos"]

Record = Mapping[str, Any]

LIMIT = 5000  # entries of a list of names; of larger sets only layout and subset are recorded
_NUMBERED = re.compile(r"(.*?)(\d+)")
_RANGE = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}")
ANY_LAYOUT = ("folder", "tar")  # layouts of videos of any origin


def describe_videos(location: str, part: VideoSet, dataset: SequenceSet) -> dict[str, Any]:
    """Record of a dataset that a model is trained on; it has no paths.

    Args:
        location: `LAYOUT:ROOT`.
        part: Part of the dataset.
        dataset: Dataset, as `open_videos` returns it.

    Returns:
        `layout`, `subset` (None for the default one), `videos`, the number of videos, and `names`: their
        names, consecutive ones as `GOT-10k_Train_{000001..000003}`, or None for still images and for very
        long lists.
    """
    names = None
    if not getattr(dataset, "one_frame", False) and hasattr(dataset, "names"):
        names = list(_compress(names_of(dataset)))
    if names is not None and len(names) > LIMIT:
        names = None
    layout = location.partition(":")[0]
    return {"layout": layout, "subset": part.subset, "videos": len(dataset), "names": names}


def merge_records(first: Sequence[Record], second: Sequence[Record]) -> list[dict[str, Any]]:
    """Both lists of records, each record once."""
    merged: list[dict[str, Any]] = []
    for record in (*first, *second):
        if record not in merged:
            merged.append(dict(record))
    return merged


def trained_videos(records: Sequence[Record], layout: str, subset: str, names: Sequence[str]) -> list[str]:
    """The videos of a benchmark that a model was trained on.

    Names are compared, without folders; where a record has none, layout and subset.

    Args:
        records: Records of `describe_videos`.
        layout: Layout of the benchmark, a key of `BENCHMARKS`.
        subset: Subset of the benchmark.
        names: Names of its videos.
    """
    trained: set[str] = set()
    for record in records:
        if record.get("names") is not None:
            if record.get("layout") in (layout, layout.removesuffix("_ext"), *ANY_LAYOUT):
                trained |= {name.rpartition("/")[2] for name in _expand(record["names"])}
        elif record.get("layout") == layout and record.get("subset") == subset:
            trained |= set(names)
    return [name for name in names if name in trained]


def _compress(names: Sequence[str]) -> Iterator[str]:
    """Names in order, with runs of consecutive numbers as one entry `PREFIX{FIRST..LAST}`."""
    numbered: list[tuple[str, int, int]] = []
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None or _RANGE.fullmatch(name):
            yield name
        else:
            width = len(match[2]) if match[2].startswith("0") else 0
            numbered.append((match[1], width, int(match[2])))
    numbered.sort()
    for (prefix, width, _), group in groupby(
        enumerate(numbered), key=lambda item: (*item[1][:2], item[1][2] - item[0])
    ):
        numbers = [number for _, (_, _, number) in group]
        first, last = (f"{number:0{width}d}" for number in (numbers[0], numbers[-1]))
        yield f"{prefix}{first}" if len(numbers) == 1 else f"{prefix}{{{first}..{last}}}"


def _expand(entries: Sequence[str]) -> Iterator[str]:
    for entry in entries:
        match = _RANGE.fullmatch(entry)
        if match is None:
            yield entry
        else:
            for number in range(int(match[2]), int(match[3]) + 1):
                yield f"{match[1]}{number:0{len(match[2])}d}"
