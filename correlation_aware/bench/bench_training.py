"""A training step, forward and backward, against the plain reference."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from correlation_aware.bench.bench_models import SETS, load
from correlation_aware.bench.contenders import REFERENCE, Skipped, first_line, outputs
from correlation_aware.bench.inputs import drawn_pairs
from correlation_aware.bench.timing import Call, Times, take_turns
from correlation_aware.ops import Backend, get_backend, set_backend

__all__ = ["STEPS", "StepRow", "bench_training"]

# name: backend of the kernels, compiled or not
STEPS: dict[str, tuple[Backend, bool]] = {
    REFERENCE: ("reference", False),
    "reference-compile": ("reference", True),
    "eager": ("auto", False),
    "eager-triton": ("triton", False),
    "compile-triton": ("triton", True),
}


@dataclass(frozen=True)
class StepRow:
    """One way to do a step.

    Attributes:
        contender: A name of `STEPS`.
        times: Milliseconds a step.
        pairs_per_second: Where nobody waits between steps.
        speedup: Milliseconds of the reference over these.
        difference: Largest difference of any gradient to the reference's, relative to that gradient's largest
            number, after one step on the same pictures.
    """

    contender: str
    times: Times
    pairs_per_second: float
    speedup: float
    difference: float


def bench_training(
    name: str,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    contenders: Sequence[str] = tuple(STEPS),
    seconds: float = 5.0,
) -> tuple[list[StepRow], list[Skipped]]:
    """Times forward and backward passes of float32 weights, under autocast where `dtype` is another.

    The reference always runs, since the others are compared with it.

    Args:
        name: Of a two-input model; random weights.
        batch: Pairs a step.
        device: Where it runs.
        dtype: Of the products.
        contenders: Names of `STEPS`.
        seconds: For each contender.

    Raises:
        ValueError: An unknown contender.
    """
    unknown = set(contenders) - set(STEPS)
    if unknown:
        raise ValueError(f"There is no contender {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}.")
    torch.compiler.reset()
    model, _ = load(name, "random")
    pairs = [(z.to(device), x.to(device)) for z, x in drawn_pairs(model, batch, SETS)]
    calls: dict[str, Call] = {}
    differences: dict[str, float] = {}
    skipped = []
    wanted: list[Tensor] = []
    with set_backend(get_backend()):  # which contenders change
        for contender, (backend, compiled) in STEPS.items():
            if contender != REFERENCE and contender not in contenders:
                continue
            network = copy.deepcopy(model).to(device).train()
            step = _step(network, compiled, pairs, device, dtype)
            set_backend(backend)
            try:
                step(0)
            except Exception as error:  # compilers raise what they like
                skipped.append(Skipped(contender, dtype, first_line(error)))
                continue
            gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
            wanted = wanted or gradients
            differences[contender] = max(_difference(a, b) for a, b in zip(gradients, wanted, strict=True))
            calls[contender] = step
        times = take_turns(calls, device, seconds, lambda key: set_backend(STEPS[key][0]))
    rows = [
        StepRow(
            key,
            spent,
            1e3 * batch / spent.queued,
            times[REFERENCE].median / spent.median,
            differences[key],
        )
        for key, spent in times.items()
    ]
    return rows, skipped


def _step(
    network: nn.Module,
    compiled: bool,
    pairs: Sequence[tuple[Tensor, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[int], None]:
    run: Any = torch.compile(network, dynamic=False) if compiled else network

    def step(i: int) -> None:
        network.zero_grad(set_to_none=True)
        # on a CPU the fused attention's backward pass is slow: as `train track` does
        attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with autocast, attention:
            found = outputs(run(*pairs[i % len(pairs)]))
        torch.stack([t.float().square().mean() for t in found]).sum().backward()

    return step


def _difference(given: Tensor, right: Tensor) -> float:
    return ((given - right).abs().max() / right.abs().max().clamp(min=1e-12)).item()
