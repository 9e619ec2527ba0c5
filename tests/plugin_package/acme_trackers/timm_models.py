"""A model that is registered with timm alone, as packages for timm do it, with weights in timm's terms."""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

import correlation_aware as ca
from acme_trackers.models import acme_tiny_track

default_cfgs = generate_default_cfgs(
    {
        "acme_timm_track.demo": {
            "file": str(Path(__file__).with_name("acme_tiny_track.safetensors")),
            "input_size": (3, 128, 128),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "num_classes": 0,
            "license": "apache-2.0",
        }
    }
)


@register_model
def acme_timm_track(pretrained: bool = False, **kwargs: Any) -> ca.TrackModel:
    """Acme's tracker once more."""
    return build_model_with_cfg(
        acme_tiny_track, "acme_timm_track", pretrained, kwargs_filter=("num_classes",), **kwargs
    )
