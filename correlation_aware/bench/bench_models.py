"""Benchmark of whole networks: latency, throughput, and the fraction of the roofline that they reach."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from correlation_aware import zoo
from correlation_aware.bench.contenders import (
    Contender,
    Skipped,
    first_line,
    make_contenders,
    outputs,
)
from correlation_aware.bench.inputs import random_pairs, real_pairs
from correlation_aware.bench.machine import Ceilings, dtype_name
from correlation_aware.bench.timing import Call, Times, time_interleaved
from correlation_aware.models.profile import Profile, profile
from correlation_aware.ops import get_backend, set_backend
from correlation_aware.runtime.graphs import SessionModel
from correlation_aware.weights.sources import resolve_weights, tags_of

__all__ = ["Case", "Row", "bench_model", "check_model", "load"]

Template = Literal["cached", "encoded"]
INPUT_SETS = 4  # different inputs that calls rotate through


@dataclass(frozen=True)
class Row:
    """Result of one contender in one case.

    Attributes:
        contender: Name of the contender.
        dtype: Dtype of the computation.
        template: `cached` if the template is encoded before, as in tracking; `encoded` if in every call.
        times: Call times in milliseconds.
        pairs_per_second: Throughput of queued calls.
        speedup: Median time of the baseline over the median time of this contender. If the baseline has only
            one of cached and encoded, that timing is used.
        roofline: Lower bound of the call time on this machine, in milliseconds.
        roofline_share: `roofline` over the time of queued calls.
        difference: Largest difference of an output to the reference in float32, relative to the largest value
            of that output; None if the shapes of the outputs differ.
        argmax_kept: Fraction of images whose score map has its maximum at the reference's location; None
            without score maps.
    """

    contender: str
    dtype: str
    template: Template
    times: Times
    pairs_per_second: float
    speedup: float
    roofline: float
    roofline_share: float
    difference: float | None
    argmax_kept: float | None


@dataclass(frozen=True)
class Case:
    """Results of a model at one batch size.

    Attributes:
        model: Name of the model.
        weights: Name of the weights, or `random`.
        search_size: Size of the search image in pixels.
        batch: Pairs per call.
        profile: Parameters and multiply-accumulates of one pair.
        bytes: Lower bound of the bytes moved by a call, by dtype: weights, images and outputs once each.
        images: Number and kind of the images on which outputs were compared: `4 random` or `36 real`.
        against: Name and dtype of the baseline, whose speedup is 1.
        rows: Results, in the order of the contenders.
        skipped: Contenders that could not run.
    """

    model: str
    weights: str
    search_size: int
    batch: int
    profile: Profile
    bytes: dict[str, int]
    images: str
    against: str
    rows: list[Row]
    skipped: list[Skipped]


def load(name: str, weights: str | None = None, search_size: int | None = None) -> tuple[SessionModel, str]:
    """A model in float32 on the CPU, and the name of its weights.

    Args:
        name: Name of a two-input model, with or without a tag, or its folder.
        weights: Tag or file of weights, or `random`. By default those of the tag or folder, else
            installed ones, else random ones; nothing is downloaded for a name without a tag.
        search_size: Size of the search image in pixels; by default the model's.

    Raises:
        ValueError: A classifier, or an unknown name.
    """
    if weights is None and name in zoo.list_models():
        local = bool(tags_of(name)) and resolve_weights(True, name).is_local
        weights = None if local else "random"
    sizes: dict[str, Any] = {} if search_size is None else {"search_size": search_size}
    torch.manual_seed(0)
    if weights == "random":
        model, weights_name = zoo.create_model(name, **sizes), "random"
    else:
        model = zoo.create_model(name, weights or True, **sizes)
        weights_name = str(model.weights_name)
    _check_inputs(name, model)
    return model.eval(), weights_name  # type: ignore[return-value]


def check_model(name: str, weights: str | None = None) -> None:
    """Checks the names of a model and its weights without loading weights.

    Args:
        name: Name of `load`; folders and repositories are not checked.
        weights: Weights of `load`.

    Raises:
        ValueError: A classifier, or an unknown name, tag or weights.
        FileNotFoundError: Weights in a file that does not exist.
    """
    zoo.has_weights(name)  # raises for unknown names and tags
    architecture = name.partition(".")[0]
    if not zoo.is_location(name):
        _check_inputs(name, zoo.create_model(architecture, device="meta"))
    if weights not in (None, "random"):
        resolve_weights(weights, architecture)


def _check_inputs(name: str, model: nn.Module) -> None:
    if not hasattr(model, "encode_template"):
        raise ValueError(
            f"{name} has one input; the benchmark is for networks with a template and a search image."
        )


def bench_model(
    name: str,
    batches: Sequence[int],
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    contenders: Sequence[str],
    *,
    ceilings: Mapping[torch.dtype, Ceilings],
    weights: str | None = None,
    search_size: int | None = None,
    others: Sequence[str] = (),
    against: str | None = None,
    sequences: Path | None = None,
    encoded: bool = True,
    seconds: float = 3.0,
) -> Iterator[Case]:
    """Times a model, one case per batch size; calls that encode the template are timed in the first case.

    Args:
        name: Name of a two-input model.
        batches: Batch sizes.
        device: Device of all contenders.
        dtypes: Dtypes of the built-in contenders.
        contenders: Names of built-in contenders, see `make_contenders`; those that cannot run are skipped.
        ceilings: Peak rates of the device, for every dtype that is used.
        weights: Weights of the model, see `load`.
        search_size: Size of the search image, see `load`.
        others: Contenders of others, see `make_contenders`; their errors are raised.
        against: `NAME` or `NAME@DTYPE` of the baseline; by default the first contender that runs, that is the
            first of `others` or the reference.
        sequences: Folder of annotated sequences whose crops outputs are compared on, at batch size 1; see
            `real_pairs`.
        encoded: Whether to time calls that encode the template too.
        seconds: Total time of the timed calls of each row.

    Raises:
        ValueError: See `load` and `make_contenders`; or `against` does not run on this machine.
    """
    model, weights_name = load(name, weights, search_size)
    costs = profile(model)
    for number, batch in enumerate(batches):
        torch.compiler.reset()  # else programs of earlier cases count towards the recompilation limit
        inputs = random_pairs(model, batch, INPUT_SETS)
        compared = real_pairs(model, sequences) if sequences is not None and batch == 1 else inputs
        with set_backend(get_backend()):  # restores the backend, which contenders change
            expected = _reference(model, compared, device)
            moved_bytes = {t: _bytes(costs, inputs[0], expected[0], t) for t in ceilings}
            entries, skipped = [], []
            for contender in make_contenders(model, device, dtypes, contenders, others):
                if isinstance(contender, Skipped):
                    skipped.append(contender)
                    continue
                try:
                    entry = _Entry(contender, compared, expected, inputs, device, encoded and number == 0)
                except Exception as error:  # compilers and runtimes raise errors of any type
                    if ":" in contender.name:
                        raise
                    skipped.append(Skipped(contender.name, contender.dtype, first_line(error)))
                    continue
                entries.append(entry)
            if not entries:
                reasons = "; ".join(s.reason for s in skipped)
                raise ValueError(f"No contender can run on this machine: {reasons}")
            baseline = entries[0] if against is None else _find(entries, against)
            rows = _rows(entries, batch, device, seconds, costs, ceilings, moved_bytes, baseline)
        images = f"{len(compared) * len(compared[0][0])} {'random' if compared is inputs else 'real'}"
        yield Case(
            name,
            weights_name,
            model.sizes.search_size,
            batch,
            costs,
            {dtype_name(dtype): size for dtype, size in moved_bytes.items()},
            images,
            f"{baseline.contender.name} {dtype_name(baseline.contender.dtype)}",
            rows,
            skipped,
        )


class _Entry:
    """A contender with its inputs; its outputs are compared with the expected ones on construction."""

    def __init__(
        self,
        contender: Contender,
        compared: Sequence[tuple[Tensor, Tensor]],
        expected: Sequence[list[Tensor]],
        inputs: Sequence[tuple[Tensor, Tensor]],
        device: torch.device,
        encoded: bool,
    ) -> None:
        self.contender = contender
        to_device = partial(_to_device, device=device, dtype=contender.input_dtype)
        set_backend(contender.backend)
        actual = []
        with torch.inference_mode():
            for template, search in (to_device(pair) for pair in compared):
                if contender.cached is None or contender.encode is None:
                    returned = contender.pair(template, search)
                else:
                    returned = contender.cached(contender.encode(template), search)
                # cloned because a runtime may overwrite its outputs in the next call
                actual.append([t.float().cpu().clone() for t in outputs(returned)])
        self.difference, self.argmax_kept = _compare(actual, expected)
        timed = [to_device(pair) for pair in inputs]
        self.calls: dict[Template, Call] = {}
        if contender.cached is not None and contender.encode is not None:
            with torch.inference_mode():
                states = [contender.encode(template) for template, _ in timed]
            self.calls["cached"] = _rotate(contender.cached, [(s, x) for s, (_, x) in zip(states, timed)])
        if encoded or not self.calls:
            self.calls["encoded"] = _rotate(contender.pair, timed)


def _rotate(run: Callable[[Any, Tensor], Any], inputs: Sequence[tuple[Any, Tensor]]) -> Call:
    """A call that rotates through the inputs."""

    def call(i: int) -> object:
        with torch.inference_mode():
            return run(*inputs[i % len(inputs)])

    return call


def _rows(
    entries: Sequence[_Entry],
    batch: int,
    device: torch.device,
    seconds: float,
    costs: Profile,
    ceilings: Mapping[torch.dtype, Ceilings],
    moved_bytes: Mapping[torch.dtype, int],
    baseline: _Entry,
) -> list[Row]:
    calls = {(n, template): call for n, e in enumerate(entries) for template, call in e.calls.items()}
    timings = time_interleaved(
        calls, device, seconds, lambda key: set_backend(entries[key[0]].contender.backend)
    )
    rows = []
    for (number, template), times in timings.items():
        contender = entries[number].contender
        macs = costs.cached_macs if template == "cached" else costs.macs
        roofline = ceilings[contender.dtype].milliseconds(batch * macs, moved_bytes[contender.dtype])
        rows.append(
            Row(
                contender.name,
                dtype_name(contender.dtype),
                template,
                times,
                1e3 * batch / times.queued,
                _speedup(times, template, timings, entries.index(baseline)),
                roofline,
                roofline / times.queued,
                entries[number].difference,
                entries[number].argmax_kept,
            )
        )
    return rows


def _find(entries: Sequence[_Entry], against: str) -> _Entry:
    name, _, dtype = against.partition("@")
    for entry in entries:
        if entry.contender.name == name and dtype in ("", dtype_name(entry.contender.dtype)):
            return entry
    running = ", ".join(f"{e.contender.name}@{dtype_name(e.contender.dtype)}" for e in entries)
    raise ValueError(f"--against {against!r} does not run on this machine; there are {running}.")


def _speedup(times: Times, template: str, timings: Mapping[Any, Times], baseline: int) -> float:
    """Speedup over the baseline; if that has only one of cached and encoded, that timing is used."""
    keys = [(baseline, kind) for kind in (template, "encoded", "cached")]
    return next(timings[key] for key in keys if key in timings).median / times.median


@torch.no_grad()
def _reference(
    model: SessionModel, pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device
) -> list[list[Tensor]]:
    """Outputs of the reference in float32 for every pair, on the CPU."""
    set_backend("reference")
    model.to(device)
    results = [[t.cpu() for t in outputs(model(*_to_device(p, device, torch.float32)))] for p in pairs]
    model.to("cpu")
    return results


def _compare(
    actual: Sequence[list[Tensor]], expected: Sequence[list[Tensor]]
) -> tuple[float | None, float | None]:
    """`Row.difference` and `Row.argmax_kept` of the outputs for every pair."""
    largest, kept, maps = 0.0, 0, 0
    for ours, reference in zip(actual, expected):
        if [t.shape for t in ours] != [t.shape for t in reference]:
            return None, None
        for a, b in zip(ours, reference):
            difference = ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()
            largest = max(largest, difference) if difference == difference else float("nan")
        if reference[0].ndim == 3:  # scores (B, H, W)
            kept += int((ours[0].flatten(1).argmax(1) == reference[0].flatten(1).argmax(1)).sum())
            maps += len(reference[0])
    return largest, kept / maps if maps else None


def _to_device(
    pair: tuple[Tensor, Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return pair[0].to(device, dtype), pair[1].to(device, dtype)


def _bytes(costs: Profile, pair: tuple[Tensor, Tensor], results: list[Tensor], dtype: torch.dtype) -> int:
    """Bytes of weights, images and outputs."""
    return dtype.itemsize * (costs.params + sum(t.numel() for t in (*pair, *results)))
