"""Costs of a network and of its tracker, for the tests of the tables of them."""

import torch

import correlation_aware as ca
from correlation_aware.models.profile import Profile, count_macs, profile


def network_and_tracker(name: str, whole: bool) -> tuple[Profile, Profile]:
    """Costs of the network `name` and of its tracker `name_track`.

    Args:
        name: Name of a two-input network.
        whole: Whether to count the tracker as a whole, too, which is slow; it is its network and its head.
    """
    net, tracker = (ca.create_model(n, device="meta") for n in (name, f"{name}_track"))
    assert _shapes(net) == _shapes(tracker.backbone)
    costs, sizes = profile(net), tracker.sizes
    side = sizes.search_size // net.feature_info.reduction()[-1]
    _, head = count_macs(tracker.eval().head, torch.empty(1, net.num_features, side, side, device="meta"))
    params = sum(parameter.numel() for parameter in tracker.parameters())
    costs_of_tracker = Profile(params, costs.macs + head, costs.cached_macs + head)
    if whole:
        assert profile(tracker) == costs_of_tracker
        pair = (torch.empty(1, 3, s, s, device="meta") for s in (sizes.template_size, sizes.search_size))
        assert count_macs(tracker, *pair)[1] == costs_of_tracker.macs
    return costs, costs_of_tracker


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
