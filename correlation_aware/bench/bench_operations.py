"""Benchmark of single operations, at the shapes with which a network calls them."""

import importlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from correlation_aware import ops, zoo
from correlation_aware.bench.bench_models import INPUT_SETS
from correlation_aware.bench.contenders import REFERENCE, Skipped, first_line
from correlation_aware.bench.machine import Ceilings
from correlation_aware.bench.timing import Call, CapturedCalls, time_interleaved
from correlation_aware.ops import Backend, get_backend, set_backend

__all__ = ["CONTENDERS", "OPERATIONS", "OperationRow", "bench_operation", "count_calls"]

OPERATIONS = ("add_layer_norm", "dwconv_gelu", "eoc_attention", "gather_patches")
CALLS_PER_GRAPH = 20
REPLAYS = 15  # timed replays of a CUDA graph

# name: (backend, compiled)
CONTENDERS: dict[str, tuple[Backend, bool]] = {
    REFERENCE: ("reference", False),
    "reference-compile": ("reference", True),
    "triton": ("triton", False),
}


@dataclass(frozen=True)
class Operands:
    """Arguments of a call with shapes in place of tensors; `name` is the operation."""

    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        shapes = (a.shape for a in self.arguments if isinstance(a, _TensorShape) and len(a.shape) == 2)
        return " ".join("x".join(map(str, shape)) for shape in dict.fromkeys(shapes))

    def random(self, seed: int, device: torch.device, dtype: torch.dtype, gradient: bool) -> list[Any]:
        """The arguments with random tensors; empty tensors on the meta device."""
        generator = torch.Generator().manual_seed(seed)

        def tensor(shape: tuple[int, ...]) -> Tensor:
            if device.type == "meta":
                return torch.empty(shape, device=device, dtype=dtype)
            return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(gradient)

        return [
            tensor(a.shape) if isinstance(a, _TensorShape) else list(a) if isinstance(a, tuple) else a
            for a in self.arguments
        ]


@dataclass(frozen=True)
class _TensorShape:
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OperationRow:
    """Result of one contender for one operation and its shapes.

    Attributes:
        operation: Name of `OPERATIONS`.
        shapes: Shapes of its packed tensors.
        calls: Number of these calls in a forward pass with a cached template.
        contender: Name of `CONTENDERS`.
        milliseconds: Time per call, on a GPU without launch overhead; with `backward`, of both passes.
        speedup: Time of the reference over the time of this contender; None without the reference.
        roofline_share: Lower bound of the time on this machine over the measured time; None with `backward`.
        difference: Largest difference of an output to the reference in float64, relative to the largest value
            of that output.
    """

    operation: str
    shapes: str
    calls: int
    contender: str
    milliseconds: float
    speedup: float | None
    roofline_share: float | None
    difference: float


def count_calls(model: str, batch: int) -> dict[Operands, int]:
    """Counts the calls of every operation in a forward pass with a cached template, on the meta device.

    Args:
        model: Name of a two-input model.
        batch: Number of pairs.

    Raises:
        ValueError: The model calls none of the operations.
    """
    network: Any = zoo.create_model(model, device="meta").eval()
    sizes, channels = network.sizes, network.in_chans
    template, search = (
        torch.empty(batch, channels, size, size, device="meta")
        for size in (sizes.template_size, sizes.search_size)
    )
    counter: Counter[Operands] = Counter()
    with torch.no_grad(), set_backend("reference"):
        state = network.encode_template(template)
        with _recorded(counter):
            network(state, search)
    if not counter:
        raise ValueError(f"{model} calls none of the operations that can be timed: {', '.join(OPERATIONS)}.")
    return dict(counter)


def bench_operation(
    operands: Operands,
    count: int,
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
    contenders: Sequence[str] = tuple(CONTENDERS),
    backward: bool = False,
    seconds: float = 0.3,
) -> tuple[list[OperationRow], list[Skipped]]:
    """Times one operation at one set of shapes, the contenders in alternation.

    Args:
        operands: Operation and shapes, see `count_calls`.
        count: Number of these calls in the network.
        device: Device of the calls; on a GPU they are captured in a CUDA graph and replayed.
        dtype: Dtype of the tensors.
        ceilings: Peak rates of the device in that dtype.
        contenders: Names of `CONTENDERS`; those that cannot run are skipped with the reason.
        backward: Whether to time the gradients of all inputs too.
        seconds: Total time of the timed calls of each contender on a CPU.
    """
    function = getattr(ops, operands.name)
    inputs = [operands.random(seed, device, dtype, backward) for seed in range(INPUT_SETS)]
    exact = [a.detach().double() if isinstance(a, Tensor) else a for a in inputs[0]]
    with set_backend("reference"):
        expected = _tensors(function(*exact))
    calls: dict[str, Call] = {}
    differences: dict[str, float] = {}
    skipped = []
    for name in contenders:
        backend, compiled = CONTENDERS[name]
        # one program per shape, without CUDA graphs of torch.compile
        run = torch.compile(function, dynamic=False) if compiled else function
        call = _backward_call(run, inputs) if backward else _forward_call(run, inputs)
        try:
            with set_backend(backend):
                actual = _tensors(run(*inputs[0]))
                call(0)
        except Exception as error:  # compilers raise errors of any type
            skipped.append(Skipped(f"{operands.name} {name}", dtype, first_line(error)))
            continue
        differences[name] = max(
            ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(actual, expected)
        )
        calls[name] = call
    times, not_captured = _times(calls, device, seconds)
    skipped += [Skipped(f"{operands.name} {name}", dtype, reason) for name, reason in not_captured.items()]
    roofline = None if backward else _roofline(function, operands, ceilings, dtype)
    rows = [
        OperationRow(
            operands.name,
            str(operands),
            count,
            name,
            milliseconds,
            times[REFERENCE] / milliseconds if REFERENCE in times else None,
            None if roofline is None else roofline / milliseconds,
            differences[name],
        )
        for name, milliseconds in times.items()
    ]
    return rows, skipped


def _times(
    calls: dict[str, Call], device: torch.device, seconds: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Median milliseconds per call by name, and reasons of calls that cannot be captured in a CUDA graph."""
    if device.type == "cpu":
        with set_backend(get_backend()):  # restores the backend, which contenders change
            timings = time_interleaved(calls, device, seconds, lambda name: set_backend(CONTENDERS[name][0]))
        return {name: times.median for name, times in timings.items()}, {}
    captured, reasons = {}, {}
    for name, call in calls.items():
        try:
            with set_backend(CONTENDERS[name][0]):
                captured[name] = CapturedCalls(call, CALLS_PER_GRAPH)
        except RuntimeError as error:
            reasons[name] = first_line(error)
    replays: dict[str, list[float]] = {name: [] for name in captured}
    for _ in range(REPLAYS):
        for name, graph in captured.items():
            replays[name].append(graph.milliseconds())
    return {name: statistics.median(times) for name, times in replays.items()}, reasons


def _forward_call(run: Callable[..., Any], inputs: Sequence[list[Any]]) -> Call:
    def call(i: int) -> object:
        with torch.no_grad():
            return run(*inputs[i % len(inputs)])

    return call


def _backward_call(run: Callable[..., Any], inputs: Sequence[list[Any]]) -> Call:
    leaves = [[a for a in arguments if isinstance(a, Tensor)] for arguments in inputs]

    def call(i: int) -> object:
        results = _tensors(run(*inputs[i % len(inputs)]))
        return torch.autograd.grad(results, leaves[i % len(inputs)], [t.detach() for t in results])

    return call


def _roofline(
    function: Callable[..., Any], operands: Operands, ceilings: Ceilings, dtype: torch.dtype
) -> float:
    """Lower bound in milliseconds: inputs read once, outputs written once, and the products."""
    arguments = operands.random(0, torch.device("meta"), dtype, gradient=False)
    with (
        torch.no_grad(),
        set_backend("reference"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        results = _tensors(function(*arguments))
    elements = sum(t.numel() for t in (*results, *(a for a in arguments if isinstance(a, Tensor))))
    return ceilings.milliseconds(counter.get_total_flops() / 2, elements * dtype.itemsize)


def _tensors(returned: Any) -> list[Tensor]:
    return [returned] if isinstance(returned, Tensor) else [t for t in returned if isinstance(t, Tensor)]


@contextmanager
def _recorded(counter: Counter[Operands]) -> Iterator[None]:
    """Counts the calls of the reference operations inside the block."""

    def recorder(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any) -> Any:
            counter[Operands(name, tuple(map(_without_values, arguments)))] += 1
            return function(*arguments)

        return record

    modules = {
        name: importlib.import_module(f"correlation_aware.ops.{name}.reference") for name in OPERATIONS
    }
    originals = {name: getattr(module, name) for name, module in modules.items()}
    try:
        for name, module in modules.items():
            setattr(module, name, recorder(name, originals[name]))
        yield
    finally:
        for name, module in modules.items():
            setattr(module, name, originals[name])


def _without_values(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return _TensorShape(tuple(argument.shape))
    return tuple(argument) if isinstance(argument, list) else argument
