"""Runs the own code of STARK and of the trackers forked from it, in a process that imports one of them.

Their packages are all named `lib`, so each run is a process: `run` starts this file as a script. Their code
and their command line are unmodified; `benchmarks/peers/shims.py` makes the code importable.
"""

import importlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peer_clip import NAME

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 7


def run(checkout: Path, job: str, folder: Path, **options: Any) -> dict[str, Any]:
    """The result of a job, and all that it printed under `log`.

    Args:
        checkout: Checkout of the tracker.
        job: Name of a function of this file.
        folder: Folder for results, with the experiments' YAML files and in `got10k/val` a clip of `FRAMES`.
        **options: Arguments of the job, and `adapter`, the name of the one to install before.
    """
    pytest.importorskip("easydict", reason="STARK's configuration is an EasyDict")
    path = [str(p) for p in (ROOT, ROOT / "benchmarks", checkout)] + [os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(checkout), job, str(folder), json.dumps(options)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {"log": done.stdout, **json.loads(done.stdout.splitlines()[-1])}


def experiment(folder: Path, checkout: Path, script: str, name: str, changes: dict[str, str]) -> None:
    """Copies an experiment's YAML of the checkout, with the lines `changes` replaced."""
    text = (checkout / "experiments" / script / f"{name}.yaml").read_text()
    for old, new in changes.items():
        assert text.count(f"{old}\n") == 1, f"{old!r} is in {name}.yaml {text.count(old)} times"
        text = text.replace(f"{old}\n", f"{new}\n")
    file = folder / "experiments" / script / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def track(checkout: Path, folder: Path, script: str, name: str, file: str) -> dict:
    """`tracking/test.py TRACKER NAME` over the clip, with random weights in the checkpoint `file`.

    Args:
        checkout: Checkout of the tracker.
        folder: As in `run`.
        script: Folder of the experiment; for STARK-ST it has another name than the tracker.
        name: Name of the experiment.
        file: Name of the checkpoint, in the tracker's own naming.
    """
    net = build(script, config(folder, script, name))
    if hasattr(net, "cls_head"):  # high scores, so that the template is updated
        torch.nn.init.constant_(net.cls_head.layers[-1].bias, 5.0)
    checkpoint = folder / "checkpoints" / "train" / script / name / file
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": net.state_dict()}, checkpoint)
    tracker = "stark_st" if script == "stark_st2" else script
    arguments = [tracker, name, "--dataset_name", "got10k_val", "--threads", "0", "--num_gpus", "1"]
    sys.argv = ["tracking/test.py", *arguments]
    runpy.run_path(str(checkout / "tracking" / "test.py"), run_name="__main__")
    results = folder / "results" / tracker / name / "got10k" / f"{NAME}.txt"
    truth = (clip(folder) / "groundtruth.txt").read_text().splitlines()[0]
    return {
        "boxes": [[float(x) for x in line.split()] for line in results.read_text().splitlines()],
        "first": [float(x) for x in truth.split(",")],
    }


def train(checkout: Path, folder: Path, script: str, name: str) -> dict:
    """Ten steps of the tracker's own actor and optimizer on four samples of the clip.

    `losses` has the whole loss, `giou` that term. STARK's actor leaves the term out where the corner head has
    swapped corners, as with random weights; such steps do not count.
    """
    cfg = config(folder, script, name)
    data = samples(cfg, clip(folder))
    functions = importlib.import_module("lib.train.base_functions")
    net = build(script, cfg).train()
    optimizer, _ = functions.get_optimizer_scheduler(net, cfg)
    actor = make_actor(script, net, cfg, data)
    losses: list[float] = []
    giou: list[float] = []
    for _ in range(15):
        torch.manual_seed(0)  # equal dropout in every step, so that losses can be compared
        optimizer.zero_grad()
        loss, parts = actor(data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), cfg.TRAIN.GRAD_CLIP_NORM)
        if parts["Loss/giou"] > 0:
            losses.append(loss.item())
            giou.append(parts["Loss/giou"])
        missing = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
    rates = [[group["lr"], len(group["params"])] for group in optimizer.param_groups]
    return {"losses": losses[:10], "giou": giou[:10], "missing": missing, "rates": rates}


def example(checkout: Path, folder: Path, file: str) -> dict:
    """A script of examples/ on the tracker's own code."""
    runpy.run_path(str(ROOT / "examples" / file), run_name="__main__")
    return {}


def clip(folder: Path) -> Path:
    return folder / "got10k" / "val" / NAME


def config(folder: Path, script: str, name: str) -> Any:
    module = importlib.import_module(f"lib.config.{script}.config")
    module.update_config_from_file(str(folder / "experiments" / script / f"{name}.yaml"))
    return module.cfg


def build(script: str, cfg: Any) -> Any:
    torch.manual_seed(0)
    if script == "ostrack":
        return importlib.import_module("lib.models.ostrack").build_ostrack(cfg, training=False)
    models = importlib.import_module("lib.models.stark")
    return models.build_starks(cfg) if script == "stark_s" else models.build_starkst(cfg)


def samples(cfg: Any, folder: Path) -> dict[str, Any]:
    """Four pairs, cropped by the tracker's own code: frame 0, and the frames after it."""
    import cv2

    cut = importlib.import_module("lib.train.data.processing_utils").jittered_center_crop
    frames = [cv2.cvtColor(cv2.imread(str(f)), cv2.COLOR_BGR2RGB) for f in sorted(folder.glob("*.jpg"))]
    text = (folder / "groundtruth.txt").read_text().splitlines()
    boxes = [torch.tensor([float(x) for x in line.split(",")]) for line in text]
    shifts = [boxes[i] + torch.tensor([4.0 * i - 10, 6 - 3.0 * i, 0, 0]) for i in range(1, 5)]
    number = getattr(cfg.DATA.TEMPLATE, "NUMBER", 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (cfg.DATA.MEAN, cfg.DATA.STD))
    data: dict[str, Any] = {"epoch": 1}
    for kind, images, around, truth, copies in (
        ("template", frames[:1] * 4, boxes[:1] * 4, boxes[:1] * 4, number),
        ("search", frames[1:5], shifts, boxes[1:5], 1),
    ):
        options = cfg.DATA.TEMPLATE if kind == "template" else cfg.DATA.SEARCH
        crops, inside, masks, _ = cut(images, around, truth, options.FACTOR, options.SIZE)
        stacked = torch.stack([(torch.tensor(c).permute(2, 0, 1) / 255 - mean) / std for c in crops])
        data[f"{kind}_images"] = stacked[None].repeat(copies, 1, 1, 1, 1)  # copies, 4, 3, H, W
        data[f"{kind}_att"] = torch.stack([torch.tensor(m) for m in masks])[None].repeat(copies, 1, 1, 1)
        data[f"{kind}_anno"] = torch.stack(inside)[None].repeat(copies, 1, 1)  # copies, 4, xywh in 0..1
    return data


def make_actor(script: str, net: Any, cfg: Any, data: dict[str, Any]) -> Any:
    giou = importlib.import_module("lib.utils.box_ops").giou_loss
    actors = importlib.import_module("lib.train.actors")
    settings = SimpleNamespace(batchsize=4, num_template=len(data["template_images"]))
    objective = {"giou": giou, "l1": torch.nn.functional.l1_loss}
    weight = {"giou": cfg.TRAIN.GIOU_WEIGHT, "l1": cfg.TRAIN.L1_WEIGHT}
    if script == "ostrack":
        objective["focal"], weight["focal"] = importlib.import_module("lib.utils.focal_loss").FocalLoss(), 1.0
        return actors.OSTrackActor(net, objective, weight, settings, cfg)
    return actors.STARKSActor(net, objective, weight, settings)


def prepare(checkout: Path, folder: Path) -> None:
    """Makes the checkout importable, with the settings file that every user writes."""
    shims = importlib.import_module("peers.shims")
    shims.stark()
    if (checkout / "lib" / "models" / "stark").is_dir():
        shims.without_stark_weights()
    local: Any = ModuleType("lib.test.evaluation.local")

    def local_env_settings() -> Any:
        settings = importlib.import_module("lib.test.evaluation.environment").EnvSettings()
        settings.prj_dir, settings.save_dir = str(folder), str(folder)
        settings.results_path, settings.got10k_path = str(folder / "results"), str(folder / "got10k")
        return settings

    local.local_env_settings = local_env_settings
    sys.modules[local.__name__] = local
    sys.path.insert(0, str(checkout))  # as for a script of the checkout


if __name__ == "__main__":
    _checkout, _job, _folder, _text = sys.argv[1:]
    _options = json.loads(_text)
    torch.set_num_threads(1)
    prepare(Path(_checkout), Path(_folder))
    _adapter = _options.pop("adapter", None)
    if _adapter is not None:
        importlib.import_module(f"correlation_aware.adapters.{_adapter}").install()
    _jobs = {f.__name__: f for f in (track, train, example)}
    _result = _jobs[_job](Path(_checkout), Path(_folder), **_options)
    sys.stdout.write("\n" + json.dumps(_result) + "\n")
