"""Networks against each other in one run: latency, throughput, share of what the machine could do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from correlation_aware import zoo
from correlation_aware.bench.contenders import (
    Contender,
    Skipped,
    first_line,
    make_contenders,
    outputs,
)
from correlation_aware.bench.inputs import drawn_pairs, real_pairs
from correlation_aware.bench.machine import Ceilings
from correlation_aware.bench.timing import Call, Times, take_turns
from correlation_aware.models.profile import Profile, profile
from correlation_aware.ops import get_backend, set_backend
from correlation_aware.runtime.graphs import SessionModel
from correlation_aware.weights import resolve_weights

__all__ = ["Case", "Row", "bench_model", "load"]

Template = Literal["cached", "encoded"]
SETS = 4  # different inputs that calls rotate through


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    Attributes:
        contender: Its name.
        dtype: It computes in.
        template: `cached`: encoded before, as in tracking; `encoded`: with every pair.
        times: Milliseconds a call.
        pairs_per_second: Where nobody waits between calls.
        speedup: Milliseconds of the contender that all are compared with, over these. Where that one has only
            one of the two forms of `template`, that form counts.
        roofline: Milliseconds that the machine needs at least.
        roofline_share: `roofline` over the milliseconds of queued calls.
        difference: Largest difference to the reference in float32, relative to the largest number of that
            output; None where the outputs are not of the same shapes.
        argmax_kept: Share of the pictures whose best cell is the reference's; None without score maps.
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
    """A model at one batch size.

    Attributes:
        model: Its name.
        weights: What they are: `random`, or their tag.
        search_size: Side of the search picture in pixels.
        batch: Pairs a call.
        profile: Parameters and multiply-accumulates of one pair.
        bytes: By dtype, what a call must move at least: weights, pictures and outputs, each once.
        pictures: `drawn`, or the folder of real crops, and how many were compared.
        against: Whose time is 1x.
        rows: In the order of the contenders.
        skipped: Who could not run, and why.
    """

    model: str
    weights: str
    search_size: int
    batch: int
    profile: Profile
    bytes: dict[str, int]
    pictures: str
    against: str
    rows: list[Row]
    skipped: list[Skipped]


def load(name: str, weights: str | None = None, search_size: int | None = None) -> tuple[SessionModel, str]:
    """A model in float32 on the CPU, and what its weights are.

    Args:
        name: Of the zoo, with template and search picture.
        weights: Tag or file, or `random`; by default those that the package brings, else random ones.
        search_size: Side of the search picture in pixels; by default the model's.

    Raises:
        ValueError: A classifier, or an unknown name.
    """
    entry = None if weights == "random" or not zoo.has_weights(name) else resolve_weights(True, name).entry
    bundled = entry is not None and entry.source == "bundled"
    sizes: dict[str, Any] = {} if search_size is None else {"search_size": search_size}
    torch.manual_seed(0)
    if weights == "random" or (weights is None and not bundled):
        model, described = zoo.create_model(name, **sizes), "random"
    else:
        model = zoo.create_model(name, weights or True, **sizes)
        described = str(model.weights_name)
    if not hasattr(model, "encode_template"):
        raise ValueError(
            f"{name} has one input; the benchmark is for networks of a template and a search picture."
        )
    return model.eval(), described  # type: ignore[return-value]


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
    """Times a model, a case for each batch size; the template is also encoded anew at the first of them.

    Args:
        name: Of a two-input model.
        batches: Batch sizes.
        device: Where all run.
        dtypes: In which each of `contenders` runs.
        contenders: See `make_contenders`; these are skipped where they cannot run.
        ceilings: Of each dtype that occurs.
        weights: See `load`.
        search_size: See `load`.
        others: See `make_contenders`; an error of theirs is raised.
        against: `NAME` or `NAME@DTYPE` of the contender that the others are compared with; by default the
            first that runs, which is the first of `others` or the reference.
        sequences: Folder of real crops to compare outputs on, at batch 1; see `real_pairs`.
        encoded: Whether to time calls that encode the template as well.
        seconds: For each row.

    Raises:
        ValueError: See `load` and `make_contenders`; or `against` does not run here.
    """
    model, described = load(name, weights, search_size)
    costs = profile(model)
    for position, batch in enumerate(batches):
        torch.compiler.reset()  # programs of the case before would count against the limit of programs
        inputs = drawn_pairs(model, batch, SETS)
        seen = real_pairs(model, sequences) if sequences is not None and batch == 1 else inputs
        with set_backend(get_backend()):  # which contenders change
            wanted = _reference(model, seen, device)
            moved = {t: _bytes(costs, inputs[0], wanted[0], t) for t in ceilings}
            entries, skipped = [], []
            for made in make_contenders(model, device, dtypes, contenders, others):
                if isinstance(made, Skipped):
                    skipped.append(made)
                    continue
                try:
                    entry = _Entry(made, seen, wanted, inputs, device, encoded and position == 0)
                except Exception as error:  # compilers and runtimes raise what they like
                    if ":" in made.name:
                        raise
                    skipped.append(Skipped(made.name, made.dtype, first_line(error)))
                    continue
                entries.append(entry)
            if not entries:
                raise ValueError(f"No contender can run here: {'; '.join(s.reason for s in skipped)}")
            rival = entries[0] if against is None else _find(entries, against)
            rows = _rows(entries, batch, device, seconds, costs, ceilings, moved, rival)
        kind = f"{len(seen) * len(seen[0][0])} {'drawn' if seen is inputs else 'real'}"
        by_name = {_short(dtype): size for dtype, size in moved.items()}
        first = f"{rival.contender.name} {_short(rival.contender.dtype)}"
        yield Case(
            name, described, model.sizes.search_size, batch, costs, by_name, kind, first, rows, skipped
        )


class _Entry:
    """A contender with its inputs, compared with the reference when it is made."""

    def __init__(
        self,
        contender: Contender,
        seen: Sequence[tuple[Tensor, Tensor]],
        wanted: Sequence[list[Tensor]],
        inputs: Sequence[tuple[Tensor, Tensor]],
        device: torch.device,
        encoded: bool,
    ) -> None:
        self.contender = contender
        place = partial(_place, device=device, dtype=contender.input_dtype)
        set_backend(contender.backend)
        found = []
        with torch.inference_mode():
            for template, search in (place(pair) for pair in seen):
                if contender.cached is None or contender.encode is None:
                    given = contender.pair(template, search)
                else:
                    given = contender.cached(contender.encode(template), search)
                # a runtime may write its next outputs where these are
                found.append([t.float().cpu().clone() for t in outputs(given)])
        self.difference, self.argmax_kept = _compare(found, wanted)
        held = [place(pair) for pair in inputs]
        self.calls: dict[Template, Call] = {}
        if contender.cached is not None and contender.encode is not None:
            with torch.inference_mode():
                states = [contender.encode(template) for template, _ in held]
            self.calls["cached"] = _calls(contender.cached, [(s, x) for s, (_, x) in zip(states, held)])
        if encoded or not self.calls:
            self.calls["encoded"] = _calls(contender.pair, held)


def _calls(run: Callable[[Any, Tensor], Any], inputs: Sequence[tuple[Any, Tensor]]) -> Call:
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
    moved: Mapping[torch.dtype, int],
    rival: _Entry,
) -> list[Row]:
    calls = {(n, template): call for n, e in enumerate(entries) for template, call in e.calls.items()}
    times = take_turns(calls, device, seconds, lambda key: set_backend(entries[key[0]].contender.backend))
    rows = []
    for (number, template), spent in times.items():
        contender = entries[number].contender
        macs = costs.cached_macs if template == "cached" else costs.macs
        roofline = ceilings[contender.dtype].milliseconds(batch * macs, moved[contender.dtype])
        rows.append(
            Row(
                contender.name,
                _short(contender.dtype),
                template,
                spent,
                1e3 * batch / spent.queued,
                _speedup(spent, template, times, entries.index(rival)),
                roofline,
                roofline / spent.queued,
                entries[number].difference,
                entries[number].argmax_kept,
            )
        )
    return rows


def _find(entries: Sequence[_Entry], against: str) -> _Entry:
    name, _, dtype = against.partition("@")
    for entry in entries:
        if entry.contender.name == name and dtype in ("", _short(entry.contender.dtype)):
            return entry
    running = ", ".join(f"{e.contender.name}@{_short(e.contender.dtype)}" for e in entries)
    raise ValueError(f"--against {against!r} does not run here; what runs is {running}.")


def _speedup(spent: Times, template: str, times: Mapping[Any, Times], rival: int) -> float:
    """A rival that has only one of the two forms is compared as it is."""
    other = next(times[rival, form] for form in (template, "encoded", "cached") if (rival, form) in times)
    return other.median / spent.median


@torch.no_grad()
def _reference(
    model: SessionModel, pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device
) -> list[list[Tensor]]:
    set_backend("reference")
    model.to(device)
    found = [[t.cpu() for t in outputs(model(*_place(p, device, torch.float32)))] for p in pairs]
    model.to("cpu")
    return found


def _compare(
    found: Sequence[list[Tensor]], wanted: Sequence[list[Tensor]]
) -> tuple[float | None, float | None]:
    worst, kept, maps = 0.0, 0, 0
    for given, right in zip(found, wanted):
        if [t.shape for t in given] != [t.shape for t in right]:
            return None, None
        for a, b in zip(given, right):
            difference = ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()
            worst = max(worst, difference) if difference == difference else float("nan")
        if right[0].ndim == 3:  # scores (B, H, W)
            kept += int((given[0].flatten(1).argmax(1) == right[0].flatten(1).argmax(1)).sum())
            maps += len(right[0])
    return worst, kept / maps if maps else None


def _place(pair: tuple[Tensor, Tensor], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return pair[0].to(device, dtype), pair[1].to(device, dtype)


def _bytes(costs: Profile, pair: tuple[Tensor, Tensor], found: list[Tensor], dtype: torch.dtype) -> int:
    return dtype.itemsize * (costs.params + sum(t.numel() for t in (*pair, *found)))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
