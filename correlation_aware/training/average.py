"""The mean of the weights of several checkpoints of one model.

Paper: `Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time` (Wortsman et al., ICML 2022) - https://arxiv.org/abs/2203.05482
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from correlation_aware._files import read_json
from correlation_aware.data.videos.training_data import merge_records
from correlation_aware.weights import check_finite, local_file, read_state_dict, save_pretrained
from correlation_aware.zoo import create_model

__all__ = ["average_checkpoints"]


def average_checkpoints(checkpoints: Sequence[str | Path], output: str | Path) -> Path:
    """Writes a model whose weights are the mean of several checkpoints'.

    Args:
        checkpoints: Folders of models of one architecture: of `save_pretrained`, or checkpoints of a run.
        output: Folder to write, with `config.json` and `model.safetensors`.

    Returns:
        The folder.

    Raises:
        ValueError: Fewer than two checkpoints, or ones whose configuration, names or shapes differ.
        FileNotFoundError: A folder without a model.
    """
    folders = [_model_folder(Path(path)) for path in checkpoints]
    if len(set(folders)) < 2:
        raise ValueError(f"A mean needs two checkpoints or more, not {len(set(folders))}.")
    first = _architecture(folders[0])
    total: dict[str, Tensor] = {}
    for folder in folders:
        if (other := _architecture(folder)) != first:
            keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
            raise ValueError(f"{folder} is another model than {folders[0]}: {', '.join(keys)} differ.")
        weights = read_state_dict(folder / "model.safetensors")
        check_finite(weights, folder)
        for name in sorted(weights.keys() ^ total.keys()) if total else ():
            raise ValueError(f"{folder} and {folders[0]} have other tensors: {name} is in one of them.")
        for name, value in weights.items():
            expected = total[name].shape if name in total else value.shape
            if value.shape != expected:
                raise ValueError(
                    f"{name} has the shape {tuple(value.shape)} in {folder}, and {tuple(expected)} before it."
                )
            if not value.is_floating_point():  # a count of batches: the last checkpoint's
                total[name] = value
            else:
                total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + value.double()
    mean = {n: value / len(folders) if value.is_floating_point() else value for n, value in total.items()}
    model = create_model(folders[0])
    mean = {
        name: value / len(folders) if value.is_floating_point() else value for name, value in total.items()
    }
    model.load_state_dict(mean)
    records = [r for folder in folders for r in local_file(folder).training_data()]
    model.training_data = merge_records(records, ())  # type: ignore[assignment]
    return save_pretrained(model, output)


def _model_folder(path: Path) -> Path:
    """The folder of the model: `path` itself, or `weights` in a checkpoint of a run."""
    for folder in (path, path / "weights"):
        if (folder / "config.json").is_file():
            return folder.resolve()
    raise FileNotFoundError(
        f"{path} is no folder of a model: name folders with a config.json, such as "
        "RUN/checkpoints/step-00001000."
    )


def _architecture(folder: Path) -> dict[str, object]:
    content = read_json(folder / "config.json")
    return {key: content.get(key) for key in ("architecture", "model_args")}
