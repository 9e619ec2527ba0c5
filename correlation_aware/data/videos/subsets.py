"""A part of a dataset of videos, chosen in a configuration: its weight, subset, and lists of names."""

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from correlation_aware.data.videos.readers import open_set, reader_of
from correlation_aware.data.videos.sequences import SequenceSet, Video, read_names

__all__ = ["Part", "VideoSet", "names_videos", "open_videos"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoSet:
    """The part of a dataset that is used; a bare number in a configuration is its weight.

    A list has names of videos, and text files with one name per line, such as LaSOT's `testing_set.txt`. A
    file of integers alone has numbers of videos from 0, such as STARK's `got10k_vot_train_split.txt`.

    Attributes:
        weight: Share of the pairs relative to the other sources.
        subset: Subset, for layouts that have some, such as `val` of `got10k`.
        names: Videos to use; all by default.
        exclude: Videos to leave out.
    """

    weight: float = 1.0
    subset: str | None = None
    names: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"The weight of a dataset is {self.weight:g}; it must be at least 0 and finite.")

    @classmethod
    def of(cls, value: Any) -> "VideoSet":
        """From a number, the weight, or a mapping of the attributes."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            known = [field.name for field in fields(cls)]
            unknown = sorted(set(value) - set(known))
            if unknown:
                raise ValueError(
                    f"Unknown keys {', '.join(unknown)} of a dataset; known: {', '.join(known)}."
                )
            return cls(**value)
        return cls(weight=float(value))


class Part:
    """Some videos of a dataset, in its order.

    Args:
        dataset: Dataset.
        indices: Indices of the videos.
    """

    def __init__(self, dataset: SequenceSet, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, list(indices)
        names = names_of(dataset)
        self.names = [names[i] for i in self.indices]
        self.one_frame = getattr(dataset, "one_frame", False)
        self.damaged = getattr(dataset, "damaged", {})

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Video:
        return self.dataset[self.indices[index]]


def names_videos(location: str) -> bool:
    """Whether a source of data is `LAYOUT:ROOT`, annotated videos; otherwise it is photographs."""
    _, colon, root = location.partition(":")
    # a folder may have a colon in its name, and a URL has one
    return bool(colon) and not Path(location).exists() and not root.startswith("//")


def open_videos(location: str, part: VideoSet | float = 1.0) -> SequenceSet:
    """Opens a dataset of videos, or a part of it.

    Args:
        location: `LAYOUT:ROOT`, such as `got10k:datasets/GOT-10k`.
        part: The part to use.

    Raises:
        ValueError: An unknown layout, a subset of a layout that has none, or lists that leave no video.
        FileNotFoundError: No dataset of that layout, or no such list.
    """
    layout, colon, root = location.partition(":")
    if not colon:
        raise ValueError(f"{location!r} is not LAYOUT:ROOT, such as got10k:datasets/GOT-10k.")
    part = VideoSet.of(part)
    if part.subset is None:
        dataset = open_set(layout, root)
    elif "subset" in inspect.signature(reader := reader_of(layout)).parameters:
        dataset = reader(root, subset=part.subset)  # type: ignore[call-arg]
    else:
        raise ValueError(f"{location}: the layout {layout} has no subsets, and subset={part.subset!r}.")
    if not part.names and not part.exclude:
        return dataset
    known = names_of(dataset)
    names = _select(known, part.names, f"names of {location}")
    excluded = _select(known, part.exclude, f"exclude of {location}")
    indices = [i for i in range(len(known)) if (not part.names or i in names) and i not in excluded]
    if not indices:
        raise ValueError(f"{location}: `names` and `exclude` leave none of {len(known)} videos.")
    return Part(dataset, indices)


def names_of(dataset: SequenceSet) -> list[str]:
    """Names of all videos of a dataset.

    Raises:
        ValueError: A reader without an attribute `names`.
    """
    names = getattr(dataset, "names", None)
    if names is None:
        raise ValueError(
            f"{type(dataset).__name__} has no list `names` of its videos to select from; its author can add "
            "one, see SequenceSet."
        )
    return list(names)


def _select(known: Sequence[str], entries: Sequence[str], where: str) -> set[int]:
    """Indices of the videos that a list names, whole or by the last part of their path."""
    index: dict[str, set[int]] = {}
    for i, name in enumerate(known):
        for key in {name, name.rpartition("/")[2]}:
            index.setdefault(key, set()).add(i)
    selected: set[int] = set()
    missing: list[str] = []
    count = 0
    for entry in entries:
        is_file = entry not in index and Path(entry).suffix == ".txt"
        if is_file and not Path(entry).is_file():
            raise FileNotFoundError(f"{where}: there is no file {entry}.")
        names = read_names(entry) if is_file else [entry]
        if is_file and names and all(name.isdecimal() and name not in index for name in names):
            names = [known[int(name)] if int(name) < len(known) else name for name in names]
        count += len(names)
        for name in names:
            selected |= index.get(name, set())
            if name not in index:
                missing.append(name)
    if missing and not selected:
        raise ValueError(
            f"{where}: none of {count} names is among the {len(known)} videos. First of the list: "
            f"{', '.join(missing[:3])}; of the videos: {', '.join(known[:3])}."
        )
    if missing:
        _log.warning("%s: %d of %d names are not there: %s.", where, len(missing), count, shorten(missing))
    return selected


def shorten(names: Sequence[str], count: int = 3) -> str:
    """The first names, and how many follow."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
