"""The targets on a GPU beside what `run_gpu.sh` measured.

    python benchmarks/gpu_targets.py runs/gpu

Reads the JSON files of a folder; what was not measured is shown as a dash. "Ours" is the quickest row that is
neither a reference nor somebody else's code.
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
    for model, milliseconds, theirs, share in zip(MODELS, (0.30, 0.60), (12, 10), (35, 45)):
        one, many = rows(cases, model, 1), rows(cases, model, BATCH)
        ours = quickest(one, is_ours)
        show(f"{model}: batch 1, template cached, ms", ours, "<=", milliseconds)
        other = quickest(one, lambda row: ":" in row["contender"], template=None, dtype="float32")
        show(f"{model}: batch 1 against the other's code, float32", ratio(other, ours), ">=", theirs)
        for batch, found, least in ((1, one, 1.1), (BATCH, many, 1.2)):
            compiled = quickest(found, lambda row: row["contender"] == "reference-max-autotune")
            against = ratio(compiled, quickest(found, is_ours))
            show(f"{model}: batch {batch} against max-autotune", against, ">=", least)
        best = [100 * row["roofline_share"] for row in many if is_ours(row) and row["dtype"] == DTYPE]
        show(f"{model}: batch {BATCH}, share of the roofline, %", max(best, default=None), ">=", share)
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
            print(f"{path.stem} ended with exit code {path.read_text().strip()}: see {path.stem}.log")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def rows(cases: list[dict], model: str, batch: int) -> list[dict]:
    return [r for case in cases if (case["model"], case["batch"]) == (model, batch) for r in case["rows"]]


def is_ours(row: dict) -> bool:
    return not row["contender"].startswith("reference") and ":" not in row["contender"]


def quickest(found: list[dict], wanted, template: str | None = "cached", dtype: str = DTYPE) -> float | None:
    """Milliseconds of the quickest row: its median."""
    times = (
        row["times"]["median"]
        for row in found
        if wanted(row) and row["dtype"] == dtype and template in (None, row["template"])
    )
    return min(times, default=None)


def ratio(slow: float | None, quick: float | None) -> float | None:
    return None if slow is None or quick is None else slow / quick


def show(what: str, measured: float | None, sign: str, target: float) -> None:
    if measured is None:
        print(f"{what:58}{sign:>4}{target:>5g}{'-':>10}")
        return
    reached = measured <= target if sign == "<=" else measured >= target
    print(f"{what:58}{sign:>4}{target:>5g}{measured:>10.2f}  {'reached' if reached else 'MISSED'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
