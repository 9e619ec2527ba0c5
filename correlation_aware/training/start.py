"""The weights that a run starts from: all that fit, or those of the first blocks of the backbone.

How much each number of pretrained blocks gains is Figure 8 of `Correlation-Aware Deep Tracking` (Xie et al.,
CVPR 2022) - https://arxiv.org/abs/2203.01666
"""

import logging
from itertools import takewhile
from typing import cast

from timm.models._manipulate import group_with_matcher
from torch import nn

from correlation_aware.models.contract import TwoInputModel
from correlation_aware.training.config import ModelConfig
from correlation_aware.weights import LoadReport, load_pretrained

__all__ = ["load_start"]

_logger = logging.getLogger(__name__)


def load_start(model: nn.Module, config: ModelConfig) -> None:
    """Loads the weights that a configuration names, if it names some, as far as they fit.

    Args:
        model: Model with random weights.
        config: Names of the weights, and how many blocks or stages take them.

    Raises:
        ValueError: An unknown name, weights of which nothing fits, more blocks or stages than the model has,
            or a number of them without weights.
        FileNotFoundError, ConnectionError, RuntimeError: Weights that cannot be downloaded or read.
    """
    start, part = config.start(), config.pretrained_part()
    if start is None:
        if part is not None:
            raise ValueError(
                f"{part.key}={part.number} has no effect without weights to start from: name them with "
                "model.pretrained, or remove it."
            )
        return
    first = None if part is None else _first_tensors(model, part.key, part.number)
    own = model.state_dict()
    fresh = {} if first is None else {name: own[name].clone() for name in own if name not in first}
    report = load_pretrained(model, start, partial=True)
    _warn_of_fresh_backbone(report, start)
    if first is not None and part is not None:
        model.load_state_dict(fresh, strict=False)
        loaded = [name for name in report.loaded if name in first]
        _logger.info(
            "%s=%d: %d tensors are from %s, %d are random.",
            part.key,
            part.number,
            len(loaded),
            start,
            len(own) - len(loaded),
        )


def _first_tensors(model: nn.Module, key: str, count: int) -> set[str]:
    """Names of the tensors in the stem and the first blocks or stages of the backbone."""
    prefix = "backbone." if hasattr(model, "backbone") else ""
    network = cast(TwoInputModel, model.backbone if prefix else model)
    names = [name for name in network.state_dict() if prefix or not name.startswith("head.")]
    matcher = network.group_matcher(coarse=key.endswith("stages"))
    groups = list(group_with_matcher(((name, name) for name in names), matcher).values())
    stem = groups.pop(0) if "stem" in matcher else []
    if count > len(groups):
        listed = "; ".join(f"{i} {_common_name(group)}" for i, group in enumerate(groups, 1))
        raise ValueError(
            f"{key}={count}: {type(network).__name__} has {len(groups)} "
            f"{key.rpartition('_')[2]}: {listed}. Choose 1 to {len(groups)}."
        )
    return {prefix + name for group in (stem, *groups[:count]) for name in group}


def _common_name(names: list[str]) -> str:
    """Longest start of all names up to a dot; of names without one the first parts."""
    columns = zip(*(name.split(".")[:-1] for name in names))
    common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return ".".join(common) or ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))


def _warn_of_fresh_backbone(report: LoadReport, start: str) -> None:
    fresh, loaded = (
        sum(name.startswith("backbone.") for name in names) for names in (report.missing, report.loaded)
    )
    if fresh > loaded:
        _logger.warning(
            "%s fills %d of %d tensors of the backbone; the others have random weights. Are model.name and "
            "model.overrides those of the weights?",
            start,
            loaded,
            loaded + fresh,
        )
