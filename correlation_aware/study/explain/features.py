"""Search features of a network by depth, and their arrangement by t-SNE (Figs. 2d, 6, 14 and 15)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from correlation_aware._extras import require
from correlation_aware.models.attention_maps import watch_calls
from correlation_aware.models.contract import TwoInputModel
from correlation_aware.models.eoc import EoCBlock
from correlation_aware.models.sbt import SBT
from correlation_aware.models.siamese import SiameseNet
from correlation_aware.ops import unpack
from correlation_aware.study.explain.measures import BACKGROUND, DISTRACTOR, TARGET

__all__ = ["Level", "arrange", "sample_locations", "search_features"]

SAMPLES = {BACKGROUND: 220, DISTRACTOR: 120, TARGET: 120}  # largest number of locations of each label

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """Search features at one depth.

    Attributes:
        name: Name of the depth, such as `S3B6`, the 6th block of the 3rd stage.
        features: (C, H, W).
    """

    name: str
    features: Array


@torch.no_grad()
def search_features(
    net: TwoInputModel, template: Tensor, search: Tensor, correlated: bool = True
) -> list[Level]:
    """Search features of a network at all depths that it gives.

    SBT gives every block; a Siamese network the levels of its backbone, which do not know the template, and
    every EoC block of its neck; other networks what `forward_intermediates` returns.

    Args:
        net: Network.
        template: (1, 3, Hz, Wz) normalized RGB.
        search: (1, 3, Hx, Wx) normalized RGB.
        correlated: False for an SBT without its template: the same weights, but every EoC-CA block is an
            EoC-SA block, as in the Siamese-like extraction of the paper.

    Raises:
        ValueError: `correlated=False` of another network than SBT, which cannot do without its template.
    """
    if isinstance(net, SBT):
        return _sbt_levels(net, template if correlated else None, search)
    if not correlated:
        raise ValueError(f"A {type(net).__name__} gives no features without a template; SBT does.")
    if isinstance(net, SiameseNet):
        return _siamese_levels(net, template, search)
    maps = net.forward_intermediates(template, search)
    names = [
        f"{'B' if len(set(net.feature_info.reduction())) == 1 else 'S'}{i + 1}" for i in range(len(maps))
    ]
    return [Level(name, _array(features)) for name, features in zip(names, maps)]


def _sbt_levels(net: SBT, template: Tensor | None, search: Tensor) -> list[Level]:
    blocks = [(stage, block) for stage, depth in enumerate(net.config.depths) for block in range(depth)]
    first = net.config.cross_positions[0] if template is not None else (len(net.stages), 0)
    before, after = [b for b in blocks if b < first], [b for b in blocks if b >= first]
    maps = net.forward_blocks(None, search, before) if before else []
    maps = maps + (net.forward_blocks(template, search, after) if after else [])
    return [Level(f"S{s + 1}B{b + 1}", _array(m[-1])) for (s, b), m in zip(blocks, maps)]


def _siamese_levels(net: SiameseNet, template: Tensor, search: Tensor) -> list[Level]:
    if isinstance(net.extractor, SBT):
        levels = _sbt_levels(net.extractor, template if net.config.embedded else None, search)
    else:
        maps = net.extractor.forward_intermediates(search, intermediates_only=True)
        levels = [Level(f"backbone {i + 1}", _array(m)) for i, m in enumerate(maps)]
    state = net.encode_template(template)
    by_name: dict[str, Level] = {}

    def record(name: str, block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        tokens, residual, shapes = output
        features = unpack(tokens + residual, shapes)[-1].permute(0, 3, 1, 2)
        neck, _, number = name.partition(".blocks.")
        by_name[name] = Level(f"neck{neck} block {int(number) + 1}", _array(features))

    with watch_calls(net.necks, EoCBlock, record):
        output = net(state, search)
    blocks = list(by_name.values())
    if len(net.necks) == 1:
        blocks = [Level(f"neck {level.name.partition(' ')[2]}", level.features) for level in blocks]
    return [*levels, *blocks, Level("output", _array(output))]


def sample_locations(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the locations to arrange: evenly spaced ones of every label, in rising order."""
    flat = labels.reshape(-1)
    chosen = []
    for label, count in SAMPLES.items():
        indices = np.flatnonzero(flat == label)
        chosen.append(indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)])
    return np.sort(np.concatenate(chosen))


def arrange(features: Array, seed: int = 0) -> Array:
    """t-SNE of features.

    Args:
        features: (N, C) features of N locations.
        seed: Seed of the random number generator.

    Returns:
        (N, 2), the same in every run on one machine.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed; the message has the command to install it.
        ValueError: Fewer than three locations.
    """
    (manifold,) = require("sklearn.manifold")
    count = len(features)
    if count < 3:
        raise ValueError(f"t-SNE needs 3 locations or more, not {count}.")
    scale = float(np.abs(features).max()) or 1.0
    tsne = manifold.TSNE(perplexity=min(30.0, (count - 1) / 3), init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(features / scale), float)


def _array(features: Tensor) -> Array:
    """(1, C, H, W) -> (C, H, W)."""
    return features[0].double().cpu().numpy()
