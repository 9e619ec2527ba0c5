"""Other people's trackers from their own unmodified checkouts, stock and with our adapter, random weights.

Each function imports one of them, after `prepare`. Their packages have equal names, so each needs a process
of its own.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import shims
from torch import nn

__all__ = ["TRACKERS", "Contender", "Tracker", "prepare"]

Frame = NDArray[np.uint8]
Box = tuple[float, float, float, float]


@dataclass
class Contender:
    """One tracker on a clip.

    Attributes:
        parts: The modules that the paper counts.
        start: First frame, RGB, and the target's box x, y, w, h.
        step: Every later frame.
        left_out: Modules in `parts` that it does not count.
    """

    parts: list[nn.Module]
    start: Callable[[Frame, Box], object]
    step: Callable[[Frame], object]
    left_out: list[nn.Module] = field(default_factory=list)


@dataclass(frozen=True)
class Tracker:
    """A tracker's checkout.

    Attributes:
        checkout: Name of its folder.
        source: `owner/name@commit` of its public repository on GitHub, with which this was tested.
        shim: Function that makes its code importable.
        make: Function of the checkout and a folder for files; returns it stock and with our adapter.
    """

    checkout: str
    source: str
    shim: Callable[[], None]
    make: Callable[[Path, Path], tuple[Contender, Contender]]


def prepare(tracker: Tracker, checkout: Path) -> None:
    """Makes a checkout importable.

    Raises:
        FileNotFoundError: No such checkout; the message says how to get it.
        RuntimeError: A checkout of another commit.
    """
    repository, _, commit = tracker.source.partition("@")
    if not checkout.is_dir():
        raise FileNotFoundError(
            f"There is no {checkout}: git clone https://github.com/{repository} {checkout}, and there git "
            f"checkout {commit}."
        )
    if (checkout / ".git").exists():
        words = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        actual = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        if not actual.startswith(commit):
            raise RuntimeError(
                f"{checkout} is commit {actual[:7]}, the table is of {commit}: git checkout {commit}."
            )
    tracker.shim()
    os.chdir(checkout)
    sys.path.insert(0, str(checkout))


def siamfcpp(checkout: Path, folder: Path) -> tuple[Contender, Contender]:
    """SiamFC++ with GoogLeNet: 127 and 303 px, its `SiamFCppTracker`."""
    importlib.import_module("correlation_aware.adapters.siamfcpp")
    from videoanalyst.config.config import cfg
    from videoanalyst.model.builder import build
    from videoanalyst.pipeline.builder import build as build_pipeline

    def make(backbone: str, task: str, convs: int, norms: list[bool]) -> Contender:
        node = cfg.test.track.clone()
        model, head = node.model, node.model.task_head.DenseboxHead
        model.backbone.name, model.task_model.name, model.task_head.name = backbone, task, "DenseboxHead"
        model.losses.names = []
        head.num_conv3x3, head.head_conv_bn, head.score_size, head.x_size = convs, norms, 23 - 2 * convs, 303
        node.pipeline.name = "SiamFCppTracker"
        node.pipeline.SiamFCppTracker.num_conv3x3 = convs
        torch.manual_seed(0)
        net = build("track", model)
        tracker = build_pipeline("track", node.pipeline, net)
        return Contender([net], tracker.init, tracker.update)

    return (
        make("Inception3", "SiamTrack", 2, [False, False]),
        make("SiamFCppBackbone", "SiamTrackCA", 3, [False, False, True]),
    )


def dimp(checkout: Path, folder: Path) -> tuple[Contender, Contender]:
    """DiMP-50: 288 px, its `DiMP`, without advanced localization, where the scores change the cost."""
    from ltr.models.tracking.dimpnet import dimpnet50
    from pytracking.features.net_wrappers import NetWithBackbone
    from pytracking.parameter.dimp.dimp50 import parameters
    from pytracking.tracker.dimp.dimp import DiMP

    from correlation_aware.adapters.dimp import DiMPCA, dimpnet_sbt

    def make(tracker_class: Any, constructor: Any) -> Contender:
        torch.manual_seed(0)
        net = constructor(
            filter_size=4,
            backbone_pretrained=False,
            optim_iter=5,
            optim_init_step=0.9,
            optim_init_reg=0.1,
            init_gauss_sigma=4.5,
            num_dist_bins=100,
            bin_displacement=0.1,
            mask_init_factor=3.0,
        ).eval()
        params = parameters()
        params.use_gpu, params.advanced_localization = False, False
        params.net = NetWithBackbone(net_path="", use_gpu=False)
        params.net.net, params.net.initialize = net, lambda: None
        tracker = tracker_class(params)
        features = net.feature_extractor
        unused = [features.layer4, features.fc] if hasattr(features, "fc") else []
        return Contender([net], lambda f, b: tracker.initialize(f, {"init_bbox": b}), tracker.track, unused)

    return make(DiMP, dimpnet50), make(DiMPCA, dimpnet_sbt)


def stark(checkout: Path, folder: Path) -> tuple[Contender, Contender]:
    """STARK-S50: 128 and 320 px, its `STARK_S`; counted as thop does, without `nn.MultiheadAttention`."""
    shims.without_stark_weights()
    lines = {"    TYPE: resnet50": "    TYPE: SBT"}
    stock, ours = _lib_trackers(checkout, folder, "stark", "stark_s", "baseline", {}, lines)
    for contender in (stock, ours):
        contender.left_out = [
            m for part in contender.parts for m in part.modules() if isinstance(m, nn.MultiheadAttention)
        ]
    return stock, ours


def ostrack(checkout: Path, folder: Path) -> tuple[Contender, Contender]:
    """OSTrack-256 on ViT-B without candidate elimination: 128 and 256 px, its `OSTrack`."""
    fresh = {'  PRETRAIN_FILE: "mae_pretrain_vit_base.pth"': '  PRETRAIN_FILE: ""'}
    lines = {**fresh, "    TYPE: vit_base_patch16_224": "    TYPE: SBT"}
    return _lib_trackers(checkout, folder, "ostrack", "ostrack", "vitb_256_mae_32x4_ep300", fresh, lines)


def _lib_trackers(
    checkout: Path,
    folder: Path,
    adapter: str,
    script: str,
    name: str,
    stock: dict[str, str],
    ours: dict[str, str],
) -> tuple[Contender, Contender]:
    """STARK and its forks; `stock` and `ours` replace lines of the experiment's YAML."""
    local: Any = ModuleType("lib.test.evaluation.local")

    def local_env_settings() -> Any:
        settings = importlib.import_module("lib.test.evaluation.environment").EnvSettings()
        settings.prj_dir = settings.save_dir = str(folder)
        return settings

    local.local_env_settings = local_env_settings
    sys.modules[local.__name__] = local
    importlib.import_module(f"correlation_aware.adapters.{adapter}").install()
    tester = importlib.import_module(f"lib.test.tracker.{script}")
    module, builder = ("stark", "build_starks") if script == "stark_s" else ("ostrack", "build_ostrack")
    build = getattr(importlib.import_module(f"lib.models.{module}"), builder)

    def make(changes: dict[str, str]) -> Contender:
        text = (checkout / "experiments" / script / f"{name}.yaml").read_text()
        for old, new in changes.items():
            assert text.count(f"{old}\n") == 1, f"{old!r} is in {name}.yaml {text.count(old)} times"
            text = text.replace(f"{old}\n", f"{new}\n")
        file = folder / "experiments" / script / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        params = importlib.import_module(f"lib.test.parameter.{script}").parameters(name)
        params.debug = 0
        torch.manual_seed(0)
        checkpoint = Path(params.checkpoint)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"net": build(params.cfg).state_dict()}, checkpoint)
        tracker = tester.get_tracker_class()(params, "got10k_val")
        checkpoint.unlink()
        return Contender(
            [tracker.network], lambda f, b: tracker.initialize(f, {"init_bbox": list(b)}), tracker.track
        )

    return make(stock), make(ours)


def stm(checkout: Path, folder: Path) -> tuple[Contender, Contender]:
    """STM on 480 x 864 px and one object: its network, in the order of its `eval_DAVIS.py`."""
    import model

    from correlation_aware.adapters.stm import STM_CA

    def make(network: Any) -> Contender:
        torch.manual_seed(0)
        net = network().eval()
        run = _Segmenter(net)
        return Contender([net.Encoder_Q, net.KV_Q_r4, net.Decoder], run.start, run.step)

    return make(model.STM), make(STM_CA)


class _Segmenter:
    """Memorizes the last frame, then segments; every fifth frame stays in the memory."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.objects = torch.tensor([1])

    def start(self, frame: Frame, box: Box) -> None:
        x, y, w, h = (int(v) for v in box)
        self.frame, self.time = _to_tensor(frame), 0
        self.masks = torch.zeros(1, 11, *frame.shape[:2])
        self.masks[:, 1, y : y + h, x : x + w] = 1
        self.masks[:, 0] = 1 - self.masks[:, 1]
        self.memory: tuple[torch.Tensor, ...] = ()

    @torch.no_grad()
    def step(self, frame: Frame) -> None:
        memory = self.net(self.frame, self.masks, self.objects)
        if self.memory:
            memory = tuple(torch.cat(pair, dim=3) for pair in zip(self.memory, memory))
        self.frame = _to_tensor(frame)
        self.masks = self.net(self.frame, *memory, self.objects).softmax(dim=1)
        if self.time % 5 == 0:
            self.memory = memory
        self.time += 1


def _to_tensor(frame: Frame) -> torch.Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255


TRACKERS = {
    "SiamFC++": Tracker("video_analyst", "megvii-research/video_analyst@7b89c20", shims.siamfcpp, siamfcpp),
    "DiMP-50": Tracker("pytracking", "visionml/pytracking@7eb9e74", shims.dimp, dimp),
    "STARK-S50": Tracker("Stark", "researchmm/Stark@162e1d3", shims.stark, stark),
    "STM": Tracker("STM", "seoungwugoh/STM@905f114", shims.stm, stm),
    "OSTrack ViT-B": Tracker("OSTrack", "botaoye/OSTrack@33b5e12", shims.stark, ostrack),
}
