"""Selection of the implementation of the operations."""

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
    """Sets the backend of all operations: permanently as a call, temporarily as a context manager.

    Args:
        backend: Name of the backend. `reference` is plain PyTorch. `triton` are the Triton kernels; an
            operation raises if they cannot run. `auto`, the default, is the faster one in measurements on the
            device: the reference, because the kernels have not been timed on a GPU yet, and oneDNN for
            float32 linear layers on an x86 CPU (see `linear`). The environment variable
            CORRELATION_AWARE_OPS sets the initial backend.

    Raises:
        ValueError: An unknown backend.

    Examples:
        >>> set_backend("triton")
        >>> with set_backend("reference"):
        ...     x = net(template, search)
    """

    def __init__(self, backend: Backend) -> None:
        global _backend
        self._previous = _backend
        _backend = _checked(backend, "backend")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _backend
        _backend = self._previous


def get_backend() -> Backend:
    """The current backend."""
    return _backend


def use_triton(tokens: Tensor) -> bool:
    """Whether to use the Triton kernels for these tokens.

    Raises:
        RuntimeError: The backend is `triton`, and the kernels cannot run on these tokens.
    """
    if _backend != "triton":
        return False
    if not INSTALLED:
        raise RuntimeError("The backend is 'triton', but triton is not installed: pip install triton.")
    if not tokens.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"The backend is 'triton', but the tokens are on device={tokens.device}: move the model to a "
            "CUDA GPU, set the backend to 'auto' or 'reference', or, to test the kernels on a CPU, set "
            "TRITON_INTERPRET=1 before Python starts."
        )
    if tokens.dtype not in DTYPES:
        raise RuntimeError(
            f"The backend is 'triton', which supports float32, float16 and bfloat16, not {tokens.dtype}."
        )
    return True


def _checked(backend: str, name: str) -> Backend:
    if backend not in BACKENDS:
        raise ValueError(f"{name}={backend!r} is not one of {', '.join(BACKENDS)}.")
    return backend


_backend: Backend = _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)
