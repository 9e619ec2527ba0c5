"""Attributes of sequences: those that a benchmark publishes, or else some that follow from its boxes."""

import configparser
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from correlation_aware._files import read_text
from correlation_aware.data.videos.sequences import Video, read_flags
from correlation_aware.evaluation.benchmarks import Benchmark

__all__ = ["COLUMNS", "read_attributes"]

# columns of the files NAME.txt in the order of the toolkits of the benchmarks
_LASOT = (
    *("illumination variation", "partial occlusion", "deformation", "motion blur", "camera motion"),
    *("rotation", "background clutter", "viewpoint change", "scale variation", "full occlusion"),
    *("fast motion", "out of view", "low resolution", "aspect ratio change"),
)
COLUMNS: dict[str, tuple[str, ...]] = {
    "OTB2015": (
        *("illumination variation", "out-of-plane rotation", "scale variation", "occlusion", "deformation"),
        *("motion blur", "fast motion", "in-plane rotation", "out of view", "background clutter"),
        "low resolution",
    ),
    "LaSOT": _LASOT,
    "LaSOText": _LASOT,
    "UAV123": (
        *("scale variation", "aspect ratio change", "low resolution", "fast motion", "full occlusion"),
        *("partial occlusion", "out of view", "background clutter", "illumination variation"),
        *("viewpoint change", "camera motion", "similar object"),
    ),
}
META = ("root_class", "motion_class", "motion_adverb")  # of GOT-10k's meta_info.ini
MOSTLY_VISIBLE = 4  # of GOT-10k's cover.label: at most 60 % of the target is visible
LOW_RESOLUTION = 1000  # pixels


def read_attributes(
    benchmark: Benchmark, videos: Mapping[str, Video], folder: str | Path | None = None
) -> tuple[dict[str, list[str]], str]:
    """Attributes of sequences and where they are from.

    Of OTB, LaSOT and UAV123 these are the files `NAME.txt` with a 0 or 1 per attribute, of GOT-10k
    `meta_info.ini` and the labels. Without them, and besides GOT-10k's, they are computed from the boxes:
    a side that doubles or halves (scale), an aspect ratio that does, a move between two frames by the size of
    the target (fast motion), fewer than 1000 pixels (low resolution), frames without a visible target.

    Args:
        benchmark: Benchmark.
        videos: Sequences by name.
        folder: Folder of the files; by default `att`, `anno/att`, `annos/att` or `anno/SUBSET/att` in the
            folder of the benchmark.

    Returns:
        Names of the sequences by attribute, and a text about their source.

    Raises:
        ValueError: A folder for a benchmark without such files, or a file that is not in their format.
        FileNotFoundError: No such folder, or no file of a sequence in it.
    """
    columns = COLUMNS.get(benchmark.protocol.title)
    if folder is not None and columns is None:
        raise ValueError(
            f"{benchmark.protocol.title} has no files of attributes; {', '.join(COLUMNS)} have some."
        )
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder} of attributes.")
    places = [benchmark.root / name for name in ("att", "anno/att", "annos/att")]
    places = [*places, benchmark.root / "anno" / benchmark.subset / "att"]
    place = Path(folder) if folder is not None else next((p for p in places if p.is_dir()), None)
    groups: dict[str, list[str]]
    if columns is not None and place is not None:
        groups = {column: [] for column in columns}
        for name in videos:
            for column, value in zip(columns, _read(_file(place, name), len(columns))):
                if value:
                    groups[column].append(name)
        source = f"published by {benchmark.protocol.title}"
    else:
        groups, source = {}, "computed from the annotated boxes with the limits of LaSOT"
        for name, video in videos.items():
            own_folder = benchmark.root / benchmark.subset / name
            own = _of_got10k(own_folder, len(video.boxes)) if benchmark.protocol.folders else []
            for attribute in [*own, *_of_boxes(video)]:
                groups.setdefault(attribute, []).append(name)
        if any(":" in attribute for attribute in groups):
            source += ", and those of GOT-10k's meta_info.ini and labels"
        groups = dict(sorted(groups.items()))
    return {attribute: names for attribute, names in groups.items() if names}, source


def _file(folder: Path, name: str) -> Path:
    """The file of a sequence, also under OTB's other spellings such as `jogging-1` for `Jogging.1`."""
    for spelling in (name, name.lower(), name.replace(".", "-"), name.lower().replace(".", "-")):
        if (path := folder / f"{spelling}.txt").is_file():
            return path
    raise FileNotFoundError(f"{folder} has no {name}.txt with the attributes of {name}.")


def _read(path: Path, count: int) -> list[bool]:
    words = read_text(path).replace(",", " ").split()
    if len(words) != count or not set(words) <= {"0", "1"}:
        raise ValueError(f"{path} must have {count} numbers, 0 or 1: {' '.join(words[:20])!r}.")
    return [word == "1" for word in words]


def _of_got10k(folder: Path, count: int) -> list[str]:
    """Attributes of the files of a sequence of GOT-10k with a number of frames."""
    attributes = []
    if (folder / "meta_info.ini").is_file():
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(read_text(folder / "meta_info.ini"))
            meta = parser["METAINFO"]
        except (configparser.Error, KeyError) as error:
            raise ValueError(f"{folder / 'meta_info.ini'} has no section METAINFO: {error}.") from error
        values = {key: meta.get(key, "").strip() for key in META}
        known = {key: value for key, value in values.items() if value.lower() not in ("", "unknown", "none")}
        attributes += [f"{key.replace('_', ' ')}: {value}" for key, value in known.items()]
    for file, attribute, limits in (
        ("absence.label", "label: absent", (1, 1)),
        ("cut_by_image.label", "label: cut by the image", (1, 1)),
        ("cover.label", "label: at most 60 % visible", (0, MOSTLY_VISIBLE)),
    ):
        if (folder / file).is_file():
            flags = read_flags(folder / file, count)
            attributes += [attribute] * bool(((flags >= limits[0]) & (flags <= limits[1])).any())
    return attributes


def _of_boxes(video: Video) -> list[str]:
    """Attributes that hold in one frame or more, see `read_attributes`."""
    boxes, visible = video.boxes, video.visible
    sizes = boxes[visible, 2:]
    area, aspect = sizes.prod(axis=1), sizes[:, 0] / sizes[:, 1]
    centers = boxes[:, :2] + boxes[:, 2:] / 2
    both = visible[1:] & visible[:-1]
    moves = np.linalg.norm(centers[1:] - centers[:-1], axis=1)[both]
    lengths = np.sqrt(boxes[:-1, 2:].prod(axis=1))[both]
    flags = {
        "scale variation": (abs(np.log2(np.sqrt(area / area[0]))) > 1).any(),
        "aspect ratio change": (abs(np.log2(aspect / aspect[0])) > 1).any(),
        "fast motion": (moves >= lengths).any(),
        "low resolution": (area < LOW_RESOLUTION).any(),
        "absent target": not visible.all(),
    }
    return [attribute for attribute, holds in flags.items() if holds]
