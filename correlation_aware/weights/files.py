"""Checkpoints on disk: what may be read, and how they are written."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from correlation_aware._files import atomic_path

__all__ = [
    "SUFFIXES",
    "check_finite",
    "read_state_dict",
    "write_state_dict",
]

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)

# Beyond what torch allows by itself (tensors, OrderedDict). A Namespace is a bare holder of attributes; the
# training code of PVTv2 stores its arguments in one.
_ALLOWED_CLASSES: list[Any] = [argparse.Namespace]
_WRAPPERS = ("net", "model", "state_dict")

_REFUSED = """\
{path} is a pickle that asks for the foreign {refused}, which is not on the list of what may be loaded.
Nothing was unpickled, no code in the file was run.
Its owner can turn it into safetensors, where the code that wrote it can be imported:

    import torch; from safetensors.torch import save_file
    checkpoint = torch.load({name!r}, map_location="cpu")  # torch >= 2.6: add weights_only=False
    save_file({{k: v.contiguous().clone() for k, v in checkpoint["net"].items()}}, {target!r})

The file {target} can then be loaded or converted here."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads tensors by name, on the CPU.

    A pickle (`.pth`, `.pt`, `.bin`, `.pth.tar`) is read with `weights_only=True` and a short list of allowed
    classes, so that no code in it can run. Wrappers (`net`, `model`, `state_dict`) and the prefix `module.`
    are taken off.

    Args:
        path: A `.safetensors` file or a pickle.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another suffix, or a file without tensors by name.
        RuntimeError: A damaged file, or a pickle of foreign classes; the message tells how to convert it.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: a checkpoint ends in one of {', '.join(SUFFIXES)}, not in {path.suffix!r}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise RuntimeError(
                f"{path} is not a whole safetensors file ({error}). Remove it and get it again."
            ) from error
    return _unwrap(_load_pickle(path), path)


def write_state_dict(
    state_dict: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors by name as safetensors, whole or not at all.

    Args:
        state_dict: Tensors on any device and in any layout; those that share memory become separate.
        path: Ends in `.safetensors`; an existing file is replaced.
        metadata: Texts for the header of the file.

    Raises:
        ValueError: Another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written as .safetensors, not as {path.suffix!r}.")
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})


def check_finite(state_dict: Mapping[str, Tensor], where: str | Path) -> None:
    """Checks every number.

    Args:
        state_dict: Tensors by name.
        where: What to call them in the message.

    Raises:
        RuntimeError: A tensor has a NaN or an infinity; the message names it.
    """
    bad = [name for name, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise RuntimeError(
            f"{where}: {len(bad)} of {len(state_dict)} tensors are not finite, {bad[0]!r} among them."
        )


def _load_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_ALLOWED_CLASSES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        refused = re.search(r"(?:GLOBAL|class) (\w+\.[\w.]*\w)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            target = f"{path.name.split('.')[0]}.safetensors"
            message = _REFUSED.format(path=path, refused=refused[1], name=path.name, target=target)
        else:
            lines = [line for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
            reason = lines[0].split(". ")[0] if lines else type(error).__name__
            message = f"{path} is not a whole checkpoint of torch.save ({reason}). Get it again."
        raise RuntimeError(message) from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    named = dict(content) if isinstance(content, Mapping) else {}
    if not named or not all(isinstance(value, Tensor) for value in named.values()):
        found = f"keys {', '.join(map(repr, list(named)[:5]))}" if named else type(content).__name__
        raise ValueError(
            f"{path} holds no tensors by name, neither bare nor under {', '.join(_WRAPPERS)}: {found}."
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in named.items()}
