"""A model's search step as a CUDA graph: one launch a frame instead of one per operation."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["CudaGraphStep"]

WARM_UP = 3  # runs before the capture: kernels are compiled and chosen, libraries get their workspaces


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    state: Tensor
    search: Tensor
    outputs: tuple[Tensor, ...]


class CudaGraphStep:
    """(state, search) -> outputs, captured at the first call with new shapes and replayed at every other.

    A replay copies the search picture into the graph's own buffer, and the state when it is another object
    than the time before; nothing is allocated, and the host does not wait. The outputs are the graph's own
    tensors: the next call of the same shapes overwrites them.

    Args:
        step: The search graph of `cut(model)`, on the GPU; operations must launch on the current stream.
        device: The GPU.
        dtype: Of the buffers.
    """

    def __init__(self, step: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self._step, self._device, self._dtype = step, device, dtype
        self._captured: dict[tuple[torch.Size, torch.Size], _Captured] = {}
        self._held: dict[tuple[torch.Size, torch.Size], Tensor] = {}  # whose numbers the state's buffer has
        self._weights = step.state_dict()  # graphs read this memory, even if the model is moved away

    def __call__(self, state: Tensor, search: Tensor) -> tuple[Tensor, ...]:
        key = (state.shape, search.shape)
        with torch.inference_mode(), torch.cuda.device(self._device):
            if key not in self._captured:
                self._captured[key] = self._capture(state, search)
            found = self._captured[key]
            if self._held.get(key) is not state:
                found.state.copy_(state)
                self._held[key] = state
            found.search.copy_(search, non_blocking=True)
            found.graph.replay()
            return found.outputs

    def _capture(self, state: Tensor, search: Tensor) -> _Captured:
        own_state, own_search = (
            torch.empty(t.shape, device=self._device, dtype=self._dtype).copy_(t) for t in (state, search)
        )
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(WARM_UP):
                self._step(own_state, own_search)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._step(own_state, own_search)
        return _Captured(graph, own_state, own_search, outputs)
