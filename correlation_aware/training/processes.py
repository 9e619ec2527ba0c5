"""The processes and the device of a run."""

import os

import torch
from accelerate import Accelerator

from correlation_aware.training.config import RunConfig

__all__ = ["make_accelerator"]

# variables with the number of processes, of torchrun and of MPI
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "CCL_WORLD_SIZE")


def make_accelerator(config: RunConfig, device: str | None = None) -> Accelerator:
    """Creates accelerate's `Accelerator` for the processes and the device of this run.

    Args:
        config: Configuration of the run; only `precision` is used.
        device: `cpu` to train on the CPU even if there is a GPU; otherwise the launcher's choice.

    Raises:
        ValueError: float16 on a CPU.
        RuntimeError: A launcher asks for several processes, but this is one process alone.
    """
    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[config.precision]
    # accelerate connects several CPU processes only with cpu=True
    cpu = device == "cpu" or not torch.accelerator.is_available()
    if cpu and precision == "fp16":
        raise ValueError("run.precision=float16 needs a GPU: use bfloat16 or float32 on a CPU.")
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    if cpu:
        _check_processes(accelerator.num_processes)
    return accelerator


def _check_processes(count: int) -> None:
    """Raises if a launcher asked for several processes, and this is one process alone."""
    sizes = [int(os.environ[name]) for name in WORLD_SIZES if os.environ.get(name, "").isdecimal()]
    # without GPUs, accelerate launch starts the program once and leaves other processes to MPI
    alone = not sizes and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    if count == 1 and (alone or max(sizes, default=1) > 1):
        raise RuntimeError(
            "The launcher was asked for several processes, and this is the only one: accelerate launch "
            "starts one process without GPUs. Type: torchrun --nproc_per_node N --no-python "
            "correlation-aware train ..."
        )
