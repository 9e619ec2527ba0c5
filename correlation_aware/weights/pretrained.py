"""Weights into existing models, and models with their weights into folders."""

import json
import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from timm.models import PretrainedCfg, adapt_input_conv, get_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from correlation_aware._files import atomic_path, check_output_folder, write_text
from correlation_aware._version import __version__
from correlation_aware.models.contract import FeatureNet, TwoInputModel, refuse_wrapper
from correlation_aware.models.registry import registered_models
from correlation_aware.weights.card import model_card
from correlation_aware.weights.convert import convert_state_dict
from correlation_aware.weights.files import write_state_dict
from correlation_aware.weights.loading import LoadReport, load_state_dict
from correlation_aware.weights.sources import WeightsSource, resolve_weights

__all__ = ["load_pretrained", "model_config", "normalization", "save_pretrained"]

_logger = logging.getLogger(__name__)


def load_pretrained(
    model: nn.Module,
    source: str | Path | WeightsSource,
    partial: bool = False,
    cache_dir: str | Path | None = None,
) -> LoadReport:
    """Loads weights into an existing model, for example a backbone's into a tracker's `.backbone`.

    Args:
        model: A model of `create_model`.
        source: A tag of the model, a `model.tag` of the manifest, `hf-hub:organisation/name[@revision]`, a
            local file or folder; or weights for the image backbone alone, `timm:` before a name of timm and
            `backbone:` before another source; see `resolve_weights`.
        partial: Load what fits. Entries of the manifest that are starting points always load in part, and so
            do weights of timm, but for a backbone that is timm's own model.
        cache_dir: Folder for downloads instead of the Hugging Face cache.

    Returns:
        Names of the tensors that were loaded, unexpected in the checkpoint, or missing from it. If the
        checkpoint has a head that does not fit, a warning with the missing tensors of the head is logged.
        The model's `pretrained_cfg` takes mean, std, tag and license of the weights, where they are known,
        and its `training_data` the records of the videos that they were trained on.

    Raises:
        ValueError: An unknown name, tensors that do not fit, or a model on the device `meta`.
        FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be downloaded or read, or that
            are not finite.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if not isinstance(source, WeightsSource):
        source = resolve_weights(source, cfg.get("architecture"))
    # a network with `features_only`, or a backbone, is a part of the one that the checkpoint is of
    pruned = isinstance(model, (FeatureNet, FeatureGetterNet))
    network: nn.Module = model.model if pruned else model  # type: ignore[assignment]
    target = network
    if source.backbone_only:
        if not hasattr(network, "image_backbone") and source.timm_cfg is None:
            raise ValueError(
                f"{source.name} is for networks of two images, not {type(network).__name__}. Leave out "
                "'backbone:'."
            )
        target, pruned = cast(nn.Module, getattr(network, "image_backbone", network)), True
    prefix = next(f"{name}." if name else "" for name, part in model.named_modules() if part is target)
    of_timm = target is not network and not isinstance(target, TwoInputModel)  # such as a ResNet
    own = target.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise ValueError(f"{source.name} cannot be loaded on device='meta', which keeps no numbers.")
    state_dict = convert_state_dict(source.read(cache_dir), source.key_format, own)
    if cfg.get("first_conv"):
        _adapt_first_conv(f"{cfg['first_conv'].removeprefix(prefix)}.weight", state_dict, own)
    if source.backbone_only:  # older files have no counters
        counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
        state_dict = {**counters, **state_dict}
    in_part = partial or (source.is_starting_point and not of_timm)
    kept = _keep_classifier(cfg["classifier"], state_dict, own) if cfg.get("classifier") else set()
    report = load_state_dict(target, state_dict, in_part, source.name, pruned)
    if source.backbone_only:
        names = (tuple(prefix + name for name in part) for part in (report.loaded, report.missing))
        report = replace(report, **dict(zip(("loaded", "missing"), names)))
    if kept:
        loaded = tuple(name for name in report.loaded if name not in kept)
        report = replace(report, loaded=loaded, missing=(*report.missing, *sorted(kept)))
    misfit_head = any(map(_is_head, report.unexpected)) and list(filter(_is_head, report.missing))
    if misfit_head:
        _logger.warning(
            "%s: the head of the checkpoint does not fit %s. These tensors keep fresh values: %s",
            source.name,
            cfg.get("architecture", type(model).__name__),
            ", ".join(misfit_head),
        )
    _logger.info("%s: %s", source.name, report)
    model.weights_name = source.name  # type: ignore[assignment]
    model.training_data = source.training_data(cache_dir)  # type: ignore[assignment]
    if cfg and (source.timm_cfg is not None or not source.backbone_only):
        known = source.described(cache_dir)
        _describe(model, _without_usual(known, source.timm_cfg or {}) if of_timm else known, source.name)
    return report


def _without_usual(known: Mapping[str, Any], timm_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of weights of timm, without the normalization that is usual for their model.

    A network with a backbone of timm has that already, or a corrected one.
    """
    usual = get_pretrained_cfg(timm_cfg["architecture"])
    return {
        key: value
        for key, value in known.items()
        if key not in ("mean", "std") or value != getattr(usual, key, None)
    }


def _describe(model: nn.Module, known: Mapping[str, Any], name: str) -> None:
    """Writes what is known of the weights into the model's `pretrained_cfg`."""
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    channels = cfg["input_size"][0]
    cfg |= {key: known.get(key) for key in ("tag", "hf_hub_id", "license")}
    for key in ("mean", "std"):
        if known.get(key) is not None:
            cfg[key] = normalization(key, known[key], channels)
    size = known.get("input_size")
    if size is not None and hasattr(model, "sizes") and size[-1] != cfg["input_size"][-1]:
        _logger.warning(
            "%s was trained with search images of %s px; this model is made for %s px.",
            name,
            size[-1],
            cfg["input_size"][-1],
        )


def normalization(key: str, values: Any, channels: int) -> tuple[float, ...]:
    """Mean or standard deviation of pixels in 0..1 for a number of channels.

    Args:
        key: `mean` or `std`, for messages.
        values: A number per channel. One or three are averaged for another number of channels.
        channels: Channels of the images.

    Raises:
        ValueError: Anything but that many finite numbers; for `std`, numbers that are not positive.
    """
    numbers = tuple(values) if isinstance(values, (list, tuple)) else ()
    valid = all(isinstance(v, (int, float)) and -1e30 < v < 1e30 for v in numbers)
    if valid and len(numbers) in (1, 3) and len(numbers) != channels:
        numbers = (sum(numbers) / len(numbers),) * channels
    if not valid or len(numbers) != channels or (key == "std" and min(numbers) <= 0):
        kind = "positive number" if key == "std" else "number"
        raise ValueError(f"{key}={values!r} must be one {kind} for each of {channels} channels.")
    return numbers


def model_config(model: nn.Module) -> dict[str, Any]:
    """Content of `config.json`: everything but the tensors that makes the model again.

    Args:
        model: A model of `create_model`.

    Raises:
        ValueError: A model that `create_model` did not make, one with `features_only`, or a wrapper around a
            model.
    """
    refuse_wrapper(model)
    if isinstance(model, (FeatureNet, FeatureGetterNet)) or not hasattr(model, "model_args"):
        raise ValueError(
            f"{type(model).__name__} is not a complete model of create_model: its configuration is not known."
        )
    cfg, arguments = dict(model.pretrained_cfg), dict(model.model_args)  # type: ignore[arg-type]
    if cfg["num_classes"] != getattr(model, "num_classes", 0):  # reset_classifier was called
        arguments["num_classes"] = cfg["num_classes"] = model.num_classes
    pool = getattr(model, "global_pool", None)
    if isinstance(pool, str) and pool != arguments.get("global_pool", "avg"):
        arguments["global_pool"] = pool
    unsaved = ["architecture", "tag", "url", "file", "hf_hub_id", "hf_hub_filename", "source"]
    if cfg["architecture"] not in registered_models():  # timm gives the rest to the plug-in's function
        unsaved += set(cfg) - {field.name for field in fields(PretrainedCfg)}
    records = list(getattr(model, "training_data", ()))
    return {
        "architecture": cfg["architecture"],
        "model_args": arguments,
        "pretrained_cfg": {key: value for key, value in cfg.items() if key not in unsaved},
        **({"training_data": records} if records else {}),
        "library": {"name": "correlation_aware", "version": __version__},
    }


def save_pretrained(model: nn.Module, folder: str | Path) -> Path:
    """Writes `config.json` and `model.safetensors`, which `from_pretrained` and `create_model` take.

    A short model card, `README.md`, is added unless the folder has one.

    Args:
        model: A model of `create_model`.
        folder: Created if it does not exist.

    Returns:
        The folder.

    Raises:
        ValueError: A model that `create_model` did not make, one with `features_only`, or a wrapper around a
            model.
    """
    config = json.dumps(model_config(model), indent=2)
    check_output_folder(folder)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "config.json") as temporary:  # both are written before one is replaced
        temporary.write_text(config + "\n", encoding="utf-8")
        write_state_dict(model.state_dict(), folder / "model.safetensors")
    if not (folder / "README.md").exists():
        write_text(model_card(model), folder / "README.md")
    return folder


def _adapt_first_conv(name: str, state_dict: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Fits the first convolution of the checkpoint to the model's input channels, by timm's rule."""
    expected = own.get(name)
    bare = name.removeprefix("backbone.")
    for key in (name, bare, f"backbone.{bare}"):
        tensor = state_dict.get(key)
        if expected is None or tensor is None or not tensor.ndim == expected.ndim == 4:
            continue
        if tensor.shape[1] != expected.shape[1]:
            state_dict[key] = adapt_input_conv(expected.shape[1], tensor)


def _keep_classifier(name: str, state_dict: dict[str, Tensor], own: dict[str, Tensor]) -> set[str]:
    """Replaces a classifier for another number of classes by the model's own; returns its tensors' names."""
    keys = [f"{name}.weight", f"{name}.bias"]
    if not any(k in state_dict and (k not in own or own[k].shape != state_dict[k].shape) for k in keys):
        return set()
    for key in keys:
        state_dict.pop(key, None)
    kept = {key: own[key] for key in keys if key in own}
    state_dict.update(kept)
    return set(kept)


def _is_head(name: str) -> bool:
    return name.startswith("head.")
