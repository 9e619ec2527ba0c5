"""Compiles every Triton kernel for a GPU architecture and prints its resources; needs no GPU.

    python benchmarks/compile_kernels.py [--capability 90] [--dtype bfloat16] [--json out.json]

Triton includes NVIDIA's assembler, so it compiles for any architecture on any machine. The shapes are those
of the first stage of sbt_light and the third stage of sbt_base at 128 and 256 px. A stack other than 0 means
spilled registers.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it when it is imported

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

DTYPES = ("float32", "float16", "bfloat16")
STAGES = ((32, 1, 8, 32, 64), (320, 5, 2, 16, 32))  # channels, heads, reduction, sizes of template and search


class AbsentGPU:
    """The methods of a Triton driver that the compiler calls."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(capability: int, dtypes: Sequence[str] = DTYPES) -> list[dict]:
    """Calls every operation, forward and backward, with launches that only compile.

    Args:
        capability: CUDA compute capability, such as 90.
        dtypes: Names of the dtypes.
    """
    driver.set_active(AbsentGPU(capability))
    launch, kernels = JITFunction.run, {}

    def compile_only(function, *args, **kwargs):
        kernel = launch(function, *args, **{**kwargs, "warmup": True})
        operation = function.fn.__module__.split(".")[-2]
        kernels.setdefault(kernel.hash, (operation, function.fn.__name__, str(dtype)[6:], kernel))
        return kernel

    JITFunction.run = compile_only
    try:
        for dtype in (getattr(torch, name) for name in dtypes):
            for stage in STAGES:
                run_all(dtype, *stage)
    finally:
        JITFunction.run = launch
    return [
        {"operation": operation, "kernel": name, "dtype": kind, **resources(kernel)}
        for operation, name, kind, kernel in kernels.values()
    ]


def run_all(dtype: torch.dtype, dim: int, heads: int, ratio: int, template: int, search: int) -> None:
    """Calls every operation once, forward and backward, at the shapes of a stage (see `STAGES`)."""
    from correlation_aware.ops.add_layer_norm.triton import add_layer_norm
    from correlation_aware.ops.dwconv_gelu.triton import dwconv_gelu
    from correlation_aware.ops.eoc_attention.triton import eoc_attention
    from correlation_aware.ops.gather_patches.triton import gather_patches

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros(*sizes, dtype=dtype, requires_grad=True)

    shapes = [1, template, template, 1, search, search]
    keys = [size if size == 1 else size // ratio for size in shapes]
    rows, reduced = template**2 + search**2, keys[1] ** 2 + keys[4] ** 2
    outputs = (
        *add_layer_norm(zeros(rows, dim), zeros(rows, dim), zeros(dim), zeros(dim), 1e-6),
        dwconv_gelu(zeros(rows, 4 * dim), zeros(4 * dim, 1, 3, 3), zeros(4 * dim), shapes),
        gather_patches(zeros(rows, dim), shapes, ratio),
        eoc_attention(zeros(rows, dim), zeros(reduced, 2 * dim), heads, shapes, keys, True)[0],
    )
    sum(output.float().sum() for output in outputs).backward()


def resources(kernel) -> dict[str, int]:
    """Registers and stack bytes per thread, bytes of shared memory and warps per block."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", report.stdout)
    assert usage is not None, report.stdout
    return {
        "registers": int(usage[1]),
        "stack": int(usage[2]),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", type=int, default=90, help="80: A100, 86: RTX 30, 90: H100 and H200")
    parser.add_argument("--dtype", choices=DTYPES, help="all three by default")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = compile_all(args.capability, [args.dtype] if args.dtype else DTYPES)
    print(f"triton {triton.__version__}, compute capability {args.capability}")
    print(f"{'operation':16}{'kernel':20}{'dtype':10}{'registers':>10}{'stack':>7}{'shared':>8}{'warps':>7}")
    for row in rows:
        print("{:16}{:20}{:10}{:10}{:7}{:8}{:7}".format(*row.values()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
