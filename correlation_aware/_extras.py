"""Optional dependencies: imported on first use; the error of a missing one names the extra to install."""

import importlib
from typing import Any

__all__ = ["EXTRAS", "require"]

EXTRAS = {
    "accelerate": "train",
    "matplotlib": "viz",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "peft": "lora",
    "sklearn": "explain",
    "webdataset": "train",
    "yaml": "train",
}


def require(*names: str, message: str = "{names} is not installed") -> list[Any]:
    """Imports modules that an extra of this package installs.

    Args:
        names: Names of modules, such as `matplotlib.figure`.
        message: Start of the error message; `{names}` is replaced by the names of the missing modules.

    Returns:
        The modules.

    Raises:
        ModuleNotFoundError: A module is not installed; the message names the extra to install.
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
        missing_names = [str(error.name) for error in missing]
        extras = ",".join(dict.fromkeys(EXTRAS[name.partition(".")[0]] for name in missing_names))
        text = message.format(names=", ".join(missing_names))
        raise ModuleNotFoundError(f"{text}: pip install correlation_aware[{extras}]") from missing[0]
    return modules
