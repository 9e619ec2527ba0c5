"""The zoo: models by name, with or without weights, for this package and for timm."""

import fnmatch
import importlib
import pkgutil
import sys
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import timm.models
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import DefaultCfg, PretrainedCfg
from timm.models._features import FeatureGetterNet
from torch import nn

from correlation_aware import models, weights
from correlation_aware._files import natural_order, read_json
from correlation_aware._plugins import load_plugins, plugin_packages
from correlation_aware.models.contract import FeatureNet, Sizes, TwoInputModel, find_first_conv
from correlation_aware.models.registry import EntryPoint, near_names, on_register, registered_models
from correlation_aware.models.tracker import TrackModel
from correlation_aware.weights import WeightsEntry, WeightsSource
from correlation_aware.weights.sources import RENAMED, current_name, default_entry, tags_of

__all__ = ["create_model", "from_pretrained", "has_weights", "list_models"]

# fields of timm's PretrainedCfg that say where weights are
LOCATIONS = ("state_dict", "file", "url", "hf_hub_id", "hf_hub_filename", "source")
DERIVED = ("input_size", "template_size", "template_factor", "search_factor", "first_conv", "classifier")


def create_model(
    name: str | Path,
    pretrained: bool | str | Path = False,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Creates a model of the zoo.

    A name fixes the network: layers, head, image sizes and crop factors. A tag after a dot chooses weights.

    Args:
        name: `sbt_base`, `sbt_base_track` (with prediction head), `sbt_base_cls` (classifier), with or
            without a weights tag (`sbt_large_pvtv2.in1k`); `hf-hub:organisation/name[@revision]`; or a folder
            written by `save_pretrained`.
        pretrained: True for the weights that the tag names, or the default ones of the name. Or a tag,
            `model.tag`, an `hf-hub:` name, a local file or folder.
        features_only: Return the features of the levels `out_indices` as a list.
        out_indices: Levels for `features_only`, 0-indexed; all by default.
        checkpoint_path: A local file loaded last, strictly.
        cache_dir: Where downloads go instead of the Hugging Face cache.
        pretrained_cfg: As in timm: a tag, or a description of the weights with `file`, `url`, `hf_hub_id` or
            `state_dict` and with `mean`, `std`, ...
        pretrained_cfg_overlay: Fields that replace single ones of `pretrained_cfg`.
        **kwargs: Arguments of the family, such as fields of `SBTConfig` and `Sizes`, a tracker's `head`,
            `num_classes` and `drop_rate` of a classifier; and `in_chans`, `device`, `dtype`.

    Returns:
        The model in training mode, as timm does; call `.eval()` to use it.

    Raises:
        ValueError: An unknown name, tag or value; the message lists the near ones.
        TypeError: An unknown argument.
        FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be downloaded or read.
    """
    cfg = dict(
        asdict(pretrained_cfg) if isinstance(pretrained_cfg, PretrainedCfg) else _as_cfg(pretrained_cfg)
    )
    cfg.update(pretrained_cfg_overlay or {})
    name = str(name)
    if isinstance(pretrained_cfg, str):
        name = f"{name.partition('.')[0]}.{pretrained_cfg}"
    located = bool(pretrained) and any(cfg.get(key) is not None for key in LOCATIONS)
    target = _resolve(name, False if located else pretrained, cache_dir)
    source = _located(cfg) if located else target.source
    described = {**target.described, **{k: v for k, v in cfg.items() if k not in LOCATIONS}}
    model = _build(
        target.architecture,
        bool(pretrained),
        source,
        described,
        features_only=features_only,
        out_indices=out_indices,
        cache_dir=cache_dir,
        **{**target.model_args, **kwargs},
    )
    _check_overlay(model, pretrained_cfg_overlay or {})
    if checkpoint_path is not None:
        weights.load_pretrained(model, weights.local_file(checkpoint_path))
    return model


def list_models(filter: str = "", pretrained: bool = False, module: str = "") -> list[str]:
    """Names of the zoo, those of plug-ins included, in natural order.

    Args:
        filter: Wildcards, for example `sbt_*_track`.
        pretrained: Only names with weights, with their tags.
        module: Only names of this file of `models/`, or module of a plug-in, for example `sbt`.
    """
    names = _modules()
    chosen = [n for n, where in names.items() if not module or module in (where, where.rpartition(".")[2])]
    if pretrained:
        chosen = [f"{n}.{tag}" for n in chosen for tag in (*tags_of(n), *_timm_tags(n))]
    matching = [n for n in chosen if not filter or fnmatch.fnmatch(n, filter) or _matches_model(n, filter)]
    return sorted(matching, key=natural_order)


def has_weights(name: str) -> bool:
    """Whether `create_model(name, pretrained=True)` has weights to load: a folder has, a name may.

    Raises:
        ValueError: An unknown model or tag.
    """
    if _is_location(name):
        return True
    architecture, _, tag = current_name(name).partition(".")
    _check_name(architecture)
    if tag:
        _check_tag(architecture, tag)
    return bool(tag or tags_of(architecture) or _timm_tags(architecture) or _former_default(architecture))


def from_pretrained(source: str | Path, cache_dir: str | Path | None = None, **kwargs: Any) -> nn.Module:
    """Model and weights of a folder of `save_pretrained`, a repository on the Hub, or a name.

    Args:
        source: Folder, `hf-hub:organisation/name[@revision]`, or name with weights.
        cache_dir: Where downloads go instead of the Hugging Face cache.
        **kwargs: As for `create_model`.
    """
    return create_model(source, pretrained=True, cache_dir=cache_dir, **kwargs)


@dataclass(frozen=True)
class _Target:
    """What a name means.

    Attributes:
        architecture: Registered name.
        source: Weights to load; None for random ones, or for those that only timm's function knows.
        model_args: Arguments of the saved model.
        described: `pretrained_cfg` of the saved model.
    """

    architecture: str
    source: WeightsSource | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)


def _resolve(name: str, pretrained: bool | str | Path, cache_dir: str | Path | None) -> _Target:
    if _is_location(name):
        return _resolve_location(name, pretrained, cache_dir)
    architecture, _, tag = current_name(name).partition(".")
    _check_name(architecture)
    if tag:
        _check_tag(architecture, tag)
    if not pretrained:
        return _Target(architecture)
    if pretrained is not True:
        renamed = RENAMED.get(f"{architecture}.{pretrained}")
        if renamed is not None:
            return _resolve(f"{architecture}.{pretrained}", True, cache_dir)
        return _Target(architecture, weights.resolve_weights(pretrained, architecture))
    if tag in tags_of(architecture):
        return _Target(architecture, weights.resolve_weights(f"{architecture}.{tag}"))
    if default_entry(architecture) is None:
        if _timm_tags(architecture):
            return _Target(architecture)
        if former := _former_default(architecture):
            return _resolve(former, True, cache_dir)
    return _Target(architecture, weights.resolve_weights(True, architecture))


def _is_location(name: str) -> bool:
    return name.startswith(("hf-hub:", "local-dir:")) or Path(name).is_dir()


def _resolve_location(name: str, pretrained: bool | str | Path, cache_dir: str | Path | None) -> _Target:
    if name.startswith("hf-hub:"):
        config, _ = weights.fetch_repository(name, cache_dir=cache_dir)
    else:
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} has no config.json; save_pretrained writes such folders.")
        config = read_json(folder / "config.json")
    if not isinstance(config, dict) or "architecture" not in config:
        raise ValueError(f"config.json of {name} names no architecture: not a model of save_pretrained.")
    architecture = config["architecture"]
    _check_name(architecture)
    source = weights.resolve_weights(name if pretrained is True else pretrained) if pretrained else None
    return _Target(architecture, source, config.get("model_args") or {}, config.get("pretrained_cfg") or {})


def _check_name(architecture: str) -> None:
    names = _modules()
    if architecture not in names:
        near = near_names(architecture, names)
        raise ValueError(
            f"There is no model {architecture!r}. Near: {', '.join(near[:8])}. "
            "See correlation_aware.list_models()."
        )


def _check_tag(architecture: str, tag: str) -> None:
    tags = [*tags_of(architecture), *_timm_tags(architecture)]
    if tag not in tags:
        known = f"There are {', '.join(tags)}." if tags else "It has no weights in the manifest."
        raise ValueError(f"{architecture} has no weights with the tag {tag!r}. {known}")


def _former_default(architecture: str) -> str | None:
    """Former name of the weights that this architecture had before its checkpoints got names of their own."""
    return next((old for old in RENAMED if old.partition(".")[0] == architecture), None)


def _modules() -> dict[str, str]:
    """Module of every name of the zoo: our own, those of plug-ins, and what plug-ins registered with timm."""
    load_plugins()
    modules = {name: function.__module__ for name, function in registered_models().items()}
    packages = plugin_packages()
    if packages:
        for name in timm.models.list_models():
            module = timm.models.model_entrypoint(name).__module__
            if module.partition(".")[0] in packages:
                modules.setdefault(name, module)
    return modules


def _timm_tags(name: str) -> list[str]:
    """Tags of weights that only timm's registry knows, of a plug-in's model."""
    if name in registered_models() or not timm.models.is_model_pretrained(name):
        return []
    return [n.partition(".")[2] for n in timm.models.list_pretrained(f"{name}.*")]


def _matches_model(name: str, pattern: str) -> bool:
    return "." in name and fnmatch.fnmatch(name.partition(".")[0], pattern)


def _as_cfg(cfg: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {} if cfg is None or isinstance(cfg, str) else cfg


def _located(cfg: Mapping[str, Any]) -> WeightsSource:
    """The weights that a timm configuration names, in timm's order of precedence."""
    hub = cfg.get("hf_hub_id")
    if cfg.get("source") == "hf-hub":
        return WeightsSource(f"hf-hub:{hub}", repository=str(hub))
    if cfg.get("source") != "local-dir" and cfg.get("state_dict"):
        return WeightsSource("a state_dict", state_dict=cfg["state_dict"])
    if cfg.get("file"):
        return weights.local_file(cfg["file"])
    if hub:
        repository, _, revision = str(hub).partition("@")
        file = cfg.get("hf_hub_filename") or "model.safetensors"
        return WeightsSource(f"hf-hub:{hub}", hub_file=(repository, file, revision or None))
    if cfg.get("url"):
        return WeightsSource(str(cfg["url"]), url=str(cfg["url"]))
    raise ValueError(
        f"pretrained_cfg={dict(cfg)!r} names no weights: give it file, url, hf_hub_id or state_dict."
    )


def _check_overlay(model: Any, overlay: Mapping[str, Any]) -> None:
    """Refuses an overlay of what the model itself determines; arguments of `create_model` change that."""
    for key in DERIVED:
        value = overlay.get(key)
        actual = model.pretrained_cfg.get(key)
        if value is not None and (tuple(value) if isinstance(value, list) else value) != actual:
            raise ValueError(
                f"pretrained_cfg_overlay: {key}={value!r}, but the model has {actual!r}. Sizes are arguments "
                "of create_model, such as search_size=192."
            )


def _build(
    architecture: str,
    pretrained: bool,
    source: WeightsSource | None,
    described: Mapping[str, Any],
    *,
    features_only: bool,
    out_indices: Sequence[int] | None,
    cache_dir: str | Path | None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **arguments: Any,
) -> nn.Module:
    function = registered_models().get(architecture)
    with torch.device(device or torch.get_default_device()):
        if function is not None:
            model: Any = function(**arguments)
        else:  # a plug-in registered it with timm alone, whose function may load weights of its own
            own = pretrained and source is None
            model = timm.models.model_entrypoint(architecture)(pretrained=own, **arguments)
            if own:
                model.weights_name = f"{architecture}.{(_timm_tags(architecture) or ['timm'])[0]}"
        if features_only or out_indices is not None:
            model = _features_only(model, architecture, out_indices)
    model = model.to(dtype=dtype)
    model.model_args = arguments
    entry = source.entry if source else None
    model.pretrained_cfg = _pretrained_cfg(architecture, model, entry, described)
    model.default_cfg = model.pretrained_cfg  # timm's older name
    if source is not None:
        weights.load_pretrained(model, source, cache_dir=cache_dir)
    return model


def _features_only(model: nn.Module, architecture: str, out_indices: Sequence[int] | None) -> nn.Module:
    if isinstance(model, TwoInputModel):
        return FeatureNet(model, out_indices)
    if isinstance(model, TrackModel) or not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"features_only and out_indices are for feature networks and classifiers, not {architecture!r}. "
            f"Take {architecture.removesuffix('_track')!r}, or the tracker's .backbone."
        )
    levels = tuple(range(len(model.feature_info)))  # type: ignore[arg-type]
    return FeatureGetterNet(model, out_indices=levels if out_indices is None else tuple(out_indices))


def _pretrained_cfg(
    architecture: str, model: Any, entry: WeightsEntry | None, described: Mapping[str, Any]
) -> dict[str, Any]:
    """timm's description of a model: sizes and modules from the model itself, the rest from its weights."""
    channels = getattr(model, "in_chans", 3)
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
        **getattr(model, "default_data_cfg", {}),
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


def _register_with_timm(name: str, function: EntryPoint) -> None:
    """Makes `timm.create_model(name)` and timm's lists know a name of ours.

    Raises:
        ValueError: timm has a model of that name.
    """
    if timm.models.is_model(name):
        raise ValueError(f"timm knows a model {name!r} already; two models cannot share a name.")

    def entrypoint(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        kwargs.pop(
            "pretrained_model_args", None
        )  # timm's copy of the saved arguments, which are in kwargs too
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
    with warnings.catch_warnings():
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


on_register(_register_with_timm)
for _module in pkgutil.iter_modules(
    models.__path__, f"{models.__name__}."
):  # every family registers its names
    importlib.import_module(_module.name)
