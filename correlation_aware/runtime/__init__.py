"""Sessions that run a model, and exported files.

To add a runtime: its name here, which the options, their help and the benchmarks follow, and its branch in
`InferenceSession`. One that runs exported files also needs `open_graph` of `runtime/export.py`, the default
device of `create_tracker`, and `FILE_RUNTIMES` of `bench/contenders.py`.
"""

from typing import Literal, get_args

__all__ = ["RUNTIMES", "Runtime"]

Runtime = Literal["auto", "eager", "compile", "cudagraph", "onnx", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
