"""The contract of two-input networks: all that the tracker, sessions, export, training and adapters rely on.

A family derives from `TwoInputModel` and implements `encode_template` and `forward_features`; everything else
has a default that a family may replace by something faster.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from operator import index
from types import MappingProxyType
from typing import Any

import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.fx._pytree import register_pytree_flatten_spec
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils import _pytree as pytree

from correlation_aware.models.attention_maps import AttentionMap

__all__ = [
    "SIZES_ARE_FIXED",
    "FeatureNet",
    "Sizes",
    "TemplateState",
    "TwoInputModel",
    "check_batch",
    "check_image",
    "choose_levels",
    "common_batch",
    "find_first_conv",
    "limited_size",
    "make_state",
    "refuse_wrapper",
]


SIZES_ARE_FIXED = (
    "The sizes of a network cannot be changed: its layers and its description were built for them. Build it "
    "again: create_model(..., template_size=..., search_size=..., template_factor=..., search_factor=...)."
)


LARGEST_SIDE = 4096  # pixels of an image, 200 MB in float32


@dataclass(frozen=True)
class Sizes:
    """Image sizes and crop factors that a network is meant for; the only place where they are kept.

    Attributes:
        template_size: Side of the template image in pixels.
        search_size: Side of the search image in pixels.
        template_factor: Side of the template crop over sqrt(w * h) of the target.
        search_factor: Side of the search crop over sqrt(w * h): 4 in SBT's paper, 5 in its authors' code.
    """

    template_size: int = 128
    search_size: int = 256
    template_factor: float = 2.0
    search_factor: float = 4.0

    def __post_init__(self) -> None:
        for name in ("template_size", "search_size"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= LARGEST_SIDE:
                raise ValueError(f"{name}={value!r} must be a whole number of pixels, 1 to {LARGEST_SIDE}.")
        for name in ("template_factor", "search_factor"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 1 <= value < float("inf"):
                raise ValueError(
                    f"{name}={value!r} must be a number of at least 1: the crop holds the target."
                )


class TemplateState(tuple[Tensor, ...]):
    """All that a network keeps of a template: a tuple of tensors whose first dimension is the batch.

    What the tensors are is the network's own business: one feature map, keys and values of several layers,
    features of two templates. As with any tuple, `state[i]` is a tensor, and `state[i:j]` and `state + other`
    are plain tuples of tensors: `index` chooses templates, `cat` joins them. It is made from an iterable
    of one or more tensors of equal batch.

    Raises:
        ValueError: No tensor, or batches that differ.

    Examples:
        >>> state = net.encode_template(templates)  # (B, 3, Hz, Wz)
        >>> state.index([0, 2])  # targets 0 and 2
        >>> TemplateState.cat([state, net.encode_template(another)])  # one target more
    """

    __slots__ = ()

    def __new__(cls, tensors: Iterable[Tensor]) -> "TemplateState":
        self = super().__new__(cls, tensors)
        if not self or any(tensor.shape[0] != self[0].shape[0] for tensor in self[1:]):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in self) or "none at all"
            raise ValueError(f"The tensors of a template state need one batch; their shapes are {shapes}.")
        return self

    @property
    def batch(self) -> int:
        """Number of templates."""
        return self[0].shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> "TemplateState":
        """The state with `function` applied to every tensor."""
        return TemplateState(function(tensor) for tensor in self)

    def expand(self, batch: int) -> "TemplateState":
        """One template for `batch` search images, without a copy.

        Raises:
            ValueError: There are several templates, and not `batch` of them.
        """
        if self.batch not in (1, batch):
            raise ValueError(f"A state of {self.batch} templates cannot be expanded to {batch}.")
        return self.map(lambda t: t.expand(batch, *t.shape[1:]))

    def index(self, indices: Sequence[int] | slice | Tensor) -> "TemplateState":  # type: ignore[override]
        """The templates `indices`, in that order; an index may repeat.

        Args:
            indices: Numbers of templates, a slice of them, or a mask of (B,) booleans.

        Raises:
            ValueError: Anything else, a single number included: the batch stays the first dimension.
        """
        if isinstance(indices, slice):
            return self.map(lambda t: t[indices])
        try:
            chosen = torch.as_tensor(indices)
        except (TypeError, ValueError, RuntimeError):
            chosen = torch.empty(())
        if chosen.numel() == 0:
            chosen = chosen.long()
        if chosen.ndim != 1 or chosen.is_floating_point():
            raise ValueError(
                f"indices={indices!r} must be a list of template numbers, such as [0], a slice or a mask."
            )
        return self.map(lambda t: t[chosen.to(t.device)])

    @staticmethod
    def cat(states: Iterable["TemplateState"]) -> "TemplateState":
        """The templates of several states of one network, one after the other."""
        return TemplateState(torch.cat(tensors) for tensors in zip(*states, strict=True))


pytree.register_pytree_node(  # so that torch.export takes states as inputs
    TemplateState,
    lambda state: (list(state), None),
    lambda tensors, _: tuple.__new__(TemplateState, tensors),
    serialized_type_name="correlation_aware.TemplateState",
    flatten_with_keys_fn=lambda state: ([(pytree.SequenceKey(i), t) for i, t in enumerate(state)], None),
)


register_pytree_flatten_spec(TemplateState, lambda state, spec: list(state))
torch.serialization.add_safe_globals([TemplateState])  # torch.load reads saved states with weights_only=True


def make_state(tensors: Iterable[Tensor]) -> TemplateState:
    """`TemplateState(tensors)`, but a plain tuple while `torch.compile` or `torch.export` traces.

    PyTorch 2.6 cannot trace the creation of a tuple's subclass. Networks take plain tuples as states.
    """
    return tuple(tensors) if torch.compiler.is_compiling() else TemplateState(tensors)  # type: ignore[return-value]


def common_batch(state: TemplateState, search: Tensor) -> int:
    """The batch of templates and search images together: equal, or one of them 1 and expanded to the other.

    Raises:
        ValueError: Neither is the case, or one of them is 0.
    """
    templates, searches = state[0].shape[0], search.shape[0]
    check_batch(templates, "template")
    check_batch(searches, "search")
    if templates != searches and 1 not in (templates, searches):
        raise ValueError(
            f"template batch {templates} and search batch {searches} must be equal, or one of them 1."
        )
    return max(templates, searches)


def check_batch(batch: int, name: str) -> None:
    """Raises ValueError for a batch without images."""
    if batch == 0:
        raise ValueError(f"The {name} batch is empty; at least one image is needed.")


def check_image(image: Tensor, name: str, in_chans: int, min_side: int = 1, multiple: int = 1) -> None:
    """Checks an image that enters a network.

    Args:
        image: What should be (B, in_chans, H, W), with at least one image.
        name: Name of the argument for messages.
        in_chans: Channels of the network's images.
        min_side: Smallest height and width in pixels.
        multiple: Number that must divide height and width.

    Raises:
        TypeError: No tensor, or one of integers.
        ValueError: Another number of dimensions or channels, a wrong size, or an empty batch.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        dtype = str(getattr(image, "dtype", "")).removeprefix("torch.")
        kind = f"tensor of {dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(
            f"{name} is a {kind}; expected a tensor of floats, (batch, {in_chans}, height, width), such as "
            "(image / 255 - mean) / std."
        )
    if image.ndim != 4 or image.shape[1] != in_chans:
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}; expected (batch, {in_chans}, height, width)."
        )
    height, width = image.shape[2:]
    allowed = None
    if min(height, width) < min_side:
        allowed = f"at least {min_side}"
    elif height % multiple or width % multiple:
        allowed = f"a multiple of {multiple}"
    if allowed:
        raise ValueError(
            f"{name} is {height} x {width} px; each side must be {allowed}. Resize the image, or crop a "
            "region of another size."
        )
    check_batch(image.shape[0], name)


def choose_levels(indices: int | Sequence[int] | None, levels: int, name: str) -> tuple[int, ...]:
    """Chosen levels, each counted from the first one.

    Args:
        indices: Levels, 0-indexed; negative ones count from the end; the last n for a number, as in timm; all
            for None.
        levels: Number of levels.
        name: Name of the argument for messages.

    Raises:
        ValueError: A level that does not exist, or none.
    """
    if indices is None:
        return tuple(range(levels))
    single = isinstance(indices, Integral)
    try:
        numbers = [index(indices)] if single else [index(i) for i in indices]  # type: ignore[arg-type, union-attr]
    except TypeError:
        numbers = []
    chosen = tuple(range(levels - numbers[0], levels)) if single else tuple(numbers)
    first = 0 if single else -levels
    if not chosen or any(not first <= i < levels for i in chosen):
        raise ValueError(
            f"{name}={indices!r} must be levels in {-levels}..{levels - 1}, or how many of the last: "
            f"1..{levels}."
        )
    return tuple(i % levels for i in chosen)


class TwoInputModel(nn.Module):
    """Base class of two-input feature networks: search features that depend on a template.

    A derived class implements `encode_template` and `forward_features`.

    Args:
        levels: One entry per level of features, from fine to coarse, as in timm: `num_chs` channels,
            `reduction` stride in pixels, `module` name of the submodule that computes it.
        in_chans: Channels of the images.
        sizes: Image sizes and crop factors.

    Attributes:
        num_features: Channels of the last level, which `forward` returns.
        sizes: Image sizes and crop factors; read-only.
        feature_info: timm's `FeatureInfo` of the levels.
        num_classes: 0, as timm has it for networks without a classifier.
        default_data_cfg: How images are prepared for the network, in timm's terms: `mean` and `std` of pixels
            in 0..1 where they are not ImageNet's.
        pretrained_cfg: Description of the network in timm's terms, derived from the rest by the zoo.
        model_args: Arguments that `create_model` was given.
        weights_name: Name of the weights for people to read; "random" until some are loaded, and "unknown" of
            a network that `create_model` did not make.
        training_data: Records of the videos that the weights were trained on, see
            `correlation_aware.data.videos.training_data`; empty where nothing is known.
        templates: Templates of a target in a state: 1, or more: the first one, which stays, and recent ones,
            which `update_template` replaces.
        update_interval: Frames from one call of `update_template` by the tracker to the next; 0 for none.
    """

    num_classes: int = 0
    templates: int = 1
    update_interval: int = 0
    default_data_cfg: Mapping[str, Any] = MappingProxyType({})
    pretrained_cfg: dict[str, Any]
    model_args: dict[str, Any]
    weights_name: str = "unknown"
    training_data: Sequence[Mapping[str, Any]] = ()

    def __init__(
        self, levels: Sequence[dict[str, Any]], in_chans: int = 3, sizes: Sizes | None = None
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self._sizes = sizes or Sizes()
        self.feature_info = FeatureInfo(list(levels), out_indices=tuple(range(len(levels))))
        self.num_features: int = self.feature_info.channels()[-1]

    @property
    def sizes(self) -> Sizes:
        """Image sizes and crop factors."""
        return self._sizes

    @sizes.setter
    def sizes(self, sizes: Sizes) -> None:
        raise AttributeError(SIZES_ARE_FIXED)

    @property
    def head_hidden_size(self) -> int:
        """Channels that a head works on; timm's name."""
        return self.num_features

    @property
    def image_backbone(self) -> nn.Module:
        """The part that weights of an image classifier fit: by default the whole network."""
        return self

    def feature_side(self, size: int, level: int = -1) -> int:
        """Height or width of the search features of an image of this height or width in pixels.

        By default size / stride, rounded up. Heads are built for that of the last level.

        Args:
            size: Height or width of the image in pixels.
            level: Level of `feature_info`.
        """
        return int(-(-size // self.feature_info.reduction()[level]))

    def encode_template(self, template: Tensor) -> TemplateState:
        """All that does not depend on the search image.

        Args:
            template: (B, 3, Hz, Wz) normalized RGB.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement encode_template(template).")

    def forward_features(self, template: Tensor | TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """Features of template and search image, correlated with each other.

        Args:
            template: (B, 3, Hz, Wz) normalized RGB, or its state.
            search: (B, 3, Hx, Wx) normalized RGB.

        Returns:
            (B, C, Hz / s, Wz / s) and (B, C, Hx / s, Wx / s), contiguous.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward_features(template, search).")

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> Tensor:
        """Search features that depend on the template: (B, C, Hx / s, Wx / s), contiguous.

        Args:
            template: (B, 3, Hz, Wz) normalized RGB, or the state that `encode_template` returned. Its batch
                may be 1 where the search batch is N (one target, N images), and the other way round.
            search: (B, 3, Hx, Wx) normalized RGB.

        Raises:
            ValueError: Shapes or batches that do not fit.
        """
        return self.forward_features(template, search)[1]

    def forward_template(self, template: Tensor, state: TemplateState | None = None) -> Tensor:
        """Features of a template correlated with itself, the values of `net(template, template)`.

        For trackers that need a map of the template before there is a search image.

        Args:
            template: (B, 3, Hz, Wz) normalized RGB.
            state: Its state, where it is there already.

        Returns:
            (B, C, Hz / s, Wz / s), contiguous.
        """
        return self(template if state is None else state, template)

    def forward_intermediates(
        self, template: Tensor | TemplateState, search: Tensor, indices: int | Sequence[int] | None = None
    ) -> list[Tensor]:
        """Search features of the levels `indices`, all by default: (B, C_i, Hx / s_i, Wx / s_i) each.

        Args:
            template: As in `forward`.
            search: As in `forward`.
            indices: Levels, see `choose_levels`.

        Raises:
            ValueError: A level that the network does not give.
        """
        last = len(self.feature_info) - 1
        chosen = choose_levels(indices, last + 1, "indices")
        if any(i != last for i in chosen):
            raise ValueError(f"indices={indices!r}: {type(self).__name__} gives level {last} alone.")
        return [self(template, search) for _ in chosen]

    def attention_maps(self, template: Tensor | TemplateState, search: Tensor) -> list[AttentionMap]:
        """Attention weights of every block, in the order of the network, for a look at what it does.

        The ordinary forward pass does not compute them, and is not changed. They need memory: of every block
        heads x queries x keys numbers.

        Args:
            template: As in `forward`. With a state there are no maps of the blocks that `encode_template`
                runs.
            search: As in `forward`.

        Returns:
            For every block and image a map, that of the template first.

        Raises:
            ValueError: As in `forward`.
            NotImplementedError: The network has no attention whose weights are known.
        """
        raise NotImplementedError(
            f"This {type(self).__name__} has no attention maps. Networks with attention are sbt_*, "
            "supersbt_*, onestream_vit_* and siam_* with neck='cross_attention', such as siam_lite0_ca."
        )

    def prune_intermediate_layers(self, indices: Sequence[int]) -> None:
        """Removes what the levels `indices` do not need. By default nothing is removed."""

    def join_templates(self, states: Sequence[TemplateState]) -> TemplateState:
        """Several templates of one target as one state, for trackers with more than one template.

        Raises:
            NotImplementedError: The network takes a single template.
        """
        if len(states) == 1:
            return states[0]
        raise NotImplementedError(f"{type(self).__name__} takes one template, not {len(states)}.")

    def update_template(self, state: TemplateState, new: TemplateState) -> TemplateState:
        """Updates the state with a recent template.

        The tracker calls it every `update_interval` frames, and as `TrackerConfig.template_update` says.

        Args:
            state: Present state.
            new: State of templates cut around the latest boxes, of the same batch.

        Returns:
            The state for the next frames, with tensors of the same shapes.

        Raises:
            NotImplementedError: The network has one template, which never changes.
        """
        raise NotImplementedError(
            f"This {type(self).__name__} has one template, which never changes. Networks with an update are "
            "supersbt_* with templates=2 and siam_* with neck='dcf'."
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training.

        Raises:
            ValueError: The network has no gradient checkpointing.
        """
        if enable:
            raise ValueError(f"{type(self).__name__} has no gradient checkpointing.")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and norms."""
        return set()

    def fit_checkpoint(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fits tensors that depend on image sizes, such as position tables, before they are loaded.

        Args:
            state_dict: Tensors of a checkpoint by the names of this network, perhaps not all of them.

        Returns:
            The tensors to load; by default the same.

        Raises:
            ValueError: A checkpoint of another kind of network, where its names and shapes do not tell.
        """
        return dict(state_dict)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning-rate decay, in timm's format: by default a group a level."""
        modules = [info["module"].replace(".", r"\.") for info in self.feature_info.info]
        return {"blocks": [(rf"^{module}(\.|$)", (i,)) for i, module in enumerate(modules)]}

    def get_classifier(self) -> nn.Module:
        """A feature network has none; timm's tools ask for it."""
        return nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A feature network has no classifier.

        Raises:
            ValueError: `num_classes` is not 0.
        """
        if num_classes:
            raise ValueError(
                f"num_classes={num_classes}: {type(self).__name__} has no classifier. Families with one "
                "register it under a name that ends in _cls."
            )

    def state_of(self, template: Tensor | TemplateState) -> TemplateState:
        """A template's state, whether an image or the state is given.

        Raises:
            TypeError: Neither of them.
            ValueError: A template image of the wrong shape.
        """
        if isinstance(template, Tensor):
            return self.encode_template(template)
        if not isinstance(template, (tuple, list)) or not all(isinstance(t, Tensor) for t in template):
            raise TypeError(
                f"template is a {type(template).__name__}; expected a tensor of floats, (batch, "
                f"{self.in_chans}, height, width), or the state that encode_template returned."
            )
        return template if isinstance(template, TemplateState) else make_state(template)


class FeatureNet(nn.Module):
    """`features_only`: the search features of chosen levels as a list.

    Args:
        net: The network; it is pruned to what the levels need.
        out_indices: Levels, 0-indexed; negative ones count from the end; the last n for a number. All by
            default.

    Attributes:
        sizes: Image sizes and crop factors of the network; read-only.
        num_features: Channels of the last level of `out_indices`.

    Raises:
        ValueError: A level that does not exist.
    """

    num_classes: int = 0
    pretrained_cfg: dict[str, Any]
    model_args: dict[str, Any]
    weights_name: str = "unknown"
    training_data: Sequence[Mapping[str, Any]] = ()

    def __init__(self, net: TwoInputModel, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices = choose_levels(out_indices, len(net.feature_info), "out_indices")
        net.prune_intermediate_layers(self.out_indices)
        self.feature_info = net.feature_info.from_other(self.out_indices)
        self.num_features: int = self.feature_info.channels()[-1]
        self.in_chans = net.in_chans
        self.model = net

    @property
    def sizes(self) -> Sizes:
        """Image sizes and crop factors."""
        return self.model.sizes

    @sizes.setter
    def sizes(self, sizes: Sizes) -> None:
        raise AttributeError(SIZES_ARE_FIXED)

    def encode_template(self, template: Tensor) -> TemplateState:
        """See `TwoInputModel.encode_template`."""
        return self.model.encode_template(template)

    def forward(self, template: Tensor | TemplateState, search: Tensor) -> list[Tensor]:
        """See `TwoInputModel.forward_intermediates`; one (B, C_i, Hx / s_i, Wx / s_i) per level."""
        return self.model.forward_intermediates(template, search, self.out_indices)

    @property
    def templates(self) -> int:
        """See `TwoInputModel.templates`."""
        return self.model.templates

    def feature_side(self, size: int) -> int:
        """See `TwoInputModel.feature_side`; of the last level of `out_indices`."""
        return self.model.feature_side(size, self.out_indices[-1])

    def update_template(self, state: TemplateState, new: TemplateState) -> TemplateState:
        """See `TwoInputModel.update_template`."""
        return self.model.update_template(state, new)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `TwoInputModel.set_grad_checkpointing`."""
        self.model.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """See `TwoInputModel.no_weight_decay`."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `TwoInputModel.group_matcher`."""
        return prefix_groups(self.model.group_matcher(coarse), "model.")


def prefix_groups(groups: dict[str, Any], prefix: str) -> dict[str, Any]:
    """timm's layer groups of a submodule, for the module that holds it under `prefix`."""
    start = "^" + prefix.replace(".", r"\.")

    def moved(pattern: str) -> str:
        return pattern.replace("^", start, 1)

    return {
        name: moved(patterns) if isinstance(patterns, str) else [(moved(p), *rest) for p, *rest in patterns]
        for name, patterns in groups.items()
    }


def refuse_wrapper(model: nn.Module) -> nn.Module:
    """The model itself.

    Raises:
        ValueError: A wrapper around it, of `torch.compile` or a parallel one, whose names and attributes are
            not the model's.
    """
    for attribute in ("_orig_mod", "module"):
        inner = model._modules.get(attribute)
        if inner is not None and len(model._modules) == 1:
            compiled = " For a compiled tracker or session use runtime='compile'."
            raise ValueError(
                f"{type(model).__name__} is a wrapper around {type(inner).__name__}: pass the model itself, "
                f"model.{attribute}.{compiled if attribute == '_orig_mod' else ''}"
            )
    return model


@contextmanager
def limited_size(numbers: int, tensors: int) -> Iterator[None]:
    """Limits the networks that this thread builds inside the block.

    Args:
        numbers: Most numbers in all parameters and buffers together.
        tensors: Most parameters and buffers.

    Raises:
        ValueError: At the first parameter or buffer beyond a limit, so that a network is not built on.
    """
    thread, seen = threading.get_ident(), [0, 0]

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if threading.get_ident() != thread or tensor is None:
            return
        seen[0] += tensor.numel()
        seen[1] += 1
        if seen[0] > numbers:
            raise ValueError(f"the network has more than the {numbers:,} numbers that are possible here.")
        if seen[1] > tensors:
            raise ValueError(f"the network has more than {tensors:,} tensors.")

    hooks = (
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def find_first_conv(model: nn.Module) -> str | None:
    """Name of the convolution that reads the image, which is the first one of a network; None without one."""
    return next((name for name, m in model.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d))), None)
