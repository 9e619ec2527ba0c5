"""The README tells the truth: its table is what the code counts, its Python runs, CI types its commands."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from costs import network_and_tracker

import correlation_aware as ca
from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking.video import VideoWriter

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_model_table():
    rows = re.findall(r"^\| ((?:sbt|supersbt|onestream_vit)_\w+) \| (.*?) \|$", README, re.MULTILINE)
    table = {name: cells.split(" | ") for name, cells in rows if len(cells.split("|")) == 7}
    names = [n for family in ("sbt", "supersbt", "vit") for n in ca.list_models(module=family)]
    bases = {n for n in names if not n.endswith(("_track", "_cls"))}
    adapted = {f"sbt_small_{tracker}" for tracker in ("stark", "siamfcpp", "stm")}  # feature networks alone
    adapted |= {"sbt_base_dimp"}
    assert set(table) == bases - adapted - {n for n in bases if "_test" in n}
    assert all(f"`{name}`" in README for name in adapted)
    families = set()
    for name, cells in table.items():
        family = name.partition("_")[0]
        bare, track = network_and_tracker(name, whole=family not in families)
        families.add(family)
        counted = (
            bare.params / 1e6,
            bare.macs / 1e9,
            bare.cached_macs / 1e9,
            track.params / 1e6,
            track.macs / 1e9,
        )
        assert cells[:5] == [f"{figure:.2f}" for figure in counted]
    assert len(families) == 3


@torch.no_grad()
def test_quick_start_runs():
    code = re.search(r"## Quick start\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["x"].shape == (1, 320, 32, 32) and names["logits"].shape == (1, 10)
    assert names["out"].scores.shape == (1, 32, 32) and names["out"].boxes.shape == (1, 4, 32, 32)


def test_tracking_and_sessions_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VideoWriter("video.mp4") as writer:
        for frame, _ in draw_clip(3, (240, 320)):
            writer.write(frame)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {"ca": ca}
    exec(next(block for block in blocks if "tracker.update" in block), names)
    assert (
        names["result"].index == 2 and names["tracker"].timings.frames == 2 and len(names["target"].box) == 4
    )
    names |= {"template": torch.randn(1, 3, 128, 128), "search": torch.randn(1, 3, 256, 256)}
    session = next(block for block in blocks if "InferenceSession" in block)
    exec(session.replace('runtime="onnx"', 'runtime="eager"'), names)  # an export would take a minute
    assert names["scores"].shape == (1, 32, 32)
    (config,) = re.findall(r"`create_tracker\(config=(.*?)\)`", README)
    assert eval(config, names).window_weight == 0.3
    (other,) = re.findall(r"`create_tracker\((ca\.create_model.*?\))\)`", README)
    assert eval(other, names).sizes.search_factor == 5


def test_overrides_of_the_readme_are_known():
    code = re.search(r"`(create_model\(\"sbt_base\", attention=.*?)`", README, re.DOTALL)[1]
    assert eval(f"ca.{code}").config.position == "relative"


def test_ci_runs_the_two_lines():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2 and "correlation-aware demo" in commands[0] and "pytest" in commands[1]
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


def test_the_index_of_the_documentation_is_complete():
    index = (ROOT / "docs" / "README.md").read_text()
    listed = re.findall(r"^\| \[([\w.]+)\]\(([\w.]+)\) \| \S", index, re.MULTILINE)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {link for _, link in listed} == pages and all(name == link for name, link in listed)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_of_the_documentation_lead_somewhere(page):
    for link, _, heading in re.findall(r"\]\((?!http)([^)#]*)(#([\w-]+))?\)", page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)[#)]", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
