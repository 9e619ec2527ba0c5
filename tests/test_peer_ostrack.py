"""OSTrack's own unmodified code, stock and with our backbone: its tester, its actor and losses."""

import pytest
import stark_family

pytestmark = pytest.mark.peers

NAME = "vitb_256_mae_32x4_ep300"
STOCK, FILE = "    TYPE: vit_base_patch16_224", '  PRETRAIN_FILE: "mae_pretrain_vit_base.pth"'
TYPES = {
    "stock": STOCK,
    "ours": "    TYPE: sbt_light",
    "supersbt": "    TYPE: supersbt_test",
    "vit": "    TYPE: onestream_vit_test_ce",
}
# a quarter of the time, and a rate at which a network with random weights does not diverge
SMALL = {
    "    SIZE: 128": "    SIZE: 64",
    "    SIZE: 256": "    SIZE: 128",
    "  LR: 0.0004": "  LR: 0.00001",
}


@pytest.fixture
def ostrack(peer, make_clip, tmp_path):
    """Runs a job on an experiment of OSTrack's with another backbone, and without weights to start from."""

    def run(job, kind, changes=None, **options):
        checkout = peer("OSTrack")
        make_clip(tmp_path / "got10k" / "val", stark_family.FRAMES)
        lines = {STOCK: TYPES[kind], FILE: '  PRETRAIN_FILE: ""', **(changes or {})}
        if kind == "supersbt":  # it has no stochastic depth
            lines["  DROP_PATH_RATE: 0.1"] = "  DROP_PATH_RATE: 0.0"
        stark_family.experiment(tmp_path, checkout, "ostrack", NAME, lines)
        adapter = None if kind == "stock" else "ostrack"
        options |= {"script": "ostrack", "name": NAME, "adapter": adapter}
        return stark_family.run(checkout, job, tmp_path, **options)

    return run


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_its_tester_tracks(ostrack, kind):
    done = ostrack("track", kind, file="OSTrack_ep0300.pth.tar")
    assert len(done["boxes"]) == stark_family.FRAMES and done["boxes"][0] == done["first"]
    assert all(w > 0 and h > 0 for _, _, w, h in done["boxes"])
    assert done["log"].count("Tracker: ") == 1 and "FPS: " in done["log"]


@pytest.mark.parametrize("kind", TYPES)
def test_its_actor_trains(ostrack, kind):
    done = ostrack("train", kind, SMALL)
    losses = done["losses"]
    assert len(losses) == 10 and losses[-1] < losses[0]
    if kind != "stock":
        assert not done["missing"]
    (rest, slow) = done["rates"]
    assert slow[0] == pytest.approx(rest[0] / 10) and slow[1] > 0


def test_the_example_runs_on_it(peer, tmp_path):
    done = stark_family.run(peer("OSTrack"), "example", tmp_path, file="ca_ostrack.py")
    assert done["log"].count("score map (1, 1, 8, 8)") == 3
