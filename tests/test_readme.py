"""The README tells the truth: its table is what the code counts, its Python runs, CI types its commands."""

import re
from pathlib import Path

import pytest
import torch

import correlation_aware as ca
from correlation_aware.models.profile import profile

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_model_table():
    rows = re.findall(r"^\| (\w+) \| (.*?) \|$", README, re.MULTILINE)
    table = {name: cells.split(" | ") for name, cells in rows if len(cells.split("|")) == 7}
    bases = {n for n in ca.list_models(module="sbt") if not n.endswith(("_track", "_cls"))}
    adapted = {f"sbt_small_{tracker}" for tracker in ("stark", "siamfcpp", "stm")}  # feature networks alone
    assert set(table) == bases - adapted - {n for n in bases if "_test" in n}
    assert all(f"`{name}`" in README for name in adapted)
    for name, cells in table.items():
        bare, track = (profile(ca.create_model(n, device="meta")) for n in (name, f"{name}_track"))
        counted = (
            bare.params / 1e6,
            bare.macs / 1e9,
            bare.cached_macs / 1e9,
            track.params / 1e6,
            track.macs / 1e9,
        )
        assert cells[:5] == [f"{figure:.2f}" for figure in counted]


@torch.no_grad()
def test_quick_start_runs():
    code = re.search(r"## Quick start\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    names = {
        "template": torch.randn(1, 3, 128, 128),
        "search": torch.randn(1, 3, 256, 256),
        "image": torch.randn(1, 3, 64, 64),
    }
    exec(code, names)
    assert names["x"].shape == (1, 320, 32, 32) and names["logits"].shape == (1, 10)
    assert names["out"].scores.shape == (1, 32, 32) and names["out"].boxes.shape == (1, 4, 32, 32)


def test_overrides_of_the_readme_are_known():
    code = re.search(r"`(create_model\(\"sbt_base\", attention=.*?)`", README, re.DOTALL)[1]
    assert eval(f"ca.{code}").config.patch_embed == "patchify"


def test_ci_runs_the_two_commands():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2 and "correlation-aware demo" in commands[0] and commands[1].endswith("pytest")
    assert "grep '^python3 -m venv' README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("adapter", ["siamfcpp", "dimp", "stark", "stm", "ostrack"])
def test_the_lines_for_a_tracker_are_those_of_its_page(adapter):
    page = (ROOT / "docs" / f"adapters_{adapter}.md").read_text().splitlines()
    sections = re.split(r"^###+ ", README, flags=re.MULTILINE)
    (section,) = [text for text in sections if f"(docs/adapters_{adapter}.md)" in text]
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", section, re.DOTALL)
    assert blocks and all(line in page for block in blocks for line in block.splitlines())
    names = re.findall(rf"from correlation_aware\.adapters\.{adapter} import (\w+)", section)
    names += re.findall(rf"^{adapter}\.(\w+)\(\)", section, re.MULTILINE)
    names += re.findall(r"name: (S\w+)", section)
    assert names and all(
        f'"{name}"' in (ROOT / "correlation_aware" / "adapters" / f"{adapter}.py").read_text()
        for name in names
    )


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)[#)]", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
