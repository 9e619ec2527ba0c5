"""Inference sessions: weights apart from state, one template or many, on the runtime of one's choice."""

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
from correlation_aware.runtime.graphs import TwoInput, split_graphs

__all__ = ["RUNTIMES", "InferenceSession", "Runtime", "export_cache"]

Runtime = Literal["auto", "eager", "compile", "cudagraph", "onnx", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

Step = Callable[..., tuple[Tensor, ...]]
# eager on a CPU: batch size times bytes per element; larger batches overflow the cache and are slower
EAGER_CPU_MICROBATCH_BYTES = 8


class InferenceSession:
    """Runs a two-input model on templates that are set once and search images that follow.

    N targets share one call: the batch is not fixed, nor are the sizes, but for `onnx` and `openvino`, which
    have the model's. Sessions may share a model, and with it the device and dtype; each has its own template.

    Args:
        model: Of `create_model`: a tracker or a feature network; it is moved and put into evaluation mode.
        device: Where it runs; by default where the model is.
        dtype: Of the computation; by default the model's. `cudagraph` takes float32, float16 and bfloat16,
            `openvino` float32 and bfloat16, `onnx` float32.
        runtime: `eager` is plain PyTorch; `compile` is `torch.compile`; `cudagraph` captures a call on a CUDA
            GPU at the first use of each shape and replays it, all launches in one; `onnx` and `openvino` run
            the exported graphs on a CPU, which are made at the first use of these weights and kept in
            `export_cache()`. `auto` takes `eager`.

    Attributes:
        outputs: Names of what a call gives: `scores`, `boxes`, or names of features.

    Raises:
        ValueError: An unknown runtime, or a device or dtype that it cannot have; the message says which.
        RuntimeError: `cudagraph` without a GPU.
        ModuleNotFoundError: The runtime is not installed; the message says how to get it.

    Note:
        `openvino` keeps one OpenVINO core for the process. A program with cores of its own should keep them
        too: after two cores went in the order they came, the next signal with a handler, such as Ctrl-C, ends
        the process with a segmentation fault (OpenVINO 2026.4.1, Linux).

    Example:
        >>> session = InferenceSession(ca.create_model("sbt_light_cell_track", pretrained=True))
        >>> session.set_template(template)  # (B, 3, 128, 128)
        >>> scores, boxes = session(search)  # (B, 3, 256, 256) -> (B, 32, 32), (B, 4, 32, 32)
    """

    def __init__(
        self,
        model: TwoInput,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        runtime: Runtime = "auto",
    ) -> None:
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime={runtime!r} is not one of {', '.join(RUNTIMES)}.")
        parameter = next(model.parameters())
        self.model = model.eval()
        self.device = torch.device(device or parameter.device)
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
        model.to(self.device, self.dtype)
        steps = [graphs[name].module for name in ("template", "search")]
        if self.runtime == "compile":
            steps = [torch.compile(step) for step in steps]  # type: ignore[misc]
        self._encode, self._search = (self._from_module(step) for step in steps)
        if self.runtime == "cudagraph":
            self._search = CudaGraphStep(steps[1], self.device, self.dtype)

    def set_template(self, template: Tensor) -> None:
        """Takes new targets; forgets the ones before.

        Args:
            template: (B, 3, Hz, Wz), normalised, on any device.
        """
        self._state = TemplateState(self._encode(template))

    def __call__(self, search: Tensor) -> tuple[Tensor, ...]:
        """Compares search images with the templates.

        Args:
            search: (B, 3, Hx, Wx), normalised; one for each template, one for all, or many for one.

        Returns:
            What `outputs` names, on the session's device: scores and boxes in float32, features in its dtype,
            but in float32 from `onnx` and `openvino`. The next call of a `cudagraph` session overwrites them:
            clone what is to be kept.

        Raises:
            RuntimeError: No template is set.
            ValueError: Batches of templates and search images that differ, neither of them 1.
        """
        if self._state is None:
            raise RuntimeError("The session has no template yet: call set_template(template) first.")
        state, batch = self._state, common_batch(self._state, search)
        if len(search) < batch:
            search = search.expand(batch, -1, -1, -1)
        return self._search(*(state if state.batch == batch else state.expand(batch)), search)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have a model of their own, and the template."""
        return _rebuild, (self.model, self.device, self.dtype, self.runtime, self._state)

    def _check_cpu_runtime(self, runtime: str) -> None:
        require("onnxruntime" if runtime == "onnx" else "openvino")
        if self.device.type != "cpu":
            raise ValueError(f"runtime={runtime!r} runs on a CPU here, not on device={self.device}.")
        bfloat16 = (torch.bfloat16,) if runtime == "openvino" else ()
        self._check_dtype(torch.float32, *bfloat16)

    def _check_cudagraph(self) -> None:
        if self.device.type != "cuda":
            raise ValueError(f"runtime='cudagraph' runs on device='cuda', not on device={self.device}.")
        if not torch.cuda.is_available():
            raise RuntimeError("runtime='cudagraph' needs a CUDA GPU, and PyTorch finds none: take 'auto'.")
        self._check_dtype(torch.float32, torch.float16, torch.bfloat16)

    def _check_dtype(self, *possible: torch.dtype) -> None:
        if self.dtype not in possible:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in possible)
            raise ValueError(f"runtime={self.runtime!r} computes in {names}, not in dtype={self.dtype}.")

    def _from_module(self, step: Step) -> Step:
        in_parts = self.device.type == "cpu" and self.runtime == "eager"
        part = EAGER_CPU_MICROBATCH_BYTES // self.dtype.itemsize

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                inputs = tuple(t.to(self.device, self.dtype) for t in inputs)
                if not in_parts or len(inputs[0]) <= part:
                    return step(*inputs)
                outputs = [step(*some) for some in zip(*(t.split(part) for t in inputs))]
                return tuple(torch.cat(parts) for parts in zip(*outputs))

        return run

    def _from_file(self, path: Path) -> Step:
        run = open_graph(path, self.dtype, torch.get_num_threads())

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            arrays = (np.ascontiguousarray(t.detach().float().cpu().numpy()) for t in inputs)
            return tuple(torch.from_numpy(array) for array in run(*arrays))

        return step


def _rebuild(
    model: TwoInput, device: torch.device, dtype: torch.dtype, runtime: Runtime, state: TemplateState | None
) -> InferenceSession:
    session = InferenceSession(model, device, dtype, runtime)
    session._state = state
    return session


def export_cache() -> Path:
    """Where exported graphs are kept: `$CORRELATION_AWARE_CACHE`, or `~/.cache/correlation_aware`."""
    own = os.environ.get("CORRELATION_AWARE_CACHE")
    return Path(own) if own else Path("~/.cache/correlation_aware").expanduser()


def _cache_key(model: nn.Module, described: dict[str, str]) -> str:
    """Changes with the weights, with every size and stride, and with the code of the layers."""
    # heads and EoC-CA blocks show in the arguments alone, not in the model's text
    names = sorted({type(module).__module__ for module in model.modules()})
    files = [getattr(sys.modules[name], "__file__", None) for name in names if not name.startswith("torch.")]
    code = [sha256_file(Path(file)) for file in files if file and Path(file).is_file()]
    return hashlib.sha256(json.dumps([described, model.model_args, repr(model), code]).encode()).hexdigest()[
        :16
    ]


def _exported(model: TwoInput, format: Literal["onnx", "openvino"]) -> tuple[Path, Path]:
    """The files of the template's and the search graph, from the cache or made for it."""
    described = metadata(model)
    names = [f"{described['model']}.{graph}{SUFFIXES[format]}" for graph in ("template", "search")]
    folder = export_cache() / f"{described['model']}-{_cache_key(model, described)}-{format}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as place:
            made = Path(place) / "files"
            export(model, made, format, ("template", "search"))
            try:
                made.rename(folder)
            except OSError:  # another process was quicker
                if not folder.is_dir():
                    raise
                shutil.rmtree(made, ignore_errors=True)
    template, search = (folder / name for name in names)
    return template, search
