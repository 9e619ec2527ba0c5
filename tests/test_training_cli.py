"""`correlation-aware train`, as a user runs it."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from training_runs import make_trainer
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware import training
from correlation_aware.cli import app, train
from correlation_aware.data.keyed_random import KeyedRandom
from correlation_aware.data.videos.sequences import Folder
from correlation_aware.evaluation.videos import evaluate_video
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking.tracker import Tracker
from correlation_aware.training.classify import ClassifyTraining
from correlation_aware.training.config import load
from correlation_aware.training.log import read_log
from correlation_aware.training.track import TrackTraining, make_track_model, open_pairs


@pytest.fixture
def run():
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def mixer_weights(tmp_path):
    """Folder of a model whose head does not fit `sbt_test_track` with `head: cell`."""
    return ca.save_pretrained(ca.create_model("sbt_test_track"), tmp_path / "mixer")


def test_train_track_and_resume(run, photos, tmp_path):
    out = tmp_path / "run"
    words = ["train", "track", "--output", out, "--device", "cpu"]
    changes = ["model.name=sbt_test_track", f"data.sources={{{photos}: 1}}", "data.batch_size=2"]
    changes += ["schedule.steps=3", "schedule.warmup=1", "run.log_every=1"]
    words_of_changes = [w for change in changes for w in ("--set", change)]
    result = run(*words, *words_of_changes, "--max-minutes", 0)
    assert result.exit_code == 0, result.output
    assert "name: sbt_test_track" in result.output and "background: 0.0625" in result.output
    assert "Stopped; --resume continues: step 1" in result.output
    assert f"{photos}: 4 photographs" in result.output
    assert re.search(
        r"Device cpu, 1 process, .*2 pairs per step \(1 x 1 batches of 2\); (0\.\d+) of \1 M",
        result.output,
    )
    result = run(*words, *words_of_changes)  # the folder has a run: nothing is printed but the mistake
    assert result.exit_code != 0 and "background: 0.0625" not in result.output
    result = run(*words, "--resume")
    assert result.exit_code == 0, result.output
    assert "Done: step 3" in result.output and "giou" in result.output
    assert [r["step"] for r in read_log(out / "log.jsonl")] == [1, 2, 3]
    ca.create_model(out / "checkpoints" / "step-00000003" / "weights", pretrained=True)
    result = run(*words)
    assert isinstance(result.exception, ValueError)
    for command in (["curves", out], ["pairs", *(w for change in changes for w in ("--set", change))]):
        image = tmp_path / f"{command[0]}.png"
        result = run("train", *command, "--output", image)
        assert result.exit_code == 0, result.output
        assert cv2.imread(str(image)).shape[1] > 300


def write_video(folder, photos):
    """A folder of one video, of the photographs."""
    shutil.copytree(photos, folder / "one")
    (folder / "one" / "groundtruth.txt").write_text("40,30,50,40\n" * 4)
    return folder


def test_train_track_on_videos_and_stills(run, photos, tmp_path):
    write_video(tmp_path / "videos", photos)
    changes = ["model.name=sbt_test_track", "data.batch_size=2", "schedule.steps=4", "schedule.warmup=1"]
    changes += [f"data.videos={{'folder:{tmp_path / 'videos'}': 1}}", f"data.sources={{{photos}: 1}}"]
    changes += ["data.workers=1"]
    words = [w for change in changes for w in ("--set", change)]
    result = run("train", "track", "--output", tmp_path / "run", "--device", "cpu", *words)
    assert result.exit_code == 0, result.output
    assert re.search(r"step 4 .* left 0:00:00", result.output)
    assert "Done: step 4" in result.output and "1 videos, 4 frames" in result.output
    weights = tmp_path / "run" / "checkpoints" / "step-00000004" / "weights"
    record = {"layout": "folder", "subset": None, "videos": 1, "names": ["one"]}
    assert json.loads((weights / "config.json").read_text())["training_data"] == [record]
    assert ca.create_model(weights, pretrained=True).training_data == [record]
    (tmp_path / "val").mkdir()
    for name in ("one", "two"):
        shutil.move(write_video(tmp_path / name, photos) / "one", tmp_path / "val" / name)
    result = run("eval", "got10k", tmp_path, "--model", weights, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "1 of 2 sequences are training data of" in result.output and "(one)" in result.output


def test_a_head_that_does_not_fit_is_a_yellow_warning_and_the_logger_is_restored(
    run, photos, tmp_path, mixer_weights, monkeypatch
):
    monkeypatch.setattr(train, "console", Console(force_terminal=True, color_system="standard", width=400))
    logger = logging.getLogger("correlation_aware")
    own = logging.NullHandler()
    monkeypatch.setattr(logger, "handlers", [own])
    before = logger.level, logger.propagate
    changes = ["model.name=sbt_test_track", "model.overrides={head: cell}", "data.batch_size=2"]
    changes += [f"model.pretrained={mixer_weights}", f"data.sources={{{photos}: 1}}"]
    changes += ["schedule.steps=1", "schedule.warmup=1"]
    words = [w for change in changes for w in ("--set", change)]
    result = run("train", "track", "--output", tmp_path / "run", "--device", "cpu", *words)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "keep fresh values" in line]
    assert line.startswith("\x1b[33m") and "head.cls.0.weight" in line
    assert "tensors: " in result.output  # what the library logs as information
    assert logger.handlers == [own] and (logger.level, logger.propagate) == before


def test_two_processes_on_a_cpu_are_one_run(photos, tmp_path, mixer_weights):
    changes = ["model.name=sbt_test_track", f"data.sources={{{photos}: 1}}", "data.batch_size=2"]
    changes += ["schedule.steps=1", "schedule.warmup=1"]
    changes += ["model.overrides={head: cell}", f"model.pretrained={mixer_weights}"]
    words = [w for change in changes for w in ("--set", change)]
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program += [
        "--no-python",
        str(Path(sys.executable).with_name("correlation-aware")),
        "train",
        "track",
        "--output",
        str(tmp_path / "run"),
        *words,
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("name: sbt_test_track") == 1  # printed by the first process only
    assert (result.stdout + result.stderr).count("keep fresh values") == 1
    state = tmp_path / "run" / "checkpoints" / "step-00000001" / "state.json"
    assert json.loads(state.read_text())["processes"] == 2


def test_the_choice_of_the_source_does_not_decide_its_pairs(photos, tmp_path):
    """With one stream of random numbers, all batches of photographs would start with the same ones."""
    videos = write_video(tmp_path / "videos", photos)
    changes = ["model.name=sbt_test_track", f"data.sources={{{photos}: 1}}", "data.batch_size=1"]
    config = load(TrackTraining, None, [*changes, f"data.videos={{'folder:{videos}': 1}}"])
    mixed = open_pairs(config, make_track_model(config.model), "cpu")
    pool, still = mixed.sources[0].pool, mixed.sources[0]
    chosen = [n for n in range(400) if int(KeyedRandom(mixed.seed, n).multinomial(mixed.weights, 1)) == 0]
    images = [int(pool.sample_images(KeyedRandom(still.seed, n), 1)) for n in chosen]
    assert np.bincount(images, minlength=4).min() > 0.15 * len(images)


def test_progress_moves_at_every_step_and_starts_where_the_run_resumes(photos, tmp_path):
    steps = []
    make_trainer(tmp_path, 4).fit(max_minutes=0, on_step=steps.append)
    make_trainer(tmp_path, 4).fit(resume=True, on_step=steps.append)
    assert steps == [0, 1, 1, 2, 3, 4]


def test_validation_on_held_out_videos(run, photos, tmp_path):
    for name in ("a", "b", "c"):
        write_video(tmp_path / "videos" / name, photos)
    root = f"folder:{tmp_path / 'videos'}"
    changes = ["model.name=sbt_test_track", "data.batch_size=2", "schedule.steps=1", "schedule.warmup=1"]
    changes += [f"validation.videos={{'{root}': {{names: c/one}}}}", "validation.video_count=1"]
    words = ["train", "track", "--output", tmp_path / "run", "--device", "cpu"]
    for exclude in ("", "exclude: c/one"):
        settings = [*changes, f"data.videos={{'{root}': {{{exclude}}}}}"]
        result = run(*words, *(w for change in settings for w in ("--set", change)))
        if not exclude:
            assert "1 videos of folder" in str(result.exception) and "(c/one)" in str(result.exception)
    assert result.exit_code == 0, result.output
    (value,) = [r["val_video_ao"] for r in read_log(tmp_path / "run" / "log.jsonl") if "val_video_ao" in r]
    best = tmp_path / "run" / "checkpoints" / "best"
    assert json.loads((best / "best.json").read_text()) == {"step": 1, "name": "video_ao", "value": value}
    model = ca.create_model(best / "weights", pretrained=True).eval()
    video = Folder(tmp_path / "videos" / "c")[0]
    result = evaluate_video(Tracker(InferenceSession(model)), video)
    assert result.ious.mean() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.name=sbt_test", "has no prediction head; use sbt_test_track"),
        ("model.name=sbt_test_track", "data.sources and data.videos are empty"),
        ("data.videos={GOT-10k: 1}", "is not LAYOUT:ROOT"),
        ("data.videos={otb:videos: 1}", "Unknown layout 'otb'; known layouts"),
        ("validation.videos={got10k:x: 2}", "has weight 2, without an effect"),
        ("model.nam=sbt_test", "Near: model.name"),
    ],
)
def test_errors_of_a_configuration(run, tmp_path, change, message):
    result = run("train", "track", "--output", tmp_path / "run", "--device", "cpu", "--set", change)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_with_a_checkpoint_and_exit_code_130(
    run, photos, tmp_path, monkeypatch, number
):
    monkeypatch.setattr(
        train, "_line", lambda record: str(record["step"] == 1 and signal.raise_signal(number))
    )
    changes = ["model.name=sbt_test_track", "data.batch_size=2", "schedule.steps=4", "run.log_every=1"]
    words = [w for c in [*changes, f"data.sources={{{photos}: 1}}"] for w in ("--set", c)]
    result = run("train", "track", "--output", tmp_path / "run", "--device", "cpu", *words)
    assert result.exit_code == 130 and "Stopped; --resume continues: step 2" in result.output, result.output
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "weights").is_dir()


def test_missing_packages_are_named(run, tmp_path, monkeypatch):
    for name in ("accelerate", "yaml"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("train", "classify", "--output", tmp_path / "run")
    message = str(result.exception)
    assert message.startswith("Training needs accelerate, yaml: pip install ")
    assert message.endswith(" (the extra [train])")


@pytest.mark.parametrize(
    "path", sorted(Path(training.__file__).parent.glob("configs/*.yaml")), ids=lambda p: p.stem
)
def test_shipped_configurations(path):
    kind = ClassifyTraining if path.stem.startswith("classify") else TrackTraining  # study, too
    config = load(kind, path)
    assert config.model.name in ca.list_models()
    if config.model.overrides.get("head"):
        ca.create_model(config.model.name, device="meta", **config.model.overrides)
    assert train._config_path(Path(path.stem), Path("run"), False) == path
