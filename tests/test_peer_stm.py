"""STM's own command and forward on its unmodified checkout: stock and with our encoders.

Needs its packages torchvision, matplotlib and tqdm.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 5

SETUP = """
import sys
from peers import shims
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
shims.stm()
import model
"""
OURS = """
from correlation_aware.adapters.stm import STM_CA, create_network
model.STM = {maker}
"""
COMMAND = """
import runpy
torch.save(torch.nn.DataParallel(model.STM()).state_dict(), "STM_weights.pth")
sys.argv = ["eval_DAVIS.py", "-g", "", "-s", "val", "-y", "17", "-D", "data"]
runpy.run_path({script!r}, run_name="__main__")
"""
TRAIN = """
import functools, json
import torch.nn.functional as F
from dataset import DAVIS_MO_Test
net = STM_CA(functools.partial(create_network, "sbt_test")).train()
frames, masks, n, _ = DAVIS_MO_Test("data", imset="2017/val.txt")[1]
frames, masks, n = F.interpolate(frames, (96, 128)), F.interpolate(masks, (96, 128)), n[None]
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
losses = []
for step in range(10):
    optimizer.zero_grad()
    total = 0.0
    for t in range(1, 5):
        keys, values = net(frames[None, :, 0], masks[None, :, 0], n[0])
        logit = net(frames[None, :, t], keys, values, n[0])
        total = total + F.cross_entropy(logit, masks[None, :, 0].argmax(1)) / 4
    total.backward()
    optimizer.step()
    losses.append(total.item())
unused = [name for name, p in net.named_parameters() if p.grad is None]
print("RESULT", json.dumps({"losses": losses, "unused": unused}))
"""


def draw_labels(size, boxes):
    """A palette image with an ellipse in each box (x, y, w, h)."""
    labels = np.zeros(size, np.uint8)
    for i, (x, y, w, h) in enumerate(boxes, 1):
        cv2.ellipse(labels, (int(x + w / 2), int(y + h / 2)), (int(w / 2), int(h / 2)), 0, 0, 360, i, -1)
    image = Image.fromarray(labels, "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    return image


@pytest.fixture
def run(peer, make_clip, tmp_path):
    """Runs Python code that can import the checkout, in a folder with two short videos in DAVIS' layout."""
    checkout = peer("STM")
    source = make_clip(tmp_path / "clips", FRAMES)
    box = np.loadtxt(source / "groundtruth.txt", delimiter=",")[0]
    x, y, w, h = box
    for video, others in (("blackswan", []), ("second", [(x + w, y + h / 2, w, h)])):
        folders = [tmp_path / "data" / kind / "480p" / video for kind in ("JPEGImages", "Annotations")]
        for folder in folders:
            folder.mkdir(parents=True)
        for i in range(FRAMES):
            frame = cv2.imread(str(source / f"{i + 1:08d}.jpg"))
            cv2.imwrite(str(folders[0] / f"{i:05d}.jpg"), frame)
        draw_labels(frame.shape[:2], [box, *others]).save(folders[1] / "00000.png")
    sets = tmp_path / "data" / "ImageSets" / "2017"
    sets.mkdir(parents=True)
    (sets / "val.txt").write_text("blackswan\nsecond\n")

    def start(code):
        path = [str(p) for p in (checkout, ROOT, ROOT / "benchmarks")] + [os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "MPLBACKEND": "agg"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    start.script, start.masks = f"{checkout}/eval_DAVIS.py", tmp_path / "test" / "STM_DAVIS_17val"
    return start


SUPERSBT = "import functools\n" + OURS.format(
    maker="functools.partial(STM_CA, functools.partial(create_network, 'supersbt_test'))"
)


@pytest.mark.parametrize(
    "ours", ["", OURS.format(maker="STM_CA"), SUPERSBT], ids=["stock", "ours", "supersbt"]
)
def test_its_own_command_segments(run, ours):
    printed = run(SETUP + ours + COMMAND.format(script=run.script))
    assert "[second]: num_frames: 5, num_objects: 2" in printed
    for video, objects in (("blackswan", 1), ("second", 2)):
        masks = [np.array(Image.open(path)) for path in sorted((run.masks / video).glob("*.png"))]
        assert len(masks) == FRAMES and max(m.max() for m in masks) <= objects
        assert set(np.unique(masks[0])) == set(range(objects + 1))


OURS_TOO = """
import os
import numpy as np
from PIL import Image
from correlation_aware.evaluation.segmenters import StmSegmenter
net = STM_CA()
net.load_state_dict({k.removeprefix("module."): v for k, v in torch.load("STM_weights.pth").items()})
segmenter = StmSegmenter(net.eval())
for video in ("blackswan", "second"):
    frames = sorted(os.scandir(f"data/JPEGImages/480p/{video}"), key=lambda e: e.name)
    first = Image.open(f"data/Annotations/480p/{video}/00000.png")
    segmenter.init(np.array(Image.open(frames[0].path)), np.array(first))
    for entry in frames[1:]:
        actual = segmenter.update(np.array(Image.open(entry.path)))
        expected = np.array(Image.open(f"test/STM_DAVIS_17val/{video}/{entry.name[:-4]}.png"))
        print("SAME", (actual == expected).mean(), len(np.unique(expected)))
"""


def test_our_segmenter_gives_the_masks_of_its_command(run):
    printed = run(SETUP + OURS.format(maker="STM_CA") + COMMAND.format(script=run.script) + OURS_TOO)
    rows = [line.split() for line in printed.splitlines() if line.startswith("SAME")]
    assert len(rows) == 2 * (FRAMES - 1) and all(float(row[1]) > 0.9999 for row in rows), rows


def test_a_loss_falls_over_ten_steps(run):
    printed = run(SETUP + OURS.format(maker="STM_CA") + TRAIN)
    result = json.loads(printed.split("RESULT", 1)[1])
    assert not result["unused"]
    assert result["losses"][-1] < 0.8 * result["losses"][0], result["losses"]


def test_the_example_runs_on_it(run):
    example = ROOT / "examples" / "ca_stm.py"
    printed = run(SETUP + f"import runpy; runpy.run_path('{example}', run_name='__main__')")
    assert printed.count("segmented (1, 11, 64, 96)") == 2
