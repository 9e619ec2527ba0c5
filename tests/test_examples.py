"""Every example runs, and is short enough to be read."""

import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
# those of other people's trackers, ca_*, run beside the stand-in in test_adapter_*.py, and the client of
# exported files in test_runtime_session.py
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if not path.stem.startswith("ca_"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.stem != "onnx_client"], ids=lambda p: p.stem
)
@pytest.mark.filterwarnings("ignore:.*random weights:RuntimeWarning")
def test_example(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    if path.stem == "quick_start":
        assert "same features True" in printed and "(4, 160, 32, 32)" in printed
    elif path.stem == "features_for_a_head":
        assert "heat map (2, 64, 64)" in printed
    elif path.stem == "own_tracker":
        assert printed.count("(2, 16, 16)") == 2 and printed.count("best locations") == 2
    else:
        assert (tmp_path / "tracked.mp4").stat().st_size > 0 and len(printed.splitlines()) == 17


def test_the_page_on_own_trackers_shows_its_example():
    page = (FOLDER.parent / "docs" / "own_tracker.md").read_text()
    lines = (FOLDER / "own_tracker.py").read_text().splitlines()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1].splitlines()
    assert len(lines) <= 50 and all(line in lines for line in code)
