"""Writes two generated clips to `clips/`, in the layout of Acme's reader, to try the commands on."""

import csv
from pathlib import Path

from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking.video import write_image

rows = [["video", "image", "x", "y", "w", "h"]]
for seed, name in enumerate(("one", "two")):
    Path("clips", name).mkdir(parents=True)
    for number, (frame, box) in enumerate(draw_clip(6, (120, 160), seed)):
        write_image(f"clips/{name}/{number}.png", frame)
        rows.append([name, f"{name}/{number}.png", *map(str, box)])
with open("clips/boxes.csv", "w", newline="") as file:
    csv.writer(file).writerows(rows)
