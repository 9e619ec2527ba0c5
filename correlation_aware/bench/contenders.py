"""Implementations to benchmark: the reference, `torch.compile` of it, every runtime, and code of others."""

import copy
import fnmatch
import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from correlation_aware.ops import Backend, set_backend
from correlation_aware.runtime import RUNTIMES, Runtime
from correlation_aware.runtime.graphs import SessionModel
from correlation_aware.runtime.session import InferenceSession

__all__ = [
    "REFERENCE",
    "Contender",
    "Skipped",
    "check_contenders",
    "contender_names",
    "find_contenders",
    "first_line",
    "load_contender",
    "make_contenders",
    "outputs",
    "split_backend",
]

REFERENCE = "reference"
COMPILE_MODES = {"reference-compile": None, "reference-max-autotune": "max-autotune"}
TRITON_SUFFIX = "-triton"  # of a runtime with the Triton kernels
FILE_RUNTIMES = ("onnx", "openvino")  # runtimes whose inputs are float32 in every dtype


@dataclass(frozen=True)
class Contender:
    """One implementation of a two-input network.

    Attributes:
        name: Name of `contender_names`, or `module:function`.
        dtype: Dtype of the computation.
        pair: Function (template, search) -> outputs.
        encode: Function template -> state; None if the template cannot be encoded separately.
        cached: Function (state, search) -> the outputs of `pair`; None like `encode`.
        input_dtype: Dtype of the images.
        backend: Backend of the kernels, see `correlation_aware.ops`.
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
    """A contender that cannot run on this machine, and the reason."""

    name: str
    dtype: torch.dtype
    reason: str


def contender_names() -> list[str]:
    """Names of the built-in contenders: references, runtimes, and runtimes with the Triton kernels."""
    runtimes = [name for name in RUNTIMES if name != "auto"]
    with_triton = [f"{name}{TRITON_SUFFIX}" for name in runtimes if name not in FILE_RUNTIMES]
    return [REFERENCE, *COMPILE_MODES, *runtimes, *with_triton]


def find_contenders(patterns: Sequence[str]) -> list[str]:
    """Names of the built-in contenders that match.

    Args:
        patterns: Names of `contender_names`, wildcards allowed.

    Raises:
        ValueError: A pattern without a match.
    """
    names = contender_names()
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"There is no contender {pattern!r}; there are {', '.join(names)}.")
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def check_contenders(names: Sequence[str], known: Collection[str]) -> None:
    """Checks names of contenders of a benchmark that has its own list.

    Raises:
        ValueError: A name that is not known.
    """
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"There is no contender {', '.join(unknown)}; there are {', '.join(known)}.")


def load_contender(spec: str) -> tuple[str, torch.dtype, Callable[[Any], Any]]:
    """Name, dtype and function of `module:function` or `module:function@dtype`.

    The module is imported from the current folder or `PYTHONPATH`.

    Raises:
        ValueError: Another form, or a module without the function.
        ModuleNotFoundError: The module cannot be imported.
    """
    path, _, dtype_text = spec.partition("@")
    module_name, _, function_name = path.partition(":")
    dtype = getattr(torch, dtype_text or "float32", None)
    if not function_name or not isinstance(dtype, torch.dtype):
        raise ValueError(f"--contender {spec!r} is not module:function or module:function@dtype.")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise  # a module that the contender itself imports
        raise ModuleNotFoundError(
            f"--contender {spec!r}: there is no module {error.name} in the current folder or on PYTHONPATH."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"--contender {spec!r}: the module {module_name} has no function {function_name}.")
    return path, dtype, function


def split_backend(name: str) -> tuple[str, Backend]:
    """Runtime and backend of a name: `eager-triton` -> `eager`, `triton`; `eager` -> `eager`, `auto`."""
    runtime = name.removesuffix(TRITON_SUFFIX)
    return runtime, "auto" if runtime == name else "triton"


def make_contenders(
    model: SessionModel,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    patterns: Sequence[str],
    others: Sequence[str] = (),
) -> Iterator[Contender | Skipped]:
    """Builds contenders, each with its own copy of the model.

    Args:
        model: Model of `create_model` in float32; not changed.
        device: Device of the contenders.
        dtypes: Dtypes of the built-in contenders; one contender each.
        patterns: Names of `contender_names`, wildcards allowed.
        others: Code of others, as `module:function` (float32) or `module:function@bfloat16`, see
            `load_contender`. `function(model)` gets a copy of the model, may use its weights, and returns a
            callable (template, search). If that callable has a method `encode_template(template)`, cached
            timings pass its result instead of the template.

    Raises:
        ValueError: A pattern without a match, or an invalid entry of `others`.
        ModuleNotFoundError: A module of `others` cannot be imported.
    """
    names = find_contenders(patterns)
    for spec in others:
        yield _other(spec, model, device)
    for dtype in dtypes:
        for name in names:
            try:
                yield _builtin(name, model, device, dtype)
            except (ValueError, RuntimeError, ImportError) as error:
                yield Skipped(name, dtype, first_line(error))


def outputs(returned: Any) -> list[Tensor]:
    """Tensors in the return value of a contender; of a tracker, scores and boxes without the logits."""
    if hasattr(returned, "scores") and hasattr(returned, "boxes"):
        returned = (returned.scores, returned.boxes)
    if isinstance(returned, Tensor):
        return [returned]
    if isinstance(returned, dict):
        returned = tuple(returned.values())
    return [t for t in returned if isinstance(t, Tensor)] if isinstance(returned, (tuple, list)) else []


def first_line(error: BaseException) -> str:
    """Type and first line of an error, at most 200 characters, for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _builtin(name: str, model: SessionModel, device: torch.device, dtype: torch.dtype) -> Contender:
    if name != REFERENCE and name not in COMPILE_MODES:
        return _session(name, model, device, dtype)
    network = _copy(model, device, dtype)
    run: Any = network
    if name in COMPILE_MODES:
        # one program per shape, as in the runtimes that capture shapes
        run = torch.compile(network, mode=COMPILE_MODES[name], dynamic=False)
    encode: Any = network.encode_template
    return Contender(name, dtype, run, encode, run, dtype, "reference")


def _session(name: str, model: SessionModel, device: torch.device, dtype: torch.dtype) -> Contender:
    runtime, backend = split_backend(name)
    from_file = runtime in FILE_RUNTIMES
    network = _copy(model, device, torch.float32 if from_file else dtype)
    with set_backend(backend):
        session = InferenceSession(network, device, dtype, cast(Runtime, runtime))

    def pair(template: Tensor, search: Tensor) -> tuple[Tensor, ...]:
        session.set_template(template)
        return session(search)

    def cached(state: None, search: Tensor) -> tuple[Tensor, ...]:
        return session(search)

    input_dtype = torch.float32 if from_file else dtype
    return Contender(name, dtype, pair, session.set_template, cached, input_dtype, backend)


def _other(spec: str, model: SessionModel, device: torch.device) -> Contender:
    name, dtype, function = load_contender(spec)
    run = function(_copy(model, device, dtype))
    if not callable(run):
        raise ValueError(f"--contender {spec!r} returned a {type(run).__name__}, not a callable.")
    encode = getattr(run, "encode_template", None)
    return Contender(name, dtype, run, encode, run if encode else None, dtype)


def _copy(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    return copy.deepcopy(model).to(device, dtype).eval().requires_grad_(False)
