"""What a model costs, counted without running it: parameters and multiply-accumulates."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from correlation_aware.ops import set_backend

__all__ = ["Profile", "profile"]


@dataclass(frozen=True)
class Profile:
    """Cost of one model.

    Attributes:
        params: Parameters.
        macs: Multiply-accumulates of convolutions, linear layers and both products of the attention, for
            one pair.
        cached_macs: The same where the template's state is cached; equal to `macs` for a classifier.
    """

    params: int
    macs: int
    cached_macs: int


def profile(model: nn.Module, template_size: int = 128, search_size: int = 256) -> Profile:
    """Counts a two-input model, or a classifier at `search_size`, for batch 1.

    Args:
        model: A model of the zoo; one made with `device="meta"` costs neither memory nor time.
        template_size: Side of the template in pixels.
        search_size: Side of the search picture in pixels.
    """
    device = next(model.parameters()).device
    template = torch.empty(1, 3, template_size, template_size, device=device)
    search = torch.empty(1, 3, search_size, search_size, device=device)
    params = sum(p.numel() for p in model.parameters())
    was_training = model.training
    model.eval()
    try:
        if not hasattr(model, "encode_template"):
            macs = _count(model, search)
            return Profile(params, macs, macs)
        with torch.no_grad(), set_backend("reference"):
            state = model.encode_template(template)  # type: ignore[operator]
        return Profile(params, _count(model, template, search), _count(model, state, search))
    finally:
        model.train(was_training)


def _count(model: nn.Module, *inputs: object) -> int:
    # the plain form of every operation, so that the products of the attention are seen on every device
    with (
        torch.no_grad(),
        set_backend("reference"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(*inputs)
    return counter.get_total_flops() // 2
