"""The bridge to timm: descriptions of models in timm's terms, and our names in timm's registry."""

import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import timm.models
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import DefaultCfg, PretrainedCfg
from torch import nn

from correlation_aware import weights
from correlation_aware.models.contract import Sizes, TwoInputModel, find_first_conv
from correlation_aware.models.registry import EntryPoint
from correlation_aware.models.tracker import TrackModel
from correlation_aware.weights import WeightsEntry

__all__ = ["check_overlay", "derive_pretrained_cfg", "register_with_timm"]

# fields that follow from the model itself
DERIVED = ("input_size", "template_size", "template_factor", "search_factor", "first_conv", "classifier")


def derive_pretrained_cfg(
    architecture: str, network: Any, model: Any, entry: WeightsEntry | None, described: Mapping[str, Any]
) -> dict[str, Any]:
    """timm's description of a model: sizes and modules from the model itself, the rest from its weights.

    Args:
        architecture: Registered name.
        network: What that name builds.
        model: The same, or its wrapper with `features_only`.
        entry: The weights' entry of the manifest, if they have one.
        described: Fields that somebody set or saved.
    """
    channels = getattr(network, "in_chans", 3)
    mean = entry.mean if entry else IMAGENET_DEFAULT_MEAN
    std = entry.std if entry else IMAGENET_DEFAULT_STD
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "tag": entry.tag if entry else None,
        "hf_hub_id": entry.repository if entry else None,
        "mean": tuple(mean) if channels == 3 else (sum(mean) / len(mean),) * channels,
        "std": tuple(std) if channels == 3 else (sum(std) / len(std),) * channels,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "num_classes": getattr(model, "num_classes", 0),
        "license": entry.license if entry else None,
        **getattr(network, "default_data_cfg", {}),
    }
    derived: dict[str, Any] = {"first_conv": find_first_conv(model), "classifier": _classifier_name(model)}
    sizes = getattr(model, "sizes", None)
    if sizes is not None:
        feature_side = -(-sizes.search_size // model.feature_info.reduction()[-1])
        derived |= {
            "input_size": (channels, sizes.search_size, sizes.search_size),
            "template_size": (channels, sizes.template_size, sizes.template_size),
            "template_factor": sizes.template_factor,
            "search_factor": sizes.search_factor,
            "pool_size": (feature_side, feature_side),
        }
    else:
        cfg.setdefault("input_size", (channels, 224, 224))
        cfg["input_size"] = (channels, *tuple(cfg["input_size"])[1:])
        if hasattr(network, "feature_info"):
            reduction = network.feature_info.reduction()[-1]
            cfg["pool_size"] = tuple(-(-side // reduction) for side in cfg["input_size"][1:])
    for key, value in described.items():
        if value is None or key in ("architecture", "source", "num_classes"):
            continue
        value = tuple(value) if isinstance(value, list) else value
        if key in DERIVED and key in derived:
            continue  # what the model itself says
        cfg[key] = value
    return {**cfg, **derived}


def _classifier_name(model: nn.Module) -> str | None:
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    return next((name for name, module in model.named_modules() if name and module is classifier), None)


def check_overlay(model: Any, overlay: Mapping[str, Any]) -> None:
    """Refuses an overlay of what the model itself determines; arguments of `create_model` change that.

    Raises:
        ValueError: A value that contradicts the model.
    """
    for key in DERIVED:
        value = overlay.get(key)
        actual = model.pretrained_cfg.get(key)
        if value is not None and (tuple(value) if isinstance(value, list) else value) != actual:
            raise ValueError(
                f"pretrained_cfg_overlay: {key}={value!r}, but the model has {actual!r}. Sizes are arguments "
                "of create_model, such as search_size=192."
            )


def register_with_timm(name: str, function: EntryPoint, create_model: Callable[..., nn.Module]) -> None:
    """Makes `timm.create_model(name)` and timm's lists know a name of ours.

    Args:
        name: Name of the model.
        function: Function that builds it.
        create_model: The zoo's function that timm calls in its place, which also loads weights.

    Raises:
        ValueError: timm has a model of that name.
    """
    if timm.models.is_model(name):
        raise ValueError(f"timm knows a model {name!r} already; two models cannot share a name.")

    def entrypoint(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **kwargs: Any,
    ) -> nn.Module:
        kwargs.pop("pretrained_model_args", None)  # saved arguments, which are in kwargs too
        return create_model(
            name,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=pretrained_cfg_overlay,
            cache_dir=cache_dir,
            **kwargs,
        )

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = function.__module__
    entrypoint.__doc__ = function.__doc__
    module = sys.modules[function.__module__]
    data = _data_cfg(function)
    cfgs = {e.tag: _timm_cfg(e, data) for e in weights.known_entries().values() if e.model == name}
    tags: deque[str] = deque(cfgs or [""])
    listed = getattr(module, "__all__", None)
    defaults = module.__dict__.setdefault("default_cfgs", {})
    if name not in defaults:
        defaults[name] = DefaultCfg(
            tags=tags, cfgs=cfgs or {"": PretrainedCfg(**data)}, is_pretrained=bool(cfgs)
        )
    timm.models.register_model(entrypoint)
    if listed is None:
        del module.__dict__["__all__"]  # timm adds one


def _data_cfg(function: EntryPoint) -> dict[str, Any]:
    """What can be said of a model's input before it is built, from the class that its function returns."""
    try:
        kind = get_type_hints(function).get("return", object)
    except NameError:
        kind = object
    if isinstance(kind, type) and issubclass(kind, (TwoInputModel, TrackModel)):
        side = Sizes().search_size
        return {"input_size": (3, side, side), "interpolation": "bilinear", "crop_pct": 1.0, "num_classes": 0}
    data: dict[str, Any] = dict(getattr(kind, "default_data_cfg", {}))
    return data


def _timm_cfg(entry: WeightsEntry, data: Mapping[str, Any]) -> PretrainedCfg:
    cfg = PretrainedCfg(
        **data,
        hf_hub_id=entry.repository,
        hf_hub_filename=entry.file if entry.source == "hub" else None,
        url=entry.url,
        file=str(entry.root / entry.file) if entry.source == "bundled" else None,
        mean=entry.mean,
        std=entry.std,
        license=entry.license,
    )
    if entry.search_size:
        cfg.input_size = (3, entry.search_size, entry.search_size)
    return cfg
