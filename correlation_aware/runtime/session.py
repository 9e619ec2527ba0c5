"""Inference sessions: run a model with one template or several, on a selectable runtime."""

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from correlation_aware._devices import as_device, as_dtype
from correlation_aware._extras import require
from correlation_aware._files import file_lock, read_json, sha256_file, write_text
from correlation_aware.models.contract import TemplateState, check_image, common_batch
from correlation_aware.ops import packed_weights
from correlation_aware.runtime import RUNTIMES, Runtime
from correlation_aware.runtime.cuda_graph import CudaGraphStep
from correlation_aware.runtime.export import (
    SUFFIXES,
    export,
    gives_outputs_of,
    metadata,
    open_graph,
    read_metadata,
)
from correlation_aware.runtime.fused_convolutions import fuse_convolutions, refresh
from correlation_aware.runtime.graphs import SessionModel, cast_input, split_graphs

__all__ = ["InferenceSession", "export_cache"]

Step = Callable[..., tuple[Tensor, ...]]
GRAPHS = ("template", "search")  # that a session runs
# Micro-batches on a CPU, eager: batch size x bytes per element. Larger ones overflow the cache, are slower.
EAGER_CPU_MICROBATCH_BYTES = 8
HASHES = "sha256.json"  # of the files of a folder of the cache
_exporting = threading.Lock()  # file locks are of a process


class InferenceSession:
    """Runs a two-input model: the template is set once, then search images are compared with it.

    Several targets are one batch. Batch size and image sizes may change between calls, except that `onnx` and
    `openvino` need the model's image sizes. Sessions may share a model, and then share its device and dtype;
    each session has its own template. A session keeps the state of the template, which depends on the
    weights: after loading other weights into the model, set the template again; `onnx` and `openvino` need a
    new session.

    Args:
        model: Tracker or feature network of `create_model`; it is moved to the device and set to evaluation
            mode.
        device: Device of the computation; by default the model's.
        dtype: Dtype of the computation, or its name; by default the model's. `cudagraph` supports float32,
            float16 and bfloat16, `openvino` float32 and bfloat16, `onnx` float32.
        runtime: Runtime of the model. `eager` is plain PyTorch, on a CPU with batch norms fused into
            convolutions; `compile` is `torch.compile`; `cudagraph`
            captures a CUDA graph at the first call per shape and replays it with one launch; `onnx` and
            `openvino` run exported graphs on a CPU, which are exported once per weights and cached in
            `export_cache()`; cached graphs are compared with the model before they are used. `auto` is
            `eager`, which on an x86 CPU in float32 keeps a second copy of the weights of linear layers, see
            `ops.packed_weights`.
        exported: Exported files to run, with `onnx` or `openvino`, instead of those of the cache: the path
            without `.template.onnx`, such as `FOLDER/MODEL` or, in int8, `FOLDER/MODEL.int8`. They have to
            be of the model's weights, and are not compared with its outputs.

    Attributes:
        model: Model in evaluation mode.
        device: Device of the computation.
        dtype: Dtype of the computation.
        runtime: Runtime, never `auto`.
        exported: The argument of that name.
        files: Files of the template graph and of the search graph, of `onnx` and `openvino`.
        outputs: Names of the outputs of a call: `scores` and `boxes`, or names of features.

    Raises:
        ValueError: An unknown runtime, device or dtype, a device or dtype that the runtime does not support,
            a wrapper such as that of `torch.compile` in place of a model, exported files of other weights, or
            such files with a runtime that does not run files.
        FileNotFoundError: There are no such exported files.
        RuntimeError: `cudagraph` or a CUDA device without a GPU.
        ModuleNotFoundError: The runtime is not installed; the message says how to install it.

    Note:
        `openvino` keeps one OpenVINO core for the process. A program with its own cores should keep them as
        well: if two cores are destroyed in the order of their creation, the next signal with a handler, such
        as Ctrl-C, ends the process with a segmentation fault (OpenVINO 2026.4.1, Linux).

    Examples:
        >>> session = InferenceSession(ca.create_model("sbt_light_cell_track", pretrained=True))
        >>> session.set_template(template)  # (B, 3, 128, 128)
        >>> scores, boxes = session(search)  # (B, 3, 256, 256) -> (B, 32, 32), (B, 4, 32, 32)
    """

    def __init__(
        self,
        model: SessionModel,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        runtime: Runtime = "auto",
        exported: str | Path | None = None,
    ) -> None:
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime={runtime!r} is not one of {', '.join(RUNTIMES)}.")
        if exported is not None and runtime not in ("onnx", "openvino"):
            raise ValueError(
                f"exported={str(exported)!r} needs runtime='onnx' or 'openvino', not {runtime!r}, which runs "
                "the model itself."
            )
        graphs = split_graphs(model)
        parameter = next(model.parameters())
        self.model = model.eval()
        self.device = as_device(device or parameter.device, available=False)
        self.dtype = as_dtype(dtype or parameter.dtype)
        self.runtime: Runtime = "eager" if runtime == "auto" else runtime
        self.exported = None if exported is None else Path(exported)
        self.files: tuple[Path, ...] = ()
        self.outputs = graphs["search"].outputs
        self._state: TemplateState | None = None
        self._network: nn.Module = model  # the model, or a copy with fused layers
        if self.runtime in ("onnx", "openvino"):
            self._check_cpu_runtime(self.runtime)
            self.files = _exported(model, self.runtime) if exported is None else self._given(self.runtime)
            self._encode, self._search = (self._from_file(file) for file in self.files)
            if self.runtime == "openvino":
                self._encode = _one_by_one(self._encode)
            return
        if self.runtime == "cudagraph":
            self._check_cudagraph()
        as_device(self.device)
        model.to(self.device, self.dtype)
        if self.runtime == "eager":
            self._network = fuse_convolutions(model, _run_once)
            graphs = split_graphs(cast(SessionModel, self._network))
        steps = [graphs[name].module for name in GRAPHS]
        if self.runtime == "compile":
            steps = [torch.compile(step) for step in steps]  # type: ignore[misc]
        self._encode, self._search = (self._from_module(step) for step in steps)
        if self.runtime == "cudagraph":
            self._search = CudaGraphStep(steps[1], self.device, self.dtype)

    def set_template(self, template: Tensor) -> None:
        """Encodes new templates; they replace the previous ones.

        Args:
            template: (B, 3, Hz, Wz) template images, normalized, on any device.

        Raises:
            TypeError: No tensor, or one of integers.
            ValueError: A wrong shape, or an image size that the runtime has no graph for.
            RuntimeError: Something moved the model to another device or dtype.
        """
        self._state = self.encode(template)

    def encode(self, template: Tensor) -> TemplateState:
        """The state of templates; those that are set stay.

        Args:
            template: (B, 3, Hz, Wz) template images, normalized, on any device.

        Raises:
            TypeError: No tensor, or one of integers.
            ValueError: A wrong shape, or an image size that the runtime has no graph for.
            RuntimeError: Something moved the model to another device or dtype.
        """
        self._check_image(template, "template", self.model.sizes.template_size)
        self._check_model()
        refresh(self._network)
        return TemplateState(self._encode(template))

    def add_template(self, template: Tensor) -> None:
        """Encodes further templates, after those that are set.

        Args:
            template: (B, 3, Hz, Wz) template images, normalized, on any device.

        Raises:
            ValueError: An image size that the runtime has no graph for.
        """
        before = self._state
        self.set_template(template)
        if before is not None:
            assert self._state is not None
            self._state = TemplateState.cat([before, self._state])

    def keep_templates(self, indices: Sequence[int]) -> None:
        """Keeps some templates and forgets the others; without any, the session has no template.

        Args:
            indices: Numbers of the templates to keep, in their new order.
        """
        if self._state is not None:
            self._state = self._state.index(indices) if len(indices) else None

    def update_template(self, template: Tensor, chosen: Sequence[bool]) -> None:
        """Updates the state of chosen targets by the model's `update_template`.

        Args:
            template: (B, 3, Hz, Wz) recent template images of all targets, normalized, on any device.
            chosen: Whether to update, for each of the B targets.

        Raises:
            RuntimeError: No template is set.
        """
        if self._state is None:
            raise RuntimeError("The session has no template yet: call set_template(template) first.")
        indices = [i for i, update in enumerate(chosen) if update]
        if not indices:
            return
        with torch.inference_mode():
            new = TemplateState(self._encode(template[indices]))
            updated = self.model.update_template(self._state.index(indices), new)
            state = self._state.map(torch.clone)
            for tensor, values in zip(state, updated, strict=True):
                tensor[indices] = values
            self._state = state

    def __call__(self, search: Tensor, templates: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Compares search images with the templates.

        Args:
            search: (B, 3, Hx, Wx) search images, normalized: one per template, one for all templates, or
                several for a single template.
            templates: Number of the template of each search image, if not one per template.

        Returns:
            The tensors named by `outputs`, on the session's device. Scores and boxes are float32; features
            have the session's dtype, but are float32 from `onnx` and `openvino`. The next call of a
            `cudagraph` session overwrites the outputs: clone them to keep them.

        Raises:
            RuntimeError: No template is set, or something moved the model to another device or dtype.
            TypeError: No tensor, or one of integers.
            ValueError: The batch sizes of templates and search images differ, and neither of them is 1; an
                image size that the runtime has no graph for.
        """
        if self._state is None:
            raise RuntimeError("The session has no template yet: call set_template(template) first.")
        self._check_image(search, "search", self.model.sizes.search_size)
        self._check_model()
        state = self._state if templates is None else self._state.index(templates)
        batch = common_batch(state, search)
        if len(search) < batch:
            search = search.expand(batch, -1, -1, -1)
        # with `templates` the batch size changes from call to call
        by_one = self.runtime == "openvino" and templates is not None
        step = _one_by_one(self._search) if by_one else self._search
        return step(*(state if state.batch == batch else state.expand(batch)), search)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have their own model and include the template."""
        return _rebuild, (self.model, self.device, self.dtype, self.runtime, self.exported, self._state)

    def _check_cpu_runtime(self, runtime: str) -> None:
        require("onnxruntime" if runtime == "onnx" else "openvino")
        if self.device.type != "cpu":
            raise ValueError(f"runtime={runtime!r} supports device='cpu' only, not device={self.device}.")
        bfloat16 = (torch.bfloat16,) if runtime == "openvino" else ()
        self._check_dtype(torch.float32, *bfloat16)

    def _given(self, format: Literal["onnx", "openvino"]) -> tuple[Path, Path]:
        """The files of the template graph and the search graph of `exported`."""
        template, search = (Path(f"{self.exported}.{graph}{SUFFIXES[format]}") for graph in GRAPHS)
        meta = metadata(self.model)
        name, expected = meta["model"], meta["weights_sha256"]
        for path in (template, search):
            if not path.is_file():
                raise FileNotFoundError(
                    f"There is no {path}. exported={str(self.exported)!r} has to be the path of exported "
                    f"files without .template{SUFFIXES[format]}, such as FOLDER/{name}."
                )
            actual = read_metadata(path).get("weights_sha256")
            if actual != expected:
                raise ValueError(
                    f"{path} was not exported from these weights of {name}: its weights_sha256 is {actual}, "
                    f"that of the model {expected}. Export the model again, or pass the model and weights "
                    "that were exported."
                )
        return template, search

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

    def _check_model(self) -> None:
        """Checks that the model is still where this session put it; a second session may have moved it."""
        if self.runtime in ("onnx", "openvino"):
            return
        parameter = next(self.model.parameters())
        if (parameter.device.type, parameter.dtype) != (self.device.type, self.dtype):
            raise RuntimeError(
                f"The model was moved to {parameter.dtype} on {parameter.device} since this session was made "
                f"for {self.dtype} on {self.device}, perhaps by another session: sessions and trackers that "
                "share a model share its device and dtype. Create a model for each."
            )

    def _check_image(self, image: Tensor, name: str, side: int) -> None:
        """Checks an image before it is cast, and its size for exported graphs."""
        check_image(image, name, self.model.in_chans)
        expected = (self.model.in_chans, side, side)
        if self.runtime in ("onnx", "openvino") and tuple(image.shape[1:]) != expected:
            raise ValueError(
                f"{name} images of shape {tuple(image.shape)}: the graph of runtime={self.runtime!r} is for "
                f"(batch, {', '.join(map(str, expected))}). Resize them, build the model with "
                f"create_model(..., {name}_size=...), or use runtime='eager'."
            )

    def _from_module(self, step: Step) -> Step:
        """The function of a module for inference: moves and casts inputs, splits large batches on a CPU.

        The image, which is the last input, is cast in any case; of a state only floating-point tensors.
        """
        split = self.device.type == "cpu" and self.runtime == "eager"
        size = EAGER_CPU_MICROBATCH_BYTES // self.dtype.itemsize

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode(), packed_weights() if split else nullcontext():
                state = (cast_input(t, self.device, self.dtype) for t in inputs[:-1])
                inputs = (*state, inputs[-1].to(self.device, self.dtype))
                if not split or len(inputs[0]) <= size:
                    return step(*inputs)
                outputs = [step(*batch) for batch in zip(*(t.split(size) for t in inputs))]
                return tuple(torch.cat(parts) for parts in zip(*outputs))

        return run

    def _from_file(self, path: Path) -> Step:
        """The function of an exported file, from tensors to tensors."""
        function = open_graph(path, self.dtype, torch.get_num_threads())

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            tensors = (cast_input(t.detach(), torch.device("cpu"), torch.float32) for t in inputs[:-1])
            arrays = (np.ascontiguousarray(t.numpy()) for t in (*tensors, inputs[-1].detach().float().cpu()))
            return tuple(torch.from_numpy(array) for array in function(*arrays))

        return step


def _one_by_one(step: Step) -> Step:
    """A step that runs each item of a batch alone: OpenVINO compiles for a second at each new batch size."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = [step(*items) for items in zip(*(tensor.split(1) for tensor in inputs))]
        return tuple(torch.cat(parts) for parts in zip(*outputs))

    return run


def _run_once(model: nn.Module) -> Tensor:
    graph = split_graphs(cast(SessionModel, model))["pair"]
    dtype = next(model.parameters()).dtype
    outputs: tuple[Tensor, ...] = graph.module(*(t.to(dtype) for t in graph.example(seed=0, batch=1)))
    return torch.cat([output.to(dtype).flatten() for output in outputs])


def _rebuild(
    model: SessionModel,
    device: torch.device,
    dtype: torch.dtype,
    runtime: Runtime,
    exported: Path | None,
    state: TemplateState | None,
) -> InferenceSession:
    session = InferenceSession(model, device, dtype, runtime, exported)
    session._state = state
    return session


def export_cache() -> Path:
    """Folder of cached exported graphs: `$CORRELATION_AWARE_CACHE`, or `~/.cache/correlation_aware`."""
    folder = os.environ.get("CORRELATION_AWARE_CACHE")
    return Path(folder) if folder else Path("~/.cache/correlation_aware").expanduser()


def _cache_key(model: nn.Module, meta: dict[str, str]) -> str:
    """Changes with the weights, with plain attributes of the layers, and with the code of their packages."""
    # heads, EoC-CA blocks and the like show in attributes alone, not in the model's text
    own = vars(nn.Module())
    attributes = [{k: v for k, v in vars(module).items() if k not in own} for module in model.modules()]
    arguments = getattr(model, "model_args", {})
    code = [
        sha256_file(file) for file in _source_files({type(module).__module__ for module in model.modules()})
    ]
    facts = [meta, torch.__version__, arguments, attributes, repr(model), code]
    fingerprint = json.dumps(facts, default=_plain, skipkeys=True)
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:16]


def _plain(value: object) -> object:
    """What of a value is the same in every process: its contents, or the name of a function or class."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    return getattr(value, "__qualname__", type(value).__qualname__)


def _source_files(modules: Iterable[str]) -> list[Path]:
    """Python files of the packages of some modules, without those of PyTorch."""
    files: set[Path] = set()
    for name in {module.partition(".")[0] for module in modules} - {"torch"}:
        package = sys.modules[name]
        file = getattr(package, "__file__", None)
        folders = getattr(package, "__path__", None)
        if folders is not None:
            files.update(path for folder in folders for path in Path(folder).rglob("*.py"))
        elif file is not None:
            files.add(Path(file))
    return sorted(file for file in files if file.is_file())


def _exported(model: SessionModel, format: Literal["onnx", "openvino"]) -> tuple[Path, Path]:
    """Files of the template graph and the search graph, from the cache, or exported to it.

    A folder of the cache is used if it has the files that were written, by their hashes, and these give the
    outputs of the model; otherwise it is made again. Of several processes one exports, and the others wait.
    """
    meta = metadata(model)
    folder = export_cache() / f"{meta['model']}-{_cache_key(model, meta)}-{format}"
    files = {graph: folder / f"{meta['model']}.{graph}{SUFFIXES[format]}" for graph in GRAPHS}

    def is_valid() -> bool:  # what changed may not be in the key, such as code of another package
        return _is_whole(folder) and gives_outputs_of(model, files)

    if not is_valid():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _exporting, file_lock(folder.with_name(f"{folder.name}.lock"), wait=True):
                for leftover in folder.parent.glob(f".{folder.name}-*"):  # of processes that were killed
                    shutil.rmtree(leftover, ignore_errors=True)
                if not is_valid():
                    _export_to(folder, model, format)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            raise OSError(
                error.errno,
                f"runtime={format!r} keeps exported graphs in a folder that cannot be written; set "
                "CORRELATION_AWARE_CACHE to another one",
                str(folder.parent),
            ) from error
    return files["template"], files["search"]


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache has the files that were written to it."""
    try:
        hashes = read_json(folder / HASHES)
        return isinstance(hashes, dict) and all(
            sha256_file(folder / name) == digest for name, digest in hashes.items()
        )
    except (OSError, ValueError):
        return False


def _export_to(folder: Path, model: SessionModel, format: Literal["onnx", "openvino"]) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        output = Path(temporary) / "files"
        export(model, output, format, GRAPHS)
        hashes = {path.name: sha256_file(path) for path in output.iterdir()}
        write_text(json.dumps(hashes), output / HASHES)
        if folder.exists():
            folder.rename(Path(temporary) / "former")
        try:
            output.rename(folder)
        except OSError:  # where locks do not work another process may have exported it meanwhile
            if not _is_whole(folder):
                raise
