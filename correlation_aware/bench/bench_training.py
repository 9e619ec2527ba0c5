"""Benchmark of a training step, forward and backward, against the reference."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from correlation_aware.bench.bench_models import INPUT_SETS, load
from correlation_aware.bench.contenders import REFERENCE, Skipped, check_contenders, first_line, outputs
from correlation_aware.bench.inputs import random_pairs
from correlation_aware.bench.timing import Call, Times, time_interleaved
from correlation_aware.ops import Backend, get_backend, set_backend

__all__ = ["CONTENDERS", "StepRow", "bench_training"]

# name: (backend, compiled)
CONTENDERS: dict[str, tuple[Backend, bool]] = {
    REFERENCE: ("reference", False),
    "reference-compile": ("reference", True),
    "eager": ("auto", False),
    "eager-triton": ("triton", False),
    "compile-triton": ("triton", True),
}


@dataclass(frozen=True)
class StepRow:
    """Result of one contender.

    Attributes:
        contender: Name of `CONTENDERS`.
        times: Step times in milliseconds.
        pairs_per_second: Throughput of queued steps.
        speedup: Median time of the reference over the median time of this contender.
        difference: Largest difference of a gradient to the reference's after one step on the same images,
            relative to the largest value of that gradient.
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
    contenders: Sequence[str] = tuple(CONTENDERS),
    seconds: float = 5.0,
) -> tuple[list[StepRow], list[Skipped]]:
    """Times forward and backward passes with float32 weights, under autocast for another `dtype`.

    The reference always runs, as the baseline.

    Args:
        name: Name of a two-input model; its weights are random.
        batch: Pairs per step.
        device: Device of the steps.
        dtype: Dtype of autocast; float32 for no autocast.
        contenders: Names of `CONTENDERS`.
        seconds: Total time of the timed steps of each contender.

    Raises:
        ValueError: An unknown contender.
    """
    check_contenders(contenders, CONTENDERS)
    torch.compiler.reset()
    model, _ = load(name, "random")
    pairs = [(z.to(device), x.to(device)) for z, x in random_pairs(model, batch, INPUT_SETS)]
    calls: dict[str, Call] = {}
    differences: dict[str, float] = {}
    skipped = []
    expected: list[Tensor] = []
    with set_backend(get_backend()):  # restores the backend, which contenders change
        for contender, (backend, compiled) in CONTENDERS.items():
            if contender != REFERENCE and contender not in contenders:
                continue
            network = copy.deepcopy(model).to(device).train()
            step = _step(network, compiled, pairs, device, dtype)
            set_backend(backend)
            try:
                step(0)
            except Exception as error:  # compilers raise errors of any type
                skipped.append(Skipped(contender, dtype, first_line(error)))
                continue
            gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
            expected = expected or gradients
            differences[contender] = max(_difference(a, b) for a, b in zip(gradients, expected, strict=True))
            calls[contender] = step
        timings = time_interleaved(calls, device, seconds, lambda key: set_backend(CONTENDERS[key][0]))
    rows = [
        StepRow(
            key,
            times,
            1e3 * batch / times.queued,
            timings[REFERENCE].median / times.median,
            differences[key],
        )
        for key, times in timings.items()
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
        # as in `train track`: on a CPU the backward pass of the fused attention is slow
        attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with autocast, attention:
            results = outputs(run(*pairs[i % len(pairs)]))
        torch.stack([t.float().square().mean() for t in results]).sum().backward()

    return step


def _difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
