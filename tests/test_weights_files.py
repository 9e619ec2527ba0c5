"""Checkpoints on disk: what is read, what is refused, and that nothing is ever half written."""

import argparse
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from correlation_aware._files import atomic_path, sha256_file
from correlation_aware.weights import check_finite, load_state_dict, read_state_dict, write_state_dict

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


class Bomb:
    """What a hostile checkpoint does: it names a function to be called while it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def settings() -> Any:
    """An object of a class that exists where the file is written and not where it is read."""
    names = ("lib", "lib.train", "lib.train.settings")
    sys.modules.update({name: types.ModuleType(name) for name in names})
    cls = type("Settings", (), {"__module__": names[-1], "__init__": lambda self: setattr(self, "seed", 1)})
    sys.modules[names[-1]].Settings = cls
    yield cls()
    for name in names:
        sys.modules.pop(name, None)


def same(got: dict[str, Tensor], expected: dict[str, Tensor] = TENSORS) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in expected)


def test_safetensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_state_dict(TENSORS, path, {"model": "sbt_test"})
    assert same(read_state_dict(path))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "model": "sbt_test"}
    hashes = set()
    for _ in range(5):
        write_state_dict(TENSORS, path)
        hashes.add(sha256_file(path))
    assert len(hashes) == 1


def test_any_layout_and_shared_memory(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tensors = {
        "whole": base,
        "tied": base,
        "slice": base[3:6],
        "transposed": base.view(3, 4).T,
        "channels_last": torch.rand(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base[:2]),
        "empty": torch.zeros(0),
        "scalar": torch.tensor(3),
        "bf16": base.bfloat16(),
    }
    write_state_dict(tensors, tmp_path / "w.safetensors")
    got = read_state_dict(tmp_path / "w.safetensors")
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[k], tensors[k]) and got[k].dtype == tensors[k].dtype for k in tensors)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.pth.tar"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "net", "model", "state_dict"])
def test_pickles_of_tensors(tmp_path: Path, name: str, zipped: bool, wrapper: str | None) -> None:
    content: Any = OrderedDict((f"module.{k}", v) for k, v in TENSORS.items())
    if wrapper:
        content = {"epoch": 3, "args": argparse.Namespace(lr=0.1), wrapper: content}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(tmp_path / name))


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_class_is_refused(tmp_path: Path, settings: Any, zipped: bool) -> None:
    path = tmp_path / "SBT_ep0500.pth.tar"
    content = {"net": OrderedDict(TENSORS), "settings": settings}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for name in ("lib", "lib.train", "lib.train.settings"):
        del sys.modules[name]
    with pytest.raises(RuntimeError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert "lib.train.settings.Settings" in message and "Nothing was unpickled" in message
    assert "'SBT_ep0500.pth.tar'" in message and "'SBT_ep0500.safetensors'" in message


def test_the_printed_script_works(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the class can be imported, the three lines of the message make a file that can be read here."""
    monkeypatch.chdir(tmp_path)
    torch.save({"net": OrderedDict(TENSORS), "settings": settings}, "SBT.pth.tar")
    with pytest.raises(RuntimeError) as caught:
        read_state_dict("SBT.pth.tar")
    script = [line.strip() for line in str(caught.value).splitlines() if line.startswith("    ")]
    assert len(script) == 3
    exec("\n".join(script).replace('"cpu")', '"cpu", weights_only=False)'), {})
    assert same(read_state_dict("SBT.safetensors"))


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_runs(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"net": TENSORS, "x": Bomb(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RuntimeError, match=r"foreign \w+\.mkdir"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_half_a_file(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    if name == "w.pth":
        torch.save(TENSORS, path)
    else:
        write_state_dict(TENSORS, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(RuntimeError, match="is not a whole"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize(
    "content", [b"<html>Not found</html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_another_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RuntimeError, match="is not a whole"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [[1], {}, {"epoch": 1}, {"net": {"a": 1}}, torch.ones(1)])
def test_no_tensors_by_name(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_state_dict(tmp_path / "w.pth")


def test_suffix_and_absence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in one of \.safetensors, \.pth"):
        read_state_dict(tmp_path / "w.npz")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_state_dict(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"written as \.safetensors"):
        write_state_dict(TENSORS, tmp_path / "w.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_state_dict(TENSORS, path)
    before = path.read_bytes()
    with pytest.raises(NotImplementedError):
        write_state_dict({**TENSORS, "c": torch.empty(3, device="meta")}, path)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            assert temporary.parent == tmp_path and temporary.suffix == ".safetensors"
            raise error
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_load_says_what_it_took_what_it_left_and_what_stays_fresh() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 3), b=nn.Linear(3, 4)))
    given = {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(5), "c": torch.ones(1)}
    report = load_state_dict(model, given, partial=True)
    assert report.taken == ("a.weight",) and report.left == ("a.bias", "c")
    assert report.fresh == ("a.bias", "b.weight", "b.bias") and bool((model[0].weight == 1).all())
    with pytest.raises(ValueError, match=r"Shapes that differ: a\.bias \(5,\) for \(3,\)"):
        load_state_dict(model, given)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_check_finite(bad: float) -> None:
    check_finite(TENSORS, "here")
    with pytest.raises(RuntimeError, match="here: 1 of 3 tensors are not finite, 'c'"):
        check_finite({**TENSORS, "c": torch.tensor([0, bad])}, "here")
