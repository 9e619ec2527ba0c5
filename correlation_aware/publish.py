"""Publishing of weights that load, with configuration, model card and manifest entry, on the Hub."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from correlation_aware import weights
from correlation_aware._files import sha256_file
from correlation_aware.models.contract import Sizes
from correlation_aware.weights import Measurement, WeightsEntry
from correlation_aware.weights.card import model_card
from correlation_aware.weights.hub import TRANSPORT_ERROR
from correlation_aware.zoo import create_model

__all__ = ["PushPlan", "push"]


@dataclass(frozen=True)
class PushPlan:
    """What a push uploads, or did upload.

    Attributes:
        name: `model.tag`.
        repository: `organisation/name`.
        url: Page of the repository.
        weights: Local file that becomes `model.safetensors`.
        config: Content of `config.json`.
        card: Text of `README.md`.
        entry: Entry for a manifest, under `name`; None if the weights cannot be one. Its revision is a commit
            after the upload.
        no_entry: Reason why there is no entry, and what to do about it.
        uploaded: Whether the upload was done.
    """

    name: str
    repository: str
    url: str
    weights: Path
    config: Mapping[str, Any]
    card: str
    entry: WeightsEntry | None
    no_entry: str = ""
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
    private: bool = False,
    dry_run: bool = True,
) -> PushPlan:
    """Prepares the files of a model's repository on the Hub, and uploads them if asked to.

    The model is built and the weights are loaded into it first, so that only what loads is published.

    Args:
        source: A folder of `save_pretrained`, or a `.safetensors` file with the parameter names of the model.
        repository: `organisation/name`; created if it does not exist.
        model: Architecture name.
        tag: Name of these weights among those of the model.
        training: Description of the training, in prose, for the card and the manifest.
        license: License identifier of the Hub, such as `apache-2.0`; `other` for one's own.
        results: Measurements, each with its command.
        notes: Remarks for the manifest.
        private: Whether a new repository is private.
        dry_run: Only return what would be uploaded.

    Returns:
        The plan, with the manifest entry to add. A folder whose `model_args` make another network than the
        name alone cannot be an entry: it is published for `hf-hub:organisation/name` only.

    Raises:
        FileNotFoundError: No such source, or a file is missing in the folder.
        ValueError: An unknown model or license, another model in `config.json`, tensors that do not fit the
            model, or a field that the manifest does not allow.
        RuntimeError: Numbers that are not finite.
        OSError: The Hub refused the upload, for example without a login.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"There is no {source}.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"{repository!r} is not the name of a repository: 'organisation/name'.")
    if not re.fullmatch(r"[\w-]+", tag):
        problem = f"{tag!r} is not a tag of letters, digits, - and _" if tag else f"{model!r} has no tag"
        raise ValueError(f"{problem}: publish it as 'model.tag', such as '{model}.v1'.")
    known = weights.load_manifest().get(f"{model}.{tag}")
    if known is not None and known.repository != repository:
        raise ValueError(f"{known.name} is in the manifest already: {known.source} weights. Use another tag.")
    path = source / "model.safetensors" if source.is_dir() else source
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file. `correlation-aware weights convert` makes one.")
    network: Any = create_model(source if source.is_dir() else model)
    network.pretrained_cfg["license"] = license
    network.training_data = weights.WeightsSource(str(path), path=path).training_data()
    config = weights.model_config(network)
    if config["architecture"] != model:
        raise ValueError(f"{source / 'config.json'} is of {config['architecture']!r}, not of {model!r}.")
    state_dict = weights.read_state_dict(path)
    weights.check_finite(state_dict, path)
    _check_names(network, model, state_dict, path)
    weights.load_state_dict(network, state_dict, source=str(path))
    cfg, sizes = network.pretrained_cfg, getattr(network, "sizes", None)
    digest = sha256_file(path)
    no_entry = _why_no_entry(network, config, state_dict)
    entry = None
    if not no_entry:
        entry = WeightsEntry(
            model=model,
            tag=tag,
            source="hub",
            file="model.safetensors",
            license=license,
            key_format="correlation_aware",
            role="model",
            training=training,
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            repository=repository,
            revision=constants.DEFAULT_REVISION,
            sha256=digest,
            bytes=path.stat().st_size,
            template_size=sizes.template_size if isinstance(sizes, Sizes) else None,
            search_size=sizes.search_size if isinstance(sizes, Sizes) else None,
            input_size=None if isinstance(sizes, Sizes) else cfg["input_size"][-1],
            results=tuple(results),
            notes=notes,
        )
    name = f"{model}.{tag}"
    card = model_card(
        network,
        name,
        f"hf-hub:{repository}",
        training=training,
        license=license,
        results=results,
        sha256=digest,
    )
    url = f"{constants.ENDPOINT}/{repository}"
    plan = PushPlan(name, repository, url, path, config, card, entry, no_entry)
    return plan if dry_run else _upload(plan, private)


def _check_names(network: nn.Module, model: str, state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Refuses a file that has not exactly the tensors of the model."""
    own = network.state_dict()
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    shapes = [
        f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}"
        for name, tensor in state_dict.items()
        if name in own and tensor.shape != own[name].shape
    ]
    misfits = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if not any(misfits.values()):
        return
    said = "; ".join(f"{len(names)} {kind} ({_shorten(names)})" for kind, names in misfits.items() if names)
    converted = weights.convert_state_dict(state_dict, own_names=own)
    if {name: tensor.shape for name, tensor in converted.items()} == {n: t.shape for n, t in own.items()}:
        advice = f"`correlation-aware weights convert {path} NEW.safetensors --model {model}` renames them."
    else:
        advice = (
            "Name the architecture of the file, or push a folder of save_pretrained: it has the arguments."
        )
    raise ValueError(f"{path} does not fit {model}. Tensors: {said}. {advice}")


def _why_no_entry(network: Any, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> str:
    """Why an entry of these weights would not give the same network; empty if it would."""
    model = config["architecture"]
    advice = (
        "To publish it as `model.tag`, register an architecture name for it (register_model), save the model "
        "under that name and push again. `create_model('hf-hub:...', pretrained=True)` needs no entry."
    )
    if len(network.pretrained_cfg["mean"]) != 3:
        return f"An entry has the mean and std of three channels, {model} has other inputs here. {advice}"
    if not config["model_args"]:
        return ""
    arguments = ", ".join(f"{key}={value!r}" for key, value in config["model_args"].items())
    reason = f"An entry's name alone fixes the network, but the model was made with {arguments}. {advice}"
    default: Any = create_model(model)
    if {n: t.shape for n, t in default.state_dict().items()} != {n: t.shape for n, t in state_dict.items()}:
        return reason
    if getattr(default, "sizes", None) != getattr(network, "sizes", None):
        return reason
    weights.load_state_dict(default, state_dict)
    expected, actual = (_example_tensors(m) for m in (network, default))
    same = len(expected) == len(actual) > 0 and all(map(torch.equal, expected, actual))
    return "" if same else reason


def _example_tensors(network: Any) -> list[Tensor]:
    """Tensors of the output in evaluation mode for fixed random images."""
    sizes = getattr(network, "sizes", None)
    sides = [sizes.template_size, sizes.search_size] if isinstance(sizes, Sizes) else None
    sides = sides or [network.pretrained_cfg["input_size"][-1]]
    random = torch.Generator().manual_seed(0)
    images = [torch.randn(1, network.pretrained_cfg["input_size"][0], s, s, generator=random) for s in sides]
    with torch.inference_mode():
        leaves = pytree.tree_leaves(network.eval()(*images))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _upload(plan: PushPlan, private: bool) -> PushPlan:
    api = HfApi()
    files: dict[str, bytes | Path] = {
        "README.md": plan.card.encode(),
        "config.json": (json.dumps(plan.config, indent=2) + "\n").encode(),
        "model.safetensors": plan.weights,
    }
    try:
        api.create_repo(plan.repository, private=private, exist_ok=True)
        commit = api.create_commit(
            plan.repository,
            operations=[CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=f"Add {plan.name}",
        )
    except TRANSPORT_ERROR as error:
        if isinstance(error, OSError):
            raise  # what the Hub answered, in its own words
        raise ConnectionError(f"{plan.url} could not be reached ({error}). Nothing was committed.") from error
    entry = replace(plan.entry, revision=commit.oid) if plan.entry else None
    return replace(plan, entry=entry, uploaded=True)
