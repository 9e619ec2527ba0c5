"""What lets the unmodified code of five public trackers run on a CPU with current PyTorch, numpy and Python.

Call the function of a tracker before its code is imported. Each puts back names that torch, torchvision,
numpy and Python have dropped, and stand-ins for packages that are not installed and that tracking does not
use. Nothing of the trackers' own code is here.
"""

import collections
import collections.abc
import importlib
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ["dimp", "siamfcpp", "stark", "stm", "stub_missing", "without_stark_weights"]


_stubs: set[str] = set()  # packages that `stub_missing` made


class _AnythingMeta(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class Anything(metaclass=_AnythingMeta):
    """Class, instance, function and attribute in one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


def stub_missing(*names: str) -> None:
    """Makes packages that are not installed importable; every name in them is `Anything`."""
    for name in names:
        root = name.partition(".")[0]
        if root not in _stubs and importlib.util.find_spec(root) is not None:
            continue
        _stubs.add(root)
        parent = None
        for i in range(name.count(".") + 1):
            parent = _module(".".join(name.split(".")[: i + 1]), parent)


def siamfcpp() -> None:
    """For video_analyst."""
    for name in ("Iterable", "Mapping", "MutableMapping", "Sequence"):
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))
    _restore_numpy()
    stub_missing("colorama", "loguru", "numba", "pandas", "pycocotools.coco", "scipy.optimize", "wget")


def dimp() -> None:
    """For pytracking, with the settings file of training that its install script writes."""
    import torchvision.models.resnet

    from correlation_aware.adapters import prroi_pool

    if not hasattr(torchvision.models.resnet, "model_urls"):
        torchvision.models.resnet.model_urls = {}
    stub_missing("jpeg4py", "pandas", "visdom.server")
    sys.modules["ltr.external.PreciseRoIPooling.pytorch.prroi_pool"] = prroi_pool  # of a CUDA submodule
    local: Any = ModuleType("ltr.admin.local")
    local.EnvironmentSettings = type(
        "EnvironmentSettings", (), {"workspace_dir": "", "tensorboard_dir": "", "pretrained_networks": ""}
    )
    sys.modules[local.__name__] = local


def stark() -> None:
    """For STARK and the trackers forked from it, such as OSTrack."""
    _restore_numpy()
    utils = _module("torchvision.models.utils")
    utils.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    six = _module("torch._six")
    six.string_classes, six.int_classes = (str, bytes), int
    stub_missing(
        "jpeg4py",
        "lmdb",
        "pandas",
        "pycocotools.coco",
        "tikzplotlib",
        "visdom.server",
        "wandb",
        "yacs.config",
    )
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
        torch.nn.Module.cuda = lambda self, *args, **kwargs: self
        torch.cuda.synchronize = lambda *args, **kwargs: None


def without_stark_weights() -> None:
    """Keeps STARK from downloading ImageNet weights, once its code is importable."""
    importlib.import_module("lib.models.stark.backbone").is_main_process = lambda: False


def stm() -> None:
    """For STM: ResNet-50 with the argument `pretrained` of older versions, and random weights."""
    import torchvision

    resnet50 = torchvision.models.resnet50
    torchvision.models.resnet50 = lambda pretrained: resnet50(weights=None)


def _restore_numpy() -> None:
    for name, kind in (("bool", bool), ("float", float), ("int", int), ("object", object)):
        if name not in vars(np):
            setattr(np, name, kind)


def _module(name: str, parent: Any = None) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    module: Any = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    module.__getattr__ = lambda attribute: getattr(Anything, attribute)
    sys.modules[name] = module
    if parent is not None:
        setattr(parent, name.rpartition(".")[2], module)
    return module
