"""The VOT toolkit: workspaces, a tracker under TraX, masks from boxes, and agreement with the toolkit."""

import configparser
import json
import os
import shlex
import socket
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from correlation_aware.cli import vot as cli_vot
from correlation_aware.evaluation import vot
from correlation_aware.evaluation.masks import region_similarity
from correlation_aware.evaluation.one_pass import overlap
from correlation_aware.evaluation.refiners import (
    GrabCut,
    box_mask,
    create_refiner,
    mask_box,
    refine,
)
from correlation_aware.evaluation.trax import Targets, region_box, serve
from correlation_aware.tracking.tracker import TrackResult

runner = CliRunner()
NEEDS_TRAX = 'needs vot-trax: pip install "correlation_aware[vot]"'
NEEDS_TOOLKIT = 'needs vot-toolkit: pip install "correlation_aware[vot]"'


class Shift:
    """A tracker that moves its box by 1, 2 px a frame, and has a score."""

    made = 0

    def __init__(self):
        type(self).made += 1

    def init(self, frame, box):
        assert frame.dtype == np.uint8 and frame.shape[2] == 3
        self.box, self.starts = np.array(box, float), getattr(self, "starts", 0) + 1

    def update(self, frame):
        self.box = self.box + (1, 2, 0, 0)
        return TrackResult(tuple(self.box), 0.75, False)


class Corner:
    """A refiner whose mask is the upper left quarter of the box."""

    def refine(self, frame, box):
        return box_mask(frame.shape[:2], (*box[:2], *(np.array(box[2:]) / 2)))


def draw_disk(size=(120, 160), center=(80, 60), radius=25):
    """A frame with a red disk on a smooth background, and the mask of the disk."""
    coarse = np.random.default_rng(0).integers(60, 140, (4, 5, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    mask = np.zeros(size, np.uint8)
    cv2.circle(mask, center, radius, 1, -1)
    frame[mask > 0] = (230, 40, 30)
    return frame, mask > 0


def write_sequences(root: Path, masks=False, frames=8) -> Path:
    """Sequences `disk` and `slow` in the VOT layout, with starts in the first, third and last frame."""
    for name, step in (("disk", 3), ("slow", 1)):
        color = root / name / "color"
        color.mkdir(parents=True)
        lines = []
        for i in range(frames):
            frame, mask = draw_disk(center=(50 + step * i, 70 - i), radius=14)
            cv2.imwrite(str(color / f"{i + 1:08d}.jpg"), frame[..., ::-1])
            x, y, w, h = (int(value) for value in mask_box(mask))
            runs, crop = [0], mask[y : y + h, x : x + w].ravel()  # lengths of runs of 0 and 1
            for before, value in zip([False, *crop], crop):
                runs += [1] if value != before else []
                runs[-1] += value == before
            lines.append(f"m{x},{y},{w},{h}," + ",".join(map(str, runs)) if masks else f"{x},{y},{w},{h}")
        (root / name / "groundtruth.txt").write_text("\n".join(lines) + "\n")
        starts = {0: 1, 2: 1, frames - 1: -1}
        (root / name / "anchor.value").write_text("".join(f"{starts.get(i, 0)}\n" for i in range(frames)))
        (root / name / "sequence").write_text(f"name={name}\nfps=30\nchannels.color=color/%08d.jpg\n")
    (root / "list.txt").write_text("disk\nslow\n")
    return root


def invoke(*words, code=0):
    result = runner.invoke(cli_vot.app, list(map(str, words)))
    if code == 0:
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.output
    assert result.exit_code == code
    return str(result.exception)


def entry(folder: Path, name: str) -> dict[str, str]:
    trackers = configparser.ConfigParser()  # as the toolkit reads it
    trackers.read(folder / "trackers.ini")
    return dict(trackers[name])


def test_a_workspace_starts_the_tracker_as_it_was_named(tmp_path, monkeypatch):
    current = tmp_path / "50% of us"  # a blank, and a sign with a meaning in an .ini file
    current.mkdir()
    monkeypatch.chdir(current)
    assert "Wrote" in invoke("workspace", "here", "--tracker", "still")
    folder = current / "here"
    assert (folder / "config.yaml").read_text() == (
        'registry:\n- ./trackers.ini\nstack: "vot2022/shorttermbox"\n'
    )
    assert (folder / "sequences").is_dir() and (folder / "results").is_dir()
    about = entry(folder, "still")
    assert about["protocol"] == "trax"
    python = [sys.executable, "-m", "correlation_aware", "vot", "serve"]
    if os.name == "posix":
        assert shlex.split(about["command"]) == [*python, "--folder", str(current), "--tracker", "still"]

    before = (folder / "trackers.ini").read_text()
    assert "Already in" in invoke("workspace", "here", "--tracker", "still")
    assert (folder / "trackers.ini").read_text() == before
    words = ("--model", "sbt_test_track", "--weights", "random", "--device", "cpu", "--runtime", "eager")
    options = ("--decode", "paper", "--redetect", "--masks", "--name", "small")
    assert "Kept" in invoke("workspace", "here", *words, *options)
    command = shlex.split(entry(folder, "small")["command"])
    assert command[7:] == [*words, "--decode", "paper", "--refiner", "grabcut", "--masks", "--redetect"]
    assert vot.tracker_names(folder) == ["still", "small"]
    assert "has another tracker small" in invoke("workspace", "here", *words, "--name", "small", code=1)


def test_a_workspace_of_masks_and_of_sequences_elsewhere(tmp_path):
    sequences = write_sequences(tmp_path / "data", frames=3)
    folder = tmp_path / "work"
    invoke("workspace", folder, "--tracker", "still", "--masks", "--sequences", sequences)
    text = (folder / "config.yaml").read_text()
    assert 'stack: "vot2022/shortterm"' in text and f"sequences: {json.dumps(str(sequences))}" in text
    assert "still_masks" in vot.tracker_names(folder)
    own = tmp_path / "stack.yaml"
    own.write_text("title: own\nexperiments: {}\n")
    assert vot.find_stack(str(own)) == str(own)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--refiner", "grabcut"], "no effect without --masks"),
        (["--masks", "--refiner", "nothing"], "neither module:factory nor one of grabcut"),
        (["--stack", "vot2022/nothing"], "no stack vot2022/nothing.*vot2022/shorttermbox"),
        (["--name", "a b"], "no identifier"),
        (["--sequences", "."], "no list.txt"),
        (["--model", "sbt_test_track"], "no effect with --tracker"),
    ],
)
def test_mistakes_in_a_workspace(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=message):
        raise RuntimeError(invoke("workspace", "here", "--tracker", "still", *words, code=1))
    assert not (tmp_path / "here").exists()


def test_another_stack_needs_another_workspace(tmp_path):
    invoke("workspace", tmp_path, "--tracker", "still")
    message = invoke("workspace", tmp_path, "--tracker", "still", "--stack", "vot2020/shortterm", code=1)
    assert "exists and differs" in message
    assert "no tracker other; it has still" in invoke("run", tmp_path, "other", code=1)
    assert "is no workspace" in invoke("test", tmp_path / "none", code=1)


def test_without_the_toolkit_the_packages_to_install_are_named(tmp_path, monkeypatch):
    invoke("workspace", tmp_path, "--tracker", "still")
    monkeypatch.setattr(vot.util, "find_spec", lambda name: None)
    for name in ("vot", "trax"):
        monkeypatch.setitem(sys.modules, name, None)
    message = invoke("test", tmp_path, code=1)
    assert "vot-toolkit" in message and "the extra [vot]" in message


@pytest.mark.parametrize(
    "toolkit, attributee, is_fine",
    [("0.7.4", "0.1.9", True), ("0.9.0", "0.1.9", False), ("0.7.4", "0.1.10", False)],
)
def test_versions_that_fail_are_named(monkeypatch, toolkit, attributee, is_fine):
    versions = {"vot-toolkit": toolkit, "attributee": attributee}
    monkeypatch.setattr(vot.metadata, "version", versions.__getitem__)
    assert (vot.toolkit_hint() == "") == is_fine
    assert is_fine or "vot-toolkit>=0.7.2,<0.8" in vot.toolkit_hint()


def test_measures_are_read_from_an_analysis(tmp_path):
    kinds = ("multistart.EAOScore", "multistart.EAOCurve", "multistart.AverageAccuracyRobustness")
    analyses = [{"type": f"vot.analysis.{kind}"} for kind in kinds]
    results = [[[0.3], [0.4]], [[[0, 0.1]], [[0, 0.2]]], [[0.5, 0.6, [0.6, 0.5], 9, 9], [0.7, 0.8, [], 9, 9]]]
    content = {
        "trackers": {"a": {}, "b": {}},
        "results": {"baseline": {"parameters": {"analyses": analyses}, "results": results}},
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    assert vot.read_measures(file) == {
        ("baseline", "a"): {"EAO": 0.3, "accuracy": 0.5, "robustness": 0.6},
        ("baseline", "b"): {"EAO": 0.4, "accuracy": 0.7, "robustness": 0.8},
    }
    file.write_text('{"results": {"baseline": {}}}')
    with pytest.raises(ValueError, match="no analysis of the VOT toolkit"):
        vot.read_measures(file)


def test_boxes_of_masks_and_masks_of_boxes():
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 5:7] = 255
    np.testing.assert_array_equal(mask_box(mask), (5, 3, 2, 6))
    np.testing.assert_array_equal(box_mask((20, 30), (5, 3, 2, 6)), mask > 0)
    with pytest.raises(ValueError, match="mask is empty"):
        mask_box(np.zeros((4, 4)))
    np.testing.assert_array_equal(region_box("mask", mask[2:, 4:], (4, 2)), (5, 3, 2, 6))
    np.testing.assert_array_equal(region_box("rectangle", (1, 2, 3, 4)), (1, 2, 3, 4))
    np.testing.assert_array_equal(region_box("polygon", [(4, 1), (9, 3), (5, 8)]), (4, 1, 5, 7))
    with pytest.raises(ValueError, match="region of the kind special"):
        region_box("special", None)
    assert box_mask((20, 30), (-5, -5, 8, 8)).sum() == 9  # the visible part
    rounded = np.zeros((20, 30), bool)
    rounded[1:3, 28:] = True
    np.testing.assert_array_equal(box_mask((20, 30), (28.4, 0.6, 10, 2)), rounded)
    for box in [
        (40, 5, 4, 4),
        (5, 5, 0, 4),
        (5, 5, 4, -1),
        (np.nan, 1, 2, 3),
        (np.inf, 1, 2, 3),
        (5, 5, 0.2, 9),
    ]:
        assert not box_mask((20, 30), box).any()


def test_masks_overlap_as_sets_of_pixels():
    a, b = box_mask((20, 30), (0, 0, 4, 4)), box_mask((20, 30), (2, 0, 4, 4))
    assert region_similarity(a, b) == 8 / 24
    assert region_similarity(a, ~a) == 0
    assert region_similarity(np.zeros((3, 3), bool), np.zeros((3, 3), bool)) == 1


@pytest.mark.parametrize("size, radius", [((120, 160), 25), ((480, 640), 190)])
def test_grabcut_finds_a_disk(size, radius):
    frame, truth = draw_disk(size, (size[1] // 2, size[0] // 2), radius)
    box = mask_box(truth)
    mask = GrabCut().refine(frame, box)
    assert mask.shape == truth.shape and mask.dtype == bool
    assert region_similarity(mask, truth) > 0.95 > region_similarity(box_mask(size, box), truth) + 0.1
    loose = GrabCut().refine(frame, box + (-6, -4, 11, 9))
    assert region_similarity(loose, truth) > 0.9


def test_grabcut_depends_on_frame_and_box_alone():
    patches = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    frame = cv2.resize(patches, (160, 120), interpolation=cv2.INTER_NEAREST)
    masks = []
    for seed in range(6):
        cv2.setRNGSeed(seed)  # what others have done with OpenCV's generator
        masks.append(GrabCut().refine(frame, np.array([50.0, 30, 60, 50])))
    assert 500 < masks[0].sum() < 3000
    assert all((mask == masks[0]).all() for mask in masks)


def test_a_mask_of_a_scaled_crop_stays_in_its_box():
    frame = np.full((480, 640, 3), 90, np.uint8)
    for side in (220, 340, 400):
        box = (100.0, 60.0, side, side * 0.9)
        inside = box_mask((480, 640), box)
        frame[inside] = (230, 40, 30)
        mask = GrabCut().refine(frame, np.array(box))
        assert region_similarity(mask, inside) > 0.98 and not (mask & ~inside).any()


def test_grabcut_returns_the_box_where_there_is_nothing_to_separate():
    frame, _ = draw_disk()
    size = frame.shape[:2]
    for image, box in [
        (np.full_like(frame, 90), (20, 20, 40, 30)),  # one color
        (frame, (0, 0, 160, 120)),  # the whole frame
        (frame, (-20, -20, 300, 300)),
        (frame, (80, 60, 1, 1)),
    ]:
        np.testing.assert_array_equal(GrabCut().refine(image, np.array(box, float)), box_mask(size, box))
    for box in [(200, 10, 20, 20), (10, 10, 0, 5), (np.nan, 1, 2, 3)]:
        assert not GrabCut().refine(frame, np.array(box, float)).any()
    with pytest.raises(ValueError, match="iterations=0"):
        GrabCut(iterations=0)


def test_what_a_refiner_returns_is_checked():
    frame, box = np.zeros((20, 30, 3), np.uint8), np.array([5.0, 3, 4, 6])

    class Fixed:
        def __init__(self, mask):
            self.mask, self.calls = mask, 0

        def refine(self, frame, box):
            self.calls += 1
            return self.mask

    own = box_mask((20, 30), (5, 3, 2, 2))
    np.testing.assert_array_equal(refine(Fixed(own), frame, box), own)
    empty = Fixed(np.zeros((20, 30), bool))
    np.testing.assert_array_equal(refine(empty, frame, box), box_mask((20, 30), box))
    assert not refine(empty, frame, box - (50, 0, 0, 0)).any() and empty.calls == 1
    with pytest.raises(ValueError, match=r"Fixed\.refine returned an array of float64"):
        refine(Fixed(np.zeros((20, 30))), frame, box)
    with pytest.raises(ValueError, match="returned list"):
        refine(Fixed([[True]]), frame, box)
    with pytest.raises(ValueError, match=r"shape \(30, 20\); expected \(20, 30\)"):
        refine(Fixed(own.T), frame, box)


def test_a_refiner_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_refiner.py").write_text(
        "class Make:\n    def refine(self, frame, box): return frame[..., 0] > 0\nclass Other: pass\n"
    )
    frame = np.zeros((20, 30, 3), np.uint8)
    frame[4:6, 5:9] = 200
    mask = refine(create_refiner("own_refiner:Make"), frame, np.array([0.0, 0, 9, 9]))
    np.testing.assert_array_equal(mask_box(mask), (5, 4, 4, 2))
    assert isinstance(create_refiner("grabcut"), GrabCut)
    with pytest.raises(ValueError, match=r"not a refiner: it needs refine\(frame, box\)"):
        create_refiner("own_refiner:Other")
    with pytest.raises(ImportError, match="no module missing_refiner"):
        create_refiner("missing_refiner:make")


def test_targets_keep_their_trackers_for_the_next_sequence():
    Shift.made = 0
    started = []

    class Starting(Corner):
        def init(self, frame, box):
            started.append(tuple(box))

    frame = np.zeros((60, 80, 3), np.uint8)
    targets = Targets(Shift, Starting)
    for _ in range(2):
        targets.start()
        targets.add(frame, np.array([10.0, 10, 8, 8]))
        (first,) = targets.update(frame)
        np.testing.assert_array_equal(mask_box(first[0]), (11, 12, 4, 4))
        targets.add(frame, np.array([30.0, 20, 6, 6]))
        second = targets.update(frame)
        assert [score for _, score in second] == [0.75, 0.75]
        np.testing.assert_array_equal(mask_box(second[1][0]), (31, 22, 3, 3))
    assert Shift.made == 2 and started == [(10, 10, 8, 8), (30, 20, 6, 6)] * 2

    class Wrong(Shift):
        def update(self, frame):
            return np.nan, 1, 2, 3

    targets = Targets(Wrong)
    targets.add(frame, np.array([10.0, 10, 8, 8]))
    with pytest.raises(ValueError, match="frame 1: the tracker returned"):
        targets.update(frame)


@contextmanager
def trax_client(monkeypatch, *arguments):
    """A TraX client of `serve` with these arguments, which runs in a thread of this process."""
    client = pytest.importorskip("trax.client", reason=NEEDS_TRAX)
    failures = []

    def target():
        try:
            serve(*arguments)
        except Exception as error:
            failures.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("TRAX_SOCKET", str(listener.getsockname()[1]))
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        connected = client.Client(stream=listener.fileno(), timeout=30, log=lambda text: None)
        try:
            yield connected, failures
        finally:
            connected.quit()
            thread.join(30)
    assert not thread.is_alive()


def test_a_client_gets_boxes_of_several_targets(tmp_path, monkeypatch):
    trax = pytest.importorskip("trax", reason=NEEDS_TRAX)
    cv2.imwrite(str(tmp_path / "0.png"), draw_disk()[0])
    image = {"color": trax.FileImage.create(str(tmp_path / "0.png"))}
    mask = np.zeros((30, 40), np.uint8)
    mask[3:9, 5:7] = 1
    with trax_client(monkeypatch, Shift, "shift") as (client, _):
        assert client.get("multiobject")
        for _ in range(2):  # a client may start again
            regions = [trax.Rectangle.create(10.5, 20, 30, 40), trax.Mask.create(mask, x=20, y=10)]
            first, _ = client.initialize(image, [(region, {}) for region in regions], {})
            assert first[0][0].bounds() == (10.5, 20, 30, 40)
            assert first[1][0].offset() == (20, 10)
            polygon = trax.Polygon.create([(4, 1), (9, 3), (5, 8)])
            second, _ = client.frame(image, {}, [(polygon, {})])  # a target that appears later
            assert [region.type for region, _ in second] == ["rectangle", "rectangle", "polygon"]
            third, _ = client.frame(image, {}, [])
            expected = [(12.5, 24, 30, 40), (27, 17, 2, 6), (5, 3, 5, 7)]
            assert [region.bounds() for region, _ in third] == expected
            assert [float(known["confidence"]) for _, known in third] == [0.75] * 3


def test_a_client_gets_masks(tmp_path, monkeypatch):
    trax = pytest.importorskip("trax", reason=NEEDS_TRAX)
    cv2.imwrite(str(tmp_path / "0.png"), draw_disk()[0])
    image = {"color": trax.FileImage.create(str(tmp_path / "0.png"))}
    with trax_client(monkeypatch, Shift, "shift", Corner) as (client, _):
        regions = [trax.Rectangle.create(10, 20, 8, 6), trax.Rectangle.create(155, 115, 1, 4)]
        client.initialize(image, [(region, {}) for region in regions], {})
        for i in range(5):
            (inside, _), (leaving, _) = client.frame(image, {}, [])[0]
            assert inside.offset() == (11 + i, 22 + 2 * i) and inside.array().sum() == 12
        assert leaving.array().sum() == 0  # outside the frame


def test_a_client_is_told_why_a_tracker_stopped(tmp_path, monkeypatch):
    trax = pytest.importorskip("trax", reason=NEEDS_TRAX)
    cv2.imwrite(str(tmp_path / "0.png"), draw_disk()[0])
    image = {"color": trax.FileImage.create(str(tmp_path / "0.png"))}

    def fail():
        raise ValueError("no such model")

    with (
        trax_client(monkeypatch, fail) as (client, failures),
        pytest.raises(trax.TraxException, match="ValueError: no such model"),
    ):
        client.initialize(image, [(trax.Rectangle.create(1, 2, 3, 4), {})], {})
    assert [str(failure) for failure in failures] == ["no such model"]


def test_a_client_that_is_gone_is_named(monkeypatch):
    pytest.importorskip("trax", reason=NEEDS_TRAX)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("TRAX_SOCKET", str(listener.getsockname()[1]))

        def leave():
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)  # the greeting

        thread = threading.Thread(target=leave)
        thread.start()
        with pytest.raises(ConnectionError, match="client ended without saying so"):
            serve(Shift)
        thread.join()


def test_overlaps_are_those_of_the_toolkit():
    region = pytest.importorskip("vot.region", reason=NEEDS_TOOLKIT)
    raster = pytest.importorskip("vot.region.raster")
    random, size = np.random.default_rng(0), (40, 60)
    pairs = random.integers((-10, -10, 2, 2), (50, 40, 30, 30), (300, 2, 4)).astype(float)
    pairs[:20, 1] = pairs[:20, 0]  # equal ones
    pairs[20:40, 1, :2] = pairs[20:40, 0, :2] + pairs[20:40, 0, 2:]  # that touch in a corner
    pairs[40:60, 1, 0] = pairs[40:60, 0, 0] + pairs[40:60, 0, 2]  # that touch at an edge
    for a, b in pairs:
        if min(*a, *b) >= 0:  # without bounds the toolkit draws no negative columns
            expected = raster.calculate_overlap(region.Rectangle(*a), region.Rectangle(*b))
            assert overlap(a, b) == pytest.approx(expected, abs=1e-6)  # it rounds other than whole pixels
        masks = box_mask(size, a), box_mask(size, b)
        if all(mask.sum(axis=0).max() > 1 and mask.sum(axis=1).max() > 1 for mask in masks):
            # the toolkit takes regions of one row or column for empty ones
            inside = raster.calculate_overlap(region.Rectangle(*a), region.Rectangle(*b), size[::-1])
            assert region_similarity(*masks) == pytest.approx(inside, abs=1e-6)
            noisy = [mask & (random.random(size) < 0.8) for mask in masks]
            if all(mask.any() for mask in noisy):
                boxes = [mask_box(mask).astype(int) for mask in noisy]
                toolkit = [
                    region.Mask(mask[y : y + h, x : x + w].astype(np.uint8), (int(x), int(y)))
                    for mask, (x, y, w, h) in zip(noisy, boxes)
                ]
                assert region_similarity(*noisy) == pytest.approx(
                    raster.calculate_overlap(*toolkit), abs=1e-6
                )


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
def test_the_toolkit_runs_a_workspace(tmp_path, monkeypatch, masks):
    pytest.importorskip("vot", reason=NEEDS_TOOLKIT)
    if vot.toolkit_hint():
        pytest.skip(vot.toolkit_hint())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(cli_vot.__file__).parents[2]))
    analyses = [
        {"type": "multistart_eao_score", "name": "eao", "low": 3, "high": 7},
        {"type": "multistart_average_ar", "name": "ar"},
    ]
    stack = {"title": "own", "experiments": {"baseline": {"type": "multistart", "analyses": analyses}}}
    Path("stack.yaml").write_text(json.dumps(stack))
    write_sequences(tmp_path / "data", masks)
    words = ("--stack", "stack.yaml", "--sequences", "data", "--name", "still", *(["--masks"] * masks))
    invoke("workspace", "work", "--tracker", "still", *words)
    output = invoke("run", "work")
    assert "EAO" in output and "accuracy" in output and "robustness" in output
    row = vot.read_measures(tmp_path / "work" / "analysis" / "correlation_aware.json")["baseline", "still"]
    assert row["robustness"] == 1  # eight frames, of which ten have to be missed in a row
    assert 0.2 < row["accuracy"] < 0.8
    assert 0.2 < row["EAO"] < 0.9
