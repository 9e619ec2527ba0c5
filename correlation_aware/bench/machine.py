"""What a benchmark ran on, and the two ceilings of that machine: bytes moved, products computed a second."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from correlation_aware._version import __version__
from correlation_aware.bench.timing import milliseconds
from correlation_aware.ops import linear

__all__ = ["Ceilings", "Machine", "describe", "measure_ceilings"]

LIBRARIES = ("triton", "timm", "onnxruntime", "openvino")
COPY = {"cpu": 256 << 20, "cuda": 1 << 30}  # bytes, far more than any cache holds
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices


@dataclass(frozen=True)
class Machine:
    """Hardware and versions.

    Attributes:
        device: `cpu`, `cuda:0`, ...
        processor: The CPU's name.
        cores: CPUs that this process may use.
        threads: Threads that PyTorch uses.
        gpu: The GPU's name and memory; empty on a CPU.
        load: Processes that wanted a CPU in the last minute: a busy machine's figures are not to be trusted.
        versions: Of Python and of each library that is installed.
    """

    device: str
    processor: str
    cores: int
    threads: int
    gpu: str
    load: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches at its best, measured.

    Attributes:
        bytes_per_second: Of a large copy, bytes read plus bytes written.
        flops_per_second: Of a large matrix product, two operations a multiply-accumulate.
    """

    bytes_per_second: float
    flops_per_second: float

    def milliseconds(self, macs: float, moved: float) -> float:
        """No program that computes `macs` and moves `moved` bytes is faster than this."""
        return 1e3 * max(2 * macs / self.flops_per_second, moved / self.bytes_per_second)


def describe(device: torch.device) -> Machine:
    """Looks up the machine."""
    gpu = ""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        gpu = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    versions = {
        "python": platform.python_version(),
        "correlation_aware": __version__,
        "torch": torch.__version__,
    }
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return Machine(str(device), _processor(), cores, torch.get_num_threads(), gpu, load, versions)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measures both on random numbers; zeros would be faster than real data.

    Args:
        device: A CPU or a CUDA device.
        dtype: Of the numbers.
    """
    copied = _random(COPY[device.type] // dtype.itemsize, 1, device, dtype)
    target = torch.empty_like(copied)
    copy = milliseconds(lambda i: target.copy_(copied), device)
    moved = 2 * copied.numel() * copied.element_size()
    side = SIDE[device.type]
    left, right = (_random(side, side, device, dtype) for _ in range(2))
    product = milliseconds(lambda i: linear(left, right, None), device)
    return Ceilings(1e3 * moved / copy, 1e3 * 2 * side**3 / product)


def _random(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    made = torch.empty(rows, columns, device=device, dtype=dtype)
    return made.uniform_(-1, 1, generator=torch.Generator(device).manual_seed(0))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
