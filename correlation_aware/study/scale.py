"""The small scales at which variants are trained: fewer channels and smaller images.

Depths, positions of EoC-CA blocks, strides, reductions and crop factors stay: the pattern is that of the
paper, the width and the number of tokens are not. A ResNet-50, whose width is fixed, becomes timm's
`test_resnet` (0.4 M parameters), with batch norms that are trained, since its weights are random. The mixer
head, whose layers over locations learn slowly, becomes the cell head.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from correlation_aware.models.contract import Sizes
from correlation_aware.models.sbt import BASE, LARGE, LIGHT, SMALL
from correlation_aware.models.siamese import SiameseConfig
from correlation_aware.study.settings import Setting

__all__ = ["SCALES", "SMALL_CNN", "Scale", "at_scale", "check_scale"]


class Scale(NamedTuple):
    """What the channels and the image sizes of the paper are divided by."""

    width: int
    image: int


SCALES = {"paper": Scale(1, 1), "small": Scale(8, 2), "tiny": Scale(8, 4)}
SMALL_CNN = "test_resnet"
DIMS = {
    f"sbt_{size}_track": variant.config.dims
    for size, variant in (("light", LIGHT), ("small", SMALL), ("base", BASE), ("large", LARGE))
}


def check_scale(name: str) -> Scale:
    """The scale of a name.

    Raises:
        ValueError: An unknown scale.
    """
    if name not in SCALES:
        raise ValueError(f"scale={name!r} is not one of {', '.join(SCALES)}.")
    return SCALES[name]


def at_scale(setting: Setting, name: str) -> Setting:
    """A setting with fewer channels and smaller images.

    Args:
        setting: Setting with the channels and sizes of the paper.
        name: `paper` for the setting as it is, `small` for an eighth of the channels and half the image
            sizes, `tiny` for an eighth of the channels and a quarter of the image sizes.

    Raises:
        ValueError: An unknown scale, or a model of another family than `sbt` and `siamese`.
    """
    width, image = check_scale(name)
    if (width, image) == (1, 1):
        return setting
    overrides: dict[str, Any] = dict(setting.overrides)
    for key in ("template_size", "search_size"):
        overrides[key] = overrides.get(key, getattr(Sizes(), key)) // image
    if setting.model in DIMS:
        dims = overrides.get("dims", DIMS[setting.model])
        overrides["dims"] = tuple(dim // width for dim in dims)
        overrides.setdefault("head", "cell")
    elif setting.model.startswith("siam_"):
        default = SiameseConfig()
        overrides["dim"] = default.dim // width
        if "_ca_" in setting.model:
            overrides["heads"] = default.heads // 2
        else:
            overrides["crop"] = max(3, default.crop // image)
        if "resnet" in setting.model:
            overrides |= {"backbone": SMALL_CNN, "frozen_norms": False}
        else:
            overrides["backbone_dims"] = tuple(dim // width for dim in BASE.config.dims)
    else:
        raise ValueError(f"{setting.name}: there is no small scale of {setting.model}.")
    return replace(setting, overrides=overrides)
