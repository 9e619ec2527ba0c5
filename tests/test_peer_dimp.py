"""DiMP on an unmodified checkout of pytracking: its own command line, actor, losses and checkpoints.

Once stock and once with our backbone. The files that a user adds are taken from the documentation.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parent.parent
DOCS = (ROOT / "docs" / "adapters_dimp.md").read_text()
FRAMES = 6

CPU = """
from pytracking.features.net_wrappers import NetWithBackbone
from pytracking.parameter.{package} import parameters as original


def parameters():
    params = original()
    params.use_gpu = False
    params.image_sample_size = 9 * 16  # half of DiMP's, for the time it takes
    params.net = NetWithBackbone(net_path="{net}", use_gpu=False)
    return params
"""
LOCAL = """
from pytracking.evaluation.environment import EnvSettings


def local_env_settings():
    settings = EnvSettings()
    settings.got10k_path = {data!r}
    settings.network_path = {networks!r}
    settings.results_path = {results!r}
    return settings
"""
PRELUDE = """
import json, runpy, sys
from peers import shims
shims.dimp()
import numpy as np
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
"""
TRACK = """
sys.argv = ["run_tracker.py", {tracker!r}, "cpu", "--dataset_name", "got10k_val", "--threads", "0"]
runpy.run_path("pytracking/run_tracker.py", run_name="__main__")
"""
STOCK = """
from ltr.models.tracking.dimpnet import dimpnet50
net = dimpnet50(filter_size=4, backbone_pretrained=False)
torch.save({"net": net.state_dict(), "constructor": net.constructor}, "../networks/stock.pth")
"""
TRAIN = """
import cv2
from types import SimpleNamespace
import ltr.models.loss as losses
from correlation_aware.adapters.dimp import dimpnet_sbt
from ltr import actors, load_network
from ltr.data import processing
from ltr.data import transforms as tfm
from ltr.trainers.base_trainer import BaseTrainer
from pytracking import TensorDict

np.random.seed(0)
sigma = 1 / 4 / 5
transform = tfm.Transform(tfm.ToTensor(), tfm.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
process = processing.DiMPProcessing(
    search_area_factor=5.0, output_sz=144, center_jitter_factor={"train": 3, "test": 4.5},
    scale_jitter_factor={"train": 0.25, "test": 0.5}, mode="sequence", transform=transform,
    proposal_params={"min_iou": 0.1, "boxes_per_frame": 8, "sigma_factor": [0.01, 0.05, 0.1, 0.2, 0.3]},
    label_function_params={"feature_sz": 9, "sigma_factor": sigma, "kernel_sz": 4},
)
boxes = torch.as_tensor(np.loadtxt("../data/val/clip/groundtruth.txt", delimiter=",")).float()
frames = [cv2.imread(f"../data/val/clip/{i + 1:08d}.jpg")[..., ::-1] for i in range(len(boxes))]
samples = [
    process(TensorDict({
        "train_images": [frames[i - 1]], "train_anno": [boxes[i - 1]],
        "test_images": [frames[i + 1]], "test_anno": [boxes[i + 1]],
    }))
    for i in range(1, 5)
]
keys = [f"{k}_{v}" for k in ("train", "test") for v in ("images", "anno")]
keys += ["test_proposals", "proposal_iou", "test_label"]
batch = TensorDict({k: torch.stack([s[k] for s in samples], dim=1) for k in keys})

net = dimpnet_sbt(
    backbone="BACKBONE", backbone_pretrained=False, filter_size=4, optim_iter=5, clf_feat_norm=True,
    clf_feat_blocks=0, final_conv=True, out_feature_dim=512, optim_init_step=0.9, optim_init_reg=0.1,
    init_gauss_sigma=sigma * 9, num_dist_bins=100, bin_displacement=0.1, mask_init_factor=3.0,
    target_mask_act="sigmoid", score_act="relu",
)
objective = {"iou": torch.nn.MSELoss(), "test_clf": losses.LBHinge(threshold=0.05)}
weight = {"iou": 1, "test_clf": 100, "test_init_clf": 100, "test_iter_clf": 400}
actor = actors.DiMPActor(net=net, objective=objective, loss_weight=weight)
optimizer = torch.optim.Adam(
    [{"params": actor.net.classifier.filter_initializer.parameters(), "lr": 5e-5},
     {"params": actor.net.classifier.filter_optimizer.parameters(), "lr": 5e-4},
     {"params": actor.net.classifier.feature_extractor.parameters(), "lr": 5e-5},
     {"params": actor.net.bb_regressor.parameters()},
     {"params": actor.net.feature_extractor.parameters(), "lr": 2e-5}],
    lr=2e-4,
)
settings = SimpleNamespace(
    env=SimpleNamespace(workspace_dir="../workspace"), use_gpu=False, project_path="ltr/dimp/sbt", device=None
)
trainer = BaseTrainer(actor, [], optimizer, settings)
actor.train()
curve = []
for step in range(10):
    loss, stats = actor(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    curve.append(loss.item())
missing = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
trainer.save_checkpoint()
again, _ = load_network("../workspace/checkpoints/ltr/dimp/sbt", backbone_pretrained=False)
same = all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))
torch.save({"net": net.state_dict(), "constructor": net.constructor}, "../networks/dimp_sbt.pth.tar")
print("RESULT", json.dumps({"losses": curve, "missing": missing, "same": same}))
"""
SEVERAL = """
import cv2
from correlation_aware.adapters.dimp import DiMPCA
from pytracking.evaluation.multi_object_wrapper import MultiObjectWrapper
from pytracking.parameter.dimp_ca.cpu import parameters

x, y, w, h = np.loadtxt("../data/val/clip/groundtruth.txt", delimiter=",")[0].tolist()
boxes = {"1": [x, y, w, h], "2": [x + w, y + h / 2, w, h]}
frames = [cv2.imread(f"../data/val/clip/{i:08d}.jpg")[..., ::-1].copy() for i in (1, 2, 3)]
info = {"init_object_ids": ["1", "2"], "object_ids": ["1", "2"], "sequence_object_ids": ["1", "2"]}
params = parameters()
params.debug, params.visualization = 0, False
tracker = MultiObjectWrapper(DiMPCA, params)
tracker.initialize(frames[0], {**info, "init_bbox": boxes})
tracked = [tracker.track(frame)["target_bbox"] for frame in frames[1:]]
one, two = (t.template[0] for t in tracker.trackers.values())
shared = len({id(t.params.net) for t in tracker.trackers.values()})
print("RESULT", json.dumps({"boxes": tracked, "differ": not torch.equal(one, two), "networks": shared}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dimp")


@pytest.fixture
def run(peer, make_clip, folder):
    """Runs Python code in a copy of the checkout, with the files of a user and a clip of six frames.

    Returns all that was printed, then the values of the lines that start with RESULT.
    """
    checkout = peer("pytracking")
    copy = folder / "pytracking"
    if not copy.exists():
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "local.py"))
        (folder / "networks").mkdir()
        make_clip(folder / "data" / "val", FRAMES)
        paths = {name: str(folder / name) for name in ("data", "networks", "results")}
        (copy / "pytracking" / "evaluation" / "local.py").write_text(LOCAL.format(**paths))
        for file, text in re.findall(r"`(pytracking/\S+\.py)`\n\n```python\n(.*?)```", DOCS, re.DOTALL):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).write_text(text)
        for tracker, package, net in (
            ("dimp", "dimp.dimp50", "stock.pth"),
            ("dimp_ca", "dimp_ca.sbt", "dimp_sbt.pth.tar"),
        ):
            file = copy / "pytracking" / "parameter" / tracker / "cpu.py"
            file.write_text(CPU.format(package=package, net=net))

    def start(code):
        path = [str(p) for p in (ROOT, ROOT / "benchmarks", copy)] + [os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PRELUDE + code],
            cwd=copy,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path),
                "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
                "CUDA_VISIBLE_DEVICES": "",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        results = re.findall(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
        return [done.stdout, *map(json.loads, results)]

    return start


def check_boxes(printed, folder, tracker):
    file = folder / "results" / tracker / "cpu" / "clip.txt"
    assert file.exists(), printed
    boxes = np.loadtxt(file)
    assert boxes.shape == (FRAMES, 4) and np.isfinite(boxes).all() and (boxes[:, 2:] > 0).all()


def test_its_own_command_tracks_with_stock_dimp(run, folder):
    check_boxes(run(STOCK + TRACK.format(tracker="dimp"))[0], folder, "dimp")


@pytest.mark.parametrize("backbone", ["sbt_test", "supersbt_test"])
def test_its_actor_and_losses_train_ours_and_its_command_tracks(run, folder, backbone):
    code = TRAIN.replace("BACKBONE", backbone) + SEVERAL + TRACK.format(tracker="dimp_ca")
    printed, trained, several = run(code)
    assert trained["losses"][-1] < 0.8 * trained["losses"][0], trained["losses"]
    assert not trained["missing"] and trained["same"]
    assert several["differ"] and several["networks"] == 1
    assert np.isfinite([list(b.values()) for b in several["boxes"]]).all() and len(several["boxes"]) == 2
    check_boxes(printed, folder, "dimp_ca")


def test_the_example_runs_on_it(run):
    example = ROOT / "examples" / "ca_dimp.py"
    printed, *_ = run(f"runpy.run_path({str(example)!r}, run_name='__main__')\n")
    assert "two targets, one network True" in printed
