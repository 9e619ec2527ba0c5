"""Workspaces of the VOT toolkit: their files, and the measures that the toolkit writes.

A workspace is a folder with `config.yaml` (stack of experiments, folder of sequences) and `trackers.ini` (how
trackers are started). The toolkit adds `results/` and `analysis/`.
"""

import configparser
import json
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

from correlation_aware._extras import require
from correlation_aware._files import check_output_folder, read_json, read_text, write_text

__all__ = [
    "STACKS",
    "add_tracker",
    "check_identifier",
    "find_stack",
    "read_measures",
    "require_toolkit",
    "toolkit_hint",
    "tracker_names",
    "write_config",
]

# stacks of the short-term challenges with EAO, which the toolkit knows by name
STACKS = ("vot2020/shortterm", "vot2021/shortterm", "vot2022/shortterm", "vot2022/shorttermbox")
# columns of each analysis, in the order of the values in the toolkit's file
MEASURES = {
    "EAOScore": ("EAO",),
    "AverageAccuracyRobustness": ("accuracy", "robustness"),
    "AverageAccuracy": ("accuracy",),
}


def find_stack(text: str) -> str:
    """The value of `stack` in a workspace for a stack by name or file.

    Args:
        text: Name of a stack of the toolkit, such as `vot2022/shorttermbox`, or path of a YAML file.

    Returns:
        The name, or the absolute path.

    Raises:
        ValueError: Neither a stack that is known nor a file.
    """
    if Path(text).is_file():
        return str(Path(text).absolute())
    known = set(STACKS)
    toolkit = util.find_spec("vot")
    if toolkit is not None and toolkit.origin:
        folder = Path(toolkit.origin).parent / "stack"
        known |= {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    if text not in known:
        raise ValueError(
            f"There is no stack {text}, as a file or in the VOT toolkit; known: {', '.join(sorted(known))}"
        )
    return text


def write_config(folder: Path, stack: str | None, sequences: Path | None, default_stack: str) -> bool:
    """Writes `config.yaml` of a workspace; an existing one stays.

    Args:
        folder: Folder of the workspace.
        stack: Value of `find_stack`; None for the default, or for that of an existing workspace.
        sequences: Folder of the sequences with `list.txt`; None for `sequences` in the workspace.
        default_stack: Stack of a new workspace without `stack`.

    Returns:
        Whether the file was written.

    Raises:
        ValueError: An existing file that differs from `stack` or `sequences`, or sequences without a list.
    """
    if sequences is not None and not (sequences / "list.txt").is_file():
        raise ValueError(f"--sequences {sequences}: there is no list.txt with the names of sequences in it")
    lines = ["registry:", "- ./trackers.ini", f"stack: {json.dumps(stack or default_stack)}"]
    if sequences is not None:
        lines.append(f"sequences: {json.dumps(str(sequences.absolute()))}")
    text, path = "\n".join(lines) + "\n", folder / "config.yaml"
    if path.is_file():
        if (stack is not None or sequences is not None) and read_text(path) != text:
            raise ValueError(
                f"{path} exists and differs: leave out --stack and --sequences to add a tracker to that "
                "workspace, or choose another folder"
            )
        return False
    check_output_folder(folder)
    for inner in (folder, folder / "results", *([] if sequences else [folder / "sequences"])):
        inner.mkdir(parents=True, exist_ok=True)
    write_text(text, path)
    return True


def check_identifier(name: str) -> None:
    """Checks the identifier of a tracker.

    Raises:
        ValueError: Not letters, digits, minus signs and underscores.
    """
    if not re.fullmatch(r"[a-zA-Z0-9_-]+", name):
        raise ValueError(
            f"{name!r} is no identifier of the VOT toolkit: letters, digits, minus signs and underscores"
        )


def add_tracker(folder: Path, name: str, command: Sequence[str]) -> bool:
    """Adds an entry to `trackers.ini` of a workspace.

    Args:
        folder: Folder of the workspace.
        name: Identifier of the tracker.
        command: Words of the command that starts the tracker under TraX.

    Returns:
        Whether the file has changed; False if it has this entry already.

    Raises:
        ValueError: Not an identifier, a line break, or another entry of this name.
    """
    check_identifier(name)
    line = subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
    if set(line) & set("\r\n"):
        raise ValueError(f"A line break in {line!r} cannot be written to trackers.ini.")
    path = folder / "trackers.ini"
    before = read_text(path) if path.is_file() else ""
    entry = {"label": name, "protocol": "trax", "command": line.replace("%", "%%")}
    trackers = _read_trackers(before, path)
    if trackers.has_section(name):
        if all(trackers.get(name, key, raw=True, fallback=None) == value for key, value in entry.items()):
            return False
        raise ValueError(
            f"{path} has another tracker {name}. Choose another --name, or remove that entry and its results."
        )
    gap = "\n" if before.strip() else ""
    lines = "".join(f"{key} = {value}\n" for key, value in entry.items())
    write_text(f"{before}{gap}[{name}]\n{lines}", path)
    return True


def tracker_names(folder: Path) -> list[str]:
    """Identifiers of the trackers of a workspace.

    Raises:
        ValueError: Not a workspace, or one without a tracker.
    """
    path = folder / "trackers.ini"
    if not (folder / "config.yaml").is_file() or not path.is_file():
        raise ValueError(f"{folder} is no workspace: correlation-aware vot workspace {folder} makes one")
    names = _read_trackers(read_text(path), path).sections()
    if not names:
        raise ValueError(f"{path} has no tracker: correlation-aware vot workspace {folder} adds one")
    return names


def read_measures(file: Path) -> dict[tuple[str, str], dict[str, float]]:
    """EAO, accuracy and robustness in a file of `vot analysis --format json`.

    Returns:
        Measures by name, for each experiment and tracker.

    Raises:
        ValueError: Not such a file.
    """
    content = read_json(file)
    rows: dict[tuple[str, str], dict[str, float]] = {}
    try:
        for experiment, about in content["results"].items():
            for analysis, grid in zip(about["parameters"]["analyses"], about["results"], strict=True):
                columns = MEASURES.get(analysis["type"].rpartition(".")[2], ())
                for tracker, values in zip(content["trackers"], grid, strict=True):
                    row = rows.setdefault((experiment, tracker), {})
                    row |= {column: float(value) for column, value in zip(columns, values)}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no analysis of the VOT toolkit: {error!r}") from error
    return rows


def require_toolkit() -> None:
    """Checks that the toolkit is installed, without importing it.

    Raises:
        ModuleNotFoundError: It is not; the message names the packages and the extra to install.
    """
    require(*(name for name in ("vot", "trax") if util.find_spec(name) is None))


def toolkit_hint() -> str:
    """What to install where the installed versions of the toolkit are known to fail, or ""."""
    limits = {"vot-toolkit": (0, 8), "attributee": (0, 1, 10)}
    installed = {name: metadata.version(name) for name in limits}
    if all(_numbers(installed[name]) < limit for name, limit in limits.items()):
        return ""
    names = ", ".join(f"{name} {version}" for name, version in installed.items())
    return (
        f" Installed are {names}. vot-toolkit 0.8 and 0.9 fail in experiments with several starts, those of "
        "VOT2020 to VOT2022, and attributee 0.1.10 with Python 3.11 and later: "
        'pip install "vot-toolkit>=0.7.2,<0.8" "attributee<0.1.10" (the extra [vot])'
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _read_trackers(text: str, path: Path) -> configparser.ConfigParser:
    trackers = configparser.ConfigParser()
    try:
        trackers.read_string(text, str(path))
    except configparser.Error as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return trackers
