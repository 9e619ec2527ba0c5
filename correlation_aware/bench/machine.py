"""The machine of a benchmark, and its measured peak rates: memory bandwidth and matrix products."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from correlation_aware._version import __version__
from correlation_aware.bench.timing import milliseconds
from correlation_aware.ops import linear

__all__ = ["Ceilings", "Machine", "describe", "dtype_name", "measure_ceilings"]

LIBRARIES = ("triton", "timm", "onnxruntime", "openvino")
COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # far more than fits in a cache
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the square matrices


@dataclass(frozen=True)
class Machine:
    """Hardware and versions.

    Attributes:
        device: `cpu`, `cuda:0`, ...
        processor: Name of the CPU.
        cores: Number of CPUs that this process may use.
        threads: Number of threads that PyTorch uses.
        gpu: Name and memory of the GPU; empty on a CPU.
        load: Load average of the last minute; timings on a busy machine are unreliable.
        versions: Versions of Python and of the installed libraries.
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
    """Measured peak rates of a device.

    Attributes:
        bytes_per_second: Bandwidth of a large copy, bytes read plus bytes written.
        flops_per_second: Rate of a large matrix product, two operations per multiply-accumulate.
    """

    bytes_per_second: float
    flops_per_second: float

    def milliseconds(self, macs: float, moved_bytes: float) -> float:
        """Lower bound of the time that a program needs: the longer of its products and its memory traffic.

        Args:
            macs: Number of multiply-accumulates.
            moved_bytes: Number of bytes read and written.
        """
        return 1e3 * max(2 * macs / self.flops_per_second, moved_bytes / self.bytes_per_second)


def describe(device: torch.device) -> Machine:
    """Hardware and versions of this machine."""
    gpu = ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
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
    """Measures the peak rates on random values; zeros would be faster than real data.

    Args:
        device: CPU or CUDA device.
        dtype: Dtype of the copied and multiplied values.
    """
    source = _random(COPY_BYTES[device.type] // dtype.itemsize, 1, device, dtype)
    destination = torch.empty_like(source)
    copy = milliseconds(lambda i: destination.copy_(source), device)
    moved_bytes = 2 * source.numel() * source.element_size()
    size = MATRIX_SIZE[device.type]
    left, right = (_random(size, size, device, dtype) for _ in range(2))
    product = milliseconds(lambda i: linear(left, right, None), device)
    return Ceilings(1e3 * moved_bytes / copy, 1e3 * 2 * size**3 / product)


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _random(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    matrix = torch.empty(rows, columns, device=device, dtype=dtype)
    return matrix.uniform_(-1, 1, generator=torch.Generator(device).manual_seed(0))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
