"""Cameras and streams: the newest frame is read, older ones are dropped, broken connections are renewed."""

import threading
import time
import warnings
from typing import Any

import cv2

from correlation_aware.tracking.frame_source import Frame, FrameSource, Selection, bgr_to_rgb

__all__ = ["LiveSource"]

RECONNECT_SECONDS = 30.0  # how long a source that broke off is opened again
PAUSE_SECONDS = 0.5  # before each attempt


class LiveSource(FrameSource):
    """A camera or stream, which a thread reads, so that nothing waits in a queue.

    Each frame is the newest one. `dropped` counts those that came while nobody took a frame, `index` counts
    all of them, and `time` is the time at which the frame came. A source that breaks off is opened again; if
    it gives no frame for 30 seconds, iteration ends with a `RuntimeWarning`.

    Args:
        source: Index of a camera, or address of a stream such as `rtsp://HOST/PATH`.
        selection: Frames to read; `every` counts the frames that came.
        capture: The source, opened by OpenCV.

    Raises:
        RuntimeError: The source gives no frame.
    """

    def __init__(self, source: int | str, selection: Selection, capture: cv2.VideoCapture) -> None:
        self._source = source
        is_camera = isinstance(source, int)
        name = f"camera {source}" if is_camera else str(source)
        ok, image = capture.read() if capture.isOpened() else (False, None)
        if not ok:
            capture.release()
            hint = "is it connected, free, and allowed?" if is_camera else "is its server running?"
            raise RuntimeError(f"{name} cannot be opened; {hint}")
        super().__init__(name, capture.get(cv2.CAP_PROP_FPS), None, selection)
        self._news = threading.Condition()
        self._begin = time.monotonic()
        self._newest: tuple[int, float, Any] = 0, 0.0, image  # number, seconds, BGR image
        self._ended = self._closed = False
        self._image: Any = None
        self._thread = threading.Thread(target=self._run, args=(capture,), name=f"read {name}", daemon=True)
        self._thread.start()

    def _run(self, capture: cv2.VideoCapture) -> None:
        """Reads frames until the source is closed or has given none for a while."""
        latest = self._begin
        while not self._closed and time.monotonic() - latest < RECONNECT_SECONDS:
            ok, image = capture.read()
            if ok:
                latest = time.monotonic()
                with self._news:
                    self._newest = self._newest[0] + 1, latest - self._begin, image
                    self._news.notify()
            else:
                capture.release()
                time.sleep(PAUSE_SECONDS)
                capture = cv2.VideoCapture(self._source)
        capture.release()
        with self._news:
            self._ended = True
            self._news.notify()

    def _advance(self) -> bool:
        with self._news:
            self._news.wait_for(lambda: self._newest[0] > self._position or self._ended)
            if self._newest[0] == self._position:
                if not self._closed:
                    warnings.warn(
                        f"{self.name} has given no frame for {RECONNECT_SECONDS:.0f} s and is given up.",
                        RuntimeWarning,
                        stacklevel=4,
                    )
                return False
            number, self._seconds, self._image = self._newest
        self.dropped += number - self._position - 1
        self._position = number
        return True

    def _decode(self) -> Frame:
        return bgr_to_rgb(self._image)

    def close(self) -> None:
        """Stops the thread and releases the source."""
        self._closed = True
        self._thread.join(timeout=5)
