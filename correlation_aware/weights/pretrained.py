"""Weights into models that exist, and models with their weights into folders."""

import json
import logging
from pathlib import Path

from timm.models import adapt_input_conv
from torch import Tensor, nn

from correlation_aware._files import write_text
from correlation_aware._version import __version__
from correlation_aware.models.contract import FeatureNet
from correlation_aware.weights.convert import convert_state_dict
from correlation_aware.weights.files import write_state_dict
from correlation_aware.weights.loading import LoadReport, load_state_dict
from correlation_aware.weights.sources import WeightsSource, resolve_weights

__all__ = ["load_pretrained", "save_pretrained"]

_logger = logging.getLogger(__name__)


def load_pretrained(
    model: nn.Module,
    source: str | Path | WeightsSource,
    partial: bool = False,
    cache_dir: str | Path | None = None,
) -> LoadReport:
    """Loads weights into a model that exists, for example a backbone's into a tracker's `.backbone`.

    Args:
        model: A model of `create_model`.
        source: A tag of the model, a `model.tag` of the manifest, `hf-hub:organisation/name[@revision]`, a local
            file or folder; see `resolve_weights`.
        partial: Load what fits. Entries of the manifest that are starting points always load in part.
        cache_dir: Where downloads go instead of the Hugging Face cache.

    Returns:
        Names of the tensors that were loaded, left over in the checkpoint, or missing from it. A head that stays
        fresh though the checkpoint has one is logged as a warning.

    Raises:
        ValueError: An unknown name, or tensors that do not fit.
        FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be downloaded or read.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if not isinstance(source, WeightsSource):
        source = resolve_weights(source, cfg.get("architecture"))
    target, prefix = (model.model, "model.") if isinstance(model, FeatureNet) else (model, "")
    own = target.state_dict()
    state_dict = convert_state_dict(source.read(cache_dir), source.key_format, own)
    if cfg.get("first_conv"):
        _adapt_first_conv(f"{cfg['first_conv'].removeprefix(prefix)}.weight", state_dict, own)
    partial = partial or source.is_starting_point or isinstance(model, FeatureNet)
    if cfg.get("classifier") and _drop_classifier(cfg["classifier"], state_dict, own):
        partial = True
    report = load_state_dict(target, state_dict, partial)
    lost = [name for name in report.fresh if _is_head(name)] if any(map(_is_head, report.left)) else []
    if lost:
        _logger.warning(
            "%s: the head of the checkpoint does not fit %s. These tensors keep fresh values: %s",
            source.name,
            cfg.get("architecture", type(model).__name__),
            ", ".join(lost),
        )
    _logger.info("%s: %s", source.name, report)
    model.weights_name = source.name  # type: ignore[assignment]
    return report


def save_pretrained(model: nn.Module, folder: str | Path) -> Path:
    """Writes `config.json` and `model.safetensors`, which `from_pretrained` and `create_model` take.

    Args:
        model: A model of `create_model`.
        folder: Created if it does not exist.

    Returns:
        The folder.

    Raises:
        ValueError: A model that `create_model` did not make, or one with `features_only`.
    """
    if isinstance(model, FeatureNet) or not hasattr(model, "model_args"):
        raise ValueError(
            f"{type(model).__name__} is not a whole model of create_model, so its configuration is not known."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cfg, arguments = dict(model.pretrained_cfg), dict(model.model_args)  # type: ignore[arg-type]
    if cfg["num_classes"] != getattr(model, "num_classes", 0):  # reset_classifier was called
        arguments["num_classes"] = cfg["num_classes"] = model.num_classes
    unsaved = ("architecture", "tag", "url", "file", "hf_hub_id", "hf_hub_filename", "source")
    config = {
        "architecture": cfg["architecture"],
        "model_args": arguments,
        "pretrained_cfg": {key: value for key, value in cfg.items() if key not in unsaved},
        "library": {"name": "correlation_aware", "version": __version__},
    }
    write_state_dict(model.state_dict(), folder / "model.safetensors")
    write_text(json.dumps(config, indent=2) + "\n", folder / "config.json")
    return folder


def _adapt_first_conv(name: str, state_dict: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Fits the first convolution of the checkpoint to the model's input channels, by timm's rule."""
    bare = name.removeprefix("backbone.")
    mine = own.get(name)
    for key in (name, bare, f"backbone.{bare}"):
        theirs = state_dict.get(key)
        if mine is not None and theirs is not None and theirs.ndim == mine.ndim == 4:
            if theirs.shape[1] != mine.shape[1]:
                state_dict[key] = adapt_input_conv(mine.shape[1], theirs)


def _drop_classifier(name: str, state_dict: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    """Removes a classifier for another number of classes from the checkpoint, and says whether it was."""
    keys = [f"{name}.weight", f"{name}.bias"]
    misfit = any(k in state_dict and (k not in own or own[k].shape != state_dict[k].shape) for k in keys)
    for key in keys if misfit else ():
        state_dict.pop(key, None)
    return misfit


def _is_head(name: str) -> bool:
    return name.startswith("head.")
