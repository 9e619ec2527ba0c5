"""Files of every kind: written whole, and the frames of one folder in one order for all who read them."""

import multiprocessing
import os
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from correlation_aware._files import (
    atomic_path,
    check_output_file,
    check_output_folder,
    file_lock,
    frame_numbers,
    list_frames,
    natural_order,
    write_text,
)
from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.stills.files import read_stills
from correlation_aware.data.videos.sequences import Folder
from correlation_aware.evaluation.benchmarks import open_benchmark
from correlation_aware.tracking.video import open_frames, write_image

ORDERS = {
    "two numbers": ["cam1_2.png", "cam1_3.png", "cam2_1.png"],
    "a size in the name": ["2_640x360.png", "12_640x360.png", "100_320x180.png", "101_640x360.png"],
    "no leading zeros": [f"{i}.jpg" for i in range(25)],
    "webp": [f"frame{i}.webp" for i in (1, 2, 10)],
    "suffixes": ["1.JPG", "2.jpeg", "3.png", "10.bmp", "11.webp", "12.tif", "13.TIFF"],
    "time stamps": ["1700000001.2.jpg", "1700000002.1.jpg", "1700000010.3.jpg"],
    "equal fractions": ["8.125.png", "8.250.png", "9.100.png"],
    "versions": [f"clip2.{i}.png" for i in range(1, 12)],
    "seconds of the next minute": ["12-07-58.png", "12-07-59.png", "12-08-00.png"],
    "the alphabet": ["a.png", "b.png", "c.png"],
}


def write_frames(folder: Path, names: list[str]) -> None:
    """Plain images whose brightness tells which is which; the last is written first."""
    folder.mkdir(parents=True)
    for i, name in reversed(list(enumerate(names))):
        write_image(folder / name.lower(), np.full((16, 16, 3), 10 * i, np.uint8))
        (folder / name.lower()).rename(folder / name)
    (folder / "._1.jpg").write_bytes(b"left by another system")


def numbers(images: list[np.ndarray]) -> list[int]:
    return [round(float(image.mean()) / 10) for image in images]


@pytest.mark.parametrize("names", ORDERS.values(), ids=ORDERS)
def test_a_folder_has_one_order_for_tracker_and_training(tmp_path: Path, names: list[str]) -> None:
    folder = tmp_path / "frames"
    write_frames(folder, names)
    expected = list(range(len(names)))
    assert [path.name for path in list_frames(folder)] == names
    with open_frames(folder) as source:
        assert source.length == len(names) and numbers(list(source)) == expected
    (folder / "._1.jpg").unlink()
    assert numbers([still.image for still in read_stills(folder, 16)]) == expected
    (folder / "groundtruth.txt").write_text("1,2,3,4\n" * len(names))
    (video,) = Folder(folder)
    assert [path.name for path in video.frames] == names
    (tmp_path / "val").mkdir()
    folder.rename(tmp_path / "val" / "a")
    assert [path.name for path in open_benchmark("got10k", tmp_path)["a"].frames] == names


DOUBTS = {
    "text before some numbers": (
        ["frame1.png", "frame2.png", "img3.png"],
        "frame1.png and img3.png are named by",
    ),
    "a mask beside a frame": (
        ["1.png", "1_mask.png", "2.png", "2_mask.png"],
        "1.png and 1_mask.png are named by",
    ),
    "a cover": (["1.png", "2.png", "cover.png"], "1.png and cover.png are named by different rules"),
    "two suffixes": (["1.jpg", "1.png", "2.jpg"], "the number of 1.png is that of another"),
    "two paddings": (["01.jpg", "1.jpg", "2.jpg"], "the number of 1.jpg is that of another"),
    "two suffixes of a word": (["a.jpg", "a.png"], "two images differ only in their suffixes"),
    "a minus sign": (["-1.png", "-2.png"], "the number of -1.png may be negative"),
    "decimal fractions": (["8.5.png", "8.25.png", "9.1.png"], "may be times with decimal fractions"),
    "two counts": (
        ["7_3.png", "8_1.png", "9_4.png", "10_2.png"],
        "the two numbers of 7_3.png and the others",
    ),
}


@pytest.mark.parametrize("names, words", DOUBTS.values(), ids=DOUBTS)
def test_names_that_leave_doubt_about_the_order_are_refused(tmp_path, names, words) -> None:
    folder = tmp_path / "frames"
    write_frames(folder, names)
    with pytest.raises(
        ValueError, match=rf"order of the frames in .*frames is unknown: .*{words}.*000001\.jpg"
    ):
        list_frames(folder)
    with pytest.raises(ValueError, match="order of the frames"):
        open_frames(folder)


def test_images_of_a_kind_that_is_not_read_are_not_left_out_silently(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    write_frames(folder, ["1.png", "2.png"])
    (folder / "3.HEIC").write_bytes(b"")
    (folder / "notes.txt").write_text("text beside frames is allowed")
    with pytest.raises(ValueError, match=r"1 images of a kind that is not read, such as 3\.HEIC; convert"):
        list_frames(folder)
    (folder / "._1.jpg").unlink()
    with pytest.raises(RuntimeError, match=r"3\.HEIC cannot be read \(not of a kind that is read: \.jpg, "):
        list(read_stills(folder, 16))
    errors = ErrorBudget()
    assert len(list(read_stills(folder, 16, errors))) == 2 and errors.count == 1


@pytest.mark.parametrize(
    "names, expected",
    [
        (["3.png", "5.png"], [3, 5]),
        (["7_640x360.png", "9_640x360.png"], [7, 9]),
        (["cam1_2.png", "cam1_3.png"], [2, 3]),
        (["cam1_2.png", "cam1_3.png", "cam2_1.png"], None),
        (["a.png", "b.png"], None),
        ([], None),
    ],
)
def test_the_number_of_a_frame_is_the_one_that_increases(names, expected) -> None:
    assert frame_numbers([Path(name).stem for name in names]) == expected


def test_natural_order_of_paths() -> None:
    ordered = ["01", "1", "a", "a/b2", "a/b10", "a2", "a2/c", "a10", "x.jpg", "x.jpg1.jpg"]
    backwards = ordered[::-1]
    assert sorted(backwards, key=natural_order) == ordered


def test_a_folder_of_stills_keeps_its_subfolders_together(tmp_path: Path) -> None:
    for name in ("pose10/1.png", "pose2/2.png", "pose2/10.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8 + len(name), 3), np.uint8))
    labels = [(still.label, still.image.shape[1]) for still in read_stills(tmp_path, 64)]
    assert labels == [("pose2", 19), ("pose2", 20), ("pose10", 20)]


def test_atomic_path_that_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ValueError, match="taken exists and is not a regular file"):
        write_text("text", tmp_path / "taken")
    with pytest.raises(FileNotFoundError, match=r"folder of .*absent.*new"):
        write_text("text", tmp_path / "absent" / "new")
    with atomic_path(tmp_path / "never") as temporary:
        temporary.unlink()  # there is nothing to write
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    write_text("Größe\n", tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == "Größe\n".encode()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_pipes_and_devices_are_written_through(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    check_output_file(pipe)  # writes nothing, and waits for no reader
    write_text("text", pipe)
    reader.join(timeout=10)
    assert got == ["text"] and pipe.is_fifo()
    write_text("text", "/dev/null")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="/dev/fd/7777 cannot be written: "):
        write_text("text", "/dev/fd/7777")
    with (tmp_path / "file").open("w") as file:
        file.write("before\n")
        file.flush()
        write_text("text\n", f"/dev/fd/{file.fileno()}")
        file.write("after\n")
    assert (tmp_path / "file").read_text() == "before\ntext\nafter\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_output_paths_are_checked_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    check_output_file(tmp_path / "old.json")
    check_output_file(tmp_path / "new.PNG", (".png",))
    check_output_folder(tmp_path / "new" / "folder")
    check_output_folder(tmp_path)
    with pytest.raises(ValueError, match=r"new\.txt: the name of the file must end in \.png, \.jpg"):
        check_output_file(tmp_path / "new.txt", (".png", ".jpg"))
    with pytest.raises(FileNotFoundError, match="create it first"):
        check_output_file(tmp_path / "absent" / "new.json")
    for name in ("old.json", "old.json/folder"):
        with pytest.raises(ValueError, match=r"old\.json is a file; the output must be a folder"):
            check_output_folder(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


def test_atomic_path_writes_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to("real/file.csv")
    for text in ("new", "newer"):  # of a file that does not exist, and of one that does
        with atomic_path(link) as temporary:
            temporary.write_text(text)
        assert link.is_symlink() and (tmp_path / "real" / "file.csv").read_text() == text
    assert len(list(tmp_path.rglob("*"))) == 3


def test_atomic_path_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "atomic.csv") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".csv"
        temporary.write_text("a")
        assert not (tmp_path / "atomic.csv").exists()
    assert (tmp_path / "atomic.csv").read_text() == "a"
    assert (tmp_path / "atomic.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of this kind")
def test_a_lock_passes_between_processes_that_create_and_remove_its_file(tmp_path: Path) -> None:
    path, counter, turns = tmp_path / "lock", tmp_path / "counter", 2000
    counter.write_text("0")

    def count() -> None:
        for _ in range(turns):
            with file_lock(path, wait=True):
                counter.write_text(str(int(counter.read_text()) + 1))

    processes = [multiprocessing.get_context("fork").Process(target=count) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert int(counter.read_text()) == 4 * turns and not path.exists()
