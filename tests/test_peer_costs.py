"""The table of docs/adapters_costs.md is what its command counts on the trackers' own checkouts."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parent.parent
CHECKOUTS = {
    "SiamFC++": "video_analyst",
    "DiMP-50": "pytracking",
    "STARK-S50": "Stark",
    "STM": "STM",
    "OSTrack ViT-B": "OSTrack",
}


@pytest.mark.parametrize("tracker", CHECKOUTS)
def test_the_table(peer, tracker):
    checkout = peer(CHECKOUTS[tracker])
    options = ["--peers", str(checkout.parent), "--trackers", tracker, "--rounds", "0"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "adapter_costs.py"), *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    page = (ROOT / "docs" / "adapters_costs.md").read_text()
    rows = [line.rsplit("|", 2)[0] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 4  # the head and its rule, stock and ours
    assert all(f"\n{row}|" in page for row in rows if "---" not in row)
