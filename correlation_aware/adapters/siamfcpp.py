"""SiamFC++ (video_analyst): `SBTBackbone` and `SiamTrackCA` in its registries, for its own YAML files.

Tracker: `SiamFC++` (Xu et al., AAAI 2020) - https://github.com/megvii-research/video_analyst, at 7b89c20.
Written against its interface; nothing of its code is here.

Import this module before `videoanalyst.config.config`, which lists the registered components only once; or
from a file of yours in videoanalyst/model/backbone/backbone_impl, which the tracker imports by itself.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correlation_aware import weights
from correlation_aware.models.sbt import SBT, TemplateState
from correlation_aware.weights import load_pretrained
from correlation_aware.zoo import create_model

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

__all__ = ["FITTED", "SBTBackbone", "SiamTrackCA"]

_logger = logging.getLogger(__name__)

STRIDE = 8
MARGIN = 87  # pixels that an unpadded network of the tracker loses: 127 -> 5 cells, 303 -> 27
FITTED = "siamfcpp_ca"
FITTED_MODEL: dict[str, Any] = {"depths": (2, 2, 5), "cross_blocks": ((), (), (0, 2, 4))}  # of sbt_small

if hasattr(sys.modules.get("videoanalyst.config.config"), "cfg"):
    raise RuntimeError(
        "videoanalyst.config.config was imported before correlation_aware.adapters.siamfcpp, so its "
        "configuration does not know SBTBackbone and SiamTrackCA. Move the import to the first line."
    )


def grid(side: int) -> tuple[int, int, int]:
    """The tracker's cells along one axis, centred on the picture, on the network's grid.

    Args:
        side: Pixels of the picture.

    Returns:
        Pixels to pad in front, so that the middle of every cell lies on the grid; the index of the first
        cell; the number of cells, (side - 87) // 8.

    Raises:
        ValueError: A side with less than one cell.
    """
    cells = (side - MARGIN) // STRIDE
    if cells < 1:
        raise ValueError(
            f"A side of {side} px leaves no cell; SiamFC++ needs at least {MARGIN + STRIDE} px (z_size is "
            "127, x_size 303)."
        )
    first = (side - 1 - STRIDE * (cells - 1)) // 2
    pad = -first % STRIDE
    return pad, (first + pad) // STRIDE, cells


def crop(features: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) of a padded picture -> the (height - 87) // 8 x (width - 87) // 8 cells of the tracker."""
    (_, top, rows), (_, left, columns) = grid(height), grid(width)
    return features[:, :, top : top + rows, left : left + columns]


@TRACK_BACKBONES.register
class SBTBackbone(ModuleBase):
    """SBT as SiamFC++'s backbone: 256 channels on its stride-8 grid, 127 px -> 5 x 5, 303 px -> 27 x 27.

    With `SiamTrackCA` the template's state stays with the tracker. Under the stock `SiamTrack` the module is
    called with one picture at a time: one of `z_size` is the template, which is remembered, any other is
    searched for it. That serves one target at a time.

    Hyper-parameters, in the YAML file under `model.backbone.SBTBackbone`:
        pretrain_model_path: A `model.tag` of the manifest, an `hf-hub:` name, a local file or folder.
        model: A feature network of the zoo, or `siamfcpp_ca`: `sbt_small` with five blocks in its last
            stage, which is nearest to the parameters and FLOPs the paper reports.
        depths, mlp_ratios, cross_blocks: As in `SBTConfig`; empty: the model's own.
        drop_path_rate: Stochastic depth.
        out_channels: Channels of the features; `head_width` of task model and head must equal it.
        z_size: Side of the template in pixels, as in the pipeline.
        grad_checkpointing: Trades time for memory in training.
    """

    default_hyper_params: ClassVar[dict[str, Any]] = {
        "pretrain_model_path": "",
        "model": FITTED,
        "depths": [],
        "mlp_ratios": [],
        "cross_blocks": [],
        "drop_path_rate": 0.0,
        "out_channels": 256,
        "z_size": 127,
        "grad_checkpointing": False,
    }
    net: SBT

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
                    f"SBTBackbone has no option {key!r}; there are {', '.join(self._hyper_params)}."
                )
        super().set_hps(hps)

    def update_params(self) -> None:
        """Builds the network from the hyper-parameters and loads its weights.

        Raises:
            ValueError: An unknown model or value, or weights that do not fit.
            FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be had.
        """
        hps = self._hyper_params
        name, arguments = ("sbt_small", FITTED_MODEL) if hps["model"] == FITTED else (hps["model"], {})
        chosen = {key: hps[key] for key in ("depths", "mlp_ratios", "cross_blocks") if len(hps[key])}
        net = create_model(name, **{**arguments, **chosen, "drop_path_rate": hps["drop_path_rate"]})
        if not isinstance(net, SBT):
            raise ValueError(
                f"model={name!r} is no feature network: take the name without _track or _cls, or {FITTED!r}."
            )
        self.net = net
        self.net.set_grad_checkpointing(hps["grad_checkpointing"])
        self.neck = nn.Conv2d(net.num_features, hps["out_channels"], 1)
        if hps["pretrain_model_path"]:
            report = load_pretrained(net, hps["pretrain_model_path"], partial=True)
            _logger.log(logging.WARNING if report.fresh else logging.INFO, "SBTBackbone: %s", report)
        for key in ("mean", "std"):  # of RGB in 0..1 -> of BGR in 0..255
            values = 255 * torch.tensor(net.pretrained_cfg[key]).flip(0).view(1, 3, 1, 1)
            self.register_buffer(key, values, persistent=False)

    def encode_template(self, template: Tensor) -> TemplateState:
        """All that does not depend on the search picture.

        Args:
            template: (B, 3, z_size, z_size) BGR in 0..255.

        Raises:
            ValueError: Another size than `z_size`.
        """
        side = self._hyper_params["z_size"]
        if tuple(template.shape[2:]) != (side, side):
            raise ValueError(
                f"The template is {template.shape[2]} x {template.shape[3]} px, but z_size={side}: set "
                "SBTBackbone.z_size to the z_size of the pipeline and of the data."
            )
        return self.net.encode_template(self._prepare(template))

    def correlate(self, state: TemplateState, search: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both pictures, each of which knows the other.

        Args:
            state: Of `encode_template`; its batch, or the search batch, may be 1.
            search: (B, 3, H, W) BGR in 0..255.

        Returns:
            (B, 256, 5, 5) for a template of 127 px; (B, 256, (H - 87) // 8, (W - 87) // 8). Contiguous NCHW.

        Raises:
            ValueError: A search picture without a cell, batches that do not fit.
        """
        side = self._hyper_params["z_size"]
        z, x = self.net.forward_features(state, self._prepare(search))
        return self._adjust(z, side, side), self._adjust(x, *search.shape[2:])

    def forward(self, picture: Tensor) -> Tensor:
        """The stock `SiamTrack`'s call: one of `z_size` is a template, any other is searched for it.

        Args:
            picture: (B, 3, H, W) BGR in 0..255.

        Returns:
            (B, 256, (H - 87) // 8, (W - 87) // 8); the template's features are correlated with itself.

        Raises:
            RuntimeError: A search picture before any template.
        """
        side = self._hyper_params["z_size"]
        if tuple(picture.shape[2:]) == (side, side):
            self._template = self.encode_template(picture)
            return self._adjust(
                self.net.forward_features(self._template, self._prepare(picture))[0], side, side
            )
        if self._template is None:
            raise RuntimeError(
                f"A search picture of {picture.shape[2]} x {picture.shape[3]} px came before any template of "
                f"z_size={side}. Run phase 'feature' (the pipeline's init) first, or set SBTBackbone.z_size."
            )
        x = self.net(self._template, self._prepare(picture))
        return self._adjust(x, *picture.shape[2:])

    def _prepare(self, picture: Tensor) -> Tensor:
        """BGR in 0..255 -> RGB in the network's normalisation, padded with its mean onto the grid."""
        top, left = grid(picture.shape[2])[0], grid(picture.shape[3])[0]
        return F.pad(((picture - self.mean) / self.std).flip(1), (left, 0, top, 0))

    def _adjust(self, features: Tensor, height: int, width: int) -> Tensor:
        return self.neck(crop(features, height, width).contiguous())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_template": None}  # a template is no weight, and may hang on a graph


@TRACK_TASKMODELS.register
class SiamTrackCA(SiamTrack):
    """SiamFC++ whose template kernels and search features know each other; hyper-parameters of `SiamTrack`.

    Phase `feature` returns a list of one opaque state, which belongs to the caller: several targets share one
    model. Phase `track` takes a search picture and that state, as the pipelines call it.

    Raises:
        ValueError: A backbone other than `SBTBackbone`.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, loss: Any = None) -> None:
        super().__init__(backbone, head, loss)
        if not isinstance(backbone, SBTBackbone):
            raise ValueError(
                f"SiamTrackCA runs on SBTBackbone, not on {type(backbone).__name__}: set "
                "model.backbone.name: SBTBackbone."
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
                f"SiamTrackCA.head_width={width} must equal SBTBackbone.out_channels={channels}."
            )
        if self._hyper_params["trt_mode"]:
            raise ValueError("trt_mode=True: SiamTrackCA has no TensorRT form; set it to False.")
        super().update_params()

    def load_model_param(self, checkpoint_state_dict: Mapping[str, Tensor]) -> weights.LoadReport:
        """Loads what fits; of a stock tracker's checkpoint that is its head and its convolutions.

        Returns:
            What was taken, left and fresh; logged as a warning where it was not everything.

        Raises:
            ValueError: Nothing fits.
        """
        report = weights.load_state_dict(self, checkpoint_state_dict, partial=True)
        if report.left or report.fresh:
            _logger.warning("SiamTrackCA took a checkpoint in part: %s", report)
        return report

    def train_forward(self, training_data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions for a batch of pairs.

        Args:
            training_data: `im_z` (B, 3, 127, 127) and `im_x` (B, 3, 303, 303), BGR in 0..255.

        Returns:
            `cls_pred`, `ctr_pred` (B, cells, 1) and `box_pred` (B, cells, 4), with `corr_fea_output` also
            `corr_fea`.
        """
        state = self.basemodel.encode_template(training_data["im_z"])
        c_out, r_out, _, _ = self._match(state, training_data["im_x"])
        cls_pred, ctr_pred, box_pred, corr_fea = self.head(c_out, r_out)
        predictions = {"cls_pred": cls_pred, "ctr_pred": ctr_pred, "box_pred": box_pred}
        return {**predictions, "corr_fea": corr_fea} if self._hyper_params["corr_fea_output"] else predictions

    def instance(self, picture: Tensor, state: TemplateState | None = None) -> None:
        """Sets `cf`, the features that the online classifier reads.

        Args:
            picture: (B, 3, H, W) BGR in 0..255.
            state: The target's; without it the one that this model was last given or returned.

        Raises:
            RuntimeError: No template was ever encoded.
        """
        state = self._recent if state is None else state
        if state is None:
            raise RuntimeError("instance() before any template: run phase 'feature' first.")
        self.cf = self.c_x(self.basemodel.correlate(state, picture)[1])

    def forward(self, *args: Any, phase: str | None = None) -> Any:
        """One phase of the tracker.

        Args:
            *args: The training data; a template for `feature`; a search picture and the state for `track`.
            phase: `train`, `feature` or `track`; by default the `phase` that was set.

        Returns:
            `train`: see `train_forward`. `feature`: `[state]`. `track`: scores (B, cells, 1), boxes
            (B, cells, 4) xyxy in the search picture, class and centre probabilities, and a dict of features.

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
                f"Phase 'track' takes a search picture and the state of phase 'feature', not ({kinds}). "
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
