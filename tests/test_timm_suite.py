"""timm's own model tests over our classifiers: the installed version's file, which is downloaded."""

import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import timm

import correlation_aware

NAMES = ("sbt_test_cls", "sbt_light_cls")
# timm's tests that must fail: what the failure says, and why that is right
REFUSED = {
    "test_model_forward_torchscript": (
        r"torch\.jit\.script cannot compile SBT",
        "operations are chosen in Python, which TorchScript does not compile",
    ),
    "test_model_forward_fx_torchscript": (
        r"torch\.jit\.script cannot compile SBT",
        "the traced graph calls the same stages",
    ),
    "test_model_forward_intermediates_features": (
        "Unknown argument 'feature_cls'",
        "features_only is a FeatureGetterNet in any case, there is nothing to choose",
    ),
}
PLUGIN = f"""
import timm
import correlation_aware  # registers the names

_list_models = timm.list_models


def list_models(filter="", module="", **options):
    if module and not isinstance(module, str):  # modules whose models have forward_intermediates
        module = [*module, "sbt"]
    return [n for n in _list_models(filter, module, **options) if n.partition(".")[0] in {NAMES}]


timm.list_models = list_models
"""


def download_tests(folder: Path) -> Path:
    """timm's tests/test_models.py; the test is skipped where there is no way to get it."""
    version = timm.__version__
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        f"timm=={version}",
        "--no-binary",
        ":all:",
        "--no-deps",
    ]
    pip = subprocess.run([*command, "-q", "-d", str(folder)], capture_output=True, text=True)
    if pip.returncode:
        reason = (pip.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"the source distribution of timm {version} cannot be downloaded: {reason}")
    (archive,) = folder.glob("timm-*.tar.gz")
    with tarfile.open(archive) as tar:
        member = next((m for m in tar if m.name.endswith("/tests/test_models.py")), None)
        source = tar.extractfile(member) if member else None
        if source is None:
            pytest.skip(f"the source distribution of timm {version} has no tests")
        target = folder / "test_models.py"
        target.write_bytes(source.read())
    return target


@pytest.mark.slow
def test_timms_tests_pass_over_our_classifiers(tmp_path):
    tests = download_tests(tmp_path)
    (tmp_path / "only_ours.py").write_text(PLUGIN)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    report = tmp_path / "report.xml"
    environment = {k: v for k, v in os.environ.items() if k != "GITHUB_ACTIONS"}  # where timm tests less
    package = Path(correlation_aware.__file__).parents[1]
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"}
    command = [sys.executable, "-m", "pytest", "-p", "only_ours", "-p", "no:cacheprovider", "-W", "ignore"]
    run = subprocess.run(
        [*command, "-k", " or ".join(NAMES), f"--junitxml={report}", str(tests)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert report.exists(), run.stdout + run.stderr
    passed, failed = [], {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        problem = next((e for e in case if e.tag in ("failure", "error")), None)
        if problem is not None:
            failed[case.attrib["name"]] = f"{problem.get('message')}\n{problem.text}"
        elif case.find("skipped") is None:
            passed.append(case.attrib["name"])
    unexpected = {
        name: message
        for name, message in failed.items()
        if not re.search(REFUSED.get(name.partition("[")[0], ("(?!)",))[0], message)
    }
    assert not unexpected, "\n".join(f"{name}: {message}" for name, message in unexpected.items())
    assert len(passed) >= 16, passed
    assert {name.partition("[")[0] for name in failed} == REFUSED.keys(), "some of REFUSED pass now"
