"""Stills in tar shards and folders, and the pool they fill."""

import io
import logging
import multiprocessing
import tarfile
import time

import cv2
import numpy as np
import pytest
import torch

from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.stills import files
from correlation_aware.data.stills import pool as pools
from correlation_aware.data.stills.files import Still, read_stills
from correlation_aware.data.stills.geometry import Region, place, rounded_outline
from correlation_aware.data.stills.pool import ImagePool, analyze, read_pool
from correlation_aware.data.stills.sampling import sample


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


def test_files_that_claim_more_than_a_shard_has_are_left_out(tmp_path, caplog, monkeypatch):
    pytest.importorskip("webdataset")
    content = image_bytes((40, 40, 3))
    entries = [("1.jpg", content), ("2.jpg", bytes(9000)), ("2.txt", bytes(9000))]
    write_shard(tmp_path / "a.tar", entries)
    sparse = tarfile.TarInfo("3.jpg")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)  # the only part of the file
    header[483:495] = b"%011o\0" % (8 << 30)  # its size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    end = sum(512 + len(data) + -len(data) % 512 for _, data in entries)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:end] + header + bytes(512) + bytes(1024))
    monkeypatch.setattr(files, "MOST_BYTES", 8000)
    errors = ErrorBudget(limit=5)
    with caplog.at_level(logging.WARNING):
        (still,) = read_stills(str(tmp_path / "a.tar"), 100, errors)
    assert still.image.shape == (40, 40, 3)
    assert "2.jpg, which cannot be read (a file of 9000 bytes; images have at most 8000" in caplog.text
    assert "3.jpg, which cannot be read (a sparse file of 8589934592 bytes" in caplog.text


def test_encoded_images_in_memory_are_limited(monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 100)
    entries = [(str(i), "", bytes(30), None) for i in range(7)]
    assert [len(chunk) for chunk in files._chunks(entries)] == [4, 3]
    assert [len(chunk) for chunk in files._chunks([("", "", b"", None)] * 600)] == [256, 256, 88]


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


def tensors(pool):
    return {name: value for name, value in vars(pool).items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def pets(tmp_path):
    """A folder of three photographs, one with a mask, and a damaged one."""
    for name in ("cats/1.jpg", "cats/2.jpg", "dogs/1.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(image_bytes((60, 80, 3), name[-4:], len(name)))
    (tmp_path / "pets" / "dogs" / "1.mask.png").write_bytes(object_mask(60, 80))
    (tmp_path / "pets" / "dogs" / "2.jpg").write_bytes(b"broken")
    return tmp_path / "pets"


def test_a_cache_has_the_pool_and_what_was_left_out(pets, tmp_path, monkeypatch):
    sources, cache = {str(pets): 2.0}, tmp_path / "cache"
    expected, first = tensors(read_pool(sources, 64)), ErrorBudget(1)
    made = tensors(read_pool(sources, 64, errors=first, cache=cache))
    with monkeypatch.context() as patch:
        patch.setattr(pools, "analyze", None)  # not called again
        second = ErrorBudget(1)
        again = tensors(read_pool(sources, 64, errors=second, cache=cache))
        assert (second.damaged, second.files) == (first.damaged, 4) and first.files == 4
        for pool in (made, again):
            assert expected.keys() == pool.keys()
            assert all(torch.equal(expected[name], value) for name, value in pool.items())
        with pytest.raises(RuntimeError, match=r"2\.jpg cannot be read"):
            read_pool(sources, 64, errors=ErrorBudget(0), cache=cache)
    (pets / "cats" / "2.jpg").write_bytes(image_bytes((90, 80, 3)))
    assert read_pool(sources, 64, cache=cache).height[1, 0] == 64
    assert read_pool(sources, 32, cache=cache).height.max() == 32
    assert len([path for path in cache.iterdir() if path.is_dir()]) == len(list(cache.iterdir())) == 3


def test_of_several_processes_one_analyzes(pets, tmp_path, monkeypatch):
    log, prepare = tmp_path / "log", pools._prepare

    def logged(*args, **kwargs):
        with log.open("a") as file:
            file.write("photograph\n")
        time.sleep(0.2)  # the others arrive meanwhile
        return prepare(*args, **kwargs)

    monkeypatch.setattr(pools, "_prepare", logged)
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)

    def read():
        together.wait()
        assert len(read_pool({str(pets): 1.0}, 64, cache=tmp_path / "cache")) == 3

    processes = [context.Process(target=read) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0] and log.read_text().count("\n") == 3


def test_a_pool_of_more_than_two_billion_pixels_is_sampled_at_its_end(pets, tmp_path):
    small = read_pool({str(pets): 1.0}, 64)
    count, last = len(small.pixels), 2**31 + 1000
    with (tmp_path / "pixels.bin").open("wb") as file:  # a hole, then the photographs
        file.seek(4 * last)
        file.write(small.pixels.numpy().tobytes())
    pixels = torch.from_file(str(tmp_path / "pixels.bin"), shared=False, size=last + count, dtype=torch.int32)
    large = ImagePool.analyzed(pixels, analyze([Still(np.zeros((8, 8, 3), np.uint8))] * 3, lambda _: None))
    for name, value in tensors(small).items():
        setattr(large, name, value)
    large.pixels, large.offset = pixels, small.offset + last
    images = torch.arange(3)
    half = small.sizes(images) / 2
    region = Region(images, half, half, rounded_outline(3), torch.zeros(3, dtype=torch.bool))
    placement = place(half, torch.full((3, 2), 16.0), torch.full((3,), 0.5))
    results = [sample(pool, region, placement, (32, 32)).rgb for pool in (small, large)]
    assert torch.equal(*results) and results[0].std() > 10
