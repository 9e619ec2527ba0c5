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


def parameter(name: str, shape: list[int]) -> Tensor:
    """A parameter of the authors' code, filled by its name."""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    u = np.random.Generator(np.random.PCG64(seed)).standard_normal(prod(shape)).reshape(shape)
    if name.endswith("bias"):
        u = 0.05 * u
    elif len(shape) == 1:
        u = 1 + 0.1 * u
    else:
        u = u * np.sqrt(1 / prod(shape[1:]))
    return torch.from_numpy(u.astype(np.float32))


def state_dict(case: dict) -> dict[str, Tensor]:
    """All parameters of a case under the authors' names."""
    return {name: parameter(name, shape) for name, shape in case["parameters"].items()}


def image(seed: int, size: list[int]) -> Tensor:
    """(2, 3, H, W)."""
    u = np.random.Generator(np.random.PCG64(seed)).standard_normal((2, 3, *size))
    return torch.from_numpy(u.astype(np.float32))
