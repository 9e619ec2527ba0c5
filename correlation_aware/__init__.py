"""A zoo of two-input feature networks for visual tracking: search features that depend on the target."""

from correlation_aware._help import is_help
from correlation_aware._version import __version__

if not is_help():  # whose import also registers the models with timm
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
