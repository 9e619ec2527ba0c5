"""Tracks targets in a video: python examples/track_video.py VIDEO x,y,w,h [x,y,w,h ...]

Without arguments it generates a clip first. For a single target, `init` takes (x, y, w, h) and `update`
returns one result instead of a list.
"""

import sys
from pathlib import Path

import correlation_aware as ca
from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking.draw import draw_result, target_color
from correlation_aware.tracking.video import VideoWriter, open_frames


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
    tracker = ca.create_tracker()
    with open_frames(source) as frames, VideoWriter("tracked.mp4", fps=frames.fps) as video:
        for i, frame in enumerate(frames):
            if i == 0:
                tracker.init(frame, boxes)
                continue
            for n, result in enumerate(tracker.update(frame)):
                frame = draw_result(frame, result, label=f"#{n}", color=target_color(n))
                print(i, n, [round(v) for v in result.box], f"{result.score:.2f}", "lost" * result.lost)
            video.write(frame)
    print("wrote tracked.mp4")


if __name__ == "__main__":
    main()
