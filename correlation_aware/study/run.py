"""Training and measuring the variants of a table, each from the same seed and pairs for the same steps.

A folder has one study: `study.json` says what it is, `results/NAME.seedN.json` is written when a variant is
done, and `runs/NAME.seedN` is the run of the training engine, which resumes by itself.
"""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from correlation_aware._files import check_output_folder, file_lock, read_json, write_text
from correlation_aware.data.pairs import PairSource, Renormalized
from correlation_aware.data.photometric import PhotometricConfig
from correlation_aware.data.stored_pairs import StoredPairs
from correlation_aware.data.videos.readers import Got10k
from correlation_aware.data.videos.sequences import SequenceSet
from correlation_aware.data.videos.video_pairs import VideoConfig, VideoPairs
from correlation_aware.evaluation.synthetic import ClipValidation
from correlation_aware.evaluation.videos import VideoValidation
from correlation_aware.models.contract import Sizes
from correlation_aware.models.profile import profile
from correlation_aware.models.tracker import TrackModel
from correlation_aware.study.scale import at_scale, check_scale
from correlation_aware.study.settings import Setting, table
from correlation_aware.training.config import change, from_mapping
from correlation_aware.training.log import read_log
from correlation_aware.training.losses import best_location_iou
from correlation_aware.training.track import (
    TrackTraining,
    make_track_model,
    make_track_trainer,
    normalized_for,
    open_pairs,
)
from correlation_aware.zoo import create_model

__all__ = [
    "PROCESSES",
    "Plan",
    "pair_iou",
    "read_plan_steps",
    "read_results",
    "run_study",
    "steps_within",
    "training_of",
]

T = TypeVar("T")
Result = dict[str, Any]
Job = tuple["Plan", str, int, Path, str | None]  # plan, setting, seed, folder, device
STOPPED = "The study is stopped; the same command continues it, from its checkpoints."
PAIRS = 16  # batches of 32 pairs of `pair_iou`
TIMED = 4  # steps that are timed, without the first
PROCESSES = multiprocessing.get_context("spawn")  # forked processes cannot use a GPU

_stop_of_pool: Event | None = None  # `stop` of `run_study`, in its processes


@dataclass(frozen=True)
class Plan:
    """What a study trains and measures.

    Attributes:
        table: Name of a table, see `TABLES`.
        training: Configuration of every run: data, optimizer, schedule; model and seed come from the variant.
        only: Names of the settings to train; empty for all.
        seeds: Seeds of weights, pairs and dropout; a variant is trained once with each.
        scale: Name of one of `scale.SCALES`.
        pretrained: Weights that every variant starts from, as `model.pretrained` of a training; None for
            random ones. In `fig8` and `convergence` the setting says how many blocks take them.
        clips: Folders or tar shards of photographs for synthetic clips, with their weights.
        clip_count: Number of clips.
        sequences: Root of annotated sequences in GOT-10k's layout; None for none.
        subset: Subset of the sequences.
        stored: Whether the pairs of a seed are made once, in the folder of the study, for all its variants.
    """

    table: str
    training: TrackTraining
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    scale: str = "small"
    pretrained: str | None = None
    clips: Mapping[str, float] = field(default_factory=dict)
    clip_count: int = 16
    sequences: str | None = None
    subset: str = "val"
    stored: bool = False

    def __post_init__(self) -> None:
        check_scale(self.scale)
        unknown = [name for name in self.only if name not in table(self.table)]
        if unknown:
            raise ValueError(
                f"{self.table} has no setting {', '.join(unknown)}; it has {', '.join(table(self.table))}."
            )
        if not self.clips and self.sequences is None:
            raise ValueError(
                "Nothing to measure on: name photographs for synthetic clips, other than those of the "
                "training (--clips), or annotated sequences (--sequences), or both."
            )
        shared = sorted(set(self.clips) & set(self.training.data.sources))
        if shared:
            raise ValueError(f"{shared[0]} is both trained on and measured on: name other photographs.")
        needs = self.table in ("fig8", "convergence")
        if needs and self.pretrained is None:
            raise ValueError(
                f"{self.table} compares random with pretrained weights: name these with --start. For the "
                "small scale train a classifier, see docs/study.md."
            )

    def settings(self) -> dict[str, Setting]:
        """The settings to train, at the scale of the study, by name."""
        chosen = {name: s for name, s in table(self.table).items() if not self.only or name in self.only}
        return {name: at_scale(s, self.scale) for name, s in chosen.items()}

    def identity(self) -> dict[str, Any]:
        """What all results of a folder have in common, as JSON has it."""
        training = asdict(self.training)
        del training["model"], training["run"]["seed"]
        facts = {
            "table": self.table,
            "scale": self.scale,
            "pretrained": self.pretrained,
            "clips": dict(self.clips),
            "clip_count": self.clip_count,
            "sequences": self.sequences,
            "subset": self.subset,
            "training": training,
        } | ({"stored": True} if self.stored else {})
        return cast(dict[str, Any], json.loads(json.dumps(facts)))


def training_of(plan: Plan, setting: Setting, seed: int) -> TrackTraining:
    """The configuration of one run."""
    model: dict[str, Any] = {"name": setting.model, "overrides": dict(setting.overrides)}
    if setting.pretrained_blocks != 0 and plan.pretrained is not None:
        model |= {"pretrained": plan.pretrained, "pretrained_blocks": setting.pretrained_blocks}
    base = cast(dict[str, Any], asdict(plan.training))
    base["model"] = model
    base["run"]["seed"] = seed
    return from_mapping(TrackTraining, base)


def steps_within(plan: Plan, minutes: float, processes: int = 1, device: str | None = None) -> int:
    """The number of steps, equal for all variants, that a study of about so many minutes has.

    A few steps of every variant are timed, one process at a time with its part of the threads; measuring is
    not counted.

    Args:
        plan: Study; its `schedule.steps` does not matter.
        minutes: Time of the whole study: all settings and seeds.
        processes: Processes that share the work.
        device: As in `run_study`.

    Raises:
        ValueError: There is not even time for ten steps.
    """
    settings = plan.settings().values()
    processes = min(processes, len(settings) * len(plan.seeds))
    threads, seconds = torch.get_num_threads(), 0.0
    torch.set_num_threads(max(1, threads // processes))
    try:
        for setting in settings:
            changes = [f"schedule.steps={TIMED + 1}", "schedule.warmup=0", "run.log_every=1"]
            config = change(training_of(plan, setting, 0), changes)
            with tempfile.TemporaryDirectory() as folder:
                make_track_trainer(config, folder, device).fit()
                times = [record["seconds"] for record in read_log(Path(folder) / "log.jsonl")]
            seconds += (times[-1] - times[0]) / TIMED
    finally:
        torch.set_num_threads(threads)
    steps = int(60 * minutes * processes / (seconds * len(plan.seeds)))
    if steps < 10:
        raise ValueError(
            f"{minutes:g} minutes are enough for {steps} steps of every variant: one step of all takes "
            f"{seconds:.1f} s. Take more minutes, fewer settings or seeds, or --steps."
        )
    return steps


def run_study(
    plan: Plan,
    folder: str | Path,
    processes: int = 1,
    device: str | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
    stop: Event | None = None,
) -> list[Result]:
    """Trains and measures every variant with every seed that has no result yet.

    A run that was killed goes on from its newest checkpoint. Settings and seeds can be added later.

    Args:
        plan: Study.
        folder: Output folder.
        processes: Processes, each with its part of the threads, that train different variants.
        device: `cpu` to train on the CPU even if there is a GPU.
        on_result: Function called with every new result.
        stop: Event of `PROCESSES` that ends the study once it is set: trainings stop after their current step
            with a checkpoint, and no other variant is started.

    Returns:
        All results of the folder.

    Raises:
        ValueError: The folder has another study; nothing is written.
        RuntimeError: Another process runs a study in the folder, a loss that is not finite, or `stop`.
    """
    folder = Path(folder)
    check_output_folder(folder)
    _check_identity(plan, folder)
    (folder / "results").mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "study.lock", text=str(os.getpid())) as free:
        if not free:
            raise RuntimeError(f"Another process runs the study in {folder}. Wait for it, or stop it.")
        write_text(json.dumps(plan.identity(), indent=2) + "\n", folder / "study.json")
        jobs: list[Job] = [
            (plan, name, seed, folder, device)
            for seed in plan.seeds
            for name in plan.settings()
            if not _result_path(folder, name, seed).is_file()
        ]
        if plan.stored:
            _store_pairs(jobs, folder, processes, stop)
        for result in _each(_run_one, jobs, processes, stop):
            on_result(result)
        shutil.rmtree(folder / "pairs", ignore_errors=True)  # all variants have their results
    return read_results(folder)


def read_results(folder: str | Path) -> list[Result]:
    """The finished results of a folder, in the order of the table, then of the seeds.

    Raises:
        ValueError: There is no study, no result yet, or a file that is no result.
    """
    if not (Path(folder) / "study.json").is_file():
        raise ValueError(f"{folder} has no study: there is no study.json. `study run` makes one.")
    results = [_read_result(path) for path in sorted(Path(folder).glob("results/*.json"))]
    if not results:
        raise ValueError(
            f"The study in {folder} has no result yet; `study run` with the same options goes on."
        )
    return sorted(results, key=lambda r: (list(table(r["table"])).index(r["setting"]), r["seed"]))


def _read_result(path: Path) -> Result:
    content = read_json(path)
    keys = {"table": str, "setting": str, "seed": int}
    if not isinstance(content, dict) or any(type(content.get(key)) is not kind for key, kind in keys.items()):
        raise ValueError(f"{path} is not a result of a study: it has no {', '.join(keys)}.")
    if content["setting"] not in table(content["table"]):
        raise ValueError(f"{path}: {content['table']} has no setting {content['setting']!r}.")
    return content


def read_plan_steps(folder: str | Path) -> int | None:
    """Steps of the study in a folder; None if there is none.

    Raises:
        ValueError: A folder with other files.
    """
    identity = _read_identity(Path(folder))
    return int(identity["training"]["schedule"]["steps"]) if identity else None


def _each(
    function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], processes: int, stop: Event | None
) -> Iterable[T]:
    """The result of the function for every job, in processes that each have their part of the threads."""
    processes = min(processes, len(jobs))
    if processes <= 1:
        yield from (function(*job, stop) for job in jobs)
        return
    share = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, PROCESSES, _start_process, (share, stop)) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_process(threads: int, stop: Event | None) -> None:
    """Prepares a process of the pool. Its first Ctrl-C is for the parent, which sets `stop`."""
    global _stop_of_pool
    _stop_of_pool = stop
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, lambda number, frame: signal.signal(signal.SIGINT, signal.SIG_DFL))


def _is_stopped(stop: Event | None) -> bool:
    """Whether the study is to stop, or a process of the pool has lost its parent."""
    stop, parent = stop or _stop_of_pool, multiprocessing.parent_process()
    return (stop is not None and stop.is_set()) or (parent is not None and not parent.is_alive())


def _store_pairs(jobs: Sequence[Job], folder: Path, processes: int, stop: Event | None) -> None:
    """Makes the pairs of every seed and image size, if they are not there yet."""
    for plan, name, seed, _, _ in jobs:
        config = training_of(plan, plan.settings()[name], seed)
        model = create_model(config.model.name, device="meta", **config.model.overrides)
        sizes = cast(TrackModel, model).sizes
        path, steps, size = _pairs_folder(folder, sizes, seed), config.schedule.steps, config.data.batch_size
        if StoredPairs.is_complete(path):
            continue
        shutil.rmtree(path, ignore_errors=True)
        StoredPairs.create(path, steps, size, sizes)
        parts = [(config, path, part, processes) for part in range(processes)]
        (names, *_) = list(_each(_fill_part, parts, processes, stop))
        StoredPairs.finish(path, names)


def _fill_part(
    config: TrackTraining, path: Path, part: int, parts: int, stop: Event | None = None
) -> list[str]:
    """Writes every `parts`-th batch of a run; returns the names of its sources."""
    source = open_pairs(config, make_track_model(config.model), "cpu")
    if isinstance(source, Renormalized):
        source = source.source

    def numbers() -> Iterable[int]:
        for number in range(part, config.schedule.steps, parts):
            if _is_stopped(stop):
                raise RuntimeError(STOPPED)
            yield number

    StoredPairs.fill(path, source, numbers())
    return list(getattr(source, "names", ()))


def _pairs_folder(folder: Path, sizes: Sizes, seed: int) -> Path:
    return folder / "pairs" / "-".join([f"seed{seed}", *(f"{value:g}" for value in astuple(sizes))])


def _run_one(
    plan: Plan, name: str, seed: int, folder: Path, device: str | None, stop: Event | None = None
) -> Result:
    """Trains, measures and writes the result of one variant."""
    if _is_stopped(stop):
        raise RuntimeError(STOPPED)
    setting = plan.settings()[name]
    config = training_of(plan, setting, seed)
    run = folder / "runs" / f"{name}.seed{seed}"
    pairs: PairSource | None = None
    if plan.stored:
        model = make_track_model(config.model)
        pairs = normalized_for(model, StoredPairs(_pairs_folder(folder, model.sizes, seed)))
    trainer = make_track_trainer(config, run, device, pairs)

    def on_step(step: int) -> None:
        if _is_stopped(stop):
            trainer.request_stop()

    if not trainer.fit(resume=True, on_step=on_step).finished:
        raise RuntimeError(STOPPED)
    model = cast(TrackModel, trainer.published().eval())
    scores: dict[str, float] = {}
    if plan.clips:
        scores |= ClipValidation(plan.clips, plan.clip_count)(model)
    if plan.sequences is not None:
        sequences = Got10k(plan.sequences, plan.subset)
        scores |= VideoValidation([sequences])(model)
        scores["pair_iou"] = pair_iou(model, sequences, config.data.frames)
    costs = profile(create_model(setting.model, device="meta", **setting.overrides))
    log = [record for record in read_log(run / "log.jsonl") if "loss" in record]
    seconds, count = log[-1]["seconds"], config.schedule.steps * config.data.batch_size
    result = {
        "table": plan.table,
        "setting": name,
        "seed": seed,
        "pretrained": plan.pretrained if setting.pretrained_blocks != 0 else None,
        "steps": config.schedule.steps,
        "pairs": count,
        "pairs_per_s": round(count / seconds, 2) if seconds else None,
        "params": costs.params,
        "macs": costs.macs,
        **scores,
        "curve": [{key: r[key] for key in ("step", "loss", "iou")} for r in log],
    }
    write_text(json.dumps(result) + "\n", _result_path(folder, name, seed))
    return result


@torch.no_grad()
def pair_iou(model: TrackModel, sequences: SequenceSet, frames: VideoConfig) -> float:
    """Mean IoU of the box at the location with the highest score, over 512 pairs of frames.

    Pairs are made as those of the training, without its photometric augmentation and negative pairs. One
    frame does not depend on the one before: a network that is not yet good enough to track, which loses its
    target in the first frames, has a figure that says how far it is.

    Args:
        model: `_track` model.
        sequences: Annotated videos.
        frames: Gap and jitter of the pairs.
    """
    plain = PhotometricConfig(**{item.name: 0.0 for item in fields(PhotometricConfig)})
    config, device = replace(frames, negative=0.0, photometric=plain), next(model.parameters()).device
    pairs = normalized_for(model, VideoPairs([(sequences, 1.0)], 32, model.sizes, 0, device, config))
    ious = []
    for number in range(PAIRS):
        batch = pairs.batch(number)
        output = model(batch.template, batch.search)
        ious.append(float(best_location_iou(output, batch.boxes, batch.positive)))
    return sum(ious) / len(ious)


def _result_path(folder: Path, name: str, seed: int) -> Path:
    return folder / "results" / f"{name}.seed{seed}.json"


def _read_identity(folder: Path) -> dict[str, Any] | None:
    """`Plan.identity` of the study in a folder; None for an empty or new one."""
    path = folder / "study.json"
    if path.is_file():
        identity = read_json(path)
        try:
            int(identity["training"]["schedule"]["steps"])
        except (TypeError, LookupError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{path} does not describe a study: training.schedule.steps is missing."
            ) from error
        return cast(dict[str, Any], identity)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} has files, but no study. Name an empty or new folder.")
    return None


def _check_identity(plan: Plan, folder: Path) -> None:
    """Raises ValueError if the folder has a study that differs in more than settings and seeds."""
    identity = _read_identity(folder)
    if identity is None:
        return
    before, now = _flat(identity), _flat(plan.identity())
    different = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if different:
        key = different[0]
        raise ValueError(
            f"{folder} has a study with {key}={before.get(key)!r}, not {now.get(key)!r}: results of two "
            "studies do not mix. Continue with the same options, or name another folder."
        )


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
