"""The bridge to timm: descriptions of models in timm's terms, and our names in timm's registry."""

import difflib
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import timm.models
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import DefaultCfg, PretrainedCfg
from torch import nn

from correlation_aware import weights
from correlation_aware._fields import check_values
from correlation_aware.models.contract import Sizes, TwoInputModel, find_first_conv
from correlation_aware.models.registry import EntryPoint
from correlation_aware.models.tracker import TrackModel
from correlation_aware.weights import WeightsEntry

__all__ = ["check_described", "derive_pretrained_cfg", "register_with_timm"]

# fields that follow from the model itself
DATA = ("input_size", "mean", "std", "crop_pct", "interpolation")
DERIVED = ("input_size", "template_size", "template_factor", "search_factor", "first_conv", "classifier")
CHECKED = ("tag", "license", "interpolation", "crop_pct", "hf_hub_id", "pool_size")


def derive_pretrained_cfg(
    architecture: str, network: Any, model: Any, described: Mapping[str, Any]
) -> dict[str, Any]:
    """timm's description of a model: sizes and modules from the model itself, the rest as described.

    Args:
        architecture: Registered name.
        network: What that name builds.
        model: The same, or its wrapper with `features_only`.
        described: Fields that somebody set or saved. They precede the network's own: its `default_data_cfg`,
            or the `pretrained_cfg` of a network that timm built.

    Raises:
        ValueError: `mean` or `std` is not a number for each channel.
    """
    built_by_timm = getattr(network, "pretrained_cfg", None) or {}
    own = dict(getattr(network, "default_data_cfg", None) or {k: built_by_timm.get(k) for k in DATA})
    own = {key: value for key, value in own.items() if value is not None}
    channels = getattr(network, "in_chans", None) or (built_by_timm.get("input_size") or (3,))[0]
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "tag": None,
        "hf_hub_id": None,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "num_classes": getattr(model, "num_classes", 0),
        "license": None,
        **own,
    }
    derived: dict[str, Any] = {"first_conv": find_first_conv(model), "classifier": _classifier_name(model)}
    sizes = getattr(model, "sizes", None)
    if sizes is not None:
        feature_side = model.feature_side(sizes.search_size)
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
        if info := getattr(network, "feature_info", None):
            reduction = (info if isinstance(info, list) else info.info)[-1]["reduction"]  # timm has both
            cfg["pool_size"] = tuple(-(-side // reduction) for side in cfg["input_size"][1:])
    for key, value in described.items():
        if value is None or key in ("architecture", "source", "num_classes"):
            continue
        value = tuple(value) if isinstance(value, list) else value
        if key in DERIVED and key in derived:
            continue  # what the model itself says
        cfg[key] = value
    for key in ("mean", "std"):
        cfg[key] = weights.normalization(key, cfg[key], channels)
    return {**cfg, **derived}


def _classifier_name(model: nn.Module) -> str | None:
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    return next((name for name, module in model.named_modules() if name and module is classifier), None)


def check_described(model: Any, described: Mapping[str, Any], where: str) -> None:
    """Refuses fields that do not exist, and values of what the model itself determines.

    Args:
        model: A model with its `pretrained_cfg`.
        described: Fields by name.
        where: Name of the description for messages.

    Raises:
        ValueError: An unknown field, a value of the wrong type, or one that contradicts the model.
    """
    texts = {key: described[key] for key in CHECKED if described.get(key) is not None}
    try:
        check_values(PretrainedCfg, texts)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    known = {"tag", *DERIVED, *(field.name for field in fields(PretrainedCfg))}
    for key, value in described.items():
        if key not in known:
            near = ", ".join(difflib.get_close_matches(key, known, n=3)) or "mean, std, file, url, hf_hub_id"
            raise ValueError(f"{where}: unknown field {key!r}. Near: {near}.")
        actual = model.pretrained_cfg.get(key)
        value = tuple(value) if isinstance(value, list) else value
        if key in (*DERIVED, "num_classes") and value is not None and value != actual:
            raise ValueError(
                f"{where}: {key}={value!r}, but the model has {actual!r}. Use the arguments of create_model, "
                "such as search_size=192 or num_classes=10."
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
