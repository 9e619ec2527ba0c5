"""A zoo of two-input feature networks for visual tracking: search features that already know the target."""

from correlation_aware._version import __version__
from correlation_aware.models.heads import TrackOutput
from correlation_aware.models.sbt import SBTConfig, TemplateState
from correlation_aware.pretrained import load_pretrained, save_pretrained
from correlation_aware.tracking.tracker import TrackerConfig, TrackResult, create_tracker
from correlation_aware.zoo import create_model, from_pretrained, list_models

__all__ = [
    "SBTConfig",
    "TemplateState",
    "TrackOutput",
    "TrackResult",
    "TrackerConfig",
    "__version__",
    "create_model",
    "create_tracker",
    "from_pretrained",
    "list_models",
    "load_pretrained",
    "save_pretrained",
]
