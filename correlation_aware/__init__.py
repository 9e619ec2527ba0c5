"""A zoo of two-input feature networks for visual tracking: search features that already know the target."""

from pathlib import Path

from correlation_aware._version import __version__

# In a checkout `adapters/` stands beside the package; installed, it is `correlation_aware.adapters`.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").is_file() and (_checkout / "adapters").is_dir():
    __path__.append(str(_checkout))

from correlation_aware.models.heads import TrackOutput  # noqa: E402
from correlation_aware.models.sbt import SBTConfig, TemplateState  # noqa: E402
from correlation_aware.pretrained import load_pretrained, save_pretrained  # noqa: E402
from correlation_aware.tracking.tracker import TrackerConfig, TrackResult, create_tracker  # noqa: E402
from correlation_aware.zoo import create_model, from_pretrained, list_models  # noqa: E402

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
