"""Devices and dtypes by name."""

import torch

__all__ = ["as_device", "as_dtype"]


def as_device(device: str | torch.device, available: bool = True) -> torch.device:
    """A device by name.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, or another device of PyTorch.
        available: Whether a CUDA device must be there.

    Raises:
        ValueError: Not the name of a device.
        RuntimeError: `cuda` without a GPU, or the number of a GPU that is not there.
    """
    count = torch.cuda.device_count()
    gpus = f"{count} GPU{'s' if count > 1 else ''}" if count else "no GPU"
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={str(device)!r} is not one of cpu, cuda, cuda:N. PyTorch finds {gpus}: "
            f"use {'cuda or ' if count else ''}cpu."
        ) from error
    if available and parsed.type == "cuda" and (parsed.index or 0) >= count:
        raise RuntimeError(f"device={str(device)!r} is not available: PyTorch finds {gpus}; use cpu.")
    return parsed


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point dtype by name.

    Args:
        dtype: `float32`, `float16`, `bfloat16` or `float64`, as a name or as PyTorch's dtype.

    Raises:
        ValueError: Something else.
    """
    parsed = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if parsed not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ValueError(f"dtype={dtype!r} is not one of float32, float16, bfloat16, float64.")
    return parsed
