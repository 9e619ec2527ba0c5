"""On a GPU: replayed graphs give what eager calls give, and neither they nor the crops make the host wait."""

import copy
import warnings

import numpy as np
import pytest
import torch

import correlation_aware as ca
from correlation_aware.demo_clip import draw_clip
from correlation_aware.ops import set_backend
from correlation_aware.runtime.session import InferenceSession
from correlation_aware.tracking.tracker import TrackerConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ca.create_model("sbt_test_track", head="cell").eval()


def image(batch, side, seed=0):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)).cuda()


def sessions(model, dtype, *runtimes):
    return [InferenceSession(copy.deepcopy(model), "cuda", dtype, runtime) for runtime in runtimes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replays_equal_eager_calls(model, dtype):
    eager, graph = sessions(model, dtype, "eager", "cudagraph")
    # the same kernels in the same order; cuDNN may choose another one in the capture
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for seed, (templates, searches) in enumerate([(1, 1), (1, 1), (3, 1), (3, 3), (1, 1), (3, 1)]):
        template, search = image(templates, 64, seed), image(searches, 128, seed + 10)
        for session in (eager, graph):
            session.set_template(template)
        for _ in range(2):
            for expected, actual in zip(eager(search), graph(search), strict=True):
                assert actual.dtype == expected.dtype
                torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    # once per number of pairs, whatever the template: one search image is repeated for three templates
    assert len(graph._search._captured) == 2


def test_kernels_are_captured(model):
    with set_backend("triton"):
        (graph,) = sessions(model, torch.float32, "cudagraph")
        graph.set_template(image(1, 64))
        scores = graph(image(1, 128, seed=1))[0].clone()
        replayed = graph(image(1, 128, seed=1))[0]
    (eager,) = sessions(model, torch.float32, "eager")
    eager.set_template(image(1, 64))
    torch.testing.assert_close(replayed, scores, rtol=0, atol=0)
    torch.testing.assert_close(scores, eager(image(1, 128, seed=1))[0], rtol=1e-4, atol=1e-4)


def test_a_replay_neither_allocates_nor_waits(model):
    (graph,) = sessions(model, torch.bfloat16, "cudagraph")
    graph.set_template(image(2, 64))
    search = image(2, 128)
    first = graph(search)
    kept = first[0].clone()

    def allocations():
        return torch.cuda.memory_stats()["allocation.all.allocated"]

    before = allocations()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = graph(search + 0)  # one allocation of the test's own
        assert allocations() == before + 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert again[0] is first[0] and torch.equal(again[0], kept)
    graph(image(2, 128, seed=1))
    assert not torch.equal(first[0], kept)  # overwritten, as documented


def test_sessions_of_one_model_are_apart(model):
    shared = copy.deepcopy(model)
    first, second = (InferenceSession(shared, "cuda", runtime="cudagraph") for _ in range(2))
    search = image(1, 128)
    first.set_template(image(1, 64, seed=1))
    alone = first(search)[0].clone()
    second.set_template(image(1, 64, seed=2))
    assert not torch.equal(second(search)[0], alone)
    assert torch.equal(first(search)[0], alone)
    shared.to("cpu")
    with pytest.raises(RuntimeError, match=r"moved to torch\.float32 on cpu"):
        first(search)


@pytest.mark.parametrize("runtime", ["eager", "cudagraph"])
def test_a_tracker_waits_once_a_frame(model, runtime, recwarn):
    warnings.simplefilter("always")  # each warning of a line counts, not the first one alone
    frames = list(draw_clip(6, (120, 160)))
    config = TrackerConfig(redetect=False)  # a search waits for the results of its crops
    reference = ca.create_tracker(copy.deepcopy(model), device="cpu", config=config)
    tracker = ca.create_tracker(copy.deepcopy(model), device="cuda", runtime=runtime, config=config)
    for each in (reference, tracker):
        each.init(*frames[0])
    for i, (frame, _) in enumerate(frames[1:]):
        expected = reference.update(frame).box
        recwarn.clear()
        torch.cuda.set_sync_debug_mode("warn" if i else "default")  # the first call captures
        try:
            actual = tracker.update(frame).box
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert np.abs(np.subtract(actual, expected)).max() < 0.5  # pixels
        if i:
            assert len([w for w in recwarn if "called a synchronizing" in str(w.message)]) == 1  # the result
    t = tracker.timings
    assert t.frames == 5 and min(t.crop, t.model, t.post) > 0
