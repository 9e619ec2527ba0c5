"""Configurations: YAML round trip, error messages, parameter groups and learning rates."""

import dataclasses
import re
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from training_runs import SyntheticPairs

import correlation_aware as ca
from correlation_aware import training
from correlation_aware.data.videos.subsets import VideoSet
from correlation_aware.models.heads import MixerHead, PaperMixerHead
from correlation_aware.training.classify import ClassifyTraining
from correlation_aware.training.config import ModelConfig, OptimizerConfig, ScheduleConfig, load, to_yaml
from correlation_aware.training.losses import LossConfig
from correlation_aware.training.optimizer import (
    freeze,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
)
from correlation_aware.training.track import PairData, TrackTraining, make_track_model, make_track_trainer


def test_yaml_round_trip(tmp_path):
    changes = [
        "optimizer.lr=1e-3",
        "schedule.steps=1e5",
        "model.overrides={search_size: 128, dims: [16, 32]}",
    ]
    changes += ["data.videos={lasot:L: 2, got10k:G: {subset: val, exclude: [a.txt, b]}}"]
    changes += ["data.sources={photos/: 1, a.tar: 2}", "optimizer.clip=null", "schedule.drops=[0.5, 0.9]"]
    config = load(TrackTraining, None, changes)
    assert config.optimizer.lr == 1e-3 and config.optimizer.clip is None
    assert config.schedule.steps == 100_000 and config.schedule.drops == (0.5, 0.9)
    assert config.data.sources == {"photos/": 1.0, "a.tar": 2.0}
    assert config.data.videos["lasot:L"] == VideoSet(2.0)
    assert config.data.videos["got10k:G"] == VideoSet(1.0, "val", exclude=("a.txt", "b"))
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(config))
    assert load(TrackTraining, path) == config
    assert load(TrackTraining, path, ["run.seed=7"]).run.seed == 7
    assert load(TrackTraining) == TrackTraining()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimiser.lr=1", r"Unknown key optimiser\. Near: optimizer"),
        ("optimizer.learn=1", r"Unknown key optimizer\.learn\. Near: optimizer\.lr"),
        ("data.stills.negativ=1", r"Near: data\.stills\.negative"),
        ("run.precision=half", r"run\.precision='half' is not one of float32, bfloat16, float16"),
        ("run.seed=1.5", r"run\.seed=1\.5 is not of type int"),
        ("run.compile=1", r"run\.compile=1 is not of type bool"),
        ("optimizer.lr=true", r"optimizer\.lr=True is not of type float"),
        ("optimizer.betas=[0.9]", r"optimizer\.betas=\[0\.9\] is not of type tuple"),
        ("optimizer.factors={head: fast}", r"optimizer\.factors\.head='fast' is not of type float"),
        ("data.batch_size=0", r"data\.batch_size=0 must be at least 1"),
        ("data.sources={photos: -1}", r"data\.sources=-1\.0 must be at least 0"),
        ("data.videos={got10k:x: -1}", r"weight of a dataset is -1"),
        ("data.videos={got10k:x: {wieght: 1}}", r"Near: data\.videos\.got10k:x\.weight"),
        ("data.frames.negative=2", r"data\.frames\.negative=2\.0 must be from 0 to 1"),
        ("schedule.steps=-1", r"schedule\.steps=-1 must be at least 0"),
        ("schedule.epochs=3", r"schedule\.samples_per_epoch=None: one has no effect without the other"),
        ("schedule={steps: 5, epochs: 3, samples_per_epoch: 9}", r"Both schedule\.steps=5 and"),
        ("schedule={decay: step, drops: [3]}", r"drops: 3 is at or after the end of a schedule without"),
        ("loss={kind: bce, background: 0.5}", r"loss\.background=0\.5 contradicts loss\.kind=bce"),
        ("loss={kind: bce, iou_aware: true}", r"loss\.iou_aware=True contradicts loss\.kind=bce"),
        ("schedule.warmup=200000", r"schedule\.warmup=200000 is more than schedule\.steps=100000"),
        ("loss.giou=-5", r"loss\.giou=-5\.0 must be at least 0"),
        ("optimizer.lr=-1", r"optimizer\.lr=-1\.0 must be"),
        ("optimizer.clip=-1", r"optimizer\.clip=-1\.0 must be above 0"),
        ("optimizer.ema=2", r"optimizer\.ema=2\.0 must be from 0 to 1"),
        ("optimizer.lr=.inf", r"optimizer\.lr=inf must be at least 0 and finite"),
        ("optimizer.clip=.inf", r"optimizer\.clip=inf must be above 0"),
        ("run.seed=4294967296", r"run\.seed=4294967296 must be from 0 to 4294967295"),
        ("data.videos={got10k:x: .nan}", r"weight of a dataset is nan; it must be at least 0 and finite"),
        ("validation.sources={photos: -1}", r"validation\.sources=-1\.0 must be at least 0"),
        (
            "data.stills={black: 0.6, mean: 0.5}",
            r"black, mean and reflect .* their sum 1\.3 must be at most 1",
        ),
        ("run.accumulate=0", r"run\.accumulate=0 must be at least 1"),
        ("optimizer=3", "optimizer is a section"),
        ("optimizer.lr", r"is not key=value"),
        ("optimizer.lr.x=1", None),
        ("optimizer.lr=[", "is not YAML"),
    ],
)
def test_errors_name_the_key_and_the_value(change, message):
    with pytest.raises(ValueError, match=message):
        load(TrackTraining, None, [change])


def numbers_of(config, prefix=""):
    """Keys of all numbers of a configuration, and their form: a number, or the last one of a list."""
    for name, hint in get_type_hints(type(config)).items():
        value, kinds = getattr(config, name), {hint, *get_args(hint)}
        if dataclasses.is_dataclass(value):
            yield from numbers_of(value, f"{prefix}{name}.")
        elif kinds & {int, float}:
            yield f"{prefix}{name}", f"[{'0, ' * (len(value) - 1)}{{}}]" if isinstance(value, tuple) else "{}"


@pytest.mark.parametrize("kind", [TrackTraining, ClassifyTraining])
def test_no_number_is_negative_or_without_end(kind):
    seen = 0
    for key, form in numbers_of(kind()):
        for bad in ("-1", ".nan", ".inf", "-.inf"):
            with pytest.raises(ValueError, match=re.escape(key)):
                load(kind, None, [f"{key}={form.format(bad)}"])
        seen += 1
    assert seen > 30


def test_an_unknown_override_is_named():
    config = ModelConfig("sbt_test_track", overrides={"nosuch": 1})
    with pytest.raises(ValueError, match=r"model\.overrides=\{'nosuch': 1\}: Unknown argument 'nosuch'"):
        make_track_model(config)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        load(TrackTraining, tmp_path / "none.yaml")


def test_parameter_groups():
    model = ca.create_model("sbt_test_track", position="absolute")
    groups = {group["name"]: group for group in parameter_groups(model, OptimizerConfig())}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "backbone": (1e-5, 1e-4),
        "backbone_no_decay": (1e-5, 0.0),
        "head": (1e-4, 1e-4),
        "head_no_decay": (1e-4, 0.0),
    }
    assert sum(len(g["params"]) for g in groups.values()) == len(list(model.parameters()))
    assert any(p is model.backbone.stages[0].pos_embed for p in groups["backbone_no_decay"]["params"])
    assert all(p.ndim > 1 for p in groups["head"]["params"])
    assert [g["name"] for g in parameter_groups(nn.Linear(2, 2, bias=False), OptimizerConfig())] == [
        "backbone"
    ]


def rates(model, **settings):
    """Learning rate by parameter name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(lr=1.0, backbone_lr=1.0, **settings))
    return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}


def test_factors_of_the_learning_rate_by_prefix():
    model = ca.create_model("sbt_test_track")
    factors = {"backbone.stages": 0.1, "backbone.stages.1.blocks.0": 0.5, "head.cls.spatial.0.bias": 0.0}
    for name, lr in rates(model, factors=factors).items():
        longest = max(
            (prefix for prefix in factors if f"{name}.".startswith(f"{prefix}.")), key=len, default=""
        )
        assert lr == factors.get(longest, 1.0), name
    assert rates(model, factors={"backbone.stages.1": 0.1})["backbone.stages.0.embed.proj.weight"] == 1


def test_layer_wise_decay_follows_the_layer_groups_of_the_model():
    model = ca.create_model("sbt_test_track")
    of = rates(model, layer_decay=0.5)
    assert {lr for name, lr in of.items() if name.startswith("head.")} == {1.0}
    names = [name for name, _ in model.named_parameters()]
    blocks = [name for name in names if name.endswith("mlp.fc1.weight") and name.startswith("backbone.")]
    assert len(blocks) > 2 and of[blocks[-1]] == 0.5
    assert [of[name] / of[after] for name, after in pairwise(blocks)] == [0.5] * (len(blocks) - 1)
    assert of["backbone.stages.0.embed.proj.weight"] < of[blocks[0]]
    for net, message in ((nn.Linear(2, 2), "group_matcher"), (OneGroup(), "one layer group")):
        with pytest.raises(ValueError, match=message):
            parameter_groups(net, OptimizerConfig(layer_decay=0.5))


class OneGroup(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)

    def group_matcher(self):
        return {"blocks": "^never"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"frozen": ("backbone.stage.0",)},
            r"optimizer\.frozen: no .* 'backbone\.stage\.0'.*backbone\.stages\.0",
        ),
        ({"frozen": ("backbone.stages.0.embe",)}, r"Near: backbone\.stages\.0\.embed"),
        ({"frozen": ("backbone", "head")}, "freezes all parameters"),
        ({"factors": {"neck": 0.1}}, r"optimizer\.factors: no parameter starts with 'neck'"),
        ({"factors": {"backbone.stages.0": 0.1}, "frozen": ("backbone",)}, "are frozen; remove it"),
    ],
)
def test_prefixes_without_an_effect_are_errors(settings, message):
    model, config = ca.create_model("sbt_test_track"), OptimizerConfig(**settings)
    with pytest.raises(ValueError, match=message):
        freeze(model, config.frozen)
        parameter_groups(model, config)


def test_frozen_parts_keep_their_values_and_cost_no_backward_pass(tmp_path):
    settings = ["model.name=sbt_test_track", "model.overrides={drop_path_rate: 0.5}", "data.batch_size=2"]
    settings += [
        "schedule.steps=2",
        "schedule.warmup=0",
        "optimizer.frozen=[backbone.stages.0, backbone.stages.1]",
    ]
    trainer = make_track_trainer(load(TrackTraining, None, settings), tmp_path, "cpu", SyntheticPairs())
    stages, differentiable, modes = trainer.module.backbone.stages, [], []
    before = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    stages[1].register_forward_hook(
        lambda stage, _, output: differentiable.append(any(x.requires_grad for x in tensors(output)))
    )
    stages[2].register_forward_pre_hook(
        lambda *_: modes.append([any(m.training for m in stage.modules()) for stage in stages])
    )
    trainer.fit()
    assert differentiable and not any(differentiable)
    assert modes[0] == [False, False, True]
    for name, value in trainer.module.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(
            ("backbone.stages.0.", "backbone.stages.1.")
        )


def tensors(value):
    """All tensors in nested tuples and lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for item in value for x in tensors(item)] if isinstance(value, (tuple, list)) else []


def test_the_optimizer_has_the_settings_of_its_section():
    config = OptimizerConfig(lr=1e-2, backbone_lr=1e-3, weight_decay=0.2, betas=(0.8, 0.95))
    optimizer = make_optimizer(ca.create_model("sbt_test_track"), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2, 0.0}


def test_learning_rate_factors():
    cosine = ScheduleConfig(steps=12, warmup=2, floor=0.1)
    assert [learning_rate_factor(i, cosine) for i in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert learning_rate_factor(7, cosine) == pytest.approx(0.55)  # halfway
    assert learning_rate_factor(12, cosine) == pytest.approx(0.1)
    assert [ScheduleConfig(steps=n).warmup for n in (2, 400, 100_000)] == [0, 40, 1000]
    step = ScheduleConfig(steps=10, warmup=0, decay="step", drops=(0.5, 0.8), drop=0.1)
    assert [learning_rate_factor(i, step) for i in (0, 4, 5, 8)] == pytest.approx([1, 1, 0.1, 0.01])


def test_overrides_reach_the_model():
    config = load(TrackTraining, None, ["model.overrides={search_size: 96}", "model.name=sbt_test_track"])
    model = ca.create_model(config.model.name, **config.model.overrides)
    assert model(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 96, 96)).scores.shape == (1, 12, 12)


def first_record(folder, *changes):
    """The log record of one step on synthetic pairs."""
    settings = ["model.name=sbt_test_track", "model.overrides={drop_path_rate: 0}", "data.batch_size=2"]
    settings += ["schedule.steps=1", "schedule.warmup=0", "run.log_every=1"]
    config = load(TrackTraining, None, [*settings, *changes])
    records = []
    make_track_trainer(config, folder, "cpu", SyntheticPairs()).fit(on_record=records.append)
    return records[0]


@pytest.mark.parametrize("part", ["score", "l1", "giou"])
def test_loss_weights_reach_the_step(tmp_path, part):
    default, without = first_record(tmp_path / "1"), first_record(tmp_path / "2", f"loss.{part}=0")
    weights = {"score": 12, "l1": 7, "giou": 5}
    for record, own in ((default, weights), (without, {**weights, part: 0})):
        assert record["loss"] == pytest.approx(sum(own[name] * record[name] for name in weights), rel=1e-4)
        assert all(record[name] == default[name] > 0 for name in weights)
    assert without["loss"] < 0.99 * default["loss"] and without["grad_norm"] != default["grad_norm"]


@pytest.mark.parametrize(("change", "part"), [("loss.background=1", "score"), ("loss.per_pair=true", "l1")])
def test_other_loss_settings_reach_the_step(tmp_path, change, part):
    default, changed = first_record(tmp_path / "1"), first_record(tmp_path / "2", change)
    assert changed[part] != pytest.approx(default[part], rel=1e-3)


def test_a_saved_model_as_the_name_starts_from_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ca.save_pretrained(ca.create_model("sbt_test_track"), "mine")
    for name in ("mine", "local-dir:mine", "hf-hub:me/net", "sbt_light_cell_track.video"):
        assert ModelConfig(name).start() == name
        with pytest.raises(ValueError, match="both name weights"):
            ModelConfig(name, pretrained="stills").start()
    assert ModelConfig("sbt_test_track").start() is None
    (tmp_path / "sbt_test_track").mkdir()  # names of the zoo come first
    assert ModelConfig("sbt_test_track").start() is None


# recipe: samples per step, steps, learning rates of head and backbone, steps of the drops
RECIPES = {
    "track_paper": (160, 187_500, (1e-4, 1e-5), (62_500, 125_000)),
    "track_paper_got10k": (160, 31_250, (1e-3, 1e-4), (9_375, 15_625)),
    "track_released": (160, 187_500, (1e-3, 1e-4), (150_000,)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_published_schedules(name):
    """Sec. 6.1 and A.1 of the paper; the experiment files of the authors' code."""
    config = load(TrackTraining, Path(training.__file__).with_name("configs") / f"{name}.yaml")
    samples, steps, rates, drops = RECIPES[name]
    assert 8 * config.data.batch_size == samples
    schedule = config.schedule.in_steps(samples)
    assert (schedule.steps, schedule.warmup, schedule.epochs) == (steps, 0, None)
    assert (config.optimizer.lr, config.optimizer.backbone_lr) == rates
    for i, at in enumerate(drops):
        factors = [learning_rate_factor(step, schedule) for step in (at - 1, at)]
        assert factors == pytest.approx([0.1**i, 0.1 ** (i + 1)])
    assert learning_rate_factor(steps - 1, schedule) == pytest.approx(0.1 ** len(drops))
    assert config.optimizer.ema == 0 and config.optimizer.weight_decay == 1e-4
    released = name == "track_released"
    weights = {"score": 120, "l1": 70, "giou": 50} if released else {"kind": "bce"}
    assert config.loss == LossConfig(**weights)
    assert config.optimizer.clip == (0.1 if released else None)
    model = ca.create_model(config.model.name, device="meta", **config.model.overrides)
    assert (model.sizes.template_size, model.sizes.search_size) == (128, 256)
    assert (model.sizes.template_factor, model.sizes.search_factor) == (2, 5 if released else 4)
    assert isinstance(model.head, MixerHead if released else PaperMixerHead)


def test_epochs_become_steps():
    schedule = ScheduleConfig(epochs=4, samples_per_epoch=10, warmup=1, decay="step", drops=(0.5, 3))
    in_steps = schedule.in_steps(5)
    assert in_steps == ScheduleConfig(steps=8, warmup=1, decay="step", drops=(0.5, 0.75))
    assert in_steps.in_steps(5) is in_steps
    assert ScheduleConfig(epochs=4, samples_per_epoch=10_000).in_steps(5).warmup == 800
    assert load(TrackTraining, None, ["schedule={epochs: 2, samples_per_epoch: 3}"]).schedule.steps == 0


def test_frames_in_memory_need_videos():
    with pytest.raises(ValueError, match=r"data\.frames_in_memory=true has no effect without data\.videos"):
        PairData(sources={"photos": 1.0}, frames_in_memory=True)
