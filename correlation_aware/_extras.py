"""Optional dependencies: imported on first use; the error of a missing one names the extra to install."""

import importlib
import re
from importlib import metadata
from typing import Any

__all__ = ["EXTRAS", "require"]

EXTRAS = {
    "accelerate": "train",
    "av": "video",
    "matplotlib": "viz",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "peft": "lora",
    "ray": "ray",
    "sklearn": "explain",
    "starlette": "app",
    "trax": "vot",
    "uvicorn": "app",
    "vos_benchmark": "davis",
    "vot": "vot",
    "webdataset": "train",
    "yaml": "train",
}
NAMES = {  # of packages that are not called like their module
    "sklearn": "scikit-learn",
    "trax": "vot-trax",
    "vos_benchmark": "vos-benchmark",
    "vot": "vot-toolkit",
    "yaml": "pyyaml",
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
        packages = " ".join(f'"{line}"' for extra in extras.split(",") for line in _requirements(extra))
        raise ModuleNotFoundError(f"{text}: pip install {packages} (the extra [{extras}])") from missing[0]
    return modules


def _requirements(extra: str) -> list[str]:
    """What an extra installs, by names that pip finds without this package's name."""
    try:
        lines = metadata.requires("correlation_aware") or []
    except metadata.PackageNotFoundError:  # a checkout on the path
        lines = []
    chosen = [line for line in lines if re.search(rf"""extra == ["']{extra}["']""", line)]
    names = [name for name, of in EXTRAS.items() if of == extra]
    return [line.partition(";")[0].strip() for line in chosen] or [NAMES.get(name, name) for name in names]
