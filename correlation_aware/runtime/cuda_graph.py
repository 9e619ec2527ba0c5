"""The search step of a model as a CUDA graph: one launch per frame instead of one per operation."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from correlation_aware.runtime.graphs import cast_input

__all__ = ["CudaGraphStep"]

WARM_UP = 3  # calls before the capture: kernels are compiled and selected, libraries allocate workspaces

Shapes = tuple[torch.Size, ...]


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class CudaGraphStep:
    """The function (*state, search) -> outputs, captured at the first call per shape and replayed afterwards.

    A replay copies the search image into the input buffer of the graph, and those tensors of the state that
    are other objects than in the previous call. It allocates nothing and does not synchronize. The outputs
    are buffers of the graph: the next call with the same shapes overwrites them.

    Args:
        step: Search graph of `split_graphs(model)`, on the GPU; its operations must launch on the current
            stream.
        device: GPU.
        dtype: Dtype of the buffers of floating-point inputs.
    """

    def __init__(self, step: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self._step, self._device, self._dtype = step, device, dtype
        self._captured: dict[Shapes, _Captured] = {}
        self._copied: dict[
            Shapes, list[Tensor]
        ] = {}  # state last copied into the input buffers of each graph
        self._weights = step.state_dict()  # keeps the memory that the graphs read, even if the model is moved

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        key = tuple(tensor.shape for tensor in inputs)
        with torch.inference_mode(), torch.cuda.device(self._device):
            if key not in self._captured:
                self._captured[key] = self._capture(inputs)
                self._copied[key] = list(inputs[:-1])
            captured, copied = self._captured[key], self._copied[key]
            for i, tensor in enumerate(inputs[:-1]):
                if copied[i] is not tensor:
                    captured.inputs[i].copy_(tensor)
                    copied[i] = tensor
            captured.inputs[-1].copy_(inputs[-1], non_blocking=True)
            captured.graph.replay()
            return captured.outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> _Captured:
        state = (cast_input(tensor, self._device, self._dtype) for tensor in inputs[:-1])
        search = inputs[-1].to(self._device, self._dtype)
        buffers = tuple(
            torch.empty_like(t, memory_format=torch.contiguous_format).copy_(t) for t in (*state, search)
        )
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(WARM_UP):
                self._step(*buffers)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._step(*buffers)
        return _Captured(graph, buffers, outputs)
