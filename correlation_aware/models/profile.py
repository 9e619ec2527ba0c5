"""What a model costs, counted without running it: parameters and multiply-accumulates."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from correlation_aware.ops import set_backend

__all__ = ["Profile", "count_macs", "profile"]


@dataclass(frozen=True)
class Profile:
    """Cost of one model.

    Attributes:
        params: Parameters.
        macs: Multiply-accumulates of convolutions, linear layers and both products of the attention, for
            one pair: those of the template's state, and `cached_macs`.
        cached_macs: The same where the template's state is cached; equal to `macs` for a classifier.
    """

    params: int
    macs: int
    cached_macs: int


def profile(model: Any, template_size: int | None = None, search_size: int | None = None) -> Profile:
    """Counts a two-input model, or a classifier at `search_size`, for batch 1.

    Args:
        model: A model of the zoo; one made with `device="meta"` costs neither memory nor time.
            A copy of it is run.
        template_size: Side of the template image in pixels; by default the model's.
        search_size: Side of the search image in pixels; by default the model's.
    """
    model = copy.deepcopy(model).float().eval()
    device = next(model.parameters()).device
    sizes = getattr(model, "sizes", None)
    own_search = sizes.search_size if sizes else model.pretrained_cfg["input_size"][-1]
    template, search = (
        torch.empty(1, model.in_chans, side, side, device=device)
        for side in (template_size or (sizes.template_size if sizes else 1), search_size or own_search)
    )
    params = sum(p.numel() for p in model.parameters())
    if not hasattr(model, "encode_template"):
        _, macs = count_macs(model, search)
        return Profile(params, macs, macs)
    state, template_macs = count_macs(model.encode_template, template)
    _, cached_macs = count_macs(model, state, search)
    return Profile(params, template_macs + cached_macs, cached_macs)


def count_macs(function: Callable[..., Any], *inputs: object) -> tuple[Any, int]:
    """Output of a network, or of a method of it, and its multiply-accumulates.

    It runs with the reference of every operation, so that the products of the attention are seen on every
    device.
    """
    with (
        torch.no_grad(),
        set_backend("reference"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        output = function(*inputs)
    return output, counter.get_total_flops() // 2
