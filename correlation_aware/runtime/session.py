"""Inference sessions: weights apart from state, one template or many, on the runtime of one's choice."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from correlation_aware.runtime.export import SUFFIXES, export, metadata, open_graph, require
from correlation_aware.runtime.graphs import TwoInput, cut

__all__ = ["RUNTIMES", "InferenceSession", "Runtime", "export_cache"]

Runtime = Literal["auto", "eager", "compile", "onnx", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

Step = Callable[..., tuple[Tensor, ...]]


class InferenceSession:
    """Runs a two-input model on templates that are set once and search pictures that follow.

    Several sessions may share a model; each has its own template.

    Args:
        model: Of `create_model`: a tracker or a feature network; it is moved and put into evaluation mode.
        device: Where it runs; by default where the model is.
        dtype: Of the computation; by default the model's. `openvino` takes float32 and bfloat16, `onnx`
            float32.
        runtime: `eager` is plain PyTorch; `compile` is `torch.compile`; `onnx` and `openvino` run the
            exported graphs on a CPU, which are made at the first use of these weights and kept in
            `export_cache()`. `auto` takes `eager`.

    Attributes:
        outputs: Names of what a call gives: `scores`, `boxes`, or names of features.

    Raises:
        ValueError: An unknown runtime, or a device or dtype that it cannot have; the message says which.
        ModuleNotFoundError: The runtime is not installed; the message says how to get it.

    Example:
        >>> session = InferenceSession(ca.create_model("sbt_light_track", pretrained=True))
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
        graphs = cut(model)
        self.outputs = graphs["search"].outputs
        self._state: Tensor | None = None
        if self.runtime in ("onnx", "openvino"):
            self._check_cpu_runtime()
            files = _exported(model, self.runtime)
            self._encode, self._search = (self._from_file(file) for file in files)
            return
        model.to(self.device, self.dtype)
        steps = [graphs[name].module for name in ("template", "search")]
        if self.runtime == "compile":
            steps = [torch.compile(step) for step in steps]  # type: ignore[misc]
        self._encode, self._search = (self._from_module(step) for step in steps)

    def set_template(self, template: Tensor) -> None:
        """Takes new targets; forgets the ones before.

        Args:
            template: (B, 3, Hz, Wz), normalised, on any device.
        """
        (self._state,) = self._encode(template)

    def __call__(self, search: Tensor) -> tuple[Tensor, ...]:
        """Compares search pictures with the templates.

        Args:
            search: (B, 3, Hx, Wx), normalised; one for each template, or one for all.

        Returns:
            What `outputs` names, on the session's device; floating-point numbers are float32 on the CPU
            runtimes.

        Raises:
            RuntimeError: No template is set.
        """
        if self._state is None:
            raise RuntimeError("The session has no template yet: call set_template(template) first.")
        if len(search) == 1 < len(self._state):
            search = search.expand(len(self._state), -1, -1, -1)
        return self._search(self._state, search)

    def _check_cpu_runtime(self) -> None:
        require("onnxruntime" if self.runtime == "onnx" else "openvino")
        if self.device.type != "cpu":
            raise ValueError(f"runtime={self.runtime!r} runs on a CPU here, not on device={self.device}.")
        possible = (torch.float32, torch.bfloat16) if self.runtime == "openvino" else (torch.float32,)
        if self.dtype not in possible:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in possible)
            raise ValueError(f"runtime={self.runtime!r} computes in {names}, not in dtype={self.dtype}.")

    def _from_module(self, step: Callable[..., tuple[Tensor, ...]]) -> Step:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return step(*(t.to(self.device, self.dtype) for t in inputs))

        return run

    def _from_file(self, path: Path) -> Step:
        run = open_graph(path, self.dtype, torch.get_num_threads())

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            arrays = (np.ascontiguousarray(t.float().numpy()) for t in inputs)
            return tuple(torch.from_numpy(array) for array in run(*arrays))

        return step


def export_cache() -> Path:
    """Where exported graphs are kept: `$CORRELATION_AWARE_CACHE`, or `~/.cache/correlation_aware`."""
    own = os.environ.get("CORRELATION_AWARE_CACHE")
    return Path(own) if own else Path("~/.cache/correlation_aware").expanduser()


def _exported(model: TwoInput, format: Literal["onnx", "openvino"]) -> tuple[Path, Path]:
    """The files of the template's and the search graph, from the cache or made for it."""
    described = metadata(model)
    names = [f"{described['model']}.{graph}{SUFFIXES[format]}" for graph in ("template", "search")]
    all_that_counts = json.dumps([described, repr(model)])  # the model as text has every size and stride
    key = hashlib.sha256(all_that_counts.encode()).hexdigest()[:16]
    folder = export_cache() / f"{described['model']}-{key}-{format}"
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
