"""Weights into models that exist, and models with their weights into folders."""

import json
import logging
from pathlib import Path

from timm.models import adapt_input_conv
from torch import Tensor, nn

from correlation_aware import weights
from correlation_aware._files import write_text
from correlation_aware._version import __version__
from correlation_aware.models.sbt import SBT, SBTClassifier, SBTFeatures
from correlation_aware.models.tracker import TrackModel

__all__ = ["load_pretrained", "save_pretrained"]

_logger = logging.getLogger(__name__)


def load_pretrained(
    model: nn.Module, source: str | Path, partial: bool = False, cache_dir: str | Path | None = None
) -> weights.LoadReport:
    """Loads weights into a model that exists, for example a backbone's into a tracker's `.backbone`.

    Args:
        model: A model of the zoo.
        source: A `model.tag` of the manifest, `hf-hub:organisation/name[@revision]`, a local file or folder.
        partial: Take what fits. Entries of the manifest that are mere starting points always load in part.
        cache_dir: Where downloads go instead of the Hugging Face cache.

    Returns:
        What was taken, left and fresh.

    Raises:
        ValueError: An unknown name, or tensors that do not fit.
        FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be had or that are damaged.
    """
    text, key_format = str(source), "auto"
    if text.startswith("hf-hub:"):
        _, path = weights.fetch_repository(text.removeprefix("hf-hub:"), cache_dir=cache_dir)
    elif Path(source).exists():
        path = Path(source) / "model.safetensors" if Path(source).is_dir() else Path(source)
    elif "/" in text or Path(source).suffix in weights.SUFFIXES:
        raise FileNotFoundError(
            f"There is no weights file {text!r}. For a repository of the Hub write 'hf-hub:{text}'."
        )
    else:
        entry = weights.find_entry(text)
        path, key_format = weights.fetch(entry, cache_dir=cache_dir), entry.key_format
        partial = partial or entry.role == "starting_point"
    state_dict = weights.convert_state_dict(weights.read_state_dict(path), key_format)
    target = model.model if isinstance(model, SBTFeatures) else model
    state_dict, partial = _adapt_ends(target, state_dict, partial or isinstance(model, SBTFeatures))
    report = weights.load_state_dict(target, state_dict, partial)
    _logger.info("%s: %s", source, report)
    return report


def save_pretrained(model: nn.Module, folder: str | Path) -> Path:
    """Writes `config.json` and `model.safetensors`, which `from_pretrained` and `create_model` take.

    Args:
        model: A model that `create_model` made.
        folder: Created if it does not exist.

    Returns:
        The folder.

    Raises:
        ValueError: A model that the zoo did not make, or one with `features_only`.
    """
    if not isinstance(model, (SBT, SBTClassifier, TrackModel)) or not hasattr(model, "pretrained_cfg"):
        raise ValueError(
            f"{type(model).__name__} is not a whole model of create_model, so its configuration is not known."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": model.pretrained_cfg["architecture"],
        "model_args": model.model_args,
        "pretrained_cfg": {k: v for k, v in model.pretrained_cfg.items() if k != "architecture"},
        "library": {"name": "correlation_aware", "version": __version__},
    }
    weights.write_state_dict(model.state_dict(), folder / "model.safetensors")
    write_text(json.dumps(config, indent=2) + "\n", folder / "config.json")
    return folder


def _adapt_ends(
    model: nn.Module, state_dict: dict[str, Tensor], partial: bool
) -> tuple[dict[str, Tensor], bool]:
    """Fits the first convolution to the model's channels (timm's rule); drops a classifier of other size."""
    own = model.state_dict()
    for key in ("stages.0.embed.proj.weight", "backbone.stages.0.embed.proj.weight"):
        if key in state_dict:
            match = own.get(key, own.get(f"backbone.{key}", own.get(key.removeprefix("backbone."))))
            if match is not None and match.shape[1] != state_dict[key].shape[1]:
                state_dict[key] = adapt_input_conv(match.shape[1], state_dict[key])
    classifier = ("head.weight", "head.bias")
    misfit = any(
        k in state_dict and (k not in own or own[k].shape != state_dict[k].shape) for k in classifier
    )
    if isinstance(model, SBTClassifier) and misfit:
        return {k: v for k, v in state_dict.items() if k not in classifier}, True
    return state_dict, partial
