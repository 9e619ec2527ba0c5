"""Which weights exist: one typed entry per `model.tag`, of our manifest and those of plug-ins.

To add weights: an entry in `weights_manifest.json`, whose fields are those of `WeightsEntry`;
`correlation-aware weights push` prints the entry of a file.
"""

import difflib
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from correlation_aware._files import parse_json, read_text
from correlation_aware._plugins import is_loading
from correlation_aware.models.registry import near_names, registered_models, timm_models

__all__ = [
    "MANIFEST_PATH",
    "RENAMED",
    "Measurement",
    "WeightsEntry",
    "known_entries",
    "load_manifest",
    "parse_results",
    "register_weights",
]

MANIFEST_PATH = Path(__file__).resolve().parents[1] / "weights_manifest.json"

Source = Literal["hub", "bundled", "url"]
Role = Literal["starting_point", "model"]

# source -> (fields it needs, fields it must not have)
_SOURCE_RULES = {
    "hub": (("repository", "revision"), ("url",)),
    "url": (("url", "sha256", "bytes"), ("repository", "revision")),
    "bundled": (("sha256", "bytes"), ("repository", "revision", "url")),
}


# names of 0.1 that will be removed after the next release, and what they are called now
RENAMED = {
    "sbt_light_track.stills": "sbt_light_cell_track.video",
    "sbt_light_track.half": "sbt_light_half_track.video",
    # `--weights half` and `--weights stills` for the model of that name
    "sbt_light_cell_track.half": "sbt_light_half_track.video",
    "sbt_light_cell_track.stills": "sbt_light_cell_track.video",
}


@dataclass(frozen=True)
class Measurement:
    """A number that was measured, and the command that measures it again.

    Attributes:
        dataset: Name of the data, for example `GOT-10k val`.
        metric: Name of the metric, for example `AO`.
        value: Finite number, in the unit of the metric.
        command: Command line.
    """

    dataset: str
    metric: str
    value: float
    command: str

    def __post_init__(self) -> None:
        for key in ("dataset", "metric", "command"):
            if not _is_text(getattr(self, key)):
                raise ValueError(f"{key}={getattr(self, key)!r} must be a text that is not empty.")
        if type(self.value) not in (int, float) or not math.isfinite(self.value):
            raise ValueError(f"value={self.value!r} must be a number, and finite.")


@dataclass(frozen=True)
class WeightsEntry:
    """Where the weights of one `model.tag` are, how to verify them, and what they are.

    Attributes:
        model: Architecture name; it fixes layers, head and sizes.
        tag: Name of these weights among those of the model.
        source: `hub` (Hugging Face), `bundled` (a file beside the manifest) or `url`.
        file: Path in the repository or beside the manifest; for `url` the name to store it under.
        license: SPDX identifier, lower case.
        key_format: Parameter names in the file, a `source` of `convert_state_dict`.
        role: `model`: every tensor fits; `starting_point`: some blocks fit, the rest is fresh.
        training: Description of the training, in prose.
        repository: `organisation/name` on the Hub.
        revision: Branch, tag or commit on the Hub.
        url: Full address.
        sha256: Hash of the file. Only a `hub` entry may leave it out; the Hub's own LFS hash is checked then.
        bytes: Size of the file.
        template_size: Side in pixels of the template in training.
        search_size: Side in pixels of the search image in training.
        input_size: Side in pixels of the image in training, of a one-input network.
        mean: Mean per channel that inputs in 0..1 are normalized with.
        std: Standard deviation per channel, likewise.
        results: Measurements with these weights.
        notes: Further remarks.
        root: Folder of the manifest, which has the files of `bundled` entries.
    """

    model: str
    tag: str
    source: Source
    file: str
    license: str
    key_format: str
    role: Role
    training: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    repository: str | None = None
    revision: str | None = None
    url: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    template_size: int | None = None
    search_size: int | None = None
    input_size: int | None = None
    results: tuple[Measurement, ...] = ()
    notes: str = ""
    root: Path = field(default=MANIFEST_PATH.parent, compare=False)

    @property
    def name(self) -> str:
        """`model.tag`."""
        return f"{self.model}.{self.tag}"

    def __post_init__(self) -> None:
        for key in ("model", "tag", "file", "license", "key_format", "training"):
            self._check(key, _is_text(getattr(self, key)), "a text that is not empty")
        for key, options in (("source", Source), ("role", Role)):
            self._check(
                key, getattr(self, key) in get_args(options), f"one of {', '.join(get_args(options))}"
            )
        for key in ("bytes", "template_size", "search_size", "input_size"):
            value = getattr(self, key)
            self._check(
                key, value is None or (type(value) is int and value > 0), "a whole number above 0, or null"
            )
        for key in ("mean", "std"):
            value = getattr(self, key)
            numbers = (
                isinstance(value, tuple) and len(value) == 3 and all(type(v) in (int, float) for v in value)
            )
            self._check(key, numbers, "three numbers")
        for key, pattern, allowed in (
            ("repository", r"[\w.-]+/[\w.-]+", "organisation/name"),
            ("revision", r"\S+", "a branch, tag or commit"),
            ("url", r"https?://\S+", "an http or https address"),
            ("sha256", r"[0-9a-f]{64}", "64 lower-case hexadecimal digits"),
        ):
            value = getattr(self, key)
            self._check(
                key,
                value is None or (_is_text(value) and re.fullmatch(pattern, value)),
                f"{allowed}, or null",
            )
        self._check("notes", isinstance(self.notes, str), "a text")
        relative = not Path(self.file).is_absolute() and ".." not in Path(self.file).parts
        self._check("file", relative, "a relative path without '..'")
        needed, forbidden = _SOURCE_RULES[self.source]
        for key in needed:
            self._check(key, getattr(self, key) is not None, f"given, since source={self.source!r}")
        for key in forbidden:
            self._check(key, getattr(self, key) is None, f"left out, since source={self.source!r}")
        if self.input_size is None:
            self._check("template_size", self.template_size, "given with search_size, or input_size instead")
            self._check("search_size", self.search_size, "given with template_size, or input_size instead")
        hash_said = self.sha256 is not None or "LFS" in self.notes
        self._check(
            "notes", hash_said, "a word on the Hub's LFS hash, which is checked since sha256 is not given"
        )

    def _check(self, key: str, valid: object, allowed: str) -> None:
        if not valid:
            raise ValueError(f"Weights {self.name}: {key}={getattr(self, key)!r} must be {allowed}.")

    def to_json(self) -> dict[str, Any]:
        """The entry as the manifest has it under `name`; what equals its default is left out."""
        values = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("model", "tag", "root")
        }
        defaults = {f.name: f.default for f in fields(self)}
        values["results"] = tuple(vars(result) for result in self.results)
        return {key: value for key, value in values.items() if value != defaults[key]}


def load_manifest(path: Path | None = None) -> dict[str, WeightsEntry]:
    """Reads a manifest.

    Args:
        path: A JSON file; by default the one that ships with the package and those of the plug-ins.

    Returns:
        Entries by `model.tag`, in the order of the files. The first of a model is its default. By default
        entries of models that do not exist are left out, with one `RuntimeWarning` each.

    Raises:
        ValueError: Not JSON, or a wrong entry; the message names the entry, the key and the allowed values.
    """
    if path is not None:
        return _read(path)
    models = registered_models()  # which loads the plug-ins
    entries = known_entries()
    strangers = {name for name, entry in entries.items() if entry.model not in models}
    if not strangers or is_loading():  # a plug-in registers its weights first, and asks for others
        return entries
    strangers -= {name for name in strangers if entries[name].model in timm_models()}
    for name in sorted(strangers - _reported):
        _reported.add(name)
        near = ", ".join(near_names(entries[name].model, models)[:4])
        file = _registered_from.get(name, MANIFEST_PATH)
        warnings.warn(
            f"The weights {name} of {file} are left out: there is no model {entries[name].model!r}. Near: "
            f"{near}.",
            RuntimeWarning,
            stacklevel=3,
        )
    return {name: entry for name, entry in entries.items() if name not in strangers}


def known_entries() -> dict[str, WeightsEntry]:
    """The entries that are known so far, without importing plug-ins, also those of unknown models."""
    return {**_shipped(), **_registered}


def register_weights(path: str | Path) -> list[str]:
    """Adds the manifest of another package, for its models or for ours.

    Files of its `bundled` entries are relative to the folder of the manifest. Call it before the models are
    registered, so that timm's lists know of the weights too.

    Args:
        path: A JSON file in the format of `weights_manifest.json`.

    Returns:
        Names of the entries, `model.tag`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not JSON, a wrong entry, or a name that another manifest has.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights manifest {path}.")
    entries = _read(path)
    known = known_entries()
    clashes = [name for name in entries if name in known and _registered_from.get(name) != path]
    if clashes:
        raise ValueError(f"{path}: {', '.join(clashes)} is in another manifest already. Use another tag.")
    taken = [name for name in entries if name in RENAMED]
    if taken:
        raise ValueError(f"{path}: {', '.join(taken)} is a former name of our weights. Use another tag.")
    _registered.update(entries)
    _registered_from.update(dict.fromkeys(entries, path))
    return list(entries)


def parse_results(raw: Any, where: str) -> tuple[Measurement, ...]:
    """Turns a parsed JSON list into measurements.

    Args:
        raw: List of objects with the fields of `Measurement`.
        where: Name of the list for messages.

    Raises:
        ValueError: Anything else; the message names the item, the key and the allowed values.
    """
    if not isinstance(raw, list):
        raise ValueError(f"{where}={raw!r} must be a list of measurements.")
    for i, item in enumerate(raw):
        _check_keys(f"{where}[{i}]", item, Measurement)
    try:
        return tuple(Measurement(**item) for item in raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


_registered: dict[str, WeightsEntry] = {}
_registered_from: dict[str, Path] = {}
_reported: set[str] = set()  # entries of unknown models that were warned of


@lru_cache(maxsize=1)
def _shipped() -> dict[str, WeightsEntry]:
    return _read(MANIFEST_PATH)


def _read(path: Path) -> dict[str, WeightsEntry]:
    try:
        raw = parse_json(read_text(Path(path)), str(path), object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise ValueError(f"{path} is not a weights manifest: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is not a weights manifest: it must be an object of entries by 'model.tag'.")
    root = Path(path).resolve().parent
    return {name: replace(_parse(name, entry), root=root) for name, entry in raw.items()}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(sorted(twice))} is listed twice")
    return dict(pairs)


def _parse(name: str, raw: Any) -> WeightsEntry:
    model, _, tag = name.partition(".")
    _check_keys(f"Weights {name}", raw, WeightsEntry, given=("model", "tag", "root"))
    values: dict[str, Any] = {
        key: tuple(v) if key in ("mean", "std") and isinstance(v, list) else v for key, v in raw.items()
    }
    values["results"] = parse_results(values.get("results", []), f"Weights {name}: results")
    return WeightsEntry(model=model, tag=tag, **values)


def _check_keys(where: str, raw: Any, schema: type, given: tuple[str, ...] = ()) -> None:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be an object, not {raw!r}.")
    allowed = {f.name: f.default is MISSING for f in fields(schema) if f.name not in given}
    for key in raw:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{where}: unknown key {key!r}; {hint}Allowed: {', '.join(allowed)}.")
    missing = [key for key, required in allowed.items() if required and key not in raw]
    if missing:
        needed = ", ".join(key for key, required in allowed.items() if required)
        raise ValueError(f"{where}: missing {', '.join(map(repr, missing))}. Needed: {needed}.")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
