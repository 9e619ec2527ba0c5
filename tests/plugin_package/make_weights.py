"""Writes the demo weights and their entry: random numbers, and the statistics of random images."""

import hashlib
import json
from pathlib import Path

import torch
from acme_trackers.models import acme_tiny_track

from correlation_aware.weights import write_state_dict

FOLDER = Path(__file__).parent / "acme_trackers"


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = acme_tiny_track().train()
    for _ in range(20):
        model(torch.randn(8, 3, 64, 64), torch.randn(8, 3, 128, 128))
    path = FOLDER / "acme_tiny_track.safetensors"
    write_state_dict(model.state_dict(), path)
    entry = {
        "source": "bundled",
        "file": path.name,
        "license": "apache-2.0",
        "key_format": "correlation_aware",
        "role": "model",
        "training": "None: these are random numbers, to show where weights go.",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "template_size": 64,
        "search_size": 128,
    }
    text = json.dumps({"acme_tiny_track.demo": entry}, indent=2)
    (FOLDER / "weights.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
