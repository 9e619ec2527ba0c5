"""STM with correlation-aware encoders, for unmodified checkouts of https://github.com/seoungwugoh/STM.

    import model
    from correlation_aware.adapters.stm import STM_CA

    model.STM = STM_CA

before `eval_DAVIS.py`, or code of yours, takes `STM` from `model`. Tracker: `Video Object Segmentation using
Space-Time Memory Networks` (Oh et al., ICCV 2019). Written for the interface of commit 905f114; nothing of it
is copied.

The template of an object is the video's first frame with the object's mask, or a crop of it around the
object. It is encoded once per video, and every later frame, in the memory or to be segmented, is correlated
with the template of each object.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware import weights
from correlation_aware.adapters.backbones import create_features, current_name, cut_templates, renamed
from correlation_aware.models.contract import FeatureNet, TemplateState

try:
    from model import STM
except ImportError as error:
    raise ModuleNotFoundError(
        f"STM cannot be imported: {error}. Put a checkout of seoungwugoh/STM, which holds model.py, first on "
        "PYTHONPATH and install torchvision, opencv-python, matplotlib, pillow and tqdm.",
        name="model",
    ) from error

__all__ = ["DEFAULT_NAME", "STM_CA", "Encoder_M", "Encoder_Q", "Target", "create_network"]

DEFAULT_NAME = "sbt_small_stm"
FORMER_NAMES = {"stm_ca": DEFAULT_NAME}
NAMES = ("r2", "r3", "r4")
CHANNELS = (256, 512, 1024)
STRIDES = (4, 8, 16)
Template = Literal["frame", "crop"]
Outputs = tuple[Tensor, Tensor | None, Tensor | None, None, Tensor]


def create_network(model: str = DEFAULT_NAME, pretrained: bool | str = False, **options: Any) -> FeatureNet:
    """The network of one encoder: features of strides 4, 8 and 16.

    Args:
        model: A feature network of the zoo with levels of these strides, its own or by `output_stride`.
        pretrained: As in `create_model`.
        **options: Further arguments of `create_model`, such as `drop_path_rate`.

    Raises:
        ValueError: An unknown model or value, or a network without one of the strides.
        TypeError: An option that the network does not have.
    """
    return create_features("STM", current_name(model, FORMER_NAMES), STRIDES, pretrained, options)


class Target:
    """Per-video state shared by both encoders. Not copied or pickled with the model.

    Attributes:
        state: State of the templates, one batch entry for each object.
        pinned: Whether the template was set by `set_template`, so that no mask replaces it.
        predicted: (1, H, W) labels of the frame that was segmented last.
    """

    def __init__(self) -> None:
        self.state: TemplateState | None = None
        self.pinned = False
        self.predicted: Tensor | None = None

    def __reduce__(self) -> tuple[type["Target"], tuple[()]]:
        return Target, ()


class MaskedConv(nn.Conv2d):
    """First convolution plus parallel convolutions for the object's mask and the other objects' mask."""

    def __init__(self, conv: nn.Conv2d) -> None:
        geometry = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        sizes: dict[str, Any] = {key: getattr(conv, key) for key in geometry}
        super().__init__(conv.in_channels, conv.out_channels, **sizes)
        self.weight, self.bias = conv.weight, conv.bias
        self.mask = nn.Conv2d(1, conv.out_channels, bias=False, **sizes)
        self.others = nn.Conv2d(1, conv.out_channels, bias=False, **sizes)
        for extra in (self.mask, self.others):
            nn.init.kaiming_normal_(extra.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        frame, mask, others = images.split([self.in_channels, 1, 1], dim=1)
        return super().forward(frame) + self.mask(mask) + self.others(others)


class _Encoder(nn.Module):
    """A network, 1x1 convolutions to STM's channels, and the normalization of its frames."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: FeatureNet | None, target: Target | None, fine: bool) -> None:
        super().__init__()
        self.net = create_network() if network is None else network
        self.target = Target() if target is None else target
        if tuple(self.net.feature_info.reduction()) != STRIDES:
            raise ValueError(
                f"The network's strides are {self.net.feature_info.reduction()}, STM needs {list(STRIDES)}: "
                "make it with correlation_aware.adapters.stm.create_network."
            )
        self.necks = nn.ModuleDict(
            {
                name: nn.Conv2d(have, want, 1)
                for name, have, want in zip(NAMES, self.net.feature_info.channels(), CHANNELS)
                if fine or name == "r4"
            }
        )
        for key in ("mean", "std"):
            values = torch.tensor(self.net.pretrained_cfg[key]).view(1, 3, 1, 1)
            self.register_buffer(key, values, persistent=False)

    def normalize(self, frame: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in 0..1 -> normalized RGB."""
        return (frame - self.mean) / self.std

    def extract(self, state: TemplateState, images: Tensor, frame: Tensor) -> Outputs:
        """STM's five outputs; maps before the first correlation have the batch of `images`."""
        maps = dict(zip(NAMES, self.net(state, images)))
        r2, r3 = (self.necks[name](maps[name]) if name in self.necks else None for name in ("r2", "r3"))
        return self.necks["r4"](maps["r4"]), r3, r2, None, frame


class Encoder_M(_Encoder):
    """STM's encoder of the memory: a frame, the object's mask and the mask of all others.

    Args:
        network: Network of `create_network` for three channels; those of the masks are added here.
        target: State shared with the `Encoder_Q` of the same model.
        fine: Whether to return r3 and r2 too. STM does not use them in the memory, so `STM_CA` leaves them
            out: their necks would never be trained.

    Raises:
        ValueError: A network of other strides, or without a first convolution that takes masks.
    """

    def __init__(
        self, network: FeatureNet | None = None, target: Target | None = None, fine: bool = True
    ) -> None:
        super().__init__(network, target, fine)
        name: str | None = self.net.pretrained_cfg["first_conv"]
        conv = None if name is None else self.net.get_submodule(name)
        if name is None or type(conv) is not nn.Conv2d or conv.groups != 1:
            raise ValueError(
                "The masks need a network that begins with a Conv2d of one group, and "
                f"{type(self.net.model).__name__} begins with {conv or 'none'}. Take another network."
            )
        parent, _, last = name.rpartition(".")
        setattr(self.net.get_submodule(parent), last, MaskedConv(conv))
        self.net.in_chans += 2
        self.net.model.in_chans += 2

    def encode_template(self, in_f: Tensor, in_m: Tensor, in_o: Tensor) -> TemplateState:
        """State of a template with its masks; arguments as of `forward`."""
        return self.net.encode_template(self._join(self.normalize(in_f), in_m, in_o))

    def forward(self, in_f: Tensor, in_m: Tensor, in_o: Tensor) -> Outputs:
        """Features of a frame in which the objects are known.

        Args:
            in_f: (B, 3, H, W) RGB in 0..1.
            in_m: (B, H, W) mask of the object, in 0..1.
            in_o: (B, H, W) mask of all other objects, in 0..1.

        Returns:
            r4 (B, 1024, H / 16, W / 16), r3 (B, 512, H / 8, W / 8), r2 (B, 256, H / 4, W / 4), None and the
            normalized frame. Without a template the frame is its own template.
        """
        frame = self.normalize(in_f)
        images = self._join(frame, in_m, in_o)
        state = self.target.state
        return self.extract(self.net.encode_template(images) if state is None else state, images, frame)

    def _join(self, frame: Tensor, mask: Tensor, others: Tensor) -> Tensor:
        return torch.cat(
            [frame, mask.unsqueeze(1).to(frame.dtype), others.unsqueeze(1).to(frame.dtype)], dim=1
        )


class Encoder_Q(_Encoder):
    """STM's encoder of the frame to be segmented, correlated with the template of every object.

    Args:
        network: Network of `create_network`.
        target: State shared with the `Encoder_M` of the same model, whose templates it uses.

    Raises:
        ValueError: A network of other strides.
    """

    def __init__(self, network: FeatureNet | None = None, target: Target | None = None) -> None:
        super().__init__(network, target, fine=True)

    def forward(self, in_f: Tensor) -> Outputs:
        """Features of a frame for every object.

        Args:
            in_f: (1, 3, H, W) RGB in 0..1.

        Returns:
            r4 (objects, 1024, H / 16, W / 16), r3 (1, 512, H / 8, W / 8) and r2 (1, 256, H / 4, W / 4), which
            STM expands, None and the normalized frame. A network that correlates at these strides too gives
            r3 and r2 for every object.

        Raises:
            RuntimeError: No template yet.
        """
        if self.target.state is None:
            raise RuntimeError(
                "A frame came before any template: memorize the first frame with its mask, or call "
                "set_template."
            )
        frame = self.normalize(in_f)
        return self.extract(self.target.state, frame, frame)


class STM_CA(STM):
    """STM with two-input encoders; everything else is the tracker's own.

    One model follows the objects of one video at a time, as STM does.

    Args:
        network: Function that creates the network of an encoder; called twice.
        template: `frame`: the whole first frame. `crop`, as in the paper: a crop around the object, with the
            template size and factor of the network; the whole frame for an object without a mask.

    Raises:
        ValueError: An unknown `template`.

    Examples:
        >>> model.STM = functools.partial(STM_CA, functools.partial(create_network, "sbt_base"))
    """

    def __init__(
        self, network: Callable[[], FeatureNet] = create_network, template: Template = "frame"
    ) -> None:
        if template not in get_args(Template):
            raise ValueError(f"template={template!r} is not one of {', '.join(get_args(Template))}.")
        target = Target()
        with _bound(
            STM=STM,  # its constructor looks itself up by this name, which may be bound to STM_CA
            Encoder_M=lambda: Encoder_M(network(), target, fine=False),
            Encoder_Q=lambda: Encoder_Q(network(), target),
        ):
            super().__init__()
        self.target, self.template = target, template
        self.register_load_state_dict_pre_hook(_refuse_stock)

    def reset(self) -> None:
        """Clears the state of the video; the next frame that is memorized is the template."""
        self.target.state, self.target.pinned, self.target.predicted = None, False, None

    def set_template(self, frame: Tensor, masks: Tensor, n: int | Tensor) -> None:
        """Sets the template until `reset` or the next call.

        Args:
            frame: (1, 3, H, W) RGB in 0..1.
            masks: (1, K, H, W) in 0..1, the background first.
            n: Number of objects, at most K - 1.

        Raises:
            ValueError: Shapes or a number of objects that do not fit.
        """
        self._encode(frame, masks, _count(n))
        self.target.pinned = True

    def memorize(self, frame: Tensor, masks: Tensor, num_objects: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a frame, as of STM.

        The first frame becomes the template. So does a frame whose mask is exactly one-hot and is not the
        last prediction, which is taken for the first frame of a new video. After `set_template` no mask
        replaces the template.

        Raises:
            ValueError: Shapes or a number of objects that do not fit, or another number than the template's.
        """
        n = _count(num_objects)
        if self.target.state is None or not (self.target.pinned or self._is_continued(masks)):
            self._encode(frame, masks, n)
        self._check_count(n)
        return super().memorize(frame, masks, num_objects)

    def segment(self, frame: Tensor, keys: Tensor, values: Tensor, num_objects: Tensor) -> Tensor:
        """Logits (1, K, H, W) of a frame, as of STM.

        Raises:
            RuntimeError: No template yet.
            ValueError: Another number of objects than the template's.
        """
        self._check_count(_count(num_objects))
        logit = super().segment(frame, keys, values, num_objects)
        self.target.predicted = logit.detach().argmax(dim=1)
        return logit

    def load_stock(self, state_dict: Mapping[str, Tensor]) -> weights.LoadReport:
        """Loads what fits of a checkpoint of the stock STM: keys, values and decoder.

        Args:
            state_dict: Tensors by name, with or without the `module.` of `DataParallel`.

        Returns:
            Names of the tensors that were loaded, unexpected and missing.

        Raises:
            ValueError: Nothing fits.
        """
        bare = {key.removeprefix("module."): value for key, value in state_dict.items()}
        return weights.load_state_dict(self, bare, partial=True)

    def _encode(self, frame: Tensor, masks: Tensor, n: int) -> None:
        if masks.ndim != 4 or masks.shape[0] != 1 or not 1 <= n < masks.shape[1]:
            raise ValueError(
                f"masks of shape {tuple(masks.shape)} and {n} objects do not fit: expected (1, K, height, "
                "width), the background first, and 1 to K - 1 objects."
            )
        if frame.shape[2:] != masks.shape[2:]:
            raise ValueError(
                f"The template's frame is {tuple(frame.shape[2:])} and its masks are "
                f"{tuple(masks.shape[2:])} px: they must have one size."
            )
        h, w = (-side % STRIDES[-1] for side in frame.shape[2:])
        pad = (w // 2, w - w // 2, h // 2, h - h // 2)
        own = F.pad(masks[0, 1 : n + 1], pad)  # n, H, W
        others = (own.sum(dim=0, keepdim=True) - own).clamp(0, 1)
        frames = F.pad(frame, pad).expand(n, -1, -1, -1)
        encoder: Any = self.Encoder_M
        if self.template == "crop":
            sizes = encoder.net.sizes
            cut = functools.partial(
                cut_templates, boxes=_boxes(own), factor=sizes.template_factor, size=sizes.template_size
            )
            frames = cut(frames)
            own, others = (cut(m[:, None], padding="zeros")[:, 0] for m in (own, others))
        self.reset()
        self.target.state = encoder.encode_template(frames, own, others)

    def _is_continued(self, masks: Tensor) -> bool:
        """Whether masks belong to the video: they are soft, or the last prediction, rounded."""
        one_hot = bool(((masks == 0) | (masks == 1)).all()) and bool((masks.sum(dim=1) == 1).all())
        predicted = self.target.predicted
        if not one_hot or predicted is None:
            return not one_hot
        return torch.equal(masks.argmax(dim=1).to(predicted.device), predicted)

    def _check_count(self, n: int) -> None:
        state = self.target.state
        if state is not None and state.batch != n:
            raise ValueError(
                f"num_objects={n}, but the template has {state.batch}: call reset() before "
                "another video, or set_template() with all objects."
            )


def _boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) x, y, w, h around masks (N, H, W); the whole image for an empty mask."""
    boxes = []
    for mask in masks > 0.5:
        mask = mask if bool(mask.any()) else torch.ones_like(mask)
        (top, bottom), (left, right) = (mask.any(dim=d).nonzero()[[0, -1], 0].tolist() for d in (1, 0))
        boxes.append([left, top, right - left + 1, bottom - top + 1])
    return torch.tensor(boxes, dtype=torch.float32)


def _count(n: int | Tensor) -> int:
    return int(n.flatten()[0]) if isinstance(n, Tensor) else n


def _refuse_stock(_: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *__: Any) -> None:
    if f"{prefix}Encoder_Q.res2.0.conv1.weight" in state_dict:
        raise ValueError(
            "This is a checkpoint of the stock STM, whose ResNet encoders do not fit STM_CA. "
            "load_stock(torch.load(...)) loads its keys, values and decoder, and returns what it loaded."
        )


@contextmanager
def _bound(**makers: Callable[[], nn.Module]) -> Iterator[None]:
    """Binds names of the tracker's module to `makers`, so that its constructor builds no ResNet."""
    tracker = sys.modules[STM.__module__]
    stock = {name: getattr(tracker, name) for name in makers}
    vars(tracker).update(makers)
    try:
        yield
    finally:
        vars(tracker).update(stock)


__getattr__ = renamed(globals(), {"FITTED": "DEFAULT_NAME"})
