"""A short sequence in GOT-10k's layout for other people's trackers: drawn, or the start of a real one."""

import shutil
from pathlib import Path

import cv2
import numpy as np

from correlation_aware.demo_clip import draw_clip

LABELS = {"absence.label": 0, "cover.label": 8, "cut_by_image.label": 0}  # visible, uncovered, uncut
NAME = "clip"


def write_clip(folder: Path, frames: int, source: Path | None = None) -> Path:
    """Writes `folder/clip` and `folder/list.txt`.

    Args:
        folder: Root of a dataset in GOT-10k's layout; created if it does not exist.
        frames: Number of frames.
        source: A sequence of that layout whose first frames are copied; drawn without one.

    Returns:
        Folder of the sequence: 00000001.jpg and so on, groundtruth.txt with boxes x, y, w, h, and labels.
    """
    target = folder / NAME
    target.mkdir(parents=True)
    (folder / "list.txt").write_text(f"{NAME}\n")
    if source is None:
        boxes = []
        for i, (frame, box) in enumerate(draw_clip(10 * frames, (240, 320))):  # the first tenth: slow enough
            if i == frames:
                break
            cv2.imwrite(str(target / f"{i + 1:08d}.jpg"), frame[..., ::-1])
            boxes.append(np.round(box))  # STARK writes whole pixels
        size = frame.shape[1::-1]
    else:
        images = sorted(source.glob("*.jpg"))[:frames]
        assert len(images) == frames, f"{source} has {len(images)} frames, which must be at least {frames}"
        for i, image in enumerate(images):
            shutil.copyfile(image, target / f"{i + 1:08d}.jpg")
        boxes = np.loadtxt(source / "groundtruth.txt", delimiter=",")[:frames]
        size = cv2.imread(str(images[0])).shape[1::-1]
    np.savetxt(target / "groundtruth.txt", boxes, fmt="%.4f", delimiter=",")
    for name, value in LABELS.items():
        (target / name).write_text(f"{value}\n" * frames)
    (target / "meta_info.ini").write_text(
        f"[METAINFO]\nurl: unknown\nbegin: 0\nend: {frames}\nanno_fps: 30Hz\nobject_class: {NAME}\n"
        "motion_class: unknown\nmajor_class: unknown\nroot_class: unknown\nmotion_adverb: unknown\n"
        f"resolution: {tuple(map(int, size))}\n"
    )
    return target
