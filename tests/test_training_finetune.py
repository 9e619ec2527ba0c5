"""Fine-tuning on a user's videos, averaging of checkpoints, and the recipe of the mobile tracker."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from training_runs import SyntheticPairs
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware import training
from correlation_aware.cli import app
from correlation_aware.training.average import average_checkpoints
from correlation_aware.training.config import change, load
from correlation_aware.training.finetune import finetune_config
from correlation_aware.training.track import TrackTraining, make_track_trainer
from correlation_aware.weights import read_state_dict


@pytest.fixture
def videos(tmp_path):
    """Six videos of a bright square that moves over noise."""
    random = np.random.default_rng(0)
    for number in range(6):
        folder, lines = tmp_path / "videos" / f"clip{number}", []
        folder.mkdir(parents=True)
        for i in range(4):
            frame = random.integers(0, 60, (96, 128, 3), dtype=np.uint8)
            x, y = 20 + 6 * i + 5 * number, 30 + 4 * i
            frame[y : y + 24, x : x + 24] = (255, 60 * i, 40 * number)
            cv2.imwrite(str(folder / f"{i}.png"), frame)
            lines.append(f"{x},{y},24,24\n")
        (folder / "groundtruth.txt").write_text("".join(lines))
    return tmp_path / "videos"


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    return ca.save_pretrained(ca.create_model("sbt_test_track", head="cell"), tmp_path / "model")


def finetune(*words):
    return CliRunner().invoke(app, ["train", "finetune", "--device", "cpu", *map(str, words)])


def test_fine_tuning_keeps_the_head_holds_out_videos_and_compares(videos, model, photos, tmp_path):
    words = ["--videos", videos, "--output", tmp_path / "run", "--model", model, "--steps", 2, "--batch", 2]
    words += ["--clips", photos, "--clip-count", 1, "--set", "run.precision=float32"]
    result = finetune(*words)
    assert result.exit_code == 0, result.output
    config = load(TrackTraining, tmp_path / "run" / "config.yaml")
    (trained,), (held_out,) = config.data.videos.values(), config.validation.videos.values()
    assert held_out.names == trained.exclude == ("clip2",) and config.optimizer.backbone_lr == 2e-5
    row = r"│ .*{} *│ (\d\.\d+) *│ (\d\.\d+) *│ [+-]\d"
    for name in ("clip2", "mean of held-out videos", "synthetic clips"):
        assert re.search(row.format(name), result.output), result.output
    assert "did not clearly help" in result.output  # two steps from random weights
    last = tmp_path / "run" / "checkpoints" / "step-00000002" / "weights"
    before, after = (read_state_dict(path / "model.safetensors") for path in (model, last))
    assert before.keys() == after.keys()  # with the head of the model, which is not the default one
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert 0 < max(moved.values()) < 1e-3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--videos", "{videos}/clip0"], "1 video; fine-tuning needs two"),
        (["--videos", "{videos}", "--hold-out", "zebra"], "has no video zebra; it has clip0"),
        (["--videos", "{videos}", "--model", "sbt_test_track"], "no trained weights to start from"),
        (["--videos", "{videos}", "--photographs", "p", "--clips", "p"], "is among --photographs"),
    ],
)
def test_errors_of_fine_tuning(videos, tmp_path, words, message):
    result = finetune("--output", tmp_path / "run", *(word.format(videos=videos) for word in words))
    assert isinstance(result.exception, ValueError) and message in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_the_bundled_tracker_is_fine_tuned_with_its_weights_and_photographs(videos):
    config = finetune_config(str(videos), photographs=["a", "b"], held_out=["clip0", "clip5"])
    assert ca.create_tracker(device="cpu").name in config.model.name and config.model.start() is not None
    (part,) = config.data.videos.values()
    assert sum(config.data.sources.values()) == part.weight == 0.5 and part.exclude == ("clip0", "clip5")


def test_the_mean_of_checkpoints(tmp_path):
    models = [ca.create_model("sbt_test_track") for _ in range(3)]
    folders = []
    for i, net in enumerate(models):
        folders.append(ca.save_pretrained(net, tmp_path / f"run{i}" / "weights").parent)
    words = ["train", "average", *folders, "--output", tmp_path / "mean"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    mean = ca.create_model(tmp_path / "mean", pretrained=True).state_dict()
    for name, value in mean.items():
        expected = torch.stack([net.state_dict()[name].double() for net in models]).mean(dim=0)
        torch.testing.assert_close(value, expected.to(value.dtype), rtol=1e-6, atol=1e-7)


def test_checkpoints_of_other_models_have_no_mean(tmp_path):
    first = ca.save_pretrained(ca.create_model("sbt_test_track"), tmp_path / "first")
    other = ca.save_pretrained(ca.create_model("sbt_test_track", head="cell"), tmp_path / "other")
    with pytest.raises(ValueError, match=r"other is another model than .*first: model_args differ"):
        average_checkpoints([first, other], tmp_path / "mean")
    with pytest.raises(ValueError, match="two checkpoints or more, not 1"):
        average_checkpoints([first, first], tmp_path / "mean")
    with pytest.raises(FileNotFoundError, match=r"no folder of a model"):
        average_checkpoints([first, tmp_path], tmp_path / "mean")
    weights = read_state_dict(first / "model.safetensors")
    weights.pop("head.cls.spatial.0.bias")
    second = ca.save_pretrained(ca.create_model("sbt_test_track"), tmp_path / "second")
    ca.weights.write_state_dict(weights, second / "model.safetensors")
    with pytest.raises(ValueError, match=r"head\.cls\.spatial\.0\.bias is in one of them"):
        average_checkpoints([first, second], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("name", ["track_siam_lite0_half", "track_siam_lite0"])
def test_the_recipe_of_the_mobile_tracker_freezes_its_first_stages(name, tmp_path):
    config = load(TrackTraining, Path(training.__file__).with_name("configs") / f"{name}.yaml")
    changes = ["run.precision=float32", "data.batch_size=2"]
    trainer = make_track_trainer(change(config, changes), tmp_path, "cpu", SyntheticPairs())
    frozen = [name for name, p in trainer.module.named_parameters() if not p.requires_grad]
    assert len(frozen) == 45 and all(name.startswith("backbone.extractor.") for name in frozen)
    rates = {group["name"]: group["initial_lr"] for group in trainer._adamw.param_groups}
    factor = config.optimizer.factors["backbone.extractor"]
    assert rates["head"] == rates["backbone"] and rates[f"backbone_x{factor:g}"] == factor * rates["head"]
