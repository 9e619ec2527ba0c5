"""Models as files that run without this package, each compared with the model before it counts."""

import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from correlation_aware._extras import require
from correlation_aware._version import __version__
from correlation_aware.ops import set_backend
from correlation_aware.runtime.graphs import Graph, split_graphs

__all__ = ["FORMATS", "OPSET", "ExportedGraph", "Format", "export", "metadata", "open_graph"]

Format = Literal["onnx", "openvino", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
OPSET = 18  # ONNX; no newer operator is needed, and TensorRT and onnxruntime take it
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
TOLERANCE = (
    1e-3  # largest difference, relative to the largest number; float32 in another order gives about 1e-5
)
TRIALS = ((0, 1), (1, 2), (2, 3))  # seeds and batches of the comparison
Run = Callable[..., Sequence[np.ndarray]]


@dataclass(frozen=True)
class ExportedGraph:
    """A file, and how it compares with the model.

    Attributes:
        graph: See `Graph`.
        path: The file; OpenVINO has a `.bin` beside it.
        difference: Largest difference of any output over several seeds and batches, relative to that output's
            largest number.
    """

    graph: str
    path: Path
    difference: float


def export(
    model: nn.Module, folder: str | Path, format: Format = "onnx", graphs: Sequence[str] | None = None
) -> list[ExportedGraph]:
    """Writes the graphs of a model as `FOLDER/NAME.GRAPH.SUFFIX`, with a dynamic batch and float32 numbers.

    Every file is run and compared with the model before the folder gets any of them. Metadata (see
    `metadata`) lie inside the files.

    ONNX files keep to the default operators of opset 18, without boolean tensors; with `attention="pooled"`
    PyTorch writes its pooling with constant masks.

    Args:
        model: A model of the zoo; its weights and sizes are those of the files.
        folder: Where to write; files of the same names are replaced.
        format: `onnx`, `openvino` or `torch` (for `torch.export.load`).
        graphs: Which of `split_graphs(model)`; all by default.

    Raises:
        ValueError: Not a model of the zoo, an unknown format or graph.
        ModuleNotFoundError: What the format needs is not installed; the message says how to get it.
        RuntimeError: A file computes something else than the model; nothing is written then.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not one of {', '.join(FORMATS)}.")
    parts = split_graphs(model)
    unknown = set(graphs or ()) - set(parts)
    if unknown:
        raise ValueError(f"graphs={sorted(unknown)} are not among {', '.join(parts)} of this model.")
    if format != "torch":
        require("onnx", "onnxscript", "onnxruntime" if format == "onnx" else "openvino")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = metadata(model)
    found = []
    with _inference(model), tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as place:
        for name in graphs or parts:
            path = Path(place) / f"{described['model']}.{name}{SUFFIXES[format]}"
            _write(parts[name], path, format, {**described, "graph": name})
            difference = _compare(parts[name], open_graph(path))
            if not difference <= TOLERANCE:  # NaN is no parity either
                raise RuntimeError(
                    f"{path.name} differs from the model by {difference:.2g} of the largest number; at most "
                    f"{TOLERANCE} is allowed. Nothing was written."
                )
            found.append(ExportedGraph(name, folder / path.name, difference))
        for path in sorted(Path(place).iterdir(), reverse=True):  # .bin and .onnx.data before what needs them
            shutil.move(path, folder / path.name)
    return found


def metadata(model: nn.Module) -> dict[str, str]:
    """What a file says of itself: names, sizes in pixels, normalisation of 0..1 RGB, hash of the weights."""
    config = model.pretrained_cfg
    assert isinstance(config, dict)
    keys = ("template_size", "input_size", "template_factor", "search_factor", "mean", "std", "license")
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "model": str(config["architecture"]),
        "tag": str(config.get("tag") or ""),
        "weights_sha256": digest.hexdigest(),
        "library": f"correlation_aware {__version__}",
        **{key: json.dumps(config[key]) for key in keys if key in config},
    }


def open_graph(path: str | Path, dtype: torch.dtype = torch.float32, threads: int = 0) -> Run:
    """Opens an exported file for running on a CPU.

    OpenVINO compiles it anew for each of the last four shapes it is run with, at the first call.

    Args:
        path: `.onnx`, `.xml` or `.pt2`.
        dtype: Precision that OpenVINO may compute with, float32 or bfloat16; inputs and outputs are float32.
        threads: 0 for as many as the runtime likes.

    Returns:
        A function from arrays, by position, to a list of arrays.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        (ort,) = require("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # a thread that waits busily takes a core from the other graph and from the cropping
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays)))
    if path.suffix == ".xml":
        hints = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
        }
        core = _openvino_core()

        @lru_cache(maxsize=4)
        def compiled(*shapes: tuple[int, ...]) -> Any:
            # with an unknown batch OpenVINO copies each map before and after a depth-wise convolution
            model = core.read_model(str(path))
            model.reshape(dict(enumerate(map(list, shapes))))
            return core.compile_model(model, "CPU", hints)

        return lambda *arrays: [np.array(v) for v in compiled(*(a.shape for a in arrays))(arrays).values()]
    program = torch.export.load(path).module()
    return lambda *arrays: [v.detach().numpy() for v in program(*map(torch.from_numpy, arrays))]


@cache
def _openvino_core() -> Any:
    """OpenVINO's core, one for the process, never let go.

    A core gives its thread a stack for signal handlers and, when it goes, puts back the one from before, even
    if that belonged to a core that is gone: the next signal with a handler, such as Ctrl-C, then ends the
    process with a segmentation fault (OpenVINO 2026.4.1, Linux).
    """
    (ov,) = require("openvino")
    return ov.Core()


def _write(graph: Graph, path: Path, format: Format, described: Mapping[str, str]) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = graph.example(seed=0, batch=2)  # a batch of 1 would be taken for a constant
    dynamic = tuple({0: batch} for _ in example)
    shapes: Any = (dynamic,) if "state" in graph.inputs else dynamic  # the search graph takes *tensors
    if format == "torch":
        program = torch.export.export(graph.module, example, dynamic_shapes=shapes)
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(described)})
        return
    onnx_path = path.with_suffix(".onnx")
    made = torch.onnx.export(
        graph.module,
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=graph.input_names(len(example)),
        output_names=graph.output_names(len(graph.module(*example))),
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props.update(described)
    made.save(str(onnx_path))
    if format == "openvino":
        (ov,) = require("openvino")
        converted = ov.convert_model(str(onnx_path))
        for key, value in described.items():
            converted.set_rt_info(value, ["correlation_aware", key])
        ov.save_model(converted, str(path), compress_to_fp16=False)
        onnx_path.unlink()


def _compare(graph: Graph, run: Run) -> float:
    worst = 0.0
    for seed, batch in TRIALS:
        inputs = graph.example(seed, batch)
        expected: tuple[Tensor, ...] = graph.module(*inputs)
        for wanted, given in zip(expected, run(*(t.numpy() for t in inputs)), strict=True):
            difference = np.abs(wanted.numpy() - given).max() / max(float(wanted.abs().max()), 1e-12)
            worst = max(worst, float(difference)) if difference == difference else float("nan")
    return worst


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, plain operations, float32 on the CPU, and back; a quiet exporter."""
    parameter, training = next(model.parameters()), model.training
    device, dtype = parameter.device, parameter.dtype
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), set_backend("reference"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.to("cpu", torch.float32).eval()
            yield
    finally:
        exporter.setLevel(level)
        model.to(device, dtype).train(training)
