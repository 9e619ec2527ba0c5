"""Real video files, real folders, and the errors that name them."""

import importlib.util
import os
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from correlation_aware.tracking.video import VideoWriter, open_frames, write_image


def plain(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame of one color whose red is `level` and whose blue is its opposite."""
    return np.full((height, width, 3), (level, 60, 255 - level), np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "video.mp4", fps=24) as writer:
        for i in range(6):
            writer.write(plain(40 * i))
    return writer.path


def test_frames_keep_their_times(tmp_path: Path) -> None:
    """Of a file with a variable rate, or a camera that dropped frames; the first frame is the start."""
    pytest.importorskip("av")
    times = [*(i / 30 for i in range(10)), *(0.5 + 0.2 * i for i in range(5))]
    with VideoWriter(tmp_path / "video.mp4", fps=30) as writer:
        for i, time in enumerate(times):
            writer.write(plain(10 * i), time=7 + time)
    with open_frames(writer.path) as source:
        read = [source.time for _ in source]
    assert read == pytest.approx(times, abs=1e-4)  # a time stamp is about 1/90000 s


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "frames").mkdir()
    for i, name in enumerate(("frame2.png", "frame10.PNG", "frame101.bmp")):
        write_image(tmp_path / "frames" / name.lower(), plain(80 * i))
        (tmp_path / "frames" / name.lower()).rename(tmp_path / "frames" / name)
    (tmp_path / "frames" / "groundtruth.txt").write_text("1,2,3,4")
    (tmp_path / "frames" / "._frame1.png").write_bytes(b"left by another system")
    return tmp_path / "frames"


def test_a_written_video_reads_back_in_rgb(video: Path) -> None:
    with open_frames(video) as source:
        assert (source.name, source.fps, source.length) == (str(video), 24, 6)
        frames = list(source)
    assert len(frames) == 6
    for i, frame in enumerate(frames):
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        assert np.abs(frame.mean((0, 1)) - plain(40 * i)[0, 0]).max() < 6  # lossy


def sample_entry(path: Path) -> bytes:
    """The codec in the header of an .mp4 file: ISO/IEC 14496-12, box `stsd`."""
    content = path.read_bytes()
    start = content.index(b"stsd") + 16  # version, flags, number of entries, size of the first entry
    return content[start - 4 + 4 : start + 4]


@pytest.mark.parametrize("codec, entry", [("h264", b"avc1"), ("vp9", b"vp09"), ("mp4v", b"mp4v")])
def test_codecs(tmp_path: Path, codec: str, entry: bytes) -> None:
    if codec == "h264":
        pytest.importorskip("av")
    with VideoWriter(tmp_path / "video.mp4", 24, codec) as writer:
        for i in range(6):
            writer.write(plain(40 * i))
    assert sample_entry(writer.path) == entry
    frames = list(open_frames(writer.path))
    assert [round(float(frame[..., 0].mean()), -1) for frame in frames] == [0, 40, 80, 120, 160, 200]


def test_a_video_plays_in_a_browser_where_that_is_fast(video: Path) -> None:
    h264 = importlib.util.find_spec("av") is not None
    assert sample_entry(video) == (b"avc1" if h264 else b"mp4v")
    with pytest.raises(ValueError, match="codec='h265' is not one of h264, mp4v, vp9"):
        VideoWriter(video, codec="h265")


@pytest.mark.parametrize("codec", ["h264", "mp4v"])
def test_a_full_disk_is_an_error_and_keeps_the_file_before(tmp_path: Path, codec: str) -> None:
    resource = pytest.importorskip("resource")
    if codec == "h264":
        pytest.importorskip("av")
    path = tmp_path / "video.mp4"
    path.write_text("the one before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    frames = np.random.default_rng(0).integers(0, 256, (3, 240, 320, 3), np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # bytes of a file
    try:
        with pytest.raises(OSError, match=r"video|too large"), VideoWriter(path, codec=codec) as writer:
            for frame in frames:
                writer.write(frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "the one before" and list(tmp_path.iterdir()) == [path]


def test_a_codec_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", codec="mp4v") as writer:
        writer.write(plain(0))
    start, end = writer.path.read_bytes().split(b"mdat", 1)
    frames, header = end.split(b"moov", 1)
    header = header.replace(b"mp4v", b"av01").replace(b"esds", b"free")
    writer.path.write_bytes(start + b"mdat" + bytes(len(frames)) + b"moov" + header)
    with pytest.raises(ValueError, match=r"video\.mp4 has the codec av01, which .*ffmpeg -i"):
        open_frames(writer.path)


def test_names_that_opencv_cannot_open_are_refused(tmp_path: Path) -> None:
    """OpenCV ends the process with a segmentation fault."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/video\xff.mp4"))
    for use in (open_frames, VideoWriter):
        with pytest.raises(ValueError, match="is not UTF-8"):
            use(path)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["frame7.jpg", "frame9.png"])
def test_folders_and_broken_links_with_names_of_images_are_named(folder: Path, name: str) -> None:
    if name == "frame7.jpg":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=rf"{name} is a (folder|link to nothing) with the name of an image"):
        open_frames(folder)


def test_a_folder_is_read_in_natural_order_and_losslessly(folder: Path) -> None:
    with open_frames(str(folder)) as source:
        assert (source.fps, source.length) == (30, 3)
        for i, frame in enumerate(source):
            assert (frame == plain(80 * i)).all()
        assert next(source, None) is None  # read once, like a file


@pytest.mark.parametrize("limit, count", [(1, 1), (2, 2), (99, 3)])
def test_limit(folder: Path, limit: int, count: int) -> None:
    source = open_frames(folder, limit)
    assert source.length == count
    assert len(list(source)) == count


@pytest.mark.parametrize("height, width", [(49, 64), (48, 65), (49, 65), (16, 16)])
def test_odd_sizes_are_padded_to_even(tmp_path: Path, height: int, width: int) -> None:
    with VideoWriter(tmp_path / "odd.mp4") as writer:
        writer.write(plain(200, height, width))
    frame = next(open_frames(tmp_path / "odd.mp4"))
    assert frame.shape == (height + height % 2, width + width % 2, 3)


def test_frames_of_another_size_are_fitted_into_the_first(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "sizes.mp4") as writer:
        for size in ((48, 64), (96, 64), (24, 32), (300, 2)):
            writer.write(plain(250, *size))
    frames = list(open_frames(tmp_path / "sizes.mp4"))
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert frames[1][:, :28, 0].mean() > 200 > 60 > frames[1][:, 40:].max()  # half as wide, black beside
    assert frames[2][..., 0].mean() > 200


@pytest.mark.parametrize("fps", [0.5, 23.976023976, 29.97002997, 59.94, 1000])
def test_rates_survive(tmp_path: Path, fps: float) -> None:
    with VideoWriter(tmp_path / "rate.mp4", fps) as writer:
        for i in range(3):
            writer.write(plain(i))
    assert open_frames(tmp_path / "rate.mp4").fps == pytest.approx(fps, abs=1e-3)


def test_a_video_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_text("the one before")
    with pytest.raises(ZeroDivisionError), VideoWriter(path) as writer:
        writer.write(plain(0))
        raise ZeroDivisionError
    assert path.read_text() == "the one before"
    with VideoWriter(path):
        pass  # no frame, no file
    assert path.read_text() == "the one before"
    writer = VideoWriter(path)
    writer.write(plain(0))
    assert path.read_text() == "the one before"
    writer.close()
    assert len(list(open_frames(path))) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]


def test_images_are_written_in_the_formats_of_their_suffixes(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG", "c.webp"):
        write_image(tmp_path / name, plain(80))
        assert cv2.imread(str(tmp_path / name)).shape == (48, 64, 3)
    for name in ("d.txt", "d"):
        with pytest.raises(ValueError, match=rf"{name}: the name of the file must end in \.jpg, .*\.png"):
            write_image(tmp_path / name, plain(80))
    with pytest.raises(RuntimeError, match=r"OpenCV cannot write .*e\.webp \(20000 x 2\)"):  # its limit
        write_image(tmp_path / "e.webp", plain(80, 2, 20000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.PNG", "c.webp"]


@pytest.mark.parametrize("name", ["video.avi", "video", "missing/video.mp4", "folder.mp4"])
def test_a_video_that_cannot_be_written_fails_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises((ValueError, OSError), match=name.split("/")[-1]):
        VideoWriter(tmp_path / name)
    with pytest.raises(ValueError, match="-1"):
        VideoWriter(tmp_path / "video.mp4", fps=-1)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.mp4"]


def test_wrong_frames_are_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4") as writer:
        wrong: list[np.ndarray] = [
            plain(0)[..., 0],
            plain(0).astype(np.float32),
            np.zeros((8, 8, 4), np.uint8),
        ]
        for frame in wrong:
            with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
                writer.write(frame)


def test_errors_name_the_source_and_what_is_allowed(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "nothing").mkdir()
    for name, error, words in (
        ("absent.mp4", FileNotFoundError, "absent.mp4.*a video file, a folder of frames.*camera"),
        ("text.mp4", ValueError, "text.mp4.*a video file, a folder of frames.*camera"),
        ("empty.mp4", ValueError, "empty.mp4"),
        ("nothing", ValueError, r"nothing has no images.*\.jpg"),
        ("frames/frame2.png", ValueError, "a single image; pass the folder"),
    ):
        with pytest.raises(error, match=words):
            open_frames(tmp_path / name)
    with pytest.raises(ValueError, match="limit=0"):
        open_frames(folder, limit=0)
    with pytest.raises(ValueError, match="-1 is not the index of a camera"):
        open_frames(-1)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_the_error_of_a_broken_image_names_it(folder: Path, content: bytes) -> None:
    (folder / "frame7.jpg").write_bytes(content)
    source = open_frames(folder)
    assert len(list(islice(source, 1))) == 1
    with pytest.raises(ValueError, match=r"frame7\.jpg"):
        next(source)


@pytest.mark.parametrize("index", [3, "3"])
def test_a_camera_without_frames_raises(monkeypatch: pytest.MonkeyPatch, index: int | str) -> None:
    class Closed:
        def __init__(self, source: int) -> None:
            assert source == 3

        def isOpened(self) -> bool:
            return False

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Closed)
    with pytest.raises(RuntimeError, match="camera 3 cannot be opened"):
        open_frames(index)


def test_digits_are_a_camera_unless_they_are_written_as_a_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(folder.parent / "0")
    monkeypatch.chdir(folder.parent)
    assert open_frames("./0").length == open_frames(Path("0")).length == 3
