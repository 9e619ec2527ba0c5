"""Small pairs and clips of computed photographs, and their means: what a seed has to give again.

The order of the random draws is the data set: a run that resumes, or one that is repeated, must see the pairs
that it would have seen. Means over parts of the images are kept rather than a hash of them, since rounding
differs between CPUs and versions of OpenCV: a hash would fail by one grey level in one pixel. Draws that are
off by a part in ten thousand move a mean by 0.6 levels, other draws by tens.

To store them anew, after a change that is meant to give other pairs: python tests/golden_pairs.py
"""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import adaptive_avg_pool2d

from correlation_aware.data.pairs import denormalize
from correlation_aware.data.stills.files import Still
from correlation_aware.data.stills.pool import ImagePool
from correlation_aware.data.stills.still_pairs import StillPairs
from correlation_aware.data.stills.synthetic_clips import ClipConfig, synthetic_clip
from correlation_aware.data.videos.sequences import Folder
from correlation_aware.data.videos.video_pairs import VideoConfig, VideoPairs
from correlation_aware.models.contract import Sizes

FILE = Path(__file__).parent / "data" / "golden_pairs.safetensors"
# Grey levels. A tip of one rounding in the codec's blocks moves a mean by up to one, and so does the rounding
# of the stored numbers with that of the pixels.
LEVELS = 2.0


def waves(number, height, width):
    """Soft colours, (H, W, 3) uint8, others for each number."""
    y, x = np.mgrid[:height, :width] / 10.0
    phases = [number + 2.1 * c for c in range(3)]
    colours = [np.sin((0.6 + 0.13 * c) * x + p) * np.cos(0.7 * y - p * p) for c, p in enumerate(phases)]
    return (128 + 90 * np.stack(colours, axis=-1)).round().astype(np.uint8)


def pool():
    """Eight photographs of two classes, five of which have an object with a mask."""
    stills = []
    for number in range(8):
        image = waves(number, 72, 96)
        y, x = np.mgrid[:72, :96]
        inside = ((x - 40 - number) / (14 + number)) ** 2 + ((y - 36) / (20 - number)) ** 2 < 1
        if number < 5:
            image[inside] = 255 - image[inside]
        stills.append(
            Still(image, inside.astype(np.uint8) * 255 if number < 5 else None, f"class{number % 2}")
        )
    return ImagePool(stills)


def pairs(source):
    """Two batches: means of the images in grey levels, boxes in 0..1, and which are positive."""
    found = {}
    for number in range(2):
        batch = source.batch(number)
        for name, parts in (("template", 2), ("search", 4)):
            images = denormalize(getattr(batch, name)).float()
            found[f"{number}.{name}"] = adaptive_avg_pool2d(images, parts)
        found[f"{number}.boxes"], found[f"{number}.positive"] = batch.boxes, batch.positive.float()
    return found


def still_pairs():
    return pairs(StillPairs(pool(), 12, Sizes(32, 64), seed=3))


def video_pairs(folder):
    """Of two videos of ten frames, which are written into the folder."""
    for video in range(2):
        place = Path(folder) / f"video{video}"
        place.mkdir()
        boxes = [(20 + 4 * i, 30 + 2 * i * video, 24 + i, 18) for i in range(10)]
        for i, (x, y, w, h) in enumerate(boxes):
            image = waves(video + 0.05 * i, 90, 120)
            image[y : y + h, x : x + w] = waves(video + 5, h, w)
            cv2.imwrite(str(place / f"{i}.png"), image[..., ::-1])
        (place / "groundtruth.txt").write_text("".join(f"{x},{y},{w},{h}\n" for x, y, w, h in boxes))
    config = VideoConfig(negative=0.25, gap=4)
    return pairs(VideoPairs([(Folder(folder), 1.0)], 8, Sizes(32, 64), seed=3, config=config, workers=1))


def clips():
    """Two clips: means of the frames, boxes in pixels, and the visible part."""
    found = {}
    for number in range(2):
        clip = synthetic_clip(pool(), number, 3, ClipConfig(length=6, size=(60, 80), speed=4))
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float()
        found[f"{number}.frames"] = adaptive_avg_pool2d(frames, 4)
        found[f"{number}.boxes"] = torch.from_numpy(clip.boxes)
        found[f"{number}.visible"] = torch.from_numpy(clip.visible)
    return found


def check(kind, found):
    """Compares with what is stored.

    Args:
        kind: `stills`, `videos` or `clips`.
        found: The tensors by name.
    """
    stored = {
        name.removeprefix(f"{kind}."): t for name, t in load_file(FILE).items() if name.startswith(kind)
    }
    assert stored.keys() == found.keys()
    for name, expected in stored.items():
        images = expected.dtype == torch.uint8
        # the boxes of a clip are in pixels, of some 60
        tolerance = LEVELS if images else 0.05 if kind == "clips" and "boxes" in name else 2e-3
        torch.testing.assert_close(found[name].float(), expected.float(), rtol=0, atol=tolerance, msg=name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"stills": still_pairs(), "videos": video_pairs(folder), "clips": clips()}
    means = ("template", "search", "frames")
    save_file(
        {
            f"{kind}.{name}": (t.round().byte() if name.endswith(means) else t).contiguous()
            for kind, found in kinds.items()
            for name, t in found.items()
        },
        FILE,
    )
