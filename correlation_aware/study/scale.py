"""The small scale at which variants are trained: an eighth of the channels, half the image sizes.

Depths, positions of EoC-CA blocks, strides, reductions, crop factors and heads stay: the pattern is that of
the paper, the width and the number of tokens are not. A ResNet-50, whose width is fixed, becomes timm's
`test_resnet` (0.4 M parameters), with batch norms that are trained, since its weights are random.
"""

from dataclasses import replace
from typing import Any

from correlation_aware.models.contract import Sizes
from correlation_aware.models.sbt import BASE, LARGE, LIGHT, SMALL
from correlation_aware.models.siamese import SiameseConfig
from correlation_aware.study.settings import Setting

__all__ = ["IMAGE", "SMALL_CNN", "WIDTH", "at_small_scale"]

WIDTH = 8  # divisor of channels
IMAGE = 2  # divisor of image sizes
SMALL_CNN = "test_resnet"
DIMS = {
    f"sbt_{size}_track": variant.config.dims
    for size, variant in (("light", LIGHT), ("small", SMALL), ("base", BASE), ("large", LARGE))
}


def at_small_scale(setting: Setting) -> Setting:
    """A setting with an eighth of the channels, for images of half the size.

    Raises:
        ValueError: A model of another family than `sbt` and `siamese`.
    """
    overrides: dict[str, Any] = dict(setting.overrides)
    for name in ("template_size", "search_size"):
        overrides[name] = overrides.get(name, getattr(Sizes(), name)) // IMAGE
    if setting.model in DIMS:
        dims = overrides.get("dims", DIMS[setting.model])
        overrides["dims"] = tuple(dim // WIDTH for dim in dims)
    elif setting.model.startswith("siam_"):
        default = SiameseConfig()
        overrides["dim"] = default.dim // WIDTH
        if "_ca_" in setting.model:
            overrides["heads"] = default.heads // 2
        else:
            overrides["crop"] = default.crop // IMAGE
        if "resnet" in setting.model:
            overrides |= {"backbone": SMALL_CNN, "frozen_norms": False}
        else:
            overrides["backbone_dims"] = tuple(dim // WIDTH for dim in BASE.config.dims)
    else:
        raise ValueError(f"{setting.name}: there is no small scale of {setting.model}.")
    return replace(setting, overrides=overrides)
