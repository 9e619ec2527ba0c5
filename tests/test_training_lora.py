"""Low-rank adaptation in training: what is trained, what is published, and resume."""

import pytest
import torch
from torch import nn
from training_runs import SyntheticPairs, checkpoint_at, read_state

import correlation_aware as ca
from correlation_aware.training.config import (
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    load,
)
from correlation_aware.training.lora import merge_lora
from correlation_aware.training.run_state import read_run_state
from correlation_aware.training.track import PairData, TrackTraining, make_track_trainer
from correlation_aware.weights import read_state_dict

pytest.importorskip("peft")


def make_trainer(folder, validate=None, ema=0.5, frozen=(), factors=None, **lora):
    config = TrackTraining(
        model=ModelConfig("sbt_test_track"),
        data=PairData(batch_size=2),
        optimizer=OptimizerConfig(
            lr=1e-2, ema=ema, lora=LoraConfig(**lora), frozen=frozen, factors=factors or {}
        ),
        schedule=ScheduleConfig(steps=3, warmup=0),
        run=RunConfig(log_every=1, checkpoint_steps=1, keep=9),
    )
    return make_track_trainer(config, folder, "cpu", SyntheticPairs(), validate)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    assert make_trainer(folder).fit().finished
    return folder


def test_only_the_matrices_and_the_head_are_trained(tmp_path):
    validated = []
    targets = ("backbone.stages.2", "backbone.stages.0.blocks.0.mlp")
    trainer = make_trainer(tmp_path, lambda model: validated.append(model) or {"ao": 0.5}, targets=targets)
    before = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    trainer.fit()
    after = trainer.module.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in trainer.module.named_parameters() if p.requires_grad}
    plain = ca.create_model("sbt_test_track")
    linear = [name for name, m in plain.named_modules() if isinstance(m, nn.Linear)]
    adapted = [name for name in linear if name.startswith(tuple(f"{target}." for target in targets))]
    matrices = {f"{name}.lora_{matrix}.default.weight" for name in adapted for matrix in "AB"}
    assert changed == matrices | {f"head.{name}" for name, _ in plain.head.named_parameters()}
    # validation and the best weights are of the model that is published
    best = read_state_dict(tmp_path / "checkpoints" / "best" / "weights" / "model.safetensors")
    (model,) = validated
    assert all(torch.equal(best[name], value) for name, value in model.state_dict().items())
    assert best.keys() == plain.state_dict().keys()


def test_published_weights_are_plain_and_give_the_outputs_of_the_trained_model(whole):
    pairs = SyntheticPairs().batch(0)
    trainer = make_trainer(whole)
    read_run_state(checkpoint_at(whole, 3), 0).restore(trainer.module, trainer.averaged, trainer._adamw)
    model = ca.create_model(checkpoint_at(whole, 3) / "weights", pretrained=True).eval()
    fresh = ca.create_model("sbt_test_track")
    assert [type(m) for m in model.modules()] == [type(m) for m in fresh.modules()]
    assert model.state_dict().keys() == fresh.state_dict().keys()
    with torch.no_grad():
        for expected, actual in zip(
            trainer.averaged.eval()(pairs.template, pairs.search), model(pairs.template, pairs.search)
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    base = trainer.averaged.get_submodule("backbone.stages.2.blocks.0.attn.q")
    merged = model.get_submodule("backbone.stages.2.blocks.0.attn.q")
    assert (merged.weight - base.base_layer.weight).abs().max() > 1e-4  # the product is not nothing


def test_resume_with_matrices_equals_an_uninterrupted_run(whole, tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(on_record=lambda r: trainer.request_stop() if r["step"] == 1 else None)
    torch.manual_seed(99)
    make_trainer(tmp_path).fit(resume=True)
    expected, actual = (read_state(checkpoint_at(folder, 3)) for folder in (whole, tmp_path))
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], value) for name, value in actual.items())


def test_a_resume_without_the_matrices_or_with_others_is_refused(whole):
    with pytest.raises(ValueError, match=r"other shape.*lora_A.*optimizer\.lora"):
        make_trainer(whole, rank=2).fit(resume=True)


def test_the_matrices_learn_at_the_rate_of_the_head_times_their_factor(tmp_path):
    trainer = make_trainer(tmp_path, factors={"backbone.stages.0": 0.5}, frozen=("backbone.stages.1",))
    rates = {group["name"]: group["initial_lr"] for group in trainer._adamw.param_groups}
    assert rates == {"head": 1e-2, "head_no_decay": 1e-2, "lora": 1e-2, "lora_x0.5": 5e-3}
    trained = {name for name, p in trainer.module.named_parameters() if p.requires_grad}
    assert not any(name.startswith("backbone.stages.1.") for name in trained)
    assert trainer.module.get_submodule("backbone.stages.1") in trainer._frozen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("targets=head.cls", r"all of whose parameters are trained"),
        ("targets=backbone.stage.0", r"no linear layer starts with .*Near: .*backbone\.stages"),
        ("targets=backbone.stages.0.embed.norm", "no linear layer starts with"),
        ("rank=0", "optimizer.lora.rank=0 must be at least 1"),
    ],
)
def test_errors_of_low_rank_adaptation(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        config = load(TrackTraining, None, ["model.name=sbt_test_track", f"optimizer.lora.{change}"])
        make_track_trainer(config, tmp_path / "run", "cpu", SyntheticPairs())


def test_a_product_that_is_not_finite_is_not_published(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.module.get_submodule("backbone.stages.2.blocks.0.attn.q").lora_B.default.weight.fill_(
            torch.inf
        )
    with pytest.raises(ValueError, match="NaN"):
        merge_lora(trainer.module)
