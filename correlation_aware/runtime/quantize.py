"""Static quantization of exported ONNX files to int8, calibrated with example inputs."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from correlation_aware._extras import require
from correlation_aware._files import atomic_path

__all__ = ["quantize"]

# Clip and Relu are quantized with the convolution before them, whose range is theirs: without them the range
# would be that of the values that they cut off
QUANTIZED = ("Conv", "Gemm", "MatMul", "Clip", "Relu", "Add")
PRODUCTS = ("Conv", "Gemm", "MatMul")

Inputs = Sequence[np.ndarray]  # arrays by position


def quantize(source: str | Path, output: str | Path, examples: Sequence[Inputs]) -> None:
    """Quantizes an exported ONNX file: weights per channel in int8, activations in uint8.

    The result (QDQ format) runs where the source runs, with the same inputs and outputs in float32, the same
    dynamic batch and metadata. Products of two activations, as in attention, stay in float32, and so do the
    last convolution or linear layer before every output and what follows it: they cost little time, and
    rounding boxes and scores to 256 values costs accuracy.

    Args:
        source: Path of the ONNX file.
        output: Path of the file to write.
        examples: Example inputs, whose smallest and largest activations become the ranges.

    Raises:
        ValueError: No examples.
        ModuleNotFoundError: onnx or onnxruntime is not installed; the message says how to install it.
    """
    onnx, quantization = require("onnx", "onnxruntime.quantization")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not examples:
        raise ValueError("Quantization needs at least one example input.")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # onnxruntime logs advice there
    try:
        with (
            tempfile.TemporaryDirectory() as temporary,
            atomic_path(output) as written,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            prepared = Path(temporary) / "prepared.onnx"  # with shapes, and batch norms in convolutions
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            model = onnx.load(str(prepared))
            names = [value.name for value in model.graph.input]
            quantization.quantize_static(
                model,
                str(written),
                _Examples(names, examples),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                nodes_to_exclude=sorted(_kept_in_float(model)),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            result = onnx.load(str(written))
            used = {node.domain for node in result.graph.node}
            operators = [item for item in result.opset_import if item.domain in used]
            del result.opset_import[:], result.metadata_props[:]
            result.opset_import.extend(operators)
            about = {
                item.key: item.value
                for item in onnx.load(str(source), load_external_data=False).metadata_props
            }
            onnx.helper.set_model_props(result, {**about, "precision": "int8"})
            onnx.save(result, str(written))
    finally:
        root.setLevel(level)


class _Examples:
    """The examples as onnxruntime's calibration reads them."""

    def __init__(self, names: Sequence[str], examples: Sequence[Inputs]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = (dict(zip(names, arrays)) for arrays in examples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _kept_in_float(model: Any) -> set[str]:
    """Names of products of activations, and of all nodes from the last layer before an output on."""
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    kept = {
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and not any(name in constants for name in node.input)
    }
    names = [value.name for value in graph.output]
    while names:
        node = producers.get(names.pop())
        if node is None or node.name in kept:
            continue
        kept.add(node.name)
        if node.op_type not in PRODUCTS or not any(name in constants for name in node.input):
            names.extend(node.input)
    return kept
