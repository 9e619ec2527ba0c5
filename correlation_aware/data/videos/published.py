"""Published splits of GOT-10k and LaSOT: which videos are for training, and which for tests.

The lists are in `published_splits.json`, with their sources. Other videos in the same layout belong to the
training part of both.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from correlation_aware._files import read_json

__all__ = ["GOT10K_SPLITS", "LASOT_SUBSETS", "in_got10k_split", "is_lasot_test", "lasot_test_names"]

LASOT_SUBSETS = ("train", "test", "all")


class _Got10kSplit(NamedTuple):
    """Conditions on the videos of GOT-10k's folder `train`; None for no condition."""

    forbidden: bool | None = None
    validation: bool | None = None


# Splits of GOT-10k's folder `train`. pytracking's files of the two last ones count from 0 and leave out video
# n + 1 for every forbidden video n, so 890 forbidden ones are in them; here the forbidden ones are left out.
GOT10K_SPLITS = {
    "train_vot": _Got10kSplit(forbidden=False),
    "train_split": _Got10kSplit(validation=False),
    "val_split": _Got10kSplit(validation=True),
    "vottrain": _Got10kSplit(forbidden=False, validation=False),
    "votval": _Got10kSplit(forbidden=False, validation=True),
}


def in_got10k_split(name: str, split: str) -> bool:
    """Whether a video of GOT-10k's folder `train` is in a split.

    Args:
        name: Name, such as `GOT-10k_Train_000004`.
        split: Key of `GOT10K_SPLITS`.
    """
    match = re.fullmatch(r"GOT-10k_Train_(\d+)", name)
    number = int(match[1]) if match else 0
    forbidden, validation = GOT10K_SPLITS[split]
    return all(
        expected is None or (number in _numbers(key)) == expected
        for key, expected in (("got10k_vot_forbidden", forbidden), ("got10k_val_split", validation))
    )


def is_lasot_test(name: str) -> bool:
    """Whether a video, such as `airplane-1`, is in LaSOT's test set or its extension, which is for tests."""
    category, _, number = name.rpartition("-")
    tests, extension = _lists()["lasot_test"], _lists()["lasot_extension"].split()
    return number in tests.get(category, "").split() or (category in extension and number.isdecimal())


def lasot_test_names() -> list[str]:
    """Names of LaSOT's 280 test videos, without its extension."""
    return [f"{name}-{i}" for name, numbers in _lists()["lasot_test"].items() for i in numbers.split()]


@cache
def _lists() -> dict[str, Any]:
    return read_json(Path(__file__).with_name("published_splits.json"))


@cache
def _numbers(key: str) -> frozenset[int]:
    return frozenset(int(number) for line in _lists()[key] for number in line.split())
