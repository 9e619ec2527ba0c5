"""Milliseconds a pair for the networks of the zoo and for the plain form of the same mathematics.

    python benchmarks/model_speed.py [--models sbt_light sbt_base] [--device cpu] [--json out.json]

"cached" is the cost of a frame once the template is encoded. On a CPU onnxruntime and OpenVINO compete where
they are installed, in float32 but for "bf16". The contenders take turns in one run, so that whatever else the
machine does hits all of them alike; medians are reported.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from plain_sbt import PlainSBT
from torch import nn

import correlation_aware as ca
from correlation_aware.runtime.session import InferenceSession


def contenders(name: str, device: str) -> tuple[dict[str, Callable[[], torch.Tensor]], float]:
    """What to time, and the largest difference between the outputs."""
    torch.manual_seed(0)
    net = ca.create_model(name).eval().to(device)
    plain = PlainSBT(net.config).eval().to(device)
    plain.load_ours(net.state_dict())
    template = torch.randn(1, 3, net.config.template_size, net.config.template_size, device=device)
    search = torch.randn(1, 3, net.config.search_size, net.config.search_size, device=device)
    state = net.encode_template(template)
    runs = {
        "plain": lambda: plain(template, search),
        "ours": lambda: net(template, search),
        "ours, cached": lambda: net(state, search),
    }
    if device == "cpu":
        runs |= sessions(net, template, search)
    exact = (run() for run_name, run in runs.items() if "bf16" not in run_name)
    difference = max((runs["plain"]() - output).abs().max().item() for output in exact)
    return runs, difference


def sessions(
    net: nn.Module, template: torch.Tensor, search: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    """The runtimes that are installed, with the template cached."""
    runs = {}
    for name, runtime, dtype in (
        ("onnx, cached", "onnx", torch.float32),
        ("openvino, cached", "openvino", torch.float32),
        ("openvino bf16, cached", "openvino", torch.bfloat16),
    ):
        try:
            session = InferenceSession(net, dtype=dtype, runtime=runtime)
        except ModuleNotFoundError as error:
            print(f"without {runtime}: {error}")
            continue
        session.set_template(template)
        runs[name] = lambda session=session: session(search)[0]
    return runs


def measure(runs: dict[str, Callable[[], torch.Tensor]], rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds of each."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if i >= 3:  # the first rounds warm up
                spent[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["sbt_light", "sbt_base"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    hardware = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor()
    print(f"torch {torch.__version__}, {args.device} {hardware}, {args.threads} threads, batch 1")
    print(f"{'model':12}{'contender':24}{'ms':>8}{'x plain':>9}")
    report = {}
    with torch.inference_mode():
        for model in args.models:
            runs, difference = contenders(model, args.device)
            assert difference < 1e-4, f"{model}: the outputs differ by {difference}"
            medians = measure(runs, args.rounds, args.device)
            for name, ms in medians.items():
                print(f"{model:12}{name:24}{ms:8.1f}{medians['plain'] / ms:9.2f}")
            report[model] = {"ms": medians, "largest_difference": difference}
    if args.json:
        args.json.write_text(
            json.dumps({"torch": torch.__version__, "threads": args.threads, **report}, indent=2)
        )


if __name__ == "__main__":
    main()
