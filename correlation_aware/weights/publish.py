"""Publishing: weights to the Hub, with configuration, model card and manifest entry."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, constants

from correlation_aware._files import read_json, sha256_file
from correlation_aware.weights.convert import convert_state_dict
from correlation_aware.weights.files import check_finite, read_state_dict
from correlation_aware.weights.hub import TRANSPORT_ERROR
from correlation_aware.weights.manifest import Measurement, WeightsEntry

__all__ = ["PushPlan", "push"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PushPlan:
    """What a push uploads, or did.

    Attributes:
        weights: The local file that becomes `model.safetensors`.
        card: Text of `README.md`.
        config: Content of `config.json`.
        entry: To be added to the manifest, under `entry.name`. Its revision is a commit after the upload.
        url: Page of the repository.
        uploaded: Whether the upload was done.
    """

    weights: Path
    card: str
    config: Mapping[str, Any]
    entry: WeightsEntry
    url: str
    uploaded: bool = False


def push(
    source: str | Path,
    repository: str,
    model: str,
    tag: str,
    *,
    training: str,
    license: str = "apache-2.0",
    results: Sequence[Measurement] = (),
    notes: str = "",
    template_size: int | None = None,
    search_size: int | None = None,
    input_size: int | None = None,
    private: bool = False,
    dry_run: bool = True,
) -> PushPlan:
    """Prepares the files of a model's repository on the Hub, and uploads them if asked to.

    Args:
        source: A folder with `config.json` and `model.safetensors`, or a `.safetensors` file in our names.
        repository: `organisation/name`; created if it does not exist.
        model: Name in the zoo.
        tag: What tells these weights apart from others of the model.
        training: How the weights were trained, in prose, for the card and the manifest.
        license: SPDX identifier, lower case.
        results: What was measured, each with its command.
        notes: For the manifest.
        template_size: Side in pixels in training; by default what `config.json` says, as for the next two.
        search_size: Side in pixels in training.
        input_size: Side in pixels in training, of a one-input network.
        private: Whether a new repository is private.
        dry_run: Only say what would be uploaded.

    Returns:
        The plan, with the manifest entry to add.

    Raises:
        FileNotFoundError: No such source, or a file is missing in the folder.
        ValueError: Another model in `config.json`, foreign parameter names, a field that the manifest does
            not allow, or sizes that neither `config.json` nor the caller gives.
        RuntimeError: Numbers that are not finite.
        OSError: The Hub refused the upload, for example without a login.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"There is no {source}.")
    path = source / "model.safetensors" if source.is_dir() else source
    config = _read_config(source, model)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is no .safetensors file. `correlation-aware weights convert` makes one.")
    state_dict = read_state_dict(path)
    if convert_state_dict(state_dict).keys() != state_dict.keys():
        raise ValueError(
            f"{path} has foreign parameter names. `correlation-aware weights convert` renames them."
        )
    check_finite(state_dict, path)
    saved = config.get("pretrained_cfg") or {}
    if not (template_size or search_size or input_size):
        if model.endswith("_cls"):
            input_size = _side(saved.get("input_size"))
        else:
            template_size, search_size = _side(saved.get("template_size")), _side(saved.get("input_size"))
    entry = WeightsEntry(
        model=model,
        tag=tag,
        source="hub",
        file="model.safetensors",
        license=license,
        key_format="correlation_aware",
        role="model",
        training=training,
        mean=tuple(saved.get("mean") or IMAGENET_MEAN),
        std=tuple(saved.get("std") or IMAGENET_STD),
        repository=repository,
        revision=constants.DEFAULT_REVISION,
        sha256=sha256_file(path),
        bytes=path.stat().st_size,
        template_size=template_size,
        search_size=search_size,
        input_size=input_size,
        results=tuple(results),
        notes=notes,
    )
    plan = PushPlan(path, _card(entry), config, entry, f"{constants.ENDPOINT}/{repository}")
    return plan if dry_run else _upload(plan, private)


def _read_config(source: Path, model: str) -> dict[str, Any]:
    if not source.is_dir():
        return {"architecture": model, "model_args": {}}
    path = source / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; save_pretrained writes it beside model.safetensors.")
    config: dict[str, Any] = read_json(path)
    if config.get("architecture") != model:
        raise ValueError(f"{path} is of {config.get('architecture')!r}, not of {model!r}.")
    return config


def _side(shape: Any) -> int | None:
    return int(shape[-1]) if shape else None


def _upload(plan: PushPlan, private: bool) -> PushPlan:
    api = HfApi()
    repository = str(plan.entry.repository)
    files: dict[str, bytes | Path] = {
        "README.md": plan.card.encode(),
        "config.json": (json.dumps(plan.config, indent=2) + "\n").encode(),
        "model.safetensors": plan.weights,
    }
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(
            repository,
            operations=[CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=f"Add {plan.entry.name}",
        )
    except TRANSPORT_ERROR as error:
        if isinstance(error, OSError):
            raise  # what the Hub answered, in its own words
        raise ConnectionError(f"{plan.url} could not be reached ({error}). Nothing was committed.") from error
    return replace(plan, entry=replace(plan.entry, revision=commit.oid), uploaded=True)


def _card(entry: WeightsEntry) -> str:
    data = ModelCardData(
        license=entry.license,
        library_name="correlation_aware",
        tags=["visual-object-tracking", "correlation_aware", "arxiv:2203.01666"],
        pipeline_tag="image-classification" if entry.model.endswith("_cls") else "image-feature-extraction",
    )
    target = f"hf-hub:{entry.repository}"
    rows = [f"| {r.dataset} | {r.metric} | {r.value:g} | `{r.command}` |" for r in entry.results]
    table = (
        ["| Dataset | Metric | Value | Command |", "|---|---|---|---|", *rows]
        if rows
        else ["Nothing measured yet."]
    )
    inputs = "image" if entry.input_size else "template, search"
    return f"""---
{data.to_yaml().strip()}
---
# {entry.name}

A network of the package `correlation_aware`, a zoo of two-input feature networks for visual tracking
(SBT, [Correlation-Aware Deep Tracking](https://arxiv.org/abs/2203.01666)).

```python
import correlation_aware as ca

model = ca.create_model({target!r}, pretrained=True).eval()
output = model({inputs})
```

## Training
{entry.training}

## Results
{chr(10).join(table)}

Pixels are normalised with mean {_numbers(entry.mean)} and std {_numbers(entry.std)}.
sha256 of `model.safetensors`: `{entry.sha256}`
"""


def _numbers(values: Sequence[float]) -> str:
    return re.sub(r"[()]", "", str(tuple(values)))
