"""A tracker of numpy and onnxruntime alone, for files of `correlation-aware export MODEL --output FOLDER`.

tracker = OnnxTracker("FOLDER/MODEL")
tracker.init(frame, (x, y, w, h))              # uint8 RGB (H, W, 3), and pixels, inside the frame
box, score, lost = tracker.update(next_frame)
"""

import json

import numpy as np
import onnxruntime as ort


class OnnxTracker:
    def __init__(self, prefix):
        self.encode, self.search = (
            ort.InferenceSession(f"{prefix}.{g}.onnx") for g in ("template", "search")
        )
        keys = ("template_size", "template_factor", "input_size", "search_factor", "mean", "std", "box_vote")
        meta = self.search.get_modelmeta().custom_metadata_map
        *self.crops, self.mean, self.std, self.vote = (json.loads(meta[key]) for key in keys)

    def crop(self, frame, shape, factor):  # a square around the box, bilinear, black outside the frame
        x, y, w, h = self.box
        side = max(1, int(np.ceil(np.sqrt(w * h) * factor)))
        corner = np.round([x + w / 2 - side / 2, y + h / 2 - side / 2]).astype(int)
        at = ((np.arange(shape[-1])[:, None] + 0.5) * side / shape[-1] - 0.5).clip(0, side - 1)
        (left, top), (right, bottom) = corner.clip(0), np.minimum(corner + side, frame.shape[1::-1])
        columns = (1 - abs(corner[0] + at - np.arange(left, right))).clip(0)  # weights of pixels
        rows = (1 - abs(corner[1] + at - np.arange(top, bottom))).clip(0)
        image = np.einsum("ih,hwc,jw->ijc", rows, frame[top:bottom, left:right], columns, optimize=True)
        image = (image.round() / 255 - self.mean) / self.std
        return np.float32(image).transpose(2, 0, 1)[None], corner, side

    def init(self, frame, box):
        self.box, names = box, [output.name for output in self.encode.get_outputs()]
        image, _, _ = self.crop(frame, *self.crops[:2])
        self.state = dict(zip(names, self.encode.run(None, {"template": image})))

    def update(self, frame, window=0.49, penalty=0.05, threshold=0.3):
        image, corner, side = self.crop(frame, *self.crops[2:])
        scores, boxes = (output[0] for output in self.search.run(None, {**self.state, "search": image}))
        hann = np.outer(*map(np.hanning, scores.shape))
        (w, h), (old_w, old_h) = boxes[2:].clip(1e-4), np.float32(self.box[2:]) / side
        area = (3 * w + h) * (3 * h + w) / ((3 * old_w + old_h) * (3 * old_h + old_w))
        change = np.exp(abs(np.log(area)) / 2 + abs(np.log(w / h * old_h / old_w)))
        rate = scores * np.exp(penalty * (1 - change))
        best = np.unravel_index(np.argmax(rate * (1 - window) + hann * window), rate.shape)
        box = boxes[:, best[0], best[1]]
        if self.vote:  # the mean of the boxes that overlap the best one
            (a, b), (c, d) = ((v[:2] - v[2:] / 2, v[:2] + v[2:] / 2) for v in (boxes, box[:, None, None]))
            both = (np.minimum(b, d) - np.maximum(a, c)).clip(0).prod(0)
            weights = scores * (both / (boxes[2:].prod(0) + box[2:].prod() - both + 1e-7)) ** self.vote
            box = (boxes * weights).sum((1, 2)) / weights.sum()
        size = side * ((old_w, old_h) + (box[2:] - (old_w, old_h)) * rate[best])  # damped
        start, size, limit = corner + side * box[:2] - size / 2, size.clip(1), frame.shape[1::-1]
        margin = np.minimum(np.minimum(size, limit), 10)  # of a box that leaves the frame
        low, high = np.minimum(start.clip(0), limit - margin), np.minimum(start + size, limit)
        self.box = (*low, *np.maximum(high.clip(margin) - low, margin))
        return self.box, scores[best], scores[best] < threshold
