#!/usr/bin/env bash
# Runs all tests and benchmarks that need a CUDA GPU, from a checkout, without a network:
#
#     benchmarks/run_gpu.sh [PART...]        # tests sanitizer models tracker train ops autotune; all by default
#
# Most of the time is compilation: of the kernels, which later runs on the same machine need not repeat, and by
# torch.compile. Parts that need the most come last.
#
# Logs and reports go to $OUT (runs/gpu); the table of targets is printed last. A part that reaches its time limit
# keeps the results so far. Variables:
#     OUT        output folder
#     LIMIT      time limit of the whole script in seconds, 900 by default
#     CONTENDER  module:function of code to compare with at batch 1; its folder must be on PYTHONPATH
#     DEVICE     cuda by default; cpu tests the script itself, with tiny models
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-runs/gpu} LIMIT=${LIMIT:-900} DEVICE=${DEVICE:-cuda} CONTENDER=${CONTENDER:-}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
parts=("$@")
[ $# -gt 0 ] || parts=(tests sanitizer models tracker train ops autotune)

python3 - "$DEVICE" <<'PYTHON' || exit 1
import importlib.util
import sys

names = ("torch", "triton", "timm", "numpy", "cv2", "safetensors", "huggingface_hub", "typer", "rich", "pytest")
if missing := [name for name in names if importlib.util.find_spec(name) is None]:
    sys.exit(f"Missing packages: {', '.join(missing)}. Install them first.")
import torch

if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("PyTorch finds no CUDA GPU; DEVICE=cpu tests the script without one.")
PYTHON

# limit NAME SECONDS COMMAND...: runs a command with a log, for at most SECONDS or the rest of LIMIT
limit() {
    local name=$1 seconds=$2 left=$((LIMIT - SECONDS)) status
    shift 2
    if [ "$left" -lt 10 ]; then
        echo "== $name: skipped, no time left"
        return
    fi
    echo "== $name: $*"
    timeout --signal=INT --kill-after=10 "$((seconds < left ? seconds : left))" "$@" 2>&1 | tee "$OUT/$name.log"
    status=${PIPESTATUS[0]}
    echo "== $name: exit code $status, $SECONDS s since the start"
    echo "$status" > "$OUT/$name.status"
}
bench() { python3 -m correlation_aware bench "$@" --device "$DEVICE"; }
export -f bench
export DEVICE

if [ "$DEVICE" = cuda ]; then
    nvidia-smi > "$OUT/nvidia-smi.txt" 2>&1 || true
    default=siam_lite0_ca_track light=sbt_light_track base=sbt_base_track few=1 many=64 seconds=1
    train="$light $base" models="$default $light $base"
    operations=reference,reference-compile,triton steps="eager-triton compile-triton"
    tests=$(ls tests/test_ops*.py tests/test_*cuda*.py 2> /dev/null)
    contenders='reference,eager,eager-triton,cudagraph*' tuned=reference-max-autotune
    runtimes=eager,cudagraph,cudagraph-triton
    python3 -c "import xdist" 2> /dev/null && tests="-n 4 $tests"  # the kernels of four tests at a time are compiled
else
    default=sbt_test_track light=sbt_test_track base=sbt_test_track few=1 many=2 seconds=0.05
    train=$light models=$light
    operations=reference tests="tests/test_bench.py -k alternation" steps=eager
    contenders=reference,eager runtimes=eager tuned=reference
fi

for part in "${parts[@]}"; do
    case $part in
    tests)
        limit tests 240 python3 -m pytest -q --maxfail=20 -m "not slow" $tests ;;
    ops)
        limit ops_light 60 bash -c "bench ops $light --batch $few --dtype bfloat16 --contenders $operations --json '$OUT/ops_light.json'"
        limit ops_base 60 bash -c "bench ops $base --batch $many --dtype bfloat16 --contenders $operations --json '$OUT/ops_base.json'" ;;
    models)
        limit models 180 bash -c "bench model $models --batch $few,$many --dtype bfloat16 --no-encoded \
            --contenders '$contenders' --weights random --seconds $seconds --json '$OUT/model_all.json'"
        [ -z "$CONTENDER" ] || limit contender 60 bash -c "bench model $train --dtype float32,bfloat16 --no-encoded \
            --contenders '$contenders' --contender $CONTENDER --against reference --weights random --seconds $seconds \
            --json '$OUT/model_contender.json'" ;;
    autotune)
        limit autotune 240 bash -c "bench model $train --batch $few,$many --dtype bfloat16 --no-encoded \
            --contenders '$tuned' --weights random --seconds $seconds --json '$OUT/model_autotune.json'" ;;
    train)
        for step in $steps; do
            for model in $train; do
                limit "train_${model}_$step" 90 bash -c "bench train $model --batch $many --dtype bfloat16 \
                    --contenders $step --seconds $seconds --json '$OUT/train_${model}_$step.json'"
            done
        done ;;
    tracker)
        limit tracker 90 bash -c "bench tracker $default --targets 1,2,4,8 --dtype bfloat16 --runtimes '$runtimes' \
            --json '$OUT/tracker.json'" ;;
    sanitizer)
        if command -v compute-sanitizer > /dev/null; then
            limit sanitizer 150 compute-sanitizer --tool memcheck --error-exitcode 9 \
                python3 benchmarks/touch_kernels.py
        else
            echo "== sanitizer: skipped, compute-sanitizer is not installed"
        fi ;;
    *)
        echo "There is no part $part; there are tests, sanitizer, models, tracker, train, ops, autotune."
        exit 2 ;;
    esac
done
echo
python3 benchmarks/gpu_targets.py "$OUT"
