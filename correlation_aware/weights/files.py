"""Checkpoints on disk: which files are read, and how they are written."""

import argparse
import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from correlation_aware._files import atomic_path

__all__ = [
    "SUFFIXES",
    "check_finite",
    "dense",
    "finite",
    "hash_state_dict",
    "read_state_dict",
    "write_state_dict",
]

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)

# Keys under which training code stores its tensors. The first one with tensors is taken: averaged weights
# before others, as in timm.
_WRAPPERS = (
    "state_dict_ema", "model_ema", "params_ema", "ema_state_dict",
    "state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module",
)  # fmt: skip

_MOST_REPEATED = 2**30  # bytes of tensors that are larger than their memory, as those of Tensor.expand

# Beyond what torch allows by itself (tensors, OrderedDict): bare holders of attributes and of single numbers.
# PVTv2's training code stores its arguments in a Namespace, many store their best score as a NumPy number.
_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
_ALLOWED_CLASSES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdFDUMm"},
    *[(_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]

_REFUSED = """\
{path} is a pickle that needs {refused}, which is not on the list of classes that may be loaded.
No code in the file was run. If you trust the file, this script writes its tensors alone to another one. Run
it where the code that wrote the file can be imported:

    import torch

    wrappers = {wrappers!r}

    def find(content, outer=()):
        if isinstance(content, torch.nn.Module):
            content = content.state_dict()
        if not isinstance(content, dict) or any(content is other for other in outer):
            return None
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return content
        inner = (find(content.get(key), (*outer, content)) for key in wrappers)
        return next((tensors for tensors in inner if tensors), None)

    content = torch.load({name!r}, map_location="cpu", weights_only=False)  # torch < 1.13: no weights_only
    tensors = find(content) or exit("no tensors by name: " + str(content)[:300])
    torch.save({{name: tensor.detach().clone() for name, tensor in tensors.items()}}, {target!r})

Then load {target} here, or convert it: correlation-aware weights convert {target} NEW.safetensors"""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads tensors by name, on the CPU.

    A pickle (`.pth`, `.pt`, `.bin`, `.pth.tar`, Lightning's `.ckpt`) is read with `weights_only=True` and a
    short list of allowed classes, so that no code in it can run. The tensors may be wrapped in dictionaries,
    under `state_dict`, `model`, `net`, `params` and similar keys; of several, averaged weights
    (`state_dict_ema`, `model_ema`, ...) are taken first. Prefixes of names stay, see `convert_state_dict`.

    Args:
        path: A `.safetensors` file or a pickle.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another suffix, or a file without tensors by name.
        RuntimeError: A damaged file, or a pickle of other classes; the message has a script that converts
            it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: a checkpoint ends in one of {', '.join(SUFFIXES)}, not in {path.suffix!r}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise RuntimeError(
                f"{path} is not a complete safetensors file ({error}). Remove it and get it again."
            ) from error
    return _unwrap(_load_pickle(path), path)


def write_state_dict(
    state_dict: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors by name as safetensors, completely or not at all.

    Args:
        state_dict: Tensors on any device and in any layout; those that share memory become separate.
        path: Path that ends in `.safetensors`; an existing file is replaced.
        metadata: Texts for the header of the file.

    Raises:
        ValueError: Another suffix, or a sparse tensor.
        OSError: The file cannot be written, such as on a full disk.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written as .safetensors, not as {path.suffix!r}.")
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        tensor = dense(name, value).detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    with atomic_path(path) as temporary:
        mode = temporary.stat().st_mode  # by the umask; safetensors itself writes files for their owner alone
        try:
            save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # of the operating system, such as a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
        temporary.chmod(mode)


def dense(name: str, tensor: Tensor, where: str | Path = "the tensors") -> Tensor:
    """The tensor, checked; its conjugate or negative is computed if it is stored so.

    Args:
        name: Name of the tensor.
        tensor: Tensor.
        where: Name of the tensors' origin for the message.

    Raises:
        ValueError: A tensor whose numbers are not in one block of memory, or that has none.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else str(tensor.layout)
        raise ValueError(f"{where}: {name!r} is a {kind} tensor; save tensor.to_dense().")
    return tensor.resolve_conj().resolve_neg()


def finite(tensor: Tensor) -> Tensor:
    """Which numbers of a tensor are finite; torch.isfinite does not know all 8-bit types."""
    return torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float())


def check_finite(state_dict: Mapping[str, Tensor], where: str | Path) -> None:
    """Checks every number.

    Args:
        state_dict: Tensors by name.
        where: Name of the tensors' origin for the message.

    Raises:
        RuntimeError: A tensor has a NaN or an infinity; the message names it.
    """
    bad = [name for name, tensor in state_dict.items() if not finite(tensor).all()]
    if bad:
        raise RuntimeError(
            f"{where}: {len(bad)} of {len(state_dict)} tensors are not finite, {bad[0]!r} among them."
        )


def hash_state_dict(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values of all tensors: 64 hexadecimal digits.

    Raises:
        ValueError: A sparse tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        values = dense(name, tensor).detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_ALLOWED_CLASSES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        refused = re.search(r"(?:GLOBAL|class) '?(\w[\w.]*\w)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            target = f"{path.name.split('.')[0]}.tensors.pth"
            message = _REFUSED.format(
                path=path, refused=refused[1], name=path.name, target=target, wrappers=_WRAPPERS
            )
        else:
            message = (
                f"{path} is not a complete checkpoint of torch.save ({path.stat().st_size} bytes, "
                f"{_reason(error)}). Download or save it again."
            )
        raise RuntimeError(message) from error


def _reason(error: Exception) -> str:
    """Why torch cannot read a file, if it says so in words."""
    lines = [line for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
    if isinstance(error, RuntimeError) and lines:
        return lines[0].split(". ")[0]
    return "neither a zip archive nor a pickle of tensors"  # of other bytes the reader's errors mean nothing


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    tensors = _find_tensors(content)
    if tensors is None:
        keys = isinstance(content, Mapping) and list(content)[:5]
        actual = (
            f"keys {', '.join(map(repr, keys))}" if keys else f"an empty or other {type(content).__name__}"
        )
        raise ValueError(
            f"{path} has no tensors by name, neither directly nor under {', '.join(_WRAPPERS)}: {actual}."
        )
    named = {str(name): dense(str(name), tensor, path) for name, tensor in tensors.items()}
    sizes = ((tensor.numel() * tensor.element_size(), tensor) for tensor in named.values())
    repeated = sum(size for size, tensor in sizes if size > tensor.untyped_storage().nbytes())
    if repeated > _MOST_REPEATED:
        raise ValueError(
            f"{path} has tensors that repeat few numbers to {repeated} bytes; at most {_MOST_REPEATED} are "
            "read."
        )
    return named


def _find_tensors(content: Any) -> Mapping[Any, Tensor] | None:
    """The first mapping of tensors in nested wrappers, each of which is searched once."""
    seen: set[int] = set()  # a pickle can have a wrapper in itself, and in many others
    waiting = [content]
    while waiting:
        wrapper = waiting.pop()
        if not isinstance(wrapper, Mapping) or id(wrapper) in seen:
            continue
        if wrapper and all(isinstance(value, Tensor) for value in wrapper.values()):
            return wrapper
        seen.add(id(wrapper))
        waiting += [wrapper.get(key) for key in reversed(_WRAPPERS)]
    return None
