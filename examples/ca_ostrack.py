"""OSTrack with our backbone: the lines a user adds, and what its network then does.

Run it where OSTrack's checkout (https://github.com/botaoye/OSTrack) is on PYTHONPATH. In OSTrack itself the
import and `install` go into `tracking/test.py` and `lib/train/run_training.py`, and TYPE into the YAML.
"""

from types import SimpleNamespace as Namespace

import torch

from correlation_aware.adapters import ostrack

ostrack.install()

from lib.models.ostrack import build_ostrack  # noqa: E402

cfg = Namespace(  # what experiments/ostrack/vitb_256_mae_32x4_ep300.yaml says, of a size for a quick look
    MODEL=Namespace(
        PRETRAIN_FILE="",  # or weights of the zoo: in1k, a file, a folder
        BACKBONE=Namespace(TYPE="sbt_test", STRIDE=16, CE_LOC=[]),
        HEAD=Namespace(TYPE="CENTER", NUM_CHANNELS=256),
    ),
    TRAIN=Namespace(DROP_PATH_RATE=0.1),
    DATA=Namespace(TEMPLATE=Namespace(SIZE=64), SEARCH=Namespace(SIZE=128)),
    TEST=Namespace(TEMPLATE_SIZE=64, SEARCH_SIZE=128),
)
network = build_ostrack(cfg).eval()
slow = sum(p.numel() for name, p in network.named_parameters() if "backbone" in name)
print(f"{slow / 1e6:.2f} M parameters learn at LR * BACKBONE_MULTIPLIER")

template = torch.randn(1, 3, 64, 64)  # encoded on first use, and as long as the tracker keeps it
with torch.no_grad():
    for frame in range(3):
        out = network(template=template, search=torch.randn(1, 3, 128, 128))
        print("frame", frame, "score map", tuple(out["score_map"].shape))
