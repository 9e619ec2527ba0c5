"""Who is timed: the plain reference, what `torch.compile` makes of it, every runtime, anybody else's code."""

import copy
import fnmatch
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from correlation_aware.ops import Backend, set_backend
from correlation_aware.runtime.graphs import SessionModel
from correlation_aware.runtime.session import RUNTIMES, InferenceSession, Runtime

__all__ = [
    "REFERENCE",
    "Contender",
    "Skipped",
    "contender_names",
    "first_line",
    "make_contenders",
    "outputs",
    "split_backend",
]

REFERENCE = "reference"
COMPILED = {"reference-compile": None, "reference-max-autotune": "max-autotune"}
KERNELS = "-triton"  # at the end of the name of what runs with the kernels
FILES = ("onnx", "openvino")  # runtimes that take float32 pictures whatever they compute with


@dataclass(frozen=True)
class Contender:
    """One way to run a two-input network.

    Attributes:
        name: Of `contender_names`, or `module:function`.
        dtype: It computes in.
        pair: (template, search) -> anything.
        encode: template -> state, where there is such a thing.
        cached: (state, search) -> the same as `pair`.
        input_dtype: Of the pictures it is given.
        backend: Of the kernels, see `correlation_aware.ops`.
    """

    name: str
    dtype: torch.dtype
    pair: Callable[[Tensor, Tensor], Any]
    encode: Callable[[Tensor], Any] | None
    cached: Callable[[Any, Tensor], Any] | None
    input_dtype: torch.dtype
    backend: Backend = "auto"


@dataclass(frozen=True)
class Skipped:
    """A contender that cannot run here, and why."""

    name: str
    dtype: torch.dtype
    reason: str


def contender_names() -> list[str]:
    """The contenders that need no code of yours: the reference and the runtimes, with kernels too."""
    runtimes = [name for name in RUNTIMES if name != "auto"]
    return [REFERENCE, *COMPILED, *runtimes, *(f"{name}{KERNELS}" for name in runtimes if name not in FILES)]


def split_backend(name: str) -> tuple[str, Backend]:
    """A runtime and the backend that its name asks for: `eager-triton` is `eager` with the kernels."""
    runtime = name.removesuffix(KERNELS)
    return runtime, "auto" if runtime == name else "triton"


def make_contenders(
    model: SessionModel,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    chosen: Sequence[str],
    others: Sequence[str] = (),
) -> Iterator[Contender | Skipped]:
    """Builds the contenders, each with a copy of the model's weights.

    Args:
        model: Of `create_model`, in float32; it stays as it is.
        device: Where they run.
        dtypes: To build each of `chosen` in.
        chosen: Names of `contender_names`, wildcards allowed.
        others: `module:function` of code to compete, float32, or `module:function@bfloat16`. The module is
            looked for as `python -m` would. `function(model)` is given a copy of the model, so that it may
            take over the weights, and returns a callable (template, search). Where that has a method
            `encode_template(template)`, its result is given in place of the template for cached timings.

    Raises:
        ValueError: A name that fits no contender, or an entry of `others` that is none.
        ModuleNotFoundError: Another's module cannot be imported.
    """
    names = contender_names()
    for pattern in chosen:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"There is no contender {pattern!r}; there are {', '.join(names)}.")
    for spec in others:
        yield _other(spec, model, device)
    for dtype in dtypes:
        for name in names:
            if any(fnmatch.fnmatch(name, pattern) for pattern in chosen):
                try:
                    yield _make(name, model, device, dtype)
                except (ValueError, RuntimeError, ImportError) as error:
                    yield Skipped(name, dtype, first_line(error))


def outputs(found: Any) -> list[Tensor]:
    """The tensors in what a contender returned; a tracker's are scores and boxes, without the logits."""
    if hasattr(found, "scores") and hasattr(found, "boxes"):
        found = (found.scores, found.boxes)
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, dict):
        found = tuple(found.values())
    return [t for t in found if isinstance(t, Tensor)] if isinstance(found, (tuple, list)) else []


def first_line(error: BaseException) -> str:
    """The part of a message that fits in a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _make(name: str, model: SessionModel, device: torch.device, dtype: torch.dtype) -> Contender:
    if name != REFERENCE and name not in COMPILED:
        return _session(name, model, device, dtype)
    network = _copy(model, device, dtype)
    run: Any = network
    if name in COMPILED:
        # a shape that changes gets a program of its own, as the runtimes that capture shapes have
        run = torch.compile(network, mode=COMPILED[name], dynamic=False)
    encode: Any = network.encode_template
    return Contender(name, dtype, run, encode, run, dtype, "reference")


def _session(name: str, model: SessionModel, device: torch.device, dtype: torch.dtype) -> Contender:
    runtime, backend = split_backend(name)
    in_files = runtime in FILES
    network = _copy(model, device, torch.float32 if in_files else dtype)
    with set_backend(backend):
        session = InferenceSession(network, device, dtype, cast(Runtime, runtime))

    def pair(template: Tensor, search: Tensor) -> tuple[Tensor, ...]:
        session.set_template(template)
        return session(search)

    def cached(state: None, search: Tensor) -> tuple[Tensor, ...]:
        return session(search)

    taken = torch.float32 if in_files else dtype
    return Contender(name, dtype, pair, session.set_template, cached, taken, backend)


def _other(spec: str, model: SessionModel, device: torch.device) -> Contender:
    place, _, dtype_name = spec.partition("@")
    module_name, _, function_name = place.partition(":")
    dtype = getattr(torch, dtype_name or "float32", None)
    if not function_name or not isinstance(dtype, torch.dtype):
        raise ValueError(f"--contender {spec!r} is not module:function or module:function@dtype.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    function = getattr(importlib.import_module(module_name), function_name, None)
    if not callable(function):
        raise ValueError(f"--contender {spec!r}: the module {module_name} has no function {function_name}.")
    run = function(_copy(model, device, dtype))
    if not callable(run):
        raise ValueError(f"--contender {spec!r} returned a {type(run).__name__}, not a callable.")
    encode = getattr(run, "encode_template", None)
    return Contender(place, dtype, run, encode, run if encode else None, dtype)


def _copy(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    return copy.deepcopy(model).to(device, dtype).eval().requires_grad_(False)
