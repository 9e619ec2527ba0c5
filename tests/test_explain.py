"""`correlation-aware explain`: numbers of score maps, features by depth, and the page."""

import base64
import re
import struct
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import correlation_aware as ca
from correlation_aware.cli import main
from correlation_aware.demo_clip import draw_clip
from correlation_aware.study import explain as study
from correlation_aware.study.explain import draw, measures, network_sections, page
from correlation_aware.study.explain.measures import BACKGROUND, DISTRACTOR, TARGET
from correlation_aware.tracking.crop import Crop
from correlation_aware.tracking.video import write_image

CROP = Crop(10, 20, 80)  # 8 x 8 locations of 10 px
TRUE_BOX = (30, 40, 20, 30)  # rows 2 to 4, columns 2 and 3


def score_map(*places, value=0.9):
    scores = np.full((8, 8), 0.05)
    for place in places:
        scores[place] = value
    return scores


def test_statistics_of_a_score_map():
    inside = measures.locations_inside(TRUE_BOX, CROP, (8, 8))
    assert sorted(map(tuple, np.argwhere(inside))) == [(i, j) for i in (2, 3, 4) for j in (2, 3)]
    touching = (1, 1)  # of the target's component, by its corner
    scores = score_map((2, 2), (2, 3), (3, 2), touching, (0, 7), (1, 6), (7, 7))
    statistics = study.map_statistics(scores, CROP, TRUE_BOX)
    assert statistics == study.MapStatistics(0.5, 2)  # (0, 7) and (1, 6) are one object
    assert study.map_statistics(scores, CROP, TRUE_BOX, 0.95) == study.MapStatistics(0.0, 0)
    away = study.map_statistics(scores, CROP, (200, 200, 10, 10))
    assert np.isnan(away.true_positive_rate) and away.negative_objects == 3
    with pytest.raises(ValueError, match=r"threshold=50 must be in 0\.\.1"):
        study.map_statistics(scores, CROP, TRUE_BOX, 50)


def test_locations_are_labeled_alike_for_every_model():
    maps = [
        (score_map((6, 6)), CROP),
        (score_map((0, 0)), Crop(50, 20, 80)),
    ]  # the second: 40 px to the right
    labels = study.label_locations(maps, CROP, (8, 8), TRUE_BOX)
    assert (labels[2:5, 2:4] == TARGET).all() and (labels == TARGET).sum() == 6
    assert sorted(map(tuple, np.argwhere(labels == DISTRACTOR))) == [(0, 4), (6, 6)]
    fine = study.label_locations(maps, CROP, (16, 16), TRUE_BOX)
    assert (fine == DISTRACTOR).sum() == 8 and (fine[::2, ::2] == labels).all()
    boxes = study.label_locations(maps, CROP, (8, 8), TRUE_BOX, [(60, 20, 10, 10), TRUE_BOX])
    assert sorted(map(tuple, np.argwhere(boxes == DISTRACTOR))) == [(0, 5)]


def test_purity_tells_separated_features_from_mixed_ones():
    labels = np.array([TARGET] * 4 + [BACKGROUND] * 8)
    apart = np.concatenate([np.tile([1.0, 0.0], (4, 1)), np.tile([0.0, 1.0], (8, 1))])
    assert study.neighbor_purity(apart, labels) == 1
    assert study.neighbor_purity(np.ones((12, 2)), np.roll(labels, 6)) < 0.5
    assert np.isnan(study.neighbor_purity(apart, np.zeros(12, int)))


def test_hard_frames_are_apart_and_failures_are_joined():
    difficulty = np.array([np.nan, 0.1, 0.9, 0.8, 0.2, 0.2, 0.7, 0.1, 0.1, 0.1, 0.3, 0.1])
    assert study.select_hard_frames(difficulty, 2) == [2, 6]
    assert study.select_hard_frames(np.full(5, np.nan), 2) == []
    overlaps = np.full(40, 0.8)
    overlaps[[5, 6, 12, 30]], overlaps[20] = 0.05, np.nan
    lost = np.zeros(40, bool)
    assert study.find_failures(overlaps, lost) == [study.Failure(5, 13), study.Failure(30, 31)]
    assert study.find_failures(None, ~lost) == [study.Failure(0, 40)] and not study.find_failures(None, lost)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("sbt_test", ["S1B1", "S2B1", "S3B1", "S3B2", "S3B3", "S3B4"]),
        ("siam_test", ["neck block 1", "neck block 2", "output"]),
        ("onestream_vit_test", ["B1", "B2", "B3", "B4"]),
        ("supersbt_test", ["S1", "S2", "S3"]),
    ],
)
def test_search_features_by_depth(name, names):
    torch.manual_seed(0)
    net = ca.create_model(name).eval()
    template, other, search = (torch.randn(1, 3, side, side) for side in (64, 64, 128))
    levels = study.search_features(net, template, search)
    assert [level.name for level in levels][-len(names) :] == names
    with torch.no_grad():
        np.testing.assert_allclose(levels[-1].features, net(template, search)[0].numpy(), atol=1e-5)
    changed = {
        a.name
        for a, b in zip(levels, study.search_features(net, other, search))
        if not np.allclose(a.features, b.features, atol=1e-6)
    }
    aware = {
        "sbt_test": names[3:],
        "siam_test": names[1:],
        "onestream_vit_test": names,
        "supersbt_test": ["S3"],
    }
    assert changed == set(aware[name])
    if name == "sbt_test":
        alone = study.search_features(net, template, search, correlated=False)
        assert [level.name for level in alone] == names
        assert np.allclose(alone[2].features, levels[2].features, atol=1e-6)
        assert not np.allclose(alone[3].features, levels[3].features, atol=1e-6)
    else:
        with pytest.raises(ValueError, match="gives no features without a template"):
            study.search_features(net, template, search, correlated=False)


def test_tsne_is_the_same_in_every_run():
    pytest.importorskip("sklearn")
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(0, 1, (12, 4)), random.normal(30, 1, (12, 4))])
    positions = study.arrange(features)
    np.testing.assert_array_equal(positions, study.arrange(features))
    centers = positions[:12].mean(axis=0), positions[12:].mean(axis=0)
    spread = max(np.linalg.norm(part - c, axis=1).mean() for part, c in zip(np.split(positions, 2), centers))
    assert np.linalg.norm(centers[0] - centers[1]) > 2 * spread
    with pytest.raises(ValueError, match="3 locations or more, not 2"):
        study.arrange(features[:2])


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "img":
            self.images.append(dict(attributes))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs `explain` in a folder with a clip `frames`; t-SNE is replaced by two of the features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(study, "require", lambda *names, message: [])
    monkeypatch.setattr(network_sections, "arrange", lambda features: features[:, :2])
    monkeypatch.setattr(network_sections, "DEPTHS", 2)
    (tmp_path / "frames").mkdir()
    lines = []
    for i, (frame, box) in enumerate(draw_clip(5, (96, 128))):
        write_image(tmp_path / "frames" / f"{i}.png", frame)
        lines.append(",".join(f"{value:.2f}" for value in box))
    (tmp_path / "truth.txt").write_text("\n".join(lines))

    def call(*words):
        monkeypatch.setattr(
            sys, "argv", ["correlation-aware", "explain", *map(str, words), "--device", "cpu"]
        )
        try:
            main()
        except SystemExit as end:
            return (end.code or 0, *capsys.readouterr())
        raise AssertionError("main() exits")

    return call


BOX = ("--box", "14,32,20,20")


def test_the_page_has_every_image_inside(run, tmp_path):
    models = ("--model", "sbt_test_track,siam_test_track")
    words = ("frames", *BOX, "--truth", "truth.txt", *models, "--frame", 3)
    code, out, error = run(*words, "--point", "40,50", "--distractor", "3,60,40,20,20", "--output", "out")
    assert code == 0, error
    assert "Wrote out/index.html" in out and "random" in out
    text = (tmp_path / "out" / "index.html").read_text()
    html = Page(text)
    files = {file.stem: file.read_bytes() for file in (tmp_path / "out").glob("*.png")}
    prefix = "data:image/png;base64,"
    assert all(image["src"].startswith(prefix) for image in html.images)
    inlined = [base64.b64decode(image["src"].removeprefix(prefix)) for image in html.images]
    assert sorted(inlined) == sorted(files.values())
    kinds = ["attention", "heads", "scores", "tsne", "response_maps", "curves", "failures"]
    assert all(any(kind in name for name in files) for kind in kinds), sorted(files)
    assert sum("attention" in name for name in files) == 2
    for image, data in zip(html.images, inlined):
        assert len(image["alt"]) > 40
        width, height = struct.unpack(">II", data[16:24])
        assert abs(int(image["width"]) * draw.SCALE - width) <= 2
        assert abs(int(image["height"]) * draw.SCALE - height) <= 2
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(|@import|<script|<link", text)
    assert any(tag == "meta" and a.get("name") == "viewport" for tag, a in html.tags)
    assert "the same weights without the template" in html.images[-1]["alt"] + text


def test_a_pair_without_truth_and_a_network_without_attention(run, tmp_path):
    net = ca.create_model("siam_test_track", neck="dw_corr")
    tracker = ca.create_tracker(net, device="cpu")
    paths = [tmp_path / "frames" / "0.png", tmp_path / "frames" / "1.png"]
    steps = []
    written = study.explain(paths, (14, 32, 20, 20), [tracker], "out", on_step=steps.append)
    text = written.read_text()
    assert "SiameseNet has no attention maps" in text and "Rates and overlaps need --truth" in text
    assert steps == ["track", "track", "frame 1"] and not list((tmp_path / "out").glob("*heads*"))
    assert tracker.response.scores.shape == (1, 16, 16) and tracker.response.crops[0].side > 0
    again = study.explain(paths, (14, 32, 20, 20), [tracker], "again")
    assert again.read_text() == text and text.count("data:image/png") == 4  # the same files in every run
    with pytest.raises(ValueError, match="A tracker is there twice"):
        study.explain(paths, (14, 32, 20, 20), [tracker, tracker], "out")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--frame", 0), "frame 0 cannot be explained"),
        (("--frame", 7), "frame 7 does not exist: the video has the frames 0 to 4"),
        (("--point", "400,3"), "(400, 3) is outside the frame, which is 128 x 96 px"),
        (("--point", "4"), "--point '4' is not x,y: two numbers"),
        (("--distractor", "1.5,3,4,5,6"), "the first number is that of a frame"),
        (("--distractor", "2,3,4,5,6", "--frame", 3), "distractors for frame 2, which is not explained"),
        (("--truth", "short.txt"), "The ground truth has 2 lines, but the video has more frames"),
        (("--truth", "none.txt"), "No such file"),
        (("--weights", "random,random"), "2 entries for 1 models"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, words, expected):
    (tmp_path / "short.txt").write_text("1,2,3,4\n1,2,3,4\n")
    code, _, error = run("frames", *BOX, "--model", "siam_test_track", "--output", "out", *words)
    assert code == 1 and expected in error and not (tmp_path / "out").exists()


def test_a_wrong_source_is_refused(run, tmp_path):
    for source, expected in (
        (("0",), "0 is a camera, which cannot be read twice"),
        (("frames", "truth.txt"), "frames is a folder: give one folder alone"),
        (("frames/0.png", "frames/9.png"), "There is no image file frames/9.png"),
        (("frames/0.png",), "is a single image: give a second one, to search in, or the folder"),
    ):
        code, _, error = run(*source, *BOX, "--model", "siam_test_track", "--output", "out")
        assert code == 1 and expected in error, error


def test_a_missing_package_is_named_before_the_work(monkeypatch):
    for name in ("sklearn", "sklearn.manifold"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ModuleNotFoundError, match=r"explain needs sklearn\S*: pip install .*scikit-learn.*\[explain\]"
    ):
        study.explain("no file", (0, 0, 1, 1), [], "out")


def test_text_is_escaped():
    text = page.render_page(
        "a < b", ["<script>"], [page.Section("x", ["&"], table=page.Table(["<"], [[">"]]))]
    )
    assert "<script>" not in text and "a &lt; b" in text and "<td>&gt;</td>" in text
