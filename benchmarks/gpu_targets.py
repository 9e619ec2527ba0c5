"""Compares the results of `run_gpu.sh` with the project's speed targets on a GPU.

    python benchmarks/gpu_targets.py runs/gpu

Reads the JSON reports in a folder; a missing measurement is shown as a dash. "Ours" is the fastest row that
is neither a reference nor a `--contender`.
"""

import json
import sys
from pathlib import Path

MODELS = ("sbt_light_track", "sbt_base_track")
DTYPE, BATCH = "bfloat16", 64


def main(folder: Path) -> None:
    cases = [case for path in sorted(folder.glob("model_*.json")) for case in read(path)["cases"]]
    steps = [case for path in sorted(folder.glob("train_*.json")) for case in read(path)["cases"]]
    for path in sorted(folder.glob("*.json"))[:1]:
        machine = read(path)["machine"]
        print(machine["gpu"] or machine["processor"], machine["versions"], sep="\n")
    print(f"{'':58}{'target':>9}{'measured':>10}")
    for model, milliseconds, speedup, share in zip(MODELS, (0.30, 0.60), (12, 10), (35, 45)):
        single, large = rows(cases, model, 1), rows(cases, model, BATCH)
        ours = fastest(single, is_ours)
        show(f"{model}: batch 1, template cached, ms", ours, "<=", milliseconds)
        other = fastest(single, lambda row: ":" in row["contender"], template=None, dtype="float32")
        show(f"{model}: batch 1 against --contender, float32", ratio(other, ours), ">=", speedup)
        for batch, of_batch, minimum in ((1, single, 1.1), (BATCH, large, 1.2)):
            compiled = fastest(of_batch, lambda row: row["contender"] == "reference-max-autotune")
            against = ratio(compiled, fastest(of_batch, is_ours))
            show(f"{model}: batch {batch} against max-autotune", against, ">=", minimum)
        shares = [100 * row["roofline_share"] for row in large if is_ours(row) and row["dtype"] == DTYPE]
        show(f"{model}: batch {BATCH}, share of the roofline, %", max(shares, default=None), ">=", share)
        speedups = [
            row["speedup"]
            for case in steps
            if case["model"] == model and case["dtype"] == DTYPE
            for row in case["rows"]
            if is_ours(row)
        ]
        show(f"{model}: training step against the reference", max(speedups, default=None), ">=", 1.8)
    for path in sorted(folder.glob("*.status")):
        if path.read_text().strip() != "0":
            print(f"{path.stem} failed with exit code {path.read_text().strip()}: see {path.stem}.log")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def rows(cases: list[dict], model: str, batch: int) -> list[dict]:
    return [r for case in cases if (case["model"], case["batch"]) == (model, batch) for r in case["rows"]]


def is_ours(row: dict) -> bool:
    return not row["contender"].startswith("reference") and ":" not in row["contender"]


def fastest(rows: list[dict], matches, template: str | None = "cached", dtype: str = DTYPE) -> float | None:
    """Median milliseconds of the fastest row that matches; None without one."""
    times = (
        row["times"]["median"]
        for row in rows
        if matches(row) and row["dtype"] == dtype and template in (None, row["template"])
    )
    return min(times, default=None)


def ratio(slow: float | None, fast: float | None) -> float | None:
    return None if slow is None or fast is None else slow / fast


def show(label: str, measured: float | None, sign: str, target: float) -> None:
    if measured is None:
        print(f"{label:58}{sign:>4}{target:>5g}{'-':>10}")
        return
    reached = measured <= target if sign == "<=" else measured >= target
    print(f"{label:58}{sign:>4}{target:>5g}{measured:>10.2f}  {'reached' if reached else 'MISSED'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
