"""Weights: which exist, how to get them safely, and how to read other people's."""

from correlation_aware.weights.convert import KEY_FORMATS, convert_state_dict
from correlation_aware.weights.files import (
    SUFFIXES,
    check_finite,
    read_state_dict,
    write_state_dict,
)
from correlation_aware.weights.hub import fetch, fetch_repository
from correlation_aware.weights.loading import LoadReport, load_state_dict
from correlation_aware.weights.manifest import (
    Measurement,
    WeightsEntry,
    find_entry,
    load_manifest,
    parse_results,
)
from correlation_aware.weights.publish import PushPlan, push

__all__ = [
    "KEY_FORMATS",
    "SUFFIXES",
    "LoadReport",
    "Measurement",
    "PushPlan",
    "WeightsEntry",
    "check_finite",
    "convert_state_dict",
    "fetch",
    "fetch_repository",
    "find_entry",
    "load_manifest",
    "load_state_dict",
    "parse_results",
    "push",
    "read_state_dict",
    "write_state_dict",
]
