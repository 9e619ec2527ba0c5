"""Checkpoints on disk: what is read, what is refused, and that nothing is ever half written."""

import argparse
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from correlation_aware._files import atomic_path, sha256_file
from correlation_aware.weights import check_finite, files, load_state_dict, read_state_dict, write_state_dict

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
OTHERS = {"a": torch.zeros(2, 3), "b": torch.tensor([0, 0])}


class Bomb:
    """What a hostile checkpoint does: it names a function to be called while it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


CODE = """
import torch

class Settings:
    seed = 1

class Net(torch.nn.Module):
    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
"""
WRITE = """
import json, sys, torch
from training.code import Net, Settings

T = torch.load("tensors.pt")
for name, content, zipped in json.load(sys.stdin):
    torch.save(eval(content), name, _use_new_zipfile_serialization=zipped)
"""
RUN = """
import json, sys

for script in json.load(sys.stdin):
    exec(script, {"__name__": "__main__"})
"""
FOREIGN = [
    "{'net': T, 'settings': Settings()}",
    "{'epoch': Settings(), 'state_dict': T}",
    "{'model_ema': T, 'model': {'c': T['b']}, 'args': Settings()}",
    "{'hyper_parameters': Settings(), 'state_dict': {}, 'params': T}",
    "{'model': Net(T)}",
    "Net(T)",
]


def run_there(project: Path, code: str, work: list[Any]) -> None:
    """Runs a program beside somebody's training code, which this process cannot import."""
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, input=json.dumps(work), text=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with somebody's training code and its checkpoints: `0.pth.tar` to `5.pth.tar` of FOREIGN.

    `SBT_ep0500.pth.tar` and `SBT_ep0501.pth.tar`, of PyTorch's older format, have the content of the first.
    """
    folder = tmp_path_factory.mktemp("project")
    (folder / "training").mkdir()
    (folder / "training" / "code.py").write_text(CODE)
    torch.save(TENSORS, folder / "tensors.pt")
    work = [(f"{i}.pth.tar", content, True) for i, content in enumerate(FOREIGN)]
    work += [("SBT_ep0500.pth.tar", FOREIGN[0], True), ("SBT_ep0501.pth.tar", FOREIGN[0], False)]
    run_there(folder, WRITE, work)
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(RuntimeError) as caught:
        read_state_dict(path)
    return str(caught.value)


@pytest.fixture(scope="module")
def refusals(project: Path) -> list[str]:
    """Messages about the files of FOREIGN, whose scripts have been run, each for itself, in one process."""
    messages, scripts = [refusal(project / f"{i}.pth.tar") for i in range(len(FOREIGN))], []
    for message in messages:
        lines = [line for line in message.splitlines() if line.startswith("    ") or not line]
        scripts.append(textwrap.dedent("\n".join(lines)))
    run_there(project, RUN, scripts)
    return messages


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


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.pth.tar", "w.ckpt", "w.PTH"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_tensors(tmp_path: Path, name: str, zipped: bool) -> None:
    content = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "net": OrderedDict(TENSORS)}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(tmp_path / name))


def test_safetensors_in_other_letters(tmp_path: Path) -> None:
    write_state_dict(TENSORS, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.SafeTensors")
    assert same(read_state_dict(tmp_path / "w.SafeTensors"))


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        *(
            {"epoch": 3, wrapper: TENSORS}
            for wrapper in ("state_dict", "model_state_dict", "model", "net", "network", "params", "module")
        ),
        *(
            {"model": OTHERS, "state_dict": OTHERS, "params": OTHERS, average: TENSORS}
            for average in ("state_dict_ema", "model_ema", "params_ema")
        ),
        {"model": {"state_dict": TENSORS}},
        {"state_dict": {}, "params": {"lr": 0.1}, "module": TENSORS},
    ],
    ids=lambda content: "-".join(map(str, content)),
)
def test_wrappers(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert same(read_state_dict(tmp_path / "w.pth"))


def test_numbers_of_numpy_are_allowed(tmp_path: Path) -> None:
    content = {"net": TENSORS, "best": np.float64(0.5), "epoch": np.int64(3), "done": np.bool_(True)}
    content |= {"day": np.datetime64("2026-01-01"), "root": np.complex64(1j)}
    torch.save(content, tmp_path / "w.pth")
    assert same(read_state_dict(tmp_path / "w.pth"))


def test_sparse_tensors_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'weight' is a torch\.sparse_coo tensor; save tensor\.to_dense"):
        load_state_dict(nn.Linear(2, 2, bias=False), {"weight": torch.eye(2).to_sparse()})


def test_a_file_that_refers_to_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content["model"] = {"net": content}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"has no tensors by name, .*: keys 'epoch', 'model'"):
        read_state_dict(tmp_path / "w.pth")


def test_wrappers_are_searched_once_each_and_to_any_depth(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    for _ in range(40):  # 3^40 ways
        content = dict.fromkeys(("state_dict", "model", "net"), content)
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"has no tensors by name, .*: keys 'state_dict', 'model', 'net'"):
        read_state_dict(tmp_path / "w.pth")
    inner, later = {"net": {"w": torch.ones(2)}}, {"w": torch.zeros(2)}
    content = {"state_dict": {"epoch": 3}, "model": inner, "params": later}
    torch.save(content, tmp_path / "w.pth")
    assert read_state_dict(tmp_path / "w.pth")["w"].tolist() == [1, 1]
    nested: Any = {"w": torch.ones(2)}
    for _ in range(10 * sys.getrecursionlimit()):
        nested = {"model": nested}
    found = files._find_tensors(nested)
    assert found is not None and found.keys() == {"w"}


@pytest.mark.parametrize("name", ["SBT_ep0500", "SBT_ep0501"])
def test_foreign_class_is_refused(project: Path, name: str) -> None:
    message = refusal(project / f"{name}.pth.tar")
    assert "training.code.Settings" in message and "No code in the file was run" in message
    assert f"'{name}.pth.tar'" in message and f"'{name}.tensors.pth'" in message


@pytest.mark.parametrize("number", range(len(FOREIGN)), ids=lambda number: FOREIGN[number])
def test_the_printed_script_works(project: Path, refusals: list[str], number: int) -> None:
    """Where the classes can be imported, the script of the message writes a file that is read here."""
    assert same(read_state_dict(project / f"{number}.tensors.pth"))
    assert f"load {number}.tensors.pth here" in refusals[number].splitlines()[-1]


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_runs(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"net": TENSORS, "x": Bomb(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RuntimeError, match=r"needs \w+\.mkdir, which"):
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
    with pytest.raises(RuntimeError, match="is not a complete"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize(
    "content", [b"<html>Not found</html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_another_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RuntimeError, match="is not a complete"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [[1], {}, {"epoch": 1}, {"net": {"a": 1}}, torch.ones(1)])
def test_no_tensors_by_name(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="has no tensors by name"):
        read_state_dict(tmp_path / "w.pth")


def test_suffix_and_absence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in one of \.safetensors, \.pth"):
        read_state_dict(tmp_path / "w.npz")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_state_dict(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"written as \.safetensors"):
        write_state_dict(TENSORS, tmp_path / "w.pth")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_state_dict(TENSORS, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_state_dict(TENSORS, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'c' is a meta tensor"):
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
    assert report.loaded == ("a.weight",) and report.unexpected == ("a.bias", "c")
    assert report.missing == ("a.bias", "b.weight", "b.bias") and bool((model[0].weight == 1).all())
    with pytest.raises(ValueError, match=r"Shapes that differ: a\.bias \(5,\) for \(3,\)"):
        load_state_dict(model, given)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_check_finite(bad: float) -> None:
    check_finite(TENSORS, "here")
    with pytest.raises(RuntimeError, match="here: 1 of 3 tensors are not finite, 'c'"):
        check_finite({**TENSORS, "c": torch.tensor([0, bad])}, "here")
