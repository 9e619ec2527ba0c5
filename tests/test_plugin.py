"""Plug-ins: a stranger's package in an environment of its own, one that fails, and the page about them."""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from correlation_aware.models.contract import TwoInputModel

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tests" / "plugin_package"
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
TRACKERS = ["acme_tiny_track", "acme_timm_track"]  # by our decorator, by timm's

GOOD = """
import timm.models
import correlation_aware as ca
from correlation_aware.models.registry import register_checkpoint_format
from correlation_aware.models.sbt import sbt_test_track

@ca.register_model
def good_track(**kwargs):
    return sbt_test_track(**kwargs)

cfg = {"url": "https://nowhere.invalid/weights.pth"}
default_cfgs = timm.models.generate_default_cfgs({"good_timm_track.late": cfg, "good_timm_track.early": cfg})

@timm.models.register_model
def good_timm_track(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None):
    model = sbt_test_track()
    model.asked = [pretrained, pretrained_cfg]
    return model

@ca.register_head("good")
class GoodHead(ca.TrackModel):
    def __init__(self, dim, feature_size):
        super().__init__(None, None)

@register_checkpoint_format("good", matches=lambda names: False)
def renamed(state_dict):
    return {f"renamed.{name}": tensor for name, tensor in state_dict.items()}
"""
TAKEN = """
import correlation_aware as ca

@ca.register_model
def sbt_base(**kwargs):
    raise AssertionError("a name that was taken")
"""
ASKED = """
import json, os, sys, warnings
import timm, torch
import correlation_aware as ca
from correlation_aware.models.sbt import sbt_test
from correlation_aware.weights import convert_state_dict

first, second = "format", "head"  # each in a process that has asked nothing before
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    first = second
answers = {"at import": "good" in sys.modules or timm.models.is_model("good_track")}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    if first == "format":
        answers["format"] = list(convert_state_dict({"a": torch.zeros(1)}, "good"))
    else:
        answers["head"] = type(ca.TrackModel.build(sbt_test(), "good").head).__name__
    answers["models"] = ca.list_models()
answers["timm"] = timm.models.is_model("good_track")
answers["warnings"] = [[str(w.message), w.category.__name__] for w in caught]
answers["sbt_base"] = ca.create_model("sbt_base", device="meta").pretrained_cfg["architecture"]
answers["trackers"] = [ca.create_tracker(n, pretrained=False).name for n in ("good_track", "good_timm_track")]
answers["asked"] = [
    ca.create_model(name, pretrained).asked
    for name, pretrained in (
        ("good_timm_track", False),
        ("good_timm_track", True),
        ("good_timm_track.early", True),
        ("good_timm_track", "early"),
    )
]
print(json.dumps(answers))
"""


def install_three(folder):
    """Three packages and their metadata, as pip leaves them; two of them cannot be imported."""
    for name, code in (("good", GOOD), ("rude", "raise OSError('no license server')"), ("taken", TAKEN)):
        install(folder, name, code)
    return folder


def install(folder, name, code):
    (folder / f"{name}.py").write_text(code)
    info = folder / f"acme_{name}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[correlation_aware.plugins]\nthe_{name} = {name}\n")


def run_beside(folder, *words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def answers_by_question(tmp_path_factory):
    """What a process answers whose first question is about a checkpoint format, or about a head."""
    lines = run_beside(install_three(tmp_path_factory.mktemp("installed")), "-c", ASKED).stdout.splitlines()
    return dict(zip(("format", "head"), map(json.loads, lines), strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
@pytest.mark.parametrize("first", ["format", "head"])
def test_plugins_are_imported_at_the_first_question_and_failures_are_named(answers_by_question, first):
    answers = answers_by_question[first]
    assert not answers["at import"] and answers["timm"]
    assert answers["sbt_base"] == "sbt_base" and answers["trackers"] == ["good_track", "good_timm_track"]
    assert answers["asked"] == [[False, None], [True, "late"], [True, "early"], [True, "early"]]
    failures = [text for text, kind in answers["warnings"] if kind == "RuntimeWarning"]
    assert len(failures) == 2  # each once
    assert "'the_rude' (rude) of acme-rude 0.3 cannot be used" in failures[0]
    assert "OSError: no license server" in failures[0]
    assert "'the_taken' (taken)" in failures[1] and "There is a model 'sbt_base' already" in failures[1]
    assert {"good_track", "good_timm_track", "sbt_base"} <= set(answers["models"])
    assert answers[first] == {"format": ["renamed.a"], "head": "GoodHead"}[first]


def test_the_command_line_works_beside_a_plugin_that_fails(tmp_path):
    done = run_beside(install_three(tmp_path), "-m", "correlation_aware", "models", "*_t*")
    assert {"good_track", "good_timm_track", "sbt_base_track"} <= set(done.stdout.split())
    assert "OSError: no license server" in done.stderr and "Traceback" not in done.stderr


HALF = """
import timm.models
import correlation_aware as ca
from correlation_aware.models.registry import register_checkpoint_format
import zgood

@ca.register_model(reported=(1.0, 2.0))
def half_track(**kwargs):
    pass

@timm.models.register_model
def half_timm_track(pretrained=False, **kwargs):
    pass

ca.register_head("half")(ca.TrackModel)
ca.register_reader("half")(list)
register_checkpoint_format("half", matches=lambda names: True)(dict)
raise OSError("no license server")
"""
SLOW = """
from pathlib import Path
import slow.models

if not Path("interrupted").exists():
    Path("interrupted").touch()
    raise KeyboardInterrupt
"""
INTERRUPTED = """
import json, warnings
import timm
import correlation_aware as ca
from correlation_aware.data.videos.readers import READERS
from correlation_aware.models import registry

answers = {"raised": []}
for _ in range(3):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            answers["models"] = ca.list_models()
        except BaseException as error:
            answers["raised"].append(f"{type(error).__name__}: {error}")
answers["models"] = ca.list_models()
names = [*timm.list_models(), *READERS, *registry.head_names(), *registry.checkpoint_formats()]
answers["half"] = [name for name in (*names, *answers["models"]) if name.startswith("half")]
answers["reported"] = registry.reported_costs("half_track")
print(json.dumps(answers))
"""


def test_a_plugin_that_fails_leaves_nothing_and_keeps_no_other_one_away(tmp_path):
    """It imports another plug-in, registers, and fails; one exits, one is interrupted and imported again."""
    good = GOOD.replace("good", "zgood").replace("Good", "Zgood")
    plugins = {"exits": "raise SystemExit(3)", "half": HALF, "slow": SLOW, "zgood": good}
    for name, code in plugins.items():
        install(tmp_path, name, code)
    registered = "import correlation_aware as ca\n@ca.register_model\ndef slow_track(**kwargs):\n    pass\n"
    package = tmp_path / "slow"
    package.mkdir()
    (tmp_path / "slow.py").rename(package / "__init__.py")
    (package / "models.py").write_text(registered)
    answers = json.loads(run_beside(tmp_path, "-c", INTERRUPTED).stdout)
    interruption, *failures = answers["raised"]
    assert interruption == "KeyboardInterrupt: "
    assert "'the_exits' (exits) of acme-exits 0.3 cannot be used" in failures[0]
    assert "SystemExit: 3" in failures[0] and "OSError: no license server" in failures[1]
    assert {"slow_track", "zgood_track", "zgood_timm_track"} <= set(answers["models"])
    assert answers["half"] == [] and answers["reported"] is None


PUBLIC = """
import sys, tempfile
import cv2, timm, torch
import correlation_aware as ca

names = sys.argv[1:]
assert not any(map(timm.models.is_model, names)) and "acme_trackers" not in sys.modules  # not imported yet
for name in names:
    assert name in ca.list_models("acme*") and f"{name}.demo" in ca.list_models(pretrained=True)
    assert name in timm.list_models("acme*") and f"{name}.demo" in timm.list_models(pretrained=True)
    torch.manual_seed(0)
    template, search = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    model = ca.create_model(f"{name}.demo", pretrained=True).eval()
    assert model.weights_name == f"{name}.demo" and model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert model.sizes == ca.Sizes(64, 128) and len(model.encode_template(template)) == 2
    with torch.inference_mode():
        expected = model(template, search).boxes
        random = ca.create_model(name).eval()(template, search).boxes
        assert not torch.equal(random, expected)
        for same in (
            ca.create_model(name, pretrained="demo"),
            ca.create_model(name, pretrained=f"{name}.demo"),
            timm.create_model(name, pretrained=True),
            timm.create_model(f"{name}.demo", pretrained=True),
        ):
            assert torch.equal(same.eval()(template, search).boxes, expected)
            assert same.weights_name in (f"{name}.demo", "unknown")  # timm does not say which ones it loaded
        with tempfile.TemporaryDirectory() as folder:
            model.head.predict.bias += 1
            expected = model(template, search).boxes
            ca.save_pretrained(model, folder)
            theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
            for same in (ca.from_pretrained(folder), theirs):
                assert torch.equal(same.eval()(template, search).boxes, expected)
                assert tuple(same.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
            assert ca.create_tracker(folder).name == name
    ca.load_pretrained(ca.create_model(name), "demo")
    try:
        ca.create_model(f"{name}.nonsense", pretrained=True)
    except ValueError as error:
        assert "Its tags: demo." in str(error), error
    assert type(ca.create_model("sbt_test_track", head="acme").head).__name__ == "AcmeHead"
    assert type(ca.create_model(name, head="cell").head).__name__ == "CellHead"
    assert ca.create_model(name, search_size=96, in_chans=1).pretrained_cfg["input_size"] == (1, 96, 96)

    tracker = ca.create_tracker(name, device="cpu")
    assert tracker.name == name and tracker.weights_name == f"{name}.demo"
    frames = [cv2.imread(f"clips/one/{i}.png")[..., ::-1].copy() for i in range(3)]
    tracker.init(frames[0], (16, 37, 20, 17))
    alone = [tracker.update(frame) for frame in frames[1:]]
    tracker.init(frames[0], [(16, 37, 20, 17), (60, 60, 20, 20)])
    together = [tracker.update(frame)[0] for frame in frames[1:]]
    boxes = [torch.tensor([result.box for result in results]) for results in (alone, together)]
    torch.testing.assert_close(*boxes, rtol=0, atol=0.1)  # pixels
    maps = ca.create_model("acme_tiny", features_only=True)(template, search)
    assert [m.shape for m in maps] == [(1, 32, 16, 16)]
"""


# runs the commands of stdin, by folder, in one process, which imports torch once
COMMANDS = """
import contextlib, io, json, os, sys
from correlation_aware.cli import main

for folder, commands in json.load(sys.stdin).items():
    os.chdir(folder)
    outputs = []
    for words in commands:
        sys.argv, output, code = ["correlation-aware", *words], io.StringIO(), 0
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                main()
            except SystemExit as error:
                code = error.code or 0
        outputs.append([code, output.getvalue()])
    json.dump(outputs, open("outputs.json", "w"))
print(sys.modules["correlation_aware"].__file__, sys.modules["acme_trackers"].__file__)
"""


class Environment:
    """A virtual environment with the wheel of the plug-in, which sees this checkout and its dependencies."""

    def __init__(self, folder):
        self.folder = folder
        source = shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
        build = ["-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "dist", source]
        self.run(sys.executable, *build)
        (wheel,) = (folder / "dist").glob("*.whl")
        venv.create(folder / "env", with_pip=False)
        paths = {"base": str(folder / "env"), "platbase": str(folder / "env")}
        packages = Path(sysconfig.get_path("purelib", "venv", paths))
        pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", packages, wheel]
        self.run(sys.executable, *pip)
        (packages / "tests.pth").write_text("\n".join([str(ROOT), *site.getsitepackages()]))
        self.python = Path(sysconfig.get_path("scripts", "venv", paths)) / Path(sys.executable).name

    def run(self, *words, folder=None, text=None):
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "CORRELATION_AWARE_CACHE": str(self.folder / "cache")}
        done = subprocess.run(
            [str(word) for word in words],
            cwd=folder or self.folder,
            env=environment,
            input=text,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with clips in the layout of Acme's reader; the first target starts at 16, 37, 20, 17."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path(str(PACKAGE / "make_clips.py"))
    return folder


def page_commands(model):
    """The commands of the page, by their first word, with that model in place of the page's."""
    lines = re.findall(r"^correlation-aware (.*)$", PAGE, re.MULTILINE)
    words = [shlex.split(line.replace("acme_tiny_track", model)) for line in lines]
    return {first: [first, *rest] for first, *rest in words}


@pytest.fixture(scope="module")
def all_commands(environment, work):
    """Folder, and commands by name, of every tracker: the page's, a resumed run, one from trained weights."""
    runs = {}
    for name in TRACKERS:
        folder = shutil.copytree(work / "clips", work / name / "clips").parent
        words = page_commands(name)
        words["resume"] = ["train", "track", "--output", "run", "--resume", "--set", "schedule.steps=3"]
        tagged = page_commands(f"{name}.demo")["train"]
        words["tagged"] = ["second" if word == "run" else word for word in tagged]
        trained = "run/checkpoints/step-00000002/weights"
        words["push"] = ["weights", "push", trained, "org/name", f"{name}.v1", "--training", "Two steps."]
        runs[name] = folder, words
    text = json.dumps({str(folder): list(words.values()) for folder, words in runs.values()})
    ours, theirs = environment.run(environment.python, "-c", COMMANDS, folder=work, text=text).split()
    assert Path(ours).is_relative_to(ROOT) and Path(theirs).is_relative_to(environment.folder)
    return runs


@pytest.fixture(scope="module", params=TRACKERS)
def commands(request, all_commands):
    """Name of a tracker, folder of its commands, and their outputs."""
    folder, words = all_commands[request.param]
    outputs = {}
    for key, (code, output) in zip(words, json.loads((folder / "outputs.json").read_text())):
        assert code == 0, f"{words[key]}\n{output}"
        outputs[key] = output
    return request.param, folder, outputs


@pytest.mark.slow
def test_python(environment, work):
    environment.run(environment.python, "-c", PUBLIC, *TRACKERS, folder=work)


@pytest.mark.slow
def test_the_strangers_own_tests_pass_there(environment):
    tests = PACKAGE / "tests"
    options = ["-p", "no:cacheprovider", "--rootdir", tests, "-W", "error::RuntimeWarning"]
    output = environment.run(environment.python, "-B", "-m", "pytest", *options, tests)
    assert "15 passed" in output, output


@pytest.mark.slow
def test_models(commands):
    _, _, outputs = commands
    rows = [re.findall(r"[\w./]+", line) for line in outputs["models"].splitlines() if "acme" in line]
    costs = ["64/128", "0.02", "0.01", "0.01"]
    reported = {"acme_tiny_track": ["0.02", "0.01"]}
    assert rows == [[name, *costs, *reported.get(name, [])] for name in sorted(["acme_tiny", *TRACKERS])]


@pytest.mark.slow
def test_track(commands):
    name, folder, outputs = commands
    assert f"{name} with the weights {name}.demo" in outputs["track"]
    with (folder / "boxes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == [str(i) for i in range(6)]
    assert [float(rows[0][key]) for key in "xywh"] == [16, 37, 20, 17]
    assert rows[1]["x"] != rows[2]["x"] and all(0 < float(row["score"]) <= 1 for row in rows)


@pytest.mark.slow
def test_train_track(commands):
    """Two steps on Acme's reader; the average that is saved has the buffers of BatchNorm, moved and whole."""
    name, folder, outputs = commands
    assert "Done: step 2" in outputs["train"] and "Done: step 3" in outputs["resume"]
    weights = folder / "run" / "checkpoints" / "step-00000002" / "weights"
    assert json.loads((weights / "config.json").read_text())["architecture"] == name
    tensors = load_file(weights / "model.safetensors")
    assert tensors["backbone.cnn.0.1.num_batches_tracked"] == 4  # template and search image of two steps
    assert abs(tensors["backbone.cnn.0.1.running_mean"]).max() > 0
    assert "Would upload" in outputs["push"] and f'"{name}.v1": {{' in outputs["push"]
    loaded = re.sub(r"\s+", " ", outputs["tagged"])
    assert f"{name}.demo: tensors" in loaded and "Done: step 2" in loaded


@pytest.mark.slow
def test_export(commands):
    name, folder, outputs = commands
    rows = re.findall(rf"^exported.{name}\.(\w+)\.onnx +[\d.]+ +([\d.e-]+)", outputs["export"], re.MULTILINE)
    assert [graph for graph, _ in rows] == ["template", "search", "pair"]
    assert all(float(difference) < 1e-5 for _, difference in rows)  # float32 in another order
    assert len(list((folder / "exported").glob(f"{name}.*.onnx"))) == 3


@pytest.mark.slow
def test_bench(commands):
    name, folder, _ = commands
    (case,) = json.loads((folder / "bench.json").read_text())["cases"]
    assert case["model"] == name and case["weights"] == f"{name}.demo" and not case["skipped"]
    assert [row["contender"] for row in case["rows"]] == ["reference"] * 2 + ["eager"] * 2 + ["onnx"] * 2
    assert all(row["difference"] < 1e-5 and row["argmax_kept"] == 1 for row in case["rows"])


def test_no_file_of_ours_names_the_plugin():
    """Adding a family touches its own files alone."""
    names = re.compile("acme_tiny|acme_timm|acme_trackers|AcmeHead|AcmeVideos")
    files = [*(ROOT / "correlation_aware").rglob("*.py"), ROOT / "setup.cfg", ROOT / "pyproject.toml"]
    assert len(files) > 100 and not [path for path in files if names.search(path.read_text(encoding="utf-8"))]


def test_the_page_shows_the_package():
    blocks = re.findall(r"```(?:python|toml|json)\n(.*?)```", PAGE, re.DOTALL)
    suffixes = (".py", ".toml", ".json")
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*") if path.suffix in suffixes]
    assert len(blocks) > 10
    assert not [block for block in blocks if not any(block in source for source in sources)]


def test_the_page_has_every_member_of_the_contract():
    table = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    listed = set(re.findall(r"`(\w+)`", " ".join(table)))
    members = {
        name for name, value in vars(TwoInputModel).items() if callable(value) or isinstance(value, property)
    }
    assert listed == {name for name in members if not name.startswith("_")} | {"num_features", "templates"}
