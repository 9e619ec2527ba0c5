"""Attention maps: the weights of every block of a network, and the tokens that they belong to."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["AttentionMap", "ImageName", "TokenGrid", "softmax_weights", "watch_calls"]

ImageName = Literal["template", "search"]
Watcher = Callable[[str, Any, tuple[Any, ...], Any], None]


@dataclass(frozen=True)
class TokenGrid:
    """Tokens of one image.

    Attributes:
        image: Image that the tokens belong to, `template` or `search`.
        size: Height and width in tokens. Several templates are one above the other.
        extent: Fraction of the image's height and width that the grid covers: below 1 where the tokens of
            spatial reduction leave out the last rows or columns.
    """

    image: ImageName
    size: tuple[int, int]
    extent: tuple[float, float] = (1.0, 1.0)

    def __len__(self) -> int:
        return self.size[0] * self.size[1]


@dataclass(frozen=True)
class AttentionMap:
    """Attention weights of the tokens of one image in one block.

    Attributes:
        block: Name of the block in the network, such as `stages.2.blocks.1`.
        queries: Tokens that attend.
        keys: Tokens that are attended to: a grid of one image, or of template and search image in this order.
        weights: (B, heads, queries, keys), row by row of each grid. Each row sums to 1; with candidate
            elimination, rows and columns of tokens that were eliminated before are 0. B is the batch of the
            images that the block got, so it may be 1 for a template where the search batch is larger.
    """

    block: str
    queries: TokenGrid
    keys: tuple[TokenGrid, ...]
    weights: Tensor

    @property
    def kind(self) -> Literal["self", "cross", "joint"]:
        """`self`: keys of the same image, `cross`: of the other one, `joint`: of both."""
        if len(self.keys) > 1:
            return "joint"
        return "self" if self.keys[0].image == self.queries.image else "cross"

    def onto(self, image: ImageName) -> Tensor:
        """The weights on the keys of one image: (B, heads, Hq, Wq, Hk, Wk).

        Args:
            image: `template` or `search`.

        Raises:
            ValueError: The block has no keys of that image.
        """
        images = [grid.image for grid in self.keys]
        if image not in images:
            raise ValueError(
                f"{self.block}: the {self.queries.image} attends to the {' and the '.join(images)}, not to "
                f"{image!r}."
            )
        index = images.index(image)
        part = self.weights.split([len(grid) for grid in self.keys], dim=3)[index]
        return part.unflatten(3, self.keys[index].size).unflatten(2, self.queries.size)


@contextmanager
def watch_calls(net: nn.Module, kind: type[nn.Module], function: Watcher) -> Iterator[None]:
    """Calls a function after every call of a submodule that this thread makes inside the block.

    Forward hooks do it, so the ordinary forward pass has no part of it; they are removed at the end, also
    after an exception.

    Args:
        net: Network.
        kind: Type of the submodules.
        function: Function of name, submodule, arguments and output.
    """
    thread, handles = threading.get_ident(), []

    def make_hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() == thread:
                function(name, module, arguments, output)

        return hook

    try:
        for name, module in net.named_modules():
            if isinstance(module, kind):
                handles.append(module.register_forward_hook(make_hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def softmax_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias), at least in float32.

    Args:
        q: (B, heads, N, d) queries.
        k: (B, heads, M, d) keys.
        bias: (heads, N, M) relative position bias, if there is one.

    Returns:
        (B, heads, N, M).
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
