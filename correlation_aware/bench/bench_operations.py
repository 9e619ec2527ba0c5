"""The operations of the blocks alone, at the shapes that a network really calls them with."""

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
from correlation_aware.bench.contenders import REFERENCE, Skipped, first_line
from correlation_aware.bench.machine import Ceilings
from correlation_aware.bench.timing import Call, Captured, take_turns
from correlation_aware.ops import Backend, get_backend, set_backend

__all__ = ["FORMS", "OPERATIONS", "OperationRow", "bench_operation", "calls_of"]

OPERATIONS = ("add_layer_norm", "dwconv_gelu", "eoc_attention", "gather_patches")
SETS = 4  # different inputs that calls rotate through
CAPTURED = 20  # calls in a CUDA graph
REPLAYS = 15

# name: backend, compiled or not
FORMS: dict[str, tuple[Backend, bool]] = {
    REFERENCE: ("reference", False),
    "reference-compile": ("reference", True),
    "triton": ("triton", False),
}


@dataclass(frozen=True)
class Operands:
    """A call without its numbers: shapes in place of tensors, the other arguments as they are."""

    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        shapes = (a.shape for a in self.arguments if isinstance(a, _Shaped) and len(a.shape) == 2)
        return " ".join("x".join(map(str, shape)) for shape in dict.fromkeys(shapes))

    def draw(self, seed: int, device: torch.device, dtype: torch.dtype, gradient: bool) -> list[Any]:
        """The arguments with random tensors."""
        generator = torch.Generator().manual_seed(seed)

        def number(shape: tuple[int, ...]) -> Tensor:
            if device.type == "meta":
                return torch.empty(shape, device=device, dtype=dtype)
            return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(gradient)

        return [
            number(a.shape) if isinstance(a, _Shaped) else list(a) if isinstance(a, tuple) else a
            for a in self.arguments
        ]


@dataclass(frozen=True)
class _Shaped:
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OperationRow:
    """One form of an operation at one shape.

    Attributes:
        operation: Of `OPERATIONS`.
        shapes: Of its packed tensors.
        calls: How often a forward pass has it, the template cached.
        form: Of `FORMS`.
        milliseconds: A call, on a GPU without its launch; with `backward` both directions.
        speedup: Milliseconds of the reference over these.
        roofline_share: Of what the ceilings allow for the bytes of inputs and outputs and the
            multiply-accumulates; None for `backward`.
        difference: Largest difference of an output to the reference in float64, relative to the largest
            number.
    """

    operation: str
    shapes: str
    calls: int
    form: str
    milliseconds: float
    speedup: float | None
    roofline_share: float | None
    difference: float


def calls_of(model: str, batch: int) -> dict[Operands, int]:
    """What a forward pass with a cached template calls, and how often. Nothing is computed.

    Args:
        model: Of the zoo, with template and search picture.
        batch: Pairs.

    Raises:
        ValueError: None of the operations is called.
    """
    network: Any = zoo.create_model(model, device="meta").eval()
    sizes, channels = network.sizes, network.in_chans
    template, search = (
        torch.empty(batch, channels, side, side, device="meta")
        for side in (sizes.template_size, sizes.search_size)
    )
    found: Counter[Operands] = Counter()
    with torch.no_grad(), set_backend("reference"):
        state = network.encode_template(template)
        with _recorded(found):
            network(state, search)
    if not found:
        raise ValueError(f"{model} calls none of the operations that can be timed: {', '.join(OPERATIONS)}.")
    return dict(found)


def bench_operation(
    operands: Operands,
    count: int,
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
    forms: Sequence[str] = tuple(FORMS),
    backward: bool = False,
    seconds: float = 0.3,
) -> tuple[list[OperationRow], list[Skipped]]:
    """Times the forms of one call, in turns.

    Args:
        operands: See `calls_of`.
        count: How often the network has it.
        device: Where it runs; on a GPU the calls are captured and replayed.
        dtype: Of the tensors.
        ceilings: Of the device in that dtype.
        forms: Of `FORMS`; those that cannot run are left out with the reason.
        backward: Time the gradients of all inputs too.
        seconds: For each form, on a CPU.
    """
    function = getattr(ops, operands.name)
    inputs = [operands.draw(seed, device, dtype, backward) for seed in range(SETS)]
    exact = [a.detach().double() if isinstance(a, Tensor) else a for a in inputs[0]]
    with set_backend("reference"):
        wanted = _tensors(function(*exact))
    calls: dict[str, Call] = {}
    differences: dict[str, float] = {}
    skipped = []
    for name in forms:
        backend, compiled = FORMS[name]
        # a program for each shape, and none that captures by itself
        run = torch.compile(function, dynamic=False) if compiled else function
        call = _backward_call(run, inputs) if backward else _forward_call(run, inputs)
        try:
            with set_backend(backend):
                found = _tensors(run(*inputs[0]))
                call(0)
        except Exception as error:  # compilers raise what they like
            skipped.append(Skipped(f"{operands.name} {name}", dtype, first_line(error)))
            continue
        differences[name] = max(
            ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, wanted)
        )
        calls[name] = call
    times, uncaptured = _times(calls, device, seconds)
    skipped += [Skipped(f"{operands.name} {name}", dtype, reason) for name, reason in uncaptured.items()]
    floor = None if backward else _roofline(function, operands, ceilings, dtype)
    rows = [
        OperationRow(
            operands.name,
            str(operands),
            count,
            name,
            spent,
            times[REFERENCE] / spent if REFERENCE in times else None,
            None if floor is None else floor / spent,
            differences[name],
        )
        for name, spent in times.items()
    ]
    return rows, skipped


def _times(
    calls: dict[str, Call], device: torch.device, seconds: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Milliseconds, and why some cannot be captured."""
    if device.type == "cpu":
        with set_backend(get_backend()):  # which the forms change
            turns = take_turns(calls, device, seconds, lambda name: set_backend(FORMS[name][0]))
        return {name: spent.median for name, spent in turns.items()}, {}
    captured, refused = {}, {}
    for name, call in calls.items():
        try:
            with set_backend(FORMS[name][0]):
                captured[name] = Captured(call, CAPTURED)
        except RuntimeError as error:
            refused[name] = first_line(error)
    spent: dict[str, list[float]] = {name: [] for name in captured}
    for _ in range(REPLAYS):
        for name, graph in captured.items():
            spent[name].append(graph.milliseconds())
    return {name: statistics.median(times) for name, times in spent.items()}, refused


def _forward_call(run: Callable[..., Any], inputs: Sequence[list[Any]]) -> Call:
    def call(i: int) -> object:
        with torch.no_grad():
            return run(*inputs[i % len(inputs)])

    return call


def _backward_call(run: Callable[..., Any], inputs: Sequence[list[Any]]) -> Call:
    wanted = [[a for a in arguments if isinstance(a, Tensor)] for arguments in inputs]

    def call(i: int) -> object:
        found = _tensors(run(*inputs[i % len(inputs)]))
        return torch.autograd.grad(found, wanted[i % len(inputs)], [t.detach() for t in found])

    return call


def _roofline(
    function: Callable[..., Any], operands: Operands, ceilings: Ceilings, dtype: torch.dtype
) -> float:
    """Milliseconds for inputs read once, outputs written once, and the products."""
    arguments = operands.draw(0, torch.device("meta"), dtype, gradient=False)
    with (
        torch.no_grad(),
        set_backend("reference"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        found = _tensors(function(*arguments))
    numbers = sum(t.numel() for t in (*found, *(a for a in arguments if isinstance(a, Tensor))))
    return ceilings.milliseconds(counter.get_total_flops() / 2, numbers * dtype.itemsize)


def _tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for t in found if isinstance(t, Tensor)]


@contextmanager
def _recorded(found: Counter[Operands]) -> Iterator[None]:
    """Counts the calls of the reference operations inside the block."""

    def recorder(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any) -> Any:
            found[Operands(name, tuple(map(_without_numbers, arguments)))] += 1
            return function(*arguments)

        return record

    modules = {
        name: importlib.import_module(f"correlation_aware.ops.{name}.reference") for name in OPERATIONS
    }
    plain = {name: getattr(module, name) for name, module in modules.items()}
    try:
        for name, module in modules.items():
            setattr(module, name, recorder(name, plain[name]))
        yield
    finally:
        for name, module in modules.items():
            setattr(module, name, plain[name])


def _without_numbers(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return _Shaped(tuple(argument.shape))
    return tuple(argument) if isinstance(argument, list) else argument
