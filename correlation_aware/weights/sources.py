"""What a user may write for weights and what it means: tags, files and repositories are told apart here."""

import os
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from torch import Tensor

from correlation_aware._files import read_json
from correlation_aware.models.registry import near_names, registered_models, timm_tags
from correlation_aware.weights.convert import AUTO
from correlation_aware.weights.files import SUFFIXES, read_state_dict
from correlation_aware.weights.hub import fetch, fetch_file, fetch_repository
from correlation_aware.weights.manifest import RENAMED, WeightsEntry, load_manifest

__all__ = [
    "LOCATIONS",
    "WeightsSource",
    "current_name",
    "default_entry",
    "local_file",
    "located_weights",
    "resolve_weights",
    "run_hint",
    "tags_of",
    "timm_weights",
]

_PACKAGE = f"{Path(__file__).resolve().parents[1]}{os.sep}"
# before a name of timm, and before another source whose weights fill the image backbone alone
TIMM, BACKBONE = "timm:", "backbone:"
# fields of timm's PretrainedCfg that say where weights are
LOCATIONS = ("state_dict", "file", "url", "hf_hub_id", "hf_hub_filename", "source")


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from: exactly one of the fields from `entry` to `state_dict` is set.

    Attributes:
        name: Name for messages: `model.tag`, a path, `hf-hub:organisation/name`.
        entry: Entry of the manifest.
        path: Local file.
        repository: `organisation/name[@revision]` on the Hub.
        hub_file: (`organisation/name`, file, revision or None) on the Hub, of a timm configuration.
        url: Address of a file, of a timm configuration.
        state_dict: The tensors themselves.
        timm_tag: Tag of weights that a plug-in registered with timm alone.
        timm_cfg: What timm says of one of its own models, see `timm_weights`.
        backbone_only: Whether the weights are those of a single-image network, for the `image_backbone` of
            the model alone.
    """

    name: str
    entry: WeightsEntry | None = None
    path: Path | None = None
    repository: str | None = None
    hub_file: tuple[str, str, str | None] | None = None
    url: str | None = None
    state_dict: Mapping[str, Tensor] | None = None
    timm_tag: str | None = None
    timm_cfg: Mapping[str, Any] | None = None
    backbone_only: bool = False

    @property
    def key_format(self) -> str:
        """Format of the parameter names in the file, see `convert_state_dict`."""
        return self.entry.key_format if self.entry else AUTO

    @property
    def is_starting_point(self) -> bool:
        """Whether the weights fill only a part of the model by design."""
        return self.timm_cfg is not None or (self.entry is not None and self.entry.role == "starting_point")

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be downloaded."""
        if self.entry is not None:
            return self.entry.source == "bundled"
        return self.path is not None or self.state_dict is not None

    def fetch(self, cache_dir: str | Path | None = None) -> Path:
        """Downloads and verifies the file if it is not a local one, and returns its path.

        Raises:
            FileNotFoundError, ConnectionError, RuntimeError, ValueError: Weights that cannot be downloaded.
        """
        if self.entry is not None:
            return fetch(self.entry, cache_dir=cache_dir)
        if self.repository is not None:
            return fetch_repository(self.repository, cache_dir=cache_dir)[1]
        if self.hub_file is not None or self.url is not None:
            return fetch_file(self.hub_file, self.url, cache_dir=cache_dir)
        assert self.path is not None
        return self.path

    def described(self, cache_dir: str | Path | None = None) -> dict[str, Any]:
        """What is known of the weights, in timm's terms: `mean`, `std`, `tag`, `license`, `input_size`.

        It comes from the entry, from timm, or from the `config.json` that `save_pretrained` writes beside the
        file. Of a single file nothing is known. `input_size` is the search image, of networks that have one.
        """
        if self.timm_cfg is not None:
            return {key: self.timm_cfg[key] for key in ("mean", "std", "license")}
        if self.entry is not None:
            size = self.entry.search_size
            return {
                "tag": self.entry.tag,
                "hf_hub_id": self.entry.repository,
                "mean": self.entry.mean,
                "std": self.entry.std,
                "license": self.entry.license,
                **({"input_size": (3, size, size)} if size else {}),
            }
        saved = self._config(cache_dir).get("pretrained_cfg")
        if not isinstance(saved, dict):
            return {}
        keys = ("mean", "std", "license", *(("input_size",) if "template_size" in saved else ()))
        return {key: saved[key] for key in keys if key in saved}

    def training_data(self, cache_dir: str | Path | None = None) -> list[dict[str, Any]]:
        """Records of the videos that the weights were trained on, see `describe_videos`.

        They come from the `config.json` beside the weights. Of other weights nothing is known: an empty list.
        """
        records = self._config(cache_dir).get("training_data")
        return [r for r in records if isinstance(r, dict)] if isinstance(records, list) else []

    def _config(self, cache_dir: str | Path | None) -> dict[str, Any]:
        """The `config.json` of `save_pretrained`, {} of weights without one."""
        config: Any = {}
        if self.repository is not None:
            config = fetch_repository(self.repository, cache_dir=cache_dir)[0]
        elif self.path is not None and (self.path.parent / "config.json").is_file():
            config = read_json(self.path.parent / "config.json")
        return config if isinstance(config, dict) else {}

    def read(self, cache_dir: str | Path | None = None) -> dict[str, Tensor]:
        """The tensors, by the names in the file.

        Raises:
            FileNotFoundError, ConnectionError, RuntimeError, ValueError: Weights that cannot be downloaded or
                read.
        """
        if self.state_dict is not None:
            return dict(self.state_dict)
        return read_state_dict(self.fetch(cache_dir))


def resolve_weights(source: bool | str | Path, model: str | None = None) -> WeightsSource:
    """Tells what `pretrained=`, `--weights` and `model.pretrained` mean.

    In this order: True for the default weights of the model; a tag of the model; `model.tag`, or a model for
    its default; `hf-hub:organisation/name[@revision]`; `timm:name[.tag]`, weights of a model of timm; a file,
    or a folder of `save_pretrained`.

    Weights of timm fill the `image_backbone` of the model: the ResNet of a `siam_resnet50_dw_track`, all of a
    `onestream_vit_*` but its head. `backbone:` before one of the others says that they do, too: weights of a
    single-image network, usually an ImageNet classifier, such as `backbone:resnet50.safetensors`.

    Args:
        source: What a user wrote.
        model: Architecture name that a bare tag and True refer to.

    Raises:
        ValueError: None of these; the message lists the tags of the model, or similar names.
        FileNotFoundError: A path that does not exist, or a folder without weights.
    """
    if source is True:
        if model is None:
            raise ValueError(
                "pretrained=True needs the name of a model; name the weights, such as 'model.tag'."
            )
        entry = default_entry(model)
        if entry is None and (listed := _in_timm(model)) is not None:
            return listed
        if entry is None:
            raise ValueError(f"No weights are known for {model!r}. {_hint(model, model)}")
        return WeightsSource(entry.name, entry=entry)
    text = str(source)
    if text.startswith(BACKBONE):
        return _of_backbone(text.removeprefix(BACKBONE))
    manifest = load_manifest()
    for name in (f"{model}.{text}", text):
        name = current_name(name)
        if name in manifest:
            return WeightsSource(name, entry=manifest[name])
        if (listed := _in_timm(name)) is not None:
            return listed
    entry = default_entry(text)
    if entry is not None:
        return WeightsSource(entry.name, entry=entry)
    if text.startswith("hf-hub:"):
        return WeightsSource(text, repository=text.removeprefix("hf-hub:"))
    if text.startswith(TIMM):
        return timm_weights(text.removeprefix(TIMM))
    path = Path(text.removeprefix("local-dir:"))
    if path.exists():
        return local_file(path)
    if "/" in text or path.suffix.lower() in SUFFIXES:
        repository = re.fullmatch(r"[\w.-]+/[\w.-]+", text)
        hint = f" For a repository of the Hub write 'hf-hub:{text}'." if repository else ""
        raise FileNotFoundError(f"There is no weights file {text!r}.{hint}")
    raise ValueError(f"No weights are known for {text!r}. {_hint(text, model or text)}")


def _of_backbone(text: str) -> WeightsSource:
    """Weights for the image backbone alone: as in `resolve_weights`, or by the former spelling of `timm:`."""
    if _is_timms(text):
        _warn_of_former(f"{BACKBONE}{text}", f"{TIMM}{text}")
        return timm_weights(text)
    return replace(resolve_weights(text), name=f"{BACKBONE}{text}", backbone_only=True)


def _is_timms(text: str) -> bool:
    """Whether a name, with or without a tag, is that of a model of timm, and not ours."""
    model = text.partition(".")[0]
    return bool(timm.models.is_model(model)) and model not in registered_models()


def run_hint(folder: str | Path) -> str:
    """A sentence that names the newest weights in the folder of a training run; empty for other folders."""
    checkpoints = sorted(Path(folder).glob("checkpoints/step-*/weights"))
    return f" It is the folder of a run, whose newest weights are {checkpoints[-1]}." if checkpoints else ""


def local_file(path: str | Path) -> WeightsSource:
    """A file of weights, or a folder of `save_pretrained`.

    Raises:
        FileNotFoundError: There is no such file, or the folder has no weights.
    """
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    if file != Path(path) and not file.is_file():
        raise FileNotFoundError(
            f"The folder {path} has no model.safetensors, which save_pretrained writes. Name a file, or a "
            f"folder with weights.{run_hint(path)}"
        )
    if not file.is_file():
        raise FileNotFoundError(f"There is no weights file {str(file)!r}.")
    return WeightsSource(str(path), path=file)


def timm_weights(name: str) -> WeightsSource:
    """Weights that timm knows for one of its own models, for the image backbone of a network.

    Args:
        name: Model of timm, with a tag (`vit_base_patch16_224.mae`) or without one for the default weights.

    Raises:
        ValueError: timm has no such model, no such tag, or no weights for it.
    """
    model, _, tag = name.partition(".")
    if not timm.models.is_model(model):
        near = ", ".join(near_names(model, timm.list_models()))
        raise ValueError(f"timm has no model {model!r}. Near: {near}.")
    tags = [full.partition(".")[2] for full in timm.models.list_pretrained(f"{model}.*")]
    if not tags or (tag and tag not in tags):
        known = f"Its tags: {', '.join(tags)}." if tags else "It has none at all."
        raise ValueError(f"timm has no weights '{TIMM}{name}'. {known}")
    cfg: Any = get_pretrained_cfg(name)
    described = {**cfg.to_dict(), "architecture": model}
    located = located_weights(cfg.to_dict())
    return replace(located, name=f"{TIMM}{name}", timm_cfg=described, backbone_only=True)


def located_weights(cfg: Mapping[str, Any]) -> WeightsSource:
    """The weights that a timm configuration names, in timm's order of precedence.

    Raises:
        FileNotFoundError: A file that does not exist.
        ValueError: It names none.
    """
    hub = cfg.get("hf_hub_id")
    if cfg.get("source") == "hf-hub":
        return WeightsSource(f"hf-hub:{hub}", repository=str(hub))
    if cfg.get("source") != "local-dir" and cfg.get("state_dict"):
        return WeightsSource("a state_dict", state_dict=cfg["state_dict"])
    if cfg.get("file"):
        return local_file(cfg["file"])
    if hub:
        repository, _, revision = str(hub).partition("@")
        file = cfg.get("hf_hub_filename") or "model.safetensors"
        return WeightsSource(f"hf-hub:{hub}", hub_file=(repository, file, revision or None))
    if cfg.get("url"):
        return WeightsSource(str(cfg["url"]), url=str(cfg["url"]))
    raise ValueError(
        f"pretrained_cfg={dict(cfg)!r} names no weights: give it file, url, hf_hub_id or state_dict."
    )


def _in_timm(name: str) -> WeightsSource | None:
    """Weights of a plug-in's model in timm's registry: `model.tag`, or `model` for its default ones."""
    model, _, tag = name.partition(".")
    tags = timm_tags(model)
    if not tags or (tag and tag not in tags):
        return None
    tag = tag or tags[0]
    cfg: Any = get_pretrained_cfg(f"{model}.{tag}")
    return replace(located_weights(cfg.to_dict()), name=f"{model}.{tag}", timm_tag=tag)


def default_entry(model: str) -> WeightsEntry | None:
    """The first entry of the manifest for a model; None without one."""
    return next((entry for entry in load_manifest().values() if entry.model == model), None)


def tags_of(model: str) -> list[str]:
    """Tags of a model's weights, the default first: in the manifest, then in timm for a plug-in's model."""
    return [entry.tag for entry in load_manifest().values() if entry.model == model] + timm_tags(model)


def current_name(name: str) -> str:
    """The present name of weights; a former one gives a `DeprecationWarning`."""
    if name not in RENAMED:
        return name
    _warn_of_former(name, RENAMED[name])
    return RENAMED[name]


def _warn_of_former(name: str, current: str) -> None:
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"{name!r} is called {current!r} now; the old name will be removed after the next release.",
        DeprecationWarning,
        stacklevel=level,  # the line of the user's code
    )


def _hint(text: str, model: str) -> str:
    if _is_timms(text):
        return f"For weights of timm write '{TIMM}{text}'."
    tags = tags_of(model.partition(".")[0])
    if tags:
        return f"Tags of {model.partition('.')[0]}: {', '.join(tags)}."
    former = [new for old, new in RENAMED.items() if old.partition(".")[0] == model]
    if former:
        return f"Its former weights are {' and '.join(former)} now: names of their own."
    trackers = [
        name for name in load_manifest() if name.startswith((f"{model}_track.", f"{model}_cell_track."))
    ]
    if trackers:
        return f"A tracker with this network has some: pretrained={trackers[0]!r} loads its part of them."
    near = near_names(text, load_manifest())
    hint = f"Near: {', '.join(near[:4])}. " if len(near) <= 4 else ""
    return f"{hint}`correlation-aware weights list` shows them all."
