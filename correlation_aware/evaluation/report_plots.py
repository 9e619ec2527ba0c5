"""Plots of the report, as SVG elements without external resources."""

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from correlation_aware._images import read_image
from correlation_aware.evaluation.calibration import Reliability
from correlation_aware.evaluation.one_pass import Array
from correlation_aware.evaluation.report import WorstFrame

__all__ = ["line_sample", "plot_curves", "plot_frame", "plot_scores", "style"]

# colors that differ for all kinds of color vision (Okabe and Ito), then the same with other dashes
COLORS = ("#0072b2", "#d55e00", "#007a5a", "#b3468c", "#8a6d00", "#000000")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
WIDTH, HEIGHT = 360, 290
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 42  # margins
IMAGE_SIDE = 480  # longest side of an image in the page, in pixels
JPEG_QUALITY = 75


def style(index: int) -> tuple[str, str]:
    """Color and dash pattern of the tracker of an index."""
    return COLORS[index % len(COLORS)], DASHES[(index + index // len(COLORS)) % len(DASHES)]


def line_sample(index: int) -> str:
    """The line of a tracker in a legend."""
    color, dash = style(index)
    return (
        f'<svg viewBox="0 0 36 10" aria-hidden="true"><path d="M0 5H36" stroke="{color}" stroke-width="3" '
        f'stroke-dasharray="{dash}"/></svg>'
    )


def plot_curves(curves: Sequence[Array], thresholds: Array, xlabel: str, ylabel: str, text: str) -> str:
    """Curves over thresholds from 0, in the styles of the trackers.

    Args:
        curves: (thresholds,) values in 0..1 per tracker.
        thresholds: (thresholds,) in increasing order.
        xlabel: Label of the thresholds.
        ylabel: Label of the values.
        text: Text for readers who do not see the plot.
    """
    end = float(thresholds[-1])
    lines = []
    for i, curve in enumerate(curves):
        color, dash = style(i)
        points = " ".join(f"{_x(t / end):.1f},{_y(v):.1f}" for t, v in zip(thresholds, curve))
        lines.append(
            f'<polyline data-tracker="{i}" points="{points}" fill="none" stroke="{color}" stroke-width="2" '
            f'stroke-dasharray="{dash}" stroke-linejoin="round"/>'
        )
    return _svg(_axes(end, xlabel, ylabel) + "".join(lines), text)


def plot_scores(result: Reliability, index: int, text: str) -> str:
    """Reliability diagram: fraction of correct boxes in bins of the score, with the share of frames.

    Args:
        result: Reliability of the scores.
        index: Index of the tracker.
        text: Text for readers who do not see the plot.
    """
    color, _ = style(index)
    bins, share = len(result.count), result.count / result.count.max()
    bars = "".join(
        f'<rect x="{_x(i / bins) + 1:.1f}" y="{_y(0.2 * part):.1f}" width="{(_x(1) - _x(0)) / bins - 2:.1f}" '
        f'height="{_y(0) - _y(0.2 * part):.1f}" fill="#c9d1d9"/>'
        for i, part in enumerate(share)
    )
    known = [(s, a) for s, a in zip(result.score, result.accuracy) if math.isfinite(s)]
    points = " ".join(f"{_x(s):.1f},{_y(a):.1f}" for s, a in known)
    dots = "".join(f'<circle cx="{_x(s):.1f}" cy="{_y(a):.1f}" r="4" fill="{color}"/>' for s, a in known)
    line = f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
    diagonal = f'<path d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}" stroke="#57606a" stroke-dasharray="4 4"/>'
    return _svg(_axes(1.0, "score", "fraction of correct boxes") + bars + diagonal + line + dots, text)


def plot_frame(frame: WorstFrame, index: int, text: str, depth_range: tuple[float, float] | None) -> str:
    """A frame with the annotated box and that of the tracker, the image inside as JPEG.

    Args:
        frame: Frame.
        index: Index of the tracker.
        text: Text for readers who do not see the image.
        depth_range: Values of 16-bit or float images that become 0 and 255, see `decode_image`.

    Raises:
        ValueError, OSError: An image that cannot be read.
    """
    image: NDArray[Any] = read_image(frame.path, depth_range)
    height, width = image.shape[:2]
    scale = min(1.0, IMAGE_SIDE / max(height, width))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), quality)[1]
    content = base64.b64encode(encoded.tobytes()).decode()
    color, _ = style(index)
    boxes = _box(frame.truth, width, "#ffffff", "") + _box(frame.box, width, color, "6 4")
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(text)}">'
        f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,{content}"/>{boxes}</svg>'
    )


def _box(box: Sequence[float], width: int, color: str, dash: str) -> str:
    """A box of a color on a wider line that is visible on any image."""
    x, y, w, h = box
    unit = width / 280  # a pixel of the page, roughly
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{max(h, 0):.1f}" fill="none"'
    under = "#000000" if color == "#ffffff" else "#ffffff"
    dashes = " ".join(f"{float(part) * unit:.1f}" for part in dash.split())
    return (
        f'<rect {place} stroke="{under}" stroke-width="{4 * unit:.1f}" stroke-opacity="0.75"/>'
        f'<rect {place} stroke="{color}" stroke-width="{2 * unit:.1f}" stroke-dasharray="{dashes}"/>'
    )


def _axes(end: float, xlabel: str, ylabel: str) -> str:
    parts = []
    for i in range(6):
        part = i / 5
        parts.append(
            f'<path d="M{_x(part):.1f} {_y(0)}V{_y(1)}M{_x(0)} {_y(part):.1f}H{_x(1)}" stroke="#e3e8ed"/>'
        )
        parts.append(f'<text x="{_x(part):.1f}" y="{_y(0) + 16}" text-anchor="middle">{part * end:g}</text>')
        parts.append(f'<text x="{_x(0) - 6}" y="{_y(part) + 4:.1f}" text-anchor="end">{part:.1f}</text>')
    middle = (_y(0) + _y(1)) / 2
    parts.append(f'<text x="{_x(0.5)}" y="{HEIGHT - 6}" text-anchor="middle">{escape(xlabel)}</text>')
    parts.append(
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(ylabel)}</text>'
    )
    return "".join(parts)


def _svg(content: str, text: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(text)}">{content}</svg>'


def _x(part: float) -> float:
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def _y(part: float) -> float:
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
