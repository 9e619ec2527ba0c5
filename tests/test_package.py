"""The package as users get it: wheel by way of the sdist, bare checkout, public surface, command line."""

import configparser
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import correlation_aware as ca
from correlation_aware._extras import EXTRAS, NAMES, require
from correlation_aware._program import is_command_line

ROOT = Path(__file__).resolve().parent.parent

IMPORT_ALL = """
import importlib, pkgutil, sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", str(f))]
import correlation_aware, correlation_aware.adapters
names = [m.name for m in pkgutil.walk_packages(correlation_aware.__path__, "correlation_aware.")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # an adapter without its tracker says where to put it
        assert name.startswith("correlation_aware.adapters.") and "PYTHONPATH" in str(error), name
print(correlation_aware.__file__, correlation_aware.adapters.__file__, len(correlation_aware.list_models()))
"""


def run_python(code, folder, path):
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_wheel_from_sdist_imports_everything_elsewhere(tmp_path):
    source = tmp_path / "source"  # a copy: the build leaves folders beside what it builds
    unbuilt = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "runs")
    shutil.copytree(ROOT, source, symlinks=True, ignore=unbuilt)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = ROOT / "correlation_aware"
    data = [*package.glob("checkpoints/*.safetensors"), *package.glob("training/configs/*.yaml")]
    data += package.glob("tracking/browser/*")
    data += [
        package / name
        for name in ("weights_manifest.json", "py.typed", "evaluation/report.html", "cli/web_app.html")
    ]
    assert len(data) > 4 and {str(path.relative_to(ROOT)) for path in data} <= set(names)
    assert {n.split("/")[0] for n in names} == {
        "correlation_aware",
        f"correlation_aware-{ca.__version__}.dist-info",
    }
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(tmp_path / "site"),
            str(wheel),
        ],
        check=True,
    )
    package, adapters, models = run_python(IMPORT_ALL, tmp_path, tmp_path / "site")
    assert Path(package) == tmp_path / "site" / "correlation_aware" / "__init__.py"
    assert Path(adapters) == tmp_path / "site" / "correlation_aware" / "adapters" / "__init__.py"
    assert int(models) == len(ca.list_models())


def test_bare_checkout_imports_everything(tmp_path):
    package, adapters, _ = run_python(IMPORT_ALL, tmp_path, ROOT)
    assert Path(package) == ROOT / "correlation_aware" / "__init__.py"
    assert Path(adapters) == ROOT / "correlation_aware" / "adapters" / "__init__.py"


@pytest.mark.parametrize("name", ["tests", "benchmarks", "correlation_aware"])
def test_folders_beside_the_package_are_no_part_of_it(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"correlation_aware.{name}")


@pytest.mark.parametrize("name", ["weights_manifest.json", "adapters"])
def test_the_links_at_the_top_lead_into_the_package(name):
    assert (ROOT / name).is_symlink() and (ROOT / name).resolve() == ROOT / "correlation_aware" / name


def test_an_extra_is_named_that_has_what_is_missing(monkeypatch):
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg")
    extras = settings["options.extras_require"]
    for module, extra in EXTRAS.items():
        packages = {re.split("[<>=]", line)[0] for line in extras[extra].split()}
        assert NAMES.get(module, module) in packages
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=rf"{module} is not installed: .*\[{extra}\]") as raised:
            require("json", module)
        # a command that works: packages of others, each in quotes, and not this package's name
        command = str(raised.value).partition("pip install ")[2].partition(" (")[0]
        assert {re.split("[<>=]", package)[0] for package in shlex.split(command)} & packages
        assert "correlation_aware" not in command
    assert require("json", "re") == [json, re]
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        require("no_such_module")


def test_public_surface_is_documented():
    assert all(getattr(ca, name).__doc__ for name in ca.__all__ if name != "__version__")


def test_command_line():
    from typer.testing import CliRunner

    from correlation_aware.cli import app

    runner = CliRunner()
    names = runner.invoke(app, ["models", "--json"])
    assert json.loads(names.output) == ca.list_models()
    costs = runner.invoke(app, ["models", "sbt_light_track", "--profile", "--json"])
    (row,) = json.loads(costs.output)
    assert row["params"] == 3_733_734 and row["macs"] > row["cached_macs"] > 2.9e9
    table = runner.invoke(app, ["models", "sbt_light_track", "--profile"])
    assert "3.73" in table.output and "3.03" in table.output


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["track", "--help"], [], ["--version"], ["weights", "--help"]),
        *(
            ["trakc", "video.mp4"],
            ["track", "video.mp4", "--box", "1 2 3"],
            ["track", "video.mp4", "--bx", "1"],
        ),
    ],
)
def test_help_and_mistakes_import_no_torch(words):
    """The import of PyTorch and timm takes seconds, and completion of a command asks at every TAB."""
    command = [sys.executable, "-X", "importtime", "-m", "correlation_aware", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout or done.returncode) and "correlation_aware.cli" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "timm", "numpy", "cv2"}


def test_the_command_line_has_the_public_names():
    """A plug-in of the user, which a command imports, uses them as any program does."""
    code = f"""
import sys
sys.argv = ["correlation-aware", "models"]
import correlation_aware as ca
print("torch" in sys.modules)
from correlation_aware import {", ".join(ca.__all__)}
print(ca.create_model("sbt_test").num_features)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "32"], done.stderr


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/bin/correlation-aware", "track", "--help"], True),
        (["C:/Scripts/correlation-aware.exe", "--version"], True),
        (["correlation-aware"], True),
        (["train.py", "--help"], False),
        (["-c", "--help"], False),
        (["-m", "--help"], False),  # of another module, which imports this package
        ([], False),
    ],
)
def test_only_the_own_command_line_imports_late(monkeypatch, argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest", "-k", "correlation_aware"])
    assert is_command_line() == expected


def test_a_mistake_is_one_line_and_exit_code_1(monkeypatch, capsys):
    from correlation_aware.cli import main

    monkeypatch.setattr(sys, "argv", ["correlation-aware", "models", "nothing*"])
    with pytest.raises(SystemExit) as end:
        main()
    output = capsys.readouterr()
    assert end.value.code == 1 and output.out == ""
    (line,) = output.err.splitlines()
    assert "No model matches 'nothing*'" in line and line.startswith("error: ")
