"""The long checks of docs/reliability.md; tests/test_reliability.py has their short forms.

    python benchmarks/reliability.py fuzz [--minutes 8] [--only TARGET] [--seed 0] [--atheris]
    python benchmarks/reliability.py memory [--frames 10000] [--targets 64] [--default-frames 2000]
    python benchmarks/reliability.py processes [--count 8]
    python benchmarks/reliability.py disk
    python benchmarks/reliability.py kill [--times 20]

Run it in the root of a checkout with the extra `test`, on Linux. Each check prints its figures, and ends with
exit code 1 if something failed.
"""

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
for name, value in (("OMP_NUM_THREADS", "1"), ("OPENCV_LOG_LEVEL", "OFF"), ("OPENCV_FFMPEG_LOGLEVEL", "-8")):
    os.environ.setdefault(name, value)

TARGETS = ("frames", "boxes", "videos", "manifests", "checkpoints", "configurations", "results")


def fuzz(args: argparse.Namespace) -> int:
    """Random inputs, each kind in a process of its own, which may crash."""
    failures = 0
    for target in args.only or TARGETS:
        command = [sys.executable, __file__, "fuzz-one", target, "--minutes", str(args.minutes)]
        command += ["--seed", str(args.seed), *(["--atheris"] if args.atheris else [])]
        code = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2] + sys.path[3:])}
        ).returncode
        failures += code != 0
        if code not in (0, 1):
            print(f"{target}: the process ended with {code}", flush=True)
    return failures


def fuzz_one(args: argparse.Namespace) -> int:
    """One kind of input, until the time is over; the folder of an input that ends the process is left."""
    import logging
    import resource

    if args.atheris:
        import atheris

        with atheris.instrument_imports(include=["correlation_aware"]):
            import fuzz_targets
    else:
        import fuzz_targets
    import cv2
    import torch
    from hypothesis import HealthCheck, Phase, given, seed, settings

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    logging.disable(logging.CRITICAL)  # warnings about the inputs
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # decoders print there
    size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 30),) * 2)
    target, counts, failures = fuzz_targets.TARGETS[args.target], collections.Counter(), {}
    end = time.monotonic() + 60 * args.minutes
    place = Path(tempfile.mkdtemp(prefix=f"fuzz-{args.target}-"))

    def report() -> int:
        done = sum(counts.values())
        print(
            f"{args.target}: {done} inputs, {counts['accepted']} accepted, {counts['refused']} refused, "
            f"{counts['failed']} failed in {len(failures)} ways",
            flush=True,
        )
        shutil.rmtree(place)
        return int(bool(failures))

    def one(value: object) -> None:
        if time.monotonic() > end:
            return
        folder = place / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            counts["accepted" if fuzz_targets.attempt(target, value, folder) else "refused"] += 1
        except AssertionError as error:
            counts["failed"] += 1
            key = str(error).rpartition("(")[2]
            if key not in failures:
                failures[key] = value
                print(f"{args.target}: {error}\n    input: {repr(value)[:2000]}", flush=True)

    if args.atheris:
        test = settings(database=None, deadline=None)(given(target.inputs)(one)).hypothesis.fuzz_one_input

        def feed(data: bytes) -> None:
            test(data)
            if time.monotonic() > end:
                os._exit(report())

        atheris.Setup([sys.argv[0], "-close_fd_mask=2", f"-seed={args.seed + 1}", "-max_len=4096"], feed)
        atheris.Fuzz()
    round_ = 0
    while time.monotonic() < end:
        options = settings(
            max_examples=200,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        seed(1000 * args.seed + round_)(options(given(target.inputs)(one)))()
        round_ += 1
    return report()


def memory(args: argparse.Namespace) -> int:
    """Resident memory over many frames, and over many sessions."""
    import gc

    import numpy as np
    import torch
    from acme_family import MaskedNet

    import correlation_aware as ca

    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(8)]

    def resident() -> float:
        """MiB of the process's own memory, which the system does not drop as it drops pages of files."""
        gc.collect()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    def follow(name: str, tracker: object, targets: int, count: int) -> float:
        boxes = np.column_stack([random.uniform((0, 0), (280, 200), (targets, 2)), np.full((targets, 2), 30)])
        tracker.init(frames[0], boxes if targets > 1 else boxes[0])
        samples, began = [], time.perf_counter()
        for number in range(1, count + 1):
            tracker.update(frames[number % len(frames)])
            if number % 100 == 0 and number > count // 10:  # buffers are allocated in the first frames
                samples.append((number, resident()))
        slope = np.polyfit(*np.transpose(samples), 1)[0] * 1000
        print(
            f"{name}, {targets} targets, {count} frames: {samples[0][1]:.1f} MiB after {samples[0][0]}, "
            f"{samples[-1][1]:.1f} at the end, {slope:+.3f} MiB per 1,000 frames; "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
        return slope

    slopes = []
    if args.frames:
        model = ca.TrackModel.build(MaskedNet(), "cell")  # small, so that most of the work is the tracker's
        off = ca.TrackerConfig(redetect=False)  # all targets are lost in these frames
        tracker = ca.create_tracker(model, device="cpu", config=off)
        slopes.append(follow("a network of two layers", tracker, args.targets, args.frames))
    if args.default_frames:
        tracker = ca.create_tracker(device="cpu", config=ca.TrackerConfig(redetect=False))
        slopes.append(follow("the default tracker", tracker, 1, args.default_frames))
        searching = ca.create_tracker(device="cpu")
        slopes.append(follow("the default tracker, searching", searching, 1, args.default_frames))
    sizes = []
    for _ in range(args.sessions):
        tracker = ca.create_tracker(device="cpu")
        tracker.init(frames[0], (100, 100, 40, 40))
        tracker.update(frames[1])
        del tracker
        sizes.append(resident())
    if sizes:
        texts = (f"{sizes[i - 1]:.1f} MiB after {i}" for i in (10, 20, 50, 100) if i <= len(sizes))
        print(f"sessions: {', '.join(texts)}", flush=True)
    return sum(slope > 1 for slope in slopes) + (len(sizes) > 10 and sizes[-1] - sizes[9] > 16)


def disk(args: argparse.Namespace) -> int:
    """Every job on a file system of 64 KiB to 4 MiB, then with room. It needs root, to mount a tmpfs."""
    import write_jobs

    failures = 0
    for name, job in write_jobs.JOBS.items():
        if args.only and name not in args.only:
            continue
        full, wrong = 0, []
        job.prepare(Path(tempfile.mkdtemp()))
        for size in (16, 64, 256, 1024, 4096):
            place = Path(tempfile.mkdtemp())
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
            subprocess.run(mount, check=True)
            try:
                code = _wait(write_jobs.in_process(lambda: job.run(place)))  # noqa: B023
                try:
                    complete = job.check(place)
                    if code == 2 or (code == 0) != complete:
                        wrong.append(f"{size} KiB: exit code {code}, complete {complete}")
                except Exception as error:
                    wrong.append(f"{size} KiB: {error!r}")
                full += code != 0
                subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
                code = _wait(write_jobs.in_process(lambda: job.run(place)))  # noqa: B023
                if code or not job.check(place):
                    wrong.append(f"{size} KiB, then room: exit code {code}")
            finally:
                subprocess.run(["umount", str(place)], check=True)
                place.rmdir()
        print(f"{name}: full {full} of 5 times; wrong: {wrong or 'nothing'}", flush=True)
        failures += len(wrong)
    return failures


def kill(args: argparse.Namespace) -> int:
    """Every job, killed at random moments, then started again."""
    import random
    import signal

    import write_jobs

    random.seed(args.seed)
    failures = 0
    for name, job in write_jobs.JOBS.items():
        if args.only and name not in args.only:
            continue
        job.prepare(Path(tempfile.mkdtemp()))
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            assert _wait(write_jobs.in_process(lambda: job.run(Path(folder)))) == 0, name  # noqa: B023
            seconds = time.perf_counter() - began
        killed, complete, wrong = 0, 0, []
        for _ in range(args.times):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                process = write_jobs.in_process(lambda: job.run(place))  # noqa: B023
                time.sleep(random.uniform(0, seconds))
                os.kill(process, signal.SIGKILL)
                killed += _wait(process) < 0
                try:
                    complete += job.check(place)
                    code = _wait(write_jobs.in_process(lambda: job.run(place)))  # noqa: B023
                    if code or not job.check(place):
                        wrong.append(f"exit code {code} when started again")
                except Exception as error:
                    wrong.append(repr(error))
        print(
            f"{name} ({seconds:.2f} s): killed {killed} of {args.times} times, results were complete after "
            f"{complete}; wrong: {wrong or 'nothing'}",
            flush=True,
        )
        failures += len(wrong)
    return failures


def processes(args: argparse.Namespace) -> int:
    """The jobs of one folder in several processes that start together."""
    import multiprocessing

    import write_jobs

    failures = 0
    for name in ("export cache", "download", "photographs", "results of eval", "save_pretrained"):
        job = write_jobs.JOBS[name]
        job.prepare(Path(tempfile.mkdtemp()))
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            barrier = multiprocessing.get_context("fork").Barrier(args.count)

            def work() -> None:
                barrier.wait()  # noqa: B023
                job.run(place)  # noqa: B023

            run = [write_jobs.in_process(work) for _ in range(args.count)]
            codes = [_wait(process) for process in run]
            hidden = [path.name for path in place.rglob(".*")]
            right = not any(codes) and job.check(place) and not hidden
            print(
                f"{name}: exit codes {codes}, left over {hidden}: {'right' if right else 'WRONG'}", flush=True
            )
            failures += not right
    return failures


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, function in (("fuzz", fuzz), ("fuzz-one", fuzz_one)):
        command = commands.add_parser(name)
        command.add_argument("--minutes", type=float, default=8.0, help="minutes for each kind of input")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--atheris", action="store_true", help="inputs chosen by coverage")
        if name == "fuzz":
            command.add_argument("--only", action="append", choices=TARGETS)
        else:
            command.add_argument("target", choices=TARGETS)
        command.set_defaults(function=function)
    command = commands.add_parser("memory")
    for option, number in (("frames", 10_000), ("targets", 64), ("default-frames", 2000), ("sessions", 100)):
        command.add_argument(f"--{option}", type=int, default=number, help=f"by default {number}")
    command.set_defaults(function=memory)
    command = commands.add_parser("disk")
    command.add_argument("--only", action="append", help="name of a job of tests/write_jobs.py")
    command.set_defaults(function=disk)
    command = commands.add_parser("kill")
    command.add_argument("--times", type=int, default=20)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--only", action="append", help="name of a job of tests/write_jobs.py")
    command.set_defaults(function=kill)
    command = commands.add_parser("processes")
    command.add_argument("--count", type=int, default=8)
    command.set_defaults(function=processes)
    args = parser.parse_args()
    sys.exit(1 if args.function(args) else 0)


if __name__ == "__main__":
    main()
