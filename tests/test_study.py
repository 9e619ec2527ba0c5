"""The design study: its settings by name, and training them."""

import json
import math
import re
import signal
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from typer.testing import CliRunner

import correlation_aware as ca
from correlation_aware import study
from correlation_aware.cli import app
from correlation_aware.data.pairs import PairBatch, normalize
from correlation_aware.data.stored_pairs import StoredPairs
from correlation_aware.data.videos.readers import Got10k
from correlation_aware.data.videos.video_pairs import VideoConfig
from correlation_aware.models.contract import Sizes
from correlation_aware.models.heads import TrackOutput
from correlation_aware.models.sbt import BASE, SBTConfig
from correlation_aware.study import run as study_run
from correlation_aware.study.report import (
    agreement,
    check_claims,
    metrics_of,
    placement,
    plot_study,
    summarize,
)
from correlation_aware.study.scale import at_scale
from correlation_aware.training.config import load
from correlation_aware.training.track import TrackTraining, make_track_model, open_pairs


@pytest.fixture
def run():
    def invoke(*words):
        result = CliRunner().invoke(app, [str(word) for word in ("study", *words)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return invoke


@pytest.fixture
def sequences(tmp_path, photos):
    """A sequence of three frames in GOT-10k's layout."""
    folder = tmp_path / "got10k" / "val" / "video"
    folder.mkdir(parents=True)
    image = cv2.imread(str(photos / "0.png"))
    for i in range(3):
        cv2.imwrite(str(folder / f"{i + 1:08d}.png"), np.roll(image, 2 * i, axis=1))
    lines = [f"{50 + 2 * i},40,30,30" for i in range(3)]
    (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "got10k"


@pytest.mark.parametrize("name", study.TABLES)
def test_every_setting_builds_at_the_small_scales(name):
    settings = list(study.table(name).values())
    same_network = name in ("fig4", "table8", "fig8", "convergence")  # all but the positions of EoC-CA blocks
    for setting in settings:
        assert at_scale(setting, "paper") is setting
        small, tiny = at_scale(setting, "small"), at_scale(setting, "tiny")
        if same_network:
            SBTConfig(cross_blocks=small.overrides.get("cross_blocks", BASE.config.cross_blocks))
            assert set(small.overrides) <= {"dims", "head", "cross_blocks", "template_size", "search_size"}
        if same_network and setting is not settings[-1]:
            continue
        model = ca.create_model(small.model, device="meta", **small.overrides)
        assert sum(p.numel() for p in model.parameters()) < 1e6, setting.name
        smallest = ca.create_model(tiny.model, device="meta", **tiny.overrides).sizes
        assert (smallest.template_size, smallest.search_size) == (
            model.sizes.template_size // 2,
            model.sizes.search_size // 2,
        )
        assert setting.origin == "stated" or setting.note


def test_claims_are_those_of_the_tables():
    for name, claims in study.CLAIMS.items():
        settings = study.table(name)
        for claim in claims:
            better, worse = settings[claim.better].reported.ao, settings[claim.worse].reported.ao
            if better is not None and worse is not None:
                assert claim.points == pytest.approx(better - worse), claim


def test_a_claim_is_decided_by_the_differences_of_the_seeds():
    """IoU of two settings with the seeds 0, 1, 2; the third setting of a claim has no result."""

    def results(better, worse, seeds=(0, 1, 2, 3)):
        scores = {"C3": better, "C10": worse}
        return [
            {"table": "fig4", "setting": name, "seed": seed, "pair_iou": value}
            for name, values in scores.items()
            for seed, value in zip(seeds, values)
        ]

    (result,) = check_claims(results([0.5, 0.6, 0.7], [0.45, 0.56, 0.64]), "pair_iou")
    assert result.claim.text == "interval 1 instead of 2" and result.mean == pytest.approx(0.05)
    # standard deviation 0.01 of three differences; 4.303 is the 97.5 % quantile with two degrees of freedom
    assert result.margin == pytest.approx(4.303 * 0.01 / math.sqrt(3)) and result.verdict == "supported"
    (result,) = check_claims(results([0.45, 0.56, 0.64], [0.5, 0.6, 0.7]), "pair_iou")
    assert result.verdict == "contradicted"
    (result,) = check_claims(results([0.5, 0.6, 0.7], [0.45, 0.56, 0.75]), "pair_iou")
    assert result.verdict == "undecided"
    (result,) = check_claims(results([0.5, 0.6], [0.4]), "pair_iou")
    assert result.differences == pytest.approx([0.1]) and result.verdict == "undecided"
    assert math.isnan(result.margin)


@pytest.mark.parametrize("name", ["A1", "A2", "A3", "A6", "A7", "B4", "B6", "B7"])
def test_the_settings_of_table_1_build_as_the_paper_has_them(name):
    setting = study.TABLE_1[name]
    model = ca.create_model(setting.model, device="meta", **setting.overrides)
    params = sum(p.numel() for p in model.parameters()) / 1e6
    limits = {"A1": 0.25, "A2": 0.65, "A3": 0.36}  # their notes have the reasons
    assert abs(params / setting.reported.params - 1) < limits.get(name, 0.15)


def test_figure_4_agrees_with_every_sentence_about_it():
    c = {name: placement(setting) for name, setting in study.FIG_4.items()}
    for fewer, more in (("C3", "C4"), ("C1", "C2"), ("C6", "C9")):  # more blocks, the same pattern
        assert c[fewer].number < c[more].number and c[fewer].interval == c[more].interval
    for early, late in (("C4", "C1"), ("C6", "C2")):  # as many, earlier
        assert c[early].number == c[late].number and c[early].first < c[late].first
    # interleaved is better than separated with fewer blocks and a later first one
    assert c["C3"].number < c["C1"].number and c["C3"].first > c["C1"].first
    assert c["C3"].interval == c["C9"].interval == 1 and c["C1"].interval == 0
    assert c["C10"].interval == 2 and c["C10"].number == c["C3"].number
    assert c["C6"].first == 3 + 4 + 2  # the second block of the third stage
    a = {name: placement(setting) for name, setting in study.TABLE_8.items()}
    assert {p.number for p in a.values()} == {3} and a["A3"].first > a["A4"].first > a["A5"].first


def test_rows_of_table_7_are_what_they_are_named_for():
    def build(row):
        setting = at_scale(study.TABLE_7[row], "small")
        return ca.create_model(setting.model, device="meta", **setting.overrides).backbone

    for row, neck in zip("123456", ["dw_corr", "cross_attention", "dcf"] * 2):
        assert build(row).config.neck == neck and not build(row).config.embedded
    assert build("8").config.embedded and build("9").config.neck == "dcf"
    assert build("4").extractor.config.dims == (8, 16, 40) and len(build("4").necks) == 3
    with pytest.raises(ValueError, match="backbone_dims"):
        ca.create_model("siam_test", device="meta", backbone_dims=(8, 16, 40))


def test_an_unknown_table_names_the_near_ones():
    with pytest.raises(ValueError, match="table10"):
        study.table("table11")


class SignalAfterOneStep:
    """The event of `study run`: SIGTERM comes when it is asked after the first step."""

    def __init__(self):
        self.event, self.calls = threading.Event(), 0
        self.set = self.event.set

    def is_set(self):
        self.calls += 1
        if self.calls == 3:  # before the run, before its first step, and after it
            signal.raise_signal(signal.SIGTERM)
        return self.event.is_set()


def test_a_study_trains_resumes_and_plots(run, photos, sequences, tmp_path, monkeypatch):
    out = tmp_path / "study"
    words = [
        "run",
        "table2",
        "--output",
        out,
        "--photographs",
        photos,
        "--sequences",
        sequences,
        "--device",
        "cpu",
    ]
    words += ["--set", "data.batch_size=2", "--set", "run.log_every=1", "--only", "sbt_light"]
    with monkeypatch.context() as patch:
        patch.setattr(study_run.PROCESSES, "Event", SignalAfterOneStep)
        with pytest.raises(AssertionError, match="the same command continues it"):  # exit code 1
            run(*words, "--steps", 2, "--seeds", "0")
    checkpoints = out / "runs" / "sbt_light.seed0" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000001"]
    assert not any((out / "results").iterdir())
    output = run(*words, "--steps", 2, "--seeds", "0")
    assert "Rank correlation" not in output and "sequences" in output and "nan" not in output
    first = {path.name: path.read_bytes() for path in (out / "results").iterdir()}
    assert set(first) == {"sbt_light.seed0.json"}
    result = json.loads(first["sbt_light.seed0.json"])
    assert [record["step"] for record in result["curve"]] == [1, 2]
    assert 0 <= result["video_ao"] <= 1 and 0 < result["pair_iou"] < 1 and result["pairs"] == 4

    # killed after the training, before its result: the run is not trained again
    (out / "results" / "sbt_light.seed0.json").unlink()
    log = (out / "runs" / "sbt_light.seed0" / "log.jsonl").read_bytes()
    run(*words, "--steps", 2, "--seeds", "0,1")
    assert (out / "runs" / "sbt_light.seed0" / "log.jsonl").read_bytes() == log
    again = json.loads((out / "results" / "sbt_light.seed0.json").read_bytes())
    assert {k: v for k, v in again.items() if k != "pairs_per_s"} == {
        k: v for k, v in result.items() if k != "pairs_per_s"
    }
    assert {path.name for path in (out / "results").iterdir()} == {*first, "sbt_light.seed1.json"}

    for change in (
        ["--steps", 3],
        ["--steps", 2, "--set", "optimizer.lr=0.1"],
        ["--steps", 2, "--scale", "paper"],
    ):
        with pytest.raises(ValueError, match="two studies do not mix"):
            run(*words, *change)
    summary = json.loads((out / "summary.json").read_text())["study"]
    assert (
        summary["settings"]["sbt_light"]["seeds"] == [0, 1]
        and len(summary["settings"]["sbt_light"]["video_ao"]) == 2
    )
    pytest.importorskip("matplotlib")
    run("plot", out, "--output", tmp_path / "new" / "plots")
    drawn = tmp_path / "new" / "plots"
    assert all(cv2.imread(str(drawn / f"{name}.png")).std() > 5 for name in ("scores", "size", "curves"))


def test_stored_pairs_are_made_once_for_all_variants(run, photos, sequences, tmp_path, monkeypatch):
    """They are those of a study without them, to half a gray level, and every variant reads them."""
    made, read = [], []
    fill, batch = StoredPairs.fill, StoredPairs.batch
    monkeypatch.setattr(
        StoredPairs,
        "fill",
        lambda folder, pairs, numbers: (made.append(folder), fill(folder, pairs, numbers)),
    )
    monkeypatch.setattr(
        StoredPairs, "batch", lambda pairs, number: read.append((number, batch(pairs, number))) or read[-1][1]
    )
    out = tmp_path / "study"
    words = ["run", "fig4", "--output", out, "--photographs", photos, "--sequences", sequences, "--device"]
    words += ["cpu", "--scale", "tiny", "--steps", 2, "--seeds", "0,1", "--only", "C3,C9", "--store-pairs"]
    words += ["--set", "data.batch_size=2", "--set", "run.log_every=1"]
    run(*words)
    assert len(made) == 2 and {path.name for path in made} == {"seed0-32-64-2-4", "seed1-32-64-2-4"}
    assert not (out / "pairs").exists() and len(list((out / "results").iterdir())) == 4
    assert [number for number, _ in read] == [0, 1] * 4  # two seeds of two variants
    training = load(TrackTraining, None, [f"data.sources={{{photos}: 1}}", "data.batch_size=2"])
    plan = study_run.Plan("fig4", training, sequences=str(sequences), scale="tiny")
    config = study_run.training_of(plan, plan.settings()["C9"], seed=1)
    expected = open_pairs(config, make_track_model(config.model), "cpu").batch(1)
    (_, *_), (_, stored) = read[-2:]
    for name in ("template", "search"):
        error = (getattr(stored, name) - getattr(expected, name)).abs().max()
        assert 0 < error < 0.51 / (255 * min(IMAGENET_DEFAULT_STD))  # half a gray level
    assert torch.equal(stored.boxes, expected.boxes) and torch.equal(stored.positive, expected.positive)
    with pytest.raises(ValueError, match="two studies do not mix"):
        run(*words[:-5], *words[-4:])


def test_stored_pairs_begin_anew_and_must_be_complete(tmp_path):
    class Numbered:
        def batch(self, number):
            images = normalize(torch.full((2, 3, 8, 8), float(number)))
            boxes = torch.full((2, 4), float(number))
            return PairBatch(images, images[..., :4, :4], boxes, torch.tensor([True, False]))

    StoredPairs.create(tmp_path / "pairs", 3, 2, Sizes(8, 4))
    StoredPairs.fill(tmp_path / "pairs", Numbered(), (0, 2))
    with pytest.raises(ValueError, match="or not all"):
        StoredPairs(tmp_path / "pairs")
    StoredPairs.fill(tmp_path / "pairs", Numbered(), (1,))
    StoredPairs.finish(tmp_path / "pairs", ["stills"])
    pairs = StoredPairs(tmp_path / "pairs")
    assert pairs.names == ["stills"]
    for number in (0, 1, 2, 3, 7):
        batch, expected = pairs.batch(number), Numbered().batch(number % 3)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(batch, expected))


def test_a_budget_counts_the_steps_of_all_variants(photos, sequences, monkeypatch):
    training = load(TrackTraining, None, [f"data.sources={{{photos}: 1}}", "data.batch_size=2"])
    plan = study_run.Plan("fig4", training, sequences=str(sequences), only=("C3",), seeds=(0, 1))
    monkeypatch.setattr(study_run, "TIMED", 1)
    monkeypatch.setattr(study_run, "read_log", lambda path: [{"seconds": 1.0}, {"seconds": 1.5}])
    threads = torch.get_num_threads()
    assert study_run.steps_within(plan, 1, processes=8) == 120  # half a second each, two at a time
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match=r"0\.1 minutes are enough for 6 steps of every variant"):
        study_run.steps_within(plan, 0.1)


def test_the_iou_of_pairs_is_that_of_single_frames(sequences, monkeypatch):
    """Of a model that puts the target in the middle, a quarter as large as the search image."""

    class Middle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes, self.in_chans = Sizes(64, 128), 3
            self.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
            self.weight, self.batches = torch.nn.Parameter(torch.zeros(1)), []

        def forward(self, template, search):
            self.batches.append((template, search))
            scores = torch.tensor([[0.1, 0.9], [0.2, 0.3]]).expand(len(search), 2, 2)
            box = torch.tensor([0.5, 0.5, 0.25, 0.25]).view(1, 4, 1, 1)
            boxes = box * (scores == 0.9).unsqueeze(1)  # the boxes of other locations are empty
            return TrackOutput(torch.stack([scores, -scores], 1), scores, boxes)

    monkeypatch.setattr(study_run, "PAIRS", 2)
    dataset, model = Got10k(sequences, "val"), Middle()
    still = VideoConfig(gap=0, scale_jitter=0.0, center_jitter=0.0)
    assert study_run.pair_iou(model, dataset, still) == pytest.approx(1, abs=0.05)  # crops of whole pixels
    assert len(model.batches) == 2 and model.batches[0][1].shape == (32, 3, 128, 128)
    first = model.batches[0][1]
    assert any(
        torch.equal(first[0], other) for other in first[1:]
    )  # three frames, no photometric augmentation
    jittered = study_run.pair_iou(model, dataset, replace(still, center_jitter=1.4, negative=0.5))
    assert 0.05 < jittered < 0.7 and study_run.pair_iou(model, dataset, still) != jittered


def test_variants_see_the_same_pairs(photos, sequences, tmp_path):
    training = load(TrackTraining, None, [f"data.sources={{{photos}: 1}}", "data.batch_size=2"])
    plan = study_run.Plan("fig4", training, sequences=str(sequences))
    batches = []
    for setting in list(plan.settings().values())[:2]:
        config = study_run.training_of(plan, setting, seed=3)
        batches.append(open_pairs(config, make_track_model(config.model), "cpu").batch(1))
    assert all(torch.equal(a, b) for a, b in zip(*batches))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", 2, "--budget", 1], "one of --steps and --budget"),
        (["--steps", 2, "--seeds", "0,0"], "different whole numbers"),
        (["--steps", 2, "--only", "C11"], "no setting C11"),
        (["--steps", 2], "Nothing to measure on"),
        (["--steps", 2, "--scale", "big"], "paper, small, tiny"),
        (["--steps", 2, "--set", "schedule.steps=3"], "has no effect in a study. Name --steps"),
        (["--steps", 2, "--set", "model.pretrained=x"], "named with --start"),
    ],
)
def test_mistakes_end_before_the_first_step(run, photos, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        run("run", "fig4", "--output", tmp_path / "study", "--photographs", photos, *words)
    assert not (tmp_path / "study").exists()


def test_pretrained_blocks_reach_the_training(photos, sequences):
    """Fig. 8 and "converges faster": all weights, those of the first blocks, or none."""
    training = load(TrackTraining, None, [f"data.sources={{{photos}: 1}}"])
    expected = {"fig8": {"0": (None, None), "7": ("w", 7), "17": ("w", 17)}}
    expected["convergence"] = {"scratch": (None, None), "pretrained": ("w", None)}
    for table, starts in expected.items():
        plan = study_run.Plan(table, training, sequences=str(sequences), pretrained="w")
        for name, start in starts.items():
            model = study_run.training_of(plan, plan.settings()[name], seed=0).model
            assert (model.pretrained, model.pretrained_blocks) == start


def test_pretrained_tables_need_weights(run, photos, sequences, tmp_path):
    words = ["--output", tmp_path / "s", "--photographs", photos, "--sequences", sequences, "--steps", 2]
    with pytest.raises(ValueError, match="--start"):
        run("run", "convergence", *words)
    with pytest.raises(ValueError, match="no study"):
        run("plot", tmp_path)


def test_list_and_profile(run):
    assert "attention=local, cross_attention=spatial_reduction" in run("list", "table1").replace("\n", "")
    rows = json.loads(run("profile", "convergence", "--scale", "small", "--json"))
    assert [row["setting"] for row in rows] == list(study.CONVERGENCE)
    assert all(row["macs"] > 0 and row["image_sizes"] == [64, 128] for row in rows)


def fake_results(table, aos):
    curve = [{"step": 1, "loss": 1.0, "iou": 0.1}, {"step": 2, "loss": 0.9, "iou": 0.2}]
    common = {"table": table, "steps": 2, "pairs": 4, "pairs_per_s": 1.0, "params": 10, "macs": 10}
    return [
        {**common, "setting": name, "seed": seed, "ao": ao, "sr50": ao, "sr75": ao, "curve": curve}
        for name, values in aos.items()
        for seed, ao in enumerate(values)
    ]


def test_agreement_with_the_paper():
    results = fake_results("fig4", {"C3": [0.3, 0.5], "C9": [0.6, 0.6], "C10": [0.2, 0.2], "C1": [0.9, 0.9]})
    summaries = summarize(results)
    assert [s.setting.name for s in summaries] == ["C1", "C3", "C9", "C10"]
    assert summaries[1].mean("ao") == pytest.approx(0.4)
    assert summaries[1].spread("ao") == pytest.approx(0.2 / math.sqrt(2))
    assert agreement(summaries, "ao") == (pytest.approx(1.0), 3)  # C1 has no figure in the paper


def test_the_metric_that_all_results_have_is_plotted(run, tmp_path):
    pytest.importorskip("matplotlib")
    results = fake_results("fig4", {"C1": [0.3, 0.5], "C4": [0.6, 0.83]})
    assert metrics_of(results) == ["ao"]
    newer = [result | {"video_ao": 0.4, "pair_iou": 0.5} for result in results]
    assert metrics_of(newer) == ["video_ao", "ao", "pair_iou"] and metrics_of([*newer, *results]) == ["ao"]
    assert set(summarize([*newer[:1], *results[1:]])[0].scores) == {"ao", "sr50", "sr75"}
    for name, group in (("new", newer), ("old", results)):
        (tmp_path / name / "results").mkdir(parents=True)
        (tmp_path / name / "study.json").write_text("{}")
        for result in group:
            path = tmp_path / name / "results" / f"{result['setting']}.seed{result['seed']}.json"
            path.write_text(json.dumps(result))
    output = run("plot", tmp_path / "new", "--metric", "pair_iou")
    assert "IoU on" in output and re.search(r"C4, C1 .*\+4\.9 .*\+31\.5 ± 19\.1", output)
    claims = json.loads((tmp_path / "new" / "summary.json").read_text())["new"]["claims"]
    (claim,) = [claim for claim in claims if claim["metric"] == "ao"]
    assert claim["differences"] == pytest.approx([0.3, 0.33]) and claim["verdict"] == "supported"
    assert cv2.imread(str(tmp_path / "new" / "claims.png")).std() > 5
    drawn = cv2.imread(str(tmp_path / "new" / "scores.png"))
    run("plot", tmp_path / "new")
    assert not np.array_equal(drawn, cv2.imread(str(tmp_path / "new" / "scores.png")))
    with pytest.raises(ValueError, match=r"'pair_iou'\. All have: ao"):
        run("plot", tmp_path / "new", tmp_path / "old", "--metric", "pair_iou")


def test_plots_of_pretrained_blocks_and_of_two_studies(tmp_path):
    pytest.importorskip("matplotlib")
    results = fake_results("fig8", {"0": [0.3], "7": [0.4], "17": [0.5, 0.6]})
    results[-1] |= {"curve": [*results[-1]["curve"], {"step": 3, "loss": 0.8, "iou": 0.3}]}  # at a checkpoint
    names = [path.name for path in plot_study({"a": results, "b": results}, tmp_path)]
    assert names == ["scores.png", "size.png", "curves.png", "pretrained_blocks.png"]
    placed = plot_study({"a": fake_results("fig4", {"C1": [0.3, 0.5], "C9": [0.6]})}, tmp_path)
    assert [path.name for path in placed][-1] == "placement.png" and cv2.imread(str(placed[-1])).std() > 5
    with pytest.raises(ValueError, match="no common plot"):
        plot_study({"a": results, "b": fake_results("fig4", {"C1": [0.3]})}, tmp_path)
