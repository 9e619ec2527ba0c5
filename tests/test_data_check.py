"""Summaries of training data, mistakes in boxes, and parts of datasets by name."""

import logging

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from correlation_aware.cli import app
from correlation_aware.data.check import check_source
from correlation_aware.data.videos.sequences import Video
from correlation_aware.data.videos.subsets import VideoSet, open_videos
from correlation_aware.data.videos.training_data import describe_videos, merge_records, trained_videos

BOXES = np.array([(10.0, 20.0, 40.0, 30.0), (60, 40, 50, 40), (100, 70, 40, 40)])


def write_video(folder, boxes=BOXES, frames=3):
    """A video of 160 x 120 px."""
    folder.mkdir(parents=True)
    for i in range(frames):
        cv2.imwrite(str(folder / f"{i}.jpg"), np.full((120, 160, 3), 90, np.uint8))
    (folder / "groundtruth.txt").write_text("".join(",".join(map(str, box)) + "\n" for box in boxes))


def check(*words):
    return CliRunner().invoke(app, ["train", "check", *map(str, words)])


def test_a_summary_of_videos(tmp_path):
    write_video(tmp_path / "one")
    write_video(tmp_path / "two", boxes=[*BOXES[:2], (300, 20, 10, 10)])
    write_video(tmp_path / "short", boxes=BOXES[:2])
    write_video(tmp_path / "broken", boxes=[("a", "b")])
    result = check(f"folder:{tmp_path}")
    assert result.exit_code == 0, result.output
    assert "4 videos, 8 frames, 3 frames per video" in result.output
    assert "target visible in 100.0% of the frames, median size 37.3 px" in result.output
    assert "center outside the frame in 12.50%" in result.output
    assert "broken/groundtruth.txt is not a table" in result.output
    assert "short (3 frames and 2 lines of annotation: 2 of them are used)" in result.output


def as_corners(boxes):
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (as_corners(BOXES), "look like corners"),
        (BOXES / (160, 120, 160, 120), "boxes in 0..1"),
        (BOXES * (1, 1, 0.01, 0.02), "below 2 px"),
        (BOXES[:1], "fewer than two frames"),
        (BOXES * (1, 1, 0, 0), "no video has a visible target"),
    ],
)
def test_wrong_boxes_are_an_error(tmp_path, boxes, message):
    write_video(tmp_path / "video", boxes, frames=len(boxes))
    result = check(f"folder:{tmp_path}")
    assert result.exit_code == 1 and "WRONG" in result.output and message in result.output


def test_one_wrong_video_among_many_is_a_remark(tmp_path):
    for number in range(11):
        write_video(
            tmp_path / f"video{number}", BOXES[: 1 if number == 4 else 3], frames=1 if number == 4 else 3
        )
    result = check(f"folder:{tmp_path}")
    assert result.exit_code == 0 and "1 of 11 videos have fewer than two frames" in result.output
    assert "(video4)" in result.output.replace(str(tmp_path) + "/", "")


def test_a_summary_of_photographs(photos):
    (photos / "bad.png").write_bytes(b"")
    summary = check_source(str(photos))
    assert summary.lines == ["4 photographs, 0 with a mask, 0 classes, median side 160 px"]
    assert "bad.png (not an image" in summary.left_out[0]
    with pytest.raises(ValueError, match="no subsets"):
        check_source(str(photos), VideoSet(subset="val"))


@pytest.fixture
def lasot(tmp_path):
    for name in ("airplane-2", "airplane-3", "dog-3"):
        write_video(tmp_path / "lasot" / name.split("-")[0] / name / "img")
        (tmp_path / "lasot" / name.split("-")[0] / name / "img" / "groundtruth.txt").rename(
            tmp_path / "lasot" / name.split("-")[0] / name / "groundtruth.txt"
        )
    return f"lasot:{tmp_path / 'lasot'}"


def test_videos_are_selected_and_excluded_by_name(lasot, tmp_path, caplog):
    (tmp_path / "testing_set.txt").write_text("airplane-2\nzebra-9\n")
    with caplog.at_level(logging.WARNING):
        kept = open_videos(lasot, VideoSet(exclude=(str(tmp_path / "testing_set.txt"),)))
    assert kept.names == ["airplane-3", "dog-3"] and len(kept) == 2
    assert [kept[i].name.rpartition("/")[2] for i in range(2)] == kept.names and isinstance(kept[0], Video)
    assert "1 of 2 names are not there: zebra-9" in caplog.text
    (tmp_path / "numbers.txt").write_text("0\n2\n")  # as STARK's lists
    chosen = open_videos(lasot, VideoSet(names=(str(tmp_path / "numbers.txt"),), exclude=("dog-3",)))
    assert chosen.names == ["airplane-2"]


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"names": ("zebra-9",)}, ValueError, "none of 1 names is among the 3 videos"),
        ({"names": ("dog-3",), "exclude": ("dog-3",)}, ValueError, "leave none of 3 videos"),
        ({"exclude": ("missing.txt",)}, FileNotFoundError, "there is no file missing.txt"),
        ({"subset": "val"}, ValueError, "has no subset 'val'"),
        ({"share": 1}, ValueError, "Unknown keys share"),
    ],
)
def test_selections_without_an_effect_are_errors(lasot, part, error, message):
    with pytest.raises(error, match=message):
        open_videos(lasot, part)


def test_a_subset_of_got10k(tmp_path):
    for subset in ("train", "val"):
        write_video(tmp_path / subset / f"GOT-10k_{subset}_1")
    assert open_videos(f"got10k:{tmp_path}", {"subset": "val"}).names == ["GOT-10k_val_1"]
    with pytest.raises(ValueError, match="LAYOUT:ROOT"):
        open_videos(str(tmp_path))


def test_a_record_of_the_videos_trained_on():
    names = [*(f"GOT-10k_Train_{i:06d}" for i in (1, 2, 3, 9, 10)), "car-9", "car-10", "mine", "a/dog-3"]

    class Videos(list):
        pass

    dataset = Videos(names)
    dataset.names = names
    record = describe_videos("got10k:somewhere", VideoSet(subset="train_vot"), dataset)
    assert record["names"] == [
        "mine",
        "GOT-10k_Train_{000001..000003}",
        "GOT-10k_Train_{000009..000010}",
        "a/dog-3",
        "car-{9..10}",
    ]
    assert (record["layout"], record["subset"], record["videos"]) == ("got10k", "train_vot", 9)
    names = ["GOT-10k_Train_000002", "GOT-10k_Train_000004", "car-10", "dog-3"]
    assert trained_videos([record], "got10k", "train", names) == [names[0], names[2], names[3]]
    assert trained_videos([record], "otb", "all", names) == []  # other datasets may have the same names
    assert trained_videos([{**record, "layout": "folder"}], "otb", "all", ["dog-3"]) == ["dog-3"]
    unnamed = {**record, "names": None}
    assert trained_videos([unnamed], "got10k", "train_vot", names) == names
    assert trained_videos([unnamed], "got10k", "val", names) == []
    assert merge_records([record], [unnamed, record]) == [record, unnamed]
