"""Trackers to compare with: a fixed box, those of OpenCV, NanoTrack, and those of other people."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np

from correlation_aware.evaluation.nanotrack import VERSIONS, NanoTrack
from correlation_aware.evaluation.one_pass import Array, Frame, OnePassTracker
from correlation_aware.evaluation.results import hash_files
from correlation_aware.tracking.tracker import Tracker, TrackResult
from correlation_aware.weights.files import hash_state_dict

__all__ = [
    "TRACKERS",
    "NamedTracker",
    "OpenCVTracker",
    "StillTracker",
    "create_baseline",
    "create_from_module",
]


@dataclass(frozen=True)
class NamedTracker:
    """A tracker with what identifies it in results.

    Attributes:
        name: Name for tables and folders of results.
        tracker: Tracker.
        weights: Name of the weights or their files, "" if it has none.
        sha256: SHA-256 of the weights, "" if it has none.
        settings: Settings that its boxes depend on.
        device: Device that it runs on.
        training_data: Records of the videos that the weights were trained on, as far as they are known.
    """

    name: str
    tracker: OnePassTracker
    weights: str = ""
    sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    training_data: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of_model(cls, tracker: Tracker) -> "NamedTracker":
        """Our tracker under the name of its model."""
        settings = {
            "weights": str(tracker.weights_name),
            "sizes": asdict(tracker.model.sizes),
            "runtime": tracker.session.runtime,
            "dtype": str(tracker.session.dtype),
            "config": asdict(tracker.config),
        }
        if tracker.session.exported is not None:  # files that may differ from the model
            settings["exported"] = hash_files(tracker.session.files)
        sha256, device = hash_state_dict(tracker.model.state_dict()), str(tracker.device)
        weights, records = str(tracker.weights_name), tracker.model.training_data
        return cls(tracker.name, tracker, weights, sha256, settings, device, records)


class StillTracker:
    """Returns the first box in every frame: the figures of a tracker that does nothing."""

    def init(self, frame: Frame, box: Array) -> None:
        self._box = tuple(float(value) for value in box)

    def update(self, frame: Frame) -> TrackResult:
        return TrackResult(self._box, 1.0, False)  # type: ignore[arg-type]


class OpenCVTracker:
    """A tracker of OpenCV, made anew for every sequence.

    The first box is rounded to whole pixels, since OpenCV takes no others. A frame without a box is a lost
    target, with the last box.

    Args:
        create: Function that makes an OpenCV tracker.
    """

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create

    def init(self, frame: Frame, box: Array) -> None:
        """Starts on the target in an RGB frame (H, W, 3); `box` is xywh in pixels."""
        x, y, w, h = (int(round(float(value))) for value in box)
        self._box = (float(x), float(y), float(w), float(h))
        self._tracker = self._create()
        self._tracker.init(np.ascontiguousarray(frame[..., ::-1]), (x, y, max(w, 1), max(h, 1)))

    def update(self, frame: Frame) -> TrackResult:
        """Box and score of the target in the next frame."""
        success, box = self._tracker.update(np.ascontiguousarray(frame[..., ::-1]))
        if success:
            x, y, w, h = (float(value) for value in box)
            self._box = (x, y, w, h)
        score = getattr(self._tracker, "getTrackingScore", lambda: float(success))()
        return TrackResult(self._box, float(np.clip(score, 0, 1)), not success)


def create_baseline(text: str) -> NamedTracker:
    """Creates a tracker from its description on the command line.

    Args:
        text: A key of `TRACKERS`, with its files after a colon, such as `opencv:nano:BACKBONE,HEAD`; or
            `module:factory`, a function or class without arguments that returns a tracker with `init(frame,
            box)` and `update(frame)`. The current folder is searched for the module too.

    Raises:
        ValueError: An unknown tracker, a wrong number of files, or a factory of something else.
        FileNotFoundError: No such file.
        ImportError: The module cannot be imported, or OpenCV has no such tracker.
    """
    for key, (names, create) in TRACKERS.items():
        if text == key or text.startswith(f"{key}:"):
            files = tuple(text[len(key) + 1 :].split(",")) if text != key else ()
            expected = f"{key}:{','.join(names)}" if names else key
            if len(files) != len(names) or not all(files):
                raise ValueError(f"--tracker {text}: expected {expected}")
            for file in files:
                if not os.path.isfile(file):
                    raise FileNotFoundError(f"--tracker {text}: there is no file {file}; expected {expected}")
            sha256 = hash_files(files) if files else ""
            return NamedTracker(
                key.replace(":", "-"), create(*files), ",".join(files), sha256, {"tracker": key}
            )
    tracker, source = _import_tracker(text)
    settings = {"tracker": text, "source": hash_files([source]) if source else None}
    return NamedTracker(text.replace(":", "."), tracker, settings=settings)


def _import_tracker(text: str) -> tuple[OnePassTracker, str | None]:
    """A tracker of somebody's module, and the file of the module."""
    known = (f"{key}:{','.join(names)}" if names else key for key, (names, _) in TRACKERS.items())
    return create_from_module(text, "--tracker", known, ("init(frame, box)", "update(frame)"))


def create_from_module(
    text: str, option: str, known: Iterable[str], methods: Sequence[str]
) -> tuple[Any, str | None]:
    """Creates an object of somebody's module, which is installed or in the current folder.

    Args:
        text: `module:factory`, a function or class without arguments.
        option: Option of the command line for messages, such as `--tracker`.
        known: Other values of the option, for messages.
        methods: Methods that the object needs, such as `update(frame)`.

    Returns:
        The object and the file of the module.

    Raises:
        ValueError: Not `module:factory`, no such function, or what it returns lacks a method.
        ImportError: The module cannot be imported.
    """
    path, colon, attribute = text.partition(":")
    if not colon or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", path) or not attribute.isidentifier():
        raise ValueError(f"{option} {text} is neither module:factory nor one of {', '.join(known)}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # a module that the user's own module imports
        raise ModuleNotFoundError(
            f"{option} {text}: there is no module {path} in the current folder or installed"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
        raise ValueError(f"{option} {text}: {path} has no function {attribute}; it has {', '.join(names)}")
    created = factory()
    if not all(callable(getattr(created, method.partition("(")[0], None)) for method in methods):
        raise ValueError(
            f"{option} {text}: {attribute}() returned {type(created).__name__}, which is not a "
            f"{option.lstrip('-')}: it needs {' and '.join(methods)}"
        )
    return created, getattr(module, "__file__", None)


def _opencv(name: str, **fields: str) -> OpenCVTracker:
    """A tracker of OpenCV by the stem of its class, with files as fields of its parameters."""
    if not hasattr(cv2, f"Tracker{name}_create"):
        stems = (re.fullmatch(r"Tracker(\w+)_create", key) for key in vars(cv2))
        known = ", ".join(sorted(stem[1] for stem in stems if stem))
        raise ImportError(
            f"OpenCV {cv2.__version__} as installed has no Tracker{name}; it has {known}. The package "
            "opencv-contrib-python-headless, in place of opencv-python-headless, has more."
        )
    create = getattr(cv2, f"Tracker{name}_create")
    arguments = []
    if fields:
        parameters = getattr(cv2, f"Tracker{name}_Params")()
        for field, file in fields.items():
            setattr(parameters, field, file)
        arguments.append(parameters)

    def make() -> Any:
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # a warning per network
        try:
            return create(*arguments)
        finally:
            cv2.utils.logging.setLogLevel(level)

    try:
        make()
    except cv2.error as error:
        raise ValueError(
            f"OpenCV's Tracker{name} cannot read {', '.join(fields.values())}: {error}"
        ) from error
    return OpenCVTracker(make)


# names of the files of each tracker, and the function that makes it from them
TRACKERS: dict[str, tuple[tuple[str, ...], Callable[..., OnePassTracker]]] = {
    "still": ((), StillTracker),
    "opencv:csrt": ((), lambda: _opencv("CSRT")),
    "opencv:kcf": ((), lambda: _opencv("KCF")),
    "opencv:mil": ((), lambda: _opencv("MIL")),
    "opencv:nano": (
        ("BACKBONE", "HEAD"),
        lambda backbone, head: _opencv("Nano", backbone=backbone, neckhead=head),
    ),
    "opencv:vit": (("MODEL",), lambda model: _opencv("Vit", net=model)),
}
for _version in VERSIONS:
    TRACKERS[f"nanotrack-{_version}"] = (
        ("BACKBONE", "HEAD"),
        lambda backbone, head, version=_version: NanoTrack(backbone, head, version),
    )
