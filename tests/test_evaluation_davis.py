"""Masks: J and F as vos-benchmark counts them, DAVIS' layout, kinds of mask files, and folders of results."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from correlation_aware.cli import app
from correlation_aware.evaluation.davis import Davis, read_labels, score_masks
from correlation_aware.evaluation.mask_results import PALETTE, MaskFolder
from correlation_aware.evaluation.masks import boundary_accuracy, region_similarity
from correlation_aware.evaluation.segmenters import create_segmenter

SIZE = 48, 64
COUNT = 5

# what vos-benchmark 0.1.0 gives for the masks of `case`, J and F in 0..1
VOS_BENCHMARK = {
    "equal": (1.0, 1.0),
    "shifted": (0.9164490861618799, 0.9224574891882255),
    "edge": (0.7988542329726289, 0.05405405405405405),
    "far": (0.0, 0.0),
    "one pixel": (0.00017313019390581717, 0.0),
    "noise": (0.11989492262857611, 0.0892915730762436),
    "empty": (0.0, 0.0),
    "both empty": (1.0, 1.0),
    "whole image": (0.1337037037037037, 0.0),
    "corner": (0.9068927618150417, 0.9323308270676691),
    "large": (0.9095825511754715, 0.6690573770491803),
}


def ellipse(center, axes, size=(180, 240)):
    return cv2.ellipse(np.zeros(size, np.uint8), center, axes, 20, 0, 360, 1, -1).astype(bool)


def case(name):
    """A mask and the true one."""
    empty, full, true = np.zeros((180, 240), bool), np.ones((180, 240), bool), ellipse((100, 90), (60, 30))
    noise = np.random.default_rng(0).random((180, 240)) < 0.5
    return {
        "equal": (true, true),
        "shifted": (ellipse((103, 92), (60, 31)), true),
        "edge": (ellipse((0, 170), (60, 30)), ellipse((2, 175), (50, 30))),
        "far": (ellipse((200, 20), (20, 10)), true),
        "one pixel": (ellipse((100, 90), (0, 0)), true),
        "noise": (noise, true),
        "empty": (empty, true),
        "both empty": (empty, empty),
        "whole image": (full, true),
        "corner": (true | ellipse((239, 179), (30, 20)), true),
        "large": (ellipse((300, 207), (150, 90), (400, 600)), ellipse((300, 200), (150, 90), (400, 600))),
    }[name]


@pytest.mark.parametrize("name", VOS_BENCHMARK)
def test_figures_of_vos_benchmark(name):
    j, f = VOS_BENCHMARK[name]
    assert region_similarity(*case(name)) == pytest.approx(j, abs=1e-9)
    assert boundary_accuracy(*case(name)) == pytest.approx(f, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 150), st.integers(1, 150))
def test_random_masks_have_the_figures_of_vos_benchmark(seed, height, width):
    evaluator = pytest.importorskip("vos_benchmark.evaluator").Evaluator()
    random = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        mask = random.random((height, width)) < random.choice([0, 0, 0.1, 1])
        for _ in range(random.integers(4)):
            y, x = random.integers(height), random.integers(width)
            mask[y : y + random.integers(1, height + 1), x : x + random.integers(1, width + 1)] ^= True
        masks.append(mask)
    evaluator.objects_in_gt.add(1)
    evaluator.feed_frame(*(mask.astype(np.uint8) for mask in masks))
    j, f = evaluator.conclude()
    assert region_similarity(*masks) == pytest.approx(j[1] / 100, abs=1e-9)
    assert boundary_accuracy(*masks) == pytest.approx(f[1] / 100, abs=1e-9)


def test_masks_have_to_be_bool_and_of_one_size():
    mask = np.zeros((4, 5), bool)
    with pytest.raises(ValueError, match=r"uint8 \(4, 5\); expected bool"):
        region_similarity(mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="different sizes"):
        boundary_accuracy(mask, mask.T)


def labels_at(index, objects=2):
    """Two squares, of which the first moves to the right by 2 px per frame and the second is still."""
    labels = np.zeros(SIZE, np.uint8)
    labels[10:26, 4 + 2 * index : 20 + 2 * index] = 1
    if objects > 1:
        labels[30:42, 40:60] = 2
    return labels


def save(labels, path, mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(PALETTE)
    image.save(path)


def make_sequence(root, name, masks, mode="P"):
    """Frames and masks of a sequence in DAVIS' layout; a mask of None is left out."""
    for i, labels in enumerate(masks):
        path = root / "JPEGImages" / "480p" / name / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 40 * i, np.uint8)).save(path)
        if labels is not None:
            save(labels, root / "Annotations" / "480p" / name / f"{i:05d}.png", mode)


@pytest.fixture
def root(tmp_path):
    """DAVIS with `two`, of two objects, and `one`, of one object, as 0 and 255 in gray."""
    make_sequence(tmp_path / "davis", "two", [labels_at(i) for i in range(COUNT)])
    make_sequence(tmp_path / "davis", "one", [255 * labels_at(i, 1) for i in range(COUNT)], "L")
    lists = tmp_path / "davis" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("two\none\n")
    return tmp_path / "davis"


def run(root, *words, expect=0):
    """The console and the JSON file of the command."""
    file = root.parent / "out.json"
    result = CliRunner().invoke(app, ["eval", "davis", str(root), "--json", str(file), *map(str, words)])
    if expect is not None:
        assert result.exit_code == expect, result.output + str(result.exception)
    return result, json.loads(file.read_text()) if file.is_file() else None


def test_a_mask_that_is_held_still(root):
    result, report = run(root, "--tracker", "still")
    moved = [2 * i for i in range(1, COUNT - 1)]  # pixels, in frames 1 to 3
    j = 100 * np.mean([(16 - m) / (16 + m) for m in moved])
    assert report["sequences"]["two"]["objects"]["1"]["J"] == pytest.approx(j)
    assert report["sequences"]["two"]["objects"]["2"] == {"J": 100, "F": 100}
    assert report["sequences"]["one"]["J"] == pytest.approx(j)
    f = 100 * np.mean([boundary_accuracy(labels_at(0) == 1, labels_at(i) == 1) for i in range(1, COUNT - 1)])
    assert f < 100 and report["all"]["F"] == pytest.approx((2 * f + 100) / 3)  # every object equally
    assert report["all"]["J&F"] == pytest.approx((report["all"]["J"] + report["all"]["F"]) / 2)
    assert "all" in result.output and not report["failed"]


def test_written_masks_are_scored_as_the_run_was(root, tmp_path):
    _, report = run(root, "--tracker", "still", "--output", tmp_path / "masks")
    written = tmp_path / "masks" / "DAVIS" / "still"
    with Image.open(written / "two" / "00000.png") as image:
        assert image.mode == "P" and image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        assert np.array_equal(np.array(image), labels_at(0))
    with Image.open(written / "one" / "00003.png") as image:  # as the annotation, for DAVIS-2016's tools
        assert image.mode == "L" and np.array_equal(np.array(image), 255 * labels_at(0, 1))
    assert len(list((written / "two").iterdir())) == COUNT
    _, scored = run(root, "--results", written)
    assert scored["sequences"] == report["sequences"] and scored["all"] == report["all"]
    annotations = root / "Annotations" / "480p"
    assert run(root, "--results", annotations)[1]["all"] == {"J&F": 100, "J": 100, "F": 100}


def test_a_finished_sequence_is_not_repeated_and_runs_do_not_mix(root, tmp_path):
    words = ("--tracker", "still", "--output", tmp_path / "masks")
    run(root, *words, "--sequences", "two")
    mask = tmp_path / "masks" / "DAVIS" / "still" / "two" / "00001.png"
    save(np.zeros(SIZE, np.uint8), mask)
    leftover = mask.parent.parent / ".one.partial"  # of a killed run
    leftover.mkdir()
    (leftover / "00000.png").write_text("half of a file")
    result, report = run(root, *words)
    assert "1 of 2 sequences are finished" in result.output
    assert report["sequences"]["two"]["objects"]["2"]["J"] == pytest.approx(200 / 3)  # the file was read
    assert not leftover.exists() and (mask.parent.parent / "one" / "00004.png").is_file()
    manifest = mask.parent.parent.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"tracker": "still"', '"tracker": "other"'))
    result, _ = run(root, *words, expect=1)
    assert "results of another run" in str(result.exception)


def test_the_toolkit_gives_the_same(root, tmp_path):
    pytest.importorskip("vos_benchmark")
    labels = [labels_at(i) for i in range(COUNT)]
    labels[1][labels[1] == 2] = 0  # object 2 is absent at first, and void pixels in between
    labels[2][:20, :20] = 255
    make_sequence(root, "two", labels)
    _, own = run(root, "--tracker", "still")
    _, toolkit = run(root, "--tracker", "still", "--metric", "vos-benchmark")
    assert toolkit["all"] == pytest.approx(own["all"], abs=1e-6)
    assert toolkit["sequences"]["two"]["objects"]["2"] == pytest.approx(
        own["sequences"]["two"]["objects"]["2"]
    )


def test_a_missing_toolkit_is_named_before_the_run(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "vos_benchmark", None)
    monkeypatch.setitem(sys.modules, "vos_benchmark.evaluator", None)
    result, _ = run(root, "--tracker", "still", "--metric", "vos-benchmark", expect=1)
    assert isinstance(result.exception, ModuleNotFoundError) and "[davis]" in str(result.exception)


def test_an_absent_object_has_a_right_mask_if_it_is_empty(root):
    labels = [labels_at(i) for i in range(COUNT)]
    labels[2][labels[2] == 2] = 0
    make_sequence(root, "two", labels)
    video = Davis(root)["two"]
    held = score_masks(video, [labels_at(0)] * 3)
    assert held.j[:, 1].tolist() == [1, 0, 1] and held.f[:, 1].tolist() == [1, 0, 1]
    exact = score_masks(video, labels[1:-1])
    assert (exact.j == 1).all() and (exact.f == 1).all()
    assert (score_masks(video, [np.where(m == 2, 0, m) for m in labels[1:-1]]).j[:, 1] == [0, 1, 0]).all()


def test_void_pixels_are_not_measured(root):
    labels = [labels_at(i) for i in range(COUNT)]
    expected = [mask.copy() for mask in labels[1:-1]]
    for mask in labels:
        mask[:26, :30] = np.where(mask[:26, :30] == 1, 1, 255)  # around the first object
    make_sequence(root, "two", labels)
    video = Davis(root)["two"]
    assert not video.is_binary and video.objects == (1, 2)
    assert np.array_equal(video.first, labels_at(0))  # void is background
    for mask in expected:
        mask[:10, :20] = 2  # wrong, where nothing is measured
    assert (score_masks(video, expected).j == 1).all() and (score_masks(video, expected).f == 1).all()


def test_objects_that_come_later_are_named_and_not_measured(root):
    labels = [labels_at(i) for i in range(COUNT)]
    labels[2][:5, :5] = 7
    make_sequence(root, "two", labels)
    result, report = run(root, "--tracker", "still")
    assert "two: labels 7 are not in the first mask and not measured" in result.output
    assert report["sequences"]["two"]["not_measured"] == [7]
    assert set(report["sequences"]["two"]["objects"]) == {"1", "2"}


@pytest.mark.parametrize(
    "scale, mode, objects", [(1, "P", (1,)), (1, "L", (1,)), (255, "L", (1,)), (7, "L", (7,))]
)
def test_kinds_of_first_masks(root, scale, mode, objects):
    make_sequence(root, "one", [scale * labels_at(i, 1) for i in range(COUNT)], mode)
    video = Davis(root)["one"]
    assert video.objects == objects and video.is_binary == (scale == 255)
    assert run(root, "--tracker", "still", "--sequences", "one")[1]["all"]["J"] < 100


def test_a_mask_of_one_bit(root):
    path = root / "Annotations" / "480p" / "one" / "00000.png"
    Image.fromarray(labels_at(0, 1) > 0).save(path)
    with Image.open(path) as image:
        assert image.mode == "1"
    assert Davis(root)["one"].objects == (1,)


def test_masks_of_a_binary_sequence_have_one_code(root):
    results = root.parent / "results"
    for i in range(COUNT):
        save(labels_at(i, 1), results / "one" / f"{i:05d}.png")  # 0 and 1 for 0 and 255
    words = ("--results", results, "--sequences", "one")
    assert run(root, *words)[1]["all"]["J"] == 100
    save(labels_at(2, 1) + np.uint8(254), results / "one" / "00002.png")
    result, _ = run(root, *words, expect=1)
    assert "labels 254, 255; expected 0 and 255, or 0 and 1" in str(result.exception)


def colors(path):
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)


def alpha(path):
    Image.fromarray(np.zeros((*SIZE, 4), np.uint8)).save(path)


def sixteen_bits(path):
    Image.fromarray(labels_at(0).astype(np.uint16)).save(path)


def text(path):
    path.write_text("no image")


def small(path):
    save(labels_at(0)[:-1], path)


def nothing(path):
    save(np.zeros(SIZE, np.uint8), path)


def jpeg(path):
    path.unlink()
    Image.fromarray(labels_at(0)).save(path.with_suffix(".jpg"))


FIRST = {
    colors: "00000.png has the mode RGB; a mask has a palette or gray values",
    alpha: "00000.png has the mode RGBA",
    sixteen_bits: "00000.png has the mode I;16",
    text: "00000.png is not an image",
    small: "00000.png is 64 x 47 px, its frame 64 x 48",
    nothing: "00000.png has no object",
    jpeg: "00000.jpg is a JPEG, which changes labels",
    Path.unlink: "has no mask of the first frame, 00000.jpg",
}


@pytest.mark.parametrize("damage, message", FIRST.items())
def test_a_wrong_first_mask_fails_by_name_and_the_others_go_on(root, damage, message):
    damage(root / "Annotations" / "480p" / "two" / "00000.png")
    _, report = run(root, "--tracker", "still", expect=3)
    assert message in report["failed"]["two"] and set(report["sequences"]) == {"one"}


def unknown(path):
    save(labels_at(0) * np.uint8(3), path)


def void(path):
    save(np.full(SIZE, 255, np.uint8), path)


RESULTS = {
    unknown: "frame 00002 has the label 3, which is no object of the first mask: 1, 2",
    void: "frame 00002 has the label 255",
    small: "frame 00002 is uint8 (47, 64); expected integer labels (48, 64)",
    colors: "00002.png has the mode RGB",
    Path.unlink: "No such file",
}


@pytest.mark.parametrize("damage, message", RESULTS.items())
def test_a_wrong_result_fails_by_name(root, tmp_path, damage, message):
    run(root, "--tracker", "still", "--output", tmp_path)
    damage(tmp_path / "DAVIS" / "still" / "two" / "00002.png")
    _, report = run(root, "--results", tmp_path / "DAVIS" / "still", expect=3)
    assert message in report["failed"]["two"]


def test_masks_of_other_frames_and_too_few_of_them(root):
    annotations = root / "Annotations" / "480p" / "two"
    save(labels_at(0), annotations / "00009.png")
    with pytest.raises(ValueError, match=r"00009.png is a mask of no frame"):
        Davis(root)["two"]
    for i in (1, 2, 3, 9):
        (annotations / f"{i:05d}.png").unlink()
    _, report = run(root, "--tracker", "still", expect=3)
    assert (
        "two has 2 annotated frames, and the first and the last are not measured" in report["failed"]["two"]
    )


def test_frames_without_an_annotation_are_not_measured(root):
    masks = [labels_at(i) if i != 2 else None for i in range(COUNT)]
    (root / "Annotations" / "480p" / "two" / "00002.png").unlink()
    make_sequence(root, "two", masks)
    video = Davis(root)["two"]
    assert video.measured == ["00001", "00003"] and len(video.frames) == COUNT


def test_lists_of_names(root):
    folder = root / "ImageSets" / "480p"
    folder.mkdir()
    lines = [f"/JPEGImages/480p/one/{i:05d}.jpg /Annotations/480p/one/{i:05d}.png" for i in range(COUNT)]
    (folder / "val.txt").write_text("\n".join(lines) + "\n")
    assert Davis(root, "480p/val").names == ["one"]
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="no names of sequences"):
        Davis(root, "480p/empty")
    with pytest.raises(FileNotFoundError, match=r"subsets here: 2017/val, 480p/empty, 480p/val\."):
        Davis(root, "2016/val")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*JPEGImages.1080p"):
        Davis(root, resolution="1080p")
    with pytest.raises(ValueError, match="Unknown sequence three; known: two, one"):
        Davis(root).select(["three"])


MODULE = """
import numpy as np

class Follow:
    def init(self, frame, mask):
        assert frame.dtype == mask.dtype == np.uint8 and frame.shape == (*mask.shape, 3)
        self.mask = mask
    def update(self, frame):
        self.mask = np.roll(self.mask, 2, axis=1)
        return self.mask

class Scores(Follow):
    def update(self, frame):
        return np.zeros((2, *frame.shape[:2]))

def nothing():
    return 1
"""


def test_a_segmenter_of_somebody(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_masks.py").write_text(MODULE)
    _, report = run(root, "--tracker", "my_masks:Follow", "--sequences", "one")
    assert report["all"]["J"] == 100 and report["tracker"] == "my_masks.Follow"
    result, _ = run(root, "--tracker", "my_masks:Scores", expect=1)
    assert "frame 00001 is float64 (2, 48, 64); expected integer labels (48, 64)" in str(result.exception)
    with pytest.raises(ValueError, match=r"int, which is not a tracker: it needs init\(frame, mask\)"):
        create_segmenter("my_masks:nothing")
    with pytest.raises(ValueError, match="neither module:factory nor one of still, stm-ca"):
        create_segmenter("sam")


OPTIONS = {
    (): "Name either --tracker, such as still, or --results",
    ("--tracker", "still", "--results", "."): "Name either --tracker",
    ("--tracker", "still", "--template", "crop"): "--template: only for --tracker stm-ca",
    ("--results", ".", "--output", "x", "--weights", "w"): "--weights, --output: no effect with --results",
    ("--tracker", "still", "--name", "a/b"): "--name 'a/b' has to be the name of a folder",
    ("--tracker", "still", "--metric", "iou"): "--metric iou: expected own or vos-benchmark",
    ("--results", "nowhere"): "There is no folder nowhere",
}


@pytest.mark.parametrize("words, message", OPTIONS.items())
def test_options(root, words, message):
    result, _ = run(root, *words, expect=1)
    assert message in str(result.exception)


def test_files_that_are_no_masks_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is not an image"):
        read_labels(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "b.png")
    assert not MaskFolder(tmp_path).is_finished("one")
