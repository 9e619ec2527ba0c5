"""The rule that fills the golden cases: weights from a parameter's name, images from a seed."""

import hashlib
import json
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent / "data"
CASES = {case["name"]: case for case in json.loads((DATA / "golden_sbt.json").read_text())["cases"]}
OUTPUTS = load_file(DATA / "golden_sbt.safetensors")


def parameter(name: str, shape: list[int], salt: str = "") -> Tensor:
    """A parameter or buffer of the authors' code, filled by its name; `salt` gives other numbers."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    seed = int(hashlib.sha256((salt + name).encode()).hexdigest()[:8], 16)
    u = np.random.Generator(np.random.PCG64(seed)).standard_normal(prod(shape)).reshape(shape)
    if name.endswith("running_mean"):
        u = 0.1 * u
    elif name.endswith("running_var"):
        u = np.exp(0.2 * u)
    elif name.endswith("bias"):
        u = 0.05 * u
    elif len(shape) == 1:
        u = 1 + 0.1 * u
    elif "pos_embed" in name or name.endswith("cls_token"):
        u = 0.5 * u
    else:
        u = u * np.sqrt(gain(name) / prod(shape[1:]))
    return torch.from_numpy(np.asarray(u, dtype=np.float32))


def gain(name: str) -> float:
    """Variance of a layer's output for an input of variance 1; that of the center head spreads its scores."""
    if not name.startswith("box_head.conv"):
        return 1
    layer = name.split(".")[1]
    return {"conv5_ctr": 4, "conv5_size": 4, "conv5_offset": 0.25}.get(layer, 2)


def state_dict(case: dict) -> dict[str, Tensor]:
    """All parameters of a case under the authors' names."""
    return {name: parameter(name, shape) for name, shape in case["parameters"].items()}


def image(seed: int, size: list[int]) -> Tensor:
    """(2, 3, H, W)."""
    u = np.random.Generator(np.random.PCG64(seed)).standard_normal((2, 3, *size))
    return torch.from_numpy(u.astype(np.float32))
