"""The zoo: models by name, with or without weights, for this package and for timm."""

import fnmatch
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from timm.models._features import FeatureGetterNet
from torch import nn

from correlation_aware import models, weights
from correlation_aware._devices import as_device, as_dtype
from correlation_aware._files import natural_order, read_json
from correlation_aware._timm import check_described, derive_pretrained_cfg, register_with_timm
from correlation_aware.models.contract import FeatureNet, TwoInputModel, choose_levels, limited_size
from correlation_aware.models.registry import near_names, on_register, registered_models, timm_models
from correlation_aware.models.tracker import TrackModel
from correlation_aware.weights import WeightsSource
from correlation_aware.weights.files import SUFFIXES
from correlation_aware.weights.manifest import RENAMED
from correlation_aware.weights.sources import LOCATIONS, current_name, located_weights, run_hint, tags_of

__all__ = ["create_model", "from_pretrained", "has_weights", "is_location", "list_models"]

# arguments of create_model that a saved model cannot have set
_RESERVED = {
    *("name", "pretrained", "features_only", "out_indices", "checkpoint_path", "cache_dir", "pretrained_cfg"),
    *("pretrained_cfg_overlay", "device", "dtype", "source", "architecture", "saved", "set_by_hand"),
}
# what the network of a saved model may have, since its config.json may be anybody's
_MOST_NUMBERS, _MOST_TENSORS = 2**31, 20_000


def create_model(
    name: str | Path,
    pretrained: bool | str | Path = False,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
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
            written by `save_pretrained`: a `Path`, `local-dir:FOLDER`, or text that is not a name of the zoo.
        pretrained: True for the weights that the tag names, or the default ones of the name. Or a tag,
            `model.tag`, an `hf-hub:` name, a local file or folder. Or weights to start from, of the part that
            sees single images: those of a model of timm, `timm:resnet50.a1_in1k`, or `backbone:` before one
            of the others, `backbone:resnet50.safetensors`.
        features_only: Return the features of the levels `out_indices` as a list.
        out_indices: Levels for `features_only`, 0-indexed; the last n for a number; all by default.
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
    saved = asdict(pretrained_cfg) if isinstance(pretrained_cfg, PretrainedCfg) else pretrained_cfg
    cfg = {} if saved is None or isinstance(saved, str) else dict(saved)
    cfg.update(pretrained_cfg_overlay or {})
    if isinstance(pretrained_cfg, str):
        name = f"{str(name).partition('.')[0]}.{pretrained_cfg}"
    located = bool(pretrained) and any(cfg.get(key) is not None for key in LOCATIONS)
    target = _resolve(name, False if located else pretrained, cache_dir)
    model = _build(
        target.architecture,
        located_weights(cfg) if located else target.source,
        target.described,
        {key: value for key, value in cfg.items() if key not in LOCATIONS},
        features_only=features_only,
        out_indices=out_indices,
        cache_dir=cache_dir,
        **{**target.model_args, **kwargs},
    )
    set_by_hand = pretrained_cfg if isinstance(pretrained_cfg, Mapping) else {}
    check_described(model, {**set_by_hand, **(pretrained_cfg_overlay or {})}, "pretrained_cfg")
    if checkpoint_path is not None:
        weights.load_pretrained(model, weights.local_file(checkpoint_path))
    return model


def list_models(
    filter: str | Sequence[str] = "",
    pretrained: bool = False,
    module: str = "",
    exclude_filters: str | Sequence[str] = (),
) -> list[str]:
    """Names of the zoo, those of plug-ins included, in natural order.

    Args:
        filter: Wildcards, for example `sbt_*_track`; of several, one has to match.
        pretrained: Only names with weights, with their tags.
        module: Only names of this file of `models/`, or module of a plug-in, for example `sbt`.
        exclude_filters: Wildcards of names to leave out.
    """
    names = _modules()
    chosen = [n for n, where in names.items() if not module or module in (where, where.rpartition(".")[2])]
    if pretrained:
        chosen = [f"{n}.{tag}" for n in chosen for tag in tags_of(n)]
    wanted, unwanted = ([f] if isinstance(f, str) else f for f in (filter, exclude_filters))
    chosen = [n for n in chosen if not any(map(bool, wanted)) or _matches(n, wanted)]
    return sorted((n for n in chosen if not _matches(n, unwanted)), key=natural_order)


def has_weights(name: str | Path) -> bool:
    """Whether `create_model(name, pretrained=True)` has weights to load: a folder has, a name may.

    Raises:
        ValueError: An unknown model or tag.
    """
    if is_location(name):
        return True
    architecture, _ = _parse_name(name)
    return bool(tags_of(architecture))


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
        source: Weights to load; None for random ones.
        model_args: Arguments of the saved model.
        described: `pretrained_cfg` of the saved model.
    """

    architecture: str
    source: WeightsSource | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)


def _resolve(name: str | Path, pretrained: bool | str | Path, cache_dir: str | Path | None) -> _Target:
    if is_location(name):
        return _resolve_location(name, pretrained, cache_dir)
    architecture, tag = _parse_name(name)
    if not pretrained:
        return _Target(architecture)
    if pretrained is not True:
        renamed = RENAMED.get(f"{architecture}.{pretrained}")
        if renamed is not None:
            return _resolve(f"{architecture}.{pretrained}", True, cache_dir)
        return _Target(architecture, weights.resolve_weights(pretrained, architecture))
    if tag in tags_of(architecture):
        return _Target(architecture, weights.resolve_weights(f"{architecture}.{tag}"))
    return _Target(architecture, weights.resolve_weights(True, architecture))


def is_location(name: str | Path) -> bool:
    """Whether `name` says where a saved model is, and not what it is called. Names of the zoo come first."""
    if isinstance(name, Path):
        return name.is_dir()
    if name.startswith(("hf-hub:", "local-dir:")):
        return True
    return name.partition(".")[0] not in _modules() and Path(name).is_dir()


def _resolve_location(
    name: str | Path, pretrained: bool | str | Path, cache_dir: str | Path | None
) -> _Target:
    folder = None if str(name).startswith("hf-hub:") else Path(str(name).removeprefix("local-dir:"))
    file: Path | None = None
    if folder is None:
        config, file = weights.fetch_repository(str(name), cache_dir=cache_dir)
    elif not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; save_pretrained writes such folders.{run_hint(folder)}"
        )
    else:
        config = read_json(folder / "config.json")
    where = f"config.json of {name}"
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise ValueError(f"{where} names no architecture: not a model of save_pretrained.")
    architecture = config["architecture"]
    _check_name(architecture)
    parts = [config.get(key) or {} for key in ("model_args", "pretrained_cfg")]
    model_args, described = parts
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{where}: model_args and pretrained_cfg must be objects, not {_short(parts)}.")
    reserved = sorted(set(model_args) & _RESERVED)
    if reserved:
        raise ValueError(f"{where}: model_args must not have {', '.join(reserved)}.")
    source = None
    if pretrained is True:
        source = weights.resolve_weights(str(name)) if folder is None else weights.local_file(folder)
        file = file or source.path
    elif pretrained:
        source = weights.resolve_weights(pretrained, architecture)
    target = _Target(architecture, source, _tuples(model_args), described)
    _check_saved(target, where, file if pretrained is True else None)
    return target


def _check_depths(arguments: Mapping[str, Any]) -> None:
    """Refuses more blocks than a network can have, before a list of so many drop rates is made."""
    for name, value in arguments.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        total = sum(abs(depth) for depth in values if isinstance(depth, (int, float)))
        if "depth" in name and not total <= _MOST_TENSORS:
            raise ValueError(f"{name}={_short(value)}: more than {_MOST_TENSORS:,} blocks.")


def _check_saved(target: _Target, where: str, file: Path | None) -> None:
    """Builds the network of a config.json without memory for its tensors, and checks its description.

    Args:
        target: What the file says.
        where: Name of the file for messages.
        file: File of the weights that are loaded, which bounds the size of the network.

    Raises:
        ValueError: Arguments that make no network, or a larger one than the weights, and wrong descriptions.
    """
    # each number takes a byte or more; tables that are not saved have some room
    numbers = _MOST_NUMBERS if file is None else min(_MOST_NUMBERS, file.stat().st_size + 2**24)
    try:
        _check_depths(target.model_args)
        with limited_size(numbers, _MOST_TENSORS):
            model = _build(
                target.architecture,
                None,
                target.described,
                {},
                features_only=False,
                out_indices=None,
                cache_dir=None,
                device="meta",
                **target.model_args,
            )
        check_described(model, target.described, where)
    except Exception as error:  # a file of anybody's may have anything in it
        text = str(error)
        if not isinstance(error, ValueError):
            text = f"it does not make a {target.architecture} ({type(error).__name__}: {error})"
        text = text if len(text) <= 500 else f"{text[:500]}..."
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _tuples(value: Any) -> Any:
    """JSON has lists alone: those of a saved model were tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _parse_name(name: str | Path) -> tuple[str, str]:
    """Architecture and tag of what is not a location, both known; the tag may be empty."""
    is_path = isinstance(name, Path) or "/" in name or name.startswith(".")
    if (is_path or Path(name).suffix.lower() in SUFFIXES) and Path(name).is_file():
        raise ValueError(
            f"The model {str(name)!r} is a file; a model is a name or a folder. Pass the file as its weights "
            f"(`pretrained`, --weights), or name a folder with a config.json, such as {Path(name).parent}."
        )
    if is_path:
        raise ValueError(
            f"There is no model {str(name)!r}: no folder is there. Name a folder of save_pretrained, "
            "hf-hub:organisation/name, or a model of `correlation-aware models`."
        )
    architecture, _, tag = current_name(str(name)).partition(".")
    _check_name(architecture)
    if tag:
        _check_tag(architecture, tag)
    return architecture, tag


def _check_name(architecture: str) -> None:
    names = _modules()
    if architecture not in names:
        near = near_names(architecture, names)
        raise ValueError(
            f"There is no model {architecture!r}. Near: {', '.join(near[:8])}. "
            "See correlation_aware.list_models(), or `correlation-aware models`."
        )


def _check_tag(architecture: str, tag: str) -> None:
    tags = tags_of(architecture)
    if tag not in tags:
        known = f"Its tags: {', '.join(tags)}." if tags else "It has no weights in the manifest."
        others = [name for name in weights.load_manifest() if name.partition(".")[2] == tag]
        if others:
            known += f" Those of another model: create_model({architecture!r}, pretrained={others[0]!r})."
        raise ValueError(f"{architecture} has no weights with the tag {tag!r}. {known}")


def _modules() -> dict[str, str]:
    """Module of every name of the zoo: our own, those of plug-ins, and what plug-ins registered with timm."""
    return {name: function.__module__ for name, function in registered_models().items()} | timm_models()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the name, or its part before the tag, matches one of the patterns."""
    return any(fnmatch.fnmatch(part, p) for p in patterns for part in {name, name.partition(".")[0]})


def _build(
    architecture: str,
    source: WeightsSource | None,
    saved: Mapping[str, Any],
    set_by_hand: Mapping[str, Any],
    *,
    features_only: bool,
    out_indices: int | Sequence[int] | None,
    cache_dir: str | Path | None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **arguments: Any,
) -> nn.Module:
    function = registered_models().get(architecture)
    own: WeightsSource | None = None  # that the model's function loads
    if arguments.get("num_classes") == 0 and not architecture.endswith("_cls"):
        del arguments["num_classes"]  # timm's tools pass it to every model
    with torch.device(as_device(device) if device else torch.get_default_device()):
        if function is not None:
            model: Any = function(**arguments)
        else:  # a plug-in registered it with timm alone, and its function loads its own weights
            own = source if source and source.name == f"{architecture}.{source.timm_tag}" else None
            tag = own.timm_tag if own else None
            model = timm.create_model(
                architecture, own is not None, pretrained_cfg=tag, cache_dir=cache_dir, **arguments
            )
            cfg = getattr(model, "pretrained_cfg", {})
            saved = {**{k: cfg[k] for k in cfg if k not in LOCATIONS}, "tag": tag, **saved}
            source = None if own else source
        network = model
        if features_only or out_indices is not None:
            model = _features_only(network, architecture, out_indices)
    model = model.to(dtype=as_dtype(dtype) if dtype is not None else None)
    model.weights_name = own.name if own else "random"  # until load_pretrained
    model.training_data = []
    model.model_args = arguments
    model.pretrained_cfg = derive_pretrained_cfg(architecture, network, model, saved)
    if source is not None:
        weights.load_pretrained(model, source, cache_dir=cache_dir)
    described = {**model.pretrained_cfg, **set_by_hand}
    model.pretrained_cfg = derive_pretrained_cfg(architecture, network, model, described)
    model.default_cfg = model.pretrained_cfg  # timm's older name
    return model


def _features_only(model: nn.Module, architecture: str, out_indices: int | Sequence[int] | None) -> nn.Module:
    if isinstance(model, TwoInputModel):
        return FeatureNet(model, out_indices)
    if isinstance(model, TrackModel) or not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"features_only and out_indices are for feature networks and classifiers, not {architecture!r}. "
            f"Take {architecture.removesuffix('_track')!r}, or the tracker's .backbone."
        )
    levels = len(model.feature_info)  # type: ignore[arg-type]
    return FeatureGetterNet(model, out_indices=choose_levels(out_indices, levels, "out_indices"))


on_register(partial(register_with_timm, create_model=create_model))
for _module in pkgutil.iter_modules(
    models.__path__, f"{models.__name__}."
):  # every family registers its names
    importlib.import_module(_module.name)
