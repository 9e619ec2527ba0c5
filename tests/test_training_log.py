"""Plots of a run's log, and TensorBoard event files."""

import cv2
import pytest
import torch

from correlation_aware.training.log import Means, RunLog, plot_log, read_log

RECORDS = [{"step": step, "loss": 4.0 / step, "seconds": 1.0 * step} for step in (1, 2, 3)]


def test_all_processes_reduce_the_same_names_in_the_same_order():
    """Each process sees batches of other sources: its sums must be of the same figures as the others'."""
    for batches in ([{"loss": 2.0, "loss_stills": 2.0}], [{"loss_videos": 4.0, "loss": 4.0}, {"loss": 6.0}]):
        means = Means(("loss_stills", "loss_videos"))
        for values in batches:
            means.add({name: torch.tensor(value) for name, value in values.items()})
        names, (sums, counts) = means.take()
        assert names == ["loss", "loss_stills", "loss_videos"]
        assert sums.tolist() == [sum(values.get(name, 0) for values in batches) for name in names]
        assert counts.tolist() == [sum(name in values for values in batches) for name in names]


def test_curves(tmp_path):
    pytest.importorskip("matplotlib")
    plot_log([*RECORDS, {"step": 3, "val_ao": 0.5}], tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).shape[0] > 200
    with pytest.raises(ValueError, match="no records"):
        plot_log(read_log(tmp_path / "log.jsonl"), tmp_path / "curves.png")


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, 0) as log:
        for record in RECORDS:
            log.write(record)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (r["step"], pytest.approx(r["loss"])) for r in RECORDS
    ]
