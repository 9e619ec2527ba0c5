"""OSTrack with a correlation-aware backbone, for unmodified checkouts of https://github.com/botaoye/OSTrack.

    from correlation_aware.adapters import ostrack

    ostrack.install()

in `tracking/test.py` and in `lib/train/run_training.py`, below their imports, and
`MODEL.BACKBONE.TYPE: SBT` in the YAML (`sbt_base`), or any name of the zoo. Head, loss, window and data are
OSTrack's own. Written for the interface of commit 33b5e12; nothing of OSTrack is copied.

OSTrack passes the template image to its backbone with every search image. Here the state of a template is
kept as long as the tracker keeps that image, so that it is encoded once.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from correlation_aware.adapters.backbones import create_backbone, in_zoo, renamed
from correlation_aware.adapters.lib_trackers import import_lib, load_stock, name_and_weights
from correlation_aware.models.contract import TemplateState, TwoInputModel

__all__ = ["DEFAULT_NAME", "OSTrackBackbone", "build_ostrack", "install", "load_stock"]

DEFAULT_NAME = "sbt_base"  # of TYPE: SBT
STOCK_TYPES = ("vit_base_patch16_224", "vit_large_patch16_224")  # how the names of OSTrack's own begin
_ostrack = functools.partial(import_lib, tracker="OSTrack", address="https://github.com/botaoye/OSTrack")


class OSTrackBackbone(nn.Module):
    """A two-input network with the interface of OSTrack's backbones.

    Args:
        net: The network, of stride 16 or 8.
        template_sizes: Sides in pixels that a template may have.
        search_size: Side in pixels of the search image, which OSTrack's head depends on.

    Attributes:
        embed_dim: Channels of the tokens.
    """

    def __init__(self, net: TwoInputModel, template_sizes: Sequence[int], search_size: int) -> None:
        super().__init__()
        self.net = net
        self.template_sizes = tuple(template_sizes)
        self.search_size = search_size
        self.embed_dim = net.num_features
        self._states = WeakIdKeyDictionary()  # template image: its version, its state
        self.register_load_state_dict_pre_hook(_before_load)

    def forward(
        self,
        z: Tensor,
        x: Tensor,
        ce_template_mask: Tensor | None = None,
        ce_keep_rate: float | None = None,
        return_last_attn: bool = False,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Tokens of the search image, correlated with the template.

        Args:
            z: Template, (B, 3, Hz, Wz) normalized RGB.
            x: Search image, (B, 3, Hx, Wx) normalized RGB.
            ce_template_mask: Argument of OSTrack's ViTs, which drop tokens; without effect here.
            ce_keep_rate: As `ce_template_mask`.
            return_last_attn: As `ce_template_mask`.

        Returns:
            (B, Hx / stride * Wx / stride, C), and {"attn": None} in place of a ViT's attention.

        Raises:
            ValueError: Images of another size than the configuration's, or several templates.
        """
        if not isinstance(z, Tensor):
            raise ValueError(
                f"z is a {type(z).__name__}, not one template (B, 3, H, W). Set DATA.TEMPLATE.NUMBER to 1."
            )
        _check(z, "template", self.template_sizes)
        _check(x, "search image", (self.search_size,))
        features = self.net(self._encode(z), x)  # B, C, H, W
        return features.flatten(2).transpose(1, 2), {"attn": None}

    def _encode(self, template: Tensor) -> TemplateState:
        if self.training or torch.is_grad_enabled():
            return self.net.encode_template(template)
        version = 0 if template.is_inference() else template._version  # counts writes in place
        known = self._states.get(template)
        if known is None or known[0] != version:
            known = self._states[template] = (version, self.net.encode_template(template))
        state: TemplateState = known[1]
        return state

    def train(self, mode: bool = True) -> "OSTrackBackbone":
        """As of every module; drops the states, since the weights may have changed."""
        self._states.clear()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "OSTrackBackbone":
        self._states.clear()  # `.to`, `.half`, ...
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_states"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._states = WeakIdKeyDictionary()


def build_ostrack(cfg: Any, training: bool = True, pretrained: bool | str | Path = False) -> nn.Module:
    """OSTrack's `build_ostrack`: OSTrack's own network and head with our backbone.

    Args:
        cfg: OSTrack's configuration. `MODEL.BACKBONE.TYPE` is a name of `correlation_aware.create_model` or
            `SBT`; `MODEL.BACKBONE.STRIDE` 16 or 8; `TRAIN.DROP_PATH_RATE` the network's `drop_path_rate`;
            `MODEL.PRETRAIN_FILE` names weights of the zoo (`in1k`, a file), or is empty.
        training: Start from `MODEL.PRETRAIN_FILE`.
        pretrained: Weights to start from where `MODEL.PRETRAIN_FILE` is empty, as of `create_model`.

    Raises:
        ValueError: An unknown TYPE, a network that does not have the STRIDE, or an option of OSTrack's ViTs.
        TypeError: A DROP_PATH_RATE, of a network without one.
        FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be downloaded or read.
        ModuleNotFoundError: OSTrack is not importable.
    """
    stock = _ostrack("models.ostrack.ostrack")
    options = cfg.MODEL.BACKBONE
    if options.STRIDE not in (16, 8):
        raise ValueError(f"MODEL.BACKBONE.STRIDE={options.STRIDE} is not one of 16, 8.")
    if options.CE_LOC:
        raise ValueError(
            f"MODEL.BACKBONE.CE_LOC={options.CE_LOC} drops tokens of a ViT; set it to [] for {options.TYPE}, "
            "or take an experiment without `_ce`."
        )
    name, own_weights = name_and_weights(options.TYPE, DEFAULT_NAME)
    start = (_weights(cfg) or own_weights or pretrained) if training else False
    rate = cfg.TRAIN.DROP_PATH_RATE
    arguments = {"drop_path_rate": rate} if rate else None
    try:
        net = create_backbone("OSTrack", name, options.STRIDE, start, arguments)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise TypeError(
            f"TRAIN.DROP_PATH_RATE={rate}: {name!r} has no stochastic depth (drop_path_rate), which "
            "OSTrack's own experiments have; set it to 0."
        ) from error
    backbone = OSTrackBackbone(
        net,
        template_sizes=sorted({cfg.DATA.TEMPLATE.SIZE, cfg.TEST.TEMPLATE_SIZE}),
        search_size=cfg.DATA.SEARCH.SIZE,
    )
    head = stock.build_box_head(cfg, backbone.embed_dim)
    model: nn.Module = stock.OSTrack(backbone, head, aux_loss=False, head_type=cfg.MODEL.HEAD.TYPE)
    return model


def install(pretrained: bool | str | Path = False) -> None:
    """Makes OSTrack build backbones of the zoo: `MODEL.BACKBONE.TYPE: SBT` or a name of `create_model`.

    OSTrack's own types (`vit_*`) are built as before.

    Args:
        pretrained: Weights to start training from, as of `create_model`, for every network that is built.

    Raises:
        ModuleNotFoundError: OSTrack is not importable.
    """
    build = functools.partial(_build_either, pretrained=pretrained)
    _ostrack("models.ostrack")
    for name in ("models", "models.ostrack", "test.tracker.ostrack", "train.train_script"):
        if f"lib.{name}" in sys.modules:  # the others import it from `lib.models.ostrack` later
            _ostrack(name).build_ostrack = build


def _build_either(cfg: Any, training: bool = True, pretrained: bool | str | Path = False) -> nn.Module:
    name: str = cfg.MODEL.BACKBONE.TYPE
    if in_zoo(name) or not name.startswith(STOCK_TYPES):
        return build_ostrack(cfg, training, pretrained)
    stock: nn.Module = _ostrack("models.ostrack.ostrack").build_ostrack(cfg, training)
    return stock


def _weights(cfg: Any) -> str:
    file: str = cfg.MODEL.PRETRAIN_FILE
    if "OSTrack" in file or file.startswith("mae_"):
        raise ValueError(
            f"MODEL.PRETRAIN_FILE={file!r} is not for {cfg.MODEL.BACKBONE.TYPE}. Set it to '', or to weights "
            "of the zoo such as 'in1k'; `load_stock` loads what fits of a checkpoint of OSTrack."
        )
    return file


def _check(image: Tensor, name: str, sizes: Sequence[int]) -> None:
    height, width = image.shape[-2:]
    if height != width or height not in sizes:
        raise ValueError(
            f"The {name} is {height} x {width} px; expected {' or '.join(map(str, sizes))}, square. Set "
            "DATA.TEMPLATE.SIZE, DATA.SEARCH.SIZE, TEST.TEMPLATE_SIZE and TEST.SEARCH_SIZE."
        )


def _before_load(module: OSTrackBackbone, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    module._states.clear()
    foreign = sum(not key.startswith(f"{prefix}net.") for key in state_dict if key.startswith(prefix))
    if foreign:
        raise RuntimeError(
            f"This checkpoint is of an OSTrack with its own backbone: {foreign} tensors under {prefix} are a "
            "ViT's. correlation_aware.adapters.ostrack.load_stock loads the head, and returns the names "
            "that it leaves. To use that network itself, set MODEL.BACKBONE.TYPE back to its name."
        )


__getattr__ = renamed(globals(), {"SBTBackbone": "OSTrackBackbone"})
