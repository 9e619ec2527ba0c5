"""STARK with a correlation-aware backbone, for unmodified checkouts of https://github.com/researchmm/Stark.

    from correlation_aware.adapters import stark

    stark.install()

in `tracking/test.py` and in `lib/train/run_training.py`, below their imports, and
`MODEL.BACKBONE.TYPE: sbt_small` in the YAML: a name of the zoo, or `SBT` for `sbt_small_stark`, which is
nearest to the paper's STARK-CA. Written for the interface of commit 162e1d3; nothing of STARK is copied.

STARK runs its backbone on the template first and on the search image later, and its transformer joins the two
feature maps. Here a template call keeps the template's state for the search calls that follow, and returns
the features of the template correlated with itself; a search call returns features that are correlated with
the templates.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022), Table 6 - https://arxiv.org/abs/2203.01666
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware.adapters.backbones import create_backbone, in_zoo, renamed
from correlation_aware.adapters.lib_trackers import import_lib, load_stock, name_and_weights
from correlation_aware.models.contract import TemplateState, TwoInputModel

__all__ = ["DEFAULT_NAME", "STARKBackbone", "build_backbone", "install", "load_stock"]

Role = Literal["template", "search"]
DEFAULT_NAME = "sbt_small_stark"  # of TYPE: SBT
STOCK_TYPES = ("resnet", "RepVGG")  # how the names of STARK's own backbones begin
_stark = functools.partial(import_lib, tracker="STARK", address="https://github.com/researchmm/Stark")
TRACKERS = {"STARK_S_CA": ("stark_s", "STARK_S"), "STARK_ST_CA": ("stark_st", "STARK_ST")}


class STARKBackbone(nn.Module):
    """A two-input network with the interface of STARK's one-input backbones.

    `serving` tells the role of a call, as `STARK_S_CA` and `STARK_ST_CA` do. Without it, in training, the
    size of the image decides. If templates and search images have one size, the order of STARK's actors
    decides: all templates, then one search image.

    Args:
        net: The network, of stride 16 or 8.
        template_sizes: Sides in pixels that a template may have.
        search_sizes: Sides in pixels that a search image may have.
        num_templates: Templates of a target: 1 for STARK-S, 2 (first and dynamic) for STARK-ST.

    Attributes:
        num_channels: Channels of the features.
        templates: States of the templates that the next search image is correlated with.

    Raises:
        ValueError: Several templates, of a network that takes one.
    """

    def __init__(
        self,
        net: TwoInputModel,
        template_sizes: Sequence[int],
        search_sizes: Sequence[int],
        num_templates: int = 1,
    ) -> None:
        super().__init__()
        if num_templates > 1 and type(net).join_templates is TwoInputModel.join_templates:
            raise ValueError(
                f"num_templates={num_templates}, but {type(net).__name__} takes one template: it does not "
                "implement join_templates. Track with STARK-S, or set DATA.TEMPLATE.NUMBER to 1."
            )
        self.net = net
        self.sizes: dict[Role, tuple[int, ...]] = {
            "template": tuple(template_sizes),
            "search": tuple(search_sizes),
        }
        self.num_templates = num_templates
        self.num_channels = net.num_features
        self.templates: tuple[TemplateState, ...] = ()
        self._role: Role | None = None  # of the next call; None outside of `serving`
        self._answered = False  # whether a search image was correlated with `templates`
        self.register_load_state_dict_pre_hook(_refuse_stock)

    @contextmanager
    def serving(
        self, templates: Sequence[TemplateState], role: Role, num_templates: int = 1
    ) -> Iterator[None]:
        """Context in which all calls belong to one target, whose states are then in `templates`.

        Args:
            templates: States of the target's templates, empty for a new target.
            role: Role of the first call. Calls after a search image are templates, which replace the oldest
                but the first.
            num_templates: Number of templates of the target; the first one fills the places of those to come.
        """
        mine, self.num_templates = self.num_templates, num_templates
        self.templates, self._role = tuple(templates), role
        try:
            yield
        finally:
            self.num_templates, self._role = mine, None

    def forward(self, tensor_list: Any) -> dict[str, Any]:
        """Features of one image, under the key "0" as STARK's own backbone names its only layer.

        Args:
            tensor_list: STARK's NestedTensor: (B, 3, H, W) normalized RGB, and a mask (B, H, W) that is true
                on padding.

        Returns:
            {"0": NestedTensor} of (B, C, H / 16, W / 16), contiguous, and its mask.

        Raises:
            ValueError: No mask, or a size that is neither the template's nor the search image's.
            RuntimeError: A search image before any template.
        """
        image, mask = tensor_list.tensors, tensor_list.mask
        if mask is None:
            raise ValueError(
                f"A NestedTensor of shape {tuple(image.shape)} has no mask; STARK needs one of (B, H, W), "
                "true on padding."
            )
        if self._decide(image) == "template":
            state = self.net.encode_template(image)
            self._keep(state)
            features = self.net.forward_template(image, state)  # B, C, H / 16, W / 16
        else:
            features = self.net(self._all_templates(), image)
            self._answered = True
            if self._role is not None:
                self._role = "template"
            elif self.training:
                self.templates = ()  # releases the graph of this training step
        small = F.interpolate(mask[:, None].float(), size=features.shape[-2:])[:, 0].bool()
        return {"0": type(tensor_list)(features, small)}

    def _decide(self, image: Tensor) -> Role:
        fits: list[Role] = [role for role, sizes in self.sizes.items() if _side(image) in sizes]
        if not fits or self._role not in (None, *fits):
            expected = " or ".join(
                f"a {role} of {' or '.join(map(str, sizes))} px"
                for role, sizes in self.sizes.items()
                if self._role in (None, role)
            )
            raise ValueError(
                f"The image is {image.shape[2]} x {image.shape[3]} px; expected {expected}, square. "
                "Set DATA.TEMPLATE.SIZE, DATA.SEARCH.SIZE, TEST.TEMPLATE_SIZE and TEST.SEARCH_SIZE."
            )
        if self._role is not None:
            return self._role
        if len(fits) == 1:
            return fits[0]
        full = len(self.templates) == self.num_templates and not self._answered
        return "search" if full else "template"

    def _keep(self, state: TemplateState) -> None:
        if self._role is None:
            old = () if self._answered or len(self.templates) == self.num_templates else self.templates
            self.templates = (*old, state)
        elif not self.templates:
            self.templates = (state,) * self.num_templates
        elif self.num_templates == 1:
            self.templates = (state,)
        else:
            self.templates = (self.templates[0], *self.templates[2:], state)
        self._answered = False

    def _all_templates(self) -> TemplateState:
        if not self.templates:
            raise RuntimeError(
                "A search image came before its template. Call the tracker's `initialize`, or run the "
                "backbone on the template first."
            )
        return self.net.join_templates(self.templates)


def build_backbone(cfg: Any, pretrained: bool | str | Path = False) -> nn.Module:
    """STARK's `build_backbone`: the backbone joined with STARK's own position encoding.

    Args:
        cfg: STARK's configuration. `MODEL.BACKBONE.TYPE` is a name of `correlation_aware.create_model`, with
            a tag (`sbt_small_pvtv2.in1k`) for its weights, or `SBT`; `DILATION: true` takes stride 8 instead
            of 16.
        pretrained: Weights to start from, as of `create_model`.

    Raises:
        ValueError: An unknown TYPE, a network that does not have the stride, or PREDICT_MASK.
        ModuleNotFoundError: STARK is not importable.
    """
    stock = _stark("models.stark.backbone")
    if cfg.MODEL.PREDICT_MASK:
        raise ValueError(
            "MODEL.PREDICT_MASK=True needs the feature maps of ResNet's layers; set it to False."
        )
    name, own_weights = name_and_weights(cfg.MODEL.BACKBONE.TYPE, DEFAULT_NAME)
    stride = 8 if cfg.MODEL.BACKBONE.DILATION else 16
    net = create_backbone("STARK", name, stride, pretrained or own_weights)
    net.requires_grad_(cfg.TRAIN.BACKBONE_MULTIPLIER > 0)
    backbone = STARKBackbone(
        net,
        template_sizes=_sizes(cfg, "TEMPLATE"),
        search_sizes=_sizes(cfg, "SEARCH"),
        num_templates=getattr(cfg.DATA.TEMPLATE, "NUMBER", 1),
    )
    joined = stock.Joiner(backbone, stock.build_position_encoding(cfg))
    joined.num_channels = backbone.num_channels
    return joined


def install(pretrained: bool | str | Path = False) -> None:
    """Makes STARK build backbones of the zoo: `MODEL.BACKBONE.TYPE: SBT` or a name of `create_model`.

    STARK's own types (ResNet, RepVGG) are built as before. Its trackers `stark_s` and `stark_st` run as
    `STARK_S_CA` and `STARK_ST_CA`, which keep their templates themselves. A second call changes nothing.

    Args:
        pretrained: Weights to start training from, as of `create_model`, for every network that is built.

    Raises:
        ModuleNotFoundError: STARK is not importable.
    """
    build = functools.partial(_build_either, pretrained=pretrained)
    for module in ("stark_s", "stark_st"):
        _stark(f"models.stark.{module}").build_backbone = build
    for module, name in TRACKERS.values():
        tester = _stark(f"test.tracker.{module}")
        # not the class itself: its __init__ finds its base by its own name
        tester.get_tracker_class = functools.partial(_own_templates, getattr(tester, name))


def _build_either(cfg: Any, pretrained: bool | str | Path) -> nn.Module:
    name: str = cfg.MODEL.BACKBONE.TYPE
    if in_zoo(name) or not name.startswith(STOCK_TYPES):
        return build_backbone(cfg, pretrained)
    stock: nn.Module = _stark("models.stark.backbone").build_backbone(cfg)
    return stock


def _sizes(cfg: Any, part: str) -> list[int]:
    """Sizes of training and testing; the configuration of STARK-ST's first stage has no TEST."""
    size: int = getattr(cfg.DATA, part).SIZE
    return sorted({size, getattr(getattr(cfg, "TEST", None), f"{part}_SIZE", size)})


def _side(image: Tensor) -> int | None:
    height, width = image.shape[-2:]
    return height if height == width else None


def _refuse_stock(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    foreign = sum(key.startswith(f"{prefix}body.") for key in state_dict)
    if foreign:
        raise RuntimeError(
            f"This checkpoint is of a STARK with its own backbone: {foreign} tensors under {prefix}body. "
            "correlation_aware.adapters.stark.load_stock loads the transformer and the heads, and returns "
            "the names that it leaves. To use that network itself, set MODEL.BACKBONE.TYPE back to its name."
        )


class _OwnTemplates:
    """A tracker of STARK's that keeps the states of its own target, so that trackers can share a network."""

    network: Any
    templates: tuple[TemplateState, ...] = ()

    def initialize(self, image: Any, info: dict[str, Any]) -> Any:
        with self._serving((), "template"):
            return super().initialize(image, info)  # type: ignore[misc]

    def track(self, image: Any, info: dict[str, Any] | None = None) -> Any:
        with self._serving(self.templates, "search"):
            return super().track(image, info)  # type: ignore[misc]

    @contextmanager
    def _serving(self, templates: tuple[TemplateState, ...], role: Role) -> Iterator[None]:
        backbone = self.network.backbone[0]
        if not isinstance(backbone, STARKBackbone):
            yield
            return
        with backbone.serving(templates, role, 1 + getattr(self, "num_extra_template", 0)):
            yield
        self.templates = backbone.templates


@functools.cache
def _own_templates(base: type) -> type:
    doc = f"STARK's `{base.__name__}` with templates of its own; see `install`."
    return type(f"{base.__name__}_CA", (_OwnTemplates, base), {"__module__": __name__, "__doc__": doc})


_renamed = renamed(globals(), {"CABackbone": "STARKBackbone"})


def __getattr__(name: str) -> Any:
    if name in TRACKERS:  # built on use, since they derive from STARK's classes
        module, base = TRACKERS[name]
        return _own_templates(getattr(_stark(f"test.tracker.{module}"), base))
    return _renamed(name)
