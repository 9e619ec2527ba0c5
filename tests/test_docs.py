"""The pages tell the truth: commands parse, Python runs or names what exists, links and tables hold."""

import ast
import functools
import importlib.util
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from costs import network_and_tracker
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware.cli import app
from correlation_aware.demo_clip import draw_clip
from correlation_aware.tracking.video import VideoWriter, write_image
from correlation_aware.training.classify import ClassifyTraining
from correlation_aware.training.config import load
from correlation_aware.training.track import TrackTraining

ROOT = Path(__file__).resolve().parent.parent
PAGES = {str(p.relative_to(ROOT)): p.read_text() for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]}
SHIPPED = ROOT / "correlation_aware" / "training" / "configs"
ZOO = PAGES["docs/zoo.md"]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(  # of a model, with or without a tag; not of a file
    r"(?<![\w./])(?:sbt|siam|supersbt|onestream_vit)_\w+(?:\.(?!safetensors|png|md|pth)\w+)?"
    r"(?![\w*]|\.(?:safetensors|png|md|pth))"
)

# Words of a page that stand for files of the reader, as docs/README.md says: commands with them need data.
DATA = re.compile(
    r"\b[A-Z][A-Z_]{2,}\b|\b(photos|my_videos|other_photos|runs|results|boxes|shards|exported)/|\.pth\.tar|\.safetensors|GOT-10k"
    r"|(first|second)\.png|mine:build|cpu_by_model\.json|classifier/|^study plot"
)
# Commands that need none, and are too long for here: tests run them on smaller networks or shorter clips.
ELSEWHERE = {
    "app": "test_cli_app.py",
    "bench": "test_bench.py",
    "demo": "test_cli_track.py",
    "explain": "test_explain.py",
    "export": "test_runtime_session.py",
    "study": "test_study.py",
    "vot": "test_evaluation_vot.py",
}


def blocks(text, *languages):
    return [textwrap.dedent(code) for _, language, code in FENCE.findall(text) if language in languages]


def commands(text):
    """The commands of the shell blocks of a page, as lists of words, with variables replaced."""
    for block in blocks(text, "sh", "bash"):
        block = re.sub(r"(^|\s)#.*$", "", block.replace("\\\n", " "), flags=re.MULTILINE)
        variables: dict[str, str] = {}
        for name, value in re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE):
            variables[name] = value
        for name, value in variables.items():
            block = block.replace(f"${name}", value)
        lexer = shlex.shlex(block, posix=True, punctuation_chars="&|;\n")
        lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;\n"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def own(words):
    """The words after `correlation-aware`, if the command runs it, with variables or torchrun before it."""
    if "correlation-aware" not in words:
        return None
    start = words.index("correlation-aware")
    before = words[:start]
    known = all("=" in word for word in before) or before[:1] in (["torchrun"], ["accelerate"], ["do"])
    return words[start + 1 :] if known else None


OWN = sorted({(shlex.join(o), page) for page, text in PAGES.items() for c in commands(text) if (o := own(c))})


@functools.cache
def command_line():
    return typer.main.get_command(app)


def parse(words):
    """Name and values of the command, which is parsed and not run."""
    command, context, names = command_line(), None, []
    while True:
        context = command.make_context(
            names[-1] if names else "correlation-aware", list(words), parent=context
        )
        if not hasattr(command, "resolve_command"):
            return " ".join(names), context.params
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        names.append(name)


def check_names(text):
    assert set(NAME.findall(text)) <= {*ca.list_models(), *ca.list_models(pretrained=True)}, text


@pytest.mark.parametrize("line", sorted({line for line, _ in OWN}))
def test_a_command_is_known_to_the_command_line(line, tmp_path, monkeypatch):
    words = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    for word in words:
        if re.fullmatch(r"\w+\.json", word):
            (tmp_path / word).touch()  # some commands look for a file first
    if "acme" in line:
        words = [word.replace("acme_tiny", "sbt_test") for word in words]
    name, values = parse(words)
    check_names(" ".join(words))
    kind = {"train track": TrackTraining, "train classify": ClassifyTraining}.get(name)
    if kind and not values.get("resume"):
        load(kind, values["config"] and SHIPPED / f"{values['config']}.yaml", values["changes"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the commands name: a video, frames, a table of jobs."""
    monkeypatch.chdir(tmp_path)
    clip = [frame for frame, _ in draw_clip(4, (240, 360))]
    with VideoWriter("video.mp4", fps=20) as writer:
        for frame in clip:
            writer.write(frame)
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(clip[:2]):
        write_image(tmp_path / "frames" / f"left_{i}.png", frame)
    jobs = ["video,frame,x,y,w,h", "video.mp4,0,120,80,64,48", "frames,0,20,90,50,50"]
    (tmp_path / "jobs.csv").write_text("\n".join(jobs))
    return tmp_path


# a camera, a video of 80 seconds, a cluster, the Hub; several processes are too slow for here
NOT_HERE = re.compile(r"^track 0|--start 1:20|--ray|--processes|^weights download")
RUN = {
    line
    for line, _ in OWN
    if re.match(r"(track (video|'frames)|batch|study list|weights (list|verify))", line)
}
RUN -= {line for line in RUN if DATA.search(line) or NOT_HERE.search(line)}


def test_every_command_is_run_or_marked(folder):
    """Each is run here, or needs data, a camera, a plug-in or a cluster, or is run by a test of its own."""
    for line, page in OWN:
        words = shlex.split(line)
        if line in RUN:
            result = CliRunner().invoke(app, words)
            assert result.exit_code in (0, 3), (line, result.output, result.exception)
        elif page == "docs/plugins.md":  # run in an environment of its own by test_plugin.py
            continue
        elif not NOT_HERE.search(line):
            where = ELSEWHERE.get(words[0]) if not DATA.search(line) else None
            assert DATA.search(line) or where, f"{page}: mark what `{line}` needs, or run it"
            assert where is None or f'"{words[0]}"' in (ROOT / "tests" / where).read_text()
    assert (
        len(RUN) >= 6 and (folder / "tracked.mp4").exists() and (folder / "results" / "batch.json").exists()
    )


@pytest.mark.parametrize("page", PAGES)
def test_other_commands_exist(page):
    extras = re.findall(
        r"^(\w+) =$", (ROOT / "setup.cfg").read_text().split("extras_require]")[1], re.MULTILINE
    )
    for words in commands(PAGES[page]):
        if words[0] == "pip" and (named := re.search(r"\.\[(.*?)\]", " ".join(words))):
            assert set(named[1].split(",")) <= set(extras), words
        if words[0] == "python" and words[1] not in ("-c", "-m"):
            source = (ROOT / words[1]).read_text()
            assert all(f'"{word}"' in source for word in words[2:] if word.startswith("--")), words
    # a package index does not know this package: everything is installed from a checkout
    assert not re.search(r'pip install "?correlation_aware', PAGES[page])
    for line in re.findall(r"`correlation-aware ((?:[^`\n]|\n)+?)`", PAGES[page]):  # in the text
        words = [word for word in shlex.split(line) if word != "..."]
        command = command_line()
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        if not hasattr(command, "commands"):
            options = {name for parameter in command.params for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, line


def test_python_of_the_pages_names_what_exists():
    seen = 0
    for page, text in PAGES.items():
        for code in blocks(text, "python"):
            lines = [line.strip() if "=settings." in line else line for line in code.splitlines()]
            cut = "\n".join(lines).replace("optim_iter=5,", "optim_iter=5)")
            for node in ast.walk(ast.parse(cut)):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "ca"
                ):
                    assert hasattr(ca, node.attr), (page, node.attr)
                    seen += 1
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("correlation_aware"):
                    source = Path(importlib.util.find_spec(node.module).origin).read_text()
                    defined = source + " ".join(p.stem for p in Path(ROOT, *node.module.split(".")).glob("*"))
                    assert all(re.search(rf"\b{name.name}\b", defined) for name in node.names), (page, code)
                    seen += 1
            if page != "docs/plugins.md":
                check_names(code)
    assert seen > 50


@torch.no_grad()
def test_first_lines_of_the_zoo_run():
    names: dict[str, Any] = {}
    exec(blocks(ZOO, "python")[0], names)
    assert names["x"].shape == (1, 320, 32, 32) and names["logits"].shape == (1, 10)
    assert names["out"].scores.shape == (1, 32, 32) and names["out"].boxes.shape == (1, 4, 32, 32)


def test_overrides_of_the_zoo_are_known():
    code = re.search(r"`(create_model\(\"sbt_base\", attention=.*?)`", ZOO, re.DOTALL)[1]
    assert eval(f"ca.{code}").config.position == "relative"


def test_a_camera_in_five_lines(folder, capsys):
    (code,) = blocks(PAGES["docs/README.md"], "python")
    assert len([line for line in code.splitlines() if line]) <= 5
    exec(code.replace("ca.track(0, (220, 140", 'ca.track("video.mp4", (120, 30'), {})
    assert len(capsys.readouterr().out.splitlines()) == 4


@torch.no_grad()
def test_two_frames_become_the_two_images(folder):
    code = next(code for code in blocks(PAGES["docs/own_tracker.md"], "python") if "Crop" in code)
    clip = list(draw_clip(2, (240, 360)))
    names = {"first_frame": clip[0][0], "next_frame": clip[1][0], "box": clip[0][1]}
    exec(code, names)
    assert names["features"].shape == (1, 160, 32, 32)
    # the images are those of the tracker, and the box in the middle is where the crop is
    tracker = ca.create_tracker(ca.create_model("sbt_light_cell_track", pretrained=True))
    seen = []
    tracker.model.backbone.register_forward_pre_hook(lambda module, images: seen.append(images[1]))
    tracker.init(names["first_frame"], names["box"])
    tracker.update(names["next_frame"])
    np.testing.assert_allclose(names["search"], seen[0][:1], atol=1e-5)
    center = names["x"] + names["w"] / 2, names["y"] + names["h"] / 2
    x, y, w, h = names["box"]
    np.testing.assert_allclose(center, (x + w / 2, y + h / 2), atol=1)


@pytest.mark.parametrize("height, width", [(255, 239), (257, 64)])
def test_where_a_location_is(height, width):
    net = ca.create_model("sbt_test").eval()
    assert [net.feature_side(side) for side in (255, 239, 257)] == [32, 30, 33]
    features = net(torch.randn(1, 3, 64, 64), torch.randn(1, 3, height, width))
    assert features.shape[2:] == (-(-height // 8), -(-width // 8))


def test_a_session_runs():
    code = next(code for code in blocks(PAGES["docs/export.md"], "python") if "InferenceSession" in code)
    names = {"ca": ca, "template": torch.randn(1, 3, 128, 128), "search": torch.randn(1, 3, 256, 256)}
    exec(code.replace('runtime="onnx"', 'runtime="eager"'), names)  # an export would take a minute
    assert names["scores"].shape == (1, 32, 32)


def test_settings_of_the_tracker():
    page, names = PAGES["docs/tracking.md"], {"ca": ca}
    (config,) = re.findall(r"`create_tracker\(config=(.*?)\)`", page)
    assert eval(config, names).window_weight == 0.3
    (other,) = re.findall(r"`create_tracker\((ca\.create_model.*?\))\)`", page)
    assert eval(other, names).sizes.search_factor == 5


def test_model_table():
    rows = re.findall(r"^\| ((?:sbt|supersbt|onestream_vit)_\w+) \| (.*?) \|$", ZOO, re.MULTILINE)
    table = {name: cells.split(" | ") for name, cells in rows if len(cells.split("|")) == 7}
    names = [n for family in ("sbt", "supersbt", "vit") for n in ca.list_models(module=family)]
    bases = {n for n in names if not n.endswith(("_track", "_cls"))}
    adapted = {f"sbt_small_{tracker}" for tracker in ("stark", "siamfcpp", "stm")}  # feature networks alone
    adapted |= {"sbt_base_dimp"}
    assert set(table) == bases - adapted - {n for n in bases if "_test" in n}
    assert all(f"`{name}`" in ZOO for name in adapted)
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


@pytest.mark.parametrize("adapter", ["siamfcpp", "dimp", "stark", "stm", "ostrack"])
def test_the_lines_for_a_tracker_are_those_of_its_page(adapter):
    page = PAGES[f"docs/adapters_{adapter}.md"].splitlines()
    sections = re.split(r"^### ", PAGES["docs/adapters.md"].split("\n## ")[1], flags=re.MULTILINE)
    (section,) = [text for text in sections if f"(adapters_{adapter}.md)" in text]
    code = blocks(section, "python", "yaml")
    assert code and all(line in page for block in code for line in block.splitlines())
    names = re.findall(rf"from correlation_aware\.adapters\.{adapter} import (\w+)", section)
    names += re.findall(rf"^{adapter}\.(\w+)\(\)", section, re.MULTILINE)
    names += re.findall(r"name: (S\w+)", section)
    source = (ROOT / "correlation_aware" / "adapters" / f"{adapter}.py").read_text()
    assert names and all(f'"{name}"' in source for name in names)


def test_every_page_is_listed_and_in_the_navigation():
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    index = PAGES["docs/README.md"].split("## All pages")[1]
    assert set(re.findall(r"\]\(([\w/]+\.md)\)", index)) == pages - {"README.md"}
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    assert set(re.findall(r"([\w/]+\.md)$", navigation, re.MULTILINE)) == pages | {"source/CHANGELOG.md"}


def test_the_reference_has_the_public_surface():
    listed = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", PAGES[page], re.MULTILINE)]
    assert {f"correlation_aware.{name}" for name in ca.__all__ if name != "__version__"} <= set(listed)
    adapters = {p.stem for p in (ROOT / "correlation_aware" / "adapters").glob("*.py")}
    shared = {"__init__", "lib_trackers", "prroi_pool"}
    assert {name.split(".")[2] for name in listed if ".adapters." in name} == adapters - shared


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    text = FENCE.sub("", (ROOT / page).read_text())
    for link, _, heading in re.findall(r"\]\((?!http)([^)#]*)(#([\w-]+))?\)", text):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        if heading and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
