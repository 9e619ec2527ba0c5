"""Inference sessions: run a model with one template or several, on a selectable runtime."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from correlation_aware._extras import require
from correlation_aware._files import sha256_file
from correlation_aware.models.contract import TemplateState, common_batch
from correlation_aware.runtime.cuda_graph import CudaGraphStep
from correlation_aware.runtime.export import SUFFIXES, export, metadata, open_graph
from correlation_aware.runtime.graphs import SessionModel, split_graphs

__all__ = ["RUNTIMES", "InferenceSession", "Runtime", "as_device", "export_cache"]

# To add a runtime: its name here, which the options, their help and the benchmarks follow, and its branch in
# `InferenceSession`. One that runs exported files also needs `open_graph` of `runtime/export.py`, the default
# device of `create_tracker`, and `FILE_RUNTIMES` of `bench/contenders.py`.
Runtime = Literal["auto", "eager", "compile", "cudagraph", "onnx", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

Step = Callable[..., tuple[Tensor, ...]]
# Micro-batches on a CPU, eager: batch size x bytes per element. Larger ones overflow the cache, are slower.
EAGER_CPU_MICROBATCH_BYTES = 8


class InferenceSession:
    """Runs a two-input model: the template is set once, then search images are compared with it.

    Several targets are one batch. Batch size and image sizes may change between calls, except that `onnx` and
    `openvino` need the model's image sizes. Sessions may share a model, and then share its device and dtype;
    each session has its own template.

    Args:
        model: Tracker or feature network of `create_model`; it is moved to the device and set to evaluation
            mode.
        device: Device of the computation; by default the model's.
        dtype: Dtype of the computation; by default the model's. `cudagraph` supports float32, float16 and
            bfloat16, `openvino` float32 and bfloat16, `onnx` float32.
        runtime: Runtime of the model. `eager` is plain PyTorch; `compile` is `torch.compile`; `cudagraph`
            captures a CUDA graph at the first call per shape and replays it with one launch; `onnx` and
            `openvino` run exported graphs on a CPU, which are exported once per weights and cached in
            `export_cache()`. `auto` is `eager`.

    Attributes:
        model: Model in evaluation mode.
        device: Device of the computation.
        dtype: Dtype of the computation.
        runtime: Runtime, never `auto`.
        outputs: Names of the outputs of a call: `scores` and `boxes`, or names of features.

    Raises:
        ValueError: An unknown runtime or device, or a device or dtype that the runtime does not support.
        RuntimeError: `cudagraph` or a CUDA device without a GPU.
        ModuleNotFoundError: The runtime is not installed; the message says how to install it.

    Note:
        `openvino` keeps one OpenVINO core for the process. A program with its own cores should keep them as
        well: if two cores are destroyed in the order of their creation, the next signal with a handler, such
        as Ctrl-C, ends the process with a segmentation fault (OpenVINO 2026.4.1, Linux).

    Example:
        >>> session = InferenceSession(ca.create_model("sbt_light_cell_track", pretrained=True))
        >>> session.set_template(template)  # (B, 3, 128, 128)
        >>> scores, boxes = session(search)  # (B, 3, 256, 256) -> (B, 32, 32), (B, 4, 32, 32)
    """

    def __init__(
        self,
        model: SessionModel,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        runtime: Runtime = "auto",
    ) -> None:
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime={runtime!r} is not one of {', '.join(RUNTIMES)}.")
        parameter = next(model.parameters())
        self.model = model.eval()
        self.device = as_device(device or parameter.device, available=False)
        self.dtype = dtype or parameter.dtype
        self.runtime: Runtime = "eager" if runtime == "auto" else runtime
        graphs = split_graphs(model)
        self.outputs = graphs["search"].outputs
        self._state: TemplateState | None = None
        if self.runtime in ("onnx", "openvino"):
            self._check_cpu_runtime(self.runtime)
            files = _exported(model, self.runtime)
            self._encode, self._search = (self._from_file(file) for file in files)
            return
        if self.runtime == "cudagraph":
            self._check_cudagraph()
        as_device(self.device)
        model.to(self.device, self.dtype)
        steps = [graphs[name].module for name in ("template", "search")]
        if self.runtime == "compile":
            steps = [torch.compile(step) for step in steps]  # type: ignore[misc]
        self._encode, self._search = (self._from_module(step) for step in steps)
        if self.runtime == "cudagraph":
            self._search = CudaGraphStep(steps[1], self.device, self.dtype)

    def set_template(self, template: Tensor) -> None:
        """Encodes new templates; they replace the previous ones.

        Args:
            template: (B, 3, Hz, Wz) template images, normalized, on any device.
        """
        self._state = TemplateState(self._encode(template))

    def __call__(self, search: Tensor) -> tuple[Tensor, ...]:
        """Compares search images with the templates.

        Args:
            search: (B, 3, Hx, Wx) search images, normalized: one per template, one for all templates, or
                several for a single template.

        Returns:
            The tensors named by `outputs`, on the session's device. Scores and boxes are float32; features
            have the session's dtype, but are float32 from `onnx` and `openvino`. The next call of a
            `cudagraph` session overwrites the outputs: clone them to keep them.

        Raises:
            RuntimeError: No template is set.
            ValueError: The batch sizes of templates and search images differ, and neither of them is 1.
        """
        if self._state is None:
            raise RuntimeError("The session has no template yet: call set_template(template) first.")
        state, batch = self._state, common_batch(self._state, search)
        if len(search) < batch:
            search = search.expand(batch, -1, -1, -1)
        return self._search(*(state if state.batch == batch else state.expand(batch)), search)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have their own model and include the template."""
        return _rebuild, (self.model, self.device, self.dtype, self.runtime, self._state)

    def _check_cpu_runtime(self, runtime: str) -> None:
        require("onnxruntime" if runtime == "onnx" else "openvino")
        if self.device.type != "cpu":
            raise ValueError(f"runtime={runtime!r} supports device='cpu' only, not device={self.device}.")
        bfloat16 = (torch.bfloat16,) if runtime == "openvino" else ()
        self._check_dtype(torch.float32, *bfloat16)

    def _check_cudagraph(self) -> None:
        if self.device.type != "cuda":
            raise ValueError(f"runtime='cudagraph' supports device='cuda' only, not device={self.device}.")
        if not torch.cuda.is_available():
            raise RuntimeError("runtime='cudagraph' needs a CUDA GPU, and PyTorch finds none: use 'auto'.")
        self._check_dtype(torch.float32, torch.float16, torch.bfloat16)

    def _check_dtype(self, *supported: torch.dtype) -> None:
        if self.dtype not in supported:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in supported)
            raise ValueError(f"runtime={self.runtime!r} supports {names}, not dtype={self.dtype}.")

    def _from_module(self, step: Step) -> Step:
        """The function of a module for inference: moves and casts inputs, splits large batches on a CPU."""
        split = self.device.type == "cpu" and self.runtime == "eager"
        size = EAGER_CPU_MICROBATCH_BYTES // self.dtype.itemsize

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                inputs = tuple(t.to(self.device, self.dtype) for t in inputs)
                if not split or len(inputs[0]) <= size:
                    return step(*inputs)
                outputs = [step(*batch) for batch in zip(*(t.split(size) for t in inputs))]
                return tuple(torch.cat(parts) for parts in zip(*outputs))

        return run

    def _from_file(self, path: Path) -> Step:
        """The function of an exported file, from tensors to tensors."""
        function = open_graph(path, self.dtype, torch.get_num_threads())

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            arrays = (np.ascontiguousarray(t.detach().float().cpu().numpy()) for t in inputs)
            return tuple(torch.from_numpy(array) for array in function(*arrays))

        return step


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
    except RuntimeError as error:
        raise ValueError(
            f"device={str(device)!r} is not one of cpu, cuda, cuda:N. PyTorch finds {gpus}: "
            f"use {'cuda or ' if count else ''}cpu."
        ) from error
    if available and parsed.type == "cuda" and (parsed.index or 0) >= count:
        raise RuntimeError(f"device={str(device)!r} is not available: PyTorch finds {gpus}; use cpu.")
    return parsed


def _rebuild(
    model: SessionModel,
    device: torch.device,
    dtype: torch.dtype,
    runtime: Runtime,
    state: TemplateState | None,
) -> InferenceSession:
    session = InferenceSession(model, device, dtype, runtime)
    session._state = state
    return session


def export_cache() -> Path:
    """Folder of cached exported graphs: `$CORRELATION_AWARE_CACHE`, or `~/.cache/correlation_aware`."""
    folder = os.environ.get("CORRELATION_AWARE_CACHE")
    return Path(folder) if folder else Path("~/.cache/correlation_aware").expanduser()


def _cache_key(model: nn.Module, meta: dict[str, str]) -> str:
    """Changes with the weights, with every size and stride, and with the code of the layers."""
    # heads and EoC-CA blocks show in the arguments alone, not in the model's text
    names = sorted({type(module).__module__ for module in model.modules()})
    files = [getattr(sys.modules[name], "__file__", None) for name in names if not name.startswith("torch.")]
    code = [sha256_file(Path(file)) for file in files if file and Path(file).is_file()]
    fingerprint = json.dumps([meta, model.model_args, repr(model), code])
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:16]


def _exported(model: SessionModel, format: Literal["onnx", "openvino"]) -> tuple[Path, Path]:
    """Files of the template graph and the search graph, from the cache, or exported to it."""
    meta = metadata(model)
    names = [f"{meta['model']}.{graph}{SUFFIXES[format]}" for graph in ("template", "search")]
    folder = export_cache() / f"{meta['model']}-{_cache_key(model, meta)}-{format}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
            output = Path(temporary) / "files"
            export(model, output, format, ("template", "search"))
            try:
                output.rename(folder)
            except OSError:  # another process has exported the same model meanwhile
                if not folder.is_dir():
                    raise
                shutil.rmtree(output, ignore_errors=True)
    template, search = (folder / name for name in names)
    return template, search
