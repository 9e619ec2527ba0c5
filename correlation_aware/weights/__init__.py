"""Weights: which exist, verified downloads, and conversion of other people's checkpoints.

`weights_manifest.json` has one entry per `model.tag`; the first entry of a model is its default. The name
of the model fixes the network: an entry says where a file is, how it is verified and what it contains. Its
fields are those of `WeightsEntry`, which also checks the rules: `source` decides which fields are needed
(`hub`: repository and revision; `url` and `bundled`: sha256 and bytes), and an entry has the image sizes of
the training. `role` is `model` if every tensor fits, `starting_point` if the rest keeps fresh values.
`correlation-aware weights push` prints the entry of a file that it publishes.
"""

from correlation_aware.weights.convert import convert_state_dict, format_names
from correlation_aware.weights.files import SUFFIXES, check_finite, read_state_dict, write_state_dict
from correlation_aware.weights.hub import fetch, fetch_repository
from correlation_aware.weights.loading import LoadReport, load_state_dict
from correlation_aware.weights.manifest import (
    Measurement,
    WeightsEntry,
    known_entries,
    load_manifest,
    parse_results,
    register_weights,
)
from correlation_aware.weights.pretrained import load_pretrained, model_config, normalization, save_pretrained
from correlation_aware.weights.sources import WeightsSource, local_file, resolve_weights

__all__ = [
    "SUFFIXES",
    "LoadReport",
    "Measurement",
    "WeightsEntry",
    "WeightsSource",
    "check_finite",
    "convert_state_dict",
    "fetch",
    "fetch_repository",
    "format_names",
    "known_entries",
    "load_manifest",
    "load_pretrained",
    "load_state_dict",
    "local_file",
    "model_config",
    "normalization",
    "parse_results",
    "read_state_dict",
    "register_weights",
    "resolve_weights",
    "save_pretrained",
    "write_state_dict",
]
