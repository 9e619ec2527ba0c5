"""Random inputs of everything that users and files give the package, and the rule for their errors.

`TARGETS` has a strategy of hypothesis and a function for each kind of input. `attempt` calls the function: it
may return, or raise one of the documented errors by a `raise` of this package with a message that names the
value; anything else is a failure, such as an error of another library, more than `SECONDS`, or more than
`MEMORY`. test_reliability.py tries a few inputs, benchmarks/reliability.py tries them for hours.
"""

import copy
import io
import itertools
import json
import linecache
import math
import resource
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

import correlation_aware as ca
from correlation_aware import _images, weights
from correlation_aware.data.videos.readers import Coco, Folder
from correlation_aware.evaluation import attributes, layouts, vot
from correlation_aware.evaluation.benchmarks import open_benchmark
from correlation_aware.evaluation.report import make_report
from correlation_aware.evaluation.results import ResultFolder, describe_run
from correlation_aware.study.run import read_plan_steps, read_results
from correlation_aware.tracking.batch import read_jobs
from correlation_aware.tracking.frame_source import Selection
from correlation_aware.tracking.tracker import Tracker
from correlation_aware.tracking.video import VideoWriter, open_frames
from correlation_aware.training import run_state
from correlation_aware.training.average import average_checkpoints
from correlation_aware.training.classify import ClassifyTraining
from correlation_aware.training.config import load, to_yaml
from correlation_aware.training.log import RunLog
from correlation_aware.training.track import TrackTraining
from correlation_aware.weights.files import hash_state_dict
from correlation_aware.weights.loading import load_state_dict
from correlation_aware.weights.manifest import MANIFEST_PATH, load_manifest

SECONDS, MEMORY = 20, 1 << 30  # limits of one input: time of the processor, and memory
PACKAGE = str(Path(ca.__file__).parent)
ERRORS = {ValueError, KeyError, TypeError, RuntimeError, ConnectionError}  # and every OSError
BOX = (30.0, 20.0, 24.0, 18.0)


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        inputs: Strategy.
        run: Function of an input and an empty folder.
    """

    inputs: st.SearchStrategy[Any]
    run: Callable[[Any, Path], object]


def attempt(target: Target, value: Any, folder: Path) -> bool:
    """Gives the package one input; returns whether it was accepted.

    Raises:
        AssertionError: What happened is not what the package documents.
    """
    before, began = _peak(), time.process_time()
    error: BaseException | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.run(value, folder)
        except Exception as caught:
            error = caught
    seconds, memory = time.process_time() - began, _peak() - before
    assert memory < MEMORY, f"{memory >> 20} MiB"
    assert seconds < SECONDS, f"{seconds:.0f} s"
    if error is not None:
        _check(error)
    return error is None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _check(error: Exception) -> None:
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    file, text = trace.tb_frame.f_code.co_filename, str(error)
    if isinstance(error, AssertionError) and not file.startswith(PACKAGE):
        raise error  # of `run` itself
    if isinstance(error, OSError) and error.errno:  # of the operating system, which names the file
        assert error.filename or file.startswith(PACKAGE), repr(error)
        return
    line = linecache.getline(file, trace.tb_lineno).strip()
    by_us = file.startswith(PACKAGE) and line.startswith("raise ")
    allowed = type(error) in ERRORS or (by_us and isinstance(error, (ValueError, OSError)))
    place = f"{file}, line {trace.tb_lineno}: {line}"
    name = f"{type(error).__module__}.{type(error).__name__}"
    assert allowed and by_us and len(text.split()) > 3 and len(text) < 20_000, (
        f"{name}: {text[:300]} ({place})"
    )


# ---- strategies

texts = st.text(max_size=12) | st.sampled_from(
    [
        "",
        " ",
        ".",
        "..",
        "/",
        "../..",
        "a/b",
        "\0",
        "\ud800",
        "nan",
        "1e999",
        "9" * 5000,
        "pipe:true",
        "x" * 400,
    ]
)
numbers = (
    st.integers(-3, 300)
    | st.floats(width=64)
    | st.sampled_from([10**9, 2**31, 2**63, -(2**63), 10**30, 10**400, 1e308, 1e-320])
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def edited(draw: st.DrawFn, trees: st.SearchStrategy[Any]) -> Any:
    """A tree of dictionaries and lists, such as that of a JSON file, of which some places are changed."""
    tree = copy.deepcopy(draw(trees))
    for _ in range(draw(st.integers(1, 3))):
        node, places = tree, []
        while isinstance(node, (dict, list)) and node and (not places or draw(st.integers(0, 3))):
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            places.append((node, key))
            node = node[key]
        if not places:
            return draw(values)
        parent, key = places[-1]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            parent[key] = draw(values)
        elif action == "remove":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(texts)] = draw(values)
        else:
            parent.append(draw(values))
    return tree


@st.composite
def damaged(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """The content of a file, of which some bytes are changed, removed, repeated or added."""
    data = bytearray(draw(contents))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        if draw(st.booleans()):  # headers are short, and everything depends on them
            at = min(at, draw(st.integers(0, 200)))
        action = draw(st.sampled_from(["bytes", "number", "cut", "remove", "insert", "repeat"]))
        length = draw(st.integers(1, 64))
        if action == "bytes":
            new = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(new)] = new
        elif action == "number":
            code = draw(st.sampled_from(["<I", ">I", "<Q", ">Q", "<H", ">H"]))
            limit = 256 ** struct.calcsize(code)
            number = draw(st.sampled_from([0, 1, limit // 2 - 1, limit // 2, limit - 1, limit // 16]))
            data[at : at + struct.calcsize(code)] = struct.pack(code, number)
        elif action == "cut":
            del data[at:]
        elif action == "remove":
            del data[at : at + length]
        elif action == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=64))
        else:
            data[at:at] = data[at : at + length] * draw(st.sampled_from([1, 100]))
    return bytes(data)


def dumped(trees: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON of trees, and damaged JSON."""

    def dump(tree: Any) -> bytes:
        return json.dumps(tree).encode(errors="surrogatepass")

    whole = edited(trees).map(dump)
    return (
        whole
        | damaged(trees.map(dump))
        | st.sampled_from([b"", b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe{"])
    )


# ---- what is fuzzed: frames and images


@cache
def tracker() -> Tracker:
    torch.manual_seed(0)
    model = ca.create_model("sbt_test_track", template_size=32, search_size=64)
    return ca.create_tracker(model, device="cpu", config=ca.TrackerConfig(redetect=True))


@cache
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


DTYPES = (
    "u1",
    "u1",
    "u1",
    "?",
    "i1",
    "u2",
    ">u2",
    "i4",
    "i8",
    "f2",
    "f4",
    "f8",
    "c8",
    "O",
    "S3",
    "U3",
    "M8[s]",
    "V4",
)
USUAL = (
    (60, 80),
    (60, 80, 1),
    (60, 80, 3),
    (60, 80, 4),
    (3, 60, 80),
    (1, 1, 3),
    (1, 5000, 3),
    (60, 1),
    (7, 3000, 4),
)
SHAPES = st.sampled_from(USUAL) | st.lists(st.sampled_from([0, 1, 2, 3, 4, 7, 60, 80]), max_size=4).map(tuple)


def make_frame(shape: tuple[int, ...], dtype: str, form: str) -> Any:
    array = (
        np.zeros(shape, dtype)
        if dtype not in ("u1", "f4")
        else np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    )
    if form == "tensor":
        return torch.from_numpy(array) if dtype in ("u1", "f4", "i4", "?") else array
    if form == "masked":
        return np.ma.masked_array(array)
    if form == "matrix":
        return np.matrix(array) if array.ndim <= 2 and dtype == "u1" else array
    if form == "list":
        return array.tolist()
    if form == "strided":
        return array[::-1, ::2] if array.ndim > 1 else array
    if form == "read-only":
        array.flags.writeable = False
    if form == "broadcast" and array.ndim == 3:
        return np.broadcast_to(array[:1, :1], array.shape)
    return array


FORMS = ("array", "tensor", "masked", "matrix", "list", "strided", "read-only", "broadcast")
frames = st.one_of(
    st.builds(make_frame, st.sampled_from(USUAL), st.just("u1"), st.sampled_from(FORMS)),
    st.builds(make_frame, SHAPES, st.sampled_from(DTYPES), st.sampled_from(FORMS)),
    scalars,
)


@cache
def images() -> list[bytes]:
    """Small images of every kind that is read."""
    small = frame()[:24, :32]
    kinds = [(f".{kind}", small) for kind in ("jpg", "png", "bmp", "webp", "tif")]
    kinds += [
        (".png", small.astype(np.uint16) * 100),
        (".tif", small.astype(np.float32)),
        (".png", small[..., 0]),
    ]
    contents = [cv2.imencode(suffix, image)[1].tobytes() for suffix, image in kinds]
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, settings in (
        ("JPEG", {"exif": exif}),
        ("PNG", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
    ):
        file = io.BytesIO()
        Image.fromarray(small).save(file, kind, **settings)
        contents.append(file.getvalue())
    return contents


def run_frames(value: Any, folder: Path) -> None:
    kind, content, depth_range = value
    if kind == "image":
        path = folder / "frame.png"
        path.write_bytes(content)
        errors = []
        for read in (
            lambda: _images.read_image(path, depth_range),
            lambda: _images.decode_mask(content, str(path)),
            lambda: _images.image_size(path),
            lambda: next(open_frames(folder, depth_range=depth_range)),
        ):
            try:
                read()
            except Exception as error:
                _check(error)
                errors.append(error)
        if errors:
            raise errors[0]
        return
    follow = tracker()
    follow.init(frame(), BOX)
    errors = []
    for call in (
        lambda: follow.update(content),
        lambda: follow.init(content, BOX),
        lambda: list(open_frames([content])),
    ):
        try:
            call()
        except Exception as error:
            _check(error)
            errors.append(error)
    if errors:
        raise errors[0]
    result = follow.update(content)
    assert np.isfinite(result.box).all() and 0 <= result.score <= 1


ranges = st.none() | st.tuples(numbers, numbers) | st.just((0, 4095))
frame_inputs = st.tuples(st.just("frame"), frames, st.none()) | st.tuples(
    st.just("image"), damaged(st.deferred(lambda: st.sampled_from(images()))), ranges
)

# ---- boxes and settings of the tracker

coordinates = numbers | st.sampled_from([0, 1, 10, 30.5, 79, 80, 81, -5, math.nan, math.inf, -math.inf])
four = st.lists(coordinates, min_size=4, max_size=4)
near = st.floats(-20, 90) | st.sampled_from([1, 1e-3, 79.5, 60, 1e4, 1e9])
boxes = (
    four
    | st.lists(near, min_size=4, max_size=4)
    | st.lists(st.lists(near, min_size=4, max_size=4), min_size=1, max_size=5)
    | four.map(tuple)
    | st.lists(four, min_size=1, max_size=3)
    | st.builds(
        lambda box, code: _cast(box, code),
        four,
        st.sampled_from(["f4", "f2", "i4", "u1", "c8", "O", "S8", "M8[s]"]),
    )
    | st.lists(coordinates, max_size=6)
    | values
    | four.map(lambda box: torch.tensor([float(min(max(v, -1e30), 1e30)) for v in box]))
)
SETTINGS = tuple(ca.TrackerConfig.__dataclass_fields__)


def _cast(box: list[Any], code: str) -> Any:
    with np.errstate(all="ignore"):
        try:
            return np.array(box, float).astype(code)
        except (TypeError, ValueError, OverflowError):
            return np.array(box, object)


def run_boxes(value: Any, folder: Path) -> None:
    kind, content = value
    if kind == "config":
        config = ca.TrackerConfig(**content)
        follow = Tracker(tracker().session, config)
        follow.init(frame(), BOX)
        assert np.isfinite(follow.update(frame()).box).all()
    elif kind == "selection":
        start, every, limit = content
        list(itertools.islice(open_frames([frame()] * 3, limit, start=start, every=every), 4))
        Selection(start, every, limit).count(3)
    elif kind == "jobs":
        (folder / "jobs.csv").write_bytes(content)
        read_jobs(folder / "jobs.csv")
    else:
        follow = tracker()
        follow.init(frame(), content)
        follow.add(frame(), content)
        for result in follow.update(frame()):
            assert np.isfinite(result.box).all() and min(result.box[2:]) > 0 and 0 <= result.score <= 1


JOBS = b"video,frame,x,y,w,h,id,name\na.mp4,0,1,2,30,40,0,one\n\nframes/*.png,5,1.5,2,30,40,1,two\n"
box_inputs = (
    st.tuples(st.just("box"), boxes)
    | st.tuples(st.just("config"), st.dictionaries(st.sampled_from(SETTINGS), scalars, max_size=3))
    | st.tuples(
        st.just("selection"), st.tuples(scalars | st.sampled_from(["1:20", "0.5s", "2"]), scalars, scalars)
    )
    | st.tuples(st.just("jobs"), damaged(st.just(JOBS)))
)

# ---- videos


@cache
def videos() -> list[tuple[str, bytes]]:
    """Short videos in several containers and codecs, by their suffixes."""
    import tempfile

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, code in (
            (".mp4", "mp4v"),
            (".avi", "MJPG"),
            (".avi", "XVID"),
            (".webm", "VP80"),
            (".mkv", "mp4v"),
        ):
            path = Path(folder) / f"clip{suffix}"
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 25, (80, 60))
            for i in range(8):
                writer.write(np.roll(frame(), 3 * i, axis=1))
            writer.release()
            if path.is_file() and path.stat().st_size:
                found.append((suffix, path.read_bytes()))
        try:
            with VideoWriter(Path(folder) / "h264.mp4", codec="h264") as writer:
                for i in range(8):
                    writer.write(np.roll(frame(), 3 * i, axis=1))
            found.append((".mp4", (Path(folder) / "h264.mp4").read_bytes()))
        except ModuleNotFoundError:
            pass
    file = io.BytesIO()
    pictures = [Image.fromarray(np.roll(frame(), 3 * i, axis=1)) for i in range(4)]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:])
    return [*found, (".gif", file.getvalue())]


@st.composite
def damaged_videos(draw: st.DrawFn) -> tuple[str, bytes, int, int]:
    suffix, content = draw(st.sampled_from(videos()))
    if draw(st.integers(0, 9)) == 0:
        suffix = draw(st.sampled_from([".mp4", ".avi", ".webm", ".mov", ".ts", ""]))
    return suffix, draw(damaged(st.just(content))), draw(st.integers(0, 3)), draw(st.integers(1, 3))


NAMES = st.lists(
    st.text(st.sampled_from("0123456789.-_ abx²"), min_size=1, max_size=8).filter(lambda t: t[0] != "."),
    min_size=1,
    max_size=4,
    unique=True,
)


def run_videos(value: Any, folder: Path) -> None:
    if isinstance(value, list):  # names of frames
        content = images()[1]
        for name in value:
            (folder / f"{name}.png").write_bytes(content)
        with open_frames(folder) as source:
            assert sum(1 for _ in source) == len(value)
        return
    suffix, content, start, every = value
    path = folder / f"clip{suffix}"
    path.write_bytes(content)
    with open_frames(path, 40, start=start, every=every) as source:
        for image in source:
            assert image.dtype == np.uint8 and image.ndim == 3 and source.time >= 0


# ---- manifests


@cache
def manifest() -> dict[str, Any]:
    entries = json.loads(MANIFEST_PATH.read_text())
    return dict(list(entries.items())[:3] + list(entries.items())[-3:])


def run_manifests(value: bytes, folder: Path) -> None:
    path = folder / "weights.json"
    path.write_bytes(value)
    for entry in load_manifest(path).values():
        json.dumps(entry.to_json())


# ---- checkpoints


@cache
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


@cache
def checkpoints() -> list[tuple[str, bytes]]:
    tensors = network().state_dict()
    found = []
    for content, old in (
        (tensors, False),
        (tensors, True),
        ({"model": tensors, "epoch": np.float64(3), "args": [1, "a"]}, False),
        ({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, True),
        ({"0.weight": torch.nn.Parameter(torch.ones(3, 4)).t(), "s": torch.ones(3).to_sparse()}, False),
    ):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=not old)
        found.append((".pth", file.getvalue()))
    return found


ODD: dict[str, Callable[[], Any]] = {
    "weight": lambda: torch.ones(3, 4),
    "bias": lambda: torch.ones(3),
    "count": lambda: torch.tensor(3),
    "double": lambda: torch.ones(3, 4, dtype=torch.float64),
    "half": lambda: torch.ones(3, dtype=torch.bfloat16),
    "transposed": lambda: torch.ones(4, 3).t(),
    "expanded": lambda: torch.ones(1).expand(3, 4),
    "huge": lambda: torch.ones(1).expand(10**6, 10**6),
    "large": lambda: torch.ones(1).expand(10**5, 10**5),
    "empty": lambda: torch.ones(0, 10**12),
    "nan": lambda: torch.full((3,), math.nan),
    "whole": lambda: torch.ones(3, dtype=torch.int32),
    "complex": lambda: torch.ones(3, 4, dtype=torch.complex64),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "boolean": lambda: torch.ones(3, 4, dtype=torch.bool),
    "float8": lambda: torch.ones(3, 4).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.ones(3, 4).to_sparse(),
    "csr": lambda: torch.ones(3, 4).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(3, 4, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "parameter": lambda: torch.nn.Parameter(torch.ones(3)),
    "number": lambda: 3.5,
    "text": lambda: "x",
    "numpy": lambda: np.float64(1),
}


def _safetensors(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


@cache
def tensors_header() -> tuple[Any, bytes]:
    from safetensors.torch import save

    content = save(network().state_dict(), {"format": "pt"})
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@cache
def run_folder() -> dict[str, bytes]:
    """Files of a checkpoint of a training."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = copy.deepcopy(network())
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        facts = {"step": 1, "seconds": 1.5, "processes": 1, "accumulate": 1, "scale": {}}
        run_state.write_process_state(folder, 0)
        run_state.write_run_state(folder, model, optimizer, facts, model)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def run_checkpoints(value: Any, folder: Path) -> None:
    kind, content = value
    if kind == "run":
        for name, data in {**run_folder(), **content}.items():
            (folder / name).write_bytes(data)
        state = run_state.read_run_state(folder, 0)
        model = copy.deepcopy(network())
        generators = torch.get_rng_state(), np.random.get_state()
        try:
            state.restore(model, copy.deepcopy(model), torch.optim.AdamW(model.parameters()))
        finally:
            torch.set_rng_state(generators[0])
            np.random.set_state(generators[1])
        return
    path = folder / f"weights{kind}"
    path.write_bytes(content)
    tensors = weights.read_state_dict(path)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) < MEMORY
    errors = []
    for use in (
        lambda: load_state_dict(copy.deepcopy(network()), tensors, partial=True, source=str(path)),
        lambda: weights.write_state_dict(tensors, folder / "again.safetensors"),
        lambda: hash_state_dict(tensors),
    ):
        try:
            use()
        except Exception as error:
            _check(error)
            errors.append(error)
    if errors:
        raise errors[0]


@st.composite
def damaged_checkpoints(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(st.sampled_from(["pickle", "records", "tensors", "tensors", "header", "bytes", "run", "run"]))
    if kind == "tensors":
        names = [*network().state_dict(), "", "a b", 3, ("x",), "module"]
        content = draw(st.dictionaries(st.sampled_from(names), st.sampled_from(sorted(ODD)), max_size=7))
        tensors: Any = {name: ODD[odd]() for name, odd in content.items()}
        for key in draw(st.lists(st.sampled_from(["model", "state_dict", "net", "other", 1]), max_size=3)):
            tensors = {key: tensors, "best": np.float32(0.5)}
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=draw(st.booleans()))
        return draw(st.sampled_from([".pth", ".ckpt", ".bin"])), file.getvalue()
    if kind == "pickle":
        suffix, content = draw(st.sampled_from(checkpoints()))
        return suffix, draw(damaged(st.just(content)))
    if kind == "records":  # a zip archive that is whole, with a damaged record
        suffix, content = draw(st.sampled_from([c for c in checkpoints() if c[1][:2] == b"PK"]))
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(file, "w") as after:
            names = before.namelist()
            changed = draw(st.sampled_from(names))
            for name in names:
                data = before.read(name)
                after.writestr(name, draw(damaged(st.just(data))) if name == changed else data)
        return suffix, file.getvalue()
    header, data = tensors_header()
    if kind == "header":
        return ".safetensors", _safetensors(draw(edited(st.just(header))), data)
    if kind == "bytes":
        return ".safetensors", draw(damaged(st.just(_safetensors(header, data))))
    name = draw(st.sampled_from(sorted(run_folder())))
    content = run_folder()[name]
    if name.endswith(".json"):
        return "run", {name: draw(dumped(st.just(json.loads(content))))}
    return "run", {name: draw(damaged(st.just(content)))}


# ---- configurations


@cache
def saved_model() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        folder = ca.save_pretrained(ca.create_model("sbt_test_track"), name)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def model_configs() -> list[Any]:
    config = json.loads(saved_model()["config.json"])
    others = (
        "sbt_test",
        "sbt_test_cls",
        "siam_test_track",
        "supersbt_test_track",
        "onestream_vit_test_ce_track",
    )
    return [config, *({**config, "architecture": name} for name in others)]


ARGUMENTS = st.dictionaries(
    st.sampled_from(
        ["dims", "depths", "heads", "strides", "in_chans", "search_size", "template_size", "num_classes"]
        + ["head", "attention", "drop_path_rate", "mlp_ratios", "neck", "embed_dim", "channels", "depth"]
    ),
    values | st.lists(st.integers(-1, 10**9), max_size=4),
    max_size=3,
)


@cache
def trainings() -> list[str]:
    return [
        to_yaml(TrackTraining()),
        to_yaml(ClassifyTraining()),
        *(p.read_text() for p in sorted(Path(PACKAGE).glob("training/configs/*.yaml"))),
    ]


def bomb(depth: int) -> str:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines) + f"\nmodel: {{overrides: {{a: *a{depth - 1}}}}}\n"


YAML_PIECES = [
    "!!timestamp x",
    "!!int ''",
    "!!float 'a'",
    "? [a]\n: b",
    "2001-99-99",
    "!!binary '=='",
    "&a [*a]",
    "0x",
    "1:60",
    "!!set {a, [b]}",
]
yamls = (
    st.deferred(lambda: edited(st.sampled_from(trainings()).map(yaml.safe_load))).map(
        lambda t: yaml.safe_dump(t).encode(errors="surrogatepass")
    )
    | st.deferred(lambda: damaged(st.sampled_from(trainings()).map(str.encode)))
    | st.sampled_from(YAML_PIECES).map(lambda t: f"model:\n  overrides:\n    a: {t}\n".encode())
    | st.sampled_from(
        [
            b"[" * 100_000,
            b"[" * 900,
            b"- " * 5000,
            b"a: " * 2000,
            bomb(8).encode(),
            b"- a\n",
            b"\x00",
            b"model: {<<: 3}",
        ]
    )
)


def run_configs(value: Any, folder: Path) -> None:
    kind, content = value
    if kind == "model":
        for name, data in {**saved_model(), "config.json": content}.items():
            (folder / name).write_bytes(data)
        ca.create_model(folder, pretrained=True)
        return
    (folder / "config.yaml").write_bytes(content)
    errors = []
    for training in (TrackTraining, ClassifyTraining):
        try:
            to_yaml(load(training, folder / "config.yaml", kind))
        except Exception as error:
            _check(error)
            errors.append(error)
    if len(errors) == 2:
        raise errors[0]


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, ...]:
    keys = [
        "optimizer.lr",
        "schedule.steps",
        "model.overrides",
        "data.sources",
        "run",
        "loss",
        "optimizer.lora.rank",
        "",
        "a.b.c",
    ]
    return tuple(
        f"{draw(st.sampled_from(keys))}={draw(texts | numbers.map(str) | st.sampled_from(YAML_PIECES))}"
        for _ in range(draw(st.integers(0, 2)))
    )


config_inputs = st.tuples(changes(), yamls) | st.tuples(
    st.just("model"),
    st.deferred(
        lambda: dumped(
            st.builds(
                lambda tree, arguments: {**tree, "model_args": arguments},
                st.sampled_from(model_configs()),
                ARGUMENTS,
            )
            | st.sampled_from(model_configs())
        )
    ),
)

# ---- files of results and annotations

ROWS = "10,8,12,9\n11,8,12,9\n12,9,12,9\n"


@cache
def result_files() -> dict[str, bytes]:
    """A benchmark of one sequence in GOT-10k's layout and results of a tracker: contents by path."""
    files: dict[str, bytes] = {f"data/val/s/{i:08d}.jpg": images()[0] for i in (1, 2, 3)}
    files |= {"data/val/s/groundtruth.txt": ROWS.encode(), "data/val/list.txt": b"s\n"}
    files |= {"data/val/s/cover.label": b"8\n8\n8\n", "data/val/s/absence.label": b"0\n0\n0\n"}
    files["data/val/s/meta_info.ini"] = b"[METAINFO]\nurl: a\nobject_class: car\n"
    place = "out/GOT-10k/mine"
    files |= {f"{place}/s/s_001.txt": ROWS.encode(), f"{place}/s/s_time.txt": b"0\n0.1\n0.1\n"}
    files[f"{place}/s/s_score.txt"] = b"1\n0.5\n0.6\n"
    return files


@cache
def run_manifest() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        _write_files(Path(name), result_files())
        benchmark = open_benchmark("got10k", Path(name) / "data")
        return json.dumps(describe_run(benchmark, "mine", "", {"a": 1})).encode()


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "bbox": [1, 2, 20, 30], "iscrowd": 0}],
}
RESULT = {"table": "table7", "setting": "siam_dw", "seed": 0, "steps": 3, "params": 1, "macs": 1}
STUDY = {**RESULT, "training": {"schedule": {"steps": 3}}}
VOT = {
    "trackers": ["a"],
    "results": {"baseline": {"parameters": {"analyses": [{"type": "x.EAOScore"}]}, "results": [[[0.5]]]}},
}
LOG = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n'


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def run_results(value: Any, folder: Path) -> None:
    name, content = value
    _write_files(folder, {**result_files(), "out/GOT-10k/mine.json": run_manifest(), name: content})
    if name == "log.jsonl":
        with RunLog(folder, 1) as log:
            log.write({"step": 2})
    elif name == "annotations/instances_train2017.json":
        (folder / "train2017").mkdir()
        coco = Coco(folder)
        _ = coco.names, [coco[i] for i in range(len(coco))]
    elif name.startswith("study"):
        read_plan_steps(folder / "study")
        read_results(folder / "study")
    elif name == "vot.json":
        vot.read_measures(folder / name)
    elif name == "nfs.txt":
        layouts._Nfs([layouts._Entry("nfs", folder / name, folder / "data/val/s")], folder, "")[0]
    elif name == "average/config.json":
        _write_files(folder / "average", {k: v for k, v in saved_model().items() if k != "config.json"})
        _write_files(folder / "other", saved_model())
        average_checkpoints([folder / "average", folder / "other"], folder / "new")
    else:
        benchmark = open_benchmark("got10k", folder / "data")
        results = ResultFolder(folder / "out", benchmark, "mine")
        if name.startswith("out") and not name.endswith(".json"):
            results.read("s")  # which gives failures back
            return
        if name.endswith("mine.json"):
            results.start(describe_run(benchmark, "mine", "", {"a": 1}))
        video = benchmark[benchmark.names[0]]
        attributes.read_attributes(benchmark, {benchmark.names[0]: video})
        for dataset in (Folder(folder / "data" / "val" / "s"),):
            _ = dataset[0]
        make_report([str(folder / "out/GOT-10k/mine")], root=folder / "data")


result_inputs = st.deferred(
    lambda: st.one_of(
        *(
            damaged(st.just(content)).map(lambda c, n=name: (n, c))
            for name, content in result_files().items()
            if not name.endswith("jpg")
        ),
        dumped(st.just(json.loads(run_manifest()))).map(lambda c: ("out/GOT-10k/mine.json", c)),
        damaged(st.just(LOG)).map(lambda c: ("log.jsonl", c)),
        dumped(st.just(json.loads(LOG.splitlines()[0]))).map(lambda c: ("log.jsonl", c + b"\n" + LOG)),
        dumped(st.just(COCO)).map(lambda c: ("annotations/instances_train2017.json", c)),
        dumped(st.just(STUDY)).map(lambda c: ("study/study.json", c)),
        dumped(st.just(STUDY)).map(lambda c: ("study/results/x.json", c)),
        dumped(st.just(VOT)).map(lambda c: ("vot.json", c)),
        damaged(st.just(b"0 1 2 13 14 0 0\n0 1 2 13 14 0 0\n")).map(lambda c: ("nfs.txt", c)),
        dumped(st.just(json.loads(saved_model()["config.json"]))).map(lambda c: ("average/config.json", c)),
    )
)

TARGETS = {
    "frames": Target(frame_inputs, run_frames),
    "boxes": Target(box_inputs, run_boxes),
    "videos": Target(st.deferred(lambda: damaged_videos() | NAMES), run_videos),
    "manifests": Target(st.deferred(lambda: dumped(st.just(manifest()))), run_manifests),
    "checkpoints": Target(st.deferred(damaged_checkpoints), run_checkpoints),
    "configurations": Target(config_inputs, run_configs),
    "results": Target(result_inputs, run_results),
}
