"""The zoo: a variant is one line here, registered with timm."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm.models
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from torch import nn

from correlation_aware import weights
from correlation_aware._files import read_json
from correlation_aware.models.heads import CellHead, MixerHead
from correlation_aware.models.sbt import SBT, SBTClassifier, SBTConfig, SBTFeatures
from correlation_aware.models.tracker import TrackModel
from correlation_aware.pretrained import load_pretrained

__all__ = [
    "VARIANTS",
    "Variant",
    "create_model",
    "from_pretrained",
    "has_weights",
    "list_models",
]


@dataclass(frozen=True)
class Variant:
    """A line of the zoo.

    Attributes:
        config: The two-input network.
        fourth: Channels, heads and depth of the stage that only the classifier has.
    """

    config: SBTConfig
    fourth: tuple[int, int, int]

    def classifier_config(self) -> SBTConfig:
        """The `_cls` network: a fourth stage, strides 4, 2, 2, 2, one stream, a norm behind every stage."""
        c, (dim, heads, depth) = self.config, self.fourth
        return replace(
            c,
            dims=(*c.dims, dim),
            heads=(*c.heads, heads),
            depths=(*c.depths, depth),
            mlp_ratios=(*c.mlp_ratios, 4),
            sr_ratios=(*c.sr_ratios, 1),
            strides=(4, 2, 2, 2),
            cross_blocks=((), (), (), ()),
            stage_norms=True,
        )


_LIGHT = SBTConfig(dims=(32, 64, 160), depths=(2, 2, 6), cross_blocks=((), (), (1, 3, 5)))
_SMALL = SBTConfig(depths=(2, 2, 6), cross_blocks=((), (), (1, 3, 5)))
_BASE = SBTConfig(depths=(3, 4, 10), cross_blocks=((), (), (1, 3, 5, 7, 9)))
_LARGE = SBTConfig(depths=(3, 4, 18), cross_blocks=((), (), (5, 7, 9, 11, 13, 15, 17)))
_HUGE = SBTConfig(depths=(3, 8, 27), cross_blocks=((), (), tuple(range(2, 27, 2))))
_PVT = (8, 8, 4)  # PVTv2's MLP ratios
_TEST = SBTConfig(
    dims=(16, 32, 32),
    heads=(1, 2, 2),
    depths=(1, 1, 4),
    cross_blocks=((), (), (1, 3)),
    template_size=64,
    search_size=128,
)

VARIANTS: dict[str, Variant] = {
    "sbt_light": Variant(_LIGHT, (256, 8, 2)),
    "sbt_small": Variant(_SMALL, (512, 8, 2)),
    "sbt_base": Variant(_BASE, (512, 8, 2)),
    "sbt_large": Variant(_LARGE, (512, 8, 2)),
    "sbt_light_pvtv2": Variant(replace(_LIGHT, mlp_ratios=_PVT), (256, 8, 2)),
    "sbt_small_pvtv2": Variant(replace(_SMALL, mlp_ratios=_PVT), (512, 8, 2)),
    "sbt_base_pvtv2": Variant(replace(_BASE, mlp_ratios=_PVT), (512, 8, 2)),
    "sbt_large_pvtv2": Variant(replace(_LARGE, mlp_ratios=_PVT), (512, 8, 3)),  # its _cls is PVTv2-B3
    "sbt_huge_pvtv2": Variant(replace(_HUGE, mlp_ratios=_PVT), (512, 8, 3)),  # its _cls is PVTv2-B4
    "sbt_test": Variant(_TEST, (32, 2, 1)),  # tiny, for tests
}


def create_model(
    name: str | Path,
    pretrained: bool | str | Path = False,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    **overrides: Any,
) -> nn.Module:
    """Creates a model of the zoo.

    Args:
        name: `sbt_base`, `sbt_base_track` (with prediction head), `sbt_base_cls` (classifier), with or
            without a weights tag (`sbt_large_pvtv2.in1k`); `hf-hub:organisation/name[@revision]`; or a
            folder written by `save_pretrained`.
        pretrained: True for the weights that belong to the name, or whose weights to take: a tag, a
            `model.tag`, an `hf-hub:` name, a local file or folder.
        features_only: Return the search features of the stages `out_indices` as a list.
        out_indices: Stages for `features_only`, 0-indexed; all by default.
        checkpoint_path: A local file loaded last, strictly.
        cache_dir: Where downloads go instead of the Hugging Face cache.
        **overrides: Fields of `SBTConfig`; a tracker's `head`, `mixer` (the paper's) or `cell`; `num_classes`
            and `drop_rate` of a classifier; `in_chans`, `device`, `dtype`.

    Returns:
        The model in training mode, as timm does; call `.eval()` to use it.

    Raises:
        ValueError: An unknown name, override or value; the message names the near ones.
        FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be had or that are damaged.
    """
    arch, source, saved = _resolve(str(name), cache_dir)
    if pretrained is True:
        pretrained = source or True
    model: Any = _build(
        arch,
        pretrained,
        features_only=features_only,
        out_indices=out_indices,
        cache_dir=cache_dir,
        **{**saved.get("model_args", {}), **overrides},
    )
    described = saved.get("pretrained_cfg", {})
    inherited = ("tag", "mean", "std", "license")
    model.pretrained_cfg.update({key: described[key] for key in inherited if key in described})
    if checkpoint_path is not None:
        load_pretrained(model, checkpoint_path)
    return model


def list_models(filter: str = "", pretrained: bool = False) -> list[str]:
    """Names of the zoo, in natural order.

    Args:
        filter: Wildcards, for example `sbt_*_track`.
        pretrained: Only names with weights, with their tags.
    """
    return [n for n in timm.models.list_models(filter, pretrained=pretrained) if n.split(".")[0] in _NAMES]


def has_weights(name: str) -> bool:
    """Whether `create_model(name, pretrained=True)` has weights to load: a folder has, a name may."""
    return not timm.models.is_model(name) or timm.models.is_model_pretrained(name)


def from_pretrained(source: str | Path, cache_dir: str | Path | None = None, **overrides: Any) -> nn.Module:
    """Model and weights of a folder of `save_pretrained`, or of `hf-hub:organisation/name[@revision]`."""
    return create_model(source, pretrained=True, cache_dir=cache_dir, **overrides)


def _resolve(name: str, cache_dir: str | Path | None) -> tuple[str, str | None, dict[str, Any]]:
    """What a name means: architecture, source of its weights (None: the manifest's), saved config."""
    folder = Path(name.removeprefix("local-dir:"))
    if name.startswith("hf-hub:"):
        source = name
        config, _ = weights.fetch_repository(name, cache_dir=cache_dir)
    elif name.startswith("local-dir:") or folder.is_dir():
        source = str(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no config.json; a model's folder is written by save_pretrained."
            )
        config = read_json(folder / "config.json")
    else:
        arch, _, tag = name.partition(".")
        return arch, f"{arch}.{tag}" if tag else None, {}
    if not isinstance(config, dict) or "architecture" not in config:
        raise ValueError(f"config.json of {source} names no architecture: not a model of save_pretrained.")
    return config["architecture"], source, config


def _build(
    arch: str,
    pretrained: bool | str | Path,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    cache_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **arguments: Any,
) -> nn.Module:
    base, kind = _split_kind(arch)
    if (features_only or out_indices is not None) and kind:
        raise ValueError(
            f"features_only and out_indices are for the feature network: create_model('{base}', ...)."
        )
    source = _pretrained_source(arch, pretrained)
    entry = weights.load_manifest().get(str(source))
    if entry is not None and entry.model == arch:
        arguments = {**(entry.model_args or {}), **arguments}
    with torch.device(device or torch.get_default_device()):
        model: Any = _make(base, kind, **arguments)
        config = model.backbone.config if kind == "track" else model.config
        if features_only:
            model = SBTFeatures(model, range(len(config.dims)) if out_indices is None else out_indices)
    model = model.to(dtype=dtype)
    model.model_args = arguments
    model.pretrained_cfg = _pretrained_cfg(arch, config, entry, arguments.get("in_chans", 3))
    model.default_cfg = model.pretrained_cfg  # timm's older name
    if source is not None:
        load_pretrained(model, source, cache_dir=cache_dir)
    return model


def _make(
    base: str,
    kind: str,
    in_chans: int = 3,
    num_classes: int | None = None,
    drop_rate: float = 0.0,
    head: str = "mixer",
    **overrides: Any,
) -> nn.Module:
    variant = VARIANTS[base]
    cfg = variant.classifier_config() if kind == "cls" else variant.config
    cfg = replace(cfg, **_check_overrides(overrides))
    if kind == "cls":
        return SBTClassifier(cfg, in_chans, 1000 if num_classes is None else num_classes, drop_rate)
    if num_classes or drop_rate:
        raise ValueError(f"num_classes and drop_rate are a classifier's: create_model('{base}_cls', ...).")
    backbone = SBT(cfg, in_chans)
    if kind == "":
        return backbone
    reduction = math.prod(cfg.strides)
    side = cfg.search_size // reduction
    if head == "mixer":
        return TrackModel(backbone, MixerHead(cfg.dims[-1], (side, side), reduction))
    if head == "cell":
        return TrackModel(backbone, CellHead(cfg.dims[-1]))
    raise ValueError(f"head={head!r} is not one of mixer, cell.")


def _split_kind(arch: str) -> tuple[str, str]:
    base, _, kind = arch.rpartition("_")
    if kind not in ("track", "cls"):
        base, kind = arch, ""
    if base not in VARIANTS:
        known = [f"{b}{suffix}" for b in VARIANTS for suffix in ("", "_track", "_cls")]
        near = difflib.get_close_matches(arch, known, n=4) or list(VARIANTS)
        raise ValueError(
            f"There is no model {arch!r}. Near: {', '.join(near)}. See correlation_aware.list_models()."
        )
    return base, kind


def _check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    known = [f.name for f in fields(SBTConfig)]
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or known
            raise ValueError(f"Unknown override {key!r}. Near: {', '.join(near)}.")
    return {key: _as_tuple(value) for key, value in overrides.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(v) for v in value) if isinstance(value, (list, tuple)) else value


def _pretrained_source(arch: str, pretrained: bool | str | Path) -> str | Path | None:
    """The name or path for `load_pretrained`; a bare tag is completed, no weights at all is an error."""
    if pretrained is False:
        return None
    if pretrained is True:
        return weights.find_entry(arch).name
    tagged = f"{arch}.{pretrained}"
    return tagged if tagged in weights.load_manifest() else pretrained


def _pretrained_cfg(
    arch: str, cfg: SBTConfig, entry: weights.WeightsEntry | None, in_chans: int
) -> dict[str, Any]:
    return {
        "architecture": arch,
        "tag": entry.tag if entry else None,
        "input_size": (in_chans, cfg.search_size, cfg.search_size),
        "template_size": (in_chans, cfg.template_size, cfg.template_size),
        "template_factor": cfg.template_factor,
        "search_factor": cfg.search_factor,
        "mean": tuple(entry.mean) if entry else IMAGENET_DEFAULT_MEAN,
        "std": tuple(entry.std) if entry else IMAGENET_DEFAULT_STD,
        "interpolation": "bilinear",
        "first_conv": "stages.0.embed.proj",
        "classifier": "head" if arch.endswith("_cls") else None,
        "license": entry.license if entry else None,
    }


def _register(name: str) -> Callable[..., nn.Module]:
    """Makes `name` known to timm.

    Raises:
        ValueError: The name is taken.
    """
    if timm.models.is_model(name):
        raise ValueError(f"timm knows a model {name!r} already; two models cannot share a name.")

    def entrypoint(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: str | Path | None = None,
        **overrides: Any,
    ) -> nn.Module:
        source: bool | str = pretrained
        if pretrained and pretrained_cfg:  # a tag, or where timm resolved `hf-hub:` and `local-dir:` to
            cfg = pretrained_cfg if isinstance(pretrained_cfg, (str, dict)) else asdict(pretrained_cfg)
            if isinstance(cfg, str):
                source = cfg
            elif cfg.get("source") == "hf-hub":
                source = f"hf-hub:{cfg['hf_hub_id']}"
            elif cfg.get("source") == "local-dir":
                source = cfg["file"]
        overrides.pop("pretrained_model_args", None)
        return _build(name, source, cache_dir=cache_dir, **overrides)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"`{name}`, see `correlation_aware.create_model`."
    globals()[name] = entrypoint  # timm adds the name to __all__
    return register_model(entrypoint)


_NAMES = [f"{base}{suffix}" for base in VARIANTS for suffix in ("", "_track", "_cls")]
_with_weights = {entry.model for entry in weights.load_manifest().values()}
_cfgs: dict[str, Any] = {name: {} for name in _NAMES if name not in _with_weights}
default_cfgs = generate_default_cfgs(
    _cfgs
    | {
        name: {
            "hf_hub_id": e.repository,
            "hf_hub_filename": e.file if e.source == "hub" else None,
            "url": e.url,
            "file": e.file if e.source == "bundled" else None,
            "mean": e.mean,
            "std": e.std,
            "license": e.license,
        }
        for name, e in weights.load_manifest().items()
    }
)
for _name in _NAMES:
    _register(_name)
