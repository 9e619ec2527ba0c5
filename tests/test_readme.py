"""The README: CI types its commands, its Python runs, figures are those of the pages."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking.video import VideoWriter

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_two_lines():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2 and "correlation-aware demo" in commands[0] and "pytest" in commands[1]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "grep '^python3 -m venv' README.md" in ci
    assert "mkdocs build --strict\n" in ci  # alone: --quiet hides warnings from --strict, too


def test_it_is_a_page():
    assert len(README.split()) <= 900


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with VideoWriter("video.mp4") as writer:
        for frame, _ in draw_clip(3, (240, 320)):
            writer.write(frame)
    names: dict[str, Any] = {"search": torch.randn(1, 3, 256, 256), "template": torch.randn(1, 3, 128, 128)}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with torch.no_grad():
        for block in blocks:
            exec(block, names)
    assert len(blocks) == 2 and len(capsys.readouterr().out.splitlines()) == 3
    assert names["features"].shape == (1, 320, 16, 16)


def test_its_figures_are_those_of_the_zoo():
    zoo = (ROOT / "docs" / "zoo.md").read_text()
    rows = re.findall(r"^\| (?:siam|sbt|Nano).*$", README, re.MULTILINE)
    assert len(rows) == 6 and all(row in zoo for row in rows)
    for page in (README, zoo):  # in float32, of the three runtimes that the command names
        rates = re.findall(r"(\d+), (\d+) and (\d+)\b", re.search(r"openvino` gave (.*)", page, re.DOTALL)[1])
        for model, found in zip(("two_scales", "full", "half"), rates, strict=False):
            file = ROOT / "benchmarks" / "results" / f"cpu_tracker_siam_{model}.json"
            rows = [row for row in json.loads(file.read_text())["rows"] if row["dtype"] == "float32"]
            assert [row["runtime"] for row in rows] == ["eager", "onnx", "openvino"]
            assert [round(row["frames_per_second"]) for row in rows] == [int(rate) for rate in found]
