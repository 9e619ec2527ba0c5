"""STARK with our backbone: the lines a user adds, and what its network then does.

Run it where STARK's checkout (https://github.com/researchmm/Stark) is on PYTHONPATH. In STARK itself the
import and `install` go into `tracking/test.py` and `lib/train/run_training.py`, and TYPE into the YAML.
"""

from types import SimpleNamespace as Namespace

import torch

from correlation_aware.adapters import stark

stark.install()

from lib.models.stark.stark_s import build_starks  # noqa: E402
from lib.utils.misc import NestedTensor  # noqa: E402

cfg = Namespace(  # what experiments/stark_s/baseline.yaml says, of a size for a quick look
    MODEL=Namespace(
        BACKBONE=Namespace(TYPE="sbt_test", DILATION=False),
        HIDDEN_DIM=256,
        HEAD_TYPE="CORNER",
        NUM_OBJECT_QUERIES=1,
        POSITION_EMBEDDING="sine",
        PREDICT_MASK=False,
        TRANSFORMER=Namespace(
            NHEADS=8,
            DROPOUT=0.1,
            DIM_FEEDFORWARD=512,
            ENC_LAYERS=1,
            DEC_LAYERS=1,
            PRE_NORM=False,
            DIVIDE_NORM=False,
        ),
    ),
    TRAIN=Namespace(BACKBONE_MULTIPLIER=0.1, DEEP_SUPERVISION=False),
    DATA=Namespace(TEMPLATE=Namespace(SIZE=64), SEARCH=Namespace(SIZE=128)),
    TEST=Namespace(TEMPLATE_SIZE=64, SEARCH_SIZE=128),
)
network = build_starks(cfg).eval()
slow = sum(p.numel() for name, p in network.named_parameters() if "backbone" in name)
print(f"{slow / 1e6:.2f} M parameters learn at LR * BACKBONE_MULTIPLIER")

with torch.no_grad():
    for name, side in (("template", 64), ("search", 128)):
        image = NestedTensor(torch.randn(1, 3, side, side), torch.zeros(1, side, side, dtype=torch.bool))
        maps, positions = network.backbone(image)
        print(name, "features", tuple(maps[0].tensors.shape), "positions", tuple(positions[0].shape))
