"""Packages that only some parts need: imported on first use, or an error names the extra to install."""

import importlib
from typing import Any

__all__ = ["EXTRAS", "require"]

EXTRAS = {
    "accelerate": "train",
    "got10k": "eval",
    "matplotlib": "viz",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "six": "eval",
    "webdataset": "train",
    "yaml": "train",
}


def require(*names: str, message: str = "{names} is missing") -> list[Any]:
    """Imports modules that an extra of this package installs.

    Args:
        names: Modules, such as `matplotlib.figure`.
        message: Start of the error's message; `{names}` becomes the names of the missing modules.

    Raises:
        ModuleNotFoundError: Some are not installed; the message names the extra that has them.
    """
    modules, missing = [], []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] not in EXTRAS:
                raise
            missing.append(error)
    if missing:
        absent = [str(error.name) for error in missing]
        extras = ",".join(dict.fromkeys(EXTRAS[name.partition(".")[0]] for name in absent))
        said = message.format(names=", ".join(absent))
        raise ModuleNotFoundError(f"{said}: pip install correlation_aware[{extras}]") from missing[0]
    return modules
