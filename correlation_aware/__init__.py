"""A zoo of two-input feature networks for visual tracking: search features that depend on the target."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from correlation_aware._program import is_command_line
from correlation_aware._version import __version__

if TYPE_CHECKING or not is_command_line():  # these imports also register the models with timm
    from correlation_aware.data.videos.readers import register_reader
    from correlation_aware.data.videos.sequences import Video
    from correlation_aware.models.contract import Sizes, TemplateState, TwoInputModel
    from correlation_aware.models.heads import TrackOutput
    from correlation_aware.models.registry import register_head, register_model
    from correlation_aware.models.sbt import SBTConfig
    from correlation_aware.models.tracker import TrackModel
    from correlation_aware.tracking.stream import FrameResults, Tracking, track
    from correlation_aware.tracking.tracker import TrackerConfig, TrackResult, create_tracker
    from correlation_aware.weights import load_pretrained, register_weights, save_pretrained
    from correlation_aware.zoo import create_model, from_pretrained, list_models

# modules that have the public names
_PLACES = (
    *("zoo", "weights", "tracking.stream", "tracking.tracker", "data.videos.readers"),
    *("models.registry", "models.heads", "models.sbt"),
)

__all__ = [
    "FrameResults",
    "SBTConfig",
    "Sizes",
    "TemplateState",
    "TrackModel",
    "TrackOutput",
    "TrackResult",
    "TrackerConfig",
    "Tracking",
    "TwoInputModel",
    "Video",
    "__version__",
    "create_model",
    "create_tracker",
    "from_pretrained",
    "list_models",
    "load_pretrained",
    "register_head",
    "register_model",
    "register_reader",
    "register_weights",
    "save_pretrained",
    "track",
]


def __getattr__(name: str) -> Any:
    """A public name in the command line, which prints help and finds mistakes without PyTorch."""
    for place in _PLACES if name in __all__ else ():
        module = import_module(f"correlation_aware.{place}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
