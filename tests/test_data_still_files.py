"""Stills in tar shards and folders, and the pool they fill."""

import io
import logging
import tarfile

import cv2
import numpy as np
import pytest

from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.stills.files import read_stills
from correlation_aware.data.stills.pool import read_pool


def image_bytes(shape, suffix=".jpg", seed=0):
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return cv2.imencode(suffix, image)[1].tobytes()


def write_shard(path, entries):
    with tarfile.open(path, "w") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def object_mask(height, width):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return cv2.imencode(".png", mask)[1].tobytes()


def test_stills_of_shards(tmp_path, caplog):
    pytest.importorskip("webdataset")
    first = [("0001.jpg", image_bytes((80, 100, 3))), ("0001.mask.png", object_mask(80, 100))]
    write_shard(tmp_path / "s-000000.tar", [*first, ("0002_tabby_cat.jpg", image_bytes((200, 100, 3)))])
    second = [("0003_dog.jpg", b"broken"), ("0004_dog.png", image_bytes((40, 40, 3), ".png"))]
    write_shard(tmp_path / "s-000001.tar", [*second, ("0005.txt", b"text")])
    errors = ErrorBudget(limit=5)
    with caplog.at_level(logging.WARNING):
        stills = list(read_stills(str(tmp_path / "s-{000000..000001}.tar"), 100, errors))
    assert [still.label for still in stills] == ["", "tabby_cat", "dog"]
    assert [still.image.shape for still in stills] == [(80, 100, 3), (100, 50, 3), (40, 40, 3)]
    assert stills[0].mask.shape == (80, 100) and stills[1].mask is None
    assert errors.count == 2 and "0003_dog" in caplog.text and "0005" in caplog.text
    with pytest.raises(RuntimeError, match=r"s-000001\.tar: 000\d"):
        list(read_stills(str(tmp_path / "s-000001.tar"), 100))


def test_every_process_reads_all_shards(tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    shard = tmp_path / "s-000000.tar"
    write_shard(shard, [(f"{i}.jpg", image_bytes((64, 64, 3), seed=i)) for i in range(3)])
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():  # as torchrun has it
        monkeypatch.setenv(name, value)
    assert len(list(read_stills(str(shard), 100))) == 3


def test_a_missing_or_truncated_shard_is_counted(tmp_path, caplog):
    pytest.importorskip("webdataset")
    whole = tmp_path / "s-000001.tar"
    write_shard(whole, [(f"{i}.jpg", image_bytes((64, 64, 3), seed=i)) for i in range(8)])
    (tmp_path / "s-000000.tar").write_bytes(whole.read_bytes()[:9000])
    with caplog.at_level(logging.WARNING):
        stills = list(read_stills(str(tmp_path / "s-{000000..000002}.tar"), 100, ErrorBudget(limit=5)))
    assert len(stills) >= 8
    assert "s-000000.tar" in caplog.text and "s-000002.tar" in caplog.text


@pytest.mark.parametrize(
    "source",
    [
        "pipe:touch {}/ran",
        "a.tar::pipe:touch {}/ran",
        "gs://bucket/a.tar",
        "http://host/a.tar'; touch {}/ran '",
    ],
)
def test_a_source_never_runs_a_command(tmp_path, source):
    pytest.importorskip("webdataset")
    with pytest.raises(ValueError, match=r"could run a program|a shell could"):
        list(read_stills(source.format(tmp_path), 64, ErrorBudget(5)))
    assert not (tmp_path / "ran").exists()


def test_links_to_folders_are_followed_and_broken_links_are_left_out(tmp_path):
    for folder in ("photos", "disk"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(image_bytes((60, 80, 3)))
    (tmp_path / "photos" / "dogs").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "2.jpg").symlink_to("nowhere")
    errors = ErrorBudget(limit=1)
    stills = list(read_stills(tmp_path / "photos", 64, errors))
    assert [still.label for still in stills] == ["", "dogs"]
    assert list(errors.damaged) == [str(tmp_path / "photos" / "2.jpg")] and errors.files == 2


def test_stills_of_a_folder_and_a_pool_of_several_sources(tmp_path):
    for name in ("cats/1.jpg", "cats/2.jpg", "dogs/1.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(image_bytes((60, 80, 3), name[-4:]))
    (tmp_path / "pets" / "dogs" / "1.mask.png").write_bytes(object_mask(60, 80))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0_cats.jpg").write_bytes(image_bytes((60, 80, 3)))
    stills = list(read_stills(tmp_path / "pets", 64))
    assert [still.label for still in stills] == ["cats", "cats", "dogs"]
    assert stills[0].image.shape == (48, 64, 3) and stills[2].mask is not None
    pool = read_pool({str(tmp_path / "pets"): 3.0, str(tmp_path / "one"): 1.0}, max_side=64)
    assert pool.weights.tolist() == [1, 1, 1, 1] and pool.label.tolist() == [0, 0, 1, 0]
    assert pool.masked.tolist() == [False, False, True, False]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        list(read_stills(tmp_path / "empty", 64))
