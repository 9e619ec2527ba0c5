"""The state of a run in a checkpoint, as safetensors and JSON: reading it never runs code of the file."""

import base64
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from correlation_aware._files import read_json, write_text
from correlation_aware.weights import read_state_dict, write_state_dict

__all__ = ["RunState", "read_run_state", "write_process_state", "write_run_state"]

MODEL, PUBLISHED, MOMENTS, STATE = (
    "model.safetensors",
    "weights/model.safetensors",
    "optimizer.safetensors",
    "state.json",
)
AVERAGE = "average.safetensors"  # with low-rank matrices, which the published weights do not have

_FACTS = {
    "step": (int,),
    "seconds": (int, float),
    "processes": (int,),
    "accumulate": (int,),
}  # and their types


@dataclass(frozen=True)
class RunState:
    """Content of a checkpoint.

    Attributes:
        path: Folder of the checkpoint.
        facts: Step, seconds, processes and accumulated batches; with float16, the state of the loss scale.
        model: Weights by name.
        average: Moving average of the weights by name, or the weights without averaging.
        moments: State of the optimizer by parameter name.
        random: States of the random number generators of this process.
    """

    path: Path
    facts: dict[str, Any]
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    random: dict[str, Any]

    def restore(self, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
        """Puts the state into a model, its moving average, an optimizer and the random number generators.

        Raises:
            ValueError: The model has other tensors, or other parameters are trained; nothing is changed then.
        """
        _compare(self.path, self.model, model.state_dict())
        if average is not None:
            _compare(self.path, self.average, average.state_dict())
        names = _names(model, optimizer)
        trained = set(names.values())
        if trained != self.moments.keys() and self.moments:
            raise ValueError(
                f"{self.path} was written by a run that trained other parameters: "
                f"{_some(trained ^ self.moments.keys())}. Resume with the run's own optimizer.frozen and "
                f"optimizer.lora, or start a new run with model.pretrained={self.path / 'weights'}."
            )
        model.load_state_dict(self.model)
        if average is not None:
            average.load_state_dict(self.average)
        state = {index: self.moments[name] for index, name in names.items() if name in self.moments}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        _restore_random(self.random)


def write_run_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    average: nn.Module | None = None,
) -> None:
    """Writes what is the same in all processes.

    The average is in the folder `weights`, unless it has other tensors than the model to publish, and is
    passed here.
    """
    write_state_dict(model.state_dict(), folder / MODEL)
    if average is not None:
        write_state_dict(average.state_dict(), folder / AVERAGE)
    state, names = optimizer.state_dict()["state"], _names(model, optimizer)
    moments = {
        f"{names[index]}:{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
    }
    write_state_dict(moments, folder / MOMENTS)
    write_text(json.dumps(dict(facts), indent=2) + "\n", folder / STATE)


def write_process_state(folder: Path, process: int) -> None:
    """Writes the states of the random number generators of one process."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    content = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(state) for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }
    write_text(json.dumps(content), folder / f"random-{process}.json")


def read_run_state(path: Path, process: int) -> RunState:
    """Reads a checkpoint whole.

    Args:
        path: Folder of the checkpoint.
        process: Number of this process.

    Raises:
        ValueError, OSError: A damaged or missing file.
    """
    facts: Any = read_json(path / STATE)
    for key, kind in _FACTS.items():
        value: Any = facts.get(key) if isinstance(facts, dict) else None
        if type(value) not in kind or not 0 <= value < 2**53:
            raise ValueError(f"{path / STATE}: {key}={str(value)[:100]} is not a number of a run.")
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in read_state_dict(path / MOMENTS).items():
        parameter, _, key = name.rpartition(":")
        moments.setdefault(parameter, {})[key] = value
    # with another number of processes, which is an error of its own, there may be no such file
    states = path / f"random-{process}.json"
    return RunState(
        path,
        facts,
        read_state_dict(path / MODEL),
        read_state_dict(path / AVERAGE if (path / AVERAGE).exists() else path / PUBLISHED),
        moments,
        _read_random(states) if process < facts["processes"] else {},
    )


def _read_random(path: Path) -> dict[str, Any]:
    """States of the random number generators, tried on generators of their own."""
    try:
        content = read_json(path)
        version, keys, gauss = content["python"]
        kind, words, *rest = content["numpy"]
        states: dict[str, Any] = {
            "python": (version, tuple(keys), gauss),
            "numpy": (kind, np.array(words, np.uint32), *rest),
            "torch": _decode(content["torch"]),
            "cuda": [_decode(state) for state in content["cuda"]],
        }
        random.Random().setstate(states["python"])
        np.random.RandomState().set_state(states["numpy"])
        torch.Generator().set_state(states["torch"])
    except OSError:
        raise
    except Exception as error:  # the generators raise anything
        raise ValueError(f"{path} has no states of random number generators ({error}).") from error
    return states


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """Parameter name by index in the optimizer's state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: names[id(parameter)] for index, parameter in enumerate(parameters)}


def _compare(path: Path, stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing, unexpected = own.keys() - stored.keys(), stored.keys() - own.keys()
    other = {name for name in stored.keys() & own.keys() if stored[name].shape != own[name].shape}
    if missing or unexpected or other:
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
        text = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds if names)
        raise ValueError(
            f"{path} does not fit the model: tensors {text}. Resume with the run's own model.name, "
            f"model.overrides and optimizer.lora ({path / 'config.yaml'}), or start a new run with "
            f"model.pretrained={path / 'weights'}."
        )


def _some(names: Any, count: int = 3) -> str:
    first = sorted(names)
    return ", ".join(first[:count]) + (", ..." if len(first) > count else "")


def _restore_random(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
