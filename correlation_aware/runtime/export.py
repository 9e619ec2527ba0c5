"""Export of models to files that run without this package; each file is compared with the model."""

import copy
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
from correlation_aware._files import check_output_folder
from correlation_aware._version import __version__
from correlation_aware.models.tracker import TrackModel
from correlation_aware.ops import set_backend
from correlation_aware.runtime.graphs import Graph, description, split_graphs
from correlation_aware.weights.files import hash_state_dict

__all__ = [
    "FORMATS",
    "OPSET",
    "ExportedGraph",
    "Format",
    "export",
    "gives_outputs_of",
    "metadata",
    "open_graph",
    "read_metadata",
]

Format = Literal["onnx", "openvino", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
OPSET = 18  # ONNX opset, supported by onnxruntime and TensorRT; no newer operator is needed
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
TOLERANCE = 1e-3  # largest difference over the largest value; float32 rounding gives about 1e-5
TRIALS = ((0, 1), (1, 2), (2, 3))  # seeds and batch sizes of the comparison
GraphFunction = Callable[..., Sequence[np.ndarray]]  # arrays by position -> output arrays

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedGraph:
    """An exported file, and its difference from the model.

    Attributes:
        graph: Name of the graph, see `Graph`.
        path: Path of the file; OpenVINO writes a `.bin` file with the same stem.
        difference: Largest difference of any output over several seeds and batch sizes, divided by the
            largest absolute value of that output. Outputs of integers or booleans are equal.
    """

    graph: str
    path: Path
    difference: float


def export(
    model: nn.Module, folder: str | Path, format: Format = "onnx", graphs: Sequence[str] | None = None
) -> list[ExportedGraph]:
    """Exports the graphs of a model to `FOLDER/NAME.GRAPH.SUFFIX`, with a dynamic batch size, in float32.

    All files are run and compared with the model before any of them is moved to the folder. The files
    contain metadata, see `metadata`.

    ONNX files use only default operators of opset 18, without boolean tensors; with `attention="pooled"`
    PyTorch writes its pooling with constant masks.

    Args:
        model: Model of the zoo, or a network made by hand, with the weights and sizes to export. It is not
            changed: a copy of it is exported.
        folder: Output folder; existing files of the same names are replaced.
        format: File format: `onnx`, `openvino` or `torch` (for `torch.export.load`).
        graphs: Names of graphs of `split_graphs(model)`; all by default.

    Returns:
        The exported files.

    Raises:
        ValueError: Not a model of the zoo, an unknown format or graph, or a folder that is a file.
        ModuleNotFoundError: A package of the format is not installed; the message says how to install it.
        RuntimeError: The outputs of a file differ from the model's; no file is written then.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not one of {', '.join(FORMATS)}.")
    known = split_graphs(model)
    unknown = set(graphs or ()) - set(known)
    if unknown:
        raise ValueError(f"graphs={sorted(unknown)} are not among {', '.join(known)} of this model.")
    if format != "torch":
        require("onnx", "onnxscript", "onnxruntime" if format == "onnx" else "openvino")
    folder = Path(folder)
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta = metadata(model)
    _logger.info("Exporting %s to %s; this can take a minute.", meta["model"], format)
    exported = []
    with (
        _reference(model) as parts,
        tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary,
    ):
        for name in graphs or parts:
            path = Path(temporary) / f"{meta['model']}.{name}{SUFFIXES[format]}"
            _write(parts[name], path, format, {**meta, "graph": name})
            difference = _compare(parts[name], open_graph(path))
            if not difference <= TOLERANCE:  # also True for NaN
                how = f"by {difference:.2g} of the largest value; at most {TOLERANCE} is allowed"
                if difference == float("inf"):
                    how = "in an output of integers or booleans, or in a shape"
                raise RuntimeError(f"{path.name} differs from the model {how}. Nothing was written.")
            exported.append(ExportedGraph(name, folder / path.name, difference))
        for path in sorted(
            Path(temporary).iterdir(), reverse=True
        ):  # .bin and .onnx.data before the files that use them
            shutil.move(path, folder / path.name)
    return exported


def gives_outputs_of(model: nn.Module, files: Mapping[str, Path]) -> bool:
    """Whether exported files give the outputs of the model for one example.

    Args:
        model: The model; it is not changed.
        files: Paths by the name of the graph.
    """
    with _reference(model) as parts:
        return all(
            _compare(parts[name], open_graph(path), TRIALS[:1]) <= TOLERANCE for name, path in files.items()
        )


def metadata(model: nn.Module) -> dict[str, str]:
    """Metadata of exported files: names, sizes in pixels, mean and std of RGB in 0..1, weights hash.

    Of a tracker also `box_vote`, see `TrackerConfig`. Lists and numbers are JSON.
    """
    config = description(model)
    keys = ("template_size", "input_size", "template_factor", "search_factor", "mean", "std", "license")
    about = {key: config[key] for key in keys if key in config}
    if isinstance(model, TrackModel):
        about["box_vote"] = getattr(model.head, "box_vote", 0.0)
    return {
        "model": str(config["architecture"]),
        "tag": str(config.get("tag") or ""),
        "weights_sha256": hash_state_dict(model.state_dict()),
        "library": f"correlation_aware {__version__}",
        **{key: json.dumps(value) for key, value in about.items()},
    }


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata of an exported `.onnx` or `.xml` file, see `metadata`; empty if it has none.

    Args:
        path: Path of the file.

    Raises:
        ModuleNotFoundError: The package of the format is not installed.
        RuntimeError: Another file, or a damaged one.
    """
    path = Path(path)
    if path.suffix == ".xml":
        core = _openvino_core()
        with _damage_named(path):
            model = core.read_model(str(path))
        if not model.has_rt_info(["correlation_aware"]):
            return {}
        items = model.get_rt_info(["correlation_aware"]).astype(dict)
        return {str(key): str(value.value) for key, value in items.items()}
    (onnx,) = require("onnx")
    with _damage_named(path):
        model = onnx.load(str(path), load_external_data=False)
    return {item.key: item.value for item in model.metadata_props}


def open_graph(path: str | Path, dtype: torch.dtype = torch.float32, threads: int = 0) -> GraphFunction:
    """Opens an exported file to run it on a CPU.

    OpenVINO compiles the file at the first call with a new shape; the last four shapes are cached.

    Args:
        path: Path of the `.onnx`, `.xml` or `.pt2` file.
        dtype: Precision of the computation in OpenVINO, float32 or bfloat16; inputs and outputs are float32.
        threads: Number of threads; 0 for the default of the runtime.

    Returns:
        A function from input arrays, by position, to a list of output arrays.

    Raises:
        ModuleNotFoundError: The package of the format is not installed.
        RuntimeError: Another file, or a damaged one; of OpenVINO at the first call.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        (ort,) = require("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # spinning threads would take a core from the other graph and from cropping
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with _damage_named(path):
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
            # with a dynamic batch OpenVINO copies each map before and after a depth-wise convolution
            with _damage_named(path):
                model = core.read_model(str(path))
            model.reshape(dict(enumerate(map(list, shapes))))
            return core.compile_model(model, "CPU", hints)

        return lambda *arrays: [np.array(v) for v in compiled(*(a.shape for a in arrays))(arrays).values()]
    with _damage_named(path):
        program = torch.export.load(path).module()
    return lambda *arrays: [v.detach().numpy() for v in program(*map(torch.from_numpy, arrays))]


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Raises RuntimeError with the path for whatever the libraries of the formats raise of a damaged file."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise RuntimeError(
            f"{path} is not an exported file, or a damaged one ({reason}). Export the model again."
        ) from error


@cache
def _openvino_core() -> Any:
    """The OpenVINO core of the process, never destroyed.

    A core sets the stack of signal handlers of its thread. When it is destroyed, it restores the previous
    stack, even one of a core that was destroyed before: the next signal with a handler, such as Ctrl-C, then
    ends the process with a segmentation fault (OpenVINO 2026.4.1, Linux).
    """
    (ov,) = require("openvino")
    return ov.Core()


def _write(graph: Graph, path: Path, format: Format, meta: Mapping[str, str]) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = graph.example(seed=0, batch=2)  # the exporter would treat a batch of 1 as a constant
    dynamic = tuple({0: batch} for _ in example)
    shapes: Any = (dynamic,) if "state" in graph.inputs else dynamic  # the search graph takes *tensors
    if format == "torch":
        program = torch.export.export(graph.module, example, dynamic_shapes=shapes)
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(meta)})
        return
    onnx_path = path.with_suffix(".onnx")
    onnx_program = torch.onnx.export(
        graph.module,
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=graph.input_names(len(example)),
        output_names=graph.output_names(len(graph.module(*example))),
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert onnx_program is not None
    onnx_program.model.metadata_props.update(meta)
    onnx_program.save(str(onnx_path))
    if format == "openvino":
        (ov,) = require("openvino")
        converted = ov.convert_model(str(onnx_path))
        for key, value in meta.items():
            converted.set_rt_info(value, ["correlation_aware", key])
        ov.save_model(converted, str(path), compress_to_fp16=False)
        onnx_path.unlink()


def _compare(graph: Graph, function: GraphFunction, trials: Sequence[tuple[int, int]] = TRIALS) -> float:
    """Largest relative difference between a graph and its exported file, NaN if any is NaN.

    Infinite for outputs of integers or booleans that are not equal, and for other shapes.
    """
    differences = [0.0]
    for seed, batch in trials:
        inputs = graph.example(seed, batch)
        outputs: tuple[Tensor, ...] = graph.module(*inputs)
        for expected, actual in zip(outputs, function(*(t.numpy() for t in inputs)), strict=True):
            values = expected.numpy()
            if not expected.is_floating_point() or values.shape != actual.shape:
                differences.append(0.0 if np.array_equal(values, actual) else float("inf"))
                continue
            scale = max(float(expected.abs().max()), 1e-12)
            differences.append(float(np.abs(values - actual).max()) / scale)
    return float(np.max(differences))


@contextmanager
def _reference(model: nn.Module) -> Iterator[dict[str, Graph]]:
    """The graphs of a copy of the model: in evaluation mode, float32 on the CPU, with reference operations.

    The exporter is silent meanwhile.
    """
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), set_backend("reference"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield split_graphs(copy.deepcopy(model).to("cpu", torch.float32).eval())
    finally:
        exporter.setLevel(level)
