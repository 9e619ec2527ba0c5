"""`correlation-aware batch --ray`: the videos of a batch on a Ray cluster, an actor per process."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from correlation_aware._extras import require
from correlation_aware.cli.batch import Batch, Worker
from correlation_aware.cli.eval_processes import Place

if TYPE_CHECKING:
    from correlation_aware.tracking.batch import JobFailure, JobResult

__all__ = ["outcomes_of_cluster"]

RESTARTS = 1  # of an actor whose process or machine ends; the video is tracked again


def outcomes_of_cluster(batch: Batch, processes: int, address: str) -> "Iterator[JobResult | JobFailure]":
    """Tracks through all videos on a Ray cluster.

    Videos and the folder of the results have to have the same paths on all machines.

    Args:
        batch: What is tracked.
        processes: Number of actors. Each takes a CPU, and a GPU where the tracker runs on one.
        address: Address of the cluster, `auto`, or `local` to start one on this machine.

    Yields:
        The outcome of each video, in the order in which they are finished.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: No cluster has that address.
    """
    (ray,) = require("ray")
    from correlation_aware.evaluation.shared_run import POLL
    from correlation_aware.tracking.batch import JobFailure

    first = Worker(batch, Place(0, processes), divide_threads=False)  # says what differs before Ray starts
    device = first.tracker.device.type
    options = replace(batch.options, device=device)
    batch = replace(batch, options=options, output=batch.output.absolute())
    jobs = {job.name: job for job in batch.jobs}
    ray.init(address, log_to_driver=False, **({"num_cpus": processes} if address == "local" else {}))
    try:
        actor: Any = ray.remote(Worker).options(
            num_cpus=1,
            num_gpus=int(device == "cuda"),
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        arguments = batch, Place(0, processes), False
        idle = [actor.remote(*arguments) for _ in range(min(processes, len(jobs)))]
        waiting = list(jobs)[::-1]
        running: dict[Any, tuple[Any, str]] = {}  # actor and video by the reference of the outcome
        while waiting or running:
            while waiting and idle:
                worker, name = idle.pop(), waiting.pop()
                running[worker.track.remote(name)] = worker, name
            (ready,), _ = ray.wait(list(running))
            worker, name = running.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                outcome, worker = JobFailure.of(jobs[name], error), actor.remote(*arguments)
            idle.append(worker)
            if outcome is None:  # another run has claimed it
                waiting.insert(0, name)
                time.sleep(POLL)
            else:
                yield outcome
    finally:
        ray.shutdown()
