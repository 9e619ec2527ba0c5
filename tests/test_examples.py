"""Every example runs, and is short enough to be read."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = [p for p in sorted(FOLDER.glob("*.py")) if not p.stem.startswith("ca_")]  # those: their adapters'


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:.*random weights:RuntimeWarning")
def test_example(path, tmp_path, monkeypatch, capsys):
    assert len(path.read_text().splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    if path.stem == "quick_start":
        assert "same numbers True" in printed and "(4, 160, 32, 32)" in printed
    elif path.stem == "features_for_a_head":
        assert "heat map (2, 64, 64)" in printed
    else:
        assert (tmp_path / "tracked.mp4").stat().st_size > 0 and len(printed.splitlines()) == 15
