"""The contract of two-input networks: sizes, states of templates, levels, and what a head returns."""

import copy
import pickle

import pytest
import torch

import correlation_aware as ca
from correlation_aware.models.contract import FeatureNet
from correlation_aware.models.heads import CellHead
from correlation_aware.runtime.session import InferenceSession

TEMPLATE, SEARCH = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 64, 64)


def test_sizes_are_read_only():
    net = ca.create_model("sbt_test", template_size=96, search_size=160)
    tracker, levels = ca.TrackModel.build(net, "cell"), FeatureNet(ca.create_model("sbt_test"), (2,))
    for model in (net, tracker, levels):
        with pytest.raises(AttributeError, match=r"create_model\(\.\.\., template_size="):
            model.sizes = ca.Sizes(32, 64)
    assert net.sizes == tracker.sizes == ca.Sizes(96, 160) and levels.sizes == levels.model.sizes
    for again in (copy.deepcopy(tracker), pickle.loads(pickle.dumps(tracker))):
        assert again.sizes == ca.Sizes(96, 160)


@pytest.fixture
def state():
    return ca.TemplateState([torch.arange(6.0).reshape(3, 2), torch.tensor([True, False, True])])


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([0, 2, 0], [0, 2, 0]),
        (slice(0, 2), [0, 1]),
        (torch.tensor([1]), [1]),
        (torch.tensor([True, False, True]), [0, 2]),
        ([], []),
    ],
)
def test_templates_are_chosen_by_their_numbers(state, indices, expected):
    chosen = state.index(indices)
    assert type(chosen) is ca.TemplateState and chosen.batch == len(expected)
    assert [row.tolist() for row in chosen[0]] == [[2 * i, 2 * i + 1] for i in expected]
    assert chosen[1].tolist() == [i != 1 for i in expected]


@pytest.mark.parametrize("indices", [0, torch.tensor(1), [[0, 1]], [0.5], "first", None])
def test_an_index_keeps_the_batch(state, indices):
    with pytest.raises(ValueError, match=r"must be a list of template numbers, such as \[0\]"):
        state.index(indices)


def test_a_state_is_a_tuple_of_tensors(state):
    assert type(state[:1]) is type(state + state) is tuple and len(state + state) == 4


def test_a_state_and_predictions_are_loaded_as_weights_are(tmp_path, state):
    output = ca.create_model("sbt_test_track")(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 128, 128))
    for saved in (state, output):
        torch.save(saved, tmp_path / "saved.pt")
        again = torch.load(tmp_path / "saved.pt")  # weights_only=True is the default
        assert type(again) is type(saved)
        torch.testing.assert_close(tuple(again), tuple(saved), rtol=0, atol=0)


def test_levels_are_chosen_as_in_timm():
    net = ca.create_model("sbt_test").eval()
    assert FeatureNet(copy.deepcopy(net), 2).out_indices == (1, 2)
    maps = net.forward_intermediates(TEMPLATE, SEARCH)
    for indices, expected in ((2, (1, 2)), ((-1,), (2,))):
        chosen = net.forward_intermediates(TEMPLATE, SEARCH, indices)
        assert all(torch.equal(a, maps[i]) for a, i in zip(chosen, expected, strict=True))
    for indices in (0, 4, -1, (3,), (-4,), ()):
        with pytest.raises(ValueError, match=r"out_indices=.* must be levels in -3\.\.2"):
            FeatureNet(net, indices)
        with pytest.raises(ValueError, match=r"indices=.* must be levels in -3\.\.2"):
            net.forward_intermediates(TEMPLATE, SEARCH, indices)


def test_a_network_of_one_level_says_so():
    net = ca.create_model("sbt_test")
    with pytest.raises(ValueError, match="SBT gives level 2 alone"):
        ca.TwoInputModel.forward_intermediates(net, TEMPLATE, SEARCH, (0,))


@pytest.mark.parametrize("name", ["sbt_test", "siam_test", "supersbt_test", "onestream_vit_test"])
def test_images_of_another_kind_are_refused(name):
    net = ca.create_model(name)
    session = InferenceSession(net, device="cpu")
    session.set_template(TEMPLATE)
    uint8 = SEARCH.byte()
    for image, kind in ((uint8, "tensor of uint8"), (uint8.numpy(), "ndarray"), (None, "NoneType")):
        message = rf"search is a {kind}; expected a tensor of floats, \(batch, 3, height, width\)"
        with pytest.raises(TypeError, match=message):
            net(TEMPLATE, image)
        with pytest.raises(TypeError, match=message):
            session(image)
        for encode in (lambda image: net(image, SEARCH), session.set_template):
            with pytest.raises(TypeError, match=rf"template is a {kind}; expected a tensor"):
                encode(image)
    with pytest.raises(TypeError, match="or the state that encode_template returned"):
        net([None], SEARCH)


def test_an_empty_batch_is_refused():
    net = ca.create_model("sbt_test")
    with pytest.raises(ValueError, match="template batch is empty"):
        net(TEMPLATE[:0], SEARCH)
    with pytest.raises(ValueError, match="search batch is empty"):
        net(TEMPLATE, SEARCH[:0])
    with pytest.raises(ValueError, match="template batch is empty"):
        net(net.encode_template(TEMPLATE).index([]), SEARCH)


def test_a_state_of_another_dtype_is_refused_but_for_autocast():
    net = ca.create_model("sbt_test").eval()
    state = net.encode_template(TEMPLATE)
    with torch.autocast("cpu", torch.bfloat16):
        net(state, SEARCH)
    net.bfloat16()
    with pytest.raises(ValueError, match=r"state is torch\.float32, the search features are torch\.bfloat16"):
        net(state, SEARCH.bfloat16())
    net(state.map(lambda t: t.bfloat16()), SEARCH.bfloat16())


class TupleHead(CellHead):
    def forward(self, features):
        return tuple(super().forward(features))


class DictHead(CellHead):
    def forward(self, features):
        return super().forward(features)._asdict()


@pytest.mark.parametrize("head", [TupleHead, DictHead])
def test_a_head_returns_a_track_output(head):
    net = ca.create_model("sbt_test")
    with pytest.raises(TypeError, match=rf"{head.__name__} returned a \w+; a head returns TrackOutput"):
        ca.TrackModel(net, head(net.num_features))(TEMPLATE, SEARCH)
