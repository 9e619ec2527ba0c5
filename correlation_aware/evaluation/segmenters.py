"""What `eval davis` runs: the first mask held still, STM with our encoders, and other people's code."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from correlation_aware.evaluation.davis import Labels
from correlation_aware.evaluation.mask_results import Segmenter
from correlation_aware.evaluation.one_pass import Frame
from correlation_aware.evaluation.results import hash_files
from correlation_aware.evaluation.trackers import create_from_module
from correlation_aware.weights.files import hash_state_dict, read_state_dict

__all__ = ["NamedSegmenter", "StillSegmenter", "StmOptions", "StmSegmenter", "create_segmenter"]

SEGMENTERS = ("still", "stm-ca")
SEED = 0  # of random weights


@dataclass(frozen=True)
class NamedSegmenter:
    """A segmenter with what identifies it in results.

    Attributes:
        name: Name for tables and folders of results.
        segmenter: Segmenter.
        weights: File of the weights, `random`, or "" if it has none.
        sha256: SHA-256 of the weights, "" if it has none.
        settings: Settings that its masks depend on.
        device: Device that it runs on.
    """

    name: str
    segmenter: Segmenter
    weights: str = ""
    sha256: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


@dataclass(frozen=True)
class StmOptions:
    """Options of STM-CA.

    Attributes:
        network: Feature network of the encoders; None for the adapter's default.
        weights: Checkpoint of an `STM_CA`, or None or `random` for random weights.
        template: Template of the adapter, `frame` or `crop`.
        memory_every: Number of frames between two that stay in the memory.
    """

    network: str | None = None
    weights: str | None = None
    template: str = "frame"
    memory_every: int = 5


class StillSegmenter:
    """Returns the first mask for every frame: the figures of a segmenter that does nothing."""

    def init(self, frame: Frame, mask: Labels) -> None:
        self._mask = mask

    def update(self, frame: Frame) -> Labels:
        return self._mask


class StmSegmenter:
    """STM through a video, as its `eval_DAVIS.py`: the memory has every fifth frame and the latest one.

    Args:
        net: An `STM_CA`, in evaluation mode.
        memory_every: Number of frames between two that stay in the memory.

    Raises:
        ValueError: `memory_every` below 1.
    """

    def __init__(self, net: Any, memory_every: int = 5) -> None:
        if memory_every < 1:
            raise ValueError(f"memory_every={memory_every}: expected at least 1")
        self.net, self.memory_every = net, memory_every
        self.device = next(net.parameters()).device

    @torch.inference_mode()
    def init(self, frame: Frame, mask: Labels) -> None:
        """Starts on a frame (H, W, 3) and the labels (H, W) of its objects, 0 for the background."""
        self.labels = np.unique(np.append(mask, 0)).astype(np.uint8)  # the background first
        one_hot = mask == self.labels[:, None, None]
        self.masks = torch.from_numpy(one_hot).float().to(self.device)[None]  # 1, K, H, W
        self.count = torch.tensor([len(self.labels) - 1])
        self.frame, self.index = self._tensor(frame), 0
        self.memory: tuple[Tensor, ...] = ()
        self.net.set_template(self.frame, self.masks, self.count)

    @torch.inference_mode()
    def update(self, frame: Frame) -> Labels:
        """Labels (H, W) of the next frame."""
        memory = self.net(self.frame, self.masks, self.count)
        if self.memory:
            memory = tuple(torch.cat(pair, dim=3) for pair in zip(self.memory, memory))
        self.frame = self._tensor(frame)
        self.masks = F.softmax(self.net(self.frame, *memory, self.count), dim=1)
        if self.index % self.memory_every == 0:
            self.memory = memory
        self.index += 1
        return np.asarray(self.labels[self.masks[0].argmax(dim=0).cpu().numpy()])

    def _tensor(self, frame: Frame) -> Tensor:
        return torch.from_numpy(frame).to(self.device).permute(2, 0, 1)[None].float() / 255


def create_segmenter(text: str, options: StmOptions | None = None) -> NamedSegmenter:
    """Creates a segmenter from its description on the command line.

    Args:
        text: `still`, `stm-ca`, or `module:factory`, a function or class without arguments that returns a
            segmenter with `init(frame, mask)` and `update(frame)`.
        options: Options of `stm-ca`.

    Raises:
        ValueError: An unknown segmenter or network, or weights that do not fit.
        FileNotFoundError: No such file of weights.
        ImportError: The module, or STM's code, cannot be imported.
        TypeError: What the factory returns is not a segmenter.
    """
    if text == "still":
        return NamedSegmenter("still", StillSegmenter(), settings={"tracker": text})
    if text == "stm-ca":
        return _create_stm(options or StmOptions())
    methods = ("init(frame, mask)", "update(frame)")
    segmenter, source = create_from_module(text, "--tracker", SEGMENTERS, methods)
    settings = {"tracker": text, "source": hash_files([source]) if source else None}
    return NamedSegmenter(text.replace(":", "."), segmenter, settings=settings)


def _create_stm(options: StmOptions) -> NamedSegmenter:
    from correlation_aware.adapters import stm  # needs STM's own code

    network = options.network or stm.DEFAULT_NAME
    is_random = options.weights in (None, "random")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net: Any = stm.STM_CA(lambda: stm.create_network(network), options.template)  # type: ignore[arg-type]
    if not is_random:
        assert options.weights is not None
        tensors = read_state_dict(options.weights)
        net.load_state_dict({name.removeprefix("module."): tensor for name, tensor in tensors.items()})
    device = "cuda" if torch.cuda.is_available() else "cpu"  # STM's own code makes tensors there
    settings = {"tracker": "stm-ca", **asdict(options), "network": network}
    del settings["weights"]
    return NamedSegmenter(
        "stm-ca",
        StmSegmenter(net.eval().to(device), options.memory_every),
        "random" if is_random else str(options.weights),
        hash_state_dict(net.state_dict()),
        settings,
        device,
    )
