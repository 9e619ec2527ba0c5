"""Readers, each on a tiny tree of the real layout; pairs of video frames; what happens to broken files."""

import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import cv2
import golden_pairs
import numpy as np
import pytest
import torch

from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.pairs import MixedPairs, denormalize
from correlation_aware.data.photometric import PhotometricConfig
from correlation_aware.data.videos import pooled_pairs
from correlation_aware.data.videos.pooled_pairs import PooledVideoPairs
from correlation_aware.data.videos.published import (
    GOT10K_SPLITS,
    in_got10k_split,
    is_lasot_test,
    lasot_test_names,
)
from correlation_aware.data.videos.readers import Coco, Got10k, LaSOT, TrackingNet, open_set
from correlation_aware.data.videos.sequences import AnnotationError, Folder, Video, read_boxes, read_flags
from correlation_aware.data.videos.subsets import open_videos
from correlation_aware.data.videos.video_pairs import VideoConfig, VideoPairs, _VideoCache
from correlation_aware.models.contract import Sizes
from correlation_aware.training.batches import PairBatches

QUIET = PhotometricConfig(0, 0, 0, 0, 0, 0, 0, 0, 0)
BOXES = [(20 + 8 * i, 30 + 4 * i, 24, 16) for i in range(4)]


def draw_frame(path, box, color=(255, 255, 255)):
    """A bright rectangle where the box is, on black, 160 x 120 pixels."""
    frame = np.zeros((120, 160, 3), np.uint8)
    x, y, w, h = box
    frame[y : y + h, x : x + w] = color
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), frame)


def draw_frames(folder, names, **kwargs):
    for name, box in zip(names, BOXES):
        draw_frame(folder / name, box, **kwargs)


def write_boxes(path, separator=",", boxes=BOXES):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(map(str, box)) + "\n" for box in boxes))


@pytest.fixture
def got10k(tmp_path):
    for number in (1, 2):
        folder = tmp_path / "train" / f"GOT-10k_Train_{number:06d}"
        draw_frames(folder, [f"{i:08d}.jpg" for i in range(1, 5)])
        write_boxes(folder / "groundtruth.txt", boxes=[tuple(f"{v:.4f}" for v in box) for box in BOXES])
        (folder / "absence.label").write_text("0\n0\n1\n0\n")
        (folder / "cover.label").write_text("8\n0\n8\n8\n")
        (folder / "cut_by_image.label").write_text("0\n0\n0\n0\n")
        (folder / "meta_info.ini").write_text("[METAINFO]\nobject_class: ball\n")
    (tmp_path / "train" / "list.txt").write_text("GOT-10k_Train_000001\nGOT-10k_Train_000002\n")
    return tmp_path


@pytest.fixture
def lasot(tmp_path):
    for name in ("airplane-1", "zebra-13"):
        folder = tmp_path / name.split("-")[0] / name
        draw_frames(folder / "img", [f"{i:08d}.jpg" for i in range(1, 5)])
        write_boxes(folder / "groundtruth.txt")
        (folder / "full_occlusion.txt").write_text("0,0,0,1\n")
        (folder / "out_of_view.txt").write_text("0,1,0,0\n")
        (folder / "nlp.txt").write_text("a white rectangle\n")
    return tmp_path


@pytest.fixture
def trackingnet(tmp_path):
    for part, name in (("TRAIN_0", "a-B_0"), ("TRAIN_11", "c_D_7")):
        draw_frames(
            tmp_path / part / "frames" / name, [f"{i}.jpg" for i in (0, 2, 10, 11)]
        )  # numbers, not text
        write_boxes(tmp_path / part / "anno" / f"{name}.txt")
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    images, annotations = [], []
    for number, box in enumerate(BOXES):
        images.append(
            {"id": 100 + number, "file_name": f"{100 + number:012d}.jpg", "width": 160, "height": 120}
        )
        draw_frame(tmp_path / "train2017" / images[-1]["file_name"], box)
        annotations.append(
            {"image_id": 100 + number, "bbox": list(map(float, box)), "iscrowd": 0, "category_id": 1}
        )
    annotations.append({"image_id": 100, "bbox": [0, 0, 100, 100], "iscrowd": 1, "category_id": 1})
    annotations.append({"image_id": 100, "bbox": [0, 0, 100, 9], "iscrowd": 0, "category_id": 1})
    (tmp_path / "annotations").mkdir()
    content = {"images": images, "annotations": annotations, "categories": []}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return tmp_path


def check_boxes(video):
    """Every frame has its bright rectangle where the box is."""
    assert len(video.frames) == len(video.boxes)
    for path, (x, y, w, h) in zip(video.frames, video.boxes.astype(int)):
        frame = cv2.imread(str(path))
        assert frame[y + 4 : y + h - 4, x + 4 : x + w - 4].min() > 200
        assert float(frame.sum()) == pytest.approx(float(frame[y : y + h, x : x + w].sum()), rel=0.1)


def test_got10k(got10k):
    dataset = open_set("got10k", got10k)
    assert len(dataset) == 2
    check_boxes(dataset[1])
    assert dataset[0].visible.tolist() == [True, False, False, True]
    (got10k / "train" / "list.txt").unlink()
    assert len(Got10k(got10k)) == 2
    with pytest.raises(FileNotFoundError, match=r"list\.txt"):
        Got10k(got10k, "val")


def test_lasot(lasot):
    dataset = LaSOT(lasot, subset="all")
    assert len(dataset) == 2
    check_boxes(dataset[0])
    assert dataset[0].visible.tolist() == [True, False, True, False]
    (lasot / "training_set.txt").write_text("zebra-13\n")
    chosen = LaSOT(lasot, lasot / "training_set.txt")
    assert len(chosen) == 1 and chosen[0].name.endswith("zebra-13")


def test_training_on_lasot_leaves_out_its_tests(lasot, caplog):
    """Those of the published list, of the extension, and of a list in the folder."""
    for name in ("atv-3", "zebra-14", "zebra-15", "mine"):
        (lasot / name).mkdir()
        (lasot / name / "groundtruth.txt").write_text("1,2,3,4\n")
    caplog.set_level(logging.INFO)
    assert open_set("lasot", lasot).names == ["mine", "zebra-13", "zebra-15"]
    assert "3 of 6 videos are left out: tests" in caplog.text
    assert open_videos(f"lasot:{lasot}", {"subset": "test"}).names == ["airplane-1", "atv-3", "zebra-14"]
    (lasot / "testing_set.txt").write_text("zebra-15\n")
    assert open_set("lasot", lasot).names == ["mine", "zebra-13"]
    with pytest.raises(ValueError, match="no subset 'val'; it has train, test, all"):
        open_videos(f"lasot:{lasot}", {"subset": "val"})
    with pytest.raises(ValueError, match="both names="):
        LaSOT(lasot, lasot / "testing_set.txt", "test")
    with pytest.raises(
        FileNotFoundError, match=r"None of 1 videos .* is in LaSOT's subset train; subset=all"
    ):
        LaSOT(lasot / "atv-3")


def test_the_published_splits():
    """As many as published; the VOT challenges forbid GOT-10k_Train_000004 and 000013, not 000005."""
    assert len(set(lasot_test_names())) == 280 and all(map(is_lasot_test, lasot_test_names()))
    categories = {name.rpartition("-")[0] for name in lasot_test_names()}
    videos = [f"{category}-{i}" for category in categories for i in range(1, 21)]
    assert len(videos) == 1400 and sum(map(is_lasot_test, videos)) == 280
    names = [f"GOT-10k_Train_{i:06d}" for i in range(1, 9336)]
    splits = {split: {n for n in names if in_got10k_split(n, split)} for split in GOT10K_SPLITS}
    assert {split: len(part) for split, part in splits.items()} == {
        "train_vot": 8335,
        "train_split": 7934,
        "val_split": 1401,
        "vottrain": 7081,
        "votval": 1254,
    }
    assert splits["vottrain"] | splits["votval"] == splits["train_vot"]
    assert splits["votval"] < splits["val_split"] and not splits["train_split"] & splits["val_split"]
    allowed = splits["train_vot"]
    assert [name in allowed for name in (names[3], names[4], names[12], names[-1])] == [0, 1, 0, 1]


def test_a_split_of_got10k(got10k):
    names = ["GOT-10k_Train_000003", "GOT-10k_Train_000004", "mine"]
    (got10k / "train" / "list.txt").write_text("\n".join(names))
    assert open_videos(f"got10k:{got10k}", {"subset": "train_vot"}).names == [names[0], "mine"]
    with pytest.raises(FileNotFoundError, match=r"None of the videos .* is in the split val_split"):
        Got10k(got10k, "val_split")


def test_trackingnet(trackingnet):
    dataset = TrackingNet(trackingnet)
    assert len(dataset) == 2 and len(TrackingNet(trackingnet, ["TRAIN_11"])) == 1
    assert open_videos(f"trackingnet:{trackingnet}", {"subset": "TRAIN_0, TRAIN_11"}).names == dataset.names
    assert open_videos(f"trackingnet:{trackingnet}", {"subset": "TRAIN_11"}).names == ["c_D_7"]
    with pytest.raises(FileNotFoundError, match=r"no anno/\*.txt in TRAIN_3"):
        open_videos(f"trackingnet:{trackingnet}", {"subset": "TRAIN_0,TRAIN_3"})
    with pytest.raises(ValueError, match="both parts="):
        TrackingNet(trackingnet, ["TRAIN_0"], "TRAIN_0")
    check_boxes(dataset[0])
    assert [path.name for path in dataset[0].frames] == ["0.jpg", "2.jpg", "10.jpg", "11.jpg"]


def test_coco(coco):
    dataset = Coco(coco)
    assert len(dataset) == 4  # neither the crowd nor the flat one
    for i in range(4):
        check_boxes(dataset[i])
    (coco / "annotations" / "instances_train2017.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="instances"):
        Coco(coco)


@pytest.mark.parametrize("separator, inner", [(",", ""), ("\t", "img"), (" ", "img")])
def test_a_folder_of_frames(tmp_path, separator, inner):
    for name in ("mine", "yours"):
        draw_frames(tmp_path / name / inner, [f"frame{i}.png" for i in (1, 2, 10, 20)])
        write_boxes(tmp_path / name / "groundtruth.txt", separator)
    dataset = Folder(tmp_path)
    assert len(dataset) == 2 and len(Folder(tmp_path / "mine")) == 1
    check_boxes(dataset[0])


def test_text_files_of_boxes(tmp_path):
    path = tmp_path / "groundtruth.txt"
    path.write_text("1,2,3,4\nnan,nan,nan,nan\n5,6,0,4\n")
    boxes, visible = read_boxes(path)
    assert boxes[0].tolist() == [1, 2, 3, 4] and visible.tolist() == [True, False, False]
    path.write_text("10,20,30,20,30,40,10,40\n")
    assert read_boxes(path)[0].tolist() == [[10, 20, 20, 20]]
    for text in ("1,2,3\n", "1,2,3,four\n", "1,2,3,4\n1,2\n", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"groundtruth\.txt"):
            read_boxes(path)
    assert read_flags(tmp_path / "none", 3).tolist() == [0, 0, 0]
    path.write_text("1 0\n")
    with pytest.raises(ValueError, match="3 integers"):
        read_flags(path, 3)


@pytest.mark.parametrize(
    ("frames", "lines", "used"),
    [
        ("123", 4, [0, 1, 2]),  # a line too many
        ("1234", 3, [0, 1, 2]),  # a line is missing at the end
        ("124", 4, [0, 1, 3]),  # frame 3 is missing: lines belong to the frames of their numbers
        ("124", 3, [0, 1, 2]),  # frames are numbered with gaps
        ("235", 4, [0, 1, 3]),
    ],
)
def test_lines_belong_to_the_frames_of_their_numbers(tmp_path, frames, lines, used):
    draw_frames(tmp_path, [f"{name}.png" for name in frames])
    write_boxes(tmp_path / "groundtruth.txt", boxes=BOXES[:lines])
    video = Folder(tmp_path)[0]
    assert [path.stem for path in video.frames] == list(frames)[: len(used)]
    assert video.boxes.tolist() == [list(BOXES[i]) for i in used]
    assert bool(video.remark) == (len(frames) != lines)


def test_lines_of_unknown_frames_are_an_annotation_error(tmp_path):
    write_boxes(tmp_path / "groundtruth.txt")
    for names in (("1.jpg", "9.jpg"), ("a.jpg", "b.jpg")):
        draw_frames(tmp_path, names)
        with pytest.raises(AnnotationError, match=r"2 frames and 4 lines.*which line is of which frame"):
            Folder(tmp_path)[0]
        for name in names:
            (tmp_path / name).unlink()


def test_links_to_folders_are_followed_and_cycles_end(tmp_path):
    for name in ("one", "two"):
        draw_frames(tmp_path / "disk" / name, ["1.png", "2.png", "3.png", "4.png"])
        write_boxes(tmp_path / "disk" / name / "groundtruth.txt")
    (tmp_path / "set").mkdir()
    for name in ("one", "two"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "one" / "up").symlink_to(tmp_path / "disk")
    assert Folder(tmp_path / "set").names[0] == "one" and len(LaSOT(tmp_path / "set")) == 2
    check_boxes(Folder(tmp_path / "set")[0])


def test_unknown_layouts_are_named():
    with pytest.raises(ValueError, match="coco, folder, got10k, lasot, tar, trackingnet"):
        open_set("vot", ".")


def bright_box(image):
    """Box, cxcywh in 0..1, of the bright pixels of a (3, H, W) image."""
    bright = image.float().mean(dim=0) > 127
    ys, xs = bright.nonzero().T
    low, high = torch.stack([xs.min(), ys.min()]), torch.stack([xs.max() + 1, ys.max() + 1])
    return torch.cat([(low + high) / 2, (high - low).float()]) / image.shape[-1]


both_kinds = pytest.mark.parametrize("kind", [VideoPairs, PooledVideoPairs])


@both_kinds
def test_video_pairs_have_their_boxes(got10k, kind):
    config = VideoConfig(photometric=QUIET)
    pairs = kind([(Got10k(got10k), 1.0)], 24, Sizes(64, 128), config=config)
    batch = pairs.batch(0)
    assert batch.template.shape == (24, 3, 64, 64) and batch.search.shape == (24, 3, 128, 128)
    assert batch.positive.all()
    for template, search, box in zip(denormalize(batch.template), denormalize(batch.search), batch.boxes):
        if (box[:2] + box[2:] / 2).max() < 1 and (box[:2] - box[2:] / 2).min() > 0:
            assert (bright_box(search) - box).abs().max() * 128 < 2  # frames are JPEG
        assert (bright_box(template)[:2] - 0.5).abs().max() * 64 < 2
    centers = batch.boxes[:, :2].sub(0.5).abs().amax(dim=1)
    assert centers.max() > 0.15 and batch.boxes[:, 2].max() > 1.2 * batch.boxes[:, 2].min()


@both_kinds
def test_video_pairs_depend_only_on_seed_and_number(got10k, kind):
    first, second = (kind([(Got10k(got10k), 1.0)], 4, Sizes(32, 64), seed=2) for _ in range(2))
    straight = [first.batch(number) for number in range(3)]
    for number in (2, 1):
        for a, b in zip(second.batch(number), straight[number]):
            assert torch.equal(a, b)
    assert not torch.equal(straight[0].search, straight[1].search)


@both_kinds
def test_the_gap_and_invisible_frames_are_respected(tmp_path, kind):
    colors = [60, 120, 180, 240]  # a frame's brightness tells which it is
    for i, (color, box) in enumerate(zip(colors, BOXES)):
        draw_frame(tmp_path / f"{i}.png", box, (color,) * 3)
    write_boxes(tmp_path / "groundtruth.txt", boxes=[BOXES[0], BOXES[1], ("nan",) * 4, BOXES[3]])
    batch = kind(
        [(Folder(tmp_path), 1.0)], 40, Sizes(32, 64), config=VideoConfig(gap=1, photometric=QUIET)
    ).batch(0)
    used = {
        (int(z.amax()), int(x.amax())) for z, x in zip(denormalize(batch.template), denormalize(batch.search))
    }
    assert used == {(60, 120), (120, 60), (240, 240)}  # the last one sees no other frame within the gap


@both_kinds
def test_negatives_take_the_template_of_another_video(tmp_path, kind):
    for name, color in (("dark", 90), ("light", 250)):
        draw_frames(tmp_path / name, ["1.png", "2.png"], color=(color,) * 3)
        write_boxes(tmp_path / name / "groundtruth.txt", boxes=BOXES[:2])
    config = VideoConfig(negative=0.5, photometric=QUIET)
    batch = kind([(Folder(tmp_path), 1.0)], 40, Sizes(32, 64), config=config).batch(0)
    assert 5 < (~batch.positive).sum() < 25
    for template, search, positive in zip(
        denormalize(batch.template), denormalize(batch.search), batch.positive
    ):
        assert (abs(int(template.amax()) - int(search.amax())) < 20) == bool(positive)
    alone = kind([(Folder(tmp_path / "dark"), 1.0)], 2, Sizes(32, 64), config=VideoConfig(negative=1.0))
    with pytest.raises(RuntimeError, match="negative pairs need two"):
        alone.batch(0)


def test_negatives_are_as_frequent_from_memory_as_from_files(tmp_path):
    """A negative that drew the same target twice is drawn again, also where a video is in two datasets."""
    for name in "ab":
        draw_frames(tmp_path / name, ["1.png", "2.png"], color=(200,) * 3)
        write_boxes(tmp_path / name / "groundtruth.txt", boxes=BOXES[:2])
    sets, config = [(Folder(tmp_path), 0.5)] * 2, VideoConfig(negative=0.5, photometric=QUIET)
    shares = [
        (~kind(sets, 400, Sizes(16, 32), config=config).batch(0).positive).float().mean()
        for kind in (VideoPairs, PooledVideoPairs)
    ]
    assert all(abs(share - 1 / 3) < 0.08 for share in shares)  # 1/4 of all draws, of 3/4 that are kept


def test_a_dataset_of_weight_zero_is_not_read_into_memory(tmp_path, got10k):
    draw_frame(tmp_path / "1.png", BOXES[0])
    write_boxes(tmp_path / "groundtruth.txt", boxes=BOXES[:1])
    (tmp_path / "1.png").write_bytes(b"damaged")
    sets = [(Got10k(got10k), 1.0), (Folder(tmp_path), 0.0)]
    pairs = PooledVideoPairs(sets, 2, Sizes(32, 64), errors=ErrorBudget(limit=0))
    assert pairs.batch(0).positive.all() and not pairs.errors.damaged


@both_kinds
def test_datasets_are_sampled_by_weight(tmp_path, kind):
    for name, color in (("dark", 90), ("light", 250)):
        draw_frames(tmp_path / name, ["1.png", "2.png"], color=(color,) * 3)
        write_boxes(tmp_path / name / "groundtruth.txt", boxes=BOXES[:2])
    sets = [(Folder(tmp_path / "dark"), 1.0), (Folder(tmp_path / "light"), 3.0)]
    search = denormalize(kind(sets, 80, Sizes(16, 32), config=VideoConfig(photometric=QUIET)).batch(0).search)
    assert 0.6 < (search.flatten(1).amax(dim=1) > 170).float().mean() < 0.9
    with pytest.raises(ValueError, match="weights"):
        kind([(Folder(tmp_path), 0.0)], 2)


def test_frames_in_memory_are_cut_and_shrunk_around_the_target(tmp_path):
    """A large frame is kept as far as crops show it: the pairs are those of the whole frame."""
    size, box = (1200, 1600), (700, 500, 160, 90)
    image = np.zeros((*size, 3), np.uint8)
    image[500:590, 700:860] = 230
    for name in ("1.png", "2.png"):
        assert cv2.imwrite(str(tmp_path / name), image)
    write_boxes(tmp_path / "groundtruth.txt", boxes=[box, box])
    config = VideoConfig(photometric=QUIET, scale_jitter=0.1)
    pairs = PooledVideoPairs([(Folder(tmp_path), 1.0)], 16, Sizes(32, 64), config=config)
    assert pairs.pool.width[:, 0].max() < 200  # 64 px show four targets of 120 px
    batch = pairs.batch(0)
    for search, box in zip(denormalize(batch.search), batch.boxes):
        if (box[:2] + box[2:] / 2).max() < 1 and (box[:2] - box[2:] / 2).min() > 0:
            assert (bright_box(search) - box).abs().max() * 64 < 1.5


def test_frames_that_do_not_fit_in_memory_are_an_error(got10k, monkeypatch):
    monkeypatch.setattr(pooled_pairs, "MOST_PIXELS", 1000)
    with pytest.raises(ValueError, match="frames_in_memory=false"):
        PooledVideoPairs([(Got10k(got10k), 1.0)], 2, Sizes(32, 64))
    with pytest.raises(ValueError, match="no video with a visible target"):
        PooledVideoPairs([([], 1.0)], 2, Sizes(32, 64))


def test_broken_files_are_named_once_and_left_out(got10k, caplog):
    broken = got10k / "train" / "GOT-10k_Train_000001"
    (broken / "00000001.jpg").write_bytes(b"no image")
    (broken / "00000004.jpg").unlink()
    (broken / "00000004.jpg").symlink_to("nowhere")
    errors = ErrorBudget(limit=2)
    pairs = VideoPairs([(Got10k(got10k), 1.0)], 16, Sizes(32, 64), errors=errors)
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            pairs.batch(number)
    assert sorted(errors.damaged) == [str(broken / f"0000000{i}.jpg") for i in (1, 4)]
    assert sorted(record.args[0] for record in caplog.records) == sorted(errors.damaged)
    with pytest.raises(RuntimeError, match=r"0000000[14]\.jpg.*at most 1 are left out"):
        VideoPairs([(Got10k(got10k), 1.0)], 16, Sizes(32, 64), errors=ErrorBudget(limit=1)).batch(0)


def test_as_many_damaged_files_as_the_limit_are_left_out(caplog):
    errors = ErrorBudget(limit=2)
    for name in ("a.jpg", "b.jpg", "a.jpg"):
        errors.add(name, ValueError("damaged"))
    assert [record.args[0] for record in caplog.records] == ["a.jpg", "b.jpg"]
    with pytest.raises(RuntimeError, match=r"c\.jpg.*damaged.*unreadable file 3, and at most 2"):
        errors.add("c.jpg", ValueError("damaged"))
    share = ErrorBudget(limit=0.01)
    share.files = 200
    share.merge(errors.take_new()[:2])
    assert "a.jpg" in share and share.count == 2
    with pytest.raises(RuntimeError, match="unreadable file 3, and at most 2"):
        share.add("c.jpg", "damaged")
    caplog.clear()
    for i in range(40):
        share.note(f"{i}.jpg", "outside")
    assert len(share.unusable) == 40 and len(caplog.records) == 21  # 20 names, and that there are more
    with pytest.raises(ValueError, match="at least 0"):
        ErrorBudget(limit=-1)


def test_a_broken_annotation_is_no_damage_and_read_once(got10k, caplog):
    (got10k / "train" / "GOT-10k_Train_000002" / "groundtruth.txt").write_text("1,2\n")
    errors = ErrorBudget(limit=0)
    pairs = VideoPairs([(Got10k(got10k), 1.0)], 8, Sizes(32, 64), errors=errors)
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            pairs.batch(number)
    (record,) = caplog.records
    assert "GOT-10k_Train_000002/groundtruth.txt" in record.message and errors.count == 0


def test_annotations_are_read_once(got10k):
    dataset, read = Got10k(got10k), []

    class Counting:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            read.append(index)
            return dataset[index]

    pairs = VideoPairs([(Counting(), 1.0)], 12, Sizes(32, 64), workers=1)
    for number in range(2):
        pairs.batch(number)
    assert sorted(read) == [0, 1]


def test_the_cache_of_videos_is_limited_and_exact():
    cache = _VideoCache(frames=5)
    videos = [Video(str(i), [Path(f"{i}/1.jpg")] * 2, np.ones((2, 4)), np.ones(2, bool)) for i in range(3)]
    for i, video in enumerate(videos):
        cache.put((0, i), video)
    assert cache.get((0, 0)) == (False, None) and cache.get((0, 2)) == (True, videos[2])
    cache.put((0, 3), None)
    assert cache.get((0, 3)) == (True, None) and cache.frames == 5


def test_a_box_outside_the_frame_is_no_damage(tmp_path, caplog):
    draw_frames(tmp_path, ["1.png", "2.png", "3.png", "4.png"])
    write_boxes(tmp_path / "groundtruth.txt", boxes=[(500, 10, 20, 20), *BOXES[1:]])
    errors = ErrorBudget(limit=0)
    with caplog.at_level(logging.WARNING):
        VideoPairs([(Folder(tmp_path), 1.0)], 8, Sizes(32, 64), errors=errors).batch(0)
    assert "outside the frame" in caplog.text and list(errors.unusable) == [str(tmp_path / "1.png")]


def test_mixed_pairs_choose_sources_by_weight(got10k, coco):
    sources = [VideoPairs([(dataset, 1.0)], 2, Sizes(16, 32)) for dataset in (Got10k(got10k), Coco(coco))]
    mixed = MixedPairs([(sources[0], 1.0), (sources[1], 3.0)], seed=1)
    second = [torch.equal(mixed.batch(i).search, sources[1].batch(i).search) for i in range(24)]
    assert 0.5 < np.mean(second) < 0.95
    for batch, i in ((mixed.batch(i), i) for i in range(6)):
        assert torch.equal(batch.search, sources[int(batch.source)].batch(i).search)


def test_processes_prepare_the_same_batches_and_report_what_they_leave_out(got10k, caplog):
    bad = got10k / "train" / "GOT-10k_Train_000001" / "00000001.jpg"
    bad.write_bytes(b"no image")

    def first(workers, errors):
        pairs = VideoPairs([(Got10k(got10k), 1.0)], 6, Sizes(32, 64), errors=errors, workers=1)
        return list(islice(PairBatches(pairs, 6, workers=workers, errors=errors).batches(1, 2), 4))

    # OpenCV has run in threads before, as when photographs are read; its own threads do not survive a fork
    cv2.setNumThreads(2)
    big = np.zeros((1500, 1500, 3), np.uint8)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: cv2.GaussianBlur(big, (0, 0), 3), range(8)))
    errors = ErrorBudget(limit=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        processes = first(2, errors)
    assert torch.equal(torch.get_rng_state(), state)  # a run draws the same numbers with and without them
    assert list(errors.damaged) == [str(bad)] and caplog.text.count("Left out") == 1
    for a, b in zip(processes, first(0, None), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    with pytest.raises(RuntimeError, match="at most 0 are left out"):
        first(1, ErrorBudget(limit=0))


def test_what_a_worker_gets_can_be_pickled(got10k):
    pairs = VideoPairs([(Got10k(got10k), 1.0)], 2, Sizes(32, 64), workers=1)
    copy = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(copy.batch(3).search, pairs.batch(3).search)


def test_a_seed_gives_the_pairs_that_it_gave_before(tmp_path):
    golden_pairs.check("videos", golden_pairs.video_pairs(tmp_path))


def colored_pairs(folder, photometric):
    """Pairs of a video whose target is red on its left half and blue on its right one."""
    for i, (x, y, w, h) in enumerate(BOXES):
        frame = np.full((120, 160, 3), (90, 110, 70), np.uint8)
        frame[y : y + h, x : x + w] = (60, 80, 190)  # blue, green, red, as OpenCV writes them
        frame[y : y + h, x + w // 2 : x + w] = (190, 80, 60)
        cv2.imwrite(str(folder / f"{i}.png"), frame)
    write_boxes(folder / "groundtruth.txt")
    return VideoPairs(
        [(Folder(folder), 1.0)], 32, Sizes(64, 128), config=VideoConfig(photometric=photometric)
    ).batch(0)


def test_half_of_the_video_pairs_are_mirrored(tmp_path):
    """Template, search image and box together: the target has its colors on the same sides in both."""
    batch = colored_pairs(tmp_path, QUIET)
    mirrored = []
    for template, search, (cx, cy, w, _) in zip(
        denormalize(batch.template).int(), denormalize(batch.search).int(), batch.boxes.tolist()
    ):
        red_left_in_template = bool(template[0, 32, 24] > template[2, 32, 24])
        left, right, row = int((cx - w / 4) * 128), int((cx + w / 4) * 128), int(cy * 128)
        for column, red in ((left, red_left_in_template), (right, not red_left_in_template)):
            if 0 <= column < 128 and 0 <= row < 128:
                assert search[0 if red else 2, row, column] == pytest.approx(190, abs=8)
        mirrored.append(not red_left_in_template)
    assert 8 <= sum(mirrored) <= 24


def test_the_two_frames_of_a_video_pair_differ_in_light(tmp_path):
    """Most of both images is background of one color: its median shows the illumination."""
    (tmp_path / "quiet").mkdir()
    (tmp_path / "usual").mkdir()
    quiet = colored_pairs(tmp_path / "quiet", QUIET)
    usual = colored_pairs(tmp_path / "usual", VideoConfig().photometric)
    medians = [
        [denormalize(i).float().flatten(2).median(dim=2).values for i in (batch.template, batch.search)]
        for batch in (quiet, usual)
    ]
    apart = [(template - search).abs().mean() for template, search in medians]
    assert apart[0] < 2 and apart[1] > 5  # gray levels, within a pair
    assert min(images.std(dim=0).min() for images in medians[1]) > 8  # from pair to pair
