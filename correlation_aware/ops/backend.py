"""Which form of the operations runs."""

import importlib.util
import os
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["BACKENDS", "Backend", "get_backend", "set_backend", "use_triton"]

Backend = Literal["auto", "reference", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
VARIABLE = "CORRELATION_AWARE_OPS"
INSTALLED = importlib.util.find_spec("triton") is not None
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class set_backend:
    """Sets the form that runs from now on; as a context manager, until its end.

    Args:
        backend: `reference` is plain PyTorch. `triton` are the kernels: they must run, or the call raises.
            `auto`, the default, takes what was measured to be the quicker form on the device: the
            reference, because the kernels have not been timed on a GPU yet, and for float32 linear layers on
            an x86 CPU oneDNN (see `linear`). The environment variable CORRELATION_AWARE_OPS sets the same
            before the first import.

    Raises:
        ValueError: An unknown backend.

    Example:
        >>> set_backend("triton")
        >>> with set_backend("reference"):
        ...     x = net(template, search)
    """

    def __init__(self, backend: Backend) -> None:
        global _backend
        self._before = _backend
        _backend = _checked(backend, "backend")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _backend
        _backend = self._before


def get_backend() -> Backend:
    """The backend that is set."""
    return _backend


def use_triton(tokens: Tensor) -> bool:
    """Whether the kernels run on these tokens.

    Raises:
        RuntimeError: The backend is `triton`, and they cannot.
    """
    if _backend != "triton":
        return False
    if not INSTALLED:
        raise RuntimeError("The backend is 'triton', but triton is not installed: pip install triton.")
    if not tokens.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"The backend is 'triton', but the tokens are on device={tokens.device}: move the model to a "
            "CUDA GPU, set the backend to 'auto' or 'reference', or, to try the kernels on a CPU, set "
            "TRITON_INTERPRET=1 before the start."
        )
    if tokens.dtype not in DTYPES:
        raise RuntimeError(
            f"The backend is 'triton', whose kernels take float32, float16 and bfloat16, not {tokens.dtype}."
        )
    return True


def _checked(backend: str, name: str) -> Backend:
    if backend not in BACKENDS:
        raise ValueError(f"{name}={backend!r} is not one of {', '.join(BACKENDS)}.")
    return backend


_backend: Backend = _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)
