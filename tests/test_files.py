"""Files of every kind: written whole, and the frames of one folder in one order for all who read them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from correlation_aware._files import (
    atomic_path,
    check_output_file,
    check_output_folder,
    list_images,
    natural_order,
    write_text,
)
from correlation_aware.data.stills.files import read_stills
from correlation_aware.data.videos.sequences import Folder
from correlation_aware.tracking.video import open_frames, write_image

ORDERS = {
    "two numbers": ["cam1_2.png", "cam1_3.png", "cam2_1.png"],
    "a size in the name": ["2_640x360.png", "12_640x360.png", "100_320x180.png", "101_640x360.png"],
    "no leading zeros": [f"{i}.jpg" for i in range(25)],
    "webp": [f"frame{i}.webp" for i in (1, 2, 10)],
    "suffixes": ["1.JPG", "2.jpeg", "3.png", "10.bmp", "11.webp"],
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
    assert [path.name for path in list_images(folder)] == names
    with open_frames(folder) as source:
        assert source.length == len(names) and numbers(list(source)) == expected
    (folder / "._1.jpg").unlink()
    assert numbers([still.image for still in read_stills(folder, 16)]) == expected
    (folder / "groundtruth.txt").write_text("1,2,3,4\n" * len(names))
    (video,) = Folder(folder)
    assert [path.name for path in video.frames] == names


def test_evaluation_has_the_same_order(tmp_path: Path) -> None:
    pytest.importorskip("got10k")
    from correlation_aware.evaluation.got10k import open_dataset

    folder = tmp_path / "val" / "a"
    names = [f"{i}.jpg" for i in range(25)]
    write_frames(folder, names)
    (tmp_path / "val" / "list.txt").write_text("a\n")
    (folder / "meta_info.ini").write_text("[METAINFO]\nurl: none\nresolution: (16, 16)\n")
    np.savetxt(folder / "groundtruth.txt", np.tile([1, 2, 3, 4], (25, 1)), delimiter=",")
    for label in ("cover", "absence", "cut_by_image"):
        np.savetxt(folder / f"{label}.label", np.zeros(25), fmt="%d")
    files, *_ = open_dataset(tmp_path)["a"]
    assert [Path(file).name for file in files] == names
    assert [Path(file) for file in files] == list_images(folder)


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


def test_atomic_path_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "atomic.csv") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".csv"
        temporary.write_text("a")
        assert not (tmp_path / "atomic.csv").exists()
    assert (tmp_path / "atomic.csv").read_text() == "a"
    assert (tmp_path / "atomic.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode
