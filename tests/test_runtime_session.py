"""Sessions give the numbers of the model they were made from, on every runtime."""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from acme_family import MaskedNet
from torch import nn

import correlation_aware as ca
from correlation_aware.demo_clip import draw_clip
from correlation_aware.runtime import session as session_module
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking import crop

RUNTIMES = ("eager", "onnx", "openvino")


@pytest.fixture(scope="module")
def tracker_model():
    """A tracker of few blocks: EoC-SA, EoC-CA of both streams, EoC-SA, EoC-CA of the search stream alone."""
    torch.manual_seed(0)
    blocks = {"depths": (1, 1, 2), "cross_blocks": ((), (0,), (1,))}
    return ca.create_model("sbt_test_track", head="cell", **blocks).eval()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the file, so that each format is exported once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def onnx_programs():
    """PyTorch's ONNX program of a graph of `tracker_model`, by the names of its outputs, for both formats."""
    return {}


@pytest.fixture
def cached(cache, monkeypatch, onnx_programs):
    monkeypatch.setenv("CORRELATION_AWARE_CACHE", str(cache))
    to_onnx = torch.onnx.export

    def export_once(*arguments, output_names, **options):
        names = tuple(output_names)
        if names not in onnx_programs:
            onnx_programs[names] = to_onnx(*arguments, output_names=output_names, **options)
        return onnx_programs[names]

    monkeypatch.setattr(torch.onnx, "export", export_once)
    return cache


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sessions_equal_the_model(needs, runtime, tracker_model, cached):
    needs(runtime)
    session = InferenceSession(tracker_model, runtime=runtime)
    assert session.outputs == ("scores", "boxes")
    generator = torch.Generator().manual_seed(1)
    template = torch.randn(3, 3, 64, 64, generator=generator)
    search = torch.randn(1, 3, 128, 128, generator=generator)  # three targets in one image
    with pytest.raises(RuntimeError, match="call set_template"):
        session(search)
    session.set_template(template)
    with torch.no_grad():
        expected = tracker_model(template, search)
    scores, boxes = session(search)
    # float32 in another order of operations
    torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(boxes, expected.boxes, rtol=1e-4, atol=1e-5)
    session.set_template(template[:1])
    assert torch.allclose(session(search)[0], expected.scores[:1], atol=1e-5)
    for scores in session(search.expand(2, -1, -1, -1))[0]:  # one template, two images
        assert torch.allclose(scores, expected.scores[0], atol=1e-5)
    session.set_template(template)
    with pytest.raises(ValueError, match="template batch 3 and search batch 2"):
        session(search.expand(2, -1, -1, -1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sessions_of_one_model_are_apart(needs, runtime, tracker_model, cached):
    needs(runtime)
    first, second = (InferenceSession(tracker_model, runtime=runtime) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    template, search = (torch.randn(n, 3, side, side, generator=generator) for n, side in ((2, 64), (1, 128)))
    first.set_template(template[:1])
    alone = first(search)[0]
    second.set_template(template[1:])
    assert not torch.allclose(second(search)[0], alone)
    assert torch.equal(first(search)[0], alone)


@pytest.mark.parametrize("runtime", RUNTIMES[1:])
def test_a_tracker_follows_alike_on_every_runtime(needs, runtime, tracker_model, cached):
    needs(runtime)
    frames = list(draw_clip(5, (120, 160)))
    trackers = [ca.create_tracker(tracker_model, device="cpu", runtime=r) for r in ("eager", runtime)]
    assert trackers[1].session.runtime == runtime
    for tracker in trackers:
        tracker.init(*frames[0])
    for frame, _ in frames[1:]:
        ours, reference = (np.array(tracker.update(frame).box) for tracker in reversed(trackers))
        assert np.abs(ours - reference).max() < 0.5  # pixels


@pytest.mark.parametrize(("vote", "window"), [(0.0, 0.49), (8.0, 0.0)])
def test_the_client_of_numpy_and_onnxruntime_gives_the_boxes_of_the_tracker(
    needs, tracker_model, cached, monkeypatch, vote, window
):
    """`examples/onnx_client.py`, with targets of several shapes, one of which is at the edge of the frame."""
    needs("onnx")
    path = Path(__file__).resolve().parent.parent / "examples" / "onnx_client.py"
    imports = re.findall(r"^ *(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
    assert imports == ["json", "numpy", "onnxruntime"]
    config = ca.TrackerConfig(box_vote=vote, window_weight=window, redetect=False)  # the client has none
    tracker = ca.create_tracker(tracker_model, device="cpu", runtime="onnx", config=config)
    (search,) = cached.glob("*-onnx/*.search.onnx")
    client = runpy.run_path(str(path))["OnnxTracker"](str(search).removesuffix(".search.onnx"))
    assert client.vote == 0  # of the metadata; this head has none
    client.vote = vote
    own = {} if window == ca.TrackerConfig().window_weight else {"window": window}
    clip = list(draw_clip(5, (120, 160)))
    for box in (clip[0][1], (100, 10, 50.5, 20), (0, 60, 12, 40), (10, 10, 140, 100), (0, 108, 15, 12)):
        for largest_copy, pixels in ((0, 1e-3), (4096, 1.0)):  # OpenCV's resizing rounds in another way
            monkeypatch.setattr(crop, "LARGEST_COPY", largest_copy)
            tracker.init(clip[0][0], box)
            client.init(clip[0][0], box)
            for frame, _ in clip[1:]:
                expected, (actual, score, lost) = tracker.update(frame), client.update(frame, **own)
                assert np.abs(np.subtract(actual, expected.box)).max() < pixels
                assert abs(score - expected.score) < 0.01 and lost == expected.lost


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("first", "second"), [(1, 1), (3, 3), (3, 1), (1, 3)])
def test_a_second_init_forgets_the_first_target(needs, runtime, first, second, tracker_model, cached):
    """Templates and boxes of the targets before are not used: the numbers are those of a fresh tracker."""
    needs(runtime)
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (3, 120, 160, 3), dtype=np.uint8)
    boxes = np.array([(20, 20, 30, 24), (90, 60, 40, 40), (60, 10, 24, 36), (100, 20, 30, 30)], float)
    targets = boxes[0] if first == 1 else boxes[:3]
    others = boxes[3] if second == 1 else boxes[1:]
    used, fresh = (ca.create_tracker(tracker_model, device="cpu", runtime=runtime) for _ in range(2))
    used.init(frames[0], targets)
    before = used.update(frames[1])
    used.init(frames[0], others)
    fresh.init(frames[0], others)
    for frame in frames[1:]:
        after = used.update(frame)
        assert after == fresh.update(frame) and after != before


@pytest.mark.parametrize("runtime", ["eager", "onnx", "openvino"])
def test_search_images_of_chosen_templates(needs, runtime, tracker_model, cached):
    """Several images of one template, and none of another: the numbers are those of each pair alone."""
    needs(runtime)
    rng = torch.Generator().manual_seed(0)
    sizes, session = tracker_model.sizes, InferenceSession(tracker_model, runtime=runtime)
    templates = torch.randn(3, 3, sizes.template_size, sizes.template_size, generator=rng)
    images = torch.randn(4, 3, sizes.search_size, sizes.search_size, generator=rng)
    session.set_template(templates)
    state = session.encode(templates[:1])  # the templates that are set stay
    numbers = [2, 0, 2, 2]
    scores, boxes = session(images, numbers)
    torch.testing.assert_close(session(images[:3])[0][2], session(images[2:3], [2])[0][0])
    for i, number in enumerate(numbers):
        session.set_template(templates[number : number + 1])
        alone = session(images[i : i + 1])
        torch.testing.assert_close(alone[0][0], scores[i], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(alone[1][0], boxes[i], atol=1e-4, rtol=1e-3)
    session.set_template(templates[:1])
    torch.testing.assert_close(session.encode(templates[:1])[0], state[0])


def test_a_search_adds_no_batch_size_that_openvino_compiles(needs, tracker_model, cached, monkeypatch):
    """The number of crops of lost targets, and of boxes to look at, changes from frame to frame."""
    needs("openvino")
    sizes, batches, open_graph = tracker_model.sizes, [], session_module.open_graph

    def recording(*arguments):
        function = open_graph(*arguments)
        return lambda *arrays: batches.append(len(arrays[-1])) or function(*arrays)

    monkeypatch.setattr(session_module, "open_graph", recording)
    session = InferenceSession(tracker_model, runtime="openvino")
    session.set_template(torch.zeros(2, 3, sizes.template_size, sizes.template_size))
    images = torch.zeros(5, 3, sizes.search_size, sizes.search_size)
    assert batches == [1, 1]
    assert session(images[:2])[0].shape[0] == 2 and session(images, [0, 1, 1, 1, 0])[0].shape[0] == 5
    assert batches == [1, 1, 2, 1, 1, 1, 1, 1]


def test_a_session_computes_as_its_model():
    model = ca.create_model("sbt_test", dtype=torch.bfloat16)
    session = InferenceSession(model)
    assert session.dtype == torch.bfloat16 and next(model.parameters()).dtype == torch.bfloat16
    session.set_template(torch.zeros(1, 3, 64, 64))
    assert session(torch.zeros(1, 3, 128, 128))[0].dtype == torch.bfloat16


def test_exports_are_kept(needs, cached, tracker_model, monkeypatch):
    needs("onnx")
    InferenceSession(tracker_model, runtime="onnx")
    monkeypatch.setattr(session_module, "export", lambda *_: pytest.fail("exported again"))
    InferenceSession(tracker_model, runtime="onnx")
    assert len(list(cached.glob("sbt_test_track-*-onnx"))) == 1


def test_exports_of_different_models_are_kept_apart(tmp_path, monkeypatch):
    """Same name and same shapes of the weights: the weights themselves, and what no shape shows, count."""
    monkeypatch.setenv("CORRELATION_AWARE_CACHE", str(tmp_path))
    monkeypatch.setattr(session_module, "export", lambda model, folder, *_: folder.mkdir())
    monkeypatch.setattr(session_module, "gives_outputs_of", lambda *_: True)

    def cached_in(seed=0, **arguments):
        torch.manual_seed(seed)
        model = ca.create_model("sbt_test_track", head="cell", **arguments)
        return {path.parent for path in session_module._exported(model, "onnx")}.pop()

    changes = [{}, {"seed": 1}, {"heads": (1, 1, 1)}, {"cross_blocks": ((), (), (0,))}, {"search_size": 96}]
    assert len({cached_in(**change) for change in changes}) == len(changes)
    assert cached_in() == cached_in()


@pytest.mark.parametrize("package", [False, True])
def test_a_layer_whose_code_changed_is_exported_again(package, tmp_path, monkeypatch):
    """The code of a layer, and that of a module beside it, in which there is no layer."""
    name = f"changing_{package}"
    file = tmp_path / f"{name}.py"
    code = "from torch import nn\n\nclass Scale(nn.Module):\n    factor = {}\n"
    if package:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"from {name}.functions import *\n" + code.format(2))
        file, code = tmp_path / name / "functions.py", "def scale(x):\n    return x * {}\n"
    file.write_text(code.format(2))
    monkeypatch.syspath_prepend(tmp_path)
    model = ca.create_model("sbt_test_track")
    model.head.scale = importlib.import_module(name).Scale()
    before = session_module._cache_key(model, {"model": "scale"})
    assert session_module._cache_key(model, {"model": "scale"}) == before
    assert session_module._cache_key(model, {"model": "other"}) != before
    file.write_text(code.format(3))
    assert session_module._cache_key(model, {"model": "scale"}) != before


def test_a_plain_attribute_is_in_the_key():
    """Numbers, containers, dataclasses and plain tensors; functions by their name, not their address."""
    keys = set()
    values = (1.0, 5.0, (1, 2), {"a": {2, 3}}, ca.Sizes(), ca.Sizes(64), torch.float16, torch.ones(2), np.sum)
    for value in values:
        torch.manual_seed(0)
        for _ in range(2):  # two models of one kind
            model = nn.Sequential(nn.Linear(2, 2))
            model[0].gain = value
            keys.add(session_module._cache_key(model, {}))
    assert len(keys) == len(values)


def test_a_cached_graph_that_differs_from_the_model_is_exported_again(needs, tmp_path, monkeypatch):
    """The network has a mask and an index in its state, which the files take and give."""
    needs("onnx")
    monkeypatch.setenv("CORRELATION_AWARE_CACHE", str(tmp_path))
    torch.manual_seed(0)
    net, template, search = MaskedNet().eval(), torch.randn(2, 3, 16, 16), torch.randn(2, 3, 32, 32)
    for strength in (1.0, 5.0):
        monkeypatch.setattr(MaskedNet, "strength", (strength,))
        session = InferenceSession(net, runtime="onnx")
        session.set_template(template)
        assert [t.dtype for t in session._state] == [torch.float32, torch.bool, torch.int64]
        with torch.no_grad():
            torch.testing.assert_close(session(search)[0], net(template, search), rtol=1e-4, atol=1e-5)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("MaskedNet-")  # made by hand: it has no name of the zoo


def test_masks_and_indices_in_a_state_keep_their_dtype():
    torch.manual_seed(0)
    net = MaskedNet().eval()
    template, search = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(template, search)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 0.05)):
        session = InferenceSession(net, dtype=dtype)
        session.set_template(template)
        assert [t.dtype for t in session._state] == [dtype, torch.bool, torch.int64]
        torch.testing.assert_close(session(search)[0].float(), expected, rtol=tolerance, atol=tolerance)


def test_another_image_size_than_that_of_the_graph_is_refused(needs, tracker_model, cached):
    needs("onnx")
    session = InferenceSession(tracker_model, runtime="onnx")
    with pytest.raises(ValueError, match=r"template images .*\(1, 3, 96, 96\).* is for \(batch, 3, 64, 64\)"):
        session.set_template(torch.zeros(1, 3, 96, 96))
    session.set_template(torch.zeros(1, 3, 64, 64))
    with pytest.raises(
        ValueError, match=r"create_model\(\.\.\., search_size=\.\.\.\), or use runtime='eager'"
    ):
        session(torch.zeros(1, 3, 128, 160))


SIGNAL_AFTER_OPENVINO = """
import signal, sys
from correlation_aware.runtime.export import open_graph
first, second = (open_graph(path) for path in sys.argv[1:])
del first, second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals with a stack of their own")
def test_signals_are_handled_after_openvino_sessions(needs, cached, tracker_model):
    """Two cores that go in the order they came leave a thread without a stack for signal handlers."""
    needs("openvino")
    InferenceSession(tracker_model, runtime="openvino")  # writes the files
    files = [str(path) for path in cached.glob("*-openvino/*.xml")]
    program = [sys.executable, "-c", SIGNAL_AFTER_OPENVINO, *files]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "handled\n", result.stderr


def test_what_cannot_run_says_so(needs, tracker_model, monkeypatch):
    with pytest.raises(ValueError, match=r"runtime='tensorrt' is not one of auto, eager"):
        InferenceSession(tracker_model, runtime="tensorrt")
    needs("openvino")
    with pytest.raises(ValueError, match=r"supports float32, bfloat16, not dtype=torch\.float16"):
        InferenceSession(tracker_model, dtype=torch.float16, runtime="openvino")
    with pytest.raises(ValueError, match="supports device='cpu' only, not device=cuda"):
        InferenceSession(tracker_model, device="cuda", runtime="onnx")
    with pytest.raises(ValueError, match="runtime='cudagraph' supports device='cuda' only, not device=cpu"):
        InferenceSession(tracker_model, runtime="cudagraph")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match="needs a CUDA GPU, and PyTorch finds none"):
            ca.create_tracker(tracker_model, runtime="cudagraph")
