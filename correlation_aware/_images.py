"""Reading of images, by one rule for frames, photographs and masks.

An image is read as it is displayed: the orientation in its EXIF data is applied, so that boxes and masks are
in the pixels of the displayed image. Alpha is dropped. 16-bit and float images need a range of values.
"""

import math
import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["File", "decode_image", "decode_mask", "image_size", "read_image"]

DepthRange = tuple[float, float]

PNG = b"\x89PNG\r\n\x1a\n"
MOST_PIXELS_PER_BYTE = 10_000  # of images above 2**24 pixels; deflate packs 8,256 bits into one byte
JPEG_SIZES = re.compile(rb"\xff[\xc0-\xcf]\x00[\x0b\x0e\x11\x14][\x08\x0c](..)(..)[\x01-\x04]", re.DOTALL)
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap width and height


class File(Protocol):
    """A path, or a member of a tar shard."""

    def read_bytes(self) -> bytes: ...


def read_image(file: str | File, depth_range: DepthRange | None = None) -> NDArray[np.uint8]:
    """Reads an image file, see `decode_image`.

    Raises:
        OSError: No such file, or no permission.
        ValueError: See `decode_image`.
    """
    data = (Path(file) if isinstance(file, str) else file).read_bytes()  # cv2.imread fails on some paths
    return decode_image(data, str(file), depth_range)


def decode_image(data: bytes, name: str = "", depth_range: DepthRange | None = None) -> NDArray[np.uint8]:
    """Decodes an image as it is displayed.

    Args:
        data: Content of an image file.
        name: Name of the image, with which messages start.
        depth_range: Values of a 16-bit or float image that become 0 and 255; NaN becomes 0.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        ValueError: Not an image, or a damaged one; more than 8 bits without `depth_range`, or 8 bits with it;
            a range that is not two finite numbers, the lower one first.
    """
    start = f"{name}: " if name else ""
    image = _decode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH, start)
    if image.dtype == np.uint8:
        if depth_range is not None:
            raise ValueError(f"{start}8 bits per value, for which a depth range has no effect; leave it out")
    elif depth_range is None:
        low, high = float(np.nanmin(image)), float(np.nanmax(image))
        raise ValueError(
            f"{start}{image.dtype} values, {low:g} to {high:g} here: state which values become black and "
            f"white, such as --depth-range {low:g},{high:g} (in Python depth_range), or convert it to 8 bits"
        )
    else:
        low, high = _check_range(depth_range)
        scaled = (image.astype(np.float32) - low) * (255 / (high - low))
        image = np.nan_to_num(scaled, nan=0.0).clip(0, 255).round().astype(np.uint8)
    return np.asarray(
        cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB), np.uint8
    )


def decode_mask(data: bytes, name: str = "") -> NDArray[np.uint8]:
    """Decodes a mask as it is displayed: uint8 (H, W).

    Raises:
        ValueError: Not an image, a damaged one, or one of more than 8 bits.
    """
    start = f"{name}: " if name else ""
    mask = _decode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH, start)
    if mask.dtype != np.uint8:
        raise ValueError(f"{start}{mask.dtype} values; a mask has 8 bits per value, 255 on the object")
    return np.asarray(mask, np.uint8)


def image_size(file: str | File) -> tuple[int, int]:
    """Width and height of an image as it is displayed, from its header.

    Raises:
        OSError: Not an image, or a damaged one.
    """
    try:
        with Image.open(file if isinstance(file, (str, Path)) else BytesIO(file.read_bytes())) as image:
            width, height = image.size
            # Pillow swaps them itself for TIFF files
            swap = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) and image.format != "TIFF"
    except Exception as error:  # of a damaged file Pillow raises anything
        if isinstance(error, OSError) and error.errno:
            raise
        raise OSError(f"{file} is not an image, or a damaged one ({error}).") from error
    return (height, width) if swap else (width, height)


def _check_header(data: bytes, start: str) -> None:
    """Refuses a header for which OpenCV would take much more memory than the file can fill."""
    sizes = []
    if data.startswith(PNG):
        at = len(PNG)
        while at + 8 <= len(data):
            length = int.from_bytes(data[at : at + 4], "big")
            at += 12 + length
            if at > len(data) + 2**24:
                raise ValueError(f"{start}a damaged image: it has {len(data)} bytes, a part of it {length}")
        sizes = [(data[16:20], data[20:24])]
    elif len(data) * MOST_PIXELS_PER_BYTE < 2**30:  # the most that OpenCV reads
        sizes = JPEG_SIZES.findall(data) if data.startswith(b"\xff\xd8") else _pillow_size(data)
    for sides in sizes:
        pixels = math.prod(int.from_bytes(side, "big") for side in sides)
        if pixels > max(2**24, MOST_PIXELS_PER_BYTE * len(data)):
            raise ValueError(f"{start}a damaged image: {pixels} pixels in its header, and {len(data)} bytes")


def _pillow_size(data: bytes) -> list[tuple[bytes, bytes]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = Image.open(BytesIO(data)).size
    except Image.DecompressionBombError:
        width, height = 2**15, 2**13
    except Exception:  # what Pillow does not read OpenCV may read
        return []
    return [(width.to_bytes(8, "big"), height.to_bytes(8, "big"))]


def _check_range(depth_range: Any) -> DepthRange:
    try:
        low, high = (float(value) for value in depth_range)
    except (TypeError, ValueError, OverflowError):
        low = high = float("nan")
    if not -1e30 < low < high < 1e30:
        text = f"{depth_range!r}"[:100]
        raise ValueError(f"depth_range={text} must be two finite numbers, low below high, such as (0, 4095)")
    return low, high


def _decode(data: bytes, flags: int, start: str) -> Any:
    _check_header(data, start)
    values = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(values, flags) if values.size else None
    except cv2.error as error:
        raise ValueError(f"{start}not an image that OpenCV reads ({error.err})") from error
    if image is None:
        raise ValueError(f"{start}not an image, or a damaged one")
    return image
