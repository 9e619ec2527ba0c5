"""Files for the servers of GOT-10k and TrackingNet, and what their servers would reject."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from correlation_aware._files import atomic_path
from correlation_aware.evaluation.benchmarks import Benchmark
from correlation_aware.evaluation.results import ResultFolder, read_boxes_and_times

__all__ = ["find_faults", "pack"]

FIRST_BOX_TOLERANCE = 1.0  # pixels


def find_faults(results: str | Path, benchmark: Benchmark) -> list[str]:
    """What a server would reject in the files of a tracker.

    Args:
        results: Folder of the tracker's files.
        benchmark: Benchmark that they are for.

    Returns:
        One line per fault: files that are missing, unknown or no table of numbers, a wrong number of boxes or
        times, boxes that are not finite or have no area, times that are not positive, and a first box that is
        not the given one.

    Raises:
        FileNotFoundError: No such folder.
    """
    folder = ResultFolder.of_others(results, benchmark)
    faults: list[str] = []
    expected: set[Path] = set()
    for name in benchmark.names:
        boxes_file, times_file, _ = files = folder.files(name)
        expected.update(files)  # scores are for the report and not submitted
        if not boxes_file.is_file():
            faults.append(f"{name}: there is no {boxes_file.relative_to(folder.path)}")
            continue
        try:
            video = benchmark[name]
            boxes, times = read_boxes_and_times(boxes_file, times_file)
        except (OSError, ValueError) as error:
            faults.append(f"{name}: {error}")
            continue
        frames = len(video.frames)
        if len(boxes) != frames:
            faults.append(f"{name}: {len(boxes)} boxes for {frames} frames")
        bad = np.flatnonzero(~np.isfinite(boxes).all(axis=1) | ~(boxes[:, 2:] > 0).all(axis=1))
        if bad.size:
            faults.append(
                f"{name}: {bad.size} boxes are not finite or have no area, such as line {bad[0] + 1}: "
                f"{boxes[bad[0]].tolist()}"
            )
        if not np.allclose(boxes[0], video.boxes[0], atol=FIRST_BOX_TOLERANCE):
            faults.append(
                f"{name}: the first box is {boxes[0].tolist()}, not the given {video.boxes[0].tolist()}"
            )
        if benchmark.protocol.folders and not times_file.is_file():
            faults.append(f"{name}: there is no {times_file.relative_to(folder.path)}")
        elif times.size and (len(times) != frames or not (np.isfinite(times) & (times > 0)).all()):
            faults.append(f"{name}: {len(times)} times for {frames} frames, all of which have to be positive")
    unknown = sorted(path for path in folder.path.rglob("*") if path.is_file() and path not in expected)
    faults += [f"{path.relative_to(folder.path)} is not a file of a result" for path in unknown]
    return faults


def pack(results: str | Path, benchmark: Benchmark, path: str | Path) -> Sequence[str]:
    """Writes the zip file for a server.

    Args:
        results: Folder of the tracker's files.
        benchmark: Benchmark that they are for.
        path: Path of the zip file; it appears when it is complete.

    Returns:
        Names of the files in it: `NAME/NAME_001.txt` and `NAME/NAME_time.txt`, or `NAME.txt` for benchmarks
        without a folder per sequence.

    Raises:
        ValueError: Files that the server would reject, see `find_faults`.
        FileNotFoundError: No such folder.
    """
    faults = find_faults(results, benchmark)
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"{results} has {len(faults)} faults: {'; '.join(faults[:5])}{more}.")
    folder = ResultFolder.of_others(results, benchmark)
    names = []
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in benchmark.names:
            boxes, times, _ = folder.files(name)
            for file in (boxes, times) if benchmark.protocol.folders else (boxes,):
                names.append(file.relative_to(folder.path).as_posix())
                archive.write(file, names[-1])
    return names
