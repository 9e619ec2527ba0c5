"""SiamFC++'s own command, losses and optimizer on its unmodified checkout: stock and with our backbone.

Needs its package yacs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 6

SHIM = "from peers import shims\nshims.siamfcpp()\n"
ADAPTER = "import correlation_aware.adapters.siamfcpp\n"
COMMAND = """
import runpy, sys, torch
torch.set_num_threads(1)
torch.manual_seed(0)
sys.argv = ["main/test.py", "--config", "config.yaml"]
runpy.run_path({script!r}, run_name="__main__")
"""
YAML = """
test:
  track:
    exp_name: run
    exp_save: logs
    model:
      backbone: {{name: {backbone}, {backbone}: {{{options}}}}}
      losses: {{names: []}}
      task_head: {{name: DenseboxHead, DenseboxHead: {{score_size: 17, x_size: 303}}}}
      task_model: {{name: {task_model}}}
    pipeline: {{name: SiamFCppTracker, SiamFCppTracker: {{x_size: 303}}}}
    tester:
      names: [GOT10kTester]
      GOT10kTester: {{exp_name: run, exp_save: logs, device_num: 0, data_root: data, subsets: [val]}}
"""
TRAIN = """
import json, sys
import cv2, numpy as np, torch
torch.set_num_threads(1)
torch.manual_seed(0)
from videoanalyst.config.config import cfg
from videoanalyst.data.target.builder import build as build_target
from videoanalyst.model.builder import build as build_model
from videoanalyst.optim.builder import build as build_optimizer
from videoanalyst.pipeline.utils import get_crop

cfg.merge_from_file("config.yaml")
task = cfg.train.track
model = build_model("track", task.model).train()
optimizer = build_optimizer("track", task.optim, model)
make_target = build_target("track", task.data.target)

boxes = np.loadtxt("data/val/clip/groundtruth.txt", delimiter=",")
samples = []
for i in range(1, 5):
    pair = {"is_negative_pair": False}
    for key, frame, size in (("data1", 0, None), ("data2", i, 303)):
        image = cv2.imread(f"data/val/clip/{frame + 1:08d}.jpg").astype(np.float32)
        x, y, w, h = boxes[frame]
        crop, scale = get_crop(image, (x + w / 2, y + h / 2), (w, h), 127, x_size=size)
        middle, half = (crop.shape[0] - 1) / 2, np.array([w, h]) * scale / 2
        pair[key] = {"image": crop, "anno": np.concatenate([middle - half, middle + half])}
    samples.append(make_target(pair))
keys = ("im_z", "im_x", "cls_gt", "ctr_gt", "box_gt")
batch = {k: torch.stack([torch.as_tensor(s[k]).float() for s in samples]) for k in keys}

losses = []
for step in range(10):
    optimizer.schedule(0, step)
    optimizer.zero_grad()
    predictions = model(batch)
    total = sum(loss(predictions, batch)[0] for loss in model.loss.values())
    total.backward()
    optimizer.step()
    losses.append(total.item())
rates = [(len(g["params"]), g["lr"]) for g in optimizer._optimizer.param_groups]
unused = [n for n, p in model.named_parameters() if p.grad is None]
print("RESULT", json.dumps({"losses": losses, "rates": rates, "unused": unused}))
"""
TRAIN_YAML = """
train:
  track:
    exp_name: run
    model:
      backbone: {{name: SiamFCppBackbone, SiamFCppBackbone: {{model: sbt_test}}}}
      losses:
        names: [FocalLoss, SigmoidCrossEntropyCenterness, IOULoss]
        FocalLoss: {{name: cls, alpha: 0.25, gamma: 2.0}}
        SigmoidCrossEntropyCenterness: {{name: ctr}}
        IOULoss: {{name: reg, weight: 3.0}}
      task_head: {{name: DenseboxHead, DenseboxHead: {{score_size: 17, x_size: 303}}}}
      task_model: {{name: {task_model}}}
    data:
      target: {{name: DenseboxTarget, DenseboxTarget: {{x_size: 303}}}}
    optim:
      optimizer:
        name: SGD
        SGD:
          minibatch: 4
          nr_image_per_epoch: 40
          lr_policy: ['{{"name": "LinearLR", "start_lr": 0.02, "end_lr": 0.02, "max_epoch": 1}}']
          lr_multiplier:
            - '{{"name": "backbone", "regex": "basemodel", "ratio": 0.1}}'
            - '{{"name": "other", "regex": "^((?!basemodel).)*$", "ratio": 1}}'
"""


@pytest.fixture
def run(peer, make_clip, tmp_path):
    """Runs Python code that can import the checkout, in a folder with a configuration and a clip."""
    checkout = peer("video_analyst")
    pytest.importorskip("yacs", reason="SiamFC++'s configuration is a yacs node")
    make_clip(tmp_path / "data" / "val", FRAMES)

    def start(code, config, expect=0):
        (tmp_path / "config.yaml").write_text(config)
        path = [str(p) for p in (ROOT, ROOT / "benchmarks", checkout)] + [os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-c", SHIM + code.format(script=f"{checkout}/main/test.py")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == expect, done.stderr[-4000:]
        return done.stdout + done.stderr

    start.boxes = tmp_path / "logs" / "GOT-Benchmark" / "result" / "GOT-10k" / "run" / "clip" / "clip_001.txt"
    return start


@pytest.mark.parametrize(
    ("code", "backbone", "options", "task_model"),
    [
        ("", "AlexNet", "", "SiamTrack"),
        (ADAPTER, "SiamFCppBackbone", "", "SiamTrackCA"),
        (ADAPTER, "SiamFCppBackbone", "model: sbt_light", "SiamTrack"),
        (ADAPTER, "SiamFCppBackbone", "model: siam_test", "SiamTrackCA"),
    ],
    ids=["stock", "ours", "backbone_alone", "siamese"],
)
def test_its_own_command_tracks(run, code, backbone, options, task_model):
    run(code + COMMAND, YAML.format(backbone=backbone, options=options, task_model=task_model))
    boxes = np.loadtxt(run.boxes, delimiter=",")
    assert boxes.shape == (FRAMES, 4) and np.isfinite(boxes).all() and (boxes[:, 2:] > 0).all()


@pytest.mark.parametrize("task_model", ["SiamTrackCA", "SiamTrack"])
def test_its_losses_fall_over_ten_steps(run, task_model):
    code = ADAPTER + TRAIN.replace("{", "{{").replace("}", "}}")
    printed = run(code, TRAIN_YAML.format(task_model=task_model))
    result = json.loads(printed.split("RESULT", 1)[1].splitlines()[0])
    assert not result["unused"]
    assert result["losses"][-1] < 0.8 * result["losses"][0], result["losses"]
    (backbone, slow), (others, fast) = result["rates"]
    assert backbone > 0 and others > 0 and slow == pytest.approx(fast / 10)


def test_an_unknown_option_is_named(run):
    config = YAML.format(backbone="SiamFCppBackbone", options="dephts: [1]", task_model="SiamTrackCA")
    assert "Non-existent config key" in (printed := run(ADAPTER + COMMAND, config, expect=1))
    assert "SiamFCppBackbone.dephts" in printed


def test_an_import_that_comes_too_late_is_named(run):
    assert "Move the import to the first line" in run(
        "import videoanalyst.config.config\n" + ADAPTER, "", expect=1
    )


def test_the_example_runs_on_it(run):
    example = ROOT / "examples" / "ca_siamfcpp.py"
    printed = run(f"import runpy; runpy.run_path('{example}', run_name='__main__')", "")
    assert printed.count("scores (1, 289, 1) boxes (1, 289, 4)") == 2
