"""One rule for all images: orientation, suffixes, 16 bits and masks, in every room that reads them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from correlation_aware._images import decode_image, decode_mask, image_size, read_image
from correlation_aware.cli import app
from correlation_aware.data.check import summarize_videos
from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.stills.files import read_stills
from correlation_aware.data.videos.sequences import Folder
from correlation_aware.data.videos.video_pairs import VideoPairs
from correlation_aware.evaluation.benchmarks import evaluate, open_benchmark
from correlation_aware.evaluation.trackers import StillTracker
from correlation_aware.evaluation.videos import evaluate_video
from correlation_aware.tracking.video import open_frames

BOX = (8, 64, 16, 12)  # in the displayed image, 48 x 96 px
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def displayed() -> np.ndarray:
    """An upright image, white where the target is."""
    image = np.zeros((96, 48, 3), np.uint8)
    x, y, w, h = BOX
    image[y : y + h, x : x + w] = 255
    return image


def save_turned(path: Path, orientation: int, image: np.ndarray) -> None:
    """Stores an image so that it is displayed like `image` by those who read the EXIF orientation."""
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(undo[orientation](image))).save(path, exif=exif, quality=95)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_read_as_they_are_displayed(tmp_path, suffix, orientation):
    path = tmp_path / f"a{suffix}"
    save_turned(path, orientation, displayed())
    assert np.abs(read_image(path).astype(int) - displayed()).mean() < 3
    assert image_size(path) == (48, 96)
    if suffix == ".png":
        assert np.array_equal(decode_mask(path.read_bytes()), displayed()[..., 0])


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_box_in_displayed_pixels_fits_in_every_room(tmp_path, orientation):
    """Tracker, training, validation, evaluation and checks see the same pixels under the same box."""
    folder = tmp_path / "val" / "a"
    for i in range(3):
        save_turned(folder / f"{i}.jpg", orientation, displayed())
    (folder / "groundtruth.txt").write_text(f"{','.join(map(str, BOX))}\n" * 3)
    x, y, w, h = BOX

    class Looks(StillTracker):
        def init(self, frame, box):
            super().init(frame, box)
            self.update(frame)

        def update(self, frame):
            assert frame.shape == (96, 48, 3)
            assert frame[y + 2 : y + h - 2, x + 2 : x + w - 2].min() > 200 and frame.mean() < 20
            return super().update(frame)

    (result,) = evaluate(Looks(), open_benchmark("got10k", tmp_path))
    assert result.ious.tolist() == [1, 1]  # the boxes are inside the frame, to which they are clipped
    for frame in open_frames(folder):
        Looks().init(frame, np.array(BOX))
    videos = Folder(folder)
    evaluate_video(Looks(), videos[0])
    assert VideoPairs([(videos, 1)], 1)._frame(videos[0], 0)[y + 5, x + 5].min() > 200
    assert not summarize_videos("folder", videos).mistakes
    assert "center outside the frame in 0.00%" in summarize_videos("folder", videos).lines[1]


def test_masks_turn_with_their_image_and_have_its_size(tmp_path):
    mask = displayed()[..., 0]
    save_turned(tmp_path / "s" / "a.jpg", 6, displayed())
    for save in (
        lambda path: save_turned(path, 6, mask),  # stored like the image
        lambda path: Image.fromarray(mask).save(path),  # stored as displayed
    ):
        save(tmp_path / "s" / "a.mask.png")
        (still,) = read_stills(tmp_path / "s", 400)
        assert still.image.shape == (96, 48, 3) and np.array_equal(still.mask, mask)
    for wrong in (mask.T, mask[:60], cv2.resize(mask, (24, 48))):
        Image.fromarray(np.ascontiguousarray(wrong)).save(tmp_path / "s" / "a.mask.png")
        with pytest.raises(
            RuntimeError, match=r"the mask has \d+ x \d+ pixels and the image 48 x 96, both as"
        ):
            list(read_stills(tmp_path / "s", 400))
    save_turned(tmp_path / "s" / "b.jpg", 1, displayed())
    errors = ErrorBudget()
    assert len(list(read_stills(tmp_path / "s", 400, errors))) == 1 and errors.count == 1


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_16_bits_need_a_range_and_are_scaled_by_it(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    values = np.linspace(7000, 8000, 48 * 96).reshape(96, 48).astype(np.uint16)
    color = np.stack([values, values // 2, 0 * values], axis=-1)  # red, green, blue
    for array, expected in ((values, [values] * 3), (color, [values, values // 2, 0 * values])):
        saved = array if array.ndim == 2 else np.ascontiguousarray(array[..., ::-1])
        path.write_bytes(cv2.imencode(suffix.lower(), saved)[1].tobytes())
        with pytest.raises(ValueError, match=r"uint16 values, \d+ to 8000 here: .*--depth-range \d+,8000"):
            read_image(path)
        image = read_image(path, (7000, 8000))
        wanted = np.clip((np.stack(expected, axis=-1).astype(float) - 7000) / 1000, 0, 1) * 255
        assert image.dtype == np.uint8 and np.abs(image - wanted).max() < 1
    with pytest.raises(ValueError, match="uint16 values; a mask has 8 bits"):
        decode_mask(path.read_bytes())


def test_float_images_and_their_holes(tmp_path):
    values = np.linspace(-1, 1, 64).reshape(8, 8).astype(np.float32)
    values[3, 3] = np.nan
    path = tmp_path / "a.tiff"
    path.write_bytes(cv2.imencode(".tiff", values)[1].tobytes())
    image = read_image(path, (-1, 1))
    assert (image[0, 0, 0], image[-1, -1, 2], image[3, 3, 1]) == (0, 255, 0)
    with pytest.raises(ValueError, match=r"float32 values, -1 to 1 here"):
        read_image(path)


def test_a_range_without_an_effect_is_refused(tmp_path):
    Image.fromarray(displayed()).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="8 bits per value, for which a depth range has no effect"):
        next(open_frames(tmp_path, depth_range=(0, 255)))
    (tmp_path / "v.mp4").write_bytes(b"")
    for source in (tmp_path / "v.mp4", 0):
        with pytest.raises(ValueError, match=r"a depth range has no effect on .*, which is not a folder"):
            open_frames(source, depth_range=(0, 255))


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_damaged_images(content):
    with pytest.raises(ValueError, match=r"^x\.jpg: not an image, or a damaged one$"):
        decode_image(content, "x.jpg")


def test_the_command_line_follows_16_bit_frames_by_their_range(tmp_path):
    """The same target in 8 bits, in 12 of 16, and as 7000 + 4 v: with the range the boxes are equal."""
    rng = np.random.default_rng(0)
    background = cv2.resize(rng.integers(40, 120, (6, 8), dtype=np.uint8), (160, 120))
    frame = background.copy()
    frame[40:64, 54:78] = 255
    line = ["track", str(tmp_path), "--box", "50,40,24,24", "--model", "sbt_test_track", "--device", "cpu"]
    line += ["--weights", "random", "--boxes", str(tmp_path / "boxes.csv")]
    tables = []
    for scale, shift, words in (
        (1, 0, []),
        (16, 0, ["--depth-range", "0,4080"]),
        (4, 7000, ["--depth-range", "7000,8020"]),
    ):
        for i in range(2):
            stored = frame if scale == 1 else frame.astype(np.uint16) * scale + shift
            cv2.imwrite(str(tmp_path / f"{i}.png"), stored)
        torch.manual_seed(0)  # of the random weights
        result = CliRunner().invoke(app, [*line, *words])
        assert result.exit_code in (0, 3), result.output + str(result.exception)
        tables.append((tmp_path / "boxes.csv").read_text())
    assert tables[0] == tables[1] == tables[2] and tables[0].count("\n") == 3
    result = CliRunner().invoke(app, line)
    assert "uint16 values, " in str(result.exception) and "such as --depth-range " in str(result.exception)
    for text in ("5", "2,1", "0,nan", "a,b"):
        result = CliRunner().invoke(app, [*line, "--depth-range", text])
        assert f"--depth-range '{text}' is not LOW,HIGH" in str(result.exception)
