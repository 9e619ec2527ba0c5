"""The training loop: learning, bit-exact resume, several processes, a kill while a checkpoint is written."""

import contextlib
import copy
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import training_runs
from training_runs import checkpoint_at, make_trainer, read_state

import correlation_aware as ca
from correlation_aware.data.pairs import MixedPairs
from correlation_aware.training import checkpoint
from correlation_aware.training.config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from correlation_aware.training.log import read_log
from correlation_aware.training.run_state import read_run_state
from correlation_aware.training.track import TrackTraining, make_track_trainer
from correlation_aware.weights import read_state_dict

SCRIPT = str(Path(training_runs.__file__))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Six steps without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    assert make_trainer(folder, keep=9, checkpoint_steps=2).fit().finished
    return folder


def assert_same(a: Path, b: Path) -> None:
    first, second = read_state(a), read_state(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def without_time(folder: Path) -> list[dict]:
    timed = ("pairs_per_s", "seconds")
    return [{k: v for k, v in r.items() if k not in timed} for r in read_log(folder / "log.jsonl")]


def test_four_pairs_are_overfitted(tmp_path):
    records = []
    outcome = make_trainer(tmp_path, 160, drop_path=0.0, log_every=20).fit(on_record=records.append)
    assert records[-1]["iou"] > 0.8
    model = ca.create_model(outcome.checkpoint / "weights", pretrained=True).eval()  # averaged weights
    pairs = training_runs.SyntheticPairs()
    with torch.no_grad():
        for n in range(2):
            batch = pairs.batch(n)
            output = model(batch.template, batch.search)
            assert training_runs.best_location_iou(output, batch.boxes, batch.positive) > 0.8


def test_resume_equals_an_uninterrupted_run(whole, tmp_path):
    trainer = make_trainer(tmp_path)
    outcome = trainer.fit(on_record=lambda r: trainer.request_stop() if r["step"] == 2 else None)
    assert (outcome.step, outcome.finished) == (3, False)  # requested at record 2, obeyed after step 3
    torch.manual_seed(99)
    make_trainer(tmp_path).fit(resume=True)
    assert_same(checkpoint_at(tmp_path, 6), checkpoint_at(whole, 6))
    assert without_time(tmp_path) == without_time(whole)


def test_a_run_killed_while_it_writes_a_checkpoint_resumes(whole, tmp_path):
    process = subprocess.Popen([sys.executable, SCRIPT, str(tmp_path), "3", "stall"])
    unfinished = checkpoint.temporary(tmp_path / "checkpoints", 3)
    try:
        while not (unfinished / "config.yaml").exists():  # the last file before it stalls
            assert process.poll() is None  # however slow the machine is
            time.sleep(0.02)
        before = content(tmp_path)
        with pytest.raises(RuntimeError, match=rf"Another run is in .* \(process {process.pid} on "):
            make_trainer(tmp_path).fit(resume=True)
        assert content(tmp_path) == before
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / "log.jsonl").open("a").write('{"step": 3, "lo')  # an incomplete line
    assert unfinished.exists() and (tmp_path / "run.lock").exists()  # which is no obstacle
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert newest == checkpoint_at(tmp_path, 2)
    assert_same(newest, checkpoint_at(whole, 2))
    make_trainer(tmp_path).fit(resume=True)
    assert not unfinished.exists() and not (tmp_path / "run.lock").exists()
    assert_same(checkpoint_at(tmp_path, 6), checkpoint_at(whole, 6))
    assert without_time(tmp_path) == without_time(whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
def test_two_processes_equal_one_that_accumulates_two_batches(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, SCRIPT, str(tmp_path / "two"), "3", "two"]
    process = subprocess.Popen(words, env={**os.environ, **launcher})
    make_trainer(tmp_path / "one", 3, accumulate=2, drop_path=0.0).fit()
    assert process.wait() == 0
    one, two = (read_state(checkpoint_at(tmp_path / name, 3)) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5, msg=name)
    losses = [[r["loss"] for r in read_log(tmp_path / name / "log.jsonl")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(ValueError, match="written with processes=2, this run has 1"):
        make_trainer(tmp_path / "two").fit(resume=True)


def test_one_process_of_several_that_were_launched_is_an_error(tmp_path, monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` sets, and MPI without its processes."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    make_trainer(tmp_path)
    for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("PMI_SIZE", "2")):
        monkeypatch.setenv(name, value)
        with pytest.raises(RuntimeError, match="Type: torchrun --nproc_per_node N"):
            make_trainer(tmp_path)
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        make_trainer(tmp_path, precision="float16")


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    make_trainer(folder, 2, checkpoint_steps=1).fit()
    return folder


@pytest.fixture
def run_folder(two_checkpoints, tmp_path) -> Path:
    return Path(shutil.copytree(two_checkpoints, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [
        ({"head": "cell"}, {}, r"step-00000002 does not fit the model.*head.*model\.overrides"),
        ({"neck_dim": 8}, {}, None),
        (
            {},
            {"frozen": ("backbone.stages.0",)},
            r"trained other parameters: backbone\.stages\.0.*optimizer\.frozen",
        ),
    ],
)
def test_a_resume_with_other_settings_changes_nothing(run_folder, model, optimizer, message):
    before = content(run_folder)
    config = TrackTraining(
        model=ModelConfig("sbt_test_track", overrides=model),
        optimizer=OptimizerConfig(**optimizer),
        schedule=ScheduleConfig(steps=3, warmup=0),
    )
    with pytest.raises((ValueError, TypeError), match=message):
        make_track_trainer(config, run_folder, "cpu", training_runs.SyntheticPairs()).fit(resume=True)
    assert content(run_folder) == before


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.safetensors",
        "weights/model.safetensors",
        "state.json",
        "random-0.json",
    ],
)
def test_a_truncated_checkpoint_is_set_aside_for_the_one_before_it(run_folder, caplog, name):
    path = checkpoint_at(run_folder, 2) / name
    path.write_bytes(path.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING, "correlation_aware"):
        outcome = make_trainer(run_folder, 2).fit(resume=True)
    assert outcome.step == 2 and "step-00000002 cannot be read" in caplog.text
    assert "continues from step-00000001" in caplog.text
    names = sorted(p.name for p in (run_folder / "checkpoints").iterdir())
    assert names == ["damaged-step-00000002", "step-00000001", "step-00000002"]


def test_without_a_whole_checkpoint_there_is_an_error(run_folder):
    for step in (1, 2):
        (checkpoint_at(run_folder, step) / "state.json").unlink()
    before = content(run_folder)
    with pytest.raises(RuntimeError, match=r"No checkpoint of .*step-00000002: .*step-00000001: "):
        make_trainer(run_folder, 2).fit(resume=True)
    assert content(run_folder) == before


class Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_never_runs_code(run_folder, tmp_path):
    """Pickles under the names that accelerate uses, and in place of every file of a checkpoint."""
    touched, newest = tmp_path / "touched", checkpoint_at(run_folder, 2)
    suffixes = {path.suffix for path in newest.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".yaml", ".md"}
    evil = pickle.dumps(Touch(touched))
    for name in (
        "custom_checkpoint_0.pkl",
        "random_states_0.pkl",
        "optimizer.bin",
        "scaler.pt",
        "pytorch_model.bin",
    ):
        (newest / name).write_bytes(evil)
    make_trainer(run_folder, 3).fit(resume=True)
    for path in checkpoint_at(run_folder, 2).rglob("*"):
        if path.is_file():
            kept = path.read_bytes()
            path.write_bytes(evil)
            with contextlib.suppress(ValueError, RuntimeError):
                read_run_state(checkpoint_at(run_folder, 2), 0)
            path.write_bytes(kept)
    assert not touched.exists()


def test_a_time_limit_stops_a_run_and_the_newest_checkpoints_are_kept(tmp_path):
    outcome = make_trainer(tmp_path).fit(max_minutes=0)
    assert (outcome.step, outcome.finished) == (1, False)
    make_trainer(tmp_path, checkpoint_steps=1, keep=2).fit(resume=True)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000006"]
    assert "sbt_test_track" in (checkpoint_at(tmp_path, 6) / "config.yaml").read_text()
    with pytest.raises(ValueError, match="already contains a run"):
        make_trainer(tmp_path).fit()
    tracker = ca.create_tracker(checkpoint_at(tmp_path, 6) / "weights", device="cpu")
    assert tracker.name == "sbt_test_track"


def test_a_time_limit_is_a_number_of_minutes(tmp_path):
    for minutes in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"max_minutes={minutes} must be at least 0"):
            make_trainer(tmp_path / "run").fit(max_minutes=minutes)
    assert not (tmp_path / "run").exists()


def test_gradients_are_averaged_over_batches_and_clipped(tmp_path):
    trainer = make_trainer(tmp_path, 1, accumulate=2, drop_path=0.0)
    trainer.clip, pairs, steps = 0.01, training_runs.SyntheticPairs(), []
    reference = copy.deepcopy(trainer.module)
    for n in range(2):
        (trainer.compute(reference, pairs.batch(n))["loss"] / 2).backward()

    def norm(model):
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()

    trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: steps.append(norm(trainer.module)))
    records = []
    trainer.fit(on_record=records.append)
    assert records[0]["grad_norm"] == pytest.approx(norm(reference), rel=1e-4) and norm(reference) > 1
    assert steps == [pytest.approx(0.01, rel=1e-3)]


def test_the_decay_of_the_average_is_smaller_in_the_first_steps(tmp_path):
    trainer = make_trainer(tmp_path, 2)  # a constant decay of 0.9 would keep 0.81 of the initial weights
    first = copy.deepcopy(trainer.module).state_dict()
    trainer.fit()
    name = "head.cls.channel.1.weight"
    start, last, average = (
        m[name] for m in (first, trainer.module.state_dict(), trainer.averaged.state_dict())
    )
    kept = ((average - last).norm() / (start - last).norm()).item()
    assert 0.01 < kept < 0.4


def test_a_run_starts_from_the_weights_of_its_configuration(tmp_path):
    torch.manual_seed(7)
    model = ca.create_model("sbt_test_track")
    ca.save_pretrained(model, tmp_path / "model")
    config = TrackTraining(model=ModelConfig("sbt_test_track", pretrained=str(tmp_path / "model")))
    trainer = make_track_trainer(config, tmp_path / "run", "cpu", training_runs.SyntheticPairs())
    for weights in (trainer.module.state_dict(), trainer.averaged.state_dict()):
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_weights_that_hardly_fit_are_a_warning(tmp_path, caplog):
    start = ca.save_pretrained(ca.create_model("sbt_test_track"), tmp_path / "model")
    for overrides, expected in (({"dims": (8, 24, 40)}, 1), ({"head": "cell"}, 0)):
        config = TrackTraining(model=ModelConfig("sbt_test_track", str(start), overrides))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            make_track_trainer(config, tmp_path / "run", "cpu", training_runs.SyntheticPairs())
        assert caplog.text.count("of the backbone; the others have random weights") == expected


def test_checkpoints_are_written_by_time(tmp_path):
    for minutes, steps in ((0.0, [1, 2, 3]), (10.0, [3])):
        folder = tmp_path / str(minutes)
        make_trainer(folder, 3, checkpoint_minutes=minutes, keep=9).fit()
        assert sorted((folder / "checkpoints").iterdir()) == [checkpoint_at(folder, step) for step in steps]


def test_a_changed_learning_rate_applies_after_resume(tmp_path):
    make_trainer(tmp_path).fit(max_minutes=0)
    records = []
    make_trainer(tmp_path, lr=5e-4).fit(resume=True, on_record=records.append)
    assert records[0]["step"] == 2 and records[0]["lr_head"] == 5e-4


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        next(trainer.module.head.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not finite at step 1"):
        trainer.fit()
    assert checkpoint.latest(tmp_path / "checkpoints") is None


def test_validation_gets_the_averaged_model_and_does_not_change_the_run(whole, tmp_path):
    trainer = make_trainer(tmp_path, validate_every=3)

    def validate(model):
        assert model is trainer.ema.module and not model.training
        return {"ao": torch.rand(()).item()}

    trainer.validate = validate
    records = []
    trainer.fit(on_record=records.append)
    assert [r["step"] for r in records if "val_ao" in r] == [3, 6]
    assert_same(checkpoint_at(tmp_path, 6), checkpoint_at(whole, 6))


def test_the_weights_with_the_best_validation_are_kept(tmp_path):
    trainer = make_trainer(tmp_path, 4, validate_every=1, checkpoint_steps=1, keep=1)
    values, kept = iter([0.2, 0.5, 0.3, 0.4]), {}

    def validate(model):
        kept[trainer.step] = copy.deepcopy(model.state_dict())
        return {"ao": next(values)}

    trainer.validate = validate
    trainer.fit(on_record=lambda r: trainer.request_stop() if r["step"] == 2 else None)
    best = tmp_path / "checkpoints" / "best"
    again = make_trainer(tmp_path, 4, validate_every=1, checkpoint_steps=1, keep=1)
    again.validate = lambda model: {"ao": next(values)}
    again.fit(resume=True)
    assert json.loads((best / "best.json").read_text()) == {"step": 2, "name": "ao", "value": 0.5}
    weights = read_state_dict(best / "weights" / "model.safetensors")
    assert all(torch.equal(value, kept[2][name]) for name, value in weights.items())
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_checkpoint_is_written_before_a_validation_that_fails(tmp_path):
    trainer = make_trainer(tmp_path, 1)
    trainer.validate = lambda model: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    assert checkpoint.latest(tmp_path / "checkpoints") == checkpoint_at(tmp_path, 1)


def test_losses_of_every_source_are_in_the_log(tmp_path):
    sources = [(training_runs.SyntheticPairs(), 1.0), (training_runs.SyntheticPairs(different=5), 1.0)]
    config = TrackTraining(
        model=ModelConfig("sbt_test_track"),
        optimizer=OptimizerConfig(lr=0, backbone_lr=0),
        schedule=ScheduleConfig(steps=6, warmup=0),
        run=RunConfig(log_every=3),
    )
    pairs = MixedPairs(sources, 1, ("stills", "videos"))
    trainer, each = make_track_trainer(config, tmp_path, "cpu", pairs), []
    compute = trainer.compute
    trainer.compute = lambda *arguments: each.append(compute(*arguments)) or each[-1]
    records = []
    trainer.fit(on_record=records.append)
    for record, steps in zip(records, (each[:3], each[3:])):
        for key in ("loss_stills", "iou_videos", "loss"):
            values = [step[key].item() for step in steps if key in step]
            assert (key in record) == bool(values)
            assert not values or record[key] == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert any("loss_stills" in r and "loss_videos" in r for r in records)


def test_partly_written_or_removed_checkpoints_are_ignored_and_cleaned(tmp_path):
    for name in (".writing-00000009", ".removing-step-00000001", "step-00000002", "other"):
        (tmp_path / name).mkdir()
    assert checkpoint.latest(tmp_path).name == "step-00000002"
    checkpoint.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "step-00000002"]
    assert checkpoint.latest(tmp_path / "none") is None
