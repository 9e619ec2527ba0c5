"""Tracks targets in a video: python examples/track_video.py VIDEO x,y,w,h [x,y,w,h ...]

Without arguments it generates a clip first.
"""

import sys
from pathlib import Path

import correlation_aware as ca
from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking.draw import draw_results
from correlation_aware.tracking.video import VideoWriter


def generate_clip(path: Path) -> tuple[Path, list[list[float]]]:
    """Writes the package's demo clip, and returns its path and two boxes in its first frame."""
    with VideoWriter(path, fps=20) as video:
        clip = list(draw_clip(length=8))
        for frame, _ in clip:
            video.write(frame)
    x, y, w, h = clip[0][1]
    return path, [[x, y, w, h], [x + 40, y + 60, w, h]]


def main() -> None:
    if len(sys.argv) > 2:
        source = Path(sys.argv[1])
        boxes = [[float(v) for v in text.split(",")] for text in sys.argv[2:]]
    else:
        source, boxes = generate_clip(Path("clip.mp4"))
    with ca.track(source, boxes) as results, VideoWriter("tracked.mp4", results.source.fps) as video:
        for result in results:
            for target in result.targets:
                box = [round(value) for value in target.box]
                print(result.index, target.target, box, f"{target.score:.2f}", "lost" * target.lost)
            video.write(draw_results(result.frame, result.targets))
    print("wrote tracked.mp4")


if __name__ == "__main__":
    main()
