"""STARK with a correlation-aware backbone, for unmodified checkouts of https://github.com/researchmm/Stark.

    from correlation_aware.adapters import stark

    stark.install()

in `tracking/test.py` and in `lib/train/run_training.py`, below their imports, and
`MODEL.BACKBONE.TYPE: sbt_small` in the YAML: a name of the zoo, or `SBT` for the network that comes nearest
to the paper's STARK-CA. Written against the interface of commit 162e1d3; nothing of STARK is copied.

STARK runs its backbone on the template first and on the search picture later, and joins the two maps behind
it. Here a template's call keeps its state for the search calls to come, and returns the features of the
template correlated with itself; a search call returns features that are correlated with the templates.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022), Table 6 - https://arxiv.org/abs/2203.01666
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware.adapters.lib_trackers import import_lib, load_stock
from correlation_aware.models.sbt import SBT, TemplateState
from correlation_aware.zoo import create_model

__all__ = ["CABackbone", "build_backbone", "install", "load_stock"]

Role = Literal["template", "search"]
# the paper says "modified SBT"; this one gives its figures, see docs/adapters_stark.md
PAPER_NAME = "sbt_small_pvtv2"
PAPER_DEPTHS, PAPER_CROSS_BLOCKS = (2, 2, 4), ((), (), (1, 3))
_stark = functools.partial(import_lib, tracker="STARK", address="https://github.com/researchmm/Stark")
TRACKERS = {"STARK_S_CA": ("stark_s", "STARK_S"), "STARK_ST_CA": ("stark_st", "STARK_ST")}


class CABackbone(nn.Module):
    """A two-input network behind STARK's one-input backbone interface.

    A tracker says what a call is with `serving`, as `STARK_S_CA` and `STARK_ST_CA` do. Where nobody says, the
    size decides, and where one size is both, the order of STARK's actors: all templates, then one search
    picture.

    Args:
        net: The network, of stride 16 or 8.
        template_sizes: Sides in pixels that a template may have.
        search_sizes: Sides in pixels that a search picture may have.
        num_templates: Templates of a target: 1 for STARK-S, 2 (first and dynamic) for STARK-ST.

    Attributes:
        num_channels: Channels of the features.
        templates: States of the templates that the next search picture is correlated with.
    """

    def __init__(
        self, net: SBT, template_sizes: Sequence[int], search_sizes: Sequence[int], num_templates: int = 1
    ) -> None:
        super().__init__()
        self.net = net
        self.sizes: dict[Role, tuple[int, ...]] = {
            "template": tuple(template_sizes),
            "search": tuple(search_sizes),
        }
        self.num_templates = num_templates
        self.num_channels = net.num_features
        self.templates: tuple[TemplateState, ...] = ()
        self._role: Role | None = None  # None: nobody says
        self._answered = False  # a search picture was correlated with `templates`
        self.register_load_state_dict_pre_hook(_refuse_stock)

    @contextmanager
    def serving(
        self, templates: Sequence[TemplateState], role: Role, num_templates: int = 1
    ) -> Iterator[None]:
        """Makes the calls inside belong to one target; read its `templates` afterwards.

        Args:
            templates: The target's states so far, none for a new target.
            role: What the first call is. Calls behind a search picture are templates again: the first
                template stays, the oldest of the others goes.
            num_templates: How many the target has; the first stands in for those that are yet to come.
        """
        mine, self.num_templates = self.num_templates, num_templates
        self.templates, self._role = tuple(templates), role
        try:
            yield
        finally:
            self.num_templates, self._role = mine, None

    def forward(self, tensor_list: Any) -> dict[str, Any]:
        """Features of one picture, under the key "0" as STARK's own backbone names its only layer.

        Args:
            tensor_list: STARK's NestedTensor: (B, 3, H, W) in ImageNet normalisation, and a mask (B, H, W)
                that is true on padding.

        Returns:
            {"0": NestedTensor} of (B, C, H / 16, W / 16), contiguous, and its mask.

        Raises:
            ValueError: No mask, or a size that is neither the template's nor the search picture's.
            RuntimeError: A search picture before any template.
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
            features = self.net.forward_template(state)  # B, C, H / 16, W / 16
        else:
            features = self.net(self._all_templates(), image)
            self._answered = True
            if self._role is not None:
                self._role = "template"
            elif self.training:
                self.templates = ()  # not to hold this step's graph
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
                f"The picture is {image.shape[2]} x {image.shape[3]} px; expected {expected}, square. "
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
        """All templates as one, one above the other: a search cell sees the cells of each."""
        if not self.templates:
            raise RuntimeError(
                "A search picture came before its template. Call the tracker's `initialize`, or run the "
                "backbone on the template first."
            )
        return TemplateState(torch.cat([state.features for state in self.templates], dim=1))


def build_backbone(cfg: Any, pretrained: bool | str | Path = False) -> nn.Module:
    """STARK's `build_backbone`: the backbone joined with STARK's own position encoding.

    Args:
        cfg: STARK's configuration. `MODEL.BACKBONE.TYPE` is a name of `correlation_aware.create_model`, with
            a tag (`sbt_small_pvtv2.in1k`) for its weights, or `SBT`; `DILATION: true` makes stride 8 of 16.
        pretrained: As of `create_model`: weights to start from.

    Raises:
        ValueError: An unknown TYPE, or an option that the network has not.
        ModuleNotFoundError: STARK is not importable.
    """
    stock = _stark("models.stark.backbone")
    if cfg.MODEL.PREDICT_MASK:
        raise ValueError("MODEL.PREDICT_MASK=True needs the maps of ResNet's layers; SBT takes only False.")
    name, _, tag = cfg.MODEL.BACKBONE.TYPE.partition(".")
    overrides: dict[str, Any] = {"strides": (4, 2, 1) if cfg.MODEL.BACKBONE.DILATION else (4, 2, 2)}
    if name.upper() == "SBT":
        name = PAPER_NAME
        overrides |= {"depths": PAPER_DEPTHS, "cross_blocks": PAPER_CROSS_BLOCKS}
    net = cast(SBT, create_model(name, pretrained or tag or False, **overrides))
    net.requires_grad_(cfg.TRAIN.BACKBONE_MULTIPLIER > 0)
    backbone = CABackbone(
        net,
        template_sizes=_sizes(cfg, "TEMPLATE"),
        search_sizes=_sizes(cfg, "SEARCH"),
        num_templates=getattr(cfg.DATA.TEMPLATE, "NUMBER", 1),
    )
    joined = stock.Joiner(backbone, stock.build_position_encoding(cfg))
    joined.num_channels = backbone.num_channels
    return joined


def install(pretrained: bool | str | Path = False) -> None:
    """Makes STARK build `MODEL.BACKBONE.TYPE: SBT` and `sbt_*`; other types are built as ever.

    STARK's testers keep their templates to themselves from here on: `stark_s` and `stark_st` run as
    `STARK_S_CA` and `STARK_ST_CA`. Calling it twice does no harm.

    Args:
        pretrained: As of `create_model`, for every network that is built: weights to start training from.

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
    if cfg.MODEL.BACKBONE.TYPE.lower().startswith("sbt"):
        return build_backbone(cfg, pretrained)
    stock: nn.Module = _stark("models.stark.backbone").build_backbone(cfg)
    return stock


def _sizes(cfg: Any, part: str) -> list[int]:
    """Of training and of testing; STARK-ST's first stage has no TEST."""
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
            "correlation_aware.adapters.stark.load_stock keeps the transformer and the heads, and says what "
            "it leaves. To go on with that network, set MODEL.BACKBONE.TYPE back to its name."
        )


class _OwnTemplates:
    """A tester that keeps its target's templates itself, so that testers may share a network."""

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
        if not isinstance(backbone, CABackbone):
            yield
            return
        with backbone.serving(templates, role, 1 + getattr(self, "num_extra_template", 0)):
            yield
        self.templates = backbone.templates


@functools.cache
def _own_templates(base: type) -> type:
    doc = f"STARK's `{base.__name__}`; see `install`. A new target drops every template of the last."
    return type(f"{base.__name__}_CA", (_OwnTemplates, base), {"__module__": __name__, "__doc__": doc})


def __getattr__(name: str) -> Any:
    if name in TRACKERS:  # built on use, since they derive from STARK's classes
        module, base = TRACKERS[name]
        return _own_templates(getattr(_stark(f"test.tracker.{module}"), base))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
