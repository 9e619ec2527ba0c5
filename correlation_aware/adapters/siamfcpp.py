"""SiamFC++ (video_analyst): `SiamFCppBackbone` and `SiamTrackCA` in its registries, for its own YAML files.

Tracker: `SiamFC++` (Xu et al., AAAI 2020) - https://github.com/megvii-research/video_analyst, commit 7b89c20.
Written for its interface; nothing of its code is copied.

Import this module before `videoanalyst.config.config`, which lists the registered components only once; or
from a file of yours in videoanalyst/model/backbone/backbone_impl, which the tracker imports by itself.
"""

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware import weights
from correlation_aware.adapters.backbones import create_backbone, current_name, renamed
from correlation_aware.models.contract import TemplateState, TwoInputModel
from correlation_aware.weights import load_pretrained

try:
    from videoanalyst.model.backbone.backbone_base import TRACK_BACKBONES
    from videoanalyst.model.common_opr.common_block import xcorr_depthwise
    from videoanalyst.model.module_base import ModuleBase
    from videoanalyst.model.task_model.taskmodel_base import TRACK_TASKMODELS
    from videoanalyst.model.task_model.taskmodel_impl.siamese_track import SiamTrack
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"SiamFC++ cannot be imported: {error}. Put a checkout of megvii-research/video_analyst on "
        "PYTHONPATH and install its requirements.txt.",
        name=error.name,
    ) from error

__all__ = ["DEFAULT_NAME", "SBTBackbone", "SiamFCppBackbone", "SiamTrackCA"]

_logger = logging.getLogger(__name__)

STRIDE = 8
MARGIN = 87  # pixels that an unpadded network of the tracker loses: 127 -> 5 locations, 303 -> 27
DEFAULT_NAME = "sbt_small_siamfcpp"
FORMER_NAMES = {"siamfcpp_ca": DEFAULT_NAME}

if hasattr(sys.modules.get("videoanalyst.config.config"), "cfg"):
    raise RuntimeError(
        "videoanalyst.config.config was imported before correlation_aware.adapters.siamfcpp, so its "
        "configuration does not know SiamFCppBackbone and SiamTrackCA. Move the import to the first line."
    )


def grid(side: int) -> tuple[int, int, int]:
    """The tracker's locations along one axis, centered on the image, in the feature map of the network.

    Location i of the network is taken to be centered on pixel 8 i, as with padded odd convolutions.

    Args:
        side: Side of the image in pixels.

    Returns:
        Padding in pixels at the start of the axis, so that the tracker's locations are locations of the
        network; the index of the first one; their number, (side - 87) // 8.

    Raises:
        ValueError: A side with less than one location.
    """
    count = (side - MARGIN) // STRIDE
    if count < 1:
        raise ValueError(
            f"A side of {side} px has no location; SiamFC++ needs at least {MARGIN + STRIDE} px (z_size is "
            "127, x_size 303)."
        )
    first = (side - 1 - STRIDE * (count - 1)) // 2
    pad = -first % STRIDE
    return pad, (first + pad) // STRIDE, count


def crop(features: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) of a padded image -> the tracker's locations, (height - 87) // 8 x (width - 87) // 8."""
    (_, top, rows), (_, left, columns) = grid(height), grid(width)
    return features[:, :, top : top + rows, left : left + columns]


@TRACK_BACKBONES.register
class SiamFCppBackbone(ModuleBase):
    """A two-input network as SiamFC++'s backbone: 256 channels, stride 8, 127 px -> 5 x 5, 303 px -> 27 x 27.

    With `SiamTrackCA` the template's state belongs to the tracker. The stock `SiamTrack` calls the module
    with one image at a time: an image of `z_size` is a template, whose state is kept, and any other is a
    search image. The module then serves one target at a time.

    Hyper-parameters, in the YAML file under `model.backbone.SiamFCppBackbone`:

    - `pretrain_model_path`: A `model.tag` of the manifest, an `hf-hub:` name, a local file or folder.
    - `model`: A feature network of the zoo of stride 8, its own or by `output_stride`.
    - `depths`, `mlp_ratios`, `cross_blocks`, `drop_path_rate`: Arguments of `create_model`, if they are set.
    - `out_channels`: Channels of the features; `head_width` of task model and head must equal it.
    - `z_size`: Side of the template in pixels, as in the pipeline.
    - `grad_checkpointing`: Trades time for memory in training.
    """

    default_hyper_params: ClassVar[dict[str, Any]] = {
        "pretrain_model_path": "",
        "model": DEFAULT_NAME,
        "depths": [],
        "mlp_ratios": [],
        "cross_blocks": [],
        "drop_path_rate": 0.0,
        "out_channels": 256,
        "z_size": 127,
        "grad_checkpointing": False,
    }
    net: TwoInputModel

    def __init__(self) -> None:
        super().__init__()
        self._template: TemplateState | None = None

    def set_hps(self, hps: Mapping[str, Any]) -> None:
        """Sets hyper-parameters.

        Raises:
            ValueError: One that does not exist.
        """
        for key in hps:
            if key not in self._hyper_params:
                raise ValueError(
                    f"{type(self).__name__} has no option {key!r}; there are {', '.join(self._hyper_params)}."
                )
        super().set_hps(hps)

    def update_params(self) -> None:
        """Builds the network from the hyper-parameters and loads its weights.

        Raises:
            ValueError: An unknown model or value, another stride, or weights that do not fit.
            TypeError: A hyper-parameter that the model does not have.
            FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be downloaded or read.
        """
        hps = self._hyper_params
        name = current_name(hps["model"], FORMER_NAMES)
        options = {key: hps[key] for key in ("depths", "mlp_ratios", "cross_blocks") if len(hps[key])}
        if hps["drop_path_rate"]:
            options["drop_path_rate"] = hps["drop_path_rate"]
        self.net = net = create_backbone("SiamFC++", name, STRIDE, options=options)
        self.net.set_grad_checkpointing(hps["grad_checkpointing"])
        self.neck = nn.Conv2d(net.num_features, hps["out_channels"], 1)
        if hps["pretrain_model_path"]:
            report = load_pretrained(net, hps["pretrain_model_path"], partial=True)
            _logger.log(
                logging.WARNING if report.missing else logging.INFO, "%s: %s", type(self).__name__, report
            )
        for key in ("mean", "std"):  # of RGB in 0..1 -> of BGR in 0..255
            values = 255 * torch.tensor(net.pretrained_cfg[key]).flip(0).view(1, 3, 1, 1)
            self.register_buffer(key, values, persistent=False)

    def encode_template(self, template: Tensor) -> TemplateState:
        """All that does not depend on the search image.

        Args:
            template: (B, 3, z_size, z_size) BGR in 0..255.

        Raises:
            ValueError: Another size than `z_size`.
        """
        side = self._hyper_params["z_size"]
        if tuple(template.shape[2:]) != (side, side):
            raise ValueError(
                f"The template is {template.shape[2]} x {template.shape[3]} px, but z_size={side}: set "
                f"{type(self).__name__}.z_size to the z_size of the pipeline and of the data."
            )
        return self.net.encode_template(self._prepare(template))

    def correlate(self, state: TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both images, correlated with each other.

        Args:
            state: State of `encode_template`; its batch, or the search batch, may be 1.
            search: (B, 3, H, W) BGR in 0..255.

        Returns:
            (B, 256, 5, 5) for a template of 127 px; (B, 256, (H - 87) // 8, (W - 87) // 8). Contiguous NCHW.

        Raises:
            ValueError: A search image without a location, batches that do not fit.
        """
        side = self._hyper_params["z_size"]
        z, x = self.net.forward_features(state, self._prepare(search))
        return self._adjust(z, side, side), self._adjust(x, *search.shape[2:])

    def forward(self, image: Tensor) -> Tensor:
        """Call of the stock `SiamTrack`: an image of `z_size` is a template, any other a search image.

        Args:
            image: (B, 3, H, W) BGR in 0..255.

        Returns:
            (B, 256, (H - 87) // 8, (W - 87) // 8); a template's features are correlated with itself.

        Raises:
            RuntimeError: A search image before any template.
        """
        side = self._hyper_params["z_size"]
        if tuple(image.shape[2:]) == (side, side):
            self._template = self.encode_template(image)
            z = self.net.forward_template(self._prepare(image), self._template)
            return self._adjust(z, side, side)
        if self._template is None:
            raise RuntimeError(
                f"A search image of {image.shape[2]} x {image.shape[3]} px came before any template of "
                f"z_size={side}. Run phase 'feature' (the pipeline's init) first, or set "
                f"{type(self).__name__}.z_size."
            )
        x = self.net(self._template, self._prepare(image))
        return self._adjust(x, *image.shape[2:])

    def _prepare(self, image: Tensor) -> Tensor:
        """BGR in 0..255 -> normalized RGB, padded by `grid` with the mean."""
        top, left = grid(image.shape[2])[0], grid(image.shape[3])[0]
        return F.pad(((image - self.mean) / self.std).flip(1), (left, 0, top, 0))

    def _adjust(self, features: Tensor, height: int, width: int) -> Tensor:
        return self.neck(crop(features, height, width).contiguous())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_template": None}  # a state is not a weight, and may be part of a graph


@TRACK_BACKBONES.register
class SBTBackbone(SiamFCppBackbone):
    """Former name of `SiamFCppBackbone`, for YAML files; it will be removed after the next release."""

    def __init__(self) -> None:
        warnings.warn("'SBTBackbone' is called 'SiamFCppBackbone' now.", DeprecationWarning, stacklevel=2)
        super().__init__()


@TRACK_TASKMODELS.register
class SiamTrackCA(SiamTrack):
    """SiamFC++ with correlated template kernels and search features; hyper-parameters of `SiamTrack`.

    Phase `feature` returns a list with the template's state, which belongs to the caller: several targets
    share one model. Phase `track` takes a search image and that state, as the pipelines call it.

    Raises:
        ValueError: A backbone other than `SiamFCppBackbone`.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, loss: Any = None) -> None:
        super().__init__(backbone, head, loss)
        if not isinstance(backbone, SiamFCppBackbone):
            raise ValueError(
                f"SiamTrackCA runs on SiamFCppBackbone, not on {type(backbone).__name__}: set "
                "model.backbone.name: SiamFCppBackbone."
            )
        self._recent: TemplateState | None = None

    def update_params(self) -> None:
        """Builds the tracker's own convolutions and loads `pretrain_model_path`.

        Raises:
            ValueError: `head_width` is not the backbone's `out_channels`, or `trt_mode` is on.
        """
        width, channels = self._hyper_params["head_width"], self.basemodel.get_hps()["out_channels"]
        if width != channels:
            raise ValueError(
                f"SiamTrackCA.head_width={width} must equal SiamFCppBackbone.out_channels={channels}."
            )
        if self._hyper_params["trt_mode"]:
            raise ValueError("trt_mode=True: SiamTrackCA has no TensorRT form; set it to False.")
        super().update_params()

    def load_model_param(self, checkpoint_state_dict: Mapping[str, Tensor]) -> weights.LoadReport:
        """Loads what fits: of a stock tracker's checkpoint its head and its convolutions.

        Returns:
            Names of the tensors that were loaded, unexpected and missing; logged as a warning if not all were
            loaded.

        Raises:
            ValueError: Nothing fits.
        """
        report = weights.load_state_dict(self, checkpoint_state_dict, partial=True)
        if report.unexpected or report.missing:
            _logger.warning("SiamTrackCA took a checkpoint in part: %s", report)
        return report

    def train_forward(self, training_data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions for a batch of pairs.

        Args:
            training_data: `im_z` (B, 3, 127, 127) and `im_x` (B, 3, 303, 303), BGR in 0..255.

        Returns:
            `cls_pred`, `ctr_pred` (B, locations, 1) and `box_pred` (B, locations, 4), with `corr_fea_output`
            also `corr_fea`.
        """
        state = self.basemodel.encode_template(training_data["im_z"])
        c_out, r_out, _, _ = self._match(state, training_data["im_x"])
        cls_pred, ctr_pred, box_pred, corr_fea = self.head(c_out, r_out)
        predictions = {"cls_pred": cls_pred, "ctr_pred": ctr_pred, "box_pred": box_pred}
        return {**predictions, "corr_fea": corr_fea} if self._hyper_params["corr_fea_output"] else predictions

    def instance(self, img: Tensor, state: TemplateState | None = None) -> None:
        """Sets `cf`, the features that the online classifier reads.

        Args:
            img: (B, 3, H, W) BGR in 0..255.
            state: State of the target; by default the last one that this model returned or was called with.

        Raises:
            RuntimeError: No template was encoded before.
        """
        state = self._recent if state is None else state
        if state is None:
            raise RuntimeError("instance() before any template: run phase 'feature' first.")
        self.cf = self.c_x(self.basemodel.correlate(state, img)[1])

    def forward(self, *args: Any, phase: str | None = None) -> Any:
        """One phase of the tracker.

        Args:
            *args: The training data; a template for `feature`; a search image and the state for `track`.
            phase: `train`, `feature` or `track`; by default the `phase` that was set.

        Returns:
            `train`: see `train_forward`. `feature`: `[state]`. `track`: scores (B, locations, 1), boxes (B,
            locations, 4) xyxy in the search image, class and center probabilities, and a dict of features.

        Raises:
            ValueError: A phase that needs search features without a template, or wrong arguments.
        """
        phase = self._phase if phase is None else phase
        if phase == "train":
            return super().forward(*args, phase=phase)
        if phase == "feature":
            (template,) = args
            self._recent = self.basemodel.encode_template(template)
            return [self._recent]
        if phase != "track":
            raise ValueError(
                f"phase={phase!r} is not train, feature or track: search features depend on the template."
            )
        return self._track(args)

    def _track(self, args: Sequence[Any]) -> tuple[Any, ...]:
        if len(args) != 2 or not isinstance(args[1], TemplateState):
            kinds = ", ".join(type(a).__name__ for a in args)
            raise ValueError(
                f"Phase 'track' takes a search image and the state of phase 'feature', not ({kinds}). "
                "Template kernels of the stock model do not fit, and search features cannot be reused for "
                "another template (SiamFCppMultiTempTracker: mem_len: 1)."
            )
        search, self._recent = args
        c_out, r_out, c_x, r_x = self._match(self._recent, search)
        cls, ctr, boxes, corr_fea = self.head(c_out, r_out, search.size(-1))
        cls, ctr = cls.sigmoid(), ctr.sigmoid()
        self.cf = c_x
        return cls * ctr, boxes, cls, ctr, {"c_x": c_x, "r_x": r_x, "corr_fea": corr_fea}

    def _match(self, state: TemplateState, search: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Correlation maps for class and box, and the search features that went into them."""
        f_z, f_x = self.basemodel.correlate(state, search)
        c_x, r_x = self.c_x(f_x), self.r_x(f_x)
        return xcorr_depthwise(c_x, self.c_z_k(f_z)), xcorr_depthwise(r_x, self.r_z_k(f_z)), c_x, r_x


__getattr__ = renamed(globals(), {"FITTED": "DEFAULT_NAME"})
