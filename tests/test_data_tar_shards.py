"""Videos in tar shards: packed from a dataset, and read from disk and from a web server."""

import http.server
import re
import tarfile
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from correlation_aware.cli import app
from correlation_aware.data import shard_files
from correlation_aware.data.error_budget import ErrorBudget
from correlation_aware.data.videos.pack import pack_videos
from correlation_aware.data.videos.sequences import AnnotationError, Folder, read_frame
from correlation_aware.data.videos.subsets import VideoSet, open_videos
from correlation_aware.data.videos.tar_shards import TarShards
from correlation_aware.data.videos.video_pairs import VideoPairs
from correlation_aware.models.contract import Sizes

webdataset = pytest.importorskip("webdataset")

NAMES = ("a/one.v2", "a/two", "b/three")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three videos of four frames, 160 x 120 px; the target of the second frame is invisible."""
    root, random = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for i in range(4):
            image = cv2.resize(random.integers(0, 256, (6, 8, 3), dtype=np.uint8), (160, 120))
            cv2.imwrite(str(root / name / f"{i}.jpg"), image)
        boxes = ["40.25,30,50,40", "nan,nan,nan,nan", "42,31,50,40", "44,33,50,41"]
        (root / name / "groundtruth.txt").write_text("\n".join(boxes))
    return root


@pytest.fixture
def packed(videos, tmp_path):
    """The videos in two shards, two in the first one."""
    return pack_videos(Folder(videos), tmp_path / "shards", 30_000)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, and parts of them; adds the bytes that were sent to `server.sent`."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.server.failures:
            self.server.failures -= 1
            return self.send_error(503)
        if not part or not self.server.has_parts or not path.is_file():
            return super().do_GET()
        data = path.read_bytes()
        first, last = int(part[1]), min(int(part[2]), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])
        self.server.sent += last + 1 - first

    def log_message(self, *args):
        pass


@pytest.fixture
def server(packed):
    """A web server of the shards."""
    folder = str(packed.shards[0].parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Handler(*args, directory=folder))
    server.has_parts, server.failures, server.sent = True, 0, 0
    server.url = f"http://127.0.0.1:{server.server_port}/videos-{{000000..000001}}.tar"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def batch(dataset):
    return VideoPairs([(dataset, 1.0)], 4, Sizes(32, 64), workers=2).batch(3)


def test_shards_give_the_pairs_of_the_dataset_on_disk_and_from_a_server(videos, packed, server):
    assert [path.name for path in packed.shards] == ["videos-000000.tar", "videos-000001.tar"]
    assert (packed.videos, packed.frames, packed.left_out) == (3, 12, {})
    expected = batch(Folder(videos))
    for location in (packed.location, f"tar:{server.url}"):
        actual = batch(open_videos(location))
        assert all(torch.equal(a, b) for a, b in zip(actual, expected))
    assert 0 < server.sent < 0.7 * sum(path.stat().st_size for path in packed.shards)  # frames alone
    (one,) = open_videos(packed.location, VideoSet(names=("three",)))
    assert one.name.endswith("videos-000001.tar: b/three") and one.visible.tolist() == [1, 0, 1, 1]
    assert one.boxes[0].tolist() == [40.25, 30, 50, 40] and read_frame(one.frames[3]).shape == (120, 160, 3)


def test_a_sample_of_webdataset_is_a_video(packed):
    samples = list(webdataset.WebDataset([str(path) for path in packed.shards], shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["a/one_v2", "a/two", "b/three"]
    names = ["groundtruth.txt", *(f"{i:08d}.jpg" for i in range(4))]
    assert all([key for key in s if not key.startswith("__")] == names for s in samples)


def test_shards_without_an_index_are_read_whole_once(packed, server):
    for path in packed.shards:
        path.with_name(path.name + ".index.json").unlink()
    for root in (packed.location.removeprefix("tar:"), server.url):
        dataset = TarShards(root)
        assert dataset.names == ["a/one_v2", "a/two", "b/three"] and not dataset.damaged
        assert [len(dataset[i].frames) for i in range(3)] == [4, 4, 4]


@pytest.mark.parametrize("has_index", [True, False])
def test_a_truncated_shard_and_damaged_members_are_named(packed, has_index):
    whole, short = packed.shards
    member = TarShards(str(whole))[0].frames[2]
    data = bytearray(whole.read_bytes())
    data[member.offset : member.offset + 4] = b"xxxx"
    whole.write_bytes(data)
    short.write_bytes(short.read_bytes()[: TarShards(str(short))[0].frames[1].offset + 9])
    if not has_index:
        short.with_name(short.name + ".index.json").unlink()
    dataset = open_videos(packed.location)
    assert list(dataset.damaged) == [str(short)] and len(dataset[2].frames) == 1
    errors = ErrorBudget(quiet=True)
    pairs = VideoPairs([(dataset, 1.0)], 16, Sizes(32, 64), errors=errors)
    for number in range(4):
        pairs.batch(number)
    assert set(errors.damaged) == {str(short), f"{whole}: a/one_v2.00000002.jpg"}
    result = CliRunner().invoke(app, ["train", "check", packed.location])
    assert "3 videos, 9 frames" in result.output
    assert f"left out: {short} (" in result.output.replace("\n", "")


def test_a_damaged_header_is_not_the_end(packed):
    shard = packed.shards[0]
    shard.with_name(shard.name + ".index.json").unlink()
    with tarfile.open(shard) as tar:
        header = tar.getmembers()[7].offset
    data = bytearray(shard.read_bytes())
    data[header + 148 : header + 156] = b"99999999"  # the checksum
    shard.write_bytes(data)
    dataset = TarShards(str(shard))
    assert f"header at byte {header}" in dataset.damaged[str(shard)] and len(dataset[0].frames) == 4


def test_what_cannot_be_packed_is_left_out_and_named(videos, tmp_path):
    class Some(Folder):
        def __getitem__(self, index):
            if index == 1:
                raise AnnotationError("two lines too many")
            video = super().__getitem__(index)
            if index == 2:
                video.frames[0] = video.frames[0].with_name("missing.jpg")
            return video

    packed = pack_videos(Some(videos), tmp_path)
    assert packed.location == f"tar:{tmp_path / 'videos-000000.tar'}" and packed.frames == 7
    assert packed.left_out["video a/two"] == "two lines too many"
    assert any(name.endswith("missing.jpg") for name in packed.left_out)
    assert open_videos(packed.location)[1].visible.tolist() == [0, 1, 1]  # lines of their frames
    with pytest.raises(ValueError, match="has shards already"):
        pack_videos(Folder(videos), tmp_path)


def test_pack_and_check_on_the_command_line(videos, tmp_path):
    result = CliRunner().invoke(app, ["train", "pack", f"folder:{videos}", "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "3 videos with 12 frames in 1 shards: tar:" in result.output.replace("\n", "")
    shard = tmp_path / "out" / "videos-000000.tar"
    result = CliRunner().invoke(app, ["train", "check", f"tar:{shard}"])
    assert result.exit_code == 0, result.output
    assert "3 videos, 12 frames, 4 frames per video" in result.output and "visible in 75.0%" in result.output


def test_errors_of_shards(packed, server, tmp_path, monkeypatch):
    for root in ("missing.tar", server.url.replace("videos", "missing")):
        with pytest.raises(FileNotFoundError, match=r"There is no shard .*missing"):
            TarShards(root)
    with pytest.raises(ValueError, match="could run a program"):
        TarShards("pipe:cat videos.tar")
    monkeypatch.setattr(shard_files, "WAITS", (0.0, 0.0))
    server.failures = 2
    assert len(TarShards(server.url)) == 3  # at the third try
    server.failures = 9
    with pytest.raises(ConnectionError, match=r"videos-000000\.tar cannot be read: .*503"):
        TarShards(server.url)
    server.has_parts, server.failures = False, 0
    with pytest.raises(ValueError, match="sends whole files only"):
        TarShards(server.url)
    with packed.shards[0].open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match="Delete the index, or write the shard again"):
        open_videos(packed.location)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(FileNotFoundError, match="has no videos"):
        TarShards(str(tmp_path / "empty.tar"))


@pytest.mark.parametrize(
    "samples",
    [
        "[" * 100_000,
        "[]",
        '{"v": 3}',
        '{"v": {"groundtruth.txt": "ab"}}',
        '{"v": {"groundtruth.txt": [0, 3, 4]}}',
        '{"v": {"groundtruth.txt": [0.5, 3]}}',
        '{"v": {"groundtruth.txt": [-5, 3]}}',
        '{"v": {"groundtruth.txt": [512, -3]}}',
        '{"v": {"00000000.jpg": [99999999999999999999, -99999999999999999999]}}',
    ],
)
def test_an_index_of_something_else_is_named(packed, samples):
    shard = packed.shards[0]
    index = f'{{"bytes": {shard.stat().st_size}, "samples": {samples}}}'
    shard.with_name(f"{shard.name}.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"\.index\.json is not an index of a shard; delete it"):
        TarShards(str(shard))
